"""Providers that bid and then refuse, or are paid for nothing; a cancel that cannot be: what becomes of the jobs."""

import dataclasses
import json
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.allocation import run as running
from nunet_cli.allocation.actor import AllocationActor
from nunet_cli.allocation.results import failed_result
from nunet_cli.errors import ContractError, NunetError, StateError
from nunet_cli.network.messenger import Answer, Incoming
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator.bid import assess, create_bid
from nunet_cli.orchestrator.standing import BELIEVED, MANY_REFUSALS
from nunet_cli.records.allocations import HOLDINGS
from nunet_cli.records.bids import BidRequest, unit_id
from nunet_cli.records.capability import PriceBid
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.jobs import JOB_ENDS
from nunet_cli.records.messages import ContractProposal, JobRequest
from nunet_cli.records.results import Result
from tests.conftest import Market, config, open_market
from tests.orchestrator.test_standing_bids import cancel
from tests.orchestrator.test_units import OFFER, SMALL, batch, begun, children, proposal, propose, standing


def single(**fields: Any) -> str:
    executor = {"type": "process", "command": ["true"]}
    return json.dumps({"name": "single", "executor": executor, "price": "1", "resources": SMALL, **fields})


async def refuse(asked: list[str], code: str, message: Incoming) -> Answer:
    asked.append(message.sender)
    raise ContractError("no, as it rains", code=code)


async def make_refuser(m: Market, node: Node, stage: str, code: str = "it_rains") -> list[str]:
    """Let a provider bid less than anybody, for as many units as there are, and refuse; return where it notes it."""
    await node.onboard(structs.replace(OFFER, price="0.001", cpu=1, memory="1GiB", disk="1GiB"), None)
    asked, usual = list[str](), node.ctx.messenger._types["bid_request"].behaviour

    async def bid_for_all(message: Incoming) -> Any:
        body: BidRequest = message.body
        if body.count == 1:
            return await usual(message)
        bid = create_bid(node.ctx, body, await assess(node.ctx, body))
        return "bid", structs.replace(bid, units=body.count, price=PriceBid(amount="0.001"))

    node.ctx.messenger.register("bid_request", BidRequest, bid_for_all)
    kind = {"job_request": JobRequest, "contract_proposal": ContractProposal}[stage]
    node.ctx.messenger.register(stage, kind, partial(refuse, asked, code))
    for other in (m.authority, m.requester):
        await node.add_peer(other.ctx.transport.describe())
    with trio.fail_after(20):
        while len(m.requester.ctx.topics.subscribers("/nunet/bids")) < 2:
            await trio.sleep(0.02)
    return asked


@pytest.mark.parametrize("stage", ["job_request", "contract_proposal"])
async def test_a_bidder_that_refuses_ends_no_job_that_another_runs_once_it_is_free(tmp_path: Path, stage: str) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m, open_node(tmp_path / "refuser", config()) as node:
        asked = await make_refuser(m, node, stage)
        books = m.provider.accounting
        whole = books.get_available_capability().resources
        until = quantities.format_time(quantities.now() + timedelta(seconds=60))
        await m.provider.ctx.store.change(lambda t: books.lock_capability(t, "other", "other", whole, until))
        job_id = await m.post(single())
        m.requester.orchestrate(job_id)
        with trio.fail_after(30):
            while m.job(job_id).waiting is None:
                assert m.job(job_id).state not in JOB_ENDS, m.job(job_id).error
                await trio.sleep(0.02)
            await m.provider.ctx.store.change(partial(books.release, key="other"))
            while m.job(job_id).state != "settled":
                await trio.sleep(0.02)
        assert len(asked) == 1


@pytest.mark.parametrize("code", ["it_rains", "no_place"])
async def test_a_bidder_that_refuses_every_item_gets_no_more_of_the_batch_and_ends_none(
    tmp_path: Path, code: str
) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m, open_node(tmp_path / "refuser", config()) as node:
        asked = await make_refuser(m, node, "contract_proposal", code)
        count = 30
        job_id = await m.post(batch(count, 0.1))
        m.requester.orchestrate(job_id)
        with trio.fail_after(60):
            while m.job(job_id).state not in JOB_ENDS:
                await trio.sleep(0.05)
        assert {item.state for item in children(m, job_id)} == {"settled"}
        assert len(begun(m.provider)) == count
        # those that were on their way when it was known, and a few more: one at a time, and less and less often
        assert MANY_REFUSALS <= len(asked) <= count + 4 * BELIEVED, len(asked)


