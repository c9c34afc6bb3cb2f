"""`nunet`: a command-line tool with an embedded node that turns any set of machines into a compute market."""

__version__ = "0.1.0"
# of the JSON documents that commands print and the API answers with
SCHEMA_VERSION = 1
RELEASE_DATE = "2026-11-23"
