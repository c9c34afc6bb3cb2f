"""What the readers of other tools' files have in common: fields are taken one by one, and the rest is noted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from nunet_cli.errors import UsageError

NOTHING_LIKE_IT = "nunet has nothing like it"
NO_NETWORK = "a job has no network"


class Note(msgspec.Struct, frozen=True):
    """A field that did not map, or did so in another way than people may expect."""

    path: str
    reason: str


@dataclass
class Mapping:
    """A mapping of another tool's file that is taken apart field by field.

    Args:
        value: the mapping as it was read.
        path: its place in the file.
        notes: where what does not map is noted.
    """

    value: dict[str, Any]
    path: str
    notes: list[Note]
    taken: set[str] = field(default_factory=set)

    def take(self, key: str, default: Any = None) -> Any:
        """Return a field, and count it as mapped."""
        self.taken.add(key)
        found = self.value.get(key)
        return default if found is None else found

    def mapping(self, key: str) -> Mapping:
        """Return a field that is a mapping itself; an empty one where it is not there.

        Raises:
            UsageError: it is something else.
        """
        found = self.take(key, {})
        if not isinstance(found, dict):
            raise UsageError(f"{self.at(key)}: not a mapping")
        return Mapping(found, self.at(key), self.notes)

    def items(self, key: str) -> list[Any]:
        """Return a field that is a list.

        Raises:
            UsageError: it is something else.
        """
        found = self.take(key, [])
        if not isinstance(found, list):
            raise UsageError(f"{self.at(key)}: not a list")
        return found

    def at(self, key: str) -> str:
        """Return the place of a field."""
        return f"{self.path}.{key}" if self.path else key

    def note(self, key: str, reason: str) -> None:
        """Note that a field does not map, or how it does."""
        self.taken.add(key)
        self.notes.append(Note(self.at(key), reason))

    def refuse(self, reasons: dict[str, str]) -> None:
        """Note fields that are there and have no place, each with its reason."""
        for key, reason in reasons.items():
            if self.value.get(key) not in (None, [], {}, ""):
                self.note(key, reason)

    def rest(self) -> None:
        """Note every field that nobody took."""
        for key in self.value:
            if key not in self.taken:
                self.note(key, NOTHING_LIKE_IT)


def words(value: Any, path: str) -> list[str]:
    """Return a command that was given as a text or a list.

    Raises:
        UsageError: neither, or quotes that do not close.
    """
    if isinstance(value, list):
        return [str(item) for item in value]
    try:
        return shlex.split(str(value))
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def pairs(value: Any, path: str) -> dict[str, str]:
    """Return names and values that were given as a mapping, or as a list of `NAME=VALUE`.

    Raises:
        UsageError: neither.
    """
    if isinstance(value, dict):
        return {str(name): "" if item is None else str(item) for name, item in value.items()}
    if isinstance(value, list):
        return {name: item for name, _, item in (str(entry).partition("=") for entry in value)}
    raise UsageError(f"{path}: neither a mapping nor a list")


def binary_size(value: Any, path: str) -> str:
    """Return a size as it is written here; `512m`, `512M`, `512mb` and `512Mi` are all MiB, as container tools have it.

    Raises:
        UsageError: not a size.
    """
    text = str(value).strip().lower()
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])?(?:i?b?)", text)
    if found is None:
        raise UsageError(f"{path}: not a size: {value!r}")
    return f"{found[1]}{found[2].upper()}iB" if found[2] else found[1]


def cores(value: Any, path: str) -> float:
    """Return cores for `0.5`, `2` or `500m`.

    Raises:
        UsageError: not a number of cores.
    """
    text = str(value).strip()
    try:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        raise UsageError(f"{path}: not a number of cores: {value!r}") from None


def job_name(text: Any, fallback: str) -> str:
    """Return a name that a job may have."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", str(text or "")).lstrip("._-")[:100]
    return kept or fallback


def unique(names: Iterable[str]) -> None:
    """Refuse names that have become the same.

    Raises:
        UsageError: naming the first.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"two jobs would be called {name!r}", hint="rename one of them")
        seen.add(name)
