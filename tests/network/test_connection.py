"""What a connection sends: at once where it can, in order always."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from nunet_cli.errors import PeerError
from nunet_cli.network.connection import Connection
from nunet_cli.network.identity import new_identity
from nunet_cli.network.links import TcpLinks
from nunet_cli.network.peers import Peer
from nunet_cli.network.secure_channel import SecureChannel, network_identifier, offer_handshake, take_handshake

NETWORK = network_identifier("test")
LIMIT = 2**17
KIND = 200


@asynccontextmanager
async def opened(writing: bool = True) -> AsyncIterator[tuple[Connection, SecureChannel, trio.Nursery]]:
    """Give a connection over TCP whose frames are written, or only queued, the channel at its other end, a nursery."""
    ours, theirs = new_identity(), new_identity()
    taken: list[SecureChannel] = []
    async with trio.open_nursery() as nursery:

        async def accept(stream: trio.abc.Stream, _: str) -> None:
            _, keys = await take_handshake(stream, (NETWORK,), theirs)
            taken.append(SecureChannel(stream, keys, LIMIT))
            await trio.sleep_forever()

        links = TcpLinks()
        port = await nursery.start(links.serve, "127.0.0.1", 0, accept)
        stream = await links.connect("127.0.0.1", port)
        keys = await offer_handshake(stream, NETWORK, ours, theirs.public_key)
        channel = SecureChannel(stream, keys, LIMIT)
        connection = Connection(channel, Peer(theirs.public_key), "127.0.0.1", 100, links)
        if writing:
            nursery.start_soon(connection.write_forever)
        with trio.fail_after(20):
            while not taken:
                await trio.sleep(0.01)
            yield connection, taken[0], nursery
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_what_a_peer_does_not_read_at_once_arrives_in_order() -> None:
    count, size = 200, 60_000
    async with opened() as (connection, other, nursery):

        async def send() -> None:
            for number in range(count):
                # large ones and small ones in turn: some go at once, some in part, some wait
                await connection.send(KIND, number.to_bytes(4, "big") + bytes(size if number % 2 else 0))

        nursery.start_soon(send)
        # nothing is read until the connection takes no more
        while not connection.is_full(60_000):
            await trio.sleep(0.01)
        for number in range(count):
            frame = await other.receive_frame()
            assert frame[1:5] == number.to_bytes(4, "big")
            assert len(frame) == 5 + (size if number % 2 else 0)


async def test_what_is_over_the_limit_is_not_sent_and_ends_nothing() -> None:
    async with opened(writing=False) as (connection, other, nursery):
        # before anybody writes, so that it would be queued, and after, so that it would be written at once
        for payload in (b"first", b"second"):
            with pytest.raises(PeerError, match="over the limit"):
                await connection.send(KIND, bytes(LIMIT))
            await connection.send(KIND, payload)
            if payload == b"first":
                nursery.start_soon(connection.write_forever)
            assert await other.receive_frame() == bytes([KIND]) + payload
            await trio.testing.wait_all_tasks_blocked()


async def test_nothing_is_sent_once_it_is_closed() -> None:
    async with opened() as (connection, _, _):
        connection.close()
        with pytest.raises(PeerError, match="is closed"):
            await connection.send(KIND, b"late")
