"""Places for connections, and room for knowing peers: who costs nothing to make keeps nobody out."""

from pathlib import Path

import pytest
import trio

from nunet_cli import quantities
from nunet_cli.config import NetworkConfig
from nunet_cli.database.store import Store
from nunet_cli.network import peers as peers_module
from nunet_cli.network import places as places_module
from nunet_cli.network.addresses import neighbourhood
from nunet_cli.network.connection import PING, PONG
from nunet_cli.network.identity import Identity, new_identity
from nunet_cli.network.peers import FORGET_AFTER, MAX_STRANGERS, Peers
from nunet_cli.network.topics import Hello
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.records.messaging import PEERS, PeerRecord
from tests.conftest import config
from tests.security.test_hostile_peer import Hostile

CROWD = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")


@pytest.fixture
async def node(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with open_node(tmp_path, config()) as opened:
        yield opened


async def answers(peer: Hostile) -> bool:
    """Say whether a connection is open, and the node behind it alive."""
    try:
        with trio.fail_after(10):
            await peer.send(PING, b"in order")
            while (await peer.until(PONG))[1][:8] != b"in order":
                pass
    except trio.TooSlowError:
        raise
    except Exception:
        return False
    return True


async def introduced(node: Node, *, host: str = "127.0.0.1", identity: Identity | None = None) -> Hostile:
    peer = await Hostile.connect(node, identity, host)
    await peer.envelope("hello", Hello((1, 0), "x"))
    return peer


async def wait(condition: object, node: Node) -> None:
    with trio.fail_after(20):
        while not condition():  # type: ignore[operator]
            await node.ctx.transport.wait_change(0.05)


async def test_finished_handshakes_that_stay_keep_nobody_out(node: Node) -> None:
    """As many as there are places, from four addresses; then a newcomer, and somebody who is known."""
    friend = new_identity()
    node.ctx.peers.add(friend.public_key, None, "static")
    early = await introduced(node, host="127.0.0.6")
    crowd = [await Hostile.connect(node, host=host) for host in CROWD for _ in range(64)]
    await wait(lambda: len(node.ctx.transport.places) == 256, node)
    newcomer, known = await introduced(node), await introduced(node, identity=friend)
    assert await answers(newcomer)
    assert await answers(known)
    # who was there before the crowd is there still; the crowd's own gave way
    assert await answers(early)
    assert len(node.ctx.transport.places) == 256
    assert not await answers(crowd[0])
    # and a friend is not moved by any number of them
    for _ in range(2):
        crowd += [await Hostile.connect(node, host=host) for host in CROWD for _ in range(16)]
    assert await answers(known)
    assert await answers(newcomer)
    assert await answers(early)


async def test_handshakes_that_are_never_finished_keep_nobody_out(node: Node) -> None:
    port = node.ctx.transport.port
    waiting = [await trio.open_tcp_stream("127.0.0.1", port, local_address=CROWD[n % 4]) for n in range(350)]
    # at once: not when their time is over
    with trio.fail_after(node.ctx.config.network.handshake_timeout - 1):
        newcomer = await introduced(node)
        assert await answers(newcomer)
    assert len(node.ctx.transport._half_open) <= places_module.MAX_HALF_OPEN
    assert waiting


async def test_a_handshake_that_goes_on_is_not_ended_by_those_of_other_addresses(node: Node) -> None:
    slow = await trio.open_tcp_stream("127.0.0.1", node.ctx.transport.port, local_address="127.0.0.6")
    await wait(lambda: len(node.ctx.transport._half_open) == 1, node)
    for n in range(350):
        await trio.open_tcp_stream("127.0.0.1", node.ctx.transport.port, local_address=CROWD[n % 4])
    assert any(place == "127.0.0.6" for place in node.ctx.transport._half_open._waiting.values())
    assert slow


async def test_behind_one_address_a_newcomer_gets_the_place_of_who_is_idle_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places_module, "STAY", 0.3)
    narrow = config(network=NetworkConfig(listen="127.0.0.1:0", discovery=False, max_connections_per_address=2))
    async with open_node(tmp_path, narrow) as node:
        idle, busy = await introduced(node), await introduced(node)
        await wait(lambda: all(c.age > 0.3 for c in node.ctx.transport.places._taken), node)
        await busy.envelope("hello", Hello((1, 0), "x"))
        await wait(lambda: min(c.idle for c in node.ctx.transport.places._taken) < 0.3, node)
        newcomer = await introduced(node)
        assert await answers(newcomer)
        assert await answers(busy)
        assert not await answers(idle)


async def test_one_peer_has_a_few_places_only(node: Node) -> None:
    one, other = new_identity(), await introduced(node)
    many = [await Hostile.connect(node, one) for _ in range(12)]
    await wait(lambda: len(node.ctx.transport.places) == 1 + places_module.MAX_PER_PEER, node)
    assert await answers(many[-1])
    assert await answers(other)
    assert not await answers(many[0])


