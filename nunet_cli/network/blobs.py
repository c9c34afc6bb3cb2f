"""Content-addressed files: kept by content id, asked for from other nodes, and given to them.

A transfer is resumable: what has arrived stays in a partial file, one for each sender, and the hash decides at the end
whether it is what was asked for. A node gives a blob only to those it was granted to, and who names one has to bring it
or to have been given it: that somebody else's content is here is nothing to it.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import trio
from msgspec import Struct

from nunet_cli.database.store import Store, Transaction, explained
from nunet_cli.errors import PeerError, RejectedMessageError
from nunet_cli.network.data.connections import DataConnections, word
from nunet_cli.network.data.kept import Kept, Part
from nunet_cli.network.data.patience import Patience
from nunet_cli.network.data.sealed import SealedStream
from nunet_cli.network.secure_channel import ChannelClosedError
from nunet_cli.network.transport import TcpTransport
from nunet_cli.network.waiting import short
from nunet_cli.records.identifiers import content_id, is_content_id, key_from_did
from nunet_cli.records.limits import Limits
from nunet_cli.records.messaging import GRANTS, Grant
from nunet_cli.threads import in_thread

log = logging.getLogger("nunet.blobs")

# seconds without a byte after which a connection is given up, and another one tried
STALL_TIMEOUT = 20.0
# who is there answers a sign of life on the connection for messages, which is asked for every ten seconds at least
SIGN_OF_LIFE = 20.0
# a peer that is merely away (its node was over with its command, its machine restarts) is given this long to return
PATIENCE = 60.0
FIRST_PAUSE, MAX_PAUSE = 0.05, 2.0
# seconds for which who wants a blob waits for it to come from somebody else: who is slow on purpose holds up nobody
OTHERS_TURN = 20.0
REFUSED = "not here, or not for you"
# what peers have brought that is noted here, at most, until a change notes it: see `note_brought`
MOST_BROUGHT = 10_000
# the empty logs of most jobs, which are nobody's
NOTHING = content_id(b"")
Progress = Callable[[int], None]
_Size = Annotated[int, Limits(ge=0, le=2**60)]


class Get(Struct, frozen=True):
    """Asks for a blob from an offset on."""

    cid: Annotated[str, Limits(max_length=120)]
    offset: _Size


class Answer(Struct, frozen=True):
    """How many bytes the blob has, of which those from the offset on follow; or why nothing does."""

    size: _Size = 0
    error: Annotated[str, Limits(max_length=200, pattern=r"^[ -~]*(?!\n)$")] = ""


class Blobs(Kept):
    """Blobs of one node, in a folder of its home, with what it asks of others and gives to them."""

    def __init__(self, home: Path, store: Store, transport: TcpTransport | None = None) -> None:
        super().__init__(home)
        self._store, self._transport = store, transport
        self._data = DataConnections(transport, self._may_have, self._give) if transport is not None else None
        self._brought: dict[tuple[str, str], None] = {}
        self._one_fetch: weakref.WeakValueDictionary[str, trio.Lock] = weakref.WeakValueDictionary()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the connections over which blobs travel, until cancelled."""
        assert self._data is not None
        await self._data.run(task_status=task_status)

    # -- who gives ---------------------------------------------------------------------------------------------------

    @staticmethod
    def grant(transaction: Transaction, cid: str, did: str) -> None:
        """Allow a peer to fetch a blob, as part of a change."""
        transaction[GRANTS].put(Grant(f"{cid}/{did}", cid, did))

    def note_brought(self, transaction: Transaction, cids: Iterable[str], did: str) -> None:
        """Note for good, as part of a change, which of some blobs a peer brought: it need not bring them again."""
        for cid in cids:
            if (cid, did) in self._brought:
                self.grant(transaction, cid, did)

    @staticmethod
    def may_have(source: Store | Transaction, cid: str, did: str) -> bool:
        """Say whether a peer was granted a blob."""
        return source[GRANTS].has(f"{cid}/{did}")

    def is_serving(self, did: str) -> bool:
        """Say whether a peer is taking blobs just now."""
        return self._data is not None and self._data.is_giving(key_from_did(did))

    def _may_have(self, cid: str, did: str) -> bool:
        return is_content_id(cid) and self.may_have(self._store, cid, did) and self.has(cid)

    async def _give(self, sealed: SealedStream, did: str, asked: bytes) -> bool:
        """Give a peer what it asks for; return whether it may ask on."""
        wanted = word(asked, Get)
        if not self._may_have(wanted.cid, did):
            # it has to open another connection to ask again: guessing costs it more than it costs this node
            await sealed.send_word(msgspec.json.encode(Answer(error=REFUSED)))
            return False
        try:
            with self.path(wanted.cid).open("rb") as file:
                size = file.seek(0, 2)
                if wanted.offset > size:
                    await sealed.send_word(msgspec.json.encode(Answer(error="it has fewer bytes")))
                    return False
                file.seek(wanted.offset)
                await sealed.send_word(msgspec.json.encode(Answer(size)))
                await sealed.send_file(file, size - wanted.offset)
        except OSError as problem:
            log.warning("%s cannot be read: %s", wanted.cid, problem)
            return False
        return True

    # -- who asks ----------------------------------------------------------------------------------------------------

    async def fetch(
        self, did: str, cid: str, size: int, progress: Progress | None = None, *, patience: float = PATIENCE
    ) -> Path:
        """Return a blob's file, fetching it from a peer if it is not here, or is here from others alone.

        Who does not have a content could otherwise name it, and have it in a job of its own, or passed on as an output.

        Args:
            did: who has it.
            cid: what is wanted; what arrives is checked against it.
            size: its size in bytes; what has another is refused.
            progress: called with the number of bytes that are here.
            patience: seconds after which it is given up where nothing comes; the peer may be away for that long. One
                that is there, and sends nothing or hardly anything, is not waited for as long.

        Raises:
            PeerError: the peer does not give it, or nothing more came for too long.
            RejectedMessageError: what arrived is something else.
        """
        target = self.path(cid)
        # two jobs may want the same blob: one fetches it, the other finds it here
        own = self._one_fetch.setdefault(f"{cid}/{did}", trio.Lock())
        async with own, self._turn(cid):
            if self._use_of(cid, did):
                return target
            part = self.part(cid, did)
            try:
                await self._fetch(did, cid, size, part, progress, patience)
            except OSError as error:
                raise explained(error, part.path) from error
            finally:
                part.close()
        return target

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

    async def _fetch(
        self, did: str, cid: str, size: int, part: Part, progress: Progress | None, patience: float
    ) -> None:
        waiting, pause, here, is_anew = Patience(patience), FIRST_PAUSE, 0, False
        while not self._use_of(cid, did):
            await in_thread(part.open, size, limiter=self._limiter)
            if part.size > here:
                pause, here = FIRST_PAUSE, part.size
            resumed, is_there = part.size > 0, False
            try:
                if part.size < size:
                    await self._ask(did, cid, size, part, progress, waiting)
                if await in_thread(part.finish, limiter=self._limiter) == cid:
                    self.keep(part.path, cid)
                    if len(self._brought) >= MOST_BROUGHT:
                        del self._brought[next(iter(self._brought))]
                    self._brought[cid, did] = None
                    return
                part.discard()
                if is_anew or not resumed:
                    raise RejectedMessageError(f"{short(did)} sent something else than {cid}", code="wrong_content")
                # what was left of an earlier try may have been spoilt here
                is_anew, here = True, 0
                log.info("what is here of %s is something else: it is fetched anew", cid)
                continue
            except ChannelClosedError as error:
                log.info("transfer of %s was cut at %d bytes: %s", cid, part.size, error)
            except trio.TooSlowError:
                is_there = self._gives_signs(did)
                log.info("transfer of %s stalled at %d bytes", cid, part.size)
            except PeerError as error:
                if error.code == "blob_refused":
                    raise
                log.info("transfer of %s was cut at %d bytes: %s", cid, part.size, error)
            waiting.wait(is_there=is_there)
            if waiting.is_over:
                raise PeerError(f"{short(did)} stalled while sending {cid}", code="transfer_stalled")
            await trio.sleep(pause)
            pause = min(MAX_PAUSE, pause * 2)

    def _use_of(self, cid: str, did: str) -> bool:
        """Say whether a blob is here that a peer brought, or was granted."""
        is_own = cid == NOTHING or (self._transport is not None and did == self._transport.identity.did)
        return (is_own or (cid, did) in self._brought or self.may_have(self._store, cid, did)) and self.use(cid)

    def _gives_signs(self, did: str) -> bool:
        """Say whether a peer is heard of on its connection for messages."""
        connection = self._transport.connection(key_from_did(did)) if self._transport is not None else None
        return connection is not None and trio.current_time() - connection.heard_at < SIGN_OF_LIFE

    async def _ask(
        self, did: str, cid: str, size: int, part: Part, progress: Progress | None, waiting: Patience
    ) -> None:
        if self._data is None:
            raise PeerError("this node has no network")
        key = key_from_did(did)
        async with self._data.turn(key):
            waiting.rest()
            with trio.CancelScope() as limit:
                limit.deadline = trio.current_time() + min(STALL_TIMEOUT, waiting.most)
                async with self._data.lend(key, cid) as sealed:
                    await sealed.send_word(msgspec.json.encode(Get(cid, part.size)))
                    answer = word(await sealed.receive_word(), Answer)
                    if answer.error:
                        raise PeerError(f"{short(did)} does not give {cid}: {answer.error}", code="blob_refused")
                    if answer.size != size:
                        text = f"{short(did)} has {answer.size} bytes as {cid}, and not {size}"
                        raise RejectedMessageError(text, code="wrong_content")

                    def heard(count: int) -> None:
                        waiting.earn(count)
                        limit.deadline = trio.current_time() + min(STALL_TIMEOUT, waiting.wait(is_there=True))

                    def taken(_: int) -> None:
                        waiting.rest()
                        limit.deadline = trio.current_time() + min(STALL_TIMEOUT, waiting.wait(is_there=True))
                        if progress is not None:
                            progress(part.size)

                    await sealed.receive_data(size - part.size, part.take, heard, taken)
        if limit.cancelled_caught:
            raise trio.TooSlowError
