"""What comes back of an item is put where it belongs."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path


def put(found: Path, target: Path) -> None:
    """Move a file or folder to where it goes: a file replaces one, what is in a folder is added to one.

    Raises:
        OSError: it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and not found.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if found.is_dir() and target.is_dir():
        for entry in sorted(found.iterdir()):
            put(entry, target / entry.name)
        return
    try:
        found.replace(target)
    except OSError:
        # on another file system; or a folder in the place of a file, which is an error there, too
        shutil.move(found, target)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else iter((path,))
    return sum(file.stat().st_size for file in itertools.filterfalse(Path.is_dir, files))
