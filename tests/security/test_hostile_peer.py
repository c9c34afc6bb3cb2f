"""A hostile peer: it has a key and knows the network, and tries everything else. The node goes on for others."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli.config import NetworkConfig
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.network.connection import ACK, ENVELOPE, PING, PONG
from nunet_cli.network.envelope import ErrorMessage, seal
from nunet_cli.network.identity import Identity, new_identity
from nunet_cli.network.secure_channel import SecureChannel, network_identifier
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.records.messages import JobSync
from tests.conftest import config, open_client, open_market


class Hostile:
    """A raw secure channel to a node."""

    def __init__(self, identity: Identity, channel: SecureChannel, node: Node) -> None:
        self.identity, self.channel, self.node = identity, channel, node

    @classmethod
    async def connect(cls, node: Node, identity: Identity | None = None, host: str = "127.0.0.1") -> "Hostile":
        identity = identity or new_identity()
        stream = await trio.open_tcp_stream("127.0.0.1", node.ctx.transport.port, local_address=host)
        channel = await open_client(stream, network_identifier("nunet"), identity, node.identity.public_key, 2**24)
        return cls(identity, channel, node)

    async def send(self, kind: int, payload: bytes) -> None:
        await self.channel.send_frames(bytes([kind]) + payload)

    async def envelope(self, type_: str, body: Any, **options: Any) -> bytes:
        to = options.pop("to", self.node.identity.did)
        _, raw = seal(self.identity, to, type_, body, **{"lifetime": 60, **options})
        await self.send(ENVELOPE, raw)
        return raw

    async def until(self, *kinds: int) -> tuple[int, bytes]:
        with trio.fail_after(20):
            while True:
                frame = await self.channel.receive_frame()
                if frame[0] in kinds and b'"type":"hello"' not in frame:
                    return frame[0], frame[1:]

    async def rejected(self, code: str) -> None:
        with trio.fail_after(20):
            while not self.node.ctx.transport.rejections[code]:
                await trio.sleep(0.01)


@pytest.fixture
async def node(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with open_node(tmp_path, config()) as opened:
        yield opened


BODY = JobSync("contract")


async def test_forged_replayed_mistyped_and_misdirected_messages_are_counted_by_reason(node: Node) -> None:
    other = new_identity()
    peer = await Hostile.connect(node)
    await peer.envelope("job_sync", BODY, to=other.did)
    await peer.rejected("wrong_recipient")
    await peer.envelope("no_such_type", BODY)
    await peer.rejected("unknown_type")
    _, raw = seal(other, node.identity.did, "job_sync", BODY, lifetime=60)
    await peer.send(ENVELOPE, raw)
    await peer.rejected("wrong_sender")
    await peer.send(ENVELOPE, b"\0" * 64 + b"{}")
    await peer.rejected("malformed")
    _, raw = seal(peer.identity, node.identity.did, "job_sync", BODY, lifetime=60)
    await peer.send(ENVELOPE, raw[:64] + raw[64:].replace(b"contract", b"contracT"))
    await peer.rejected("bad_signature")
    await peer.send(99, b"")
    await peer.rejected("unknown_frame")


async def test_a_body_that_does_not_fit_is_answered_with_the_field(node: Node) -> None:
    peer = await Hostile.connect(node)
    await peer.envelope("job_sync", ErrorMessage("code", "text"))
    _, answer = await peer.until(ENVELOPE)
    document = json.loads(answer[64:])
    assert document["type"] == "error_message"
    assert document["body"]["code"] == "bad_body"


async def test_a_repeated_message_gets_the_first_answer_and_the_work_is_done_once(node: Node) -> None:
    calls = []

    async def behaviour(message: Any) -> Any:
        calls.append(message.envelope.id)
        return "error_message", ErrorMessage("number", str(len(calls)))

    node.ctx.messenger.register("count", JobSync, behaviour)
    peer = await Hostile.connect(node)
    raw = await peer.envelope("count", BODY)
    _, first = await peer.until(ENVELOPE)
    with trio.fail_after(20):
        # one that comes while the first is being answered is left to that answer
        while node.ctx.messenger._in_progress:
            await trio.sleep(0.01)
    await peer.send(ENVELOPE, raw)
    _, second = await peer.until(ENVELOPE)
    assert first == second
    assert len(calls) == 1


async def test_a_handler_that_breaks_stops_nothing(node: Node) -> None:
    async def behaviour(message: Any) -> Any:
        raise ZeroDivisionError

    node.ctx.messenger.register("breaks", JobSync, behaviour)
    peer = await Hostile.connect(node)
    for _ in range(3):
        await peer.envelope("breaks", BODY)
        _, answer = await peer.until(ENVELOPE)
        assert json.loads(answer[64:])["body"]["code"] == "internal"
        assert b"Zero" not in answer


async def test_a_peer_cannot_look_nearer_than_it_is(node: Node) -> None:
    hostile = await Hostile.connect(node)
    _, nonce = await hostile.until(PING)

    async def settled() -> None:
        await hostile.send(PING, b"in order")
        assert (await hostile.until(PONG))[1][:8] == b"in order"

    peer = node.ctx.peers.find(hostile.identity.did)
    assert peer is not None
    for guess in (bytes(8), b"\xff" * 8, b"", nonce + b"x"):
        await hostile.send(PONG, guess)
    await settled()
    assert peer.rtt is None
    await trio.sleep(0.2)
    await hostile.send(PONG, nonce)
    await settled()
    assert peer.rtt is not None
    assert peer.rtt >= 0.2
    measured = peer.rtt
    await hostile.send(PONG, nonce)
    await settled()
    assert peer.rtt == measured


async def test_a_frame_over_the_limit_ends_that_connection_alone(node: Node) -> None:
    good, bad = await Hostile.connect(node), await Hostile.connect(node)
    try:
        await bad.send(ENVELOPE, b"x" * 2**21)
    except Exception as error:
        assert "closed" in str(error)
    await bad.rejected("frame_too_large")
    await good.envelope("job_sync", BODY)
    assert (await good.until(ENVELOPE))[0] == ENVELOPE


async def test_a_flood_is_cut_to_the_rate(tmp_path: Path) -> None:
    slow = config(network=NetworkConfig(listen="127.0.0.1:0", discovery=False, rate=5))
    async with open_node(tmp_path, slow) as node:
        peer = await Hostile.connect(node)
        for _ in range(100):
            await peer.send(ACK + 1, b"12345678")
        await peer.rejected("rate")
        other = await Hostile.connect(node)
        await other.envelope("job_sync", BODY)
        assert (await other.until(ENVELOPE))[0] == ENVELOPE


async def test_connections_from_one_address_are_capped(tmp_path: Path) -> None:
    narrow = config(network=NetworkConfig(listen="127.0.0.1:0", discovery=False, max_connections_per_address=2))
    async with open_node(tmp_path, narrow) as node:
        kept = [await Hostile.connect(node) for _ in range(2)]
        third = await Hostile.connect(node)
        # nobody of equal standing gives way at once
        with pytest.raises(Exception, match=r"closed|cut"):
            await third.until(PONG)
        assert node.ctx.transport.rejections["too_many_connections"] == 1
        for peer in kept:
            await peer.send(PING, b"in order")
            await peer.until(PONG)


async def test_a_silent_client_is_dropped_after_the_handshake_timeout(tmp_path: Path) -> None:
    hasty = config(network=NetworkConfig(listen="127.0.0.1:0", discovery=False, handshake_timeout=1))
    async with open_node(tmp_path, hasty) as node:
        stream = await trio.open_tcp_stream("127.0.0.1", node.ctx.transport.port)
        with trio.fail_after(20):
            assert await stream.receive_some() == b""


async def test_nobody_learns_of_a_contract_that_is_not_theirs(tmp_path: Path) -> None:
    async with open_market(tmp_path) as m:
        from nunet_cli.jobs.reader import read_spec
        from nunet_cli.orchestrator.contract import check_contract
        from nunet_cli.orchestrator.post import process_job
        from nunet_cli.records.contract_records import REGISTERED_CONTRACTS
        from nunet_cli.records.messages import CheckContract

        text = "name: x\nexecutor: {type: process, command: ['true']}\nprice: 1\n"
        job = await process_job(m.requester.ctx, read_spec(text), folder=tmp_path)
        job = await orchestrate_job(m.requester.ctx, job.id)
        for node, type_, body in (
            (m.provider, "job_sync", JobSync(job.contract_id)),
            (m.authority, "check_contract", CheckContract(job.contract_id)),
        ):
            peer = await Hostile.connect(node)
            await peer.envelope(type_, body)
            _, answer = await peer.until(ENVELOPE)
            assert json.loads(answer[64:])["body"]["code"] == "no_contract"
        # its parties learn how it stands, by the same question
        status = await check_contract(m.provider.ctx, job.contract_id)
        kept = m.authority.ctx.store[REGISTERED_CONTRACTS].one(job.contract_id)
        assert (status.state, status.proof, status.receipt) == ("settled", kept.proof, kept.receipt)


async def test_times_at_the_edge_of_the_calendar_are_refused_like_others(node: Node) -> None:
    peer = await Hostile.connect(node)
    _, raw = seal(peer.identity, node.identity.did, "job_sync", BODY, lifetime=60)
    document = json.loads(raw[64:])
    for field in ("sent_at", "expires_at"):
        for edge in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
            text = json.dumps({**document, field: edge}).encode()
            before = node.ctx.transport.rejections["malformed"]
            await peer.send(ENVELOPE, peer.identity.sign(b"nunet-envelope-v1\n" + text) + text)
            with trio.fail_after(20):
                while node.ctx.transport.rejections["malformed"] == before:
                    await trio.sleep(0.01)


async def test_what_nobody_foresaw_ends_one_connection_and_not_the_node(node: Node) -> None:
    async def breaks(*_: Any) -> None:
        raise ZeroDivisionError

    node.ctx.transport.on_frame[200] = breaks
    bad, good = await Hostile.connect(node), await Hostile.connect(node)
    await bad.send(200, b"")
    await bad.rejected("internal")
    await good.envelope("job_sync", BODY)
    assert (await good.until(ENVELOPE))[0] == ENVELOPE


def test_what_a_peer_wrote_does_not_command_the_terminal() -> None:
    from nunet_cli.cli.output import clean

    assert "\x1b" not in clean("\x1b[2Jgone\x07\r")
    assert clean("fine: ünï\tlines\n") == "fine: ünï\tlines\n"
