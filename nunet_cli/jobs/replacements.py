"""The replacement strings of `nunet map`, which are GNU parallel's, and the command lines that they are in.

`{}` is an item, `{.}` that without its extension, `{/}` its last part, `{//}` its folder, `{/.}` its last part without
the extension, `{#}` its number from 1 on. `{2}`, `{2.}` and so on take one argument of an item that has several, `{-1}`
the last one; `{}` has all of them, with a blank between.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nunet_cli.errors import UsageError

_PLACE = re.compile(r"\{(?:(?P<number>#)|(?P<place>-?[1-9][0-9]*)?(?P<part>\.|//|/\.|/)?)\}")
_EXTENSION = re.compile(r"\.[^/.]*\Z")
# what GNU parallel would replace, and nobody can here: better said than run as it stands
_NOT_HERE = {
    "{%}": ("there are no job slots: each item has a machine of its own", "{#} is the item's number"),
    "{=": ("there is no Perl here", "put what changes the item into the command, or into the items themselves"),
}
_BLANKS = re.compile(r"(\s+)")
Quote = Callable[[str], str]


class Item(NamedTuple):
    """What a command is run for once: its number, from 1 on, and its arguments."""

    number: int
    arguments: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it, as people call it."""
        return " ".join(self.arguments)


def as_it_is(text: str) -> str:
    """Return a text as it is: nothing is quoted."""
    return text


class Template:
    """A text with replacement strings in it.

    Args:
        text: what was typed.
        is_spread: a word with `{}` or one of its parts in it is there once for each argument, as with `-N`; else all
            arguments are put into its place.

    Raises:
        UsageError: it has one of GNU parallel's that is not here.
    """

    def __init__(self, text: str, *, is_spread: bool = False) -> None:
        for sign, (why, hint) in _NOT_HERE.items():
            if sign in text and (sign != "{=" or "=}" in text):
                raise UsageError(f"{sign}{'…=}' if sign == '{=' else ''} in {text!r}: {why}", hint=hint)
        self._text = text
        self.has_places = _PLACE.search(text) is not None
        self._is_spread = is_spread
        self._has_all = _has_all(text)
        self.begins_with_one = _PLACE.match(text) is not None

    def fill(self, item: Item, quote: Quote = as_it_is) -> str:
        """Return the text with an item in it, each of its arguments quoted; one that it does not have is empty."""
        if self._is_spread:
            return "".join(self._spread(word, item, quote) for word in _BLANKS.split(self._text))
        return self._put(self._text, item, quote)

    def each(self, item: Item, quote: Quote = as_it_is) -> list[str]:
        """Return the text once for each of an item's arguments, where it has `{}` or one of its parts; else once."""
        if not self._has_all:
            return [self._put(self._text, item, quote)]
        # a column is one of the whole item's
        return [self._put(self._text, item, quote, (argument,)) for argument in item.arguments]

    def _spread(self, word: str, item: Item, quote: Quote) -> str:
        if not _has_all(word):
            return self._put(word, item, quote)
        return " ".join(self._put(word, item, quote, (argument,)) for argument in item.arguments)

    @staticmethod
    def _put(text: str, item: Item, quote: Quote, shown: tuple[str, ...] | None = None) -> str:
        """Return a text with an item in it; `shown` are the arguments that `{}` has."""

        def put(found: re.Match[str]) -> str:
            if found["number"]:
                return str(item.number)
            change = _PARTS[found["part"] or ""]
            if found["place"] is None:
                return " ".join(quote(change(argument)) for argument in (item.arguments if shown is None else shown))
            place = int(found["place"])
            at = place - 1 if place > 0 else len(item.arguments) + place
            return quote(change(item.arguments[at])) if 0 <= at < len(item.arguments) else ""

        return _PLACE.sub(put, text)


class Command:
    """A command for a shell, as it is typed after the options: the words are joined by blanks, and a shell reads them.

    Arguments are quoted where they are filled in, so that the shell takes each as it is; but not in a command that
    begins with a replacement string: there the item is a command itself. Without any replacement string ` {}` is added,
    and without words an item is the command.

    Args:
        words: what was typed.
        quoted: the words are quoted, too: no sign in them means anything to the shell.
        is_spread: as with a template.
    """

    def __init__(self, words: Sequence[str], *, quoted: bool = False, is_spread: bool = False) -> None:
        given = list(words) if quoted else [" ".join(words)] if words else []
        parts = [Template(word, is_spread=is_spread) for word in given or ["{}"]]
        if not any(part.has_places for part in parts):
            parts = [*parts, Template("{}")] if quoted else [Template(f"{given[0]} {{}}")]
        self._parts, self._quoted = parts, quoted and bool(given)

    def line(self, item: Item) -> str:
        """Return the command line for an item."""
        if self._quoted:
            return shlex.join(word for part in self._parts for word in part.each(item))
        (whole,) = self._parts
        return whole.fill(item, as_it_is if whole.begins_with_one else shlex.quote)


def _has_all(text: str) -> bool:
    """Say whether a text has a replacement string for all of an item's arguments."""
    return any(found["place"] is None and not found["number"] for found in _PLACE.finditer(text))


def without_extension(path: str) -> str:
    """Return a path without what its last part has from its last dot on."""
    return _EXTENSION.sub("", path)


def last_part(path: str) -> str:
    """Return what stands behind a path's last slash."""
    return path.rpartition("/")[2]


def folder_of(path: str) -> str:
    """Return the folder that a path is in, as `dirname` does."""
    whole = path.rstrip("/")
    if not whole:
        return "/" if path else "."
    above, slash, _ = whole.rpartition("/")
    return (above.rstrip("/") or "/") if slash else "."


_PARTS: dict[str, Callable[[str], str]] = {
    "": as_it_is, ".": without_extension, "/": last_part, "//": folder_of,
    "/.": lambda path: without_extension(last_part(path)),
}  # fmt: skip