async def test_who_holds_a_job_and_says_that_no_place_came_free_is_paid_once_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hold_it(_ctx: Any, actor: AllocationActor, _spec: Any, *, attached: bool) -> Result:
        began = quantities.utc_now()
        actor.allocation = await running._begin(_ctx, actor.allocation)
        actor.began.set()
        await trio.sleep(1.1)
        held = failed_result(actor.allocation, began, "no_place", "no place came free in time", fault="job")
        return structs.replace(held, usage=structs.replace(held.usage, wall_seconds=1.1))

    monkeypatch.setattr(running, "_run", hold_it)
    async with open_market(tmp_path, onboard=OFFER) as m:
        await m.provider.set_preferences(m.provider.get_preferences(), PriceBid(amount="0.5", time_unit="s"))
        job_id = await m.post(single(time={"max_duration": "2s"}))
        m.requester.orchestrate(job_id)
        with trio.fail_after(30):
            while m.job(job_id).state not in JOB_ENDS:
                await trio.sleep(0.02)
        job = m.job(job_id)
        assert job.state == "failed"
        assert len(list(m.requester.ctx.store[CONTRACTS].all())) == 1
        assert m.balance(m.provider) - m.balance(m.requester) == 2 * quantities.parse_amount(job.paid or "0") > 0


async def test_a_provider_that_says_that_a_job_was_called_off_which_nobody_did_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call_it_off(_ctx: Any, actor: AllocationActor, _spec: Any, *, attached: bool) -> Result:
        actor.allocation = await running._begin(_ctx, actor.allocation)
        actor.began.set()
        return failed_result(actor.allocation, quantities.utc_now(), "cancelled", "", fault="", state="cancelled")

    monkeypatch.setattr(running, "_run", call_it_off)
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(single(retry={"attempts": 1}))
        m.requester.orchestrate(job_id)
        with trio.fail_after(30):
            while m.job(job_id).state not in JOB_ENDS:
                await trio.sleep(0.02)
        # another provider was looked for, and there is none
        assert m.job(job_id).state == "expired"
        assert [attempt.state for attempt in m.job(job_id).past] == ["failed"]


async def test_what_a_provider_refuses_at_the_start_is_neither_its_requesters_fault_nor_its_own_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        books, tries = m.provider.accounting, list[str]()
        allocate = books.allocate

        def short_of_memory(t: Any, bid_id: str, *rest: Any) -> None:
            tries.append(bid_id)
            if len(tries) <= 3:
                raise StateError("the machine is short of memory")
            allocate(t, bid_id, *rest)

        monkeypatch.setattr(books, "allocate", short_of_memory)
        job_id = await m.post(batch(6, 0.1, retry={"attempts": 3}))
        m.requester.orchestrate(job_id)
        with trio.fail_after(25):
            while m.job(job_id).state not in JOB_ENDS:
                await trio.sleep(0.02)
        assert m.job(job_id).state == "settled"
        assert not m.provider.ctx.work.idle_locks.pause(books, m.provider.ctx.store, m.requester.identity.did)


async def test_a_unit_that_is_given_back_before_it_was_taken_is_not_taken_any_more(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        _, bid = await standing(m, 2, parallel=1)
        name = unit_id(bid.id, 70)
        await cancel(m, name)
        answer = await propose(m, proposal(m, bid, 70))
        assert getattr(answer, "code", answer) == "no_bid_here"
        assert not m.provider.ctx.store[HOLDINGS].has(name)


@pytest.mark.parametrize(("stage", "kind"), [("settle_contract", "task"), ("settle_contract", "batch")])
async def test_what_cannot_be_called_off_any_more_goes_on_to_its_settlement(
    tmp_path: Path, stage: str, kind: str
) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        types = m.authority.ctx.messenger._types
        kept = types[stage]

        async def away(_message: Incoming) -> Answer:
            raise NunetError("the disk is away", code="internal")

        types[stage] = dataclasses.replace(kept, behaviour=away)
        job_id = await m.post(batch(1, 0) if kind == "batch" else single())
        m.requester.orchestrate(job_id)
        item = next(iter(m.job(job_id).children.values()), job_id)
        with trio.fail_after(30):
            while "settlement_waits" not in m.event_types(item):
                await trio.sleep(0.02)
        if kind == "batch":
            assert (await m.requester.cancel_job(job_id)).state == "cancelled"
        else:
            with pytest.raises(NunetError):
                await m.requester.cancel_job(job_id)
        types[stage] = kept
        with trio.fail_after(30):
            while m.job(item).state != "settled":
                await trio.sleep(0.02)
