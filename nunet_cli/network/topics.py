"""Introductions and topics: what each peer subscribes to and does, and publication to every subscriber."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Annotated

import trio
from msgspec import Meta, Struct

from nunet_cli.errors import PeerError
from nunet_cli.network.connection import Connection
from nunet_cli.network.identity import Identity
from nunet_cli.network.messenger import Answer, Incoming, Messenger
from nunet_cli.network.peers import Peer, Peers
from nunet_cli.network.transport import TcpTransport
from nunet_cli.records.fields import PLAIN, Id
from nunet_cli.records.identifiers import key_from_did

log = logging.getLogger("nunet.topics")

BIDS = "/nunet/bids"
PROTOCOL_VERSION = 1
TELL_SECONDS = 5.0
ROLES = ("provider", "contract-database", "oracle")


class Hello(Struct, forbid_unknown_fields=True, frozen=True):
    """The first message on a connection, and again when something in it changes; `port` is where the sender listens."""

    protocol: Annotated[int, Meta(ge=0, lt=2**31)]
    agent: Annotated[str, Meta(max_length=100, pattern=PLAIN)]
    roles: Annotated[tuple[Id, ...], Meta(max_length=16)]
    topics: Annotated[tuple[Annotated[str, Meta(max_length=200, pattern=PLAIN)], ...], Meta(max_length=64)]
    port: Annotated[int, Meta(ge=0, le=65535)]


class Topics:
    """Who subscribes to what."""

    def __init__(
        self, identity: Identity, transport: TcpTransport, messenger: Messenger, peers: Peers, agent: str
    ) -> None:
        self._identity, self._transport, self._messenger, self._peers = identity, transport, messenger, peers
        self._agent = agent
        self.roles: tuple[str, ...] = ()
        messenger.register("hello", Hello, self._on_hello, ephemeral=True)
        transport.on_connect.append(self._introduce)

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
        hello = Hello(PROTOCOL_VERSION, self._agent, self.roles, tuple(sorted(self.subscribed)), self._transport.port)
        await self._messenger.insist(connection, "hello", hello)

    async def _on_hello(self, message: Incoming) -> Answer | None:
        peer = self._peers.get(key_from_did(message.sender))
        if peer is None:
            return None
        hello: Hello = message.body
        peer.roles, peer.topics = tuple(r for r in hello.roles if r in ROLES), hello.topics
        peer.introduced = True
        connection = self._transport.connection(peer.public_key)
        if connection is not None and hello.port:
            self._peers.add(peer.public_key, (connection.host, hello.port), peer.source)
        await self._peers.save(peer)
        self._transport.notify()
        self._messenger.outbox.wake()
        return None
