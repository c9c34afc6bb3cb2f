"""Content-addressed transfer between two nodes: whole, checked, and resumed after a cut."""

import os
from pathlib import Path

import pytest
import trio

from nunet_cli.errors import NotFoundError, PeerError, RejectedMessageError
from nunet_cli.network import blobs
from nunet_cli.network.data.sealed import BATCH, CHUNK
from nunet_cli.network.identity import new_identity
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.records.identifiers import content_id
from tests.conftest import add_bytes, config
from tests.network.data_peer import DataPeer, Zeros

SIZE = 20 * BATCH + 17


async def give(node: Node, data: bytes, receiver: Node) -> str:
    cid, _ = await add_bytes(node.ctx.blobs, data)
    await node.ctx.store.change(lambda t: node.ctx.blobs.grant(t, cid, receiver.identity.did))
    return cid


async def test_a_blob_arrives_whole_with_progress(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        cid = await give(a, data, b)
        seen: list[int] = []
        path = await b.ctx.blobs.fetch(a.identity.did, cid, SIZE, seen.append)
        assert path.read_bytes() == data
        assert seen == sorted(seen)
        assert seen[-1] == SIZE


async def test_a_transfer_that_was_cut_goes_on_where_it_was(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        cid = await give(a, data, b)
        arrived: list[int] = []

        def cut(count: int) -> None:
            arrived.append(count)
            if len(arrived) == 5:
                # of the giver's, as a line that is cut
                [link] = a.ctx.blobs._data._given  # type: ignore[union-attr]
                link.scope.cancel()

        path = await b.ctx.blobs.fetch(a.identity.did, cid, SIZE, cut)
        assert path.read_bytes() == data
        # nothing was sent twice: the count never went back
        assert arrived == sorted(set(arrived))


async def test_a_peer_that_was_away_is_waited_for(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    async with open_node(tmp_path / "b", config()) as b:
        async with open_node(tmp_path / "a", config()) as a:
            await b.add_peer(a.ctx.transport.describe())
            cid = await give(a, data, b)
            with trio.fail_after(20):
                while not a.ctx.transport.connected():
                    await a.ctx.transport.wait_change(0.1)
            # whom it has a contract with, it dials again after a restart
            await a.ctx.peers.note_useful(b.identity.did)
        async with trio.open_nursery() as nursery:
            began = trio.Event()

            async def fetch() -> None:
                began.set()
                path = await b.ctx.blobs.fetch(a.identity.did, cid, SIZE, patience=30)
                assert path.read_bytes() == data
                nursery.cancel_scope.cancel()

            nursery.start_soon(fetch)
            await began.wait()
            async with open_node(tmp_path / "a", config()):
                with trio.fail_after(20):
                    await trio.sleep_forever()


async def test_a_peer_that_stays_away_is_given_up(tmp_path: Path) -> None:
    async with open_node(tmp_path / "b", config()) as b:
        with pytest.raises(PeerError) as caught:
            with trio.fail_after(30):
                await b.ctx.blobs.fetch(new_identity().did, content_id(b"gone"), 4, patience=0.2)
        assert caught.value.code == "transfer_stalled"


async def test_what_is_not_what_was_asked_for_is_refused_and_thrown_away(tmp_path: Path) -> None:
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        cid = await give(a, b"honest", b)
        a.ctx.blobs.path(cid).write_bytes(b"liar!!")
        with pytest.raises(RejectedMessageError) as caught:
            await b.ctx.blobs.fetch(a.identity.did, cid, 6)
        assert caught.value.code == "wrong_content"
        assert not list((tmp_path / "b" / "blobs" / "partial").iterdir())


async def test_what_has_another_size_than_was_announced_is_refused(tmp_path: Path) -> None:
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        cid = await give(a, b"x" * 1000, b)
        for size in (10, 1001):
            with pytest.raises(RejectedMessageError, match=f"and not {size}") as caught:
                await b.ctx.blobs.fetch(a.identity.did, cid, size)
            assert caught.value.code == "wrong_content"


async def test_a_blob_that_is_not_given_is_an_error_of_the_peers(tmp_path: Path) -> None:
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        with pytest.raises(PeerError, match="not here, or not for you"):
            await b.ctx.blobs.fetch(a.identity.did, content_id(b"nowhere"), 7)
        with pytest.raises(NotFoundError):
            await b.ctx.blobs.fetch(a.identity.did, "../../etc/passwd", 7)


async def test_two_who_want_the_same_blob_at_once_both_get_it(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        cid = await give(a, data, b)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(b.ctx.blobs.fetch, a.identity.did, cid, SIZE)
        assert b.ctx.blobs.path(cid).read_bytes() == data


async def test_who_names_what_another_brought_has_to_bring_it_as_well(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    async with (
        open_node(tmp_path / "a", config()) as a,
        open_node(tmp_path / "b", config()) as b,
        open_node(tmp_path / "c", config()) as c,
    ):
        for other in (a, c):
            await b.add_peer(other.ctx.transport.describe())
        cid = await give(a, data, b)
        await b.ctx.blobs.fetch(a.identity.did, cid, SIZE)
        # that it is here is nothing to who has not got it
        with pytest.raises(PeerError, match="not here, or not for you"), trio.fail_after(20):
            await b.ctx.blobs.fetch(c.identity.did, cid, SIZE)
        # who has brought it need not do so again, also after a restart; and who did not is not noted
        await b.ctx.store.change(lambda t: b.ctx.blobs.note_brought(t, (cid,), a.identity.did))
        await b.ctx.store.change(lambda t: b.ctx.blobs.note_brought(t, (cid,), c.identity.did))
        b.ctx.blobs._brought.clear()
        a.ctx.blobs.path(cid).unlink()
        with trio.fail_after(20):
            assert (await b.ctx.blobs.fetch(a.identity.did, cid, SIZE)).read_bytes() == data
        with pytest.raises(PeerError, match="not here, or not for you"), trio.fail_after(20):
            await b.ctx.blobs.fetch(c.identity.did, cid, SIZE)


async def test_what_one_sends_does_not_spoil_what_another_one_has(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        cid = await give(a, data, b)
        async with trio.open_nursery() as nursery:
            hostile = await nursery.start(DataPeer.connect, b)

            async def spoil() -> None:
                sealed, _ = await hostile.asked()
                await hostile.answer(sealed, size=SIZE)
                await sealed.send_file(Zeros(), CHUNK)
                await hostile.close(sealed)
                sealed, offset = await hostile.asked()
                assert offset == CHUNK
                await hostile.answer(sealed, error="no more")

            nursery.start_soon(spoil)
            with pytest.raises(PeerError, match="no more"):
                await b.ctx.blobs.fetch(hostile.identity.did, cid, SIZE)
            with trio.fail_after(20):
                path = await b.ctx.blobs.fetch(a.identity.did, cid, SIZE)
            assert path.read_bytes() == data
            nursery.cancel_scope.cancel()
        [left] = (tmp_path / "b" / "blobs" / "partial").iterdir()
        os.utime(left, (0, 0))
        # what is not needed any more goes, although the blob stays
        assert b.ctx.blobs.unnamed({cid}) == [(left.name, CHUNK)]


async def test_who_sends_slowly_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "OTHERS_TURN", 0.2)
    data = os.urandom(SIZE)
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        cid = await give(a, data, b)
        async with trio.open_nursery() as nursery:
            hostile = await nursery.start(DataPeer.connect, b)
            nursery.start_soon(b.ctx.blobs.fetch, hostile.identity.did, cid, SIZE)
            with trio.fail_after(20):
                # it answers no more
                await hostile.asked()
                path = await b.ctx.blobs.fetch(a.identity.did, cid, SIZE)
            assert path.read_bytes() == data
            nursery.cancel_scope.cancel()


async def test_many_blobs_at_once_wait_for_their_turn(tmp_path: Path) -> None:
    async with open_node(tmp_path / "a", config()) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        blobs = [os.urandom(3 * CHUNK) for _ in range(12)]
        cids = [await give(a, data, b) for data in blobs]
        async with trio.open_nursery() as nursery:
            for cid in cids:
                nursery.start_soon(b.ctx.blobs.fetch, a.identity.did, cid, 3 * CHUNK)
        assert [b.ctx.blobs.path(cid).read_bytes() for cid in cids] == blobs
