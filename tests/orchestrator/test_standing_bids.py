"""Bids for many units that stand, and those who misuse them: what is given to whom, and what is kept of it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.errors import ContractError, NunetError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import bid as bids
from nunet_cli.orchestrator import orchestrate
from nunet_cli.orchestrator.batch import put_back
from nunet_cli.orchestrator.changes import advance
from nunet_cli.orchestrator.receipts import finish_job
from nunet_cli.orchestrator.retry import MAX_IN_VAIN
from nunet_cli.orchestrator.standing import BELIEVED, LONGEST_DOUBT, Standing, Taken
from nunet_cli.records.allocations import ALLOCATIONS, HOLDINGS
from nunet_cli.records.bids import BIDS, Bid, BidRecord, CapabilityComparator, NodeID, TimeBid, unit_id, unit_number
from nunet_cli.records.capability import Cpu, PriceBid, Resources
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import Receipt
from nunet_cli.records.documents import make_document
from nunet_cli.records.jobs import JOBS
from nunet_cli.records.machine import REQUESTER
from nunet_cli.records.messages import JobCancel, RegisterContract
from nunet_cli.records.results import Result
from tests.conftest import Market, MarketFactory, config, open_market
from tests.orchestrator.test_units import OFFER, PLACES, batch, begun, children, proposal, propose, standing

LATER = "2999-01-01T00:00:00.000Z"


def made(bid_id: str, did: str = "did:key:zA", units: int = 1, seconds: int = 3600) -> BidRecord:
    node = NodeID("", "", "", did)
    offer = Bid(bid_id, "request", "group", node, PriceBid(), TimeBid(LATER, seconds), LATER, "spec", units=units)
    return BidRecord(bid_id, "bid", "received", did, "request", "group", LATER, node, offer)


# -- the requester's half ----------------------------------------------------------------------------------------------


async def test_one_whose_bid_is_over_before_it_took_its_unit_waits_for_another() -> None:
    all_bids = Standing()
    with all_bids.open("group", ["one", "two", "three"]) as group, trio.fail_after(10):
        group.stand(made("bid-a", units=2))
        group.bids["did:key:zA"].ahead = 1
        for name in ("one", "two"):
            assert (await group.take(name)).bid.id == "bid-a"
        found: list[Taken] = []

        async def wait() -> None:
            found.append(await group.take("three"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            # the program of the first ends, its unit is the third's; the provider is found to be gone before that runs
            all_bids.ended("group", "one", 1.0)
            all_bids.turned_down("group", "two", stands=False)
            await trio.testing.wait_all_tasks_blocked()
            assert not found
            # the same bid stands again, as one who is back is asked: its units have other names than those before
            group.stand(made("bid-a", units=1))
            group.fill()
        assert found == [Taken(made("bid-a", units=1), unit_id("bid-a", 4))]


async def test_one_whose_bid_is_replaced_before_it_took_its_unit_has_that_of_the_first() -> None:
    all_bids = Standing()
    with all_bids.open("group", ["one"]) as group, trio.fail_after(10):
        found: list[Taken] = []

        async def wait() -> None:
            found.append(await group.take("one"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            group.stand(made("bid-a"))
            group.fill()
            group.stand(made("bid-b"))
        assert found == [Taken(made("bid-a"), unit_id("bid-a", 1))]


async def test_a_unit_whose_item_waits_no_more_is_anothers_at_once() -> None:
    all_bids = Standing()
    with all_bids.open("group", ["one", "two"]) as group, trio.fail_after(10):
        scope, found = trio.CancelScope(), list[Taken]()

        async def give_up() -> None:
            with scope:
                await group.take("one")

        async def wait() -> None:
            found.append(await group.take("two"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            # before it has heard of it
            group.stand(made("bid-a"))
            group.fill()
        assert [taken.name for taken in found] == [unit_id("bid-a", 2)]


async def test_who_says_again_and_again_that_it_has_room_and_has_none_is_not_believed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    all_bids, plenty = Standing(), Resources(Cpu(64.0), 2**40, 2**40)
    with all_bids.open("group", ["one"]) as group:
        group.needs = Resources(Cpu(0.1), 2**20, 2**20)
        group.stand(made("bid-liar", "did:key:zLiar", units=1))

        async def refused(times: int) -> int:
            """Let an item wait, the provider say that it has room and then decline; return how often it had the item."""
            had = 0
            for _ in range(times):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(group.take, "one")
                    await trio.testing.wait_all_tasks_blocked()
                    all_bids.note_room("did:key:zLiar", plenty)
                    await trio.testing.wait_all_tasks_blocked()
                    had += "one" in group.bids["did:key:zLiar"].taken
                    all_bids.turned_down("group", "one", stands=True)
                    nursery.cancel_scope.cancel()
            return had

        assert await refused(100) == BELIEVED
        await trio.sleep(LONGEST_DOUBT)
        assert await refused(100) == 1
        # one that then takes an item is believed as before
        await trio.sleep(LONGEST_DOUBT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(group.take, "one")
            await trio.testing.wait_all_tasks_blocked()
            all_bids.note_room("did:key:zLiar", plenty)
        all_bids.agreed("group", "one")
        all_bids.leave("group", "one")
        assert await refused(1) + await refused(1) >= 1


async def test_a_provider_that_is_put_aside_is_given_no_more_items(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(batch(30, 0.3))
        m.requester.orchestrate(job_id)
        with trio.fail_after(60):
            while len(begun(m.provider)) <= PLACES:
                await trio.sleep(0.02)
            await m.requester.set_preferences(CapabilityComparator(deny=(m.provider.identity.did,)))
            now = quantities.utc_now()
            while m.job(job_id).state not in ("failed", "settled"):
                await trio.sleep(0.05)
        items = children(m, job_id)
        states = {item.state for item in items}
        assert states == {"settled", "expired"}
        made_then = [row for row in m.requester.ctx.store[CONTRACTS].all() if row.created_at > now]
        assert not made_then, [row.created_at for row in made_then]


async def test_what_a_silent_provider_may_have_locked_is_given_back(market: MarketFactory) -> None:
    async with market(onboard=OFFER) as m:
        ctx, (bid_id, bid) = m.requester.ctx, await standing(m, 2)
        name = unit_id(bid_id, 50)
        with trio.fail_after(30):
            # an item that has asked for a unit, and has no answer
            (child,) = children(m, await m.post(batch(1)))
            answer = await propose(m, proposal(m, bid, 50, child.id))
            assert getattr(answer, "contract", None) is not None
            await ctx.store.change(
                lambda t: advance(t, child.id, "take", by=REQUESTER, bid_id=name, bid_request_id=bid.bid_request_id)
            )
            assert m.provider.ctx.store[HOLDINGS].has(name)
            await put_back(ctx, child.id, ContractError("no answer", details={"cause": "peer_silent"}))
            while m.provider.ctx.store[HOLDINGS].has(name):
                await trio.sleep(0.02)
        assert (m.job(child.id).state, m.job(child.id).refusals) == ("matching", ())


async def test_a_contract_that_comes_too_late_to_be_signed_is_not_held_against_its_item(market: MarketFactory) -> None:
    """Its requester was off, for longer than the contract could be signed: the item asks for another unit."""
    async with market(onboard=OFFER) as m:
        ctx, (bid_id, bid) = m.requester.ctx, await standing(m, 2)
        with trio.fail_after(30):
            (child,) = children(m, await m.post(batch(1)))
            past = quantities.format_time(quantities.now() - timedelta(minutes=3))
            refused = await propose(m, proposal(m, bid, 50, child.id, past))
            assert isinstance(refused, NunetError)
            assert refused.code == "bad_times"
            await ctx.store.change(
                lambda t: advance(
                    t, child.id, "take", by=REQUESTER, bid_id=unit_id(bid_id, 50), bid_request_id=bid.bid_request_id
                )
            )
            await put_back(ctx, child.id, ContractError(refused.message, details={"cause": refused.code}))
        assert (m.job(child.id).state, m.job(child.id).refusals) == ("matching", ())


async def test_a_bid_that_was_forgotten_and_stands_is_taken_all_the_same(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(batch(24, 0.3))
        m.requester.orchestrate(job_id)
        with trio.fail_after(60):
            while len(begun(m.provider)) <= PLACES:
                await trio.sleep(0.02)
            (bid,) = m.requester.ctx.store[BIDS].all()
            # as after many searches that came to nothing
            await m.requester.ctx.store.change(lambda t: t[BIDS].remove(bid.id))
            while m.job(job_id).state not in ("failed", "settled"):
                await trio.sleep(0.05)
        assert {item.state for item in children(m, job_id)} == {"settled"}
        assert m.requester.ctx.store[BIDS].one(bid.id).offer == bid.offer


@pytest.mark.parametrize("is_room_taken", [True, False])
async def test_an_item_whose_provider_does_not_start_it_goes_on_without_a_retry(
    tmp_path: Path, is_room_taken: bool
) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m, open_node(tmp_path / "second", config()) as second:
        for node in (m.authority, m.requester):
            await second.add_peer(node.ctx.transport.describe())
        # none takes a minute, which is known beforehand here
        job_id = await m.post(batch(6, 1.0, time={"max_duration": "60s"}))
        provider, store = m.provider, m.provider.ctx.store
        agreed = store.news(children(m, job_id)[PLACES].id)

        def breaks(t: Any) -> None:
            """Let the place be another's, or its contract not be here, by the time that it is invoked."""
            (contract,) = t[CONTRACTS].by("bid_id", unit_id(next(iter(t[BIDS].all())).id, PLACES + 1))
            assert t[ALLOCATIONS].first("contract_id", contract.id) is None
            if is_room_taken:
                t[HOLDINGS].remove(contract.bid_id)
                left = provider.accounting.available(t).resources
                if left.cpu.cores:
                    provider.accounting.lock_capability(t, "bid-of-another", "job-x", left, LATER, 5, "did:key:zB")
            else:
                t[CONTRACTS].remove(contract.id)

        m.requester.orchestrate(job_id)
        with trio.fail_after(90):
            await agreed.wait()
            await store.change(breaks)
            await second.onboard(OFFER, None)
            while m.job(job_id).state not in ("failed", "settled"):
                await trio.sleep(0.05)
        items = children(m, job_id)
        assert [(item.state, item.attempt) for item in items] == [("settled", 1)] * 6


