"""Rendering: tables for people, JSON, JSON lines or YAML for scripts, ids alone; data on stdout, the rest on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from nunet_cli.errors import NunetError


class Format(StrEnum):
    """How to print."""

    table = "table"
    json = "json"
    jsonl = "jsonl"
    yaml = "yaml"


OutputOption = Annotated[Format, typer.Option("--output", "-o", help="How to print the result.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids alone.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Columns = dict[str, Callable[[dict[str, Any]], Any]]


def console(*, stderr: bool = False) -> Console:
    """Return a console that knows whether it is a terminal; a pipe is as wide as its longest line."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    plain = not stream.isatty()
    width = None if not plain else 10_000
    return Console(stderr=stderr, width=width, no_color=plain or "NO_COLOR" in os.environ, highlight=False)


def emit_list(
    rows: Sequence[dict[str, Any]], columns: Columns, output: Format, *, quiet: bool = False, key: str = "id",
    empty: str = "",
) -> None:  # fmt: skip
    """Print a list in the format that was asked for."""
    if quiet:
        for row in rows:
            typer.echo(row[key])
    elif output is Format.table:
        if not rows:
            note(empty or "nothing yet")
            return
        table([[_text(read(row)) for read in columns.values()] for row in rows], list(columns))
    elif output is Format.jsonl:
        for row in rows:
            typer.echo(json.dumps(row))
    else:
        dump(list(rows), output)


def emit(
    document: dict[str, Any], output: Format, render: Callable[[], None], *, quiet: bool = False, key: str = "id"
) -> None:
    """Print one document in the format that was asked for."""
    if quiet:
        typer.echo(document[key])
    elif output is Format.table:
        render()
    else:
        dump(document, output)


def dump(document: Any, output: Format) -> None:
    """Print JSON or YAML."""
    if output is Format.yaml:
        import yaml

        typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip())
    elif output is Format.jsonl:
        typer.echo(json.dumps(document))
    else:
        typer.echo(json.dumps(document, indent=2))


# columns that a narrow terminal leaves out, the first ones first; a pipe, a wide terminal and --output have them all
_OPTIONAL = ("time", "found by", "executor", "score", "as", "created", "job")
_IDS = ("id", "contract", "peer", "did")
_GAP, _LEAST_LAST = 2, 16


