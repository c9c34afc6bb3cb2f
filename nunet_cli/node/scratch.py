"""Folders for what is unfinished, beside its place; those of who was killed meanwhile are removed by who comes next.

They hold copies of a node's key and store, so they must not stay. Whoever uses one holds a lock on it, which ends with
its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".nunet-unfinished-"
# one that is being made has no lock for an instant
YOUNG = 60.0


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Make a folder for the duration of the context, and remove those that others have left there.

    Raises:
        OSError: it cannot be made.
    """
    remove_unfinished(parent)
    with tempfile.TemporaryDirectory(dir=parent, prefix=PREFIX) as name:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def remove_unfinished(parent: Path) -> None:
    """Remove the folders of this kind that nobody uses; what cannot be removed stays."""
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if time.time() - os.fstat(descriptor).st_mtime > YOUNG:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(descriptor)