async def test_a_provider_that_says_for_ever_that_no_place_came_free_does_not_keep_an_item(
    market: MarketFactory,
) -> None:
    async with market(onboard=OFFER) as m:
        job_id = await m.post(batch(1))
        with trio.fail_after(60):
            await orchestrate_job(m.requester.ctx, job_id)
        (item,) = children(m, job_id)
        contract = m.requester.ctx.store[CONTRACTS].one(item.contract_id)
        assert contract.receipt is not None
        assert contract.result is not None
        receipt, result = (
            make_document(structs.replace(contract.receipt.read(Receipt), outcome="refunded", paid="0")),
            structs.replace(contract.result.read(Result), state="failed", reason="no_place", fault="provider"),
        )

        def answer(t: Any, times: int) -> tuple[str, tuple[str, ...], int]:
            """Let it say so that often; return what becomes of the job then."""
            t[JOBS].put(structs.replace(item, state="completed"))
            for number in range(times - 1):
                t[CONTRACTS].put(structs.replace(contract, id=f"before-{number}"))
            job = finish_job(t, item.id, receipt, result)
            return job.state, job.excluded, job.attempt

        store = m.requester.ctx.store
        assert await store.change(lambda t: answer(t, MAX_IN_VAIN - 1)) == ("matching", (), 1)
        assert await store.change(lambda t: answer(t, MAX_IN_VAIN)) == ("matching", (m.provider.identity.did,), 1)
        await store.change(lambda t: t[JOBS].put(item))