def table(rows: list[list[str]], headers: list[str]) -> None:
    """Print columns without boxes, one line a row; at a terminal ids are cut and the last column takes what is left."""
    # of rich only the widths of letters: its tables take longer to import than a node to answer
    from rich.cells import cell_len, set_cell_size

    cells = [[clean(cell).replace("\n", " ").replace("\t", " ") for cell in row] for row in rows]
    room = None
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns
        cells = [
            [id_text(cell) if name in _IDS else cell for name, cell in zip(headers, row, strict=True)] for row in cells
        ]
        kept = _that_fit(cells, headers, room)
        headers, cells = [headers[at] for at in kept], [[row[at] for at in kept] for row in cells]
    widths = _widths(cells, headers)
    if room is not None:
        left = room - sum(width + _GAP for width in widths[:-1])
        widths[-1] = min(widths[-1], max(left, _LEAST_LAST))
        # where even that is too much, the widest give
        while sum(widths) + _GAP * (len(widths) - 1) > room and max(widths) > 1:
            widths[widths.index(max(widths))] -= 1

    def line(row: list[str]) -> str:
        fitted = [
            set_cell_size(text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…", width)
            for text, width in zip(row, widths, strict=True)
        ]
        return (" " * _GAP).join(fitted).rstrip()

    heading = line([header.upper() for header in headers])
    # without a terminal, or in one that cannot show it, the heading is as plain as the rest
    emphasis = room is not None and "NO_COLOR" not in os.environ and os.environ.get("TERM") not in ("dumb", "unknown")
    typer.echo("\n".join([typer.style(heading, bold=True) if emphasis else heading, *map(line, cells)]))


def _widths(cells: list[list[str]], headers: list[str]) -> list[int]:
    from rich.cells import cell_len

    return [max(cell_len(text) for text in (header, *(row[at] for row in cells))) for at, header in enumerate(headers)]


def _that_fit(cells: list[list[str]], headers: list[str], width: int) -> list[int]:
    """Return the columns that a terminal has room for."""
    widths = _widths(cells, headers)
    kept = list(range(len(headers)))
    for name in _OPTIONAL:
        needed = sum(widths[at] + _GAP for at in kept[:-1]) + min(widths[kept[-1]], _LEAST_LAST)
        if needed <= width:
            break
        kept = [at for at in kept if headers[at] != name or at == kept[-1]]
    return kept


def id_text(text: str) -> str:
    """Return the beginning of an id that is enough to name it: eight characters behind what all of a kind share."""
    for start in ("12D3KooW", "did:key:z6Mk", "bafkrei"):
        if text.startswith(start):
            return text[: len(start) + 8]
    kind, dash, rest = text.partition("-")
    return f"{kind}-{rest[:8]}" if dash and len(rest) >= 20 else text


def fields(pairs: dict[str, Any]) -> None:
    """Print names and values below each other, leaving out what is empty."""
    shown = {
        name: clean(_text(value))
        for name, value in pairs.items()
        if name != "schema" and value not in (None, "", [], {})
    }
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        typer.echo(hanging(f"{name:<{width}}  ", value))


def hanging(label: str, text: str) -> str:
    """Return a text behind its label; at a terminal broken at its width, between words, below where it begins."""
    if not sys.stdout.isatty():
        return label + text
    import textwrap

    room = shutil.get_terminal_size().columns - len(label)
    lines = textwrap.wrap(text, max(20, room), break_long_words=False, break_on_hyphens=False) or [""]
    return label + f"\n{'':<{len(label)}}".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def clean(text: str) -> str:
    """Return a text without control characters: what a peer wrote must not command the terminal."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def say(text: str) -> None:
    """Print a line that has something in it of what a peer or a job wrote."""
    typer.echo(clean(text))


def say_path(path: str) -> None:
    """Print the path of a file that came back: exact for a script, harmless for a terminal."""
    typer.echo(clean(path) if sys.stdout.isatty() else path)


def note(text: str) -> None:
    """Say something to the person, on stderr."""
    typer.echo(clean(text), err=True)


def report(error: NunetError) -> None:
    """Print an error: what, why, and what to do next."""
    note(f"nunet: {error.message}")
    for answer in error.details.get("answers", [])[:10]:
        note(f"  {short(answer['peer'])}: {'; '.join(answer['reasons']) or answer['kind']}")
    for refusal in error.details.get("refusals", [])[:10]:
        note(f"  {short(refusal['peer'])}: {refusal['reason']}")
    if error.hint:
        note(f"hint: {error.hint}")


def short(text: str | None, length: int = 8) -> str:
    """Return the end of a peer id or DID, or the beginning of another id, as people can tell it from others."""
    if not text:
        return "-"
    if text.startswith(("12D3KooW", "did:")):
        return "…" + text[-length:]
    return text if len(text) <= length + 6 else text[: length + 6]


def declines(data: dict[str, Any]) -> str:
    """Return what a provider says that does not bid, from its event: for good, or just now."""
    why = "; ".join(data["reasons"])
    return f"is busy, just now: {why}" if data.get("free_at") else f"declines: {why}"


def price_text(price: dict[str, Any] | None) -> str:
    """Return a price as people write it."""
    if price is None:
        return "-"
    unit = f"/{price['time_unit']}" if price.get("time_unit") else ""
    return f"{price['amount']} {price['currency']}{unit}"


def write_new(path: Path, text: str, *, yes: bool) -> None:
    """Write a file that is not there yet, or with `yes` over one that is, and print its path.

    Raises:
        UsageError: it is there, or cannot be written.
    """
    from nunet_cli.errors import UsageError

    if path.exists() and not yes:
        raise UsageError(f"{path} is there already", hint="choose another with --file, or write over it with --yes")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    typer.echo(path)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone, where a person is there to ask; a script has said what it wants.

    Raises:
        UsageError: the person does not want it.
    """
    from nunet_cli.errors import UsageError

    if not yes and sys.stdin.isatty() and not typer.confirm(question, default=False, err=True):
        raise UsageError("nothing was done", code="not_confirmed")
