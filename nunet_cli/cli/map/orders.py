"""What is done for each item: its command line, the files that go with it, and those that come back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nunet_cli.errors import UsageError
from nunet_cli.jobs.globs import is_glob, split_glob
from nunet_cli.jobs.items import MAX_VALUE
from nunet_cli.jobs.replacements import Command, Item, Template

# what stands before it is only this machine's: `/data/./a.png` is `a.png` in the job's folder
_CUT = "/./"
_GLOB_SIGNS = {sign: f"[{sign}]" for sign in "*?["}


class Sent(NamedTuple):
    """A file or folder that goes with an item: where it is here, and its place in the job's folder."""

    path: Path
    place: str


class Returned(NamedTuple):
    """What comes back: its place in the job's folder, or a pattern, and where it goes here.

    What a pattern finds goes into the folder `target`.
    """

    place: str
    target: Path
    is_pattern: bool


class Work(NamedTuple):
    """All that is done for one item."""

    item: Item
    line: str
    sent: tuple[Sent, ...]
    returned: tuple[Returned, ...]
    tag: str


class Orders:
    """What was asked for, for every item.

    Args:
        command: what is run.
        transfers: templates of what is sent.
        returns: templates of what comes back.
        tag: the template of what each line of output begins with.
    """

    def __init__(self, command: Command, transfers: Sequence[str], returns: Sequence[str], tag: str = "{}") -> None:
        self._command, self._tag = command, Template(tag)
        self._transfers = [Template(text) for text in transfers]
        self._returns = [Template(text) for text in returns]

    def work(self, items: Sequence[Item]) -> list[Work]:
        """Return what is done for some items, which is looked at first: what is to be sent is there, and so on.

        Raises:
            UsageError: with the number of the item.
        """
        made = [self._one(item) for item in items]
        taken: dict[Path, int] = {}
        for work in made:
            for back in work.returned:
                other = taken.setdefault(back.target.absolute(), work.item.number)
                if other != work.item.number and not back.is_pattern:
                    raise UsageError(
                        f"the items {other} and {work.item.number} would both come back as {back.target}",
                        hint="put something of the item into --return, such as {#}",
                    )
        return made

    def line(self, item: Item) -> str:
        """Return an item's command line."""
        return self._command.line(item)

    def _one(self, item: Item) -> Work:
        try:
            line = self._command.line(item)
            if len(line) > MAX_VALUE:
                raise UsageError(
                    f"its command line has {len(line)} characters, the most are {MAX_VALUE}",
                    hint="put the script into a file, and send it with --input",
                )
            sent = tuple(_sent(text) for template in self._transfers for text in template.each(item))
            places = [one.place for one in sent]
            if len(set(places)) < len(places):
                raise UsageError("two files would go to the same place")
            returned = tuple(
                _returned(*texts)
                for template in self._returns
                for texts in zip(template.each(item), template.each(item, _literally), strict=True)
            )
        except UsageError as error:
            raise UsageError(f"item {item.number} ({item.text}): {error.message}", hint=error.hint) from None
        return Work(item, line, sent, returned, self._tag.fill(item))


def _sent(text: str) -> Sent:
    if not text:
        raise UsageError("there is no file to send: the name is empty")
    place = _inside(text)
    path = Path(text)
    if not path.exists():
        raise UsageError(f"there is no file {text}", hint="names are relative to the folder that you are in")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{text} cannot be read")
    if _leads_out(text):
        raise UsageError(
            f"{text} is a link that leads out of the folder", hint="put a copy in its place, or name the file itself"
        )
    return Sent(path, place)


def _leads_out(text: str) -> bool:
    """Say whether a name leads, by links that may be others', out of the folder that it was said to be in.

    That is the one that the user is in, or what stands before `/./`; and the first folder of the name is one that was
    named, too, wherever a link of that name leads to.
    """
    before, cut, name = text.rpartition(_CUT)
    base = Path(before or "/") if cut else Path()
    named = [base, *([base / PurePosixPath(name).parts[0]] if len(PurePosixPath(name).parts) > 1 else [])]
    real = Path(text).resolve()
    return not any(real.is_relative_to(folder.resolve()) for folder in named)


def _returned(text: str, pattern: str) -> Returned:
    """Return what comes back: `pattern` is the text with the signs of a pattern that are meant as such."""
    if not text or text.endswith("/"):
        raise UsageError(f"--return: {text!r} is not the name of a file", hint="a folder is named without a slash")
    place = _inside(pattern)
    before, cut, _ = text.rpartition(_CUT)
    if not is_glob(place):
        return Returned(place, Path(text), is_pattern=False)
    base = split_glob(place)[0]
    return Returned(place, Path(before) / base if cut else Path(base or "."), is_pattern=True)


def _literally(text: str) -> str:
    """Return a pattern that finds a text: signs of a pattern mean something where they were typed, not in an item."""
    return "".join(_GLOB_SIGNS.get(letter, letter) for letter in text)


def _inside(text: str) -> str:
    """Return the place in a job's folder that a name stands for.

    Raises:
        UsageError: it leads out of the folder.
    """
    place = PurePosixPath(text.rpartition(_CUT)[2])
    if place.is_absolute() or ".." in place.parts or str(place) == ".":
        hint = "go to the folder that it is in; or write FOLDER/./NAME, and name it as NAME in the command"
        here = PurePosixPath(Path.cwd())
        if place.is_relative_to(here) and place != here:
            hint = f"it is below the folder that you are in: name it as {place.relative_to(here)}"
        raise UsageError(f"{text} is not below the folder that a job has for itself", hint=hint)
    return str(place)
