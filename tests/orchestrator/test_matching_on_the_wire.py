"""Search and match between real nodes: constraints, preferences, waiting for a machine, topics and relays."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.config import KycConfig, NetworkConfig
from nunet_cli.errors import DeclinedError, NoBidError, UsageError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.network.identity import new_identity
from nunet_cli.node.kyc import read_statement
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import match, request
from nunet_cli.records.bids import BIDS, CapabilityComparator, Weights
from nunet_cli.records.capability import Resources
from nunet_cli.records.documents import make_document
from nunet_cli.records.jobs import Job
from nunet_cli.records.kyc import VERIFIER, KycStatement
from nunet_cli.records.offers import OnboardOptions
from tests.conftest import Market, config, open_market, post

MarketOf = Callable[..., Any]


def spec(command: str = "true", **fields: Any) -> str:
    body = {
        "name": "test", "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "1",
        "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"},
    }  # fmt: skip
    return json.dumps({**body, **fields})


def reasons(m: Market, job_id: str) -> list[str]:
    row = m.requester.ctx.store[BIDS].first("job_id", job_id)
    assert row is not None
    return list(row.reasons)


async def lock(node: Node, resources: Resources, seconds: int) -> None:
    """Let somebody else have locked something at a provider for so long."""
    until = quantities.format_time(quantities.now() + timedelta(seconds=seconds))
    await node.ctx.store.change(lambda t: node.accounting.lock_capability(t, "other", "other", resources, until))


async def declined(m: Market, text: str) -> list[str]:
    job_id = await m.post(text)
    with pytest.raises(NoBidError):
        await match.match(m.requester.ctx, job_id)
    return reasons(m, job_id)


async def test_each_capability_that_is_missing_is_a_reason_on_the_wire(market: MarketOf) -> None:
    have = OnboardOptions(
        price="0.25", localities=("country=SE",), storage=("ssd=10GiB",), ports=(8080,), bandwidth="100Mbit",
        max_duration="1h",
    )  # fmt: skip
    bank, shop = new_identity(), new_identity()
    knows = config(kyc=KycConfig({"acme-bank": bank.did, "acme-shop": shop.did}))
    async with market(onboard=have, requester=knows) as m:
        document = make_document(KycStatement(1, m.provider.identity.did, "acme-bank", quantities.utc_now()))
        proof = read_statement(msgspec.json.encode(document.sign(bank, VERIFIER)))
        await m.provider.onboard(OnboardOptions(kycs=(proof,)), None)
        cases: list[tuple[dict[str, Any], str]] = [
            ({"storage": [{"type": "ssd", "size": "20GiB"}]}, "storage.ssd: 10 GiB short"),
            ({"storage": [{"type": "nvme", "size": "1GiB"}]}, "storage.nvme: none"),
            ({"connectivity": {"ports": [22]}}, "connectivity.ports: no 22 here"),
            ({"connectivity": {"bandwidth": "1Gbit"}}, "connectivity.bandwidth: 900 Mbit/s short"),
            ({"connectivity": {"vpn": True}}, "connectivity.vpn: not in a VPN"),
            (
                {"kycs": ["acme-bank", "acme-shop"]},
                f"kycs: no statement of acme-shop ({shop.did}) for this provider",
            ),
            ({"localities": [{"kind": "country", "name": "NO"}]}, "localities.country: another place"),
            ({"localities": [{"kind": "country", "name": "SE", "exclude": True}]}, "localities.country: excluded"),
            ({"libraries": [{"name": "python", "constraint": ">=9"}]}, "libraries.python: another version"),
            ({"resources": {"gpus": [{"vram": "1GiB"}]}}, "gpus: no free device for 1 GiB"),
            ({"time": {"max_duration": "2h"}}, "time: 1h short"),
            ({"price": "0.1"}, "price: 0.15 NTX above the limit"),
            ({"constraints": {"hard": ["node.memory > quantity('900GiB')"]}}, "constraints.hard[0]: does not hold"),
        ]
        for fields, reason in cases:
            assert await declined(m, spec(**fields)) == [reason]
        met = spec(
            storage=[{"type": "ssd", "size": "1GiB"}], connectivity={"ports": [8080], "bandwidth": "1Mbit"},
            kycs=["acme-bank"], localities=[{"kind": "country", "name": "SE"}],
            constraints={"hard": ["node.localities.exists(l, l.name == 'SE') && price < 0.5"]},
        )  # fmt: skip
        assert (await match.match(m.requester.ctx, await m.post(met))).state == "matched"


async def test_a_providers_rules_decide_and_say_so(market: MarketOf) -> None:
    async with market() as m:
        rules = ("job.memory < quantity('32MiB')", "price >= 0.2")
        await m.provider.accounting.set_preferences(CapabilityComparator(rules=rules))
        assert await declined(m, spec()) == ["preferences.rules[0]: does not hold"]
        small = spec(resources={"cpu": 0.2, "memory": "16MiB", "disk": "16MiB"})
        assert (await match.match(m.requester.ctx, await m.post(small))).state == "matched"
        await m.provider.accounting.set_preferences(CapabilityComparator(deny=(m.requester.identity.did,)))
        assert await declined(m, spec()) == ["peer: the preferences exclude it"]


async def test_a_requesters_rules_refuse_bids_and_its_wishes_rank_them(tmp_path: Path) -> None:
    async with open_market(tmp_path, price="0.2") as m, open_node(tmp_path / "second", config()) as second:
        await second.onboard(OnboardOptions(price="0.3", localities=("country=SE",)), None)
        for node in (m.authority, m.requester):
            await second.add_peer(node.ctx.transport.describe())
        await _providers(m, 2)
        job = await match.match(m.requester.ctx, await m.post(spec()))
        assert _chosen(m, job) == m.provider.identity.did
        wish = {"rank": "node.localities.exists(l, l.name == 'SE')", "weight": 50}
        job = await match.match(m.requester.ctx, await m.post(spec(constraints={"soft": [wish]})))
        assert _chosen(m, job) == second.identity.did
        order = [row.did for row in m.requester.get_registered_bids(job.bid_request_id)]
        assert order == [second.identity.did, m.provider.identity.did]
        best = m.requester.ctx.store[BIDS].one(job.bid_id)
        assert "soft[0] (+50.0)" in best.why
        assert "0.3 NTX of 1 (+42.0)" in best.why
        await m.requester.accounting.set_preferences(CapabilityComparator(bid_rules=("price < 0.25",)))
        job = await match.match(m.requester.ctx, await m.post(spec(constraints={"soft": [wish]})))
        assert _chosen(m, job) == m.provider.identity.did
        verdicts = {row.did: row.verdict for row in m.requester.get_registered_bids(job.bid_request_id)}
        assert verdicts == {m.provider.identity.did: "best", second.identity.did: "unwanted"}


async def _providers(m: Market, count: int) -> None:
    with trio.fail_after(20):
        while len(m.requester.ctx.topics.subscribers("/nunet/bids")) < count:
            await trio.sleep(0.02)


def _chosen(m: Market, job: Job) -> str:
    return m.requester.ctx.store[BIDS].one(job.bid_id).did


async def test_an_idle_machine_is_preferred_at_equal_price_and_a_busy_one_says_when(tmp_path: Path) -> None:
    async with open_market(tmp_path, price="0.2") as m, open_node(tmp_path / "second", config()) as second:
        await second.onboard(OnboardOptions(price="0.2"), None)
        for node in (m.authority, m.requester):
            await second.add_peer(node.ctx.transport.describe())
        await _providers(m, 2)
        resources = m.provider.get_registered_capability().resources
        half = resources.memory // 2
        taken = structs.replace(resources, memory=half, disk=0, cpu=structs.replace(resources.cpu, cores=0), gpus=())
        await lock(m.provider, taken, 60)
        await m.requester.accounting.set_preferences(CapabilityComparator(weights=Weights(distance=0)))
        job = await match.match(m.requester.ctx, await m.post(spec()))
        assert _chosen(m, job) == second.identity.did
        loads = {row.did: row.offer.load for row in m.requester.get_registered_bids(job.bid_request_id)}
        assert loads == {m.provider.identity.did: 0.5, second.identity.did: 0.0}


async def test_a_job_with_a_deadline_waits_for_a_provider_to_appear(tmp_path: Path) -> None:
    async with open_market(tmp_path) as m:
        await m.provider.offboard()
        job_id = await m.post(spec(time={"max_duration": 60, "deadline": "2m"}))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(orchestrate_job, m.requester.ctx, job_id)
            with trio.fail_after(30):
                while not m.job(job_id).waiting:
                    await trio.sleep(0.02)
            began = trio.current_time()
            await m.provider.onboard(OnboardOptions(price="0.2"), None)
            with trio.fail_after(60):
                while m.job(job_id).state != "settled":
                    await trio.sleep(0.05)
            # at once, not at the end of a pause
            assert trio.current_time() - began < 8


async def test_the_deadline_ends_the_search_with_what_was_last_said(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec(resources={"memory": "900GiB"}, time={"max_duration": 9, "deadline": "2s"}))
        with pytest.raises(NoBidError, match="1 declined"), trio.fail_after(20):
            await orchestrate_job(m.requester.ctx, job_id)
        assert m.job(job_id).state == "expired"
        assert m.event_types(job_id).count("job_matching") >= 2


async def test_a_bid_request_reaches_a_provider_that_is_not_connected(tmp_path: Path) -> None:
    async with (
        open_node(tmp_path / "authority", config(), roles=("contract-database", "oracle")) as middle,
        open_node(tmp_path / "provider", config()) as far,
        open_node(tmp_path / "requester", config()) as near,
    ):
        await far.onboard(OnboardOptions(price="0.2"), None)
        # both know the one in the middle, and not each other
        for node in (far, near):
            await node.add_peer(middle.ctx.transport.describe())
        with trio.fail_after(20):
            while len(middle.ctx.transport.connected()) < 2 or near.ctx.topics.subscribers("") != []:
                await trio.sleep(0.02)
        assert near.ctx.peers.find(far.identity.did) is None
        m = Market(near, far, middle, tmp_path)
        with trio.fail_after(30):
            job = await orchestrate_job(near.ctx, await m.post(spec()))
        assert job.state == "settled"
        assert _chosen(m, job) == far.identity.did


async def test_user_topics_reach_their_subscribers_only(tmp_path: Path) -> None:
    lab = config(network=NetworkConfig(listen="127.0.0.1:0", discovery=False, topics=("/lab/gpu",)))
    async with open_market(tmp_path, price="0.2") as m, open_node(tmp_path / "second", lab) as second:
        await second.onboard(OnboardOptions(price="0.9"), None)
        for node in (m.authority, m.requester):
            await second.add_peer(node.ctx.transport.describe())
        await _providers(m, 2)
        job = await match.match(m.requester.ctx, await m.post(spec(), topic="/lab/gpu"))
        assert [row.did for row in m.requester.get_registered_bids(job.bid_request_id)] == [second.identity.did]
        with pytest.raises(UsageError, match="--topic"):
            await m.post(spec(), topic="lab")


async def test_one_bid_of_a_bidder_counts_however_many_it_sends(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec())
        job = await match.match(m.requester.ctx, job_id)
        (row,) = m.requester.get_registered_bids(m.job(job_id).bid_request_id)
        another = structs.replace(row.offer, id="bid-another")
        await post(m.provider, m.requester.identity.did, "bid", another, lifetime=30)
        await trio.sleep(0.3)
        assert len(m.requester.get_registered_bids(m.job(job_id).bid_request_id)) == 1
        assert m.job(job_id).shortlist == job.shortlist


async def test_the_shortlist_is_walked_to_its_end(tmp_path: Path) -> None:
    async with open_market(tmp_path, price="0.2") as m, open_node(tmp_path / "second", config()) as second:
        await second.onboard(OnboardOptions(price="0.3"), None)
        for node in (m.authority, m.requester):
            await second.add_peer(node.ctx.transport.describe())
        await _providers(m, 2)
        job = await match.match(m.requester.ctx, await m.post(spec()))
        for node in (m.provider, second):
            await node.accounting.set_preferences(CapabilityComparator(deny=(m.requester.identity.did,)))
        with pytest.raises(DeclinedError) as caught:
            await request.request(m.requester.ctx, job.id)
        assert [item["peer"] for item in caught.value.details["refusals"]] == [
            m.provider.identity.peer_id, second.identity.peer_id,
        ]  # fmt: skip
        assert all("exclude" in item["reason"] for item in caught.value.details["refusals"])
