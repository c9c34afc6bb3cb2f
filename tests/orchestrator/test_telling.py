"""What a provider offers is told to who asks; it is the peer's word, bounded, and nothing waits long for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli.errors import PeerError, RejectedMessageError
from nunet_cli.network.peers import Peer
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator.match import match
from nunet_cli.orchestrator.telling import ask_capability
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.capability import Capability, PriceBid
from nunet_cli.records.messages import AskCapability, CapabilityTold
from nunet_cli.records.offers import OnboardOptions
from tests.conftest import config, open_market

OFFER = OnboardOptions(price="0.2/h", cpu=0.3, memory="64MiB", disk="64MiB")
SPEC = json.dumps({
    "name": "test", "executor": {"type": "process", "command": ["true"]}, "price": "1",
    "resources": {"cpu": 0.1, "memory": "16MiB", "disk": "1MiB"},
})  # fmt: skip


async def peer_of(node: Node, other: Node) -> Peer:
    """Return a peer once it has said who it is."""
    found = node.ctx.peers.get(other.identity.public_key)
    assert found is not None
    with trio.fail_after(20):
        while not found.introduced:
            await trio.sleep(0.02)
    return found


async def test_a_provider_tells_what_it_has_left_for_who_asks_and_at_which_price(tmp_path: Path) -> None:
    closed = config()
    closed.executor.process.foreign = "off"
    async with open_market(tmp_path, onboard=OFFER, provider=closed) as m:
        peer = await peer_of(m.requester, m.provider)
        told = await ask_capability(m.requester.ctx, peer)
        assert told is not None
        assert told.by == "answer"
        assert told.offered is not None
        assert told.offered.price == PriceBid("per_time_unit", "NTX", "h", "0.2")
        assert told.offered.resources == m.provider.get_available_capability().resources
        # strangers' commands are not run there
        assert "process" in m.provider.get_available_capability().executors
        assert "process" not in told.offered.executors
        # who is not onboarded, and who does not deal with this node, offers nothing
        nobody = await ask_capability(m.requester.ctx, await peer_of(m.requester, m.authority))
        assert nobody is not None
        assert nobody.offered is None
        peer.told = None
        await m.provider.set_preferences(CapabilityComparator(deny=(m.requester.identity.did,)))
        told = await ask_capability(m.requester.ctx, peer)
        assert told is not None
        assert told.offered is None


async def test_what_was_told_just_now_is_not_asked_again(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        asked = 0

        async def answer(_message: Any) -> Any:
            nonlocal asked
            asked += 1
            return "capability_told", CapabilityTold(Capability(), 0.5)

        m.provider.ctx.messenger.register("ask_capability", AskCapability, answer)
        peer = await peer_of(m.requester, m.provider)
        for _ in range(3):
            told = await ask_capability(m.requester.ctx, peer)
            assert told is not None
            assert told.load == 0.5
        assert asked == 1


async def test_one_that_is_silent_has_told_what_its_last_bid_offered_or_nothing(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:

        async def say_nothing(_message: Any) -> Any:
            await trio.sleep_forever()

        m.provider.ctx.messenger.register("ask_capability", AskCapability, say_nothing)
        peer = await peer_of(m.requester, m.provider)
        with trio.fail_after(5):
            assert await ask_capability(m.requester.ctx, peer) is None
        await match(m.requester.ctx, await m.post(SPEC))
        told = await ask_capability(m.requester.ctx, peer)
        assert told is not None
        assert told.by == "bid"
        assert told.offered is not None
        assert told.offered.price.amount == "0.2"
        assert told.offered.resources.memory == 64 * 2**20


async def test_who_cannot_tell_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nunet_cli.network.topics.FEATURES", ("clock", "data", "origin"))
    async with open_market(tmp_path, onboard=OFFER) as m:

        async def must_not(_message: Any) -> Any:
            raise AssertionError("it was asked")

        m.provider.ctx.messenger.register("ask_capability", AskCapability, must_not)
        assert await ask_capability(m.requester.ctx, await peer_of(m.requester, m.provider)) is None


async def test_an_answer_that_does_not_fit_is_none(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m, open_node(tmp_path / "liar", config()) as liar:
        await m.requester.add_peer(liar.ctx.transport.describe())
        too_many = Capability(executors=tuple(f"executor-{number}" for number in range(5000)))

        async def answer(_message: Any) -> Any:
            return "capability_told", CapabilityTold(too_many)

        liar.ctx.messenger.register("ask_capability", AskCapability, answer)
        peer = await peer_of(m.requester, liar)
        assert await ask_capability(m.requester.ctx, peer) is None
        with pytest.raises((PeerError, RejectedMessageError)):
            await m.requester.ctx.messenger.request(liar.identity.did, "ask_capability", AskCapability(), timeout=1)
