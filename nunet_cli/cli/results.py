"""Where a job's outputs and logs are written: looked at before anything is asked for or paid."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nunet_cli.cli.state import STATE
from nunet_cli.errors import UsageError

if TYPE_CHECKING:
    from nunet_cli.jobs.spec import JobSpec

DEFAULT = "nunet-results"


def results_folder(folder: Path | None, job_id: str) -> Path:
    """Return where a job's outputs go: the folder that was named, or one of its own."""
    return (folder or Path(DEFAULT) / job_id).absolute()


def check_results_folder(folder: Path | None, spec: JobSpec | None = None) -> None:
    """Refuse a folder that cannot be made, or not be written to, or in which something is where outputs are to be.

    Whether an output is a file or a folder the job decides: a folder in its place is no obstacle before it has.
    A node on another machine writes there, and so says itself what is wrong.

    Args:
        folder: what was named; None for where outputs go by themselves.
        spec: the job, where it is known.

    Raises:
        UsageError: nothing can be written there, or not all.
    """
    if STATE.node.startswith("http://"):
        return
    wanted = (folder or Path(DEFAULT)).absolute()
    problem = unwritable(wanted)
    if not problem and spec is not None and folder is not None:
        problem = next(filter(None, _obstacles(wanted, spec)), "")
    if problem:
        raise UsageError(
            f"--output-dir: {problem}", hint="name another folder with --output-dir; nothing was asked for yet"
        )


def unwritable(folder: Path) -> str:
    """Return why nothing can be written into a folder, which may have to be made; empty where it can."""
    there: Path | None = None
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
        if not there.is_dir():
            return f"{there} is not a folder"
        # not all that may be written to by its modes takes a file, such as /proc
        Path(tempfile.mkdtemp(prefix=".nunet-", dir=there)).rmdir()
    except OSError as error:
        return f"{there if there is not None else folder} cannot be written to: {error.strerror}"
    return ""


def _obstacles(folder: Path, spec: JobSpec) -> Iterator[str]:
    """Yield what stands where outputs and logs of a job are to be, and cannot be replaced by them; links are."""
    from nunet_cli.jobs.globs import is_glob
    from nunet_cli.jobs.items import expand_batch
    from nunet_cli.jobs.spec import output_name

    children = expand_batch(spec) if spec.batch is not None else spec.children
    for child in children:
        inside = folder / child.name
        if inside.is_symlink() or not inside.exists():
            continue
        yield "" if inside.is_dir() else f"{inside} is not a folder, and what comes of {child.name} is to be in it"
        yield unwritable(inside)
        yield from _obstacles(inside, child)
    if children or spec.type == "recurring":
        return
    for output in spec.outputs:
        place = folder / output_name(output)
        is_other = place.exists() and not place.is_symlink() and not place.is_dir()
        if is_other and is_glob(output.path) and output.name:
            yield f"{place} is not a folder, and the files of {output.path} are to be in it"
    for name in ("stdout", "stderr"):
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            yield f"{folder / name} is a folder, and what the job writes is to be a file there"
