"""Files that a job can rename, link and change while they are looked at: reached by descriptor, no link followed."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from nunet_cli.errors import StateError

log = logging.getLogger("nunet.executor.files")

MAX_DEPTH = 100
TRIES = 3
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# held whatever its modes are, where the system can do that
_HELD = (os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC) if hasattr(os, "O_PATH") else 0
# a pipe of the job's making is not waited for
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def allocation_folder(home: Path, allocation_id: str) -> Path:
    """Return the folder of an allocation, which is removed with all that is in it.

    Raises:
        StateError: the id could be the way to another place; it comes from a store that this node did not write.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", allocation_id):
        raise StateError(f"{allocation_id!r} is no id of an allocation", code="bad_id")
    return home / "allocations" / allocation_id


def open_folder(root: Path, relative: str = "") -> int:
    """Return a descriptor of a folder below a folder of ours.

    Raises:
        OSError: it is not there, or a link is on the way.
    """
    here = os.open(root, _FOLDER)
    for part in PurePosixPath(relative).parts:
        try:
            if part == "..":
                raise NotADirectoryError(relative)
            deeper = os.open(part, _FOLDER, dir_fd=here)
        finally:
            os.close(here)
        here = deeper
    return here


def open_file(root: Path, relative: str) -> int:
    """Return a descriptor of a regular file below a folder of ours.

    Raises:
        OSError: it is not there, no regular file, or a link is at the end or on the way.
    """
    path = PurePosixPath(relative)
    folder = open_folder(root, str(path.parent))
    try:
        descriptor = os.open(path.name, _FILE, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(relative)
    return descriptor


def folder_size(folder: Path, limit: int) -> int:
    """Return the bytes in a folder; stops counting once `limit` is passed.

    Folders that stay closed, or are more than `MAX_DEPTH` deep, count as past the limit: what cannot be looked at
    cannot be let grow.

    Raises:
        OSError: the machine cannot look, whatever the job did.
    """
    total = 0
    stack: list[tuple[int, list[str]]] = []
    try:
        total += _step(folder, None, stack, limit)
        while stack and total <= limit:
            descriptor, folders = stack[-1]
            if not folders:
                os.close(stack.pop()[0])
                continue
            if len(stack) > MAX_DEPTH:
                return limit + 1
            total += _step(folders.pop(), descriptor, stack, limit - total)
    except PermissionError:
        return limit + 1
    finally:
        for descriptor, _ in stack:
            os.close(descriptor)
    return total


def _step(name: str | Path, within: int | None, stack: list[tuple[int, list[str]]], limit: int) -> int:
    """Go into a folder and return the bytes of what stands in it; none where it is gone, or no folder any more."""
    try:
        stack.append((enter(name, within), []))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise
    return _look(*stack[-1], limit)


def enter(name: str | Path, within: int | None) -> int:
    """Return a descriptor of a folder; the job, which may still run, keeps nobody out of it by its modes.

    Raises:
        OSError: it is not there, no folder, or is closed again and again.
    """
    held = os.open(name, _HELD, dir_fd=within) if _HELD else -1
    try:
        for _ in range(TRIES):
            try:
                return os.open(".", _FOLDER, dir_fd=held) if _HELD else os.open(name, _FOLDER, dir_fd=within)
            except PermissionError:
                if _HELD:
                    Path(f"/proc/self/fd/{held}").chmod(0o700)
                else:
                    os.chmod(name, 0o700, dir_fd=within, follow_symlinks=False)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    finally:
        if held >= 0:
            os.close(held)


def _look(descriptor: int, folders: list[str], limit: int) -> int:
    """Return the bytes of what stands in one folder, and note the folders in it."""
    total = 0
    with os.scandir(descriptor) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            total += found.st_blocks * 512
            if stat.S_ISDIR(found.st_mode):
                folders.append(entry.name)
            if total > limit:
                break
    return total


def give_folder(folder: Path, user: int, inputs: Sequence[str]) -> None:
    """Give a working folder to the job's user; the input files stay ours, to be read only.

    Args:
        folder: the working folder, before the job has begun.
        user: the user's number, and its group's.
        inputs: the places of the input files.
    """
    ours = {str(PurePosixPath(place)) for place in inputs}
    for root, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        os.fchown(descriptor, user, user)
        here = PurePosixPath(root).relative_to(folder)
        # links to folders are among the folders
        for name in (*files, *folders):
            if str(here / name) not in ours:
                os.chown(name, user, user, dir_fd=descriptor, follow_symlinks=False)


def remove_folder(folder: Path) -> None:
    """Remove a folder of a job that has ended, however deep it is and whatever modes its folders have."""
    try:
        root = os.open(folder, _FOLDER)
    except OSError:
        return
    try:
        names = itertools.count()
        waiting = _empty(root, root, names)
        while waiting:
            name = waiting.pop()
            with suppress(OSError):
                _open_up(name, root)
                descriptor = os.open(name, _FOLDER, dir_fd=root)
                try:
                    waiting += _empty(descriptor, root, names)
                finally:
                    os.close(descriptor)
                os.rmdir(name, dir_fd=root)
    finally:
        os.close(root)
    try:
        folder.rmdir()
    except OSError as error:
        log.warning("%s could not be removed: %s", folder, error)


def _empty(folder: int, root: int, names: itertools.count[int]) -> list[str]:
    """Remove the files of a folder, and move its folders up to the root, so that no depth is ever walked."""
    moved = []
    for entry in os.listdir(folder):
        try:
            if not stat.S_ISDIR(os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mode):
                os.unlink(entry, dir_fd=folder)
                continue
            _open_up(entry, folder)
            name = f".removed-{os.getpid()}-{next(names)}"
            os.rename(entry, name, src_dir_fd=folder, dst_dir_fd=root)
            moved.append(name)
        except OSError:
            continue
    return moved


def _open_up(name: str, folder: int) -> None:
    """Let the owner into a folder that a job closed; nothing of the job runs that could put a link there."""
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o700 != 0o700:
        os.chmod(name, 0o700, dir_fd=folder)
