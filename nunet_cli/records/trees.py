"""A folder as one content: the list of what is in it, and the files' bytes one after the other.

`nunet-tree-1\\n · u32 big-endian length of the list · the list, JSON · the bytes of its files, in its order`. For the
same names, modes and bytes it is the same content, wherever and whenever it is made. The list is checked before
anything of it is written: see `read_tree`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Annotated, BinaryIO, Literal

import msgspec
from msgspec import Struct

from nunet_cli.errors import NunetError
from nunet_cli.records.fields import Size
from nunet_cli.records.limits import Limits
from nunet_cli.records.reading import decode_exactly

MAX_ENTRIES = 100_000
MAX_DEPTH = 64
MAX_PATH = 1024
# a list of as many names as a folder may have, most of them not as long as they may be
MAX_LIST = 32 * 2**20
# what a file or a folder takes of a disk at least, so that empty ones count
LEAST_ON_DISK = 4096
MODES = 0o777
_MAGIC = b"nunet-tree-1\n"
_LENGTH = struct.Struct(">I")
# a terminal takes those above 127 for escapes, too
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_Path = Annotated[str, Limits(min_length=1, max_length=MAX_PATH)]


class TreeError(NunetError):
    """A folder that cannot be sent, or what was sent is none."""

    default_code = "bad_tree"


class Entry(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One name in a folder: a file of `size` bytes, a folder, or a symbolic link to `target`; `mode` has 9 bits."""

    path: _Path
    kind: Literal["file", "folder", "link"]
    mode: Annotated[int, Limits(ge=0, le=MODES)] = 0
    size: Size = 0
    target: Annotated[str, Limits(max_length=MAX_PATH)] = ""


class _List(Struct, frozen=True, forbid_unknown_fields=True):
    entries: Annotated[tuple[Entry, ...], Limits(max_length=MAX_ENTRIES)]


def is_name(name: str) -> bool:
    """Say whether a name can stand in a folder: of letters that can be written and shown, and no way out of it."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return name not in ("", ".", "..") and size <= 255 and "/" not in name and not _CONTROL.search(name)


def is_inside(path: str, target: str) -> bool:
    """Say whether a symbolic link leads to somewhere in its own tree, whatever other links do.

    The steps up come first, from the link's folder, which is a real one, and are no more than it is deep; where all
    links are like that, none leads out.
    """
    parts = target.split("/")
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    down = [part for part in parts[up:] if part not in ("", ".")]
    return bool(target) and not target.startswith("/") and up <= path.count("/") and all(map(is_name, down))


def leads_to(path: str, target: str) -> str:
    """Return the path in its tree that a symbolic link leads to, which is `is_inside`; empty for the tree's root."""
    here = path.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            here.pop()
        elif part not in ("", "."):
            here.append(part)
    return "/".join(here)


def tree_head(entries: Sequence[Entry]) -> bytes:
    """Return what a tree begins with, before the bytes of its files.

    Raises:
        TreeError: it has too many entries, or too long names.
    """
    _check(entries)
    text = msgspec.json.encode(_List(tuple(entries)))
    if len(text) > MAX_LIST:
        raise TreeError(f"the names in a folder may have {MAX_LIST} bytes in all, these have {len(text)}")
    return _MAGIC + _LENGTH.pack(len(text)) + text


# the size of a folder with nothing in it
EMPTY_SIZE = len(_MAGIC) + _LENGTH.size + len(msgspec.json.encode(_List(())))


def read_tree(file: BinaryIO, size: int) -> tuple[Entry, ...]:
    """Return what is in a tree, and leave its file where the bytes of the first one begin.

    Args:
        file: the content, at its beginning.
        size: how many bytes it has.

    Raises:
        TreeError: it is none, or not in the one form that it can have: a name that leads out, that is there twice, or
            below something that is no folder; a link that leads out; or a size that does not fit.
    """
    begin = file.read(len(_MAGIC) + _LENGTH.size)
    if len(begin) != len(_MAGIC) + _LENGTH.size or not begin.startswith(_MAGIC):
        raise TreeError("the content is not a folder")
    (length,) = _LENGTH.unpack(begin[len(_MAGIC) :])
    if length > min(MAX_LIST, size):
        raise TreeError("the content is not a folder: its list is too long")
    try:
        entries = decode_exactly(file.read(length), _List).entries
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TreeError(f"the content is not a folder: {error}") from None
    _check(entries)
    if len(begin) + length + sum(entry.size for entry in entries) != size:
        raise TreeError("the content is not a folder: its files have another size")
    return entries


def size_on_disk(entries: Sequence[Entry]) -> int:
    """Return how many bytes of a disk a tree takes, empty files and folders counted."""
    return sum(max(entry.size, LEAST_ON_DISK) for entry in entries)


def _check(entries: Sequence[Entry]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise TreeError(f"a folder may have {MAX_ENTRIES} files, folders and links in all, this one has more")
    folders = {""}
    last: list[str] = []
    for entry in entries:
        parts = entry.path.split("/")
        above = entry.path.rpartition("/")[0]
        if not all(map(is_name, parts)) or len(parts) > MAX_DEPTH or len(entry.path) > MAX_PATH:
            raise TreeError(f"not a name in a folder: {entry.path[:100]!r}")
        if parts <= last or above not in folders:
            raise TreeError(f"{entry.path[:100]!r} is not in its place")
        if entry.kind == "folder":
            folders.add(entry.path)
        if entry.kind == "link" and not is_inside(entry.path, entry.target):
            raise TreeError(f"the link {entry.path[:100]!r} leads out of its folder")
        if (entry.kind == "link") != bool(entry.target) or (entry.kind != "file" and entry.size):
            raise TreeError(f"{entry.path[:100]!r} has what does not belong to a {entry.kind}")
        last = parts
