"""Folders packed into one content and unpacked again, by descriptors: no symbolic link is ever followed.

Who wrote a folder, or sent one, may be anybody. What is in it is looked at without following a link, and what is
written goes into folders that were opened, below the one that was given.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from nunet_cli.jobs.globs import MAX_STEPS, Pattern
from nunet_cli.records.trees import (
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_PATH,
    MODES,
    Entry,
    TreeError,
    is_inside,
    is_name,
    leads_to,
    read_tree,
    tree_head,
)

_COPY = 2**20
# names that are looked at for a pattern, at most, however few it finds: a job makes folders faster than they are read
MAX_LOOKED_AT = 10 * MAX_ENTRIES
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Writable(Protocol):
    """What bytes can be written to."""

    def write(self, data: bytes, /) -> object:
        """Take all of them."""


@dataclass
class Found:
    """What is in a folder, in the order of its names; `left_out` are paths that cannot be sent, and why."""

    entries: list[Entry] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    looked_at: int = 0
    # comparisons with the pattern, of what may be found: whoever this is sent to makes them once more
    steps: int = 0

    @property
    def size(self) -> int:
        """The bytes of its files."""
        return sum(entry.size for entry in self.entries)


def enter_own(name: str | Path, within: int) -> int:
    """Return a descriptor of a folder of this node's or its user's, whose modes are left as they are.

    Raises:
        OSError: it is not there, no folder, or closed.
    """
    return os.open(name, _FOLDER, dir_fd=within)


Enter = Callable[[str, int], int]


def look(
    root: int, pattern: Pattern | None = None, instead: Mapping[str, Path] | None = None, enter: Enter = enter_own
) -> Found:
    """Return what is in a folder, or what a pattern finds in it, with the folders on the way; folders as a whole.

    What a pattern finds is put beside what others have written: a link that leads to something else is left out.

    Args:
        root: descriptor of the folder.
        pattern: what is looked for; everything, where it is none.
        instead: files that stand in for others: path in the folder → file.
        enter: opens a folder in another one; `files.enter` for those that a job may have closed.

    Raises:
        TreeError: there is too much in it.
        OSError: it cannot be looked at.
    """
    found = Found()
    _look(root, "", pattern, pattern.start if pattern else frozenset(), found, instead or {}, enter)
    if pattern:
        _leave_out(found, pattern)
    return found


def strays(entries: Sequence[Entry], pattern: Pattern) -> list[str]:
    """Return the paths in a tree that a pattern does not find, and its links to anything else than what it finds.

    Raises:
        ValueError: it takes too many comparisons to find that out.
    """
    found, lost = pattern.sort_out((entry.path, entry.kind == "folder") for entry in entries)
    lost |= _links_to_others(entries, found)
    return [entry.path for entry in entries if entry.path in lost]


def _links_to_others(entries: Sequence[Entry], found: set[str]) -> set[str]:
    """Return the links that lead, perhaps by other links, to something that is not there or was not found."""
    linked: defaultdict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if entry.kind == "link":
            linked[leads_to(entry.path, entry.target)].append(entry.path)
    others: set[str] = set()
    lost = [path for target, paths in linked.items() if target not in found for path in paths]
    while lost:
        others.add(path := lost.pop())
        lost += linked.pop(path, [])
    return others


def _leave_out(found: Found, pattern: Pattern) -> None:
    try:
        whole, _ = pattern.sort_out((entry.path, entry.kind == "folder") for entry in found.entries)
    except ValueError as error:
        raise TreeError(f"the pattern takes too long: {error}") from None
    others = _links_to_others(found.entries, whole)
    if not others:
        return
    found.left_out += [(path, "it is a link to what the pattern does not find") for path in sorted(others)]
    kept: list[Entry] = []
    needed: set[str] = set()
    # those below a folder come first then: where nothing is left of them it was only on the way to nothing
    for entry in reversed(found.entries):
        is_way = entry.kind == "folder" and entry.path not in whole
        if entry.path not in others and (not is_way or entry.path in needed):
            kept.append(entry)
            needed.add(entry.path.rpartition("/")[0])
    found.entries = kept[::-1]


def _look(
    folder: int, above: str, pattern: Pattern | None, places: frozenset[int], found: Found, instead: Mapping[str, Path],
    enter: Enter,
) -> bool:  # fmt: skip
    """Look at one folder; return whether something in it was found."""
    with os.scandir(folder) as scanned:
        names = sorted(entry.name for entry in islice(scanned, MAX_ENTRIES + 1))
    found.looked_at += len(names)
    if max(len(names), len(found.left_out)) > MAX_ENTRIES or found.looked_at > MAX_LOOKED_AT:
        raise _too_many()
    is_any = False
    for name in names:
        next_places = pattern.step(places, name) if pattern else places
        if pattern and not next_places:
            continue
        found.steps += len(places) if pattern else 0
        if found.steps > MAX_STEPS:
            raise TreeError(f"the pattern takes over {MAX_STEPS} comparisons here: give it fewer parts after `**`")
        is_taken = pattern is None or pattern.is_done(next_places)
        path = above + name
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            if not _may_be(path, name, found):
                continue
            at = len(found.entries)
            found.entries.append(Entry(path, "folder", info.st_mode & MODES))
            inside = enter(name, folder)
            try:
                below = _look(inside, f"{path}/", None if is_taken else pattern, next_places, found, instead, enter)
            finally:
                os.close(inside)
            if not is_taken and not below:
                # nothing below it was looked for
                del found.entries[at:]
                continue
        elif not is_taken or not _may_be(path, name, found):
            continue
        elif stat.S_ISREG(info.st_mode):
            size = instead[path].stat().st_size if path in instead else info.st_size
            found.entries.append(Entry(path, "file", info.st_mode & MODES, size))
        elif stat.S_ISLNK(info.st_mode):
            target = _target(name, folder)
            if len(target) > MAX_PATH or not is_inside(path, target):
                found.left_out.append((path, "it is a link that leads out of the folder"))
                continue
            found.entries.append(Entry(path, "link", target=target))
        else:
            found.left_out.append((path, "it is neither a file, nor a folder, nor a link"))
            continue
        is_any = True
        if len(found.entries) > MAX_ENTRIES:
            raise _too_many()
    return is_any


def _too_many() -> TreeError:
    return TreeError(f"a folder may have {MAX_ENTRIES} files, folders and links in all, this one has more")


def _may_be(path: str, name: str, found: Found) -> bool:
    if not is_name(name) or len(path) > MAX_PATH:
        found.left_out.append((path.encode(errors="backslashreplace").decode(), "its name cannot be sent"))
        return False
    if path.count("/") >= MAX_DEPTH:
        raise TreeError(f"a folder may be {MAX_DEPTH} deep, and {path[:60]!r}… is deeper")
    return True


def _target(name: str, folder: int) -> str:
    target = os.readlink(name, dir_fd=folder)
    try:
        target.encode()
    except UnicodeEncodeError:
        return ""
    return target


def pack(
    root: int, found: Found, target: Writable, instead: Mapping[str, Path] | None = None, enter: Enter = enter_own
) -> None:
    """Write a folder as one content.

    Args:
        root: descriptor of the folder.
        found: what `look` has found in it.
        target: where to.
        instead: files that stand in for others, as `look` was told.
        enter: as `look` was told.

    Raises:
        TreeError: it is too large a list, or a file has changed since it was looked at.
        OSError: a file cannot be read.
    """
    target.write(tree_head(found.entries))
    instead = instead or {}
    with Way(root, enter) as way:
        for entry in found.entries:
            if entry.kind != "file":
                continue
            folder, name = way.to(entry.path)
            other = instead.get(entry.path)
            descriptor = os.open(other, _READ) if other is not None else os.open(name, _READ, dir_fd=folder)
            try:
                _copy(partial(os.read, descriptor), target.write, entry)
            finally:
                os.close(descriptor)


def _copy(read: Callable[[int], bytes], write: Callable[[bytes], object], entry: Entry) -> None:
    left = entry.size
    while left:
        data = read(min(left, _COPY))
        if not data:
            raise TreeError(f"{entry.path!r} has changed while it was read")
        write(data)
        left -= len(data)


def entries_of(source: Path) -> tuple[Entry, ...]:
    """Return what is in a tree.

    Raises:
        TreeError: it is none.
    """
    with source.open("rb") as file:
        return read_tree(file, os.fstat(file.fileno()).st_size)


def unpack(source: Path, root: int, *, replace: bool = False) -> list[str]:
    """Write what is in a tree into a folder, with its modes; return the names that stand right in that.

    Args:
        source: the content, checked against its id.
        root: descriptor of the folder.
        replace: overwrite what is there, as copying does; else that is an error.

    Raises:
        TreeError: it is none; nothing was written.
        OSError: something cannot be written, as it is there already.
    """
    with source.open("rb") as file:
        entries = read_tree(file, os.fstat(file.fileno()).st_size)
        with Way(root) as way:
            for entry in entries:
                folder, name = way.to(entry.path)
                if entry.kind == "folder":
                    _make_folder(name, folder, replace=replace)
                    continue
                if replace:
                    _remove(name, folder)
                if entry.kind == "link":
                    os.symlink(entry.target, name, dir_fd=folder)
                    continue
                descriptor = os.open(name, _WRITE, 0o600, dir_fd=folder)
                try:
                    _copy(file.read, partial(_write_all, descriptor), entry)
                    os.fchmod(descriptor, entry.mode)
                finally:
                    os.close(descriptor)
        # the innermost first, and after everything: its modes may close a folder
        with Way(root) as way:
            for entry in reversed(entries):
                if entry.kind == "folder":
                    folder, name = way.to(entry.path)
                    _close_folder(name, folder, entry.mode)
    return [entry.path for entry in entries if "/" not in entry.path]


def _write_all(descriptor: int, data: bytes) -> None:
    """Write all of some bytes: the system may take less at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _make_folder(name: str, folder: int, *, replace: bool) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            # two inputs may share it, and it may be there from the last time
            return
        if not replace:
            raise
        os.unlink(name, dir_fd=folder)
        os.mkdir(name, 0o700, dir_fd=folder)


