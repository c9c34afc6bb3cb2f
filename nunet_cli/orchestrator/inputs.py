"""Stage 1, the files that a job names: they are looked at before anything is kept or asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nunet_cli.errors import UsageError
from nunet_cli.jobs.globs import Pattern, is_glob, split_glob
from nunet_cli.jobs.spec import HERE, InputSpec, JobSpec
from nunet_cli.network.data.trees import Found, Writable, look, opened, pack, why
from nunet_cli.records.trees import TreeError

_RELATIVE = "paths are relative to the specification"


@dataclass(frozen=True)
class Source:
    """Where an input comes from: a file, or a folder, in which a pattern may choose; `where` is the field."""

    path: Path
    kind: Literal["file", "folder"]
    where: str
    glob: tuple[str, ...] = ()


def input_source(item: InputSpec, folder: Path, where: str) -> Source:
    """Return where an input comes from.

    Args:
        item: an input with a path.
        folder: what relative paths start from.
        where: the place in the specification, such as `children[1].inputs[0]`.

    Raises:
        UsageError: there is nothing; with `details["path"]`, the place of the field.
    """
    path = folder / Path(item.path).expanduser()
    glob: tuple[str, ...] = ()
    if not path.exists() and is_glob(item.path):
        base, glob = split_glob(item.path)
        path = folder / Path(base).expanduser()
    if not path.exists():
        raise _wrong(where, f"there is no file {path}", _RELATIVE)
    if path.is_dir():
        return Source(path, "folder", where, glob)
    if glob:
        raise _wrong(where, f"{path} is not a folder")
    if not path.is_file():
        raise _wrong(where, f"{path} is neither a file nor a folder")
    if item.to == HERE:
        raise UsageError(
            f"{path} is a file, and needs a name in the job's folder", details={"path": f"{where}.to"},
            hint="leave out `to`, or give a name",
        )  # fmt: skip
    return Source(path, "file", where)


def look_into(source: Source, root: int) -> Found:
    """Return what is in an input's folder, or what its pattern finds there.

    Args:
        source: a folder.
        root: its descriptor.

    Raises:
        UsageError: there is nothing, or something that cannot be sent; with `details["path"]`.
    """
    try:
        found = look(root, Pattern(source.glob) if source.glob else None)
    except TreeError as error:
        raise _wrong(source.where, f"{source.path}: {error.message}", "pack it: tar -cf inputs.tar FOLDER") from None
    except OSError as error:
        raise _wrong(source.where, f"{source.path} cannot be read: {error.filename}: {error.strerror}") from None
    if found.left_out:
        raise _wrong(source.where, f"{source.path}: {why(found.left_out)}", "leave it out, or put a copy in its place")
    if source.glob and not found.entries:
        raise _wrong(source.where, f"no file matches {'/'.join(source.glob)} in {source.path}", _RELATIVE)
    return found


def packing(source: Source, most: int) -> Callable[[Writable], None]:
    """Return what writes an input's folder as one content.

    Args:
        source: a folder.
        most: the bytes that its files may have.

    Raises:
        UsageError: what is returned raises it, as `look_into` does, or where it has more bytes.
    """

    def write(target: Writable) -> None:
        try:
            with opened(source.path) as root:
                found = look_into(source, root)
                if found.size > most:
                    raise _wrong(source.where, f"{source.path} is over limits.input_size ({most} bytes)")
                pack(root, found, target)
        except TreeError as error:
            raise _wrong(source.where, f"{source.path}: {error.message}") from None

    return write


def check_inputs(spec: JobSpec, folder: Path, where: str = "") -> None:
    """Look whether the files of a job and of its children are there, and can be sent.

    Raises:
        UsageError: one is not; with `details["path"]`.
    """
    for index, child in enumerate(spec.children):
        check_inputs(child, folder, f"{where}children[{index}].")
    for index, item in enumerate(spec.inputs):
        if not item.cid:
            source = input_source(item, folder, f"{where}inputs[{index}]")
            if source.kind == "folder":
                _look_into_it(source)


def _look_into_it(source: Source) -> None:
    try:
        with opened(source.path) as root:
            look_into(source, root)
    except OSError as error:
        raise _wrong(source.where, f"{source.path} cannot be read: {error.strerror}") from None


def _wrong(where: str, message: str, hint: str = "") -> UsageError:
    details: dict[str, Any] = {"path": f"{where}.path"}
    return UsageError(message, hint=hint, details=details)
