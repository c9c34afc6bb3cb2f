"""One bid for many units: the items of a batch take places that come free, with their contracts made before."""

import dataclasses
import json
import math
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.allocation import place
from nunet_cli.api import views
from nunet_cli.errors import NunetError, PeerError, StateError
from nunet_cli.executor.base import ExecutorError
from nunet_cli.executor.files import allocation_folder
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.node.line import LINED_UP
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import settle
from nunet_cli.orchestrator.contract import contract_text
from nunet_cli.orchestrator.units import as_unit
from nunet_cli.records import contracts
from nunet_cli.records.allocations import ALLOCATIONS, HOLDINGS
from nunet_cli.records.bids import BID_REQUESTS, BIDS, unit_id
from nunet_cli.records.capability import Cpu, PriceBid, Resources
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.documents import make_document
from nunet_cli.records.jobs import Job
from nunet_cli.records.messages import ContractProposal
from nunet_cli.records.offers import OnboardOptions
from nunet_cli.tokenomics.evidence import export_bundle, read_bundle, verify_bundle
from tests.conftest import Market, MarketFactory, config, open_market

SMALL = {"cpu": 0.1, "memory": "16MiB", "disk": "1MiB"}
PLACES = 3
OFFER = OnboardOptions(price="0.2", cpu=0.3, memory="64MiB", disk="64MiB")


def batch(items: Any, seconds: float = 0.2, **fields: Any) -> str:
    body = {
        "name": "b", "type": "batch", "price": "1", "resources": SMALL, "batch": {"items": items},
        "executor": {"type": "process", "command": ["sleep", str(seconds)]},
    }  # fmt: skip
    return json.dumps({**body, **fields})


def children(m: Market, job_id: str) -> list[Job]:
    return [m.job(child_id) for child_id in m.job(job_id).children.values()]


def begun(node: Node) -> list[str]:
    """Return the jobs whose programs were started at a provider, in that order."""
    rows = [row for row in node.ctx.store[ALLOCATIONS].all() if row.started_at]
    return [row.job_id for row in sorted(rows, key=lambda row: row.started_at)]


def never_more_than_there_is(node: Node) -> None:
    """Look, at each change, whether more is taken than is offered: that would raise."""
    node.accounting.available(node.ctx.store)


async def test_a_batch_takes_units_of_one_bid_and_its_items_begin_in_their_order(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(batch(12))
        with trio.fail_after(60):
            assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"
        items = children(m, job_id)
        (request,) = m.requester.ctx.store[BID_REQUESTS].all()
        assert (request.job_id, request.request.count) == (job_id, 12)
        (bid,) = m.provider.ctx.store[BIDS].all()
        assert bid.offer.units == PLACES
        assert sorted(item.bid_id for item in items) == sorted(unit_id(bid.id, number + 1) for number in range(12))
        # those that run or are in line together have no order
        places = [[item.id for item in items].index(job) for job in begun(m.provider)]
        assert all(abs(place - at) < 2 * PLACES for at, place in enumerate(places)), places
        assert not list(m.provider.ctx.store[HOLDINGS].all())
        for item in items:
            contract = m.requester.ctx.store[CONTRACTS].one(item.contract_id)
            bundle = read_bundle(export_bundle(contract, m.requester.ctx.store[BIDS].get(bid.id)), "test")
            assert [check for check in verify_bundle(bundle) if not check.passed] == []
            assert bundle.bid is not None
        assert sum(quantities.parse_amount(item.paid or "0") for item in items) == quantities.parse_amount("2.4")


async def test_a_batch_that_was_called_off_says_what_it_cost_also_what_is_paid_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"s": 0}, {"s": 0}, {"s": 60}]
    async with open_market(tmp_path, onboard=OFFER) as m:
        ask, late = settle._ask_to_settle, list[str]()

        async def asked(ctx: Any, contract: Any, verdict: Any) -> Any:
            # the first one's contract database is out of reach for a while
            if contract.job_id in late or not late:
                late.append(contract.job_id)
                raise PeerError("it does not answer")
            return await ask(ctx, contract, verdict)

        monkeypatch.setattr(settle, "_ask_to_settle", asked)
        executor = {"type": "process", "command": ["sleep", "{s}"]}
        job_id = await m.post(batch(items, executor=executor))
        m.requester.orchestrate(job_id)
        with trio.fail_after(30):
            while sorted(item.state for item in children(m, job_id)) != ["running", "settled", "verified"]:
                await trio.sleep(0.02)
        assert (await m.requester.cancel_job(job_id)).paid == "0.2"
        monkeypatch.setattr(settle, "_ask_to_settle", ask)
        await settle.settle(m.requester.ctx, late[0])
        assert {item.state: item.paid for item in children(m, job_id)} == {"settled": "0.2", "cancelled": "0"}
        assert (m.job(job_id).state, m.job(job_id).paid) == ("cancelled", "0.4")


