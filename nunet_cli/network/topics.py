"""Introductions and topics: what each peer subscribes to and does, and publication to every subscriber."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import trio
from msgspec import Struct

from nunet_cli.config import MOST_TOPICS
from nunet_cli.errors import PeerError, RejectedMessageError
from nunet_cli.network.connection import Connection
from nunet_cli.network.identity import Identity
from nunet_cli.network.messenger import Answer, Incoming, Messenger
from nunet_cli.network.peers import PROTOCOL_VERSION, Peer, Peers, is_other_version
from nunet_cli.network.transport import TcpTransport
from nunet_cli.records.fields import PLAIN, Id
from nunet_cli.records.identifiers import key_from_did
from nunet_cli.records.limits import Limits

log = logging.getLogger("nunet.topics")

BIDS = "/nunet/bids"
# What this node can beyond version 1.0 of the protocol as it was first written; a new form of a message is named here,
# and sent to those only who name it, too. `clock`: a pong carries the time. `origin`: a publication says where its
# origin is. `capability`: it tells what it offers when it is asked.
TELLS_CAPABILITY = "capability"
FEATURES = (TELLS_CAPABILITY, "clock", "data", "origin")
TELL_SECONDS = 5.0
MEASURE_SECONDS = 2.0
# for the refusal to get out
PART_SECONDS = 1.0
ROLES = ("provider", "contract-database", "oracle")


_Number = Annotated[int, Limits(ge=0, lt=2**16)]


class Hello(Struct, forbid_unknown_fields=True, frozen=True):
    """The first message on a connection, and again when something in it changes; `port` is where the sender listens.

    `version` is that of the protocol, major and minor: it has this form in every version, and nodes deal with each
    other where the first number is the same. `features` is what the sender can beyond that.
    """

    version: tuple[_Number, _Number] = (0, 0)
    agent: Annotated[str, Limits(max_length=100, pattern=PLAIN)] = ""
    roles: Annotated[tuple[Id, ...], Limits(max_length=16)] = ()
    topics: Annotated[
        tuple[Annotated[str, Limits(max_length=200, pattern=PLAIN)], ...], Limits(max_length=MOST_TOPICS + 1)
    ] = ()
    port: Annotated[int, Limits(ge=0, le=65535)] = 0
    features: Annotated[tuple[Id, ...], Limits(max_length=64)] = ()


class Topics:
    """Who subscribes to what."""

    def __init__(
        self, identity: Identity, transport: TcpTransport, messenger: Messenger, peers: Peers, agent: str
    ) -> None:
        self._identity, self._transport, self._messenger, self._peers = identity, transport, messenger, peers
        self._agent = agent
        self.roles: tuple[str, ...] = ()
        # what follows once a peer has said who it is, by its DID
        self.on_introduced: Callable[[str], None] = lambda _did: None
        messenger.register("hello", Hello, self._on_hello)
        transport.on_connect.append(self._meet)

    @property
    def subscribed(self) -> frozenset[str]:
        """The topics that this node subscribes to."""
        return self._messenger.topics

    async def set(self, *, roles: tuple[str, ...], topics: frozenset[str]) -> None:
        """Change what this node does and subscribes to, and tell the connected peers."""
        self.roles, self._messenger.topics = roles, topics
        connections = [self._transport.connection(peer.public_key) for peer in self._peers]
        async with trio.open_nursery() as nursery:
            for connection in connections:
                if connection is not None:
                    self._transport.supervisor.start_soon(nursery, "introduction", self._introduce_again, connection)
            nursery.cancel_scope.deadline = trio.current_time() + TELL_SECONDS

    def subscribers(self, topic: str) -> list[Peer]:
        """Return the connected peers that subscribe to a topic."""
        return [peer for peer in self._transport.connected() if topic in peer.topics]

    async def _introduce_again(self, connection: Connection) -> None:
        with suppress(PeerError):
            await self._introduce(connection)

    async def _introduce(self, connection: Connection) -> None:
        topics = tuple(sorted(self.subscribed))
        hello = Hello(PROTOCOL_VERSION, self._agent, self.roles, topics, self._transport.port, FEATURES)
        await self._messenger.insist(connection, "hello", hello)

    async def _meet(self, connection: Connection) -> None:
        """Introduce this node, and part from a peer of another major version once each side has heard why."""
        await self._introduce(connection)
        while connection.peer.version is None:
            await self._transport.wait_change(TELL_SECONDS)
        if is_other_version(connection.peer):
            await trio.sleep(PART_SECONDS)
            connection.close()

    async def _on_hello(self, message: Incoming) -> Answer | None:
        peer = self._peers.get(key_from_did(message.sender))
        if peer is None:
            return None
        hello: Hello = message.body
        connection = self._transport.connection(peer.public_key)
        peer.version, peer.agent = hello.version, hello.agent
        obstacle = peer.obstacle
        if obstacle is not None and is_other_version(peer):
            log.warning("%s (%s): %s", peer.peer_id, peer.agent or "unnamed", obstacle.message)
            self._transport.notify()
            raise RejectedMessageError(obstacle.message, code=obstacle.code, hint=obstacle.hint)
        peer.features = hello.features
        peer.roles, peer.topics = tuple(r for r in hello.roles if r in ROLES), hello.topics
        if connection is not None and hello.port:
            self._peers.note_address(peer, (connection.host, hello.port))
        if connection is not None and "clock" in hello.features and not peer.introduced:
            with trio.move_on_after(MEASURE_SECONDS):
                await connection.measured.wait()
            if peer.obstacle is not None:
                log.warning("%s: %s", peer.peer_id, peer.obstacle.message)
        if not peer.connected:
            return None
        is_new = not peer.introduced
        peer.introduced, peer.failures = True, 0
        await self._peers.save(peer)
        self._transport.notify()
        self._messenger.outbox.wake()
        if is_new:
            self.on_introduced(message.sender)
        return None
