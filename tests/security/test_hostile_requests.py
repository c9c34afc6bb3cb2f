"""Bid requests of strangers: they neither stand a node still nor make it keep what it refused."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nunet_cli.network.connection import ENVELOPE
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import judging
from nunet_cli.records.bids import BID_REQUESTS, BIDS, BidRequest
from nunet_cli.records.capability import Capability, Library, PriceBid, TimeCapability
from nunet_cli.records.events import EVENTS
from nunet_cli.records.messaging import INBOX, OUTBOX
from nunet_cli.records.offers import OnboardOptions
from nunet_cli.records.table import Table
from tests.conftest import config, longest_pause
from tests.security.test_hostile_peer import Hostile

ONES = "[" + ",".join("1" for _ in range(200)) + "]"
# the most that is not refused: some 30 ms each
HEAVY = "job.libraries.exists_one(x, " + " && ".join(["job.libraries == job.libraries"] * 5) + ")"


@pytest.fixture
async def provider(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with open_node(tmp_path, config()) as node:
        await node.onboard(OnboardOptions(), None)
        yield node


def bid_request(peer: Hostile, number: int = 0, **fields: Any) -> BidRequest:
    libraries = tuple(Library("n" * 200, "1" * 80) for _ in range(64))
    needs = Capability(libraries=libraries, price=PriceBid(amount="1"), time=TimeCapability(max=60))
    settings = {
        "id": f"request-{number}", "job_id": "job-1", "requester": peer.identity.node_id, "required_capability": needs,
        "spec_cid": "b" * 59, "deadline": "2031-01-01T00:00:00.000Z", **fields,
    }  # fmt: skip
    return BidRequest(**settings)


async def answer(peer: Hostile, request: Any) -> dict[str, Any]:
    await peer.envelope("bid_request", request)
    _, raw = await peer.until(ENVELOPE)
    document: dict[str, Any] = json.loads(raw[64:])
    return document


def kept(node: Node) -> dict[str, int]:
    tables: tuple[Table[Any], ...] = (INBOX, OUTBOX, BID_REQUESTS, BIDS, EVENTS)
    return {table.name: node.ctx.store[table].count() for table in tables}


async def test_expressions_do_not_stand_a_node_still(provider: Node) -> None:
    peer = await Hostile.connect(provider)
    nested = f"{ONES}.map(x, {ONES}.map(y, [x, y])).size() > 0"

    async def ask() -> None:
        refused = await answer(peer, bid_request(peer, 1, hard=(nested, nested)))
        assert refused["type"] == "decline"
        assert "constraints.hard[0]: column" in json.dumps(refused["body"]["comparison"]["reasons"])
        await answer(peer, bid_request(peer, 2, hard=(HEAVY,) * 20))

    assert await longest_pause(ask) < 1


async def test_a_peer_has_so_many_steps_in_a_minute(provider: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "STEPS_PER_MINUTE", 20_000)
    peer, other = await Hostile.connect(provider), await Hostile.connect(provider)
    said = [json.dumps(await answer(peer, bid_request(peer, number, hard=(HEAVY,)))) for number in range(8)]
    spent = "take too much of this provider's time"
    assert spent not in said[0]
    assert spent in said[-1]
    # it is that peer's matter alone, and only of its expressions
    assert spent not in json.dumps(await answer(other, bid_request(other, 100, hard=(HEAVY,))))
    assert spent not in json.dumps(await answer(peer, bid_request(peer, 101)))


async def test_what_is_refused_or_declined_leaves_no_row(provider: Node) -> None:
    peer = await Hostile.connect(provider)
    good = msgspec.to_builtins(bid_request(peer))
    before = kept(provider)
    for number in range(20):
        assert (await answer(peer, bid_request(peer, number)))["type"] == "decline"
        refused = await answer(peer, {**good, "id": 7, "surprise": number})
        assert refused["body"]["code"] == "bad_body"
        await peer.envelope("contract_proposal", {"contract": {"content": "{}", "signatures": []}})
        await peer.until(ENVELOPE)
        await peer.envelope("job_cancel", {"contract_id": f"contract-{number}"})
        await peer.until(ENVELOPE)
    assert kept(provider) == before
    assert provider.ctx.transport.rejections["bad_body"] == 20


async def test_a_bid_request_cannot_take_the_place_of_another(provider: Node) -> None:
    """Who knows the id of somebody's bid request could have its own needs locked under the other's."""
    honest, hostile = await Hostile.connect(provider), await Hostile.connect(provider)
    needs = Capability(price=PriceBid(amount="1"), time=TimeCapability(max=60))
    first = await answer(honest, bid_request(honest, 1, required_capability=needs))
    assert first["type"] == "bid"
    larger = msgspec.structs.replace(needs, time=TimeCapability(max=3600))
    for peer, wanted in ((hostile, needs), (honest, larger)):
        refused = await answer(peer, bid_request(peer, 1, required_capability=wanted))
        assert refused["body"]["code"] == "wrong_bid_request"
    # the same once more, in a new message, is the same bid
    again = await answer(honest, bid_request(honest, 1, required_capability=needs))
    assert again["body"]["id"] == first["body"]["id"]
