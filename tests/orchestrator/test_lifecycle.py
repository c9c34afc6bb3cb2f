"""The lifecycle between real nodes on loopback: the happy path, and the ordinary ways to say no."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from msgspec.structs import replace

from nunet_cli import quantities
from nunet_cli.allocation import recover
from nunet_cli.allocation import run as allocation
from nunet_cli.config import ExecutorConfig, NetworkConfig, ProcessConfig
from nunet_cli.errors import (
    ContractError,
    DeclinedError,
    DisputedError,
    NoBidError,
    NunetError,
    StateError,
)
from nunet_cli.executor.base import ExecutorError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import contract, execute, invoke, match, outputs, request, settle
from nunet_cli.orchestrator.changes import change_job
from nunet_cli.orchestrator.locks import check_resource_lock
from nunet_cli.orchestrator.retry import MAX_LAPSES
from nunet_cli.records.allocations import ALLOCATIONS, HOLDINGS
from nunet_cli.records.bids import BIDS, CapabilityComparator
from nunet_cli.records.books import LOG
from nunet_cli.records.contract_records import CONTRACTS, REGISTERED_CONTRACTS
from nunet_cli.records.contracts import FULFILLED
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.jobs import JOB_ENDS
from nunet_cli.records.messages import SettleContract
from nunet_cli.records.messaging import OUTBOX
from nunet_cli.records.offers import OnboardOptions
from nunet_cli.records.results import Result
from nunet_cli.tokenomics import chain
from nunet_cli.tokenomics.oracle import verify_documents
from tests.conftest import Market, config, needs_docker, open_market, wait_until

MarketOf = Callable[..., Any]
STAGES = (match.match, request.request, contract.close_contract, invoke.invoke, settle.settle)
QUARTER = 250_000


def spec(command: str = "true", *, price: str = "1", **fields: Any) -> str:
    import json

    body = {"name": "test", "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": price}
    return json.dumps({**body, **fields})


def nothing_is_left(market: Market) -> None:
    """No lock, no allocation, no held escrow, and the books add up."""
    assert market.provider.accounting.taken(market.provider.ctx.store) == []
    balances = market.balances()
    assert sum(balances.values()) == 0
    assert not any(balance for account, balance in balances.items() if account.startswith("escrow:"))
    assert not list((market.provider.ctx.home / "allocations").glob("*"))


async def settled_with_both(market: Market, job_id: str) -> None:
    """Both parties have been told."""
    with trio.fail_after(20):
        for node in (market.requester, market.provider):
            while True:
                row = node.ctx.store[CONTRACTS].first("job_id", job_id)
                if row is not None and row.told:
                    break
                await trio.sleep(0.02)


async def test_a_job_goes_all_the_way(market: MarketOf, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one two three\n")
    async with market() as m:
        text = spec("cat in.txt; wc -w < in.txt > out.txt", inputs=[{"path": "in.txt"}], outputs=[{"path": "out.txt"}])
        job_id = await m.post(text)
        job = await orchestrate_job(m.requester.ctx, job_id)
        assert job.state == "settled"
        result = job.result
        assert result is not None
        await m.requester.ctx.blobs.copy_out(result.outputs[0].cid, tmp_path / "back")
        assert (tmp_path / "back").read_text().strip() == "3"
        assert m.requester.ctx.blobs.path(result.stdout_cid).read_text() == "one two three\n"
        await settled_with_both(m, job_id)
        opening = quantities.parse_amount("100")
        assert m.balance(m.requester) == opening - QUARTER
        assert m.balance(m.provider) == opening + QUARTER
        for node in (m.requester, m.provider):
            row = node.ctx.store[CONTRACTS].first("job_id", job_id)
            assert (row.state, row.message) == ("settled", FULFILLED)
        nothing_is_left(m)
        stages = [event.removeprefix("job_") for event in m.event_types(job_id) if event.startswith("job_")]
        assert stages == ["posted", "matching", "matched", "requested", "contracted", "invoked", "running",
                          "completed", "verified", "settled"]  # fmt: skip


async def test_every_stage_can_be_run_twice(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec("echo once >> log; cat log", outputs=[{"path": "log"}]))
        for stage in STAGES:
            first = await stage(m.requester.ctx, job_id)
            assert await stage(m.requester.ctx, job_id) == first or first.state in ("invoked", "running")
        assert m.balance(m.provider) == quantities.parse_amount("100") + QUARTER
        assert m.provider.ctx.store[ALLOCATIONS].count() == 1
        assert m.authority.ctx.store[REGISTERED_CONTRACTS].count() == 1


async def test_volunteer_compute_moves_no_money_and_needs_no_price(market: MarketOf) -> None:
    async with market(price="0") as m:
        job_id = await m.post(spec(price="0"))
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"
        assert m.requester.ctx.store[CONTRACTS].first("job_id", job_id).payment == "volunteer"
        assert m.balance(m.requester) == m.balance(m.provider)


async def test_push_asks_one_provider_alone(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec(), push=[m.provider.identity.peer_id])
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"
        job_id = await m.post(spec(), push=[m.authority.identity.did])
        with pytest.raises(NoBidError):
            await match.match(m.requester.ctx, job_id)


async def test_nobody_to_ask(tmp_path: Path) -> None:
    async with open_node(tmp_path, config(default_search_timeout=1)) as node:
        market = Market(node, node, node, tmp_path)
        job_id = await market.post(spec())
        with pytest.raises(NoBidError) as caught:
            await orchestrate_job(node.ctx, job_id)
        assert (caught.value.code, caught.value.exit_code) == ("no_peer", 4)
        assert market.job(job_id).state == "expired"
        # and it can be tried again
        with pytest.raises(NoBidError):
            await match.match(node.ctx, job_id)


async def test_a_machine_too_small_declines_and_says_by_how_much(market: MarketOf) -> None:
    async with market(onboard=OnboardOptions(cpu=1, memory="512MiB", disk="512MiB", price="2")) as m:
        job_id = await m.post(spec(resources={"cpu": 3, "memory": "1GiB"}))
        with pytest.raises(NoBidError) as caught:
            await match.match(m.requester.ctx, job_id)
        (said,) = caught.value.details["answers"]
        assert said["reasons"] == ["cpu.cores: 2 short", "memory: 512 MiB short", "price: 1 NTX above the limit"]
        row = m.requester.ctx.store[BIDS].first("job_id", job_id)
        missed = {f.field: f.margin for f in row.comparison.fields if f.result == "worse"}
        assert missed == {"cpu.cores": "-2", "memory": "-512 MiB", "price": "-1 NTX"}


async def test_strangers_commands_are_refused_unless_configured(market: MarketOf) -> None:
    closed = config(executor=ExecutorConfig(process=ProcessConfig()))
    async with market(provider=closed) as m:
        with pytest.raises(NoBidError) as caught:
            await match.match(m.requester.ctx, await m.post(spec()))
        assert "executors: no process here that you may use" in caught.value.details["answers"][0]["reasons"]


async def test_a_provider_that_thinks_better_of_it_is_followed_by_the_next_bid(tmp_path: Path) -> None:
    async with open_market(tmp_path, price="0.1") as m, open_node(tmp_path / "second", config()) as second:
        await second.onboard(OnboardOptions(price="0.5"), None)
        for address in (m.authority, m.requester):
            await second.add_peer(address.ctx.transport.describe())
        with trio.fail_after(20):
            while len(m.requester.ctx.topics.subscribers("/nunet/bids")) < 2:
                await trio.sleep(0.02)
        job_id = await m.post(spec())
        job = await match.match(m.requester.ctx, job_id)
        assert len(job.shortlist) == 2
        # the cheaper one has sold its machine in the meantime
        full = m.provider.accounting.get_available_capability().resources
        await m.provider.ctx.store.change(
            lambda t: m.provider.accounting.lock_capability(t, "other", "other", full, "2999-01-01T00:00:00.000Z")
        )
        job = await orchestrate_job(m.requester.ctx, job_id)
        assert job.state == "settled"
        assert m.balances()[second.identity.did] == quantities.parse_amount("100.5")
        # both keep it: who declined, and who was declined
        assert "job_request_declined" in m.event_types(job_id)
        assert "job_request_declined" in [event.type for _, event in m.provider.ctx.store.log(job_id)]


async def test_when_everybody_declines_the_failure_says_what_each_said(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec())
        await match.match(m.requester.ctx, job_id)
        await m.provider.accounting.set_preferences(CapabilityComparator(rules=("false",)))
        with pytest.raises(DeclinedError) as caught:
            await request.request(m.requester.ctx, job_id)
        assert caught.value.exit_code == 5
        assert "does not hold" in caught.value.details["refusals"][0]["reason"]
        assert m.job(job_id).state == "failed"


async def let_lapse(m: Market, job_id: str) -> None:
    """Wait until the bids that a job has are over."""
    with trio.fail_after(10):
        while max(row.offer.timeout for row in m.provider.ctx.store[BIDS].by("job_id", job_id)) > quantities.utc_now():
            await trio.sleep(0.02)


async def test_a_job_whose_bids_lapsed_while_nobody_went_on_with_it_is_searched_for_again(market: MarketOf) -> None:
    async with market(provider=config(bid_timeout=1)) as m:
        await match.match(m.requester.ctx, job_id := await m.post(spec()))
        await let_lapse(m, job_id)
        job = await request.request(m.requester.ctx, job_id)
        assert (job.state, job.lapses, job.attempts) == ("matching", 1, 0)
        (bid,) = m.requester.ctx.store[BIDS].by("job_id", job_id)
        assert bid.verdict == "lapsed"
        assert "timed out" in bid.reasons[0]
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"


async def test_a_bid_that_times_out_again_and_again_is_said_so(market: MarketOf) -> None:
    async with market(provider=config(bid_timeout=1)) as m:
        job_id = await m.post(spec())
        for _ in range(MAX_LAPSES):
            await match.match(m.requester.ctx, job_id)
            await let_lapse(m, job_id)
            assert (await request.request(m.requester.ctx, job_id)).state == "matching"
        await match.match(m.requester.ctx, job_id)
        await let_lapse(m, job_id)
        with pytest.raises(DeclinedError) as caught:
            await request.request(m.requester.ctx, job_id)
        assert "timed out" in caught.value.details["refusals"][0]["reason"]


async def test_a_proof_that_comes_again_does_not_move_the_time_of_the_first(market: MarketOf) -> None:
    """Time that is paid counts from it: an earlier end of the work would be paid for as a later one, or disputed."""
    async with market() as m:
        job_id = await m.post(spec())
        for stage in STAGES[:3]:
            await stage(m.requester.ctx, job_id)
        contract_id, kept = m.job(job_id).contract_id, {}
        with trio.fail_after(10):
            while m.provider.ctx.store[CONTRACTS].one(contract_id).state != "proved":
                await trio.sleep(0.02)
        for node in (m.requester, m.provider):
            kept[node] = node.ctx.store[CONTRACTS].one(contract_id).proved_at
            assert kept[node]
        with trio.fail_after(5):
            while quantities.utc_now() <= max(kept.values()):
                await trio.sleep(0.002)
        # the stage was ended in between: the proof is here, the job's state is not
        await m.requester.ctx.store.change(lambda t: change_job(t, job_id, state="requested"))
        await contract.close_contract(m.requester.ctx, job_id)
        await invoke.invoke(m.requester.ctx, job_id)
        for node, at in kept.items():
            assert node.ctx.store[CONTRACTS].one(contract_id).proved_at == at


async def test_a_lock_is_a_lease_and_lapses(market: MarketOf) -> None:
    async with market(provider=config(lock_lease=1)) as m:
        await match.match(m.requester.ctx, job_id := await m.post(spec()))
        await request.request(m.requester.ctx, job_id)
        assert m.provider.accounting.get_locked_capabilities()
        await trio.sleep(1.2)
        assert not m.provider.accounting.get_locked_capabilities()
        # a lapsed lock is taken again while there is room
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"


async def test_lock_on_bid_saves_the_job_request(market: MarketOf) -> None:
    async with market(provider=config(lock_on_bid=True)) as m:
        job_id = await m.post(spec())
        await match.match(m.requester.ctx, job_id)
        assert len(m.provider.accounting.get_locked_capabilities()) == 1
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"
        assert "resources_locked" not in [event.type for _, event in m.provider.ctx.store.log()]
        nothing_is_left(m)
        # a bid without a lock is no locked one, and neither is one whose lock has lapsed
        m.provider.ctx.config.lock_on_bid = False
        job = await match.match(m.requester.ctx, job_id := await m.post(spec()))
        bid = m.requester.ctx.store[BIDS].one(job.bid_id).offer
        assert not check_resource_lock(bid)
        assert check_resource_lock(replace(bid, resources_locked_until_timeout=True))
        past = "2026-01-01T00:00:00.000Z"
        assert not check_resource_lock(replace(bid, resources_locked_until_timeout=True, timeout=past))
        await request.request(m.requester.ctx, job_id)
        assert "resources_locked" in [event.type for _, event in m.provider.ctx.store.log(job_id)]
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"


@pytest.mark.parametrize(
    ("command", "fields", "reason"),
    [
        ("echo why >&2; exit 3", {}, "exit_code"),
        ("sleep 30", {"time": {"max_duration": 1}}, "max_duration"),
        ("true", {"outputs": [{"path": "missing"}]}, "missing_output"),
        ("true", {"executor": {"type": "process", "command": ["true"], "workdir": "nowhere"}}, "no_workdir"),
    ],
)
async def test_a_job_that_fails_is_refunded(market: MarketOf, command: str, fields: Any, reason: str) -> None:
    async with market() as m:
        job = await orchestrate_job(m.requester.ctx, job_id := await m.post(spec(command, **fields)))
        assert job.state == "failed"
        assert (job.error.code, job.error.exit_code) == (reason, 1)
        row = m.requester.ctx.store[CONTRACTS].first("job_id", job_id)
        assert row.state == "refunded"
        assert m.balance(m.requester) == m.balance(m.provider) == quantities.parse_amount("100")
        if reason == "exit_code":
            data, _ = await outputs.read_logs(m.requester.ctx, job, "stderr", 0, 0)
            assert data == b"why\n"
        await settled_with_both(m, job_id)
        nothing_is_left(m)


async def test_time_that_a_failing_job_used_is_paid_where_time_is_sold(market: MarketOf) -> None:
    async with market(price="3600/h") as m:
        job_id = await m.post(spec("sleep 0.5; exit 1", price="100", time={"max_duration": 20}))
        job = await orchestrate_job(m.requester.ctx, job_id)
        assert job.state == "failed"
        paid = m.balance(m.provider) - quantities.parse_amount("100")
        assert 500_000 <= paid <= 5_000_000
        assert m.balance(m.requester) == quantities.parse_amount("100") - paid


async def test_a_provider_failure_is_retried_elsewhere_only_as_the_job_allows(market: MarketOf) -> None:
    async with market() as m:

        async def broken(task: Any) -> str:
            raise ExecutorError("the disk is broken")

        m.provider.ctx.executors["process"].start = broken
        with pytest.raises(NoBidError):
            await orchestrate_job(m.requester.ctx, job_id := await m.post(spec(retry={"attempts": 1})))
        job = m.job(job_id)
        assert job.attempts == 1
        assert job.excluded == (m.provider.identity.did,)


async def test_too_little_money_is_an_error_with_the_missing_amount(market: MarketOf) -> None:
    async with market(price="150") as m:
        with pytest.raises(ContractError) as caught:
            await orchestrate_job(m.requester.ctx, job_id := await m.post(spec(price="200")))
        assert (caught.value.code, caught.value.exit_code) == ("insufficient_funds", 6)
        assert caught.value.details["missing"] == "50"
        assert m.job(job_id).state == "failed"


async def test_an_entity_that_is_not_verified_gets_no_contract(market: MarketOf) -> None:
    async with market() as m:
        assert m.authority.contract_database is not None
        await m.authority.contract_database.registry.revoke(m.provider.identity.did)
        job_id = await m.post(spec())
        with pytest.raises(DeclinedError):
            await orchestrate_job(m.requester.ctx, job_id)
        assert "not verified" in m.job(job_id).refusals[0].reason
        # the requester has asked itself: the contract database had nothing to refuse
        database = m.authority.identity.did
        assert not await contract.validate_provider(m.requester.ctx, m.provider.identity.did, database)
        assert await contract.validate_provider(m.provider.ctx, m.requester.identity.did, database)
        # what was locked for it is free at once, and not at the end of the lease
        with trio.fail_after(m.provider.ctx.config.lock_lease / 2):
            while m.provider.ctx.store[HOLDINGS].count():
                await trio.sleep(0.01)


@pytest.mark.parametrize("party", ["provider", "requester"])
async def test_what_a_party_remembers_of_who_is_verified_does_not_decide(market: MarketOf, party: str) -> None:
    async with market() as m:
        assert m.authority.contract_database is not None
        await orchestrate_job(m.requester.ctx, await m.post(spec()))
        revoked = getattr(m, party).identity.did
        await m.authority.contract_database.registry.revoke(revoked)
        asked = m.provider if party == "requester" else m.requester
        assert asked.ctx.verified.knows(m.authority.identity.did, revoked)
        job_id = await m.post(spec())
        with pytest.raises(DeclinedError if party == "provider" else ContractError) as caught:
            await orchestrate_job(m.requester.ctx, job_id)
        assert m.job(job_id).state == "failed"
        if party == "provider":
            assert "not verified" in m.job(job_id).refusals[0].reason
            assert not asked.ctx.verified.knows(m.authority.identity.did, revoked)
        else:
            assert (caught.value.code, caught.value.exit_code) == ("not_verified_entity", 6)
        assert [row.state for row in m.authority.ctx.store[REGISTERED_CONTRACTS].all()] == ["settled"]


async def test_a_contract_that_differs_from_the_bid_by_anything_is_refused(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec())
        await match.match(m.requester.ctx, job_id)
        job = await request.request(m.requester.ctx, job_id)
        row = m.requester.ctx.store[BIDS].one(job.bid_id)
        cheaper = replace(row.offer, price=replace(row.offer.price, amount="0.01"))
        await m.requester.ctx.store.change(lambda t: t[BIDS].put(replace(row, bid=cheaper)))
        with pytest.raises(ContractError) as caught:
            await contract.close_contract(m.requester.ctx, job_id)
        assert "differs from the bid" in caught.value.message
        assert m.provider.ctx.store[CONTRACTS].count() == 0


async def test_no_invocation_without_a_proved_contract(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec())
        for stage in STAGES[:3]:
            await stage(m.requester.ctx, job_id)
        row = m.requester.ctx.store[CONTRACTS].first("job_id", job_id)
        forged = make_document(msgspec.json.decode(row.proof.content)).sign(m.requester.identity, "contract-database")
        await m.requester.ctx.store.change(lambda t: t[CONTRACTS].put(replace(row, proof=forged)))
        with pytest.raises(NunetError) as caught:
            await invoke.invoke(m.requester.ctx, job_id)
        assert caught.value.code == "bad_signature"
        assert m.provider.ctx.store[ALLOCATIONS].count() == 0


async def test_a_result_that_lies_is_disputed_and_escrow_is_held(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec(outputs=[{"path": "out"}]))
        for stage in STAGES[:4]:
            await stage(m.requester.ctx, job_id)
        await execute.follow(m.requester.ctx, job_id)
        # the provider claims success for a job that wrote nothing
        row = m.requester.ctx.store[CONTRACTS].first("job_id", job_id)
        honest = row.result.read(Result)
        lie = replace(honest, state="completed", exit_code=0, reason="", fault="")
        document = make_document(lie).sign(m.provider.identity, "provider")

        def plant(t: Any) -> None:
            t[CONTRACTS].put(replace(row, result=document))
            change_job(t, job_id, result=lie)

        await m.requester.ctx.store.change(plant)
        with pytest.raises(DisputedError) as caught:
            await settle.settle(m.requester.ctx, job_id)
        assert caught.value.exit_code == 7
        assert m.job(job_id).state == "disputed"
        assert m.balances()[f"escrow:{row.id}"] == QUARTER


@pytest.mark.parametrize("stages", range(6))
async def test_cancelling_leaves_nothing_behind_at_any_stage(market: MarketOf, stages: int) -> None:
    async with market() as m:
        job_id = await m.post(spec("sleep 60"))
        for stage in STAGES[: min(stages, 4)]:
            await stage(m.requester.ctx, job_id)
        if stages == 5:
            with trio.fail_after(30):
                while m.job(job_id).state != "running":
                    await trio.sleep(0.02)
        job = await m.requester.cancel_job(job_id)
        assert job.state == "cancelled"
        assert (await m.requester.cancel_job(job_id)).state == "cancelled"
        nothing_is_left(m)
        assert m.balance(m.requester) == m.balance(m.provider)
        with pytest.raises(StateError):
            await match.match(m.requester.ctx, job_id)


async def test_a_requester_that_was_gone_learns_what_it_missed(tmp_path: Path) -> None:
    async with open_market(tmp_path) as m:
        async with open_node(tmp_path / "other", config()) as node:
            for peer in (m.authority, m.provider):
                await node.add_peer(peer.ctx.transport.describe())
            away = Market(node, m.provider, m.authority, tmp_path)
            job_id = await away.post(spec("echo late"))
            for stage in STAGES[:4]:
                await stage(node.ctx, job_id)
        with trio.fail_after(30):
            while m.provider.ctx.store[ALLOCATIONS].first("job_id", job_id).state != "completed":
                await trio.sleep(0.02)
        async with open_node(tmp_path / "other", config()) as node:
            assert (await settle.settle(node.ctx, job_id)).state == "settled"


async def test_a_provider_that_was_restarted_says_so_and_the_deposit_returns(tmp_path: Path) -> None:
    authority = config()
    async with (
        open_node(tmp_path / "a", authority, roles=("contract-database", "oracle")) as a,
        open_node(tmp_path / "r", config()) as r,
    ):
        await r.add_peer(a.ctx.transport.describe())
        async with open_node(tmp_path / "p", config()) as p:
            await p.onboard(OnboardOptions(price="0.25"), None)
            await p.add_peer(a.ctx.transport.describe())
            await r.add_peer(p.ctx.transport.describe())
            market = Market(r, p, a, tmp_path)
            job_id = await market.post(spec("sleep 60"))
            for stage in STAGES[:4]:
                await stage(r.ctx, job_id)
            with trio.fail_after(30):
                while market.job(job_id).state != "running":
                    await trio.sleep(0.02)
        async with open_node(tmp_path / "p", config()) as p:
            job = await orchestrate_job(r.ctx, job_id)
            assert (job.state, job.error.code) == ("failed", "provider_restarted")
            market = Market(r, p, a, tmp_path)
            assert market.balance(r) == quantities.parse_amount("100")
            nothing_is_left(market)


async def test_what_is_invoked_while_a_provider_starts_is_begun_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovered = recover.recover_allocations
    async with (
        open_node(tmp_path / "a", config(), roles=("contract-database", "oracle")) as a,
        open_node(tmp_path / "r", config()) as r,
    ):
        await r.add_peer(a.ctx.transport.describe())
        async with open_node(tmp_path / "p", config()) as p:
            await p.onboard(OnboardOptions(price="0.25"), None)
            await p.add_peer(a.ctx.transport.describe())
            await r.add_peer(p.ctx.transport.describe())
            job_id = await Market(r, p, a, tmp_path).post(spec("sleep 1"))
            for stage in STAGES[:3]:
                await stage(r.ctx, job_id)

        async def late(ctx: Any, *left: Any) -> None:
            """Recover once the job has been invoked; there may be much to remove before."""
            with trio.fail_after(30):
                while ctx.store[ALLOCATIONS].first("job_id", job_id) is None:
                    await trio.sleep(0.01)
            await recovered(ctx, *left)

        monkeypatch.setattr(recover, "recover_allocations", late)
        known = NetworkConfig(listen="127.0.0.1:0", discovery=False, peers=(r.ctx.transport.describe(),))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(orchestrate_job, r.ctx, job_id)
            async with open_node(tmp_path / "p", config(network=known)) as p:
                market = Market(r, p, a, tmp_path)
                with trio.fail_after(30):
                    while market.job(job_id).state not in JOB_ENDS:
                        await trio.sleep(0.02)
                assert (market.job(job_id).state, market.job(job_id).error) == ("settled", None)
                nothing_is_left(market)


async def test_logs_can_be_read_while_the_job_runs(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec("echo first; while ! test -e go; do sleep 0.05; done; echo second"))
        for stage in STAGES[:4]:
            await stage(m.requester.ctx, job_id)
        job = m.job(job_id)
        data, ended = await outputs.read_logs(m.requester.ctx, job, "stdout", 0, 5)
        assert (data, ended) == (b"first\n", False)
        assert await outputs.read_logs(m.requester.ctx, job, "stdout", 0, 0) == (data, False)
        (work,) = (m.provider.ctx.home / "allocations").glob("*/work")
        (work / "go").touch()
        rest, ended = b"", False
        with trio.fail_after(30):
            while not ended:
                piece, ended = await outputs.read_logs(m.requester.ctx, job, "stdout", 6 + len(rest), 2)
                rest += piece
        assert rest == b"second\n"


async def test_transfers_tell_how_far_they_have_come(market: MarketOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "PROGRESS_INTERVAL", 0.002)
    size = 16 * 2**20
    async with market() as m:
        (m.folder / "data").write_bytes(os.urandom(size))
        job_id = await m.post(spec("(cat data; echo) > copy", inputs=[{"path": "data"}], outputs=[{"path": "copy"}],
                                   resources={"cpu": 0.5, "memory": "64MiB", "disk": "64MiB"}))  # fmt: skip
        seen: dict[str, list[int]] = {"inputs": [], "outputs": []}
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                while True:
                    progress = m.requester.ctx.progress.all().get(job_id)
                    if progress is not None:
                        assert progress.total >= size
                        seen[progress.what].append(progress.done)
                    await trio.sleep(0.002)

            nursery.start_soon(look)
            job = await orchestrate_job(m.requester.ctx, job_id)
            nursery.cancel_scope.cancel()
        assert job.state == "settled"
        for name, steps in seen.items():
            assert len(set(steps)) > 1, name
            assert steps == sorted(steps), name
        assert m.requester.ctx.progress.all() == {}


async def test_an_overdue_contract_is_refunded_by_the_contract_database(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec())
        for stage in STAGES[:3]:
            await stage(m.requester.ctx, job_id)
        assert m.balance(m.requester) == quantities.parse_amount("100") - QUARTER
        row = m.authority.ctx.store[REGISTERED_CONTRACTS].first("job_id", job_id)
        assert await m.authority.contract_database.refund_expired() == []
        past = replace(row, deadline="2020-01-01T00:00:00.000Z", window_from="2020-01-01T00:00:00.000Z")
        await m.authority.ctx.store.change(lambda t: t[REGISTERED_CONTRACTS].put(past))
        m.authority.contract_database.expect(past.window_from)
        with trio.fail_after(30):
            while m.requester.ctx.store[CONTRACTS].first("job_id", job_id).state != "refunded":
                await trio.sleep(0.05)
        assert m.balance(m.requester) == quantities.parse_amount("100")


async def test_a_silent_requester_cannot_keep_a_provider_from_its_money(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec())
        for stage in STAGES[:4]:
            await stage(m.requester.ctx, job_id)
        await execute.follow(m.requester.ctx, job_id)
        await m.let_pass_the_deadline(m.job(job_id).contract_id)
        with trio.fail_after(20):
            while m.balance(m.provider) != quantities.parse_amount("100") + QUARTER:
                await trio.sleep(0.05)
        await settled_with_both(m, job_id)
        with trio.fail_after(20):
            while m.job(job_id).state != "settled":
                await trio.sleep(0.05)
        # what was paid was fetched before that
        assert m.job(job_id).collected


@pytest.mark.parametrize("kept", [False, True], ids=["nothing-was-kept", "the-verdict-was-kept"])
async def test_a_requester_that_lost_the_answer_by_which_its_contract_was_closed_hears_of_it_after_the_deadline(
    market: MarketOf, kept: bool
) -> None:
    """Who has a contract closed is told by the answer alone; nobody may ask again, and the oracle may be gone."""
    async with market() as m:
        job_id = await m.post(spec())
        for stage in STAGES[:4]:
            await stage(m.requester.ctx, job_id)
        await execute.follow(m.requester.ctx, job_id)
        ctx, contract_id = m.requester.ctx, m.job(job_id).contract_id
        row = ctx.store[CONTRACTS].one(contract_id)
        assert row.result is not None
        verdict = await settle.verify_job(ctx, row)
        assert verdict is not None
        if kept:
            await outputs.collect_outputs(ctx, job_id)
            await ctx.store.change(lambda t: outputs.note_collected(t, m.job(job_id), 0))
            await ctx.store.change(lambda t: settle._note_verdict(t, job_id, row, verdict))
        # as far as this node knows, there is no answer
        body = SettleContract(contract_id, row.result, verdict)
        await ctx.messenger.request(m.authority.identity.did, "settle_contract", body, timeout=20)
        assert m.balance(m.provider) == quantities.parse_amount("100") + QUARTER
        assert ctx.store[CONTRACTS].one(contract_id).state == "proved"
        assert m.job(job_id).state == ("verified" if kept else "completed")
        overdue = replace(ctx.store[CONTRACTS].one(contract_id), deadline=quantities.utc_now())
        await ctx.store.change(lambda t: t[CONTRACTS].put(overdue))
        ctx.closings.look(contract_id)
        await settled_with_both(m, job_id)
        with trio.fail_after(20):
            while m.job(job_id).state != "settled" or len(ctx.closings):
                await trio.sleep(0.05)
        assert ctx.store[CONTRACTS].one(contract_id).state == "settled"


async def test_what_need_not_leave_at_once_leaves_before_a_node_stops(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec())
        for stage in STAGES[:2]:
            await stage(m.requester.ctx, job_id)
        # now that all are connected, its next look at what waits is not soon
        outbox = m.authority.ctx.messenger.outbox
        outbox._look_at = trio.current_time() + 600
        await contract.close_contract(m.requester.ctx, job_id)
        # the provider has not been invoked: the authority has yet to tell it of the proof
        assert m.authority.ctx.store[OUTBOX].count() == 1
        assert await outbox.flush(5)
        assert m.authority.ctx.store[OUTBOX].count() == 0
        with trio.fail_after(5):
            while m.provider.ctx.store[CONTRACTS].one(m.job(job_id).contract_id).state != "proved":
                await trio.sleep(0.01)


async def test_anybody_can_repeat_the_oracles_checks_and_a_changed_byte_is_found(market: MarketOf) -> None:
    from nunet_cli.records.messages import JobVerification

    async with market() as m:
        job_id = await m.post(spec())
        await orchestrate_job(m.requester.ctx, job_id)
        row = m.requester.ctx.store[CONTRACTS].first("job_id", job_id)
        documents = {"contract": row.document, "proof": row.proof, "result": row.result}
        whole = JobVerification(row.spec, **documents)
        assert all(check.passed for check in verify_documents(whole))
        for key, document in documents.items():
            changed = Document(document.content.replace("0", "1", 1), document.signatures)
            bad = replace(whole, **{key: changed})
            assert not all(check.passed for check in verify_documents(bad)), key


async def test_the_books_add_up_and_the_log_is_whole(market: MarketOf) -> None:
    async with market() as m:
        for command in ("true", "false"):
            await orchestrate_job(m.requester.ctx, await m.post(spec(command)))
        assert await chain.check_whole(m.authority.ctx.store) >= 6
        (seq, row) = m.authority.ctx.store[LOG].after(0)[2]
        changed = replace(row, entry=row.entry.replace("admit", "forge").replace("register", "forge"))
        assert changed != row
        # as somebody who has the file would
        rewrite, values = 'UPDATE "log" SET doc=? WHERE seq=?', (msgspec.json.encode(changed), seq)
        await m.authority.ctx.store.change(lambda t: t._connection.execute(rewrite, values))
        with pytest.raises(ContractError, match="entry 3"):
            await chain.check_whole(m.authority.ctx.store)


def test_wait_until_reports_what_did_not_happen() -> None:
    with pytest.raises(AssertionError, match="the impossible"):
        wait_until(lambda: False, timeout=0.1, what="the impossible")


async def test_another_network_name_keeps_nodes_apart(tmp_path: Path) -> None:
    lab = config(network=NetworkConfig(listen="127.0.0.1:0", discovery=False, name="lab", secret="s"))
    async with open_node(tmp_path / "a", lab) as a, open_node(tmp_path / "b", config()) as b:
        await b.add_peer(a.ctx.transport.describe())
        with trio.fail_after(20):
            while not a.ctx.transport.rejections["handshake"]:
                await trio.sleep(0.02)
        assert not a.ctx.transport.connected()


async def test_a_job_called_off_while_the_provider_is_away_is_settled_when_it_is_back(tmp_path: Path) -> None:
    async with (
        open_node(tmp_path / "a", config(), roles=("contract-database", "oracle")) as a,
        open_node(tmp_path / "r", config()) as r,
    ):
        await r.add_peer(a.ctx.transport.describe())
        async with open_node(tmp_path / "p", config()) as p:
            await p.onboard(OnboardOptions(price="0.25"), None)
            await p.add_peer(a.ctx.transport.describe())
            await r.add_peer(p.ctx.transport.describe())
            market = Market(r, p, a, tmp_path)
            job_id = await market.post(spec())
            for stage in STAGES[:3]:
                await stage(r.ctx, job_id)
        r.ctx.config.limits.answer_timeout = 1
        job = await r.cancel_job(job_id)
        assert job.state == "cancelled"
        assert "it is told when it is back" in job.note
        async with open_node(tmp_path / "p", config()) as p:
            await r.add_peer(p.ctx.transport.describe())
            with trio.fail_after(60):
                while r.ctx.store[CONTRACTS].first("job_id", job_id).state != "refunded":
                    await trio.sleep(0.05)
            market = Market(r, p, a, tmp_path)
            assert market.balance(r) == quantities.parse_amount("100")
            nothing_is_left(market)


async def test_a_contract_whose_proof_never_arrived_is_refunded_when_the_job_is_called_off(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec())
        for stage in STAGES[:3]:
            await stage(m.requester.ctx, job_id)
        row = m.requester.ctx.store[CONTRACTS].first("job_id", job_id)

        def forget(t: Any) -> None:
            t[CONTRACTS].put(replace(row, state="agreed", proof=None))
            change_job(t, job_id, state="requested")

        await m.requester.ctx.store.change(forget)
        assert (await m.requester.cancel_job(job_id)).state == "cancelled"
        assert m.balance(m.requester) == quantities.parse_amount("100")
        nothing_is_left(m)


@pytest.mark.docker
@needs_docker
async def test_an_image_that_is_not_there_is_declined_before_any_contract(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec(executor={"type": "docker", "image": "no-such-image:1"}))
        with pytest.raises(NoBidError) as caught:
            await match.match(m.requester.ctx, job_id)
        assert caught.value.details["answers"][0]["reasons"] == ["executor.image: the image is not on this provider"]


async def test_an_executor_that_breaks_fails_the_job_and_not_the_node(market: MarketOf) -> None:
    async with market() as m:

        async def breaks(*_: Any) -> Any:
            raise RuntimeError("the engine went away")

        m.provider.ctx.executors["process"].wait = breaks
        job = await orchestrate_job(m.requester.ctx, job_id := await m.post(spec("sleep 60")))
        assert (job.state, job.error.code) == ("failed", "provider_error")
        assert "the engine went away" in job.error.message
        await settled_with_both(m, job_id)
        nothing_is_left(m)
