"""Telling whose file it is, reading it, and checking that what comes out is a job specification."""

from __future__ import annotations

from typing import Any, Literal

import yaml

from nunet_cli.errors import UsageError
from nunet_cli.jobs.foreign.bacalhau import read_bacalhau
from nunet_cli.jobs.foreign.compose import read_compose
from nunet_cli.jobs.foreign.mapping import Note
from nunet_cli.jobs.reader import parse_document, read_spec
from nunet_cli.jobs.spec import MAX_SPEC_BYTES

Kind = Literal["compose", "bacalhau"]
READERS = {"compose": read_compose, "bacalhau": read_bacalhau}


def read_foreign(text: str, *, source: str, kind: Kind | None = None) -> tuple[dict[str, Any], list[Note]]:
    """Return the job specification for another tool's file, as a person would write it, and what did not map.

    Args:
        text: the file, YAML or JSON.
        source: its name, for messages.
        kind: whose it is; by its fields where it is not said.

    Raises:
        UsageError: it cannot be read, or what comes out is no job; the message names the place.
    """
    if len(text) > MAX_SPEC_BYTES:
        raise UsageError(f"{source}: more than {MAX_SPEC_BYTES} bytes")
    document, _ = parse_document(text, source)
    if not isinstance(document, dict):
        raise UsageError(f"{source}: not a mapping of fields")
    kind = kind or _kind_of(document, source)
    try:
        spec, notes = READERS[kind](document)
        written = yaml.safe_dump(spec, sort_keys=False)
        read_spec(written, source="what it becomes")
    except UsageError as error:
        raise UsageError(f"{source}: {error.message}", hint=error.hint) from None
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        raise UsageError(f"{source}: not a {kind} file as it should be: {error}") from None
    return spec, notes


def _kind_of(document: dict[str, Any], source: str) -> Kind:
    if "services" in document:
        return "compose"
    if "Tasks" in document:
        return "bacalhau"
    raise UsageError(
        f"{source}: neither a Compose file (services) nor a Bacalhau job (Tasks)", hint="say which with --from"
    )
