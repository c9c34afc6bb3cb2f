"""One connection to a peer: the kinds of frames, what is queued to be sent, signs of life, clocks, and its rate."""

from __future__ import annotations

import logging
import math
import struct
from contextlib import suppress
from typing import ClassVar

import trio

from nunet_cli import quantities
from nunet_cli.errors import PeerError, RejectedMessageError
from nunet_cli.network import secure_channel
from nunet_cli.network.addresses import Address
from nunet_cli.network.links import Links
from nunet_cli.network.peers import Peer
from nunet_cli.world import world

log = logging.getLogger("nunet.network")

# 5 to 7 were data, which has connections of its own
ENVELOPE, ACK, PING, PONG, RELAY, RELAYED, DATA_WANTED = 1, 2, 3, 4, 8, 9, 10
# what this node asked for does not count against the peer's rate
ANSWERS = frozenset({ACK, PONG, RELAYED})
SEND_TIMEOUT = 30.0
# frames that are ready are written together, up to so many bytes
TOGETHER = 65536
QUEUE_FRAMES, QUEUE_BYTES = 64, 2**20
# what is written at once before others have their turn; a frame costs as much as so many bytes, however small it is
AT_ONCE, SMALL = 2**16, 2**13
MAX_PINGS = 8
REMARKS = 1.0  # a second
NONCE_SIZE = 8
_MILLISECONDS = struct.Struct(">Q")
# a frame that says no more than that somebody is there
SIGNS_OF_LIFE = frozenset({PING, PONG})


class TokenBucket:
    """A rate limit: `rate` tokens a second, at most `rate * burst` saved up."""

    def __init__(self, rate: float, burst: float = 4.0) -> None:
        self._rate, self._most = rate, rate * burst
        self._tokens, self._at = self._most, trio.current_time()

    def take(self, count: float = 1.0) -> bool:
        """Take tokens, or return False when there are not enough."""
        now = trio.current_time()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < count:
            return False
        self._tokens -= count
        return True

    async def wait(self) -> None:
        """Take a token as soon as there is one."""
        while not self.take():
            await trio.sleep(1 / self._rate)


