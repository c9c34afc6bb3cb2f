"""Data connections: who gets one, what each side may say on it, and what neither can do to the other."""

import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from nunet_cli.config import NetworkConfig
from nunet_cli.errors import PeerError
from nunet_cli.network import blobs
from nunet_cli.network.data import connections, patience
from nunet_cli.network.data.patience import LEAST_RATE, THERE, Patience
from nunet_cli.network.data.sealed import BATCH, CHUNK, MAX_WORD, SealedStream
from nunet_cli.network.identity import new_identity
from nunet_cli.network.secure_channel import ChannelClosedError, ChannelKeys
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.records.identifiers import content_id
from tests.conftest import add_bytes, config
from tests.network.data_peer import DataPeer, Zeros

ONE, OTHER = os.urandom(32), os.urandom(32)
RECORD = CHUNK + 21


def sealed_pair() -> tuple[SealedStream, SealedStream, trio.StapledStream, trio.StapledStream]:
    left, right = memory_stream_pair()
    limiter = trio.CapacityLimiter(2)
    here = SealedStream(left, ChannelKeys(ONE, b"", OTHER, b"", b""), limiter)
    there = SealedStream(right, ChannelKeys(OTHER, b"", ONE, b"", b""), limiter)
    return here, there, left, right


def nothing(_: Any) -> None:
    pass


async def received(there: SealedStream, count: int) -> bytes:
    chunks: list[bytes] = []
    with trio.fail_after(20):
        await there.receive_data(count, chunks.append, nothing, nothing)
    return b"".join(chunks)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, BATCH + CHUNK, 3 * BATCH + 7])
async def test_words_and_data_of_any_size_arrive_in_order(tmp_path: Path, size: int) -> None:
    here, there, *_ = sealed_pair()
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)

    async def send() -> None:
        with (tmp_path / "file").open("rb") as file:
            await here.send_word(b"first")
            await here.send_file(file, size)
        await here.send_word(b"x" * MAX_WORD)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await there.receive_word() == b"first"
        assert await received(there, size) == data
        assert await there.receive_word() == b"x" * MAX_WORD


async def written(size: int = 3 * CHUNK) -> tuple[SealedStream, trio.StapledStream, bytes]:
    """Return a receiver, what its sender writes to, and what an honest sender has written, not sent yet."""
    here, there, left, right = sealed_pair()
    raw = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.send_file, Zeros(), size)
        while len(raw) < 24 + size + 21 * math.ceil(size / CHUNK):
            raw += await right.receive_some(2**20)
    return there, left, raw


async def refused(there: SealedStream, left: trio.StapledStream, raw: bytes, count: int = 3 * CHUNK) -> str:
    taken: list[bytes] = []
    await left.send_all(raw)
    await left.aclose()
    with pytest.raises(ChannelClosedError) as caught, trio.fail_after(20):
        await there.receive_data(count, taken.append, nothing, nothing)
    # what was taken before is what was sent, from its beginning
    assert b"".join(taken) == bytes(CHUNK) * len(taken)
    assert len(taken) < count / CHUNK
    return caught.value.code


async def test_a_stream_that_is_cut_short_is_not_whole() -> None:
    there, left, raw = await written()
    assert await refused(there, left, raw[:-1]) == "channel_closed"


async def test_chunks_in_another_order_are_refused() -> None:
    there, left, raw = await written()
    head, first, second, third = raw[:24], raw[24 : 24 + RECORD], raw[24 + RECORD : 24 + 2 * RECORD], raw[-RECORD:]
    assert await refused(there, left, head + first + third + second) == "tampered"


async def test_a_chunk_that_comes_twice_is_refused() -> None:
    there, left, raw = await written()
    first = raw[24 : 24 + RECORD]
    assert await refused(there, left, raw[: 24 + RECORD] + first + first) == "tampered"


@pytest.mark.parametrize("at", [0, 23, 28, 24 + RECORD + 100])
async def test_one_changed_bit_is_refused(at: int) -> None:
    there, left, raw = await written()
    spoilt = bytearray(raw)
    spoilt[at] ^= 1
    assert await refused(there, left, bytes(spoilt)) == "tampered"