async def test_an_item_waits_for_a_contract_database_that_is_away_also_when_its_batchs_bid_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what waits to be settled is asked about as soon as the contract database is there
    monkeypatch.setattr(orchestrate, "SETTLE_PAUSE", 0.5)
    # a bid that stands is older than it says, and who is verified is known for a minute
    async with (
        open_node(tmp_path / "provider", config(bid_timeout=3)) as provider,
        open_node(tmp_path / "requester", config()) as requester,
    ):
        await provider.onboard(structs.replace(OFFER, cpu=0.1), None)
        await requester.add_peer(provider.ctx.transport.describe())
        async with open_node(tmp_path / "authority", config(), roles=("contract-database", "oracle")) as authority:
            for node in (provider, requester):
                await node.add_peer(authority.ctx.transport.describe())
            m = Market(requester, provider, authority, tmp_path)
            job_id = await m.post(batch(4, 2.0))
            requester.orchestrate(job_id)
            with trio.fail_after(60):
                while len(begun(provider)) < 2:
                    await trio.sleep(0.02)
            did = authority.identity.did
        for node in (provider, requester):
            for who in (provider.identity.did, requester.identity.did):
                node.ctx.verified.forget(did, who)
        with trio.fail_after(60):
            events: list[str] = []
            while "contract_database_unanswered" not in events:
                await trio.sleep(0.05)
                events = [kind for item in children(m, job_id) for kind in m.event_types(item.id)]
        async with open_node(tmp_path / "authority", config(), roles=("contract-database", "oracle")) as authority:
            for node in (provider, requester):
                await node.add_peer(authority.ctx.transport.describe())
            with trio.fail_after(60):
                while requester.get_job(job_id).state not in ("failed", "settled"):
                    await trio.sleep(0.05)
        assert [item.state for item in children(m, job_id)] == ["settled"] * 4


