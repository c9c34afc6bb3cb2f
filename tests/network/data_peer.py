"""A peer with a key that has a connection for messages with a node, and does with those for data what a test wants."""

from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import trio

from nunet_cli.network.blobs import Answer, Get
from nunet_cli.network.connection import DATA_WANTED, PING
from nunet_cli.network.data.connections import Introduction
from nunet_cli.network.data.sealed import SealedStream
from nunet_cli.network.identity import Identity, new_identity
from nunet_cli.network.secure_channel import (
    ChannelKeys,
    SecureChannel,
    data_identifier,
    network_identifier,
    offer_handshake,
)
from nunet_cli.node.node import Node
from tests.conftest import open_client

NETWORK = network_identifier("nunet")


class Zeros(io.RawIOBase):
    """A file without an end."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


class DataPeer:
    """Such a peer, on loopback."""

    def __init__(self, node: Node, identity: Identity, channel: SecureChannel) -> None:
        self.node, self.identity, self.channel = node, identity, channel
        self.wanted, self._wanted = trio.open_memory_channel[dict[str, Any]](100)
        self.streams: dict[SealedStream, trio.SocketStream] = {}

    @classmethod
    async def connect(
        cls, node: Node, identity: Identity | None = None, *,
        task_status: trio.TaskStatus[DataPeer] = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        """Open the connection for messages, and read it for as long as it lasts."""
        identity = identity or new_identity()
        stream = await trio.open_tcp_stream("127.0.0.1", node.ctx.transport.port)
        peer = cls(node, identity, await open_client(stream, NETWORK, identity, node.identity.public_key, 2**24))
        task_status.started(peer)
        while True:
            frame = await peer.channel.receive_frame()
            if frame[0] == DATA_WANTED:
                await peer.wanted.send(json.loads(frame[1:]))

    async def dial(self) -> tuple[trio.SocketStream, ChannelKeys]:
        """Dial for data, and say nothing."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.node.ctx.transport.port)
        return stream, await offer_handshake(
            stream, data_identifier(NETWORK), self.identity, self.node.identity.public_key
        )

    async def open(self, ticket: str = "") -> SealedStream:
        """Dial for data; with a ticket as who gives."""
        stream, keys = await self.dial()
        sealed = SealedStream(stream, keys, trio.CapacityLimiter(1))
        self.streams[sealed] = stream
        await sealed.send_word(msgspec.json.encode(Introduction(ticket)))
        return sealed

    async def ask(self, sealed: SealedStream, cid: str, offset: Any = 0) -> Answer:
        """Ask for something, and return the answer; the data follows."""
        await sealed.send_word(json.dumps({"cid": cid, "offset": offset}).encode())
        with trio.fail_after(20):
            return msgspec.json.decode(await sealed.receive_word(), type=Answer)

    async def asked(self) -> tuple[SealedStream, int]:
        """Wait until the node wants something of this peer; return what it asks over, and the offset."""
        wanted = await self._wanted.receive()
        sealed = await self.open(wanted["ticket"])
        return sealed, msgspec.json.decode(await sealed.receive_word(), type=Get).offset

    async def wanted_once(self) -> dict[str, Any]:
        """Wait until the node wants something of this peer; return what it said."""
        return await self._wanted.receive()

    async def want(self, ticket: str, cid: str) -> None:
        """Ask the node to dial this peer."""
        payload = json.dumps({"ticket": ticket, "cid": cid}).encode()
        await self.channel.send_frames(bytes([DATA_WANTED]) + payload)

    async def sign_of_life(self) -> None:
        """Say on the connection for messages that it is there."""
        await self.channel.send_frames(bytes([PING]) + bytes(8))

    async def answer(self, sealed: SealedStream, **fields: Any) -> None:
        """Answer what was asked."""
        await sealed.send_word(json.dumps(fields).encode())

    async def close(self, sealed: SealedStream) -> None:
        """Cut a data connection."""
        await self.streams.pop(sealed).aclose()
