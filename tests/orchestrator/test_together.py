"""Messages about the same thing that arrive together: each was looked at before any of them changed anything."""

import json
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing
from msgspec import Struct, structs

from nunet_cli import quantities
from nunet_cli.database.store import Store
from nunet_cli.errors import ContractError, StateError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.jobs.check import decode_spec
from nunet_cli.network.envelope import seal
from nunet_cli.network.identity import Identity, new_identity
from nunet_cli.network.messenger import Change, Incoming
from nunet_cli.node.node import Node
from nunet_cli.orchestrator import contract, match, request
from nunet_cli.records.allocations import ALLOCATIONS, HOLDINGS
from nunet_cli.records.bids import BID_REQUESTS, BIDS, Bid, BidRequest, CapabilityComparison, Decline
from nunet_cli.records.contract_records import CONTRACTS, REGISTERED_CONTRACTS
from nunet_cli.records.contracts import Contract
from nunet_cli.records.documents import Document
from nunet_cli.records.jobs import Job
from nunet_cli.records.messages import (
    ContractAgreement,
    ContractProposal,
    Invocation,
    JobCancel,
    JobRequest,
    TimeoutJobRequest,
)
from tests.conftest import Market, config
from tests.together import held

MarketOf = Callable[..., Any]


def spec(**resources: Any) -> str:
    needs = {"cpu": 0.1, "memory": "16MiB", "disk": "1MiB", **resources}
    body = {"name": "test", "executor": {"type": "null"}, "price": "1", "resources": needs}
    return json.dumps({**body, "time": {"max_duration": "1m"}})


class Stranger(NamedTuple):
    """Somebody with a key, which costs nothing."""

    identity: Identity


async def looked_at(by: Node, sender: Node | Stranger, type_: str, body: Struct) -> Change:
    """Let a node check a message, and return what it will change, which it has not yet."""
    envelope, raw = seal(sender.identity, by.identity.did, type_, body, lifetime=60)
    behaviour = by.ctx.messenger._types[type_].behaviour
    assert behaviour is not None
    change = await behaviour(Incoming(envelope, body, raw))
    assert callable(change)
    return change


async def at_stage(m: Market, *stages: Any, text: str = "") -> Job:
    job_id = await m.post(text or spec())
    for stage in stages:
        await stage(m.requester.ctx, job_id)
    return m.job(job_id)


def asked(m: Market, job: Job) -> BidRequest:
    return m.requester.ctx.store[BID_REQUESTS].one(job.bid_request_id).request


async def test_a_bid_request_that_comes_by_two_ways_gets_one_bid(market: MarketOf) -> None:
    async with market() as m:
        again = structs.replace(asked(m, await at_stage(m, match.match)), id="request-by-two-ways")
        changes = [await looked_at(m.provider, m.requester, "bid_request", again) for _ in range(2)]
        answers = [await m.provider.ctx.store.change(change) for change in changes]
        assert answers[0] == answers[1]
        assert len(m.provider.ctx.store[BIDS].by("bid_request_id", again.id)) == 1


async def test_of_two_bids_of_one_bidder_the_first_counts(market: MarketOf) -> None:
    async with market() as m:
        job = await at_stage(m)
        asking = match.new_bid_request(m.requester.ctx, job, decode_spec(job.spec))
        await m.requester.ctx.store.change(partial(match.begin_search, request=asking))
        offer = await m.provider.ctx.store.change(
            await looked_at(m.provider, m.requester, "bid_request", asking)
        )  # fmt: skip
        assert offer is not None
        first = offer[1]
        assert isinstance(first, Bid)
        with m.requester.ctx.searches.out(asking.id):
            bids = [first, structs.replace(first, id="bid-another")]
            changes = [await looked_at(m.requester, m.provider, "bid", bid) for bid in bids]
            for change in changes:
                await m.requester.ctx.store.change(change)
            assert m.requester.ctx.searches.answers(asking.id) == 1
        assert [row.id for row in m.requester.ctx.store[BIDS].by("bid_request_id", asking.id)] == [first.id]


@pytest.mark.parametrize("kind", ["bid", "decline"])
async def test_a_search_keeps_so_many_answers_whoever_sends_them_by_relay(market: MarketOf, kind: str) -> None:
    async with market() as m:
        job = await at_stage(m)
        asking = match.new_bid_request(m.requester.ctx, job, decode_spec(job.spec))
        await m.requester.ctx.store.change(partial(match.begin_search, request=asking))
        answer = await m.provider.ctx.store.change(await looked_at(m.provider, m.requester, "bid_request", asking))
        assert answer is not None
        offer = answer[1]
        assert isinstance(offer, Bid)

        def of(stranger: Stranger, number: int) -> Bid | Decline:
            bidder = stranger.identity.node_id
            if kind == "bid":
                return structs.replace(offer, id=f"bid-{number}", bidder=bidder)
            return Decline(asking.id, job.id, bidder, CapabilityComparison())

        strangers = [Stranger(new_identity()) for _ in range(70)]
        with m.requester.ctx.searches.out(asking.id):
            changes = [
                await looked_at(m.requester, stranger, kind, of(stranger, number))
                for number, stranger in enumerate(strangers)
            ]
            refused = 0
            async with held(m.requester.ctx.store) as go, trio.open_nursery() as nursery:

                async def send(change: Change) -> None:
                    nonlocal refused
                    try:
                        await m.requester.ctx.store.change(change)
                    except StateError as error:
                        assert error.code in ("enough_bids", "enough_refusals")
                        refused += 1

                for change in changes:
                    nursery.start_soon(send, change)
                await trio.testing.wait_all_tasks_blocked()
                go()
        assert refused == 20
        assert m.requester.ctx.store[BIDS].count("bid_request_id", asking.id) == 50