class Connection:
    """One secure channel to a peer whose key is proved; `host` is the address of the other end."""

    # bytes that were written at once, by any of them, since others had their turn
    _at_once: ClassVar[int] = 0

    def __init__(self, channel: secure_channel.SecureChannel, peer: Peer, host: str, rate: int, links: Links) -> None:
        self.channel, self.peer, self.host, self._links = channel, peer, host, links
        # where this node dialled it; None where the peer did
        self.dialled_at: Address | None = None
        self.bucket = TokenBucket(rate)
        # lines of the log that are about what it does wrong: the counts say the rest
        self.remarks = TokenBucket(REMARKS, burst=30)
        self.scope = trio.CancelScope()
        self._pings: dict[bytes, float] = {}
        self._queue, self._outgoing = trio.open_memory_channel[bytes](QUEUE_FRAMES)
        # bytes that wait in it, and what wakes those who wait until they are fewer
        self._queued, self._drained = 0, trio.Event()
        # whether what is sent is queued: until there is who writes it, while that one writes, and in the end
        self._is_writing = True
        self.closed = trio.Event()
        self.measured = trio.Event()
        self.opened_at = self.used_at = self.heard_at = trio.current_time()
        self._sending_since = math.inf
        # until then its messages are not waited for: too many of them take long
        self.crowded_until = -math.inf

    @property
    def age(self) -> float:
        """Seconds since it was opened."""
        return trio.current_time() - self.opened_at

    @property
    def idle(self) -> float:
        """Seconds since the peer last said more than that it is there."""
        return trio.current_time() - self.used_at

    def is_full(self, size: int = 0) -> bool:
        """Say whether so much is queued that who sends a frame of so many bytes more waits."""
        return self._queue.statistics().current_buffer_used >= QUEUE_FRAMES or self._is_over(size)

    def _is_over(self, size: int) -> bool:
        # one alone always goes
        return bool(self._queued) and self._queued + size > QUEUE_BYTES

    def problem(self, idle_timeout: float) -> str:
        """Return why the connection is of no use any more: the peer gives no sign of life, or takes nothing."""
        now = trio.current_time()
        if now - self.heard_at > idle_timeout:
            return "is silent"
        return "does not read" if now - self._sending_since > SEND_TIMEOUT else ""

    async def send(self, kind: int, payload: bytes) -> None:
        """Write a frame at once where none waits and the connection takes it, else queue it; waits while that is full.

        Raises:
            PeerError: the connection is over, or the frame is over the limit.
        """
        frame = bytes([kind]) + payload
        for sent in self._links.disturb(frame) if kind in (ENVELOPE, ACK) else (frame,):
            await self.send_frame(sent)

    async def send_frame(self, frame: bytes) -> None:
        """Send a frame as `send` does; of one that goes to many the bytes are shared.

        Raises:
            PeerError: the connection is over, or the frame is over the limit.
        """
        try:
            # a frame that waits first is looked at here: whoever writes it could only end the connection
            self.channel.check(frame)
            if self._is_writing:
                await self._enqueue(frame)
            elif not self.channel.send_now(frame):
                # the rest of it, and what follows, is written as the peer reads
                self._is_writing = True
                self._queue.send_nowait(b"")
            else:
                await self._let_others(len(frame))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PeerError(f"the connection to {self.peer.peer_id} is closed") from None
        except RejectedMessageError as error:
            raise PeerError(f"nothing is sent to {self.peer.peer_id}: {error.message}") from None

    async def _let_others(self, size: int) -> None:
        """Give the other tasks their turn after some frames, of this connection or of others, were written at once."""
        Connection._at_once += SMALL + size
        if Connection._at_once >= AT_ONCE:
            Connection._at_once = 0
            await trio.lowlevel.checkpoint()

    async def _enqueue(self, frame: bytes) -> None:
        while self._is_over(len(frame)):
            await self._drained.wait()
        self._queued += len(frame)
        try:
            await self._queue.send(frame)
        except BaseException:
            self._take_off(len(frame))
            raise

    def _take_off(self, size: int) -> None:
        self._queued -= size
        self._drained.set()
        self._drained = trio.Event()

    async def ping(self) -> None:
        """Ask for a sign of life, with a number that the peer cannot guess: it cannot look nearer than it is.

        Raises:
            PeerError: the connection is over.
        """
        nonce = bytes.fromhex(world().token(NONCE_SIZE))
        while len(self._pings) >= MAX_PINGS:
            del self._pings[next(iter(self._pings))]
        self._pings[nonce] = trio.current_time()
        await self.send(PING, nonce)

    async def take_ping(self, nonce: bytes) -> None:
        """Answer a sign of life with its number and this machine's time.

        Raises:
            PeerError: the connection is over.
        """
        time = _MILLISECONDS.pack(round(quantities.now().timestamp() * 1000)) if len(nonce) >= NONCE_SIZE else b""
        await self.send(PONG, nonce[:NONCE_SIZE] + time)

    def take_pong(self, payload: bytes) -> None:
        """Measure the round trip of the ping that a pong answers, and how far the peer's clock is from this machine's.

        The peer looked at its clock half a round trip ago, give or take as much: all that one side can know.
        """
        nonce, said = payload[:NONCE_SIZE], payload[NONCE_SIZE:]
        sent = self._pings.pop(nonce, None) if len(said) in (0, _MILLISECONDS.size) else None
        if sent is None:
            self.unasked()
            return
        self.peer.rtt = trio.current_time() - sent
        if said:
            theirs = _MILLISECONDS.unpack(said)[0] / 1000
            self.peer.clock = theirs + self.peer.rtt / 2 - quantities.now().timestamp()
        self.measured.set()

    def unasked(self) -> None:
        """Count an answer that nobody waits for, late, repeated or made up, against the peer's rate.

        Raises:
            RejectedMessageError: they come faster than that.
        """
        if not self.bucket.take():
            raise RejectedMessageError("answers that nobody waits for", code="rate")

    async def write_forever(self) -> None:
        """Send what is queued, all that is ready at a time."""
        async with self._outgoing:
            while True:
                try:
                    frame = self._outgoing.receive_nowait()
                except trio.WouldBlock:
                    # from here on frames are written as they come, until one cannot be
                    self._is_writing = False
                    frame = await self._outgoing.receive()
                except trio.EndOfChannel:
                    break
                await self._write([frame])
        self.scope.cancel()

    async def _write(self, frames: list[bytes]) -> None:
        size = len(frames[0])
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while size < TOGETHER:
                frames.append(self._outgoing.receive_nowait())
                size += len(frames[-1])
        self._sending_since = trio.current_time()
        # as long as they are not written they count
        await self.channel.send_frames(*filter(None, frames))
        self._sending_since = math.inf
        self._take_off(size)

    def close(self) -> None:
        """End the connection's tasks."""
        self._is_writing = True
        self.scope.cancel()
        self._queue.close()
        self._outgoing.close()
        self._take_off(self._queued)