# -- the provider's half -----------------------------------------------------------------------------------------------


async def cancel(m: Market, bid_id: str) -> None:
    await m.requester.ctx.messenger.request(m.provider.identity.did, "job_cancel", JobCancel(bid_id=bid_id), timeout=20)


@pytest.mark.parametrize("name", ["", "0", "007", "1.2", "-1", "one", "9" * 40])
async def test_what_is_no_unit_in_the_form_that_is_written_here_is_refused(market: MarketFactory, name: str) -> None:
    async with market(onboard=OFFER) as m:
        _, bid = await standing(m, 2)
        kept = m.provider.ctx.store[CONTRACTS].count()
        answer = await propose(m, proposal(m, bid, 50, bid_id=f"{bid.id}.{name}"))
        assert getattr(answer, "code", answer) == "no_bid_here"
        assert m.provider.ctx.store[CONTRACTS].count() == kept


def test_a_unit_has_one_name() -> None:
    assert [unit_number(unit_id("bid-a", number)) for number in (1, 10, 10_000)] == [1, 10, 10_000]
    assert [unit_number(name) for name in ("bid-a", "bid-a.", "bid-a.01", "bid-a.1.2", "bid-a.\u0663")] == [0] * 5


async def test_what_is_given_back_again_and_again_leaves_no_trace(market: MarketFactory) -> None:
    async with market(onboard=OFFER) as m:
        _, bid = await standing(m, 2)
        assert getattr(await propose(m, proposal(m, bid, 50)), "contract", None) is not None
        assert m.provider.ctx.store[HOLDINGS].has(unit_id(bid.id, 50))
        for _ in range(5):
            await cancel(m, unit_id(bid.id, 50))
            await cancel(m, unit_id(bid.id, 777))
        assert not m.provider.ctx.store[HOLDINGS].has(unit_id(bid.id, 50))
        seen = [event.type for _, event in m.provider.ctx.store.log(bid.job_id)]
        assert seen.count("lock_released") == 1
        # the bid for many stands
        assert m.provider.ctx.store[BIDS].one(bid.id).verdict == "offered"


async def test_who_lines_up_and_gives_back_without_end_has_to_wait(market: MarketFactory) -> None:
    async with market(onboard=structs.replace(OFFER, cpu=0.1)) as m:
        _, bid = await standing(m, 2, parallel=1)
        with trio.fail_after(30):
            while not m.provider.ctx.store[ALLOCATIONS].by("state", "running"):
                await trio.sleep(0.02)
            agreed, refused = 0, ""
            for number in range(100, 300):
                answer = await propose(m, proposal(m, bid, number, f"job-{number}"))
                if getattr(answer, "contract", None) is None:
                    refused = str(answer)
                    break
                agreed += 1
                await cancel(m, unit_id(bid.id, number))
        assert "came to no contract" in refused
        assert 50 <= agreed <= 70, agreed


async def test_who_has_contracts_proved_and_no_job_begun_has_to_wait_as_without_them(market: MarketFactory) -> None:
    async with market(onboard=structs.replace(OFFER, cpu=0.1), provider=config(lock_lease=1)) as m:
        _, bid = await standing(m, 2, parallel=1)
        store, database = m.provider.ctx.store, m.authority.identity.did
        with trio.fail_after(30):
            while not store[ALLOCATIONS].by("state", "running"):
                await trio.sleep(0.02)
            await m.requester.cancel_job(bid.job_id)
            while list(store[HOLDINGS].all()):
                await trio.sleep(0.02)
            answer = await propose(m, proposal(m, bid, 100, "job-100"))
            signed = answer.contract.sign(m.requester.identity, REQUESTER)
            ask = m.requester.ctx.messenger.request
            await ask(database, "register_contract", RegisterContract(signed), timeout=20)
            while store[CONTRACTS].one(signed.cid).proof is None:
                await trio.sleep(0.02)
            while m.provider.accounting.is_locked(store, unit_id(bid.id, 100)):
                await trio.sleep(0.02)
        refused = await propose(m, proposal(m, bid, 101, "job-101"))
        assert "came to no contract" in str(refused)


