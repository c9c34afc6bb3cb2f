"""Where the items of `nunet map` come from, put together: every combination, side by side, or in columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import NamedTuple

from nunet_cli.errors import UsageError
from nunet_cli.jobs.items import MAX_ITEMS
from nunet_cli.jobs.replacements import Item

Arguments = tuple[str, ...]
Rows = Iterable[Arguments]


class Source(NamedTuple):
    """Values, and whether they go with those of the source before them, one with one, as after `:::+`."""

    values: Iterable[str]
    is_linked: bool = False


def items_of(sources: Sequence[Source], *, columns: str = "", link: bool = False, together: int = 1) -> list[Item]:
    """Return the items that some sources make: every combination of their values, the last one's changing first.

    Args:
        sources: in their order; none is read much further than items may be taken, so one may be endless.
        columns: a regular expression by which each value is taken apart; empty leaves it whole.
        link: the sources are read side by side, and the short ones again from their beginning.
        together: so many of what they make are one item, the last one perhaps fewer.

    Raises:
        UsageError: they make more than `MAX_ITEMS`; or the expression is none.
    """
    try:
        split = re.compile(columns) if columns else None
    except re.error as error:
        raise UsageError(f"--colsep: not a regular expression: {columns!r}: {error}") from None

    def apart(value: str) -> Arguments:
        return tuple(part.strip() for part in split.split(value)) if split is not None else (value,)

    groups: list[Rows] = []
    for source in sources:
        parts = map(apart, source.values)
        # of sources that are linked, the shortest ends them all
        groups.append(_beside(groups.pop(), parts) if source.is_linked and groups else parts)
    rows = _side_by_side(groups) if link else _combined(groups)
    made = list(islice(_chunks(rows, together), MAX_ITEMS + 1))
    if len(made) > MAX_ITEMS:
        raise UsageError(
            f"there are over {MAX_ITEMS} items, which is the most that can be taken at once",
            hint=f"take them in parts: split -l {MAX_ITEMS} ITEMS part-, then nunet map -a part-aa …, and so on",
        )
    return [Item(number, row) for number, row in enumerate(made, 1)]


def _beside(left: Rows, right: Rows) -> Rows:
    return (a + b for a, b in zip(left, right, strict=False))


def _side_by_side(groups: Sequence[Rows]) -> Iterator[Arguments]:
    kept = [_some(rows) for rows in groups]
    if not kept or not all(kept):
        return
    for parts in islice(zip(*map(cycle, kept), strict=False), max(map(len, kept))):
        yield tuple(argument for part in parts for argument in part)


def _combined(groups: Sequence[Rows]) -> Iterator[Arguments]:
    if not groups:
        return
    first, *others = groups
    kept = [_some(rows) for rows in others]
    if all(kept):
        for head in first:
            yield from _with(head, kept)


def _with(head: Arguments, others: list[list[Arguments]]) -> Iterator[Arguments]:
    if not others:
        yield head
        return
    for row in others[0]:
        yield from _with(head + row, others[1:])


def _chunks(rows: Iterator[Arguments], size: int) -> Iterator[Arguments]:
    while chunk := list(islice(rows, size)):
        yield tuple(argument for row in chunk for argument in row)


def _some(rows: Rows) -> list[Arguments]:
    """Return rows that are needed again and again: one more than there may be items, at most."""
    return list(islice(rows, MAX_ITEMS + 1))
