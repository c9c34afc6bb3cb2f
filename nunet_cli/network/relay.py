"""Publications beyond the next peer: signed once, passed on a few hops, never twice.

A publication is an envelope to a topic. Whoever gets one checks its signature, passes it on to the peers that cannot
have it yet, and says how many those are; so the publisher knows whether waiting for distant answers makes sense.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import trio
from msgspec import Struct

from nunet_cli.errors import NunetError, PeerError, RejectedMessageError
from nunet_cli.network.addresses import Address, parse_address
from nunet_cli.network.connection import RELAY, RELAYED, Connection
from nunet_cli.network.envelope import body_of, seal, unseal
from nunet_cli.network.identity import Identity
from nunet_cli.network.messenger import Incoming, Messenger
from nunet_cli.network.peers import Peers
from nunet_cli.network.transport import TcpTransport
from nunet_cli.records.fields import MaybeId
from nunet_cli.records.identifiers import key_from_did
from nunet_cli.records.limits import Limits
from nunet_cli.records.reading import decode

log = logging.getLogger("nunet.relay")

MAX_HOPS = 3
MAX_SEEN = 20_000
MAX_SKIPPED = 256
# Publications that are passed on and handled in a minute: of one origin, and from one peer who brings those of many.
# Origins cost nothing, so the second is what bounds the work, and what is counted, for each connection.
MAX_PER_ORIGIN = 120
MAX_PER_PEER = 1200
# Of what one neighbour brings in a minute that much is passed on: the next node takes so much more from this one, and
# what others bring by it arrives.
MAX_PASSED_ON = 150
# no honest one is as large, in bytes
MAX_PUBLICATION = 2**17
ACK_WAIT = 1.0
SLOW_WAIT = 1.0
Subscriber = Callable[[Incoming], Awaitable[None]]


class _Route(Struct, forbid_unknown_fields=True, frozen=True):
    """What goes with a publication: hops left, and who has it (first 8 bytes of each key).

    It is the word of whoever passes the publication on, and says nothing of others: where the origin listens stands in
    the envelope, which the origin signed.
    """

    hops: Annotated[int, Limits(ge=0, le=16)]
    skip: Annotated[tuple[Annotated[str, Limits(max_length=16)], ...], Limits(max_length=MAX_SKIPPED)] = ()


class _Forwarded(Struct, forbid_unknown_fields=True, frozen=True):
    """The answer to a publication: to how many peers it went on."""

    id: MaybeId
    count: Annotated[int, Limits(ge=0, le=10**6)]


@dataclass(slots=True)
class _Counts:
    """To how many nodes each direct peer passed a publication on, None until it says so; and what wakes who waits."""

    said: dict[bytes, int | None] = field(default_factory=dict)
    news: trio.Event = field(default_factory=trio.Event)


class Relay:
    """Publishing, passing on, and handing publications to this node's own subscribers."""

    def __init__(self, identity: Identity, transport: TcpTransport, messenger: Messenger, peers: Peers) -> None:
        self._identity, self._transport, self._messenger, self._peers = identity, transport, messenger, peers
        self._subscribers: dict[str, tuple[type[Struct], Subscriber]] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._minute, self._from_origin, self._from_peer = 0, Counter[str](), Counter[bytes]()
        self._forwarded: dict[str, _Counts] = {}
        self._nursery: trio.Nursery | None = None
        transport.on_frame[RELAY] = self._on_relay
        transport.on_frame[RELAYED] = self._on_relayed

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks that handle publications, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def on_publication(self, type_: str, kind: type[Struct], subscriber: Subscriber) -> None:
        """Say what to do with publications of a type, on the topics that this node subscribes to."""
        self._subscribers[type_] = (kind, subscriber)

    async def publish(self, topic: str, type_: str, body: Struct, *, lifetime: float) -> int:
        """Publish beyond the direct peers; return to how many more nodes the direct peers passed it on.

        Args:
            topic: who subscribes to it takes it.
            type_: the message's type.
            body: its body.
            lifetime: seconds until it is not passed on any more.
        """
        at = self._transport.listens_at()
        envelope, raw = seal(self._identity, topic, type_, body, lifetime=lifetime, at=at)
        self._note_seen(f"{envelope.from_}/{envelope.id}")
        counts = self._forwarded[envelope.id] = _Counts()
        try:
            await self._send(raw, _Route(MAX_HOPS), self._identity.public_key, None, counts.said)
            with trio.move_on_after(ACK_WAIT):
                while None in counts.said.values():
                    await counts.news.wait()
            return sum(count or 0 for count in counts.said.values())
        finally:
            del self._forwarded[envelope.id]

    async def _send(
        self, raw: bytes, route: _Route, origin: bytes, via: bytes | None,
        asked: dict[bytes, int | None] | None = None,
    ) -> int:  # fmt: skip
        """Send to every connected peer that cannot have it, noting each in `asked`; return how many those are."""
        there = [peer for peer in self._transport.connected() if peer.public_key not in (origin, via)]
        new = [peer for peer in there if peer.public_key[:8].hex() not in route.skip]
        skip = (*route.skip, *(peer.public_key[:8].hex() for peer in there), self._identity.public_key[:8].hex())
        onward = msgspec.structs.replace(route, skip=tuple(dict.fromkeys(skip))[-MAX_SKIPPED:])
        frame = bytes([RELAY]) + msgspec.json.encode(onward) + b"\n" + raw
        sent, slow = 0, list[Connection]()

        async def send(connection: Connection) -> None:
            nonlocal sent
            if asked is not None:
                asked[connection.peer.public_key] = None
            with suppress(PeerError):
                await connection.send_frame(frame)
                sent += 1

        for connection in map(self._transport.connection, [peer.public_key for peer in new]):
            if connection is None:
                continue
            if connection.is_full(len(frame)):
                slow.append(connection)
            else:
                await send(connection)
        if slow:
            # those that do not read are waited for together, and not for long
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.deadline = trio.current_time() + SLOW_WAIT
                for connection in slow:
                    self._transport.supervisor.start_soon(nursery, "publishing", send, connection)
        return sent

    def _note_seen(self, key: str) -> None:
        """Remember a publication."""
        self._seen[key] = None
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)

    def _within_rate(self, origin: str, via: bytes) -> bool:
        minute = int(trio.current_time() // 60)
        if minute != self._minute:
            self._minute, self._from_origin, self._from_peer = minute, Counter(), Counter()
        self._from_peer[via] += 1
        if self._from_peer[via] > MAX_PER_PEER:
            return False
        self._from_origin[origin] += 1
        return self._from_origin[origin] <= MAX_PER_ORIGIN

    def _may_pass_on(self, via: bytes) -> bool:
        """Say whether one more of what a neighbour brings is passed on: it has a share of what the next node takes."""
        return self._from_peer[via] <= MAX_PASSED_ON

    async def _on_relay(self, connection: Connection, _kind: int, payload: bytes) -> None:
        head, _, raw = payload.partition(b"\n")
        if len(raw) > MAX_PUBLICATION:
            raise RejectedMessageError(f"a publication of {len(raw)} bytes", code="too_large")
        try:
            route = decode(head, _Route)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise RejectedMessageError("not a publication", code="malformed") from None
        envelope = unseal(raw, me="", topics=None)
        try:
            at = [parse_address(text) for text in envelope.at]
        except NunetError:
            raise RejectedMessageError("a publication whose origin has no address", code="malformed") from None
        if not envelope.to.startswith("/"):
            raise RejectedMessageError("a publication goes to a topic", code="wrong_recipient")
        origin = key_from_did(envelope.from_)
        count = 0
        key = f"{envelope.from_}/{envelope.id}"
        is_new = origin != self._identity.public_key and key not in self._seen
        if is_new and not self._within_rate(envelope.from_, connection.peer.public_key):
            # not noted as seen: who brings too much cannot keep out what another one brings as well; but answered,
            # or an honest node with many jobs would wait for an answer to each
            self._transport.rejections["rate"] += 1
        elif is_new:
            self._note_seen(key)
            hops = min(route.hops, MAX_HOPS) - 1
            if hops > 0 and self._may_pass_on(connection.peer.public_key):
                onward = msgspec.structs.replace(route, hops=hops)
                count = await self._send(raw, onward, origin, connection.peer.public_key)
            known = self._subscribers.get(envelope.type)
            # a direct peer is asked directly: it would be asked twice
            is_far = self._transport.connection(origin) is None
            if known is not None and envelope.to in self._messenger.topics and is_far and self._nursery is not None:
                body = body_of(envelope, known[0])
                self._note_origin(origin, at)
                message = Incoming(envelope, body, raw)
                name = f"handling a relayed {envelope.type}"
                self._transport.supervisor.start_soon(self._nursery, name, self._handle, known[1], message)
        try:
            await connection.send(RELAYED, msgspec.json.encode(_Forwarded(envelope.id, count)))
        except PeerError:
            pass

    def _note_origin(self, origin: bytes, at: list[Address]) -> None:
        """Make the origin a known peer, so that it can be answered at the addresses that it signed, the best first."""
        for address in reversed(at):
            if self._peers.add(origin, address, "relay") is not None:
                self._transport.dial_soon()

    async def _handle(self, subscriber: Subscriber, message: Incoming) -> None:
        try:
            await subscriber(message)
        except NunetError as error:
            log.info("a publication of %s was refused: %s", message.sender, error)

    async def _on_relayed(self, connection: Connection, _kind: int, payload: bytes) -> None:
        try:
            answer = decode(payload, _Forwarded)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise RejectedMessageError("not an answer to a publication", code="malformed") from None
        counts, key = self._forwarded.get(answer.id), connection.peer.public_key
        if counts is None or counts.said.get(key, 0) is not None:
            connection.unasked()
            return
        counts.said[key] = answer.count
        counts.news.set()
        counts.news = trio.Event()
