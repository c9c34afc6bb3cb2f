"""Content-addressed files in a folder of a node's home, and what has arrived of those that are on their way."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import trio

from nunet_cli.errors import NotFoundError
from nunet_cli.records.identifiers import cid_from_digest, is_content_id, key_from_did
from nunet_cli.threads import in_thread

THREADS = 4
# seconds for which a blob that nothing names is left alone
YOUNG = 3600.0
# a part of a blob is named by its content id, this, and its sender: what one sent spoils nothing of another's
PART_OF = "."
_COPY = 2**20


class Kept:
    """Blobs of one node."""

    def __init__(self, home: Path) -> None:
        self._folder, self._partial = home / "blobs", home / "blobs" / "partial"
        # how many bytes all have: as `size` said last, and what came since
        self.total = 0
        self._limiter = trio.CapacityLimiter(THREADS)

    def path(self, cid: str) -> Path:
        """Return where a blob is kept, whether or not it is there.

        Raises:
            NotFoundError: not a content id.
        """
        if not is_content_id(cid):
            raise NotFoundError(f"not a content id: {cid[:80]!r}")
        return self._folder / cid

    def has(self, cid: str) -> bool:
        """Say whether a blob is here."""
        return self.path(cid).exists()

    def use(self, cid: str) -> bool:
        """Say whether a blob is here, for who is about to name it in a record: until then it stays."""
        try:
            os.utime(self.path(cid))
        except FileNotFoundError:
            return False
        return True

    def size(self) -> int:
        """Return how many bytes all blobs have, with those that are only partly here; it reads a folder."""
        return sum(_size(entry) for folder in (self._folder, self._partial) for entry in _files(folder))

    def unnamed(self, named: set[str]) -> list[tuple[str, int]]:
        """Return the blobs that are not among those named, with their sizes; it reads a folder.

        What came within the last hour is left out: the record that names it may be about to be written.
        """
        entries = [entry for folder in (self._folder, self._partial) for entry in _files(folder)]
        return [(entry.name, _size(entry)) for entry in entries if self._is_left(entry, named) and _is_old(entry)]

    def _is_left(self, entry: os.DirEntry[str], named: set[str]) -> bool:
        cid, is_part, _ = entry.name.partition(PART_OF)
        # what one sender did not finish, and another one brought
        return cid not in named or (bool(is_part) and (self._folder / cid).exists())

    def still_old(self, names: Iterable[str]) -> list[str]:
        """Return those of some blobs, whole or partly here, that nobody has used within the last hour."""
        return [name for name in names if _is_old(self._folder / name) or _is_old(self._partial / name)]

    def remove(self, names: Iterable[str]) -> None:
        """Remove blobs, whole or partly here, but what came, or is used again, within the last hour."""
        for path in (folder / name for name in names for folder in (self._folder, self._partial)):
            if _is_old(path):
                path.unlink(missing_ok=True)

    async def add_file(self, source: Path) -> tuple[str, int]:
        """Copy a file into the blobs; return its content id and size in bytes."""
        return await in_thread(self._copy_in, source, limiter=self._limiter)

    async def add_files(self, *sources: Path) -> list[tuple[str, int]]:
        """Copy files into the blobs, in one go; return the content id and size in bytes of each."""
        return await in_thread(lambda: [self._copy_in(source) for source in sources], limiter=self._limiter)

    async def add_made(self, write: Callable[[Writer], object]) -> tuple[str, int]:
        """Take in what a function writes, in a worker thread; return its content id and size in bytes."""
        return await in_thread(self._take_in, write, limiter=self._limiter)

    def _copy_in(self, source: Path) -> tuple[str, int]:
        with source.open("rb") as file:
            return self._take_in(lambda copy: shutil.copyfileobj(file, copy, _COPY))

    def _take_in(self, write: Callable[[Writer], object]) -> tuple[str, int]:
        self._partial.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=self._partial, delete=False) as copy:
            try:
                writer = Writer(copy)
                write(writer)
                cid = cid_from_digest(writer.digest.digest())
                if self.use(cid):
                    # here already, as the empty logs of the job before are: nothing has to wait for the disk
                    Path(copy.name).unlink()
                    return cid, writer.size
                copy.flush()
                os.fsync(copy.fileno())
                self.keep(Path(copy.name), cid)
                return cid, writer.size
            except BaseException:
                Path(copy.name).unlink(missing_ok=True)
                raise

    def keep(self, arrived: Path, cid: str) -> None:
        """Put what is whole in its place."""
        if not (self._folder / cid).exists():
            self.total += arrived.stat().st_size
        arrived.rename(self._folder / cid)

    async def copy_out(self, cid: str, target: Path) -> None:
        """Copy a blob to a file, whole or not at all.

        Raises:
            NotFoundError: the blob is not here.
            OSError: it cannot be written; nothing is left of it.
        """
        source = self.path(cid)
        if not source.exists():
            raise NotFoundError(f"the content {cid} is not here")

        def copy() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir() and not target.is_symlink():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            with source.open("rb") as data, tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
                made = Path(file.name)
                try:
                    shutil.copyfileobj(data, file, 2**20)
                    file.flush()
                    mask = os.umask(0)
                    os.umask(mask)
                    made.chmod(0o666 & ~mask)
                    made.rename(target)
                except BaseException:
                    made.unlink(missing_ok=True)
                    raise

        await in_thread(copy, limiter=self._limiter)

    def part(self, cid: str, did: str) -> Part:
        """Return what has arrived of a blob from one sender."""
        self._partial.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Part(self._partial / f"{cid}{PART_OF}{key_from_did(did)[:8].hex()}")


class Writer:
    """What becomes a blob is written to it."""

    def __init__(self, file: BinaryIO | tempfile._TemporaryFileWrapper[bytes]) -> None:
        self._file = file
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: bytes, /) -> None:
        """Take all of some bytes."""
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)


class Part:
    """What one sender has sent of a blob: a file that grows, and the digest of what is in it.

    Its methods wait for the disk. The digest is made as the data comes: a gibibyte is not read again for it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None

    def open(self, most: int) -> None:
        """Take up what an earlier run has left; from the beginning where that is more than the blob has.

        Args:
            most: the blob's size in bytes.
        """
        if self._file is not None:
            return
        self._file = self.path.open("a+b")
        self.size = self._file.seek(0, os.SEEK_END)
        if self.size > most:
            self._file.truncate(0)
            self.size = 0
        self._file.seek(0)
        self._digest = hashlib.sha256()
        while chunk := self._file.read(_COPY):
            self._digest.update(chunk)

    def take(self, chunk: bytes) -> None:
        """Add what came."""
        assert self._file is not None
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def finish(self) -> str:
        """Bring all to the disk; return the content id of what is here."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        return cid_from_digest(self._digest.digest())

    def discard(self) -> None:
        """Forget what is here."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file: what is in it stays for the next try."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        # it arrived whole, under another name, or is gone
        return 0


def _is_old(file: Path | os.DirEntry[str]) -> bool:
    try:
        return time.time() - file.stat().st_mtime > YOUNG
    except FileNotFoundError:
        return False


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return
