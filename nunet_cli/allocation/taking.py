"""Stage 6, an output of a program that has ended: a file, a folder, or what a pattern finds, taken in as a blob."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from nunet_cli.executor.base import Task, open_output
from nunet_cli.executor.files import enter, open_folder
from nunet_cli.jobs.globs import Pattern, is_glob, split_glob
from nunet_cli.jobs.spec import OutputSpec, is_loose, is_safe_path
from nunet_cli.network.data.kept import Writer
from nunet_cli.network.data.trees import Found, look, pack, why
from nunet_cli.orchestrator.needs import HasBlobs, HasThreads
from nunet_cli.records.trees import TreeError

log = logging.getLogger("nunet.part")


class Keeping(HasThreads, HasBlobs, Protocol):
    """Takes outputs in."""


@dataclass(frozen=True)
class Taken:
    """An output that is here, by content id."""

    cid: str
    size: int
    kind: Literal["file", "folder", "files"] = "file"


async def take_in(ctx: Keeping, task: Task, item: OutputSpec, room: int) -> Taken | None:
    """Keep an output as a blob; None where there is nothing, or it has more bytes than there is room.

    A file with holes has the bytes that reading it gives, however few the disk has. What is in a folder and cannot be
    sent, such as a link that leads out of it, is left out.
    """
    # with a name of its own a pattern is one, whatever a job calls by that name
    is_pattern = is_glob(item.path) and bool(item.name)
    descriptor = None if is_pattern else await ctx.threads.run(open_output, task, item.path)
    if descriptor is None:
        return await _take_folder(ctx, task, item, room)
    try:
        if os.fstat(descriptor).st_size > room:
            return None
        # the file that was looked at, whatever its name leads to by now
        cid, size = await ctx.blobs.add_file(Path(f"/dev/fd/{descriptor}"))
        return Taken(cid, size) if size <= room else None
    finally:
        os.close(descriptor)


async def _take_folder(ctx: Keeping, task: Task, item: OutputSpec, room: int) -> Taken | None:
    is_found = False

    def write(writer: Writer) -> None:
        nonlocal is_found
        with _opened(task, item) as (root, pattern, base):
            # what a job calls by a loose pattern's name is a folder all the same
            is_found = pattern is not None
            instead = _mounted(task, base)
            found = look(root, pattern, instead, enter)
            if pattern and not found.entries:
                raise FileNotFoundError(item.path)
            if found.size > room:
                raise TreeError("it has more bytes than there is room")
            _note(task, item.path, found)
            pack(root, found, writer, instead, enter)

    if not is_safe_path(item.path):
        return None
    try:
        cid, size = await ctx.blobs.add_made(write)
    except TreeError as error:
        log.info("the output %s of %s cannot be taken: %s", item.path, task.allocation_id, error)
        return None
    except FileNotFoundError:
        return None
    if size > room:
        return None
    return Taken(cid, size, "files" if is_found and is_loose(item) else "folder")


@contextmanager
def _opened(task: Task, item: OutputSpec) -> Iterator[tuple[int, Pattern | None, str]]:
    """Open the folder of an output; give its descriptor, the pattern that chooses in it, and its path.

    Raises:
        FileNotFoundError: there is none, or a link is on the way.
    """
    pattern: Pattern | None = None
    path = item.path
    try:
        if is_glob(path) and item.name:
            raise NotADirectoryError(path)
        root = open_folder(task.work, path)
    except OSError:
        if not is_glob(path):
            raise FileNotFoundError(path) from None
        path, parts = split_glob(path)
        pattern = Pattern(parts)
        try:
            root = open_folder(task.work, path)
        except OSError:
            raise FileNotFoundError(path) from None
    try:
        yield root, pattern, path
    finally:
        os.close(root)


def _mounted(task: Task, base: str) -> dict[str, Path]:
    """Return the inputs of a container that are below a folder: in their places are empty files."""
    if task.spec.type != "docker":
        return {}
    found = {}
    for number, place in enumerate(task.inputs):
        path = PurePosixPath(place)
        if path.is_relative_to(base or "."):
            found[str(path.relative_to(base or "."))] = task.kept_inputs / str(number)
    return found


def _note(task: Task, path: str, found: Found) -> None:
    if found.left_out:
        log.info("of the output %s of %s is left out %s", path, task.allocation_id, why(found.left_out))
