"""Stage 1, the files that a job names: they are looked at before anything is kept or asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nunet_cli.errors import UsageError
from nunet_cli.jobs.globs import Pattern, is_glob, split_glob
from nunet_cli.jobs.items import before_values, expand_batch, item_spec, item_values
from nunet_cli.jobs.problems import Problems
from nunet_cli.jobs.spec import HERE, InputSpec, JobSpec
from nunet_cli.network.data.links import way_out
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
    path, glob = _place(item.path, folder)
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


def _place(text: str, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Return where a path leads, and of a pattern its folder, and what it looks for there."""
    path = folder / _own(text)
    if path.exists() or not is_glob(text):
        return path, ()
    base, glob = split_glob(text)
    return folder / _own(base), glob


def _own(text: str) -> Path:
    """Return a path as it is written: what is below a folder called `~` here is nobody's home."""
    return Path(text).expanduser() if text.startswith("~") else Path(text)


def check_links(spec: JobSpec, index: int, folder: Path, where: str) -> None:
    """Refuse an item's file or folder that is not named by the specification itself, and leads out of its folder.

    Its name is from a file of items, or was found by a pattern, in a folder that others may write to. What a person
    wrote may lead anywhere: the folder that a pattern begins in, and what stands before the values in a path.

    Args:
        spec: a batch.
        index: the number of the item.
        folder: what relative paths start from.
        where: the place of the batch in the specification.

    Raises:
        UsageError: with `details["path"]`.
    """
    batch = spec.batch
    if batch is None or not batch.read_from:
        return
    values, filled = item_values(spec, index), None
    for number, item in enumerate(spec.inputs):
        before = before_values(item.path, values)
        if before is None:
            continue
        filled = filled or item_spec(spec, index).inputs
        path, _ = _place(filled[number].path, folder)
        begins = [before.rpartition("/")[0] + "/"] if "/" in before else []
        begins += [split_glob(batch.read_from)[0]] if is_glob(batch.read_from) else []
        out = way_out(path, [folder, *(folder / _own(begin) for begin in begins)])
        if out:
            raise _wrong(
                f"{where}children[{index}].inputs[{number}]", f"{path} {out}",
                "leave it out, or put a copy in its place; another folder stands in the specification: /data/{name}",
            )  # fmt: skip


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


def check_inputs(spec: JobSpec, folder: Path) -> None:
    """Look whether the files of a job and of its children are there, and can be sent.

    Raises:
        UsageError: one is not; with `details["path"]`, and for several as `Problems` has it.
    """
    problems = Problems(once=True)
    _check_inputs(spec, folder, "", problems)
    problems.check()


def _check_inputs(spec: JobSpec, folder: Path, where: str, problems: Problems) -> None:
    for index, child in enumerate(expand_batch(spec) if spec.batch is not None else spec.children):
        _check_inputs(child, folder, f"{where}children[{index}].", problems)
        with problems.noted():
            check_links(spec, index, folder, where)
    if spec.batch is not None:
        # they are those of its items
        return
    for index, item in enumerate(spec.inputs):
        if item.cid:
            continue
        with problems.noted():
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
