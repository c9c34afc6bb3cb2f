"""The JSON Schema of a job specification as people write it, for editors and other programs."""

from __future__ import annotations

from typing import Any

import msgspec

from nunet_cli import __version__
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.records.limits import checked

SCHEMA_ID = "urn:nunet:schema:job:1"
_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_SCALAR = {"type": ["string", "number", "boolean"]}
# where a person writes `4GiB`, `90m` or `0.5 NTX` and the checked form has a number
_WITH_UNITS = {
    "Resources": ("memory", "disk"), "Gpu": ("vram",), "Storage": ("size",), "Connectivity": ("bandwidth",),
    "Speeds": ("cpu_hash", "memory_copy", "disk_write"),
    "TimeSpec": ("max_duration",), "ScheduleSpec": ("every",), "ServiceSpec": ("delay",),
    "HealthSpec": ("interval", "timeout", "start_period"),
}  # fmt: skip


def job_schema() -> dict[str, Any]:
    """Return the schema (JSON Schema 2020-12)."""
    (whole,), definitions = msgspec.json.schema_components([checked(JobSpec)], ref_template="#/$defs/{name}")
    for name, fields in _WITH_UNITS.items():
        for field in fields:
            _also(definitions[name], field, _TEXT)
    _also(definitions["Resources"], "cpu", _NUMBER)
    _also(definitions["PriceSpec"], "max", _NUMBER)
    _also(definitions["JobSpec"], "price", _TEXT, _NUMBER)
    _also(definitions["JobSpec"], "push", _TEXT)
    # the items of a batch may be so many, or in a file
    definitions["BatchSpec"]["properties"]["items"]["items"]["additionalProperties"] = _SCALAR
    _also(definitions["BatchSpec"], "items", {"type": "integer", "minimum": 1, "maximum": 10_000}, _TEXT)
    del definitions["BatchSpec"]["properties"]["read_from"]
    # values of the environment may be numbers or true and false: they are passed on as JSON writes them
    definitions["ExecutorSpec"]["properties"]["env"]["additionalProperties"] = _SCALAR
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, "title": "nunet job specification",
        "description": f"A job for nunet {__version__}; `nunet job validate` checks more than a schema can say.",
        **whole, "$defs": definitions,
    }  # fmt: skip


def _also(definition: dict[str, Any], field: str, *forms: dict[str, Any]) -> None:
    """Allow a field to be written in other forms, too."""
    properties = definition["properties"]
    known = dict(properties[field])
    default = {"default": known.pop("default")} if "default" in known else {}
    properties[field] = {"anyOf": [known, *forms], **default}
