"""Patterns of file names, as in a shell: `*`, `?`, `[…]` in one name, `**` for folders at any depth."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from functools import lru_cache

_SIGNS = re.compile(r"[*?\[]")
ANY_DEPTH = "**"


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
        self._parts = parts
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

    def fits(self, path: str, *, is_way: bool = False) -> bool:
        """Say whether the pattern finds a path, or a folder above it, which it finds as a whole.

        Args:
            path: relative to the pattern's folder.
            is_way: a folder on the way to what may be found fits as well.
        """
        places = self.start
        for name in path.split("/"):
            places = self.step(places, name)
            if self.is_done(places):
                return True
        return is_way and bool(places)

    def _closure(self, places: set[int]) -> frozenset[int]:
        """Return the places, and those after each `**`, which may be no folder at all."""
        found = set(places)
        for place in range(len(self._parts)):
            if place in found and self._parts[place] == ANY_DEPTH:
                found.add(place + 1)
        return frozenset(found)


def _fits(name: str, part: str) -> bool:
    if name.startswith(".") and not part.startswith("."):
        return False
    return _compiled(part).match(name) is not None


@lru_cache(256)
def _compiled(part: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(part))
