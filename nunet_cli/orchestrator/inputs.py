"""Stage 1, the files that a job names: they are looked at before anything is kept or asked for."""

from __future__ import annotations

from pathlib import Path

from nunet_cli.errors import UsageError
from nunet_cli.jobs.spec import InputSpec, JobSpec


def input_file(item: InputSpec, folder: Path, where: str) -> Path:
    """Return the file of an input.

    Args:
        item: an input with a path.
        folder: what relative paths start from.
        where: the place in the specification, such as `children[1].inputs[0]`.

    Raises:
        UsageError: there is no such file; with `details["path"]`, the place of the field.
    """
    path = folder / Path(item.path).expanduser()
    details = {"path": f"{where}.path"}
    if not path.exists():
        raise UsageError(f"there is no file {path}", hint="paths are relative to the specification", details=details)
    if not path.is_file():
        raise UsageError(f"{path} is not a file", hint="pack a folder with: tar -cf inputs.tar FOLDER", details=details)
    return path


def check_inputs(spec: JobSpec, folder: Path, where: str = "") -> None:
    """Look whether the files of a job and of its children are there.

    Raises:
        UsageError: one is not; with `details["path"]`.
    """
    for index, child in enumerate(spec.children):
        check_inputs(child, folder, f"{where}children[{index}].")
    for index, item in enumerate(spec.inputs):
        if not item.cid:
            input_file(item, folder, f"{where}inputs[{index}]")
