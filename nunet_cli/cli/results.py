"""Where a job's outputs and logs are written: looked at before anything is asked for or paid."""

from __future__ import annotations

import os
from pathlib import Path

from nunet_cli.cli.state import STATE
from nunet_cli.errors import UsageError

DEFAULT = "nunet-results"


def results_folder(folder: Path | None, job_id: str) -> Path:
    """Return where a job's outputs go: the folder that was named, or one of its own."""
    return (folder or Path(DEFAULT) / job_id).absolute()


def check_results_folder(folder: Path | None) -> None:
    """Refuse a folder that cannot be made, or not be written to.

    A node on another machine writes there, and so says itself what is wrong.

    Args:
        folder: what was named; None for where outputs go by themselves.

    Raises:
        UsageError: nothing can be written there.
    """
    if STATE.node.startswith("http://"):
        return
    if problem := unwritable((folder or Path(DEFAULT)).absolute()):
        raise UsageError(
            f"--output-dir: {problem}", hint="name another folder with --output-dir; nothing was asked for yet"
        )


def unwritable(folder: Path) -> str:
    """Return why nothing can be written into a folder, which may have to be made; empty where it can."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if not there.is_dir():
        return f"{there} is not a folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written to"
