"""Publications that are passed on: once each, a few hops, and only what is properly signed."""

import json
from pathlib import Path

import msgspec
import pytest
import trio

from nunet_cli.network import relay as relaying
from nunet_cli.network.connection import ENVELOPE, PONG, RELAY, RELAYED
from nunet_cli.network.envelope import seal
from nunet_cli.network.identity import Identity, new_identity
from nunet_cli.network.messenger import Incoming
from nunet_cli.network.peers import PROTOCOL_VERSION
from nunet_cli.network.secure_channel import network_identifier
from nunet_cli.network.topics import Hello
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.records.messages import JobSync
from tests.conftest import config, open_client

TOPIC = "/lab/notes"


class Line:
    """Nodes in a row, each connected to the next one alone."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.heard: list[list[str]] = [[] for _ in nodes]
        for node, heard in zip(nodes, self.heard, strict=True):

            async def note(message: Incoming, heard: list[str] = heard) -> None:
                heard.append(message.body.contract_id)

            node.ctx.relay.on_publication("note", JobSync, note)


async def connect(left: Node, right: Node) -> None:
    await left.add_peer(right.ctx.transport.describe())
    with trio.fail_after(20):
        while not (left.ctx.transport.connected() and right.ctx.transport.connected()):
            await left.ctx.transport.wait_change(0.05)


async def test_a_publication_goes_three_hops_and_arrives_once(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        nodes = []

        async def run(number: int, task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED) -> None:
            async with open_node(tmp_path / str(number), config()) as node:
                task_status.started(node)
                await trio.sleep_forever()

        for number in range(6):
            node: Node = await nursery.start(run, number)
            await node.subscribe(TOPIC)
            if nodes:
                await connect(nodes[-1], node)
            nodes.append(node)
        line = Line(nodes)
        count = await nodes[0].ctx.relay.publish(TOPIC, "note", JobSync("n1"), lifetime=30)
        # the next peer is asked directly; it passed the publication on to the one behind it
        assert count == 1
        with trio.fail_after(20):
            while not line.heard[3]:
                await trio.sleep(0.02)
        await trio.sleep(0.2)
        assert line.heard == [[], [], ["n1"], ["n1"], [], []]
        nursery.cancel_scope.cancel()


class Stranger:
    """A peer that speaks the protocol by hand."""

    def __init__(self, node: Node, identity: Identity) -> None:
        self.node, self.identity = node, identity

    async def connect(self) -> "Stranger":
        stream = await trio.open_tcp_stream("127.0.0.1", self.node.ctx.transport.port)
        self.channel = await open_client(
            stream, network_identifier("nunet"), self.identity, self.node.identity.public_key, 2**24
        )
        return self

    async def relay(self, raw: bytes, **route: object) -> None:
        head = json.dumps({"hops": 3, "skip": [], **route}).encode()
        await self.channel.send_frames(bytes([RELAY]) + head + b"\n" + raw)

    async def answered(self) -> dict[str, object]:
        with trio.fail_after(20):
            while True:
                frame = await self.channel.receive_frame()
                if frame[0] == RELAYED:
                    answer: dict[str, object] = json.loads(frame[1:])
                    return answer


@pytest.fixture
async def node(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with open_node(tmp_path, config()) as opened:
        await opened.subscribe(TOPIC)
        yield opened


async def rejected(node: Node, code: str) -> None:
    with trio.fail_after(20):
        while not node.ctx.transport.rejections[code]:
            await trio.sleep(0.01)


async def test_what_is_not_properly_signed_is_neither_taken_nor_passed_on(node: Node) -> None:
    line = Line([node])
    stranger = await Stranger(node, new_identity()).connect()
    author = new_identity()
    _, raw = seal(author, TOPIC, "note", JobSync("n1"), lifetime=30)
    changed = bytearray(raw)
    changed[3] ^= 1
    await stranger.relay(bytes(changed))
    await rejected(node, "bad_signature")
    await stranger.relay(seal(author, TOPIC, "note", JobSync("n1"), lifetime=-5)[1])
    await rejected(node, "expired")
    await stranger.relay(seal(author, node.identity.did, "note", JobSync("n1"), lifetime=30)[1])
    await rejected(node, "wrong_recipient")
    await stranger.channel.send_frames(bytes([RELAY]) + b"[not a route\n" + raw)
    await rejected(node, "malformed")
    assert line.heard == [[]]
    # the same, untouched, is taken; a second time it is not
    await stranger.relay(raw)
    await stranger.answered()
    await stranger.relay(raw, hops=16)
    await stranger.answered()
    with trio.fail_after(20):
        while not line.heard[0]:
            await trio.sleep(0.01)
    assert line.heard == [["n1"]]


async def test_one_origin_cannot_flood(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaying, "MAX_PER_ORIGIN", 5)
    line = Line([node])
    stranger, author = await Stranger(node, new_identity()).connect(), new_identity()
    for number in range(10):
        await stranger.relay(seal(author, TOPIC, "note", JobSync(f"n{number}"), lifetime=30)[1])
    with trio.fail_after(20):
        while node.ctx.transport.rejections["rate"] < 5:
            await trio.sleep(0.01)
    assert len(line.heard[0]) == 5
    # what goes no further is answered, so that a busy node does not wait for it
    for _ in range(10):
        assert (await stranger.answered())["count"] == 0
    # another author is heard all the same
    await stranger.relay(seal(new_identity(), TOPIC, "note", JobSync("other"), lifetime=30)[1])
    with trio.fail_after(20):
        while "other" not in line.heard[0]:
            await trio.sleep(0.01)


async def test_where_an_origin_is_only_the_origin_says(node: Node) -> None:
    line = Line([node])
    stranger, silent, author = await Stranger(node, new_identity()).connect(), new_identity(), new_identity()
    # whoever passes a publication on cannot send this node anywhere
    await stranger.relay(
        seal(silent, TOPIC, "note", JobSync("n1"), lifetime=30)[1], origin="127.0.0.1:9", at="127.0.0.1:9"
    )
    await stranger.relay(seal(author, TOPIC, "note", JobSync("n2"), lifetime=30, at=("127.0.0.1:8", "127.0.0.1:7"))[1])
    with trio.fail_after(20):
        # both are handled at once, in either order
        while sorted(line.heard[0]) != ["n1", "n2"]:
            await trio.sleep(0.01)
    assert node.ctx.peers.find(silent.did) is None
    known = node.ctx.peers.find(author.did)
    # it may have been tried and forgotten already
    assert known is None or known.addresses == [("127.0.0.1", 8), ("127.0.0.1", 7)]


async def test_one_peer_cannot_flood_with_many_origins(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaying, "MAX_PER_PEER", 5)
    line = Line([node])
    stranger, other = [await Stranger(node, new_identity()).connect() for _ in range(2)]
    for number in range(10):
        await stranger.relay(seal(new_identity(), TOPIC, "note", JobSync(f"n{number}"), lifetime=30)[1])
    await rejected(node, "rate")
    await other.relay(seal(new_identity(), TOPIC, "note", JobSync("other"), lifetime=30)[1])
    with trio.fail_after(20):
        while "other" not in line.heard[0]:
            await trio.sleep(0.01)
    assert len(line.heard[0]) == 6


async def test_an_answer_to_nothing_is_let_go(node: Node) -> None:
    stranger = await Stranger(node, new_identity()).connect()
    await stranger.channel.send_frames(bytes([RELAYED]) + msgspec.json.encode({"id": "none", "count": 5}))
    await stranger.channel.send_frames(bytes([RELAYED]) + b"{}")
    await rejected(node, "malformed")


async def test_who_brings_too_much_does_not_keep_out_what_another_one_brings(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "MAX_PER_PEER", 2)
    line = Line([node])
    stranger, other = [await Stranger(node, new_identity()).connect() for _ in range(2)]
    for number in range(2):
        await stranger.relay(seal(new_identity(), TOPIC, "note", JobSync(f"n{number}"), lifetime=30)[1])
    raw = seal(new_identity(), TOPIC, "note", JobSync("wanted"), lifetime=30)[1]
    await stranger.relay(raw)
    await rejected(node, "rate")
    await other.relay(raw)
    with trio.fail_after(20):
        while "wanted" not in line.heard[0]:
            await trio.sleep(0.01)


async def test_those_that_do_not_read_hold_up_a_publication_together_and_not_each(node: Node) -> None:
    strangers = [await Stranger(node, new_identity()).connect() for _ in range(5)]
    for stranger in strangers:
        hello = seal(stranger.identity, node.identity.did, "hello", Hello(PROTOCOL_VERSION), lifetime=30)[1]
        await stranger.channel.send_frames(bytes([ENVELOPE]) + hello)
    with trio.fail_after(20):
        while len(node.ctx.transport.connected()) < len(strangers):
            await node.ctx.transport.wait_change(0.05)
    # one reads, and the others do not
    for stranger in strangers[1:]:
        connection = node.ctx.transport.connection(stranger.identity.public_key)
        assert connection is not None
        with trio.move_on_after(0.5):
            while True:
                await connection.send(PONG, bytes(2**19))
        assert connection.is_full(2**19)
    began = trio.current_time()
    await node.ctx.relay.publish(TOPIC, "note", JobSync("n1"), lifetime=30)
    assert trio.current_time() - began < relaying.SLOW_WAIT + relaying.ACK_WAIT + 1
    with trio.fail_after(20):
        while (await strangers[0].channel.receive_frame())[0] != RELAY:
            pass
