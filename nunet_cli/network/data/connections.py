"""The data connections of a node: opened by whichever side can dial the other, kept for a while, and bounded.

A data connection joins two nodes that have a connection for messages. Whoever dialled that one dials this one too, to
where the other one listened; a node that was dialled asks to be dialled again (`DATA_WANTED`). One side of it asks and
the other one gives, for as long as it is open: both may have some at the same time, and neither waits for the other.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec
import trio
from msgspec import Struct

from nunet_cli.errors import PeerError, RejectedMessageError
from nunet_cli.network.connection import DATA_WANTED, Connection
from nunet_cli.network.data.sealed import SealedStream
from nunet_cli.network.secure_channel import ChannelClosedError, ChannelKeys, HandshakeError, dial
from nunet_cli.network.transport import TcpTransport
from nunet_cli.records.identifiers import did_from_key
from nunet_cli.records.limits import Limits
from nunet_cli.records.reading import decode
from nunet_cli.world import world

log = logging.getLogger("nunet.data")

T = TypeVar("T")
# Transfers that a peer has at once. It serves one connection more, as it notes later that one was cut.
MAX_ASKED, MAX_GIVEN = 3, 4
# Of all that a node asks of others at once, and that it keeps open in between: each takes a descriptor.
MOST_ASKED, MOST_IDLE = 64, 16
# Of all that others ask of a node, the share of the places for messages, and the least. Beyond them the one that is
# idle for longest gives way, and one at work never.
SHARE, LEAST_PLACES = 4, 8
# Seconds that an idle one is kept for what is asked next. Who asks gives up first: so it seldom asks in vain.
ASKER_IDLE, GIVER_IDLE = 10.0, 20.0
# Seconds for the first word of who dials, which comes with the handshake's end: a packet of it may be lost once.
FIRST_WORD = 3.0
THREADS = 4
TICKET_BYTES = 16
Ticket = Annotated[str, Limits(max_length=2 * TICKET_BYTES, pattern=r"^[0-9a-f]*(?!\n)$")]


class Wanted(Struct, frozen=True):
    """Asks a peer, over the connection for messages, to dial again: it has what is asked for."""

    ticket: Ticket
    cid: Annotated[str, Limits(max_length=120)]


class Introduction(Struct, frozen=True):
    """The first word of who dials: with the ticket of who wants something it gives, without one it asks."""

    ticket: Ticket = ""


@dataclass(eq=False)
class _Link:
    """One connection; `idle_since` is infinite while something is done with it.

    Until the first word has come, nothing is: who says none gives way like those that are idle.
    """

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    idle_since: float = field(default_factory=trio.current_time)


@dataclass(eq=False)
class _Asking(_Link):
    """One over which this node asks."""

    sealed: SealedStream = field(kw_only=True)


@dataclass(eq=False)
class _Expected:
    key: bytes
    arrived: trio.Event = field(default_factory=trio.Event)
    link: _Asking | None = None


# gives what a peer asks for with a word; returns whether it may ask on
Give = Callable[[SealedStream, str, bytes], Awaitable[bool]]


class DataConnections:
    """Data connections to other nodes.

    Args:
        transport: the connections for messages.
        has_for: says whether a peer, by its DID, may have some content.
        give: what serves the words of who asks.
    """

    def __init__(self, transport: TcpTransport, has_for: Callable[[str, str], bool], give: Give) -> None:
        self._transport, self._has_for, self._give = transport, has_for, give
        self._limiter = trio.CapacityLimiter(THREADS)
        self._nursery: trio.Nursery | None = None
        self._idle: defaultdict[bytes, list[_Asking]] = defaultdict(list)
        self._expected: dict[str, _Expected] = {}
        self._given: dict[_Link, bytes] = {}
        self._asked = trio.Semaphore(MOST_ASKED)
        self._slots: defaultdict[bytes, trio.Semaphore] = defaultdict(lambda: trio.Semaphore(MAX_ASKED))
        transport.on_data = self._accept
        transport.on_frame[DATA_WANTED] = self._on_wanted

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks that keep connections, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def is_giving(self, key: bytes) -> bool:
        """Say whether a peer is taking something just now."""
        return any(owner == key and link.idle_since == math.inf for link, owner in self._given.items())

    # -- who asks ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(self, key: bytes) -> AsyncIterator[None]:
        """Wait until this node may ask a peer for one thing more."""
        async with self._slots[key], self._asked:
            yield

    @asynccontextmanager
    async def lend(self, key: bytes, cid: str) -> AsyncIterator[SealedStream]:
        """Lend a connection over which a peer is asked for something; the caller sets the timeout for opening it.

        It ends where what is done with it fails or is called off, and is kept for a while otherwise.

        Args:
            key: the peer's.
            cid: what it will be asked for.

        Raises:
            PeerError: it cannot be opened.
        """
        link = self._idle[key].pop() if self._idle[key] else await self._open(key, cid)
        link.idle_since = math.inf
        try:
            yield link.sealed
        except BaseException:
            link.scope.cancel()
            raise
        if sum(map(len, self._idle.values())) >= MOST_IDLE:
            link.scope.cancel()
        if not link.scope.cancel_called:
            link.idle_since = trio.current_time()
            self._idle[key].append(link)

    async def _open(self, key: bytes, cid: str) -> _Asking:
        connection = await self._transport.wait_connected(key)
        if connection.peer.introduced and "data" not in connection.peer.features:
            raise PeerError("it cannot send data to this version of nunet", code="blob_refused", hint="update it")
        if connection.dialled_at is None:
            return await self._wait_dialled(connection, cid)
        stream, sealed = await self._dial(connection)
        link = _Asking(idle_since=math.inf, sealed=sealed)
        assert self._nursery is not None
        self._transport.supervisor.start_soon(self._nursery, "data connection", self._hold, key, link, stream)
        try:
            await sealed.send_word(msgspec.json.encode(Introduction()))
        except BaseException:
            link.scope.cancel()
            raise
        return link

    async def _wait_dialled(self, connection: Connection, cid: str) -> _Asking:
        ticket = world().token(TICKET_BYTES)
        expected = self._expected[ticket] = _Expected(connection.peer.public_key)
        try:
            await connection.send(DATA_WANTED, msgspec.json.encode(Wanted(ticket, cid)))
            await expected.arrived.wait()
        except BaseException:
            if expected.link is not None:
                expected.link.scope.cancel()
            raise
        finally:
            del self._expected[ticket]
        assert expected.link is not None
        return expected.link

    async def _hold(self, key: bytes, link: _Asking, stream: trio.abc.Stream) -> None:
        """Keep a connection over which this node asks, until it is idle for too long or is ended."""
        try:
            with link.scope:
                while (left := link.idle_since + ASKER_IDLE - trio.current_time()) > 0:
                    await trio.sleep(min(left, ASKER_IDLE))
        finally:
            # nobody is lent it from here on
            link.scope.cancel()
            if link in self._idle[key]:
                self._idle[key].remove(link)
            if not self._idle[key]:
                del self._idle[key]
            await trio.aclose_forcefully(stream)

    # -- both --------------------------------------------------------------------------------------------------------

    async def _dial(self, connection: Connection) -> tuple[trio.abc.Stream, SealedStream]:
        """Dial a peer where it was dialled before.

        Raises:
            PeerError: it is not there, or gives no place.
        """
        assert connection.dialled_at is not None
        peer, transport = connection.peer, self._transport
        try:
            with trio.fail_after(transport.config.handshake_timeout):
                stream, keys = await dial(
                    transport.links, connection.dialled_at, transport.data_id, transport.identity, peer.public_key
                )
        except (OSError, trio.TooSlowError, HandshakeError) as error:
            raise PeerError(f"no data connection to {peer.peer_id}: {error or 'it does not answer'}") from None
        return stream, SealedStream(stream, keys, self._limiter)

    async def _accept(self, stream: trio.abc.Stream, keys: ChannelKeys) -> None:
        """Serve who has dialled for data, or hand the connection to whom it was wanted by."""
        try:
            sealed = SealedStream(stream, keys, self._limiter)
            first = Introduction()
            with self._place(keys.peer_key) as given:
                with trio.fail_after(min(FIRST_WORD, self._transport.config.handshake_timeout)):
                    first = word(await sealed.receive_word(), Introduction)
                if not first.ticket:
                    await self._serve(given, sealed)
            if not first.ticket:
                # served, or its place was given to another before it had said anything
                return
            expected = self._expected.get(first.ticket)
            if expected is None or expected.key != keys.peer_key or expected.link is not None:
                raise RejectedMessageError("nobody waits for this data connection", code="unwanted_data")
            expected.link = _Asking(idle_since=math.inf, sealed=sealed)
            expected.arrived.set()
            await self._hold(keys.peer_key, expected.link, stream)
        except trio.TooSlowError:
            self._transport.rejections["handshake"] += 1
        except RejectedMessageError as error:
            self._count(error)

    def _count(self, error: RejectedMessageError) -> None:
        if error.code != ChannelClosedError.default_code:
            self._transport.rejections[error.code] += 1

    # -- who gives ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _place(self, key: bytes) -> Iterator[_Link]:
        """Hold a place for a connection over which a peer asks.

        Raises:
            RejectedMessageError: the peer has no business here, or there is no place.
        """
        connection = self._transport.connection(key)
        if connection is None or connection.peer.obstacle is not None:
            raise RejectedMessageError("data for who has no connection for messages", code="unwanted_data")
        most = max(LEAST_PLACES, self._transport.config.max_connections // SHARE)
        owned = [other for other, owner in self._given.items() if owner == key]
        for there, bound in ((owned, MAX_GIVEN), (list(self._given), most)):
            if len(there) >= bound:
                longest = min(there, key=lambda other: other.idle_since)
                if longest.idle_since == math.inf:
                    raise RejectedMessageError("too many data connections", code="too_many_connections")
                longest.scope.cancel()
                del self._given[longest]
        link = _Link()
        self._given[link] = key
        try:
            with link.scope:
                yield link
        finally:
            self._given.pop(link, None)

    async def _on_wanted(self, connection: Connection, _kind: int, payload: bytes) -> None:
        wanted = word(payload, Wanted)
        if not wanted.ticket or connection.dialled_at is None or not self._has_for(wanted.cid, connection.peer.did):
            raise RejectedMessageError("a data connection that cannot be", code="unwanted_data")
        assert self._nursery is not None
        self._transport.supervisor.start_soon(
            self._nursery, "data connection", self._dial_and_serve, connection, wanted.ticket
        )

    async def _dial_and_serve(self, connection: Connection, ticket: str) -> None:
        try:
            with self._place(connection.peer.public_key) as given:
                stream, sealed = await self._dial(connection)
                try:
                    await sealed.send_word(msgspec.json.encode(Introduction(ticket)))
                    await self._serve(given, sealed)
                finally:
                    await trio.aclose_forcefully(stream)
        except PeerError as error:
            log.info("%s", error)
        except RejectedMessageError as error:
            self._count(error)

    async def _serve(self, given: _Link, sealed: SealedStream) -> None:
        """Give what is asked for, until nothing is for a while, or something that the peer may not have."""
        did, may_ask = did_from_key(sealed.peer_key), True
        while may_ask:
            given.idle_since = trio.current_time()
            asked = b""
            with trio.move_on_after(GIVER_IDLE):
                asked = await sealed.receive_word()
            if not asked:
                return
            given.idle_since = math.inf
            may_ask = await self._give(sealed, did, asked)


def word(text: bytes, kind: type[T]) -> T:
    """Read a word of a data connection.

    Raises:
        RejectedMessageError: it is none of that kind.
    """
    try:
        return decode(text, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RejectedMessageError(f"not a word of the kind {kind.__name__}", code="malformed") from None
