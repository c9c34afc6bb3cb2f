"""Files that are sent by name: where somebody else chose the name, or may write to the folder, it leads to anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def way_out(path: Path, folders: Sequence[Path]) -> str:
    """Return how a name leads out of some folders, for people; empty where it leads to something in one of them.

    The folders themselves may be links.
    """
    real = os.path.realpath(path)
    if any(_is_within(real, os.path.realpath(folder)) for folder in folders):
        return ""
    # by the name alone it is in one of them, so a link is it, or is on the way
    is_link = any(_is_within(_written(path), _written(folder)) for folder in folders)
    return "is a link that leads out of the folder" if is_link else "leads out of the folder"


def _written(path: Path) -> str:
    return os.path.normpath(path.absolute())


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
