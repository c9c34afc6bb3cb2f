"""What comes back of an item is put where it belongs."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path


def put(found: Path, target: Path, *, is_named: bool = True) -> None:
    """Move a file or folder to where it goes: a file replaces one, what is in a folder is added to one.

    Links are what they are, and not followed: what came back before may have brought one. A link is replaced, unless
    the user named it as the folder that what comes back is added to.

    Args:
        found: what came back.
        target: where it goes; the folders on the way are the user's, or have been looked at.
        is_named: the user named the target; not so what a pattern found, and what is in a folder.

    Raises:
        OSError: it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    is_folder = found.is_dir() and not found.is_symlink()
    is_there = target.is_dir() and (is_named or not target.is_symlink())
    if is_there and not is_folder:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if is_there:
        for entry in sorted(found.iterdir()):
            put(entry, target / entry.name, is_named=False)
        return
    try:
        found.replace(target)
    except OSError:
        # on another file system; or a folder in the place of a file, which is an error there, too
        if target.is_symlink():
            target.unlink()
        shutil.move(found, target)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else iter((path,))
    return sum(file.stat().st_size for file in itertools.filterfalse(Path.is_dir, files))
