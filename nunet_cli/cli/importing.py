"""`nunet job import`: a Docker Compose file or a Bacalhau job as a job specification."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nunet_cli.cli.output import Format, OutputOption, dump, note, write_new
from nunet_cli.errors import UsageError


class Source(StrEnum):
    """Whose file it is."""

    compose = "compose"
    bacalhau = "bacalhau"


def import_job(
    file: Annotated[str, typer.Argument(help="The Compose file or Bacalhau job; - for stdin.", metavar="FILE")],
    source: Annotated[
        Source | None, typer.Option("--from", help="Whose file it is; told by its fields otherwise.")
    ] = None,
    target: Annotated[
        Path, typer.Option("--file", "-f", help="Where to write it; - for standard output.", metavar="FILE")
    ] = Path("-"),
    strict: Annotated[bool, typer.Option("--strict", help="Fail (exit code 2) where anything does not map.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write over a file that is there.")] = False,
    output: OutputOption = Format.table,
) -> None:
    """Write the job specification for a Docker Compose file or a Bacalhau job, and list what did not map."""
    import msgspec
    import yaml

    from nunet_cli.jobs.foreign.read import read_foreign

    name = "stdin" if file == "-" else file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    spec, notes = read_foreign(text, source=name, kind=None if source is None else source.value)
    if strict and notes:
        listed = "; ".join(f"{item.path}: {item.reason}" for item in notes[:5])
        raise UsageError(f"{name}: {len(notes)} fields do not map: {listed}", hint="leave --strict out")
    if output is not Format.table:
        dump({"spec": spec, "notes": msgspec.to_builtins(notes)}, output)
        return
    written = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
    if str(target) == "-":
        typer.echo(written, nl=False)
    else:
        write_new(target, written, yes=yes)
    for item in notes:
        note(f"{item.path}: {item.reason}")
    if str(target) != "-":
        note(f"set what you pay (price), then: nunet job run {shlex.quote(str(target))}")