@pytest.mark.parametrize("length", [0, 16, 17, 18, CHUNK, 2**32 - 1])
async def test_chunks_of_another_size_are_refused(length: int) -> None:
    there, left, raw = await written()
    spoilt = raw[:24] + struct.pack(">I", length) + raw[28:]
    assert await refused(there, left, spoilt) == "malformed"


async def test_a_word_is_no_data_and_data_is_no_word() -> None:
    here, there, *_ = sealed_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.send_word, b"x")
        with pytest.raises(ChannelClosedError, match="something else"):
            await received(there, 1)
    here, there, *_ = sealed_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.send_file, Zeros(), 1)
        with pytest.raises(ChannelClosedError, match="something else"):
            await there.receive_word()


@pytest.mark.parametrize("length", [0, 16, MAX_WORD + 18, 2**31])
async def test_a_word_of_an_odd_length_is_refused(length: int) -> None:
    _, there, left, _ = sealed_pair()
    await left.send_all(bytes(24) + struct.pack(">I", length) + bytes(2000))
    with pytest.raises(ChannelClosedError) as caught:
        await there.receive_word()
    assert caught.value.code == "malformed"


async def test_who_takes_nothing_is_given_up(autojump_clock: MockClock) -> None:
    here, _, left, _ = sealed_pair()

    async def never() -> None:
        await trio.sleep_forever()

    left.send_stream.send_all_hook = never  # type: ignore[attr-defined]
    with pytest.raises(ChannelClosedError, match="takes too little"):
        await here.send_word(b"hello")


# -- connections -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def node(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with open_node(tmp_path / "node", config()) as opened:
        yield opened


async def given(node: Node, data: bytes, did: str) -> str:
    cid, _ = await add_bytes(node.ctx.blobs, data)
    await node.ctx.store.change(lambda t: node.ctx.blobs.grant(t, cid, did))
    return cid


async def rejected(node: Node, code: str) -> None:
    with trio.fail_after(20):
        while not node.ctx.transport.rejections[code]:
            await trio.sleep(0.01)


async def is_closed(stream: trio.SocketStream) -> bool:
    with trio.fail_after(20):
        try:
            while await stream.receive_some(2**16):
                pass
        except trio.BrokenResourceError:
            pass
    return True


async def test_a_blob_is_for_those_it_was_granted_to_and_from_any_offset(node: Node) -> None:
    secret, _ = await add_bytes(node.ctx.blobs, b"secret output")
    async with trio.open_nursery() as nursery:
        peer = await nursery.start(DataPeer.connect, node)
        for wanted in (secret, "../identity.json", "bafkrei", ""):
            sealed = await peer.open()
            assert (await peer.ask(sealed, wanted)).error == "not here, or not for you"
            # who asks for what it may not have needs another connection to ask again
            assert await is_closed(peer.streams[sealed])
        await node.ctx.store.change(lambda t: node.ctx.blobs.grant(t, secret, peer.identity.did))
        sealed = await peer.open()
        for offset in (7, 0, 13):
            assert (await peer.ask(sealed, secret, offset)).size == 13
            assert await received(sealed, 13 - offset) == b"secret output"[offset:]
        assert (await peer.ask(sealed, secret, 14)).error == "it has fewer bytes"
        assert await is_closed(peer.streams[sealed])
        nursery.cancel_scope.cancel()
    assert not node.supervisor.failures


@pytest.mark.parametrize("offset", [2**80, -1, True, 1.5, math.nan, "0", None, [], {}, 2**60 + 1])
async def test_an_odd_offset_is_refused(node: Node, offset: Any) -> None:
    async with trio.open_nursery() as nursery:
        peer = await nursery.start(DataPeer.connect, node)
        cid = await given(node, b"output", peer.identity.did)
        sealed = await peer.open()
        with pytest.raises(ChannelClosedError):
            await peer.ask(sealed, cid, offset)
        await rejected(node, "malformed")
        # and it goes on for others
        sealed = await peer.open()
        assert (await peer.ask(sealed, cid)).size == 6
        nursery.cancel_scope.cancel()
    assert not node.supervisor.failures


async def test_who_has_no_connection_for_messages_gets_none_for_data(node: Node) -> None:
    stranger = DataPeer(node, new_identity(), None)  # type: ignore[arg-type]
    stream, _ = await stranger.dial()
    assert await is_closed(stream)
    await rejected(node, "unwanted_data")


