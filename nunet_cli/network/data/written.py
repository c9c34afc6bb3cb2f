"""Taking away what was written into a folder before: only what still is, byte by byte, what was written then.

As in `trees`, no symbolic link is followed below the folder that is given.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from nunet_cli.network.data.trees import Way
from nunet_cli.records.identifiers import cid_from_digest
from nunet_cli.records.trees import Entry, TreeError, read_tree

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE = 2**20


class Written(NamedTuple):
    """What was written: its path in the folder, its content id and its bytes; of a folder the tree that it was."""

    path: str
    cid: str
    size: int
    tree: Path | None = None


def take_away(root: int, written: Iterable[Written]) -> None:
    """Remove what was written into a folder and has not changed since, and folders that are empty then.

    What cannot be removed stays.

    Args:
        root: descriptor of the folder.
        written: what there was; the path of a tree is the folder that it was written into, empty for `root` itself.
    """
    with Way(root) as way:
        for item in written:
            if item.tree is None:
                _remove_file(way, item.path, item.size, item.cid)
            else:
                with suppress(OSError, TreeError), item.tree.open("rb") as file:
                    _remove_tree(way, f"{item.path}/" if item.path else "", file)


def _remove_tree(way: Way, prefix: str, tree: BinaryIO) -> None:
    entries = read_tree(tree, os.fstat(tree.fileno()).st_size)
    for entry in entries:
        path = prefix + entry.path
        if entry.kind == "link":
            _try(way, path, lambda name, folder, entry=entry: _remove_link(name, folder, entry))  # type: ignore[misc]  # bound now
        if entry.kind != "file":
            continue
        after = tree.tell() + entry.size
        if _size(way, path) == entry.size:
            _remove_file(way, path, entry.size, _digest(tree, entry.size))
        tree.seek(after)
    # the innermost first
    for entry in reversed(entries):
        if entry.kind == "folder":
            _try(way, prefix + entry.path, lambda name, folder: os.rmdir(name, dir_fd=folder))


def _remove_link(name: str, folder: int, entry: Entry) -> None:
    if os.readlink(name, dir_fd=folder) == entry.target:
        os.unlink(name, dir_fd=folder)


def _remove_file(way: Way, path: str, size: int, cid: str) -> None:
    """Remove a file that has these bytes, and the folders above it that are empty then."""
    if _size(way, path) != size:
        return

    def remove(name: str, folder: int) -> None:
        with os.fdopen(os.open(name, _READ, dir_fd=folder), "rb") as file:
            if _digest(file, size + 1) != cid:
                return
        os.unlink(name, dir_fd=folder)

    if not _try(way, path, remove):
        return
    while "/" in path:
        path = path.rpartition("/")[0]
        if not _try(way, path, lambda name, folder: os.rmdir(name, dir_fd=folder)):
            return


def _size(way: Way, path: str) -> int | None:
    """Return the bytes of a file; None where there is none."""
    with suppress(OSError):
        folder, name = way.to(path)
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        return found.st_size if stat.S_ISREG(found.st_mode) else None
    return None


def _digest(file: BinaryIO, most: int) -> str:
    """Return the content id of the next bytes of a file, at most so many."""
    found, left = hashlib.sha256(), most
    while left and (data := file.read(min(left, _PIECE))):
        found.update(data)
        left -= len(data)
    return cid_from_digest(found.digest())


def _try(way: Way, path: str, act: Callable[[str, int], None]) -> bool:
    """Act on what is at a path, with its name and its folder; say whether that went well."""
    with suppress(OSError):
        folder, name = way.to(path)
        act(name, folder)
        return True
    return False