async def test_what_has_room_for_one_job_is_locked_for_one(market: MarketOf) -> None:
    async with market() as m:
        memory = m.provider.accounting.get_available_capability().resources.memory
        text = spec(memory=f"{memory * 6 // 10 // 2**20}MiB")
        jobs = [await at_stage(m, match.match, text=text) for _ in range(2)]
        changes = [
            await looked_at(m.provider, m.requester, "job_request", JobRequest(job.bid_id, asked(m, job)))
            for job in jobs
        ]
        answers = [await m.provider.ctx.store.change(change) for change in changes]
        assert [answer and answer[0] for answer in answers] == ["bid", "decline_job_request"]
        assert [row.id for row in m.provider.ctx.store[HOLDINGS].all()] == [jobs[0].bid_id]


async def test_who_asks_again_and_again_holds_no_longer_than_the_offer_and_one_lease(market: MarketOf) -> None:
    async with market(provider=config(bid_timeout=1, lock_lease=2)) as m:
        job = await at_stage(m, match.match)
        offered = m.provider.ctx.store[BIDS].one(job.bid_id).offer.timeout
        until: set[str] = set()
        with trio.fail_after(20):
            while True:
                body = JobRequest(job.bid_id, asked(m, job))
                answer = (await request.query_peer(m.requester.ctx, m.provider.identity.did, body)).body
                if isinstance(answer, TimeoutJobRequest):
                    break
                assert isinstance(answer, Bid)
                until.add(answer.timeout)
                await trio.sleep(0.1)
        lease = quantities.format_time(quantities.parse_time(offered) + timedelta(seconds=2))
        assert offered < max(until) <= lease
        assert not m.provider.accounting.get_locked_capabilities()


async def test_what_is_released_while_it_is_asked_for_is_not_locked(market: MarketOf) -> None:
    async with market() as m:
        job = await at_stage(m, match.match)
        lock = await looked_at(m.provider, m.requester, "job_request", JobRequest(job.bid_id, asked(m, job)))
        release = await looked_at(m.provider, m.requester, "job_cancel", JobCancel(bid_id=job.bid_id))
        await m.provider.ctx.store.change(release)
        with pytest.raises(StateError, match="is released"):
            await m.provider.ctx.store.change(lock)
        assert m.provider.ctx.store[HOLDINGS].count() == 0


async def test_a_bid_gets_one_contract_and_that_as_often_as_it_is_asked_for(market: MarketOf) -> None:
    async with market() as m:
        job = await at_stage(m, match.match, request.request)
        bid = m.requester.ctx.store[BIDS].one(job.bid_id)

        def proposal() -> Document:
            authority = m.authority.identity.did
            return contract.generate_job_contract(m.requester.ctx, job, bid, authority, authority)

        first = proposal()
        with trio.fail_after(5):
            while quantities.utc_now() == first.read(Contract).created_at:
                await trio.sleep(0.001)
        documents = [first, first, proposal()]
        changes = [
            await looked_at(m.provider, m.requester, "contract_proposal", ContractProposal(document))
            for document in documents
        ]
        answers = [await m.provider.ctx.store.change(change) for change in changes[:2]]
        assert answers[0] == answers[1]
        assert answers[0] is not None
        assert isinstance(answers[0][1], ContractAgreement)
        with pytest.raises(ContractError) as caught:
            await m.provider.ctx.store.change(changes[2])
        assert caught.value.code == "bid_used"
        assert [row.id for row in m.provider.ctx.store[CONTRACTS].all()] == [first.cid]
        # it has its resources: they are not locked a second time
        again = await looked_at(m.provider, m.requester, "job_request", JobRequest(bid.id, asked(m, job)))
        with pytest.raises(ContractError, match="there is a contract for this bid already"):
            await m.provider.ctx.store.change(again)