def _close_folder(name: str, folder: int, mode: int) -> None:
    descriptor = enter_own(name, folder)
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _remove(name: str, folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


class Way:
    """The folders that are open on the way to the entry at hand: each is opened in the one above it."""

    def __init__(self, root: int, enter: Enter = enter_own) -> None:
        self._root, self._enter = root, enter
        self._open: list[tuple[str, int]] = []

    def __enter__(self) -> Way:
        return self

    def __exit__(self, *_: object) -> None:
        self._back_to(0)

    def to(self, path: str) -> tuple[int, str]:
        """Return the folder that an entry stands in, and its name there.

        Raises:
            OSError: a folder on the way is none.
        """
        *above, name = path.split("/")
        same = 0
        while same < min(len(above), len(self._open)) and self._open[same][0] == above[same]:
            same += 1
        self._back_to(same)
        for part in above[same:]:
            self._open.append((part, self._enter(part, self._open[-1][1] if self._open else self._root)))
        return (self._open[-1][1] if self._open else self._root), name

    def _back_to(self, count: int) -> None:
        while len(self._open) > count:
            os.close(self._open.pop()[1])


def make_way(folder: Path, name: str, *, whole: bool = False) -> Path:
    """Make the folders that a name below a folder of the user's stands in; return where it is then.

    A link on the way may have come with what was written before, and is not followed: a folder is put in its place.

    Args:
        folder: it is made as well; by links or not, the user named it.
        name: relative to it.
        whole: the name is one of a folder, which is made, too.

    Raises:
        OSError: they cannot be made; something that is no folder is in the way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    here, parts = folder, [part for part in name.split("/") if part]
    for part in parts if whole else parts[:-1]:
        here /= part
        if here.is_symlink():
            here.unlink()
        here.mkdir(exist_ok=True)
    return folder.joinpath(*parts)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Open a folder that this node or its user named, by links or not; the descriptor is closed in the end.

    Raises:
        OSError: it is not there, or no folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def why(left_out: Sequence[tuple[str, str]]) -> str:
    """Return what keeps a folder from being sent whole, in words."""
    path, reason = left_out[0]
    more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
    return f"{path}: {reason}{more}"