async def test_who_says_nothing_is_closed(tmp_path: Path) -> None:
    hasty = config(network=NetworkConfig(listen="127.0.0.1:0", discovery=False, handshake_timeout=1))
    async with open_node(tmp_path, hasty) as node, trio.open_nursery() as nursery:
        peer = await nursery.start(DataPeer.connect, node)
        stream, _ = await peer.dial()
        assert await is_closed(stream)
        assert node.ctx.transport.rejections["handshake"] == 1
        nursery.cancel_scope.cancel()


async def test_a_ticket_that_nobody_gave_is_refused(node: Node) -> None:
    async with trio.open_nursery() as nursery:
        peer = await nursery.start(DataPeer.connect, node)
        sealed = await peer.open(ticket="ab" * 16)
        assert await is_closed(peer.streams[sealed])
        await rejected(node, "unwanted_data")
        nursery.cancel_scope.cancel()


async def test_a_ticket_is_for_who_was_asked(node: Node) -> None:
    async with trio.open_nursery() as nursery:
        asked, other = [await nursery.start(DataPeer.connect, node) for _ in range(2)]
        nursery.start_soon(node.ctx.blobs.fetch, asked.identity.did, content_id(b"wanted"), 6)
        with trio.fail_after(20):
            wanted = await asked.wanted_once()
        sealed = await other.open(wanted["ticket"])
        assert await is_closed(other.streams[sealed])
        await rejected(node, "unwanted_data")
        nursery.cancel_scope.cancel()


async def test_who_was_not_dialled_cannot_have_itself_dialled(node: Node) -> None:
    async with trio.open_nursery() as nursery:
        peer = await nursery.start(DataPeer.connect, node)
        cid = await given(node, b"output", peer.identity.did)
        await peer.want("ab" * 16, cid)
        await rejected(node, "unwanted_data")
        nursery.cancel_scope.cancel()


async def test_a_peer_has_so_many_connections_and_an_idle_one_gives_way(node: Node) -> None:
    async with trio.open_nursery() as nursery:
        peer = await nursery.start(DataPeer.connect, node)
        cid = await given(node, b"x" * 8 * BATCH, peer.identity.did)
        idle = await peer.open()
        assert (await peer.ask(idle, cid, 8 * BATCH)).size == 8 * BATCH
        # these ask, and then read nothing
        for _ in range(connections.MAX_GIVEN - 1):
            await peer.ask(await peer.open(), cid)
        await peer.ask(await peer.open(), cid)
        assert await is_closed(peer.streams[idle])
        assert node.ctx.blobs.is_serving(peer.identity.did)
        stream, _ = await peer.dial()
        assert await is_closed(stream)
        await rejected(node, "too_many_connections")
        nursery.cancel_scope.cancel()


