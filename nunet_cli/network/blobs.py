"""Content-addressed files: kept by content id, and moved between nodes in chunks over the secure channel.

A transfer is resumable: what has arrived stays in a partial file, one for each sender, and the hash decides at the end
whether it is what was asked for. A node gives a blob only to those it was granted to.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import struct
import tempfile
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import trio
from msgspec import Struct

from nunet_cli.database.store import Store, Transaction, explained
from nunet_cli.errors import NotFoundError, NunetError, PeerError, RejectedMessageError
from nunet_cli.network.connection import BLOB_DATA, BLOB_END, BLOB_GET, Connection
from nunet_cli.network.transport import TcpTransport
from nunet_cli.network.waiting import short
from nunet_cli.records.identifiers import cid_from_digest, is_content_id, key_from_did
from nunet_cli.records.limits import Limits
from nunet_cli.records.messaging import GRANTS, Grant
from nunet_cli.records.reading import decode
from nunet_cli.threads import in_thread

log = logging.getLogger("nunet.blobs")

CHUNK = 128 * 1024
MAX_STREAMS_PER_PEER = 4
STALL_TIMEOUT = 20.0
# a peer that is merely away (its node was over with its command, its machine restarts) is given this long to return
PATIENCE = 60.0
MAX_PAUSE = 2.0
# seconds for which who wants a blob waits for it to come from somebody else: who is slow on purpose holds up nobody
OTHERS_TURN = 20.0
# seconds for which a blob that nothing names is left alone
YOUNG = 3600.0
# a part of a blob is named by its content id, this, and its sender: what one sent spoils nothing of another's
PART_OF = "."
TOO_MANY = "too many transfers at once"
Progress = Callable[[int], None]
_Stream = Annotated[int, Limits(ge=1, lt=2**31)]


class _Get(Struct, frozen=True):
    """Asks for a blob from an offset on."""

    stream: _Stream
    cid: Annotated[str, Limits(max_length=120)]
    offset: Annotated[int, Limits(ge=0, le=2**60)]


class _End(Struct, frozen=True):
    """The end of a transfer, or why there is none."""

    stream: _Stream
    error: Annotated[str, Limits(max_length=200, pattern=r"^[ -~]*(?!\n)$")] = ""


@dataclass
class _Download:
    sender: bytes
    chunks: trio.MemorySendChannel[bytes]
    error: str = ""
    done: trio.Event = field(default_factory=trio.Event)


class Blobs:
    """Blobs of one node, in a folder of its home."""

    def __init__(self, home: Path, store: Store, transport: TcpTransport | None = None) -> None:
        self._folder, self._partial = home / "blobs", home / "blobs" / "partial"
        self._store, self._transport = store, transport
        # how many bytes all have: as `size` said last, and what came since
        self.total = 0
        self._limiter = trio.CapacityLimiter(4)
        self._downloads: dict[int, _Download] = {}
        self._next_stream = 1
        self._one_fetch: weakref.WeakValueDictionary[str, trio.Lock] = weakref.WeakValueDictionary()
        # one fewer than a peer serves at once, as it counts a stream until its last frame has left
        self._slots: defaultdict[str, trio.Semaphore] = defaultdict(lambda: trio.Semaphore(MAX_STREAMS_PER_PEER - 1))
        self._serving: Counter[bytes] = Counter()
        self._nursery: trio.Nursery | None = None
        if transport is not None:
            transport.on_frame[BLOB_GET] = self._on_get
            transport.on_frame[BLOB_DATA] = self._on_data
            transport.on_frame[BLOB_END] = self._on_end

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks that serve blobs, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

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
        return sum(entry.stat().st_size for folder in (self._folder, self._partial) for entry in _files(folder))

    def unnamed(self, named: set[str]) -> list[tuple[str, int]]:
        """Return the blobs that are not among those named, with their sizes; it reads a folder.

        What came within the last hour is left out: the record that names it may be about to be written.
        """
        entries = [entry for folder in (self._folder, self._partial) for entry in _files(folder)]
        return [
            (entry.name, entry.stat().st_size) for entry in entries if self._is_left(entry, named) and _is_old(entry)
        ]

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

    def _copy_in(self, source: Path) -> tuple[str, int]:
        self._partial.mkdir(parents=True, exist_ok=True, mode=0o700)
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as file, tempfile.NamedTemporaryFile(dir=self._partial, delete=False) as copy:
            try:
                while chunk := file.read(2**20):
                    digest.update(chunk)
                    copy.write(chunk)
                    size += len(chunk)
                cid = cid_from_digest(digest.digest())
                if self.use(cid):
                    # here already, as the empty logs of the job before are: nothing has to wait for the disk
                    Path(copy.name).unlink()
                    return cid, size
                return self._settle_in(copy, cid), size
            except BaseException:
                Path(copy.name).unlink(missing_ok=True)
                raise

    def _settle_in(self, copy: BinaryIO | tempfile._TemporaryFileWrapper[bytes], cid: str) -> str:
        copy.flush()
        os.fsync(copy.fileno())
        self._keep(Path(copy.name), cid)
        return cid

    def _keep(self, arrived: Path, cid: str) -> None:
        """Put what is whole in its place."""
        if not (self._folder / cid).exists():
            self.total += arrived.stat().st_size
        arrived.rename(self._folder / cid)

    async def copy_out(self, cid: str, target: Path) -> None:
        """Copy a blob to a file, whole or not at all.

        Raises:
            NotFoundError: the blob is not here.
        """
        source = self.path(cid)
        if not source.exists():
            raise NotFoundError(f"the content {cid} is not here")

        def copy() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as data, tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
                shutil.copyfileobj(data, file, 2**20)
            mask = os.umask(0)
            os.umask(mask)
            Path(file.name).chmod(0o666 & ~mask)
            Path(file.name).rename(target)

        await in_thread(copy, limiter=self._limiter)

    @staticmethod
    def grant(transaction: Transaction, cid: str, did: str) -> None:
        """Allow a peer to fetch a blob, as part of a change."""
        transaction[GRANTS].put(Grant(f"{cid}/{did}", cid, did))

    async def fetch(
        self, did: str, cid: str, size: int, progress: Progress | None = None, *, patience: float = PATIENCE
    ) -> Path:
        """Return a blob's file, fetching it from a peer if it is not here.

        Args:
            did: who has it.
            cid: what is wanted; what arrives is checked against it.
            size: its size in bytes; more than that is refused.
            progress: called with the number of bytes that are here.
            patience: seconds without a new byte after which it is given up; the peer may be away for that long.

        Raises:
            PeerError: the peer does not give it, or nothing more came for too long.
            RejectedMessageError: what arrived is something else.
        """
        # two jobs may want the same blob: one fetches it, the other finds it here
        own = self._one_fetch.setdefault(f"{cid}/{did}", trio.Lock())
        async with own, self._turn(cid), self._slots[did]:
            try:
                return await self._fetch(did, cid, size, progress, patience)
            except OSError as error:
                raise explained(error, self._part(cid, did)) from error

    @asynccontextmanager
    async def _turn(self, cid: str) -> AsyncIterator[None]:
        """Let whoever fetches a blob have its turn, and go on beside it when that takes long."""
        lock = self._one_fetch.setdefault(cid, trio.Lock())
        with trio.move_on_after(OTHERS_TURN):
            await lock.acquire()
        # what was acquired as the time was over is held as well
        held = lock.statistics().owner is trio.lowlevel.current_task()
        try:
            yield
        finally:
            if held:
                lock.release()

    def _part(self, cid: str, did: str) -> Path:
        return self._partial / f"{cid}{PART_OF}{key_from_did(did)[:8].hex()}"

    async def _fetch(self, did: str, cid: str, size: int, progress: Progress | None, patience: float) -> Path:
        path = self.path(cid)
        self._partial.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self._part(cid, did)
        pause, here, heard = 0.05, -1, trio.current_time()
        while True:
            if self.use(cid):
                return path
            arrived = partial.stat().st_size if partial.exists() else 0
            if arrived > here:
                pause, here, heard = 0.05, arrived, trio.current_time()
            elif trio.current_time() - heard > patience:
                raise PeerError(f"{short(did)} stalled while sending {cid}", code="transfer_stalled")
            try:
                with partial.open("ab") as file:
                    await self._fetch_rest(did, cid, size, file, progress, min(STALL_TIMEOUT, patience))
                digest = await in_thread(_digest, partial, limiter=self._limiter)
                if cid_from_digest(digest) != cid:
                    partial.unlink()
                    raise RejectedMessageError(f"{short(did)} sent something else than {cid}", code="wrong_content")
                self._keep(partial, cid)
                return path
            except trio.TooSlowError:
                log.info("transfer of %s stalled at %d bytes", cid, here)
            except PeerError as error:
                if error.code == "blob_refused":
                    raise
                log.info("transfer of %s was cut at %d bytes: %s", cid, here, error)
            await trio.sleep(pause)
            pause = min(MAX_PAUSE, pause * 2)

    async def _fetch_rest(
        self, did: str, cid: str, size: int, file: BinaryIO, progress: Progress | None, stall: float
    ) -> None:
        if self._transport is None:
            raise PeerError("this node has no network")
        arrived = file.seek(0, os.SEEK_END)
        with trio.fail_after(stall):
            connection = await self._transport.wait_connected(key_from_did(did))
        sending, receiving = trio.open_memory_channel[bytes](8)
        stream, self._next_stream = self._next_stream, self._next_stream % (2**31) + 1
        download = self._downloads[stream] = _Download(connection.peer.public_key, sending)
        try:
            await connection.send(BLOB_GET, msgspec.json.encode(_Get(stream, cid, arrived)))
            too_much = False
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_close_with, connection, sending)
                # nothing is raised in here: it would come out of the nursery as a group
                with trio.CancelScope() as patience:
                    while arrived < size and not too_much:
                        patience.deadline = trio.current_time() + stall
                        try:
                            chunk = await receiving.receive()
                        except trio.EndOfChannel:
                            break
                        arrived += len(chunk)
                        too_much = arrived > size
                        if not too_much:
                            file.write(chunk)
                            if progress is not None:
                                progress(arrived)
                nursery.cancel_scope.cancel()
            if too_much:
                file.truncate(0)
                raise RejectedMessageError(f"{short(did)} sends more than {size} bytes", code="wrong_content")
            if patience.cancelled_caught:
                raise trio.TooSlowError
            file.flush()
            await in_thread(os.fsync, file.fileno(), limiter=self._limiter)
        finally:
            del self._downloads[stream]
            sending.close()
        if arrived < size:
            # a stream of a connection that was cut may still be counted; the next attempt finds it gone
            if download.error and download.error != TOO_MANY:
                raise PeerError(f"{short(did)} does not give {cid}: {download.error}", code="blob_refused")
            raise PeerError("the connection was cut")

    async def _on_data(self, connection: Connection, _kind: int, payload: bytes) -> None:
        # an empty chunk brings nothing, and so could come for ever
        if len(payload) <= 4:
            raise RejectedMessageError("not a part of a transfer", code="malformed")
        download = self._download(connection, struct.unpack(">I", payload[:4])[0])
        if download is None:
            return
        try:
            with trio.move_on_after(STALL_TIMEOUT):
                await download.chunks.send(payload[4:])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def _download(self, connection: Connection, stream: int) -> _Download | None:
        download = self._downloads.get(stream)
        if download is None or download.sender != connection.peer.public_key:
            connection.unasked()
            return None
        return download

    async def _on_end(self, connection: Connection, _kind: int, payload: bytes) -> None:
        try:
            end = decode(payload, _End)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise RejectedMessageError("not the end of a transfer", code="malformed") from None
        download = self._download(connection, end.stream)
        if download is not None:
            download.error = end.error
            download.chunks.close()

    async def _on_get(self, connection: Connection, _kind: int, payload: bytes) -> None:
        try:
            wanted = decode(payload, _Get)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise RejectedMessageError("not a request for a blob", code="malformed") from None
        assert self._nursery is not None
        assert self._transport is not None
        if self._serving[connection.peer.public_key] >= MAX_STREAMS_PER_PEER:
            # answered at once, without a task: or a peer that reads nothing would make more and more of them
            await connection.send(BLOB_END, msgspec.json.encode(_End(wanted.stream, TOO_MANY)))
            return
        self._serving[connection.peer.public_key] += 1
        self._transport.supervisor.start_soon(self._nursery, "sending a blob", self._serve, connection, wanted)

    def is_serving(self, did: str) -> bool:
        """Say whether a peer is taking blobs just now."""
        return self._serving[key_from_did(did)] > 0

    async def _serve(self, connection: Connection, wanted: _Get) -> None:
        peer, cid = connection.peer, wanted.cid
        error = ""
        try:
            granted = self._store[GRANTS].has(f"{cid}/{peer.did}")
            if not granted or not self.has(cid):
                error = "not here, or not for you"
            else:
                with self.path(cid).open("rb") as file:
                    file.seek(wanted.offset)
                    while chunk := await in_thread(file.read, CHUNK, limiter=self._limiter):
                        await connection.send(BLOB_DATA, struct.pack(">I", wanted.stream) + chunk)
            await connection.send(BLOB_END, msgspec.json.encode(_End(wanted.stream, error)))
        except (NunetError, OSError) as problem:
            log.info("sending %s to %s ended: %s", cid, peer.peer_id, problem)
        finally:
            self._serving[peer.public_key] -= 1
            if not self._serving[peer.public_key]:
                del self._serving[peer.public_key]


async def _close_with(connection: Connection, channel: trio.MemorySendChannel[bytes]) -> None:
    await connection.closed.wait()
    channel.close()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


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
