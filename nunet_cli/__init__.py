"""`nunet`: a command-line tool with an embedded node that turns any set of machines into a compute market."""

__version__ = "0.1.0"
RELEASE_DATE = "2026-11-23"