async def test_an_invocation_that_comes_twice_makes_one_allocation_and_begins_it_once(market: MarketOf) -> None:
    async with market() as m:
        job = await at_stage(m, match.match, request.request, contract.close_contract)
        kept = m.requester.ctx.store[CONTRACTS].one(job.contract_id)
        assert kept.proof is not None
        order = Invocation(job.spec, kept.document, kept.proof)
        changes = [await looked_at(m.provider, m.requester, "invocation", order) for _ in range(2)]
        begun: list[str] = []
        m.provider.ctx.begin_allocation = begun.append
        for change in changes:
            await m.provider.ctx.store.change(change)
        (allocation,) = m.provider.ctx.store[ALLOCATIONS].all()
        assert begun == [allocation.id]
        assert [row.kind for row in m.provider.ctx.store[HOLDINGS].all()] == ["allocation"]


async def waiting(store: Store, count: int) -> None:
    """Wait until so many changes have read what there is, and wait for their turn."""
    with trio.fail_after(10):
        while len(store._waiting) + store._is_led < count:
            await trio.sleep(0.002)


async def is_told(node: Node, contract_id: str) -> str:
    """Wait until a party has heard how a contract ended, and return how."""
    with trio.fail_after(20):
        while not node.ctx.store[CONTRACTS].one(contract_id).told:
            await trio.sleep(0.01)
    return node.ctx.store[CONTRACTS].one(contract_id).state


async def called_off_while_held(m: Market, job_id: str, store: Store) -> Job:
    """Take a job further, and call it off while what that asks for waits for its turn in a store; return the job."""
    ended: list[Job] = []

    async def call_off() -> None:
        ended.append(await m.requester.cancel_job(job_id))

    async with held(store) as go, trio.open_nursery() as nursery:
        m.requester.orchestrate(job_id)
        await waiting(store, 1)
        nursery.start_soon(call_off)
        await waiting(store, 2)
        go()
    return ended[0]


async def nothing_was_done(m: Market, contract_id: str) -> None:
    """Check that a contract ended without money and work, for everybody."""
    for node in (m.requester, m.provider):
        assert await is_told(node, contract_id) == "refunded"
        with trio.fail_after(10):
            while len(node.ctx.closings):
                await trio.sleep(0.01)
    assert m.authority.ctx.store[REGISTERED_CONTRACTS].one(contract_id).state == "refunded"
    assert m.balance(m.requester) == quantities.parse_amount("100")
    assert not any(balance for account, balance in m.balances().items() if account.startswith("escrow:"))
    assert m.provider.ctx.store[HOLDINGS].count() == 0
    assert not m.provider.ctx.running


async def test_an_order_to_stop_that_meets_the_order_to_start_ends_the_job_and_gives_the_deposit_back(
    market: MarketOf,
) -> None:
    """The first answer says nothing of the end, as there is none yet: the requester asks again, and is told."""
    async with market() as m:
        text = spec().replace('"type": "null"', '"type": "null", "env": {"NULL_SECONDS": "600"}')
        job = await at_stage(m, match.match, request.request, contract.close_contract, text=text)
        with trio.fail_after(10):
            while m.provider.ctx.store[CONTRACTS].one(job.contract_id).state != "proved":
                await trio.sleep(0.01)
        # known as of use, they are no change of their own before the allocation
        await m.provider.ctx.peers.note_useful(m.requester.identity.did, m.authority.identity.did)
        ended = await called_off_while_held(m, job.id, m.provider.ctx.store)
        assert ended.state == "cancelled"
        (allocation,) = m.provider.ctx.store[ALLOCATIONS].all()
        assert allocation.state == "cancelled"
        await nothing_was_done(m, job.contract_id)


async def test_a_job_that_is_called_off_while_its_contract_is_being_registered_has_its_deposit_back(
    market: MarketOf,
) -> None:
    """A question whether it is recorded would overtake the registration, and the deposit be held until the deadline."""
    async with market() as m:
        job = await at_stage(m, match.match, request.request)
        ended = await called_off_while_held(m, job.id, m.authority.ctx.store)
        assert ended.state == "cancelled"
        assert m.provider.ctx.store[ALLOCATIONS].count() == 0
        (kept,) = m.requester.ctx.store[CONTRACTS].by("job_id", job.id)
        await nothing_was_done(m, kept.id)


async def test_a_bidder_that_was_asked_to_lock_when_the_requester_was_killed_is_free_for_its_next_search(
    market: MarketOf,
) -> None:
    """It is asked while it is kept that its bid is the best: that may never come to the disk, and the lock is there."""
    async with market() as m:
        job = await at_stage(m, text=spec(cpu=1))
        ctx = m.requester.ctx
        asking = await match._search(ctx, job, decode_spec(job.spec), 3)
        (bid,) = ctx.store[BIDS].by("bid_request_id", asking.id)
        await request.ask_first(ctx, bid.id)
        assert m.provider.ctx.store[HOLDINGS].count() == 1
        # what is in memory alone is gone with the process
        assert ctx.asked.take(bid.id) is not None
        assert (m.job(job.id).state, m.job(job.id).tries) == ("matching", 0)
        assert (await orchestrate_job(ctx, job.id)).state == "settled"
        assert m.provider.ctx.store[BIDS].one(bid.id).verdict == "released"
        assert m.provider.ctx.store[HOLDINGS].count() == 0