async def test_identities_with_a_hello_each_leave_nothing_and_push_out_nobody_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 40
    monkeypatch.setattr(peers_module, "MAX_STRANGERS", most)
    async with open_node(tmp_path / "a", config()) as node, open_node(tmp_path / "b", config()) as partner:
        static = node.ctx.peers.add(new_identity().public_key, ("127.0.0.1", 9), "static")
        assert static is not None
        await node.ctx.peers.save(static)
        await partner.add_peer(node.ctx.transport.describe())
        await wait(lambda: any(peer.introduced for peer in node.ctx.peers), node)
        await node.ctx.peers.note_useful(partner.identity.did)
        # a stranger that did nothing yet, but is honest
        quiet = await introduced(node, host="127.0.0.6")
        await wait(lambda: node.ctx.peers.find(quiet.identity.did).introduced, node)
        await trio.aclose_forcefully(quiet.channel.stream)
        before = list(node.ctx.store[PEERS].all())
        for number in range(3 * most):
            peer = await introduced(node, host=CROWD[number % 4])
            assert await answers(peer)
            await trio.aclose_forcefully(peer.channel.stream)
        await wait(lambda: len(node.ctx.transport.places) == 1, node)
        kept = {peer.did for peer in node.ctx.peers}
        assert len(kept) <= most + 3
        assert {static.did, partner.identity.did, quiet.identity.did} <= kept
        assert {row.id for row in node.ctx.store[PEERS].all()} == {row.id for row in before}
        assert {row.did for row in before} == {static.did, partner.identity.did}


def test_who_makes_identities_pushes_out_its_own(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        peers = Peers(store, new_identity().public_key)
        honest = [peers.add(new_identity().public_key, None, "inbound", host=f"10.0.0.{n}") for n in range(200)]
        told = [peers.add(new_identity().public_key, (f"10.1.0.{n}", 80), "mdns") for n in range(20)]
        for peer in honest:
            assert peer is not None
            peer.reached = True
            peers.seen(peer)
        for n in range(MAX_STRANGERS + 500):
            made = peers.add(new_identity().public_key, None, "inbound", host=f"2001:db8::{n:x}")
            assert made is not None
            made.reached = True
            peers.seen(made)
        assert sum(1 for _ in peers) == MAX_STRANGERS
        assert all(peer is not None and peers.get(peer.public_key) is peer for peer in honest)
        # names that nobody answered for are the first to go
        assert not any(peer is not None and peers.get(peer.public_key) is peer for peer in told)


async def test_what_mdns_says_displaces_no_address_that_a_peer_said_itself(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        peers, key = Peers(store, new_identity().public_key), new_identity().public_key
        peer = peers.add(key, None, "inbound", host="10.0.0.1")
        assert peer is not None
        peers.note_address(peer, ("10.0.0.1", 4000))
        peers.failed(peer)
        for n in range(50):
            peers.add(key, (f"10.9.9.{n}", 80), "mdns")
        assert peer.addresses == [("10.0.0.1", 4000)]
        assert peer.to_try[0] == ("10.0.0.1", 4000)
        assert len(peer.to_try) <= 2 * peers_module.MAX_ADDRESSES
        assert peer.record().addresses == ("10.0.0.1:4000",)


async def test_a_stranger_that_is_gone_is_dialled_a_few_times_and_forgotten(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        peers = Peers(store, new_identity().public_key)
        stranger, waited_for, friend = (
            peers.add(new_identity().public_key, ("10.0.0.1", 80), source)
            for source in ("inbound", "inbound", "static")
        )
        assert stranger is not None
        assert waited_for is not None
        assert friend is not None
        stranger.reached = waited_for.reached = True
        for _ in range(peers_module.ATTEMPTS):
            peers.failed(stranger)
            peers.failed(waited_for, is_wanted=True)
            peers.failed(friend)
        assert list(peers) == [waited_for, friend]


async def test_who_was_not_seen_for_weeks_is_forgotten_unless_static(tmp_path: Path) -> None:
    long_ago = quantities.format_time(quantities.now() - FORGET_AFTER * 1.1)
    with Store(tmp_path) as store:
        peers = Peers(store, new_identity().public_key)
        static, old, recent = (new_identity() for _ in range(3))
        for identity, source in ((static, "static"), (old, "inbound"), (recent, "inbound")):
            peer = peers.add(identity.public_key, ("10.0.0.1", 80), source)
            assert peer is not None
            peers.seen(peer)
        await peers.note_useful(static.did, old.did, recent.did)
        for identity in (static, old):
            peer = peers.get(identity.public_key)
            assert peer is not None
            peer.last_seen = peer.useful_at = long_ago
            await peers.save(peer)
        # what version 0.1 kept of somebody who only said hello
        stranger = new_identity()
        row = PeerRecord(stranger.peer_id, stranger.did, ("10.0.0.2:80",), last_seen=long_ago)
        await store.change(lambda t: t[PEERS].put(row))
        again = Peers(store, new_identity().public_key)
        assert sum(1 for _ in again) == 4
        await again.forget_old()
        assert {peer.did for peer in again} == {static.did, recent.did}
        assert {row.did for row in store[PEERS].all()} == {static.did, recent.did}


def test_a_network_is_one_place() -> None:
    assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::ffff:1%eth0") != neighbourhood("2001:db8:0:1::1")
    assert neighbourhood("::ffff:10.0.0.1") == neighbourhood("10.0.0.1") != neighbourhood("10.0.0.2")
    assert neighbourhood("provider-a") == "provider-a"
