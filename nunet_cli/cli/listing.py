"""What every `list` command can do: formats, ids alone, filter, sort, limit, and watching."""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from nunet_cli.cli.ids import given_id
from nunet_cli.cli.output import Columns, Format, OutputOption, QuietOption, emit_list, note
from nunet_cli.errors import UsageError

if TYPE_CHECKING:
    from nunet_cli.api.client import ApiClient

WATCH_INTERVAL = 2.0
# of a list that is read page by page a table shows so many where nobody says how many; programs get all
ROWS_OF_A_TABLE = 100
Row = dict[str, Any]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", "-n", help="At most so many, the last ones; 0 for all.", min=0, metavar="COUNT"),
]
PagedLimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit", "-n", min=0, metavar="COUNT",
        help=f"At most so many, the last ones; 0 for all. A table has {ROWS_OF_A_TABLE} by default, other formats all.",
    ),
]  # fmt: skip
AfterOption = Annotated[
    str,
    typer.Option(
        "--after", metavar="ID", help="Only what comes after this row, from its beginning on.",
        callback=given_id("row", hint="give the id of a row of this list, or its beginning"),
    ),
]  # fmt: skip
FilterOption = Annotated[
    list[str] | None,
    typer.Option("--filter", help="FIELD=VALUE, FIELD!=VALUE, or FIELD~TEXT for a part of it.", metavar="FIELD=VALUE"),
]
SortOption = Annotated[str, typer.Option("--sort", help="By a field; -FIELD for the other way round.", metavar="FIELD")]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Show it again as it changes, until Ctrl-C.")]
_CONDITION = re.compile(r"^([A-Za-z_][A-Za-z0-9_. ]*?)(!=|=|~)(.*)$", re.DOTALL)


class Listing(NamedTuple):
    """Rows as the API gives them, and how a table shows them; `key` is what `--quiet` prints."""

    rows: Sequence[Row]
    columns: Columns
    key: str = "id"
    empty: str = ""


class Window:
    """Which part of a list is wanted.

    Args:
        limit: at most so many rows; 0 for all.
        after: the row that it begins after; without one it is the end of the list that is wanted.
    """

    def __init__(self, limit: int, after: str) -> None:
        self.limit, self.after = limit, after
        self.total, self.more, self.last = 0, False, Row()

    def read(self, client: ApiClient, path: str, **query: Any) -> list[Row]:
        """Return the rows of a list of the API that are in it, in their order."""
        from_the_end = bool(self.limit) and not self.after
        page = client.page(path, limit=self.limit, after=self.after, newest=from_the_end, **query)
        self.total, self.more = page.total, page.more
        self.last = page.rows[-1] if page.rows else Row()
        return page.rows[::-1] if from_the_end else page.rows


def list_command(app: typer.Typer, name: str = "list") -> Callable[[Callable[..., Listing]], Callable[..., Listing]]:
    """Register a function that gets rows as a command with the options that lists have in common.

    A function that takes a `window` reads its list page by page; it is the only one that has `--after`.
    """

    def register(function: Callable[..., Listing]) -> Callable[..., Listing]:
        parameters = inspect.signature(function, eval_str=True).parameters
        is_paged = "window" in parameters

        def command(
            *, output: OutputOption = Format.table, quiet: QuietOption = False, limit: LimitOption = None,
            after: AfterOption = "", filters: FilterOption = None, sort: SortOption = "", watch: WatchOption = False,
            **given: Any,
        ) -> None:  # fmt: skip
            is_for_people = output is Format.table and not quiet
            most = limit if limit is not None else ROWS_OF_A_TABLE if is_paged and is_for_people else 0

            def show() -> None:
                # what is looked through or ordered here is needed whole
                window = Window(0 if filters or sort else most, after)
                listing = function(**given, window=window) if is_paged else function(**given)
                rows = _select(listing, filters or [], sort)
                total = window.total if window.limit else len(rows)
                from_the_end = most and not (sort or after)
                rows = rows[-most:] if from_the_end else rows[:most] if most else rows
                empty = listing.empty if not listing.rows else "none of them"
                emit_list(rows, listing.columns, output, quiet=quiet, key=listing.key, empty=empty)
                if sys.stderr.isatty() or (limit is None and is_for_people):
                    if window.more and after:
                        note(f"showing {len(rows)} of {total}; go on with: --after {window.last[listing.key]}")
                    elif not after and 0 < len(rows) < total:
                        which = "the last " if from_the_end else ""
                        note(f"showing {which}{len(rows)} of {total}; all of them: --limit 0")

            if watch:
                _watch(show)
            else:
                show()

        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in parameters.values()
            if parameter.name != "window"
        ]
        common = [
            parameter.replace(annotation=PagedLimitOption) if is_paged and parameter.name == "limit" else parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD and (is_paged or parameter.name != "after")
        ]
        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]  # typer reads it
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *common]}
        app.command(name)(command)
        return function

    return register


def _watch(show: Callable[[], None]) -> None:
    while True:
        if sys.stdout.isatty():
            # home, and clear to the end: without the flicker of clearing first
            typer.echo("\x1b[H\x1b[2J", nl=False)
        show()
        sys.stdout.flush()
        time.sleep(WATCH_INTERVAL)


def _select(listing: Listing, filters: list[str], sort: str) -> list[Row]:
    """Return the rows that fit all filters, in the order that is asked for.

    Raises:
        UsageError: a filter that is none, or a field that no row has.
    """
    rows = list(listing.rows)
    for text in filters:
        found = _CONDITION.match(text)
        if found is None:
            raise UsageError(f"--filter: {text!r}", hint="write FIELD=VALUE, FIELD!=VALUE or FIELD~TEXT")
        name, relation, value = found[1].strip(), found[2], found[3]
        read = _reader(listing, name, "--filter")
        rows = [row for row in rows if _holds(_shown(read(row)), relation, value)]
    if sort:
        read = _reader(listing, sort.removeprefix("-"), "--sort")
        there = [row for row in rows if read(row) is not None]
        there.sort(key=lambda row: _order(read(row)), reverse=sort.startswith("-"))
        rows = there + [row for row in rows if read(row) is None]
    return rows


def _reader(listing: Listing, name: str, flag: str) -> Callable[[Row], Any]:
    """Return what reads a field: one of the JSON, with dots into it, or else a column of the table."""
    if not listing.rows or any(name.split(".")[0] in row for row in listing.rows):

        def read(row: Row) -> Any:
            value: Any = row
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            return value

        return read
    if name in listing.columns:
        return listing.columns[name]
    known = ", ".join(sorted({key for row in listing.rows for key in row}))
    raise UsageError(f"{flag}: there is no field {name!r}", hint=f"fields here: {known}")


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value)


def _holds(text: str, relation: str, value: str) -> bool:
    if relation == "~":
        return value.lower() in text.lower()
    return (text == value) == (relation == "=")


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers before texts, numbers by size."""
    text = _shown(value)
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
