"""Frames that no honest peer sends: each is refused and counted, costs its sender, and the node goes on."""

import json
from pathlib import Path

import msgspec
import pytest
import trio

from nunet_cli.config import NetworkConfig
from nunet_cli.errors import UsageError
from nunet_cli.network.addresses import parse_address
from nunet_cli.network.connection import ACK, DATA_WANTED, ENVELOPE, PONG, RELAY, RELAYED
from nunet_cli.network.envelope import seal
from nunet_cli.network.identity import new_identity
from nunet_cli.network.topics import BIDS
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.records.messages import JobSync
from tests.conftest import config
from tests.security.test_hostile_peer import Hostile

BODY = JobSync("contract")


@pytest.fixture
async def node(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with open_node(tmp_path, config()) as opened:
        await opened.subscribe(BIDS)
        yield opened


async def answers_others(node: Node) -> None:
    good = await Hostile.connect(node)
    await good.envelope("job_sync", BODY)
    assert (await good.until(ENVELOPE))[0] == ENVELOPE
    assert not node.supervisor.failures


@pytest.mark.parametrize(
    "address",
    ["a..b:80", "a.-b:80", ".:80", "x" * 64 + ":80", "ünï\udc80:80", "\u2488com:80", "host:\u00b2", "host:0", "host:65536",
     "host:-1", "host", ":80", "1.2.3:4:5:80", "[::1:80:", "fe80::1%\n:80", "a b:80", "a\x00b:80", "a\n:80", "host:80\n",
     "[host]]:80", "http://host:80", "x." * 130 + "x:80", "host:" + "9" * 5000],
)  # fmt: skip
def test_what_is_no_address_is_not_one(address: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        parse_address(address)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("10.0.0.7:4000", "10.0.0.7", 4000), ("[2001:db8::1]:1", "2001:db8::1", 1), ("::1:65535", "::1", 65535),
     ("fe80::1%eth0:9", "fe80::1%eth0", 9), ("provider-a.lab.example.:80", "provider-a.lab.example.", 80),
     ("my_node:4000", "my_node", 4000)],
)  # fmt: skip
def test_what_is_an_address_is_one(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize("origin", ["a..b:80", "host:²", "h" * 64 + ":80", "x:0"])
async def test_a_relayed_address_that_is_none_is_refused_and_never_dialled(node: Node, origin: str) -> None:
    hostile, author = await Hostile.connect(node), new_identity()
    _, raw = seal(author, BIDS, "bid_request", BODY, lifetime=30, at=(origin,))
    await hostile.send(RELAY, json.dumps({"hops": 2}).encode() + b"\n" + raw)
    await hostile.rejected("malformed")
    assert node.ctx.peers.find(author.did) is None
    await answers_others(node)


async def test_a_peer_whose_address_cannot_be_resolved_is_a_failed_dial(node: Node) -> None:
    # addresses also come from the store of an earlier version
    peer = node.ctx.peers.add(new_identity().public_key, ("127.0.0.1", 1), "static")
    assert peer is not None
    peer.addresses = [("a..b", 80), ("\udc80", 80)]
    node.ctx.transport.dial_soon()
    with trio.fail_after(20):
        while not peer.failures:
            await trio.sleep(0.01)
    good = await Hostile.connect(node)
    await good.envelope("job_sync", BODY)
    assert (await good.until(ENVELOPE))[0] == ENVELOPE


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(ACK, b""), (ACK, b"\xff" * 100), (ACK, b"id \x1b[2J"), (ACK, b"i" * 2**16), (DATA_WANTED, b""),
     (DATA_WANTED, b"{}"), (DATA_WANTED, b'{"ticket":"../x","cid":"x"}'), (DATA_WANTED, b"[" * 5000), (RELAYED, b'{"id":"x","count":1e99}'), (RELAYED, b"\xff"), (RELAY, b"\xff\n"),
     (RELAY, b"[" * 5000), (ENVELOPE, b""), (ENVELOPE, b"\0" * 64 + b"[" * 5000), (ENVELOPE, b"\0" * 64 + b"\xff")],
)  # fmt: skip
async def test_what_does_not_fit_its_kind_is_refused(node: Node, kind: int, payload: bytes) -> None:
    hostile = await Hostile.connect(node)
    await hostile.send(kind, payload)
    await hostile.rejected("malformed")
    await answers_others(node)


async def test_an_empty_frame_ends_nothing(node: Node) -> None:
    hostile = await Hostile.connect(node)
    await hostile.channel.send_frames(b"")
    await hostile.envelope("job_sync", BODY)
    assert (await hostile.until(ENVELOPE))[0] == ENVELOPE
    await answers_others(node)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(ACK, b"some-message"), (PONG, b"12345678"),
     (RELAYED, msgspec.json.encode({"id": "none", "count": 1}))],
)  # fmt: skip
async def test_answers_that_nobody_waits_for_count_against_the_rate(tmp_path: Path, kind: int, payload: bytes) -> None:
    slow = config(network=NetworkConfig(listen="127.0.0.1:0", discovery=False, rate=5))
    async with open_node(tmp_path, slow) as node:
        hostile = await Hostile.connect(node)
        for _ in range(60):
            await hostile.send(kind, payload)
        await hostile.rejected("rate")
        # they are read as slowly as requests would be
        begun = trio.current_time()
        with trio.fail_after(20):
            while node.ctx.transport.rejections["rate"] < 5:
                await trio.sleep(0.01)
        assert trio.current_time() - begun > 0.5
        await answers_others(node)


async def test_one_peer_answers_a_publication_once(node: Node) -> None:
    """A peer that says again and again how far it passed a publication on does not speak for the others."""
    hostile, silent = await Hostile.connect(node), await Hostile.connect(node)
    for peer in (hostile, silent):
        await peer.envelope("hello", {"version": [1, 0], "agent": "x", "roles": [], "topics": [], "port": 0})
    with trio.fail_after(20):
        while len(node.ctx.transport.connected()) < 2:
            await trio.sleep(0.01)
    counts: list[int] = []
    async with trio.open_nursery() as nursery:

        async def publish() -> None:
            counts.append(await node.ctx.relay.publish(BIDS, "note", BODY, lifetime=30))

        nursery.start_soon(publish)
        _, frame = await hostile.until(RELAY)
        message_id = json.loads(frame.partition(b"\n")[2][64:])["id"]
        for _ in range(50):
            await hostile.send(RELAYED, msgspec.json.encode({"id": message_id, "count": 3}))
    assert counts == [3]


async def test_a_peer_cannot_fill_the_log(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="nunet.messages")
    hostile = await Hostile.connect(node)
    for number in range(200):
        await hostile.envelope("no_such_type" if number % 2 else "job_sync", {"surprise": 1})
    with trio.fail_after(20):
        while sum(node.ctx.transport.rejections[code] for code in ("unknown_type", "bad_body", "busy")) < 200:
            await trio.sleep(0.01)
    assert 0 < len([record for record in caplog.records if record.levelname == "INFO"]) < 60
    await answers_others(node)
