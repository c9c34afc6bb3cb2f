import pytest
import trio
import trio.testing

from nunet_cli.errors import RejectedMessageError
from nunet_cli.network.identity import new_identity
from nunet_cli.network.secure_channel import (
    ChannelClosedError,
    HandshakeError,
    SecureChannel,
    network_identifier,
    take_handshake,
)
from tests.conftest import open_client

NETWORK = network_identifier("test")
CLIENT, SERVER = new_identity(), new_identity()
LIMIT = 2**17


async def channels(
    *, client_network: bytes = NETWORK, expected: bytes = SERVER.public_key
) -> tuple[SecureChannel, SecureChannel, trio.StapledStream, trio.StapledStream]:
    left, right = trio.testing.memory_stream_pair()
    found: dict[str, SecureChannel] = {}

    async def client() -> None:
        try:
            found["client"] = await open_client(left, client_network, CLIENT, expected, LIMIT)
        except HandshakeError:
            await left.aclose()
            raise

    async def server() -> None:
        try:
            _, keys = await take_handshake(right, [NETWORK], SERVER)
            found["server"] = SecureChannel(right, keys, LIMIT)
        except HandshakeError:
            await right.aclose()
            raise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        nursery.start_soon(server)
    return found["client"], found["server"], left, right


async def test_frames_of_any_size_arrive_whole_and_both_know_each_other() -> None:
    client, server, *_ = await channels()
    assert client.peer_key == SERVER.public_key
    assert server.peer_key == CLIENT.public_key
    for size in (0, 1, 4092, 4096, 4097, 100_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_frames, b"x" * size)
            assert await server.receive_frame() == b"x" * size
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_frames, b"back")
        assert await client.receive_frame() == b"back"


async def test_another_network_and_another_server_are_refused() -> None:
    for options in ({"client_network": network_identifier("test", "secret")}, {"expected": new_identity().public_key}):
        with pytest.raises(BaseExceptionGroup) as caught:
            await channels(**options)  # type: ignore[arg-type]
        assert caught.value.subgroup(HandshakeError) is not None


async def test_a_changed_byte_ends_the_channel() -> None:
    client, server, left, _ = await channels()
    original = left.send_stream.send_all

    async def tamper(data: bytes) -> None:
        await original(data[:-1] + bytes([data[-1] ^ 1]))

    left.send_stream.send_all = tamper  # type: ignore[method-assign]
    await client.send_frames(b"money")
    with pytest.raises(ChannelClosedError) as caught:
        await server.receive_frame()
    assert caught.value.code == "tampered"


async def test_a_frame_over_the_limit_is_neither_sent_nor_taken() -> None:
    client, server, *_ = await channels()
    with pytest.raises(RejectedMessageError):
        await client.send_frames(b"before it", b"x" * (LIMIT + 1))
    # the other side is not told of a cut
    await client.send_frames(b"one", b"two")
    assert [await server.receive_frame() for _ in range(2)] == [b"one", b"two"]
    client._max_frame = LIMIT * 2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_frames, b"x" * (LIMIT + 1))
        with pytest.raises(ChannelClosedError) as caught:
            await server.receive_frame()
        assert caught.value.code == "frame_too_large"
        nursery.cancel_scope.cancel()


async def test_a_goodbye_is_told_from_a_cut() -> None:
    client, server, left, _ = await channels()
    await client.goodbye()
    with pytest.raises(ChannelClosedError, match="closed the connection"):
        await server.receive_frame()
    client, server, left, _ = await channels()
    await left.aclose()
    with pytest.raises(ChannelClosedError, match="cut"):
        await server.receive_frame()