async def test_the_next_contract_is_made_while_the_job_before_runs(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(batch(PLACES * 2, 60))
        m.requester.orchestrate(job_id)
        with trio.fail_after(30):
            while len(m.provider.ctx.store[HOLDINGS].by("kind", "place")) < PLACES:
                await trio.sleep(0.02)
            while {item.state for item in children(m, job_id)} != {"running", "invoked"}:
                await trio.sleep(0.02)
            # what waits in line is called off as what runs
            await m.requester.cancel_job(job_id)
        assert {item.state for item in children(m, job_id)} == {"cancelled"}
        with trio.fail_after(20):
            while list(m.provider.ctx.store[HOLDINGS].all()):
                await trio.sleep(0.02)
        assert len(begun(m.provider)) == PLACES


async def test_what_waits_in_the_line_and_cannot_be_taken_down_ends_all_the_same(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        executor, store = m.provider.ctx.executors["process"], m.provider.ctx.store
        clean_up, broke = executor.cleanup, 0

        async def breaking(task: Any, handle: str) -> None:
            nonlocal broke
            await clean_up(task, handle)
            broke += not handle
            raise ExecutorError("a process of the job does not end")

        job_id = await m.post(batch(PLACES * 2, 30))
        m.requester.orchestrate(job_id)
        with trio.fail_after(30):
            while len(store[ALLOCATIONS].by("state", "created")) < PLACES:
                await trio.sleep(0.02)
            while len(getattr(executor, "_ready", ())) < PLACES:
                await trio.sleep(0.02)
            executor.cleanup = breaking
            await m.requester.cancel_job(job_id)
            while list(store[HOLDINGS].all()) or m.provider.ctx.running.all():
                await trio.sleep(0.02)
        assert broke >= PLACES
        assert {row.state for row in store[ALLOCATIONS].all()} == {"cancelled"}
        assert {item.state for item in children(m, job_id)} == {"cancelled"}


@pytest.mark.parametrize("late", [False, True])
async def test_a_batch_that_is_called_off_as_its_provider_gives_the_line_up_has_nothing_left(
    tmp_path: Path, late: bool
) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(batch(PLACES * 2, 30))
        m.requester.orchestrate(job_id)
        store = m.provider.ctx.store
        with trio.fail_after(30):
            while len(store[ALLOCATIONS].by("state", "running")) < PLACES:
                await trio.sleep(0.02)
            while len(store[ALLOCATIONS].by("state", "created")) < PLACES:
                await trio.sleep(0.02)
            await m.provider.accounting.offboard()
            while late and not any(item.result for item in children(m, job_id)):
                await trio.sleep(0.001)
            await m.requester.cancel_job(job_id)
        # none is put back into a search that nobody goes on with
        assert [item.state for item in children(m, job_id)] == ["cancelled"] * PLACES * 2
        assert m.job(job_id).state == "cancelled"


async def test_nothing_lines_up_any_more_behind_items_that_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "LONGEST", 0.5)
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(batch(PLACES * 2, 5))
        m.requester.orchestrate(job_id)

        def given_up() -> list[str]:
            rows = m.provider.ctx.store[ALLOCATIONS].by("state", "failed")
            return [row.job_id for row in rows if row.error == "no place came free in time"]

        with trio.fail_after(60):
            while len(given_up()) < PLACES:
                await trio.sleep(0.02)
            while m.job(job_id).state != "settled":
                await trio.sleep(0.02)
        # each once: they waited for a place from then on, and have had one
        items = children(m, job_id)
        assert sorted(given_up()) == sorted(item.id for item in items[PLACES:])
        assert len(list(m.requester.ctx.store[CONTRACTS].all())) == PLACES * 3
        assert sum(quantities.parse_amount(item.paid or "0") for item in items) == quantities.parse_amount("1.2")


async def test_anothers_only_job_does_not_wait_for_a_batch(tmp_path: Path) -> None:
    seconds, count = 0.5, 40
    async with open_market(tmp_path, onboard=OFFER) as m, open_node(tmp_path / "other", config()) as other:
        for node in (m.authority, m.provider):
            await other.add_peer(node.ctx.transport.describe())
        job_id = await m.post(batch(count, seconds))
        m.requester.orchestrate(job_id)
        with trio.fail_after(60):
            while len(begun(m.provider)) < PLACES * 2:
                await trio.sleep(0.02)
        there = Market(other, m.provider, m.authority, tmp_path)
        one = await there.post(batch(1, seconds))
        with trio.fail_after(60):
            assert (await orchestrate_job(other.ctx, one)).state == "settled"
        # how soon depends on how fast its search was heard of; that it has its turns is held to in `simulation/test_fairness`
        assert m.job(job_id).state == "running"
        # both to their end: below
        await m.requester.cancel_job(job_id)


async def test_two_batches_share_the_places(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m, open_node(tmp_path / "other", config()) as other:
        for node in (m.authority, m.provider):
            await other.add_peer(node.ctx.transport.describe())
        there = Market(other, m.provider, m.authority, tmp_path)
        first, second = await m.post(batch(12, 0.3)), await there.post(batch(12, 0.3))
        m.requester.orchestrate(first)
        other.orchestrate(second)
        with trio.fail_after(90):
            while m.job(first).state != "settled" or there.job(second).state != "settled":
                await trio.sleep(0.05)
        order = begun(m.provider)
        mine = {item.id for item in children(m, first)}
        # in the middle, where both wait, neither has much more than the other
        middle = order[6:18]
        assert 3 <= sum(job in mine for job in middle) <= 9, [job in mine for job in order]


async def test_what_the_owner_decides_holds_for_the_units_that_are_left(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(batch(16, 0.3))
        m.requester.orchestrate(job_id)
        with trio.fail_after(60):
            while len(begun(m.provider)) <= PLACES:
                await trio.sleep(0.02)
            price = PriceBid(amount="0.4")
            await m.provider.set_preferences(m.provider.get_preferences(), price)
            while m.job(job_id).state != "settled":
                await trio.sleep(0.05)
        items = children(m, job_id)
        paid = [item.paid for item in items]
        assert (paid[0], paid[-1]) == ("0.2", "0.4")
        # a bid that was made stands as it was made: nobody paid what they had not agreed to
        for item in items:
            terms = m.requester.ctx.store[CONTRACTS].one(item.contract_id).document.read(contracts.Contract).terms
            assert terms.price.amount == item.paid


async def test_rules_about_the_machine_hold_for_each_unit(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        monitor, books = m.provider.accounting.monitor, m.provider.accounting
        idle = dataclasses.replace(monitor.load(), cpu=0.01)
        # what was looked at last is as of now
        monitor._seen, monitor._seen_at = idle, math.inf
        rules = ("machine.cpu_load < 0.8",)
        await m.provider.set_preferences(structs.replace(books.get_preferences(), rules=rules))
        job_id = await m.post(batch(12, 0.3))
        m.requester.orchestrate(job_id)
        with trio.fail_after(60):
            while len(begun(m.provider)) < PLACES:
                await trio.sleep(0.01)
            monitor._seen = dataclasses.replace(idle, cpu=0.99)
            contracts_then = m.provider.ctx.store[CONTRACTS].count()
            while list(m.provider.ctx.store[HOLDINGS].all()):
                await trio.sleep(0.02)
            # it waits, and is not told that nobody ever could
            while m.job(job_id).waiting is None:
                await trio.sleep(0.02)
            assert m.provider.ctx.store[CONTRACTS].count() == contracts_then
            assert {item.state for item in children(m, job_id)} <= {"settled", "matching", "posted"}
            monitor._seen = idle
            while m.job(job_id).state != "settled":
                await trio.sleep(0.05)


async def test_rules_about_what_is_taken_hold_for_units_that_arrive_together(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        # two of three places: the third stays free
        rules = ("bid.load < 0.5 && node.cpu.cores >= 0.2",)
        await m.provider.set_preferences(structs.replace(m.provider.get_preferences(), rules=rules))
        job_id = await m.post(batch(8, 0.3))
        m.requester.orchestrate(job_id)
        most = 0
        with trio.fail_after(60):
            while m.job(job_id).state != "settled":
                # what is in the line holds nothing
                held = m.provider.ctx.store[HOLDINGS].by("kind", "lock", "allocation")
                most = max(most, len(held))
                await trio.sleep(0.005)
        assert most == 2


async def test_one_for_which_no_place_comes_free_in_time_is_searched_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contracts, "SLACK", timedelta(seconds=2))
    offer = structs.replace(OFFER, cpu=0.1)
    async with open_market(tmp_path, onboard=offer) as m:
        job_id = await m.post(batch(2, 5, time={"max_duration": "20s"}))
        with trio.fail_after(60):
            assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"
        store = m.requester.ctx.store
        told = [
            [event.data["reason"] for _, event in store.log(item.id) if event.type == "job_matching"]
            for item in children(m, job_id)
        ]
        # either may be the first there; the other does not line up once more: what runs takes too long
        assert sorted(told) == [[], ["no_place"]]
        assert {(item.lapses, item.attempt) for item in children(m, job_id)} == {(0, 1)}


# -- the provider's half -----------------------------------------------------------------------------------------------


async def standing(m: Market, count: int = 4, parallel: int = 0) -> tuple[str, Any]:
    """Return a bid for many units that stands at the provider, and the request that it answers."""
    how = {"parallel": parallel} if parallel else {}
    job_id = await m.post(batch(count, 60, batch={"items": count, **how}))
    with trio.move_on_after(20):
        m.requester.orchestrate(job_id)
        while not list(m.requester.ctx.store[BIDS].all()):
            await trio.sleep(0.01)
    (bid,) = m.requester.ctx.store[BIDS].all()
    return bid.id, bid


async def propose(m: Market, body: ContractProposal) -> Any:
    """Send the provider a proposal; return the body of its answer, or the error."""
    try:
        return (
            await m.requester.ctx.messenger.request(m.provider.identity.did, "contract_proposal", body, timeout=20)
        ).body
    except NunetError as error:
        return error


def proposal(
    m: Market, bid: Any, number: int | None = None, job: str = "job-x", created_at: str = "", **changes: Any
) -> ContractProposal:
    name = bid.id if number is None else unit_id(bid.id, number)
    unit = structs.replace(as_unit(bid, name, job, bid.offer.spec_cid), job_id=job)
    text = contract_text(
        unit, requester=m.requester.identity.did, provider=m.provider.identity.did,
        database=m.authority.identity.did, oracle=m.authority.identity.did, verification="attested", replicas=1,
        created_at=created_at or quantities.utc_now(),
    )  # fmt: skip
    return ContractProposal(make_document(structs.replace(text, **changes)))


@pytest.mark.parametrize(
    ("number", "changes", "code"),
    [(None, {}, "no_bid_here"), (90, {"bid_id": "bid-none.1"}, "no_bid_here"), (90, {}, "no_place")],
)
async def test_a_proposal_that_does_not_follow_from_the_bid_is_refused(
    market: MarketFactory, number: int | None, changes: dict[str, Any], code: str
) -> None:
    async with market(onboard=structs.replace(OFFER, cpu=0.1)) as m:
        _, bid = await standing(m, parallel=1)
        with trio.fail_after(20):
            while not m.provider.ctx.store[ALLOCATIONS].by("state", "running"):
                await trio.sleep(0.02)
        kept = m.provider.ctx.store[CONTRACTS].count()
        # with one place and two in the line there is no room for another
        did, later = m.requester.identity.did, "2999-01-01T00:00:00.000Z"

        def fill_the_line(t: Any) -> None:
            for at in range(LINED_UP):
                m.provider.accounting.line_up(t, f"bid-y.{at}", f"job-{at}", Resources(Cpu(0.1)), later, 60, did)

        await m.provider.ctx.store.change(fill_the_line)
        answer = await propose(m, proposal(m, bid, number, **changes))
        assert isinstance(answer, NunetError), answer
        assert answer.code == code
        assert m.provider.ctx.store[CONTRACTS].count() == kept


async def test_a_unit_has_one_contract_also_where_two_proposals_arrive_together(market: MarketFactory) -> None:
    async with market(onboard=OFFER) as m:
        _, bid = await standing(m, 2)
        first, second = proposal(m, bid, 50, "job-one"), proposal(m, bid, 50, "job-two")
        answers: list[Any] = []

        async def send(body: ContractProposal) -> None:
            answers.append(await propose(m, body))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, first)
            nursery.start_soon(send, second)
        refused = [answer for answer in answers if isinstance(answer, NunetError)]
        assert [error.code for error in refused] == ["bid_used"]
        assert len(m.provider.ctx.store[CONTRACTS].by("bid_id", unit_id(bid.id, 50))) == 1


async def test_who_lines_up_has_what_is_given_back_in_the_same_change(market: MarketFactory) -> None:
    async with market(onboard=OFFER) as m:
        books, store = m.provider.accounting, m.provider.ctx.store
        did = m.requester.identity.did
        whole, later = books.get_available_capability().resources, "2999-01-01T00:00:00.000Z"
        part = Resources(Cpu(0.1), 2**20)
        await store.change(lambda t: books.lock_capability(t, "one", "job-1", whole, later, 5, did))
        with pytest.raises(StateError, match="enough of your jobs"):
            # nobody has a line for nothing
            await store.change(lambda t: books.line_up(t, "two", "job-2", part, later, 5, "did:key:zother"))
        for name in ("two", "last"):
            await store.change(
                partial(
                    books.line_up,
                    bid_id=name,
                    job_id=f"job-{name}",
                    resources=part,
                    until=later,
                    duration=5,
                    requester=did,
                )
            )
        with pytest.raises(StateError, match="enough of your jobs"):
            await store.change(lambda t: books.line_up(t, "three", "job-3", part, later, 5, did))
        await store.change(partial(books.release, key="last"))
        await store.change(lambda t: books.allocate(t, "two", "allocation-2", part, 5))
        assert books.is_in_line(store, "allocation-2")
        waited: list[bool] = []

        async def wait() -> None:
            waited.append(await books.wait_in_line("allocation-2", trio.current_time() + 20))

        def give_back(t: Any) -> None:
            books.release(t, "one")
            # whoever looks in the same change finds it taken
            assert not books.available(t).resources.fits(whole)
            assert t[HOLDINGS].one("allocation-2").kind == "allocation"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await store.change(give_back)
        assert waited == [True]
        assert await books.wait_in_line("nobody", trio.current_time()) is not False
        # one that is not invoked in time has no place any more
        await store.change(lambda t: books.line_up(t, "four", "job-4", part, "2020-01-01T00:00:00.000Z", 5, did))
        await store.change(partial(books.release, key="allocation-2"))
        assert not list(store[HOLDINGS].all())


async def test_what_was_made_ready_in_the_line_is_gone_when_the_batch_is_called_off(tmp_path: Path) -> None:
    """Small inputs are in their places, and sandboxes are up: nothing of the job has run in them, and nothing stays."""
    (tmp_path / "in").write_text("given")
    async with open_market(tmp_path, onboard=OFFER) as m:
        provider = m.provider.ctx
        # nodes that other tests have had in this process may have left some
        others = set(psutil.Process().children(recursive=True))
        spec = batch(12, 5, inputs=[{"path": str(tmp_path / "in"), "to": "in"}])
        job_id = await m.post(spec)

        def in_line() -> list[str]:
            return [row.id for row in provider.store[ALLOCATIONS].by("state", "created")]

        def has_input(allocation_id: str) -> bool:
            return (allocation_folder(provider.home, allocation_id) / "work" / "in").exists()

        def sandboxes() -> list[psutil.Process]:
            # of each the first process is bubblewrap
            there = set(psutil.Process().children(recursive=True)) - others
            return [one for one in there if one.is_running() and one.name() == "bwrap"]

        m.requester.orchestrate(job_id)
        with trio.fail_after(60):
            # there is a line once it is known that the items are short
            while sum(map(has_input, in_line())) < PLACES:
                await trio.sleep(0.02)
        waiting = in_line()
        first = provider.store[ALLOCATIONS].one(waiting[-1])
        await m.requester.cancel_job(first.job_id)
        await m.requester.cancel_job(job_id)
        with trio.fail_after(60):
            while provider.running.all() or provider.store[HOLDINGS].by("kind", "allocation") or sandboxes():
                await trio.sleep(0.02)
        first = provider.store[ALLOCATIONS].one(first.id)
        assert first.state == "cancelled"
        assert not any(allocation_folder(provider.home, allocation_id).exists() for allocation_id in waiting)


async def test_a_batch_that_nobody_can_run_says_why_and_so_does_each_item(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(batch(6, resources={**SMALL, "memory": "65MiB"}))
        with pytest.raises(NunetError, match="6 of 6 failed") as caught, trio.fail_after(30):
            await orchestrate_job(m.requester.ctx, job_id)
        assert caught.value.exit_code == 4
        (said,) = [event.data for _, event in m.requester.ctx.store.log(job_id) if event.type == "search_ended"]
        assert said["why"] == "memory: 1 MiB short"
        summary = views.explain(m.requester, m.job(job_id))
        (part,) = summary["children"]["parts"]
        assert (part["state"], part["count"]) == ("expired", 6)
        assert part["reason"] == "no acceptable bid: 1 declined; memory: 1 MiB short"
        assert summary["suggestion"]["changes"][0]["path"] == "resources.memory"
        # an item was asked for with the others
        of_one = views.explain(m.requester, children(m, job_id)[2])
        assert [row["constraint"] for row in of_one["table"] if row["result"] == "worse"] == ["memory"]