async def test_a_bid_of_which_units_may_be_taken_stays_where_one_requester_has_caused_very_many(
    market: MarketFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bids, "MOST_OFFERS", 2)
    async with market(onboard=OFFER) as m:
        _, bid = await standing(m, 4)
        with trio.fail_after(30):
            while len(begun(m.provider)) < PLACES:
                await trio.sleep(0.02)
        store = m.provider.ctx.store
        row = store[BIDS].one(bid.id)
        old = [structs.replace(row, id=f"bid-old-{at}", offered_until="2020-01-01T00:00:00.000Z") for at in range(3)]

        def change(t: Any) -> None:
            for other in old:
                t[BIDS].put(other)
            bids.make_room(t, row.did, quantities.utc_now())

        await store.change(change)
        assert store[BIDS].one(bid.id).verdict == "offered"
        assert not any(store[BIDS].has(other.id) for other in old)


# -- the line ----------------------------------------------------------------------------------------------------------


async def test_what_one_gives_back_is_not_kept_for_anothers_larger_job(market: MarketFactory) -> None:
    async with market(onboard=structs.replace(OFFER, cpu=0.5)) as m:
        books, store = m.provider.accounting, m.provider.ctx.store
        small, large = Resources(Cpu(0.1), 2**20), Resources(Cpu(0.3), 2**20)

        def fill(t: Any) -> None:
            books.lock_capability(t, "large-1", "job-1", large, LATER, 5, "did:key:zlarge")
            books.lock_capability(t, "small-1", "job-2", small, LATER, 5, "did:key:zsmall")
            books.lock_capability(t, "small-2", "job-3", small, LATER, 5, "did:key:zsmall")
            books.line_up(t, "large-2", "job-4", large, LATER, 5, "did:key:zlarge")
            books.line_up(t, "small-3", "job-5", small, LATER, 5, "did:key:zsmall")
            books.line_up(t, "small-4", "job-6", small, LATER, 5, "did:key:zsmall")

        await store.change(fill)
        await store.change(lambda t: books.release(t, "small-1"))
        kinds = {row.id: row.kind for row in store[HOLDINGS].all()}
        assert (kinds["small-3"], kinds["small-4"], kinds["large-2"]) == ("lock", "place", "place")
        # and the larger one has what its own requester gives back
        await store.change(lambda t: books.release(t, "large-1"))
        kinds = {row.id: row.kind for row in store[HOLDINGS].all()}
        assert (kinds["small-4"], kinds["large-2"]) == ("place", "lock")


async def test_offboarding_waits_for_what_runs_and_not_for_what_is_in_the_line(tmp_path: Path) -> None:
    async with (
        open_market(tmp_path, onboard=OFFER) as m,
        open_node(tmp_path / "second", config()) as second,
    ):
        for node in (m.authority, m.requester):
            await second.add_peer(node.ctx.transport.describe())
        # none takes a minute, which is known beforehand here
        job_id = await m.post(batch(PLACES * 2, 3, time={"max_duration": "60s"}))
        m.requester.orchestrate(job_id)
        with trio.fail_after(60):
            while len(m.provider.ctx.store[HOLDINGS].by("kind", "place")) < PLACES:
                await trio.sleep(0.02)
            while len(m.provider.ctx.store[ALLOCATIONS].by("state", "created")) < PLACES:
                await trio.sleep(0.02)
            await second.onboard(OFFER, None)
            await m.provider.offboard()
            assert len(begun(m.provider)) == PLACES
            assert not list(m.provider.ctx.store[HOLDINGS].all())
            while m.job(job_id).state not in ("failed", "settled"):
                await trio.sleep(0.05)
        items = children(m, job_id)
        assert [item.state for item in items] == ["settled"] * (PLACES * 2)
        # it was no failure of theirs, and cost nothing
        assert {item.attempt for item in items} == {1}
        assert len(begun(second)) == PLACES
