"""Patterns of file names, as in a shell: `*`, `?`, `[…]` in one name, `**` for folders at any depth."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from functools import lru_cache

_SIGNS = re.compile(r"[*?\[]")
ANY_DEPTH = "**"
# comparisons of one name with one part of a pattern, for one folder: a few seconds of a thread. As many names as a
# folder may have are 20 for each; `**` and two parts after it take three
MAX_STEPS = 2_000_000


def is_glob(path: str) -> bool:
    """Say whether a path is a pattern."""
    return _SIGNS.search(path) is not None


def split_glob(path: str) -> tuple[str, tuple[str, ...]]:
    """Return the folder that a pattern begins in, empty for the one that it is relative to, and what it looks for."""
    parts = [part for part in path.split("/")[1:] if part not in ("", ".")]
    first = path.split("/")[0]
    whole = [*([first] if first != "." else []), *parts]
    at = next((index for index, part in enumerate(whole) if is_glob(part)), len(whole))
    return "/".join(whole[:at]) or ("/" if path.startswith("/") else ""), tuple(whole[at:])


class Pattern:
    """What a pattern looks for, name by name from its folder on: `step` says how far it has come.

    A name that begins with a dot is found only by a pattern that does, as in a shell.
    """

    def __init__(self, parts: tuple[str, ...]) -> None:
        # `**/**` finds what `**` does
        self._parts = tuple(part for n, part in enumerate(parts) if part != ANY_DEPTH or parts[n - 1 : n] != (part,))
        self.start = self._closure({0})

    def step(self, places: Iterable[int], name: str) -> frozenset[int]:
        """Return how far the pattern may have come after one name more; nothing where it does not fit."""
        found: set[int] = set()
        for place in places:
            part = self._parts[place] if place < len(self._parts) else None
            if part == ANY_DEPTH:
                if not name.startswith("."):
                    found.add(place)
            elif part is not None and _fits(name, part):
                found.add(place + 1)
        return self._closure(found)

    def is_done(self, places: Iterable[int]) -> bool:
        """Say whether all of the pattern was found."""
        return len(self._parts) in places

    def sort_out(self, paths: Iterable[tuple[str, bool]]) -> tuple[set[str], set[str]]:
        """Return those paths that the pattern finds, with all below them, and those that it does not find.

        A folder on the way to what may be found is in neither. A name is compared once, however deep it is.

        Args:
            paths: relative to the pattern's folder, each folder before what is in it, and whether it is a folder.

        Raises:
            ValueError: that takes over `MAX_STEPS`.
        """
        found, strays = set[str](), set[str]()
        # how far the pattern has come in each folder; None where that was found whole
        come: dict[str, frozenset[int] | None] = {"": self.start}
        steps = 0
        for path, is_folder in paths:
            above, _, name = path.rpartition("/")
            places = come.get(above, frozenset())
            if places is not None:
                steps += len(places) or 1
                if steps > MAX_STEPS:
                    raise ValueError(f"over {MAX_STEPS} comparisons")
                places = self.step(places, name)
                if self.is_done(places):
                    places = None
            if places is None:
                found.add(path)
            elif not (is_folder and places):
                strays.add(path)
            if is_folder:
                come[path] = places
        return found, strays

    def _closure(self, places: set[int]) -> frozenset[int]:
        """Return the places, and those after each `**`, which may be no folder at all."""
        more = (place + 1 for place in places if self._parts[place : place + 1] == (ANY_DEPTH,))
        return frozenset((*places, *more))


def _fits(name: str, part: str) -> bool:
    if name.startswith(".") and not part.startswith("."):
        return False
    return _compiled(part).match(name) is not None


@lru_cache(256)
def _compiled(part: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(part))