async def test_who_dials_and_says_nothing_keeps_its_place_from_nobody(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SHARE", 10**6)
    data = node.ctx.blobs._data
    assert data is not None
    async with trio.open_nursery() as nursery:
        peer = await nursery.start(DataPeer.connect, node)
        cid = await given(node, b"x" * BATCH, peer.identity.did)
        silent = []
        for _ in range(connections.LEAST_PLACES // connections.MAX_GIVEN):
            other = await nursery.start(DataPeer.connect, node)
            silent += [(await other.dial())[0] for _ in range(connections.MAX_GIVEN)]
        with trio.fail_after(20):
            while len(data._given) < connections.LEAST_PLACES:
                await trio.sleep(0.01)
        # the one that has been silent for longest gives way
        assert (await peer.ask(await peer.open(), cid)).size == BATCH
        assert await is_closed(silent[0])
        assert node.ctx.transport.rejections["too_many_connections"] == 0
        # and none is silent for long
        began = trio.current_time()
        assert await is_closed(silent[-1])
        assert trio.current_time() - began < connections.FIRST_WORD + 1
        nursery.cancel_scope.cancel()


async def test_either_side_fetches_whoever_dialled_and_both_at_once(tmp_path: Path) -> None:
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        data = os.urandom(3 * BATCH + 5)
        of_a, of_b = await given(a, data, b.identity.did), await given(b, data[::-1], a.identity.did)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(b.ctx.blobs.fetch, a.identity.did, of_a, len(data))
                nursery.start_soon(a.ctx.blobs.fetch, b.identity.did, of_b, len(data))
        assert b.ctx.blobs.path(of_a).read_bytes() == data
        assert a.ctx.blobs.path(of_b).read_bytes() == data[::-1]
        # neither had to dial where nobody had been dialled before
        assert [c.dialled_at is None for c in a.ctx.transport._connections[b.identity.public_key]] == [True]


async def test_one_connection_serves_one_blob_after_the_other(tmp_path: Path) -> None:
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        accepted: list[Any] = []
        accept = a.ctx.transport.on_data
        assert accept is not None

        async def count(*arguments: Any) -> None:
            accepted.append(arguments)
            await accept(*arguments)

        a.ctx.transport.on_data = count
        for number in range(10):
            data = b"%d" % number * 1000
            cid = await given(a, data, b.identity.did)
            path = await b.ctx.blobs.fetch(a.identity.did, cid, len(data))
            assert path.read_bytes() == data
        assert len(accepted) == 1


async def test_no_more_than_a_few_are_kept_open_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_IDLE", 0)
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        for data in (b"one", b"other"):
            cid = await given(a, data, b.identity.did)
            await b.ctx.blobs.fetch(a.identity.did, cid, len(data))
            assert a.ctx.blobs._data is not None
            with trio.fail_after(20):
                while a.ctx.blobs._data._given:
                    await trio.sleep(0.01)


async def test_a_connection_that_idles_ends_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ASKER_IDLE", 0.1)
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        cid = await given(a, b"data", b.identity.did)
        await b.ctx.blobs.fetch(a.identity.did, cid, 4)
        ours, theirs = a.ctx.blobs._data, b.ctx.blobs._data
        assert ours is not None
        assert theirs is not None
        with trio.fail_after(20):
            while ours._given or theirs._idle:
                await trio.sleep(0.01)


async def test_a_part_that_was_spoilt_here_is_fetched_anew(tmp_path: Path) -> None:
    data = os.urandom(BATCH)
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        cid = await given(a, data, b.identity.did)
        part = b.ctx.blobs.part(cid, a.identity.did)
        # as after a power cut: the file has its length, and not all of its bytes
        part.path.write_bytes(bytes(CHUNK))
        path = await b.ctx.blobs.fetch(a.identity.did, cid, len(data))
        assert path.read_bytes() == data


# -- patience ----------------------------------------------------------------------------------------------------------


async def test_who_is_away_is_waited_for_longer_than_who_sends_nothing(autojump_clock: MockClock) -> None:
    away, there = Patience(600), Patience(600)
    await trio.sleep(THERE + 1)
    away.wait(is_there=False)
    there.wait(is_there=True)
    assert (away.is_over, there.is_over) == (False, True)
    await trio.sleep(570)
    away.wait(is_there=False)
    assert away.is_over


@pytest.mark.parametrize(("share", "is_over"), [(0.9, True), (1.1, False)])
async def test_a_least_rate_is_asked_of_who_is_there(autojump_clock: MockClock, share: float, is_over: bool) -> None:
    waiting = Patience(600)
    for _ in range(100):
        await trio.sleep(5)
        waiting.earn(int(5 * LEAST_RATE * share))
        waiting.wait(is_there=True)
    assert waiting.is_over == is_over


async def test_who_lets_a_transfer_begin_and_sends_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "STALL_TIMEOUT", 0.3)
    monkeypatch.setattr(patience, "THERE", 0.6)
    async with open_node(tmp_path, config()) as node, trio.open_nursery() as nursery:
        peer = await nursery.start(DataPeer.connect, node)

        async def promise() -> None:
            while True:
                sealed, _ = await peer.asked()
                await peer.answer(sealed, size=10 * CHUNK)
                # it is there: what keeps it from sending is not the line
                await peer.sign_of_life()

        nursery.start_soon(promise)
        begin = trio.current_time()
        with pytest.raises(PeerError) as caught, trio.fail_after(20):
            await node.ctx.blobs.fetch(peer.identity.did, content_id(b"never"), 10 * CHUNK, patience=600)
        assert caught.value.code == "transfer_stalled"
        assert trio.current_time() - begin < 10
        nursery.cancel_scope.cancel()
