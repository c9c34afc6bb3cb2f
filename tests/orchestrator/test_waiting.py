"""Jobs that nobody has room for just now wait, and providers with room look for them."""

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs
from trio.testing import MockClock

from nunet_cli import quantities
from nunet_cli.api import views
from nunet_cli.database.store import Store
from nunet_cli.errors import NoBidError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.node.capability import CapabilityAccounting
from nunet_cli.node.indices import differences
from nunet_cli.node.monitor import Monitor
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import idle_locks, match, request, searched, searches, work
from nunet_cli.orchestrator.post import new_id
from nunet_cli.records.allocations import HOLDINGS
from nunet_cli.records.bids import (
    BID_REQUESTS,
    BIDS,
    AskOpenRequests,
    Bid,
    BidRequest,
    CapabilityComparator,
    OpenRequests,
)
from nunet_cli.records.capability import Cpu, Resources
from nunet_cli.records.messages import JobRequest
from nunet_cli.records.messaging import OUTBOX
from nunet_cli.records.offers import OnboardOptions
from tests.conftest import Market, config, open_market

SMALL = {"cpu": 0.1, "memory": "16MiB", "disk": "1MiB"}
PLACES = 3
OFFER = OnboardOptions(price="0.2", cpu=0.3, memory="64MiB", disk="64MiB")


def spec(seconds: float = 0, name: str = "test", **fields: Any) -> str:
    command = ["sleep", str(seconds)] if seconds else ["true"]
    body = {"name": name, "executor": {"type": "process", "command": command}, "price": "1", "resources": SMALL}
    return json.dumps({**body, **fields})


@contextlib.asynccontextmanager
async def crowded(folder: Path, seconds: float = 60) -> AsyncIterator[Market]:
    """Open a market whose provider's machine is held by somebody else for so long."""
    async with open_market(folder, onboard=OFFER) as m:
        await hold(m.provider, seconds)
        yield m


async def hold(node: Node, seconds: float) -> None:
    whole = node.accounting.get_available_capability().resources
    until = quantities.format_time(quantities.now() + timedelta(seconds=seconds))
    await node.ctx.store.change(lambda t: node.accounting.lock_capability(t, "other", "other", whole, until))


async def give_back(node: Node) -> None:
    await node.ctx.store.change(lambda t: node.accounting.release(t, "other"))


async def waits(m: Market, *job_ids: str) -> None:
    with trio.fail_after(30):
        while not all(m.job(job_id).waiting for job_id in job_ids):
            await trio.sleep(0.02)


async def ends(m: Market, *job_ids: str, state: str = "settled") -> None:
    with trio.fail_after(60):
        while any(m.job(job_id).state != state for job_id in job_ids):
            await trio.sleep(0.02)


async def test_a_job_waits_for_a_busy_machine_says_so_and_begins_once_there_is_room(tmp_path: Path) -> None:
    async with crowded(tmp_path) as m:
        job_id = await m.post(spec())
        m.requester.orchestrate(job_id)
        await waits(m, job_id)
        waiting = m.job(job_id).waiting
        assert waiting is not None
        assert waiting.for_ == "no provider has room: 1 is busy"
        (row,) = m.requester.ctx.store[BIDS].by("job_id", job_id)
        assert row.kind == "decline"
        assert quantities.utc_now() < row.free_at
        # no change of the job is needed
        assert views.explain(m.requester, m.job(job_id))["suggestion"] is None
        await give_back(m.provider)
        await ends(m, job_id)
        assert m.job(job_id).waiting is None
        assert m.event_types(job_id).count("job_matching") == 1


async def test_what_has_ended_is_not_said_to_wait(tmp_path: Path) -> None:
    async with crowded(tmp_path) as m:
        body = {**json.loads(spec()), "type": "batch", "batch": {"count": 3}}
        for text in (spec(), json.dumps(body)):
            job_id = await m.post(text)
            m.requester.orchestrate(job_id)
            await waits(m, job_id)
            assert views.explain(m.requester, m.job(job_id))["waiting"]["for"] == "no provider has room: 1 is busy"
            job = await m.requester.cancel_job(job_id)
            assert job.state == "cancelled"
            assert views.explain(m.requester, job)["waiting"] is None
            assert views.job(job)["waiting"] is None


async def test_what_nobody_ever_has_room_for_fails_at_once(tmp_path: Path) -> None:
    async with crowded(tmp_path) as m:
        job_id = await m.post(spec(resources={**SMALL, "memory": "65MiB"}))
        with pytest.raises(NoBidError, match="no acceptable bid: 1 declined"), trio.fail_after(20):
            await orchestrate_job(m.requester.ctx, job_id)
        assert m.job(job_id).state == "expired"
        # one that waits for one of two providers is not ended by what the other can never do
        async with open_node(tmp_path / "second", config()) as second:
            await second.onboard(structs.replace(OFFER, memory="32MiB"), None)
            for node in (m.authority, m.requester):
                await second.add_peer(node.ctx.transport.describe())
            with trio.fail_after(20):
                while len(m.requester.ctx.topics.subscribers("/nunet/bids")) < 2:
                    await trio.sleep(0.02)
            job_id = await m.post(spec(resources={**SMALL, "memory": "48MiB"}))
            with pytest.raises(NoBidError, match="1 is busy, 1 declined") as caught:
                await match.match(m.requester.ctx, job_id, timeout=10)
            assert caught.value.code == "busy"


@pytest.mark.parametrize("free_in", [-3600, 0, 0.1, 3600])
def test_who_is_always_free_in_a_moment_is_not_asked_all_the_time(free_in: float) -> None:
    for tries, least in ((0, 1), (1, 2), (3, 5), (10, 5), (100, 5), (5000, 5)):
        now = quantities.now()
        free_at = quantities.format_time(now + timedelta(seconds=free_in))
        error = NoBidError("busy", code="busy", details={"start": free_at})
        pause = (quantities.parse_time(match.next_try(error, "", tries)) - now).total_seconds()
        assert least - 0.1 <= pause <= 31


@pytest.mark.parametrize("way", ["push", "topic"])
async def test_a_job_for_some_providers_alone_waits_in_peace_for_them(tmp_path: Path, way: str) -> None:
    async with crowded(tmp_path) as m, open_node(tmp_path / "other", config()) as other:
        if way == "topic":
            await m.provider.subscribe("/lab/own")
        await other.onboard(structs.replace(OFFER, memory="32MiB"), None)
        await other.add_peer(m.requester.ctx.transport.describe())
        with trio.fail_after(20):
            while len(m.requester.ctx.topics.subscribers("/nunet/bids")) < 2 or (
                way == "topic" and not m.requester.ctx.topics.subscribers("/lab/own")
            ):
                await trio.sleep(0.02)
        only: dict[str, Any] = {"push": [m.provider.identity.did]} if way == "push" else {"topic": "/lab/own"}
        job_id = await m.post(spec(), **only)
        m.requester.orchestrate(job_id)
        await waits(m, job_id)
        # what is known of its providers has not changed: there is nothing to search for again within seconds
        with trio.move_on_after(4):
            while m.event_types(job_id).count("bid_request_sent") < 3:
                await trio.sleep(0.02)
        assert m.event_types(job_id).count("bid_request_sent") < 3
        await give_back(m.provider)
        await ends(m, job_id)


async def test_a_job_that_waits_for_very_long_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "LONGEST_PAUSE", 0.01)
    async with crowded(tmp_path) as m:
        job_id = await m.post(spec())
        m.requester.orchestrate(job_id)
        await waits(m, job_id)
        store, first = m.requester.ctx.store, m.job(job_id)
        seen = {first.bid_request_id}
        with trio.fail_after(30):
            while len(seen) < 60:
                seen.add(m.job(job_id).bid_request_id)
                assert store[BID_REQUESTS].count("job_id", job_id) <= searched.MANY
                await trio.sleep(0.005)
        assert store[BIDS].count("job_id", job_id) <= searched.MANY
        assert len(m.event_types(job_id)) <= 5 * searched.MANY
        assert differences(store) == []
        # what is kept says since when it waits
        now = m.job(job_id).waiting
        assert first.waiting is not None
        assert now is not None
        assert (now.since, now.for_) == (first.waiting.since, first.waiting.for_)
        assert store[BID_REQUESTS].has(first.bid_request_id)
        monkeypatch.undo()
        await give_back(m.provider)
        await ends(m, job_id)
        assert m.job(job_id).waiting is None
        assert differences(store) == []


async def test_the_deadline_ends_the_wait(tmp_path: Path) -> None:
    async with crowded(tmp_path) as m:
        job_id = await m.post(spec(time={"max_duration": 9, "deadline": "2s"}))
        with pytest.raises(NoBidError, match="1 is busy"), trio.fail_after(20):
            await orchestrate_job(m.requester.ctx, job_id)
        assert m.job(job_id).state == "expired"


async def test_many_more_jobs_than_places_are_all_done(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_ids = [await m.post(spec(0.2, f"job-{number}")) for number in range(6 * PLACES)]
        for job_id in job_ids:
            m.requester.orchestrate(job_id)
        await ends(m, *job_ids)
        # nothing is held any more
        assert m.provider.accounting.taken(m.provider.ctx.store) == []
        assert m.provider.ctx.store[HOLDINGS].count() == 0


async def test_who_was_outrun_to_the_last_place_waits(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(spec())
        await match.match(m.requester.ctx, job_id)
        await hold(m.provider, 60)
        job = await request.request(m.requester.ctx, job_id)
        assert (job.state, [refusal.busy for refusal in job.refusals]) == ("matching", [True])
        m.requester.orchestrate(job_id)
        await waits(m, job_id)
        await give_back(m.provider)
        await ends(m, job_id)


async def test_waiting_requesters_take_turns(tmp_path: Path) -> None:
    one_place = structs.replace(OFFER, cpu=0.1, memory="16MiB")
    async with (
        open_market(tmp_path, onboard=one_place) as m,
        open_node(tmp_path / "other", config()) as other,
    ):
        for node in (m.authority, m.provider):
            await other.add_peer(node.ctx.transport.describe())
        with trio.fail_after(20):
            while not other.ctx.topics.subscribers("/nunet/bids"):
                await trio.sleep(0.02)
        await hold(m.provider, 60)
        many = [await m.post(spec(0.1, f"job-{number}")) for number in range(6)]
        for job_id in many:
            m.requester.orchestrate(job_id)
        await waits(m, *many)
        theirs = Market(other, m.provider, m.authority, tmp_path)
        one = await theirs.post(spec(0.1, "one"))
        other.orchestrate(one)
        await waits(theirs, one)
        await give_back(m.provider)
        await ends(theirs, one)
        # one requester's many jobs did not keep out the other's one
        assert sum(m.job(job_id).state == "settled" for job_id in many) <= 3
        await ends(m, *many)


async def test_what_is_handed_out_fits_and_is_for_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with crowded(tmp_path) as m, open_node(tmp_path / "asker", config()) as asker:
        await asker.add_peer(m.requester.ctx.transport.describe())
        small = [await m.post(spec(name=f"job-{number}")) for number in range(3)]
        large = await m.post(spec(resources={**SMALL, "memory": "60MiB"}))
        pushed = await m.post(spec(), push=[m.provider.identity.did])
        await m.provider.subscribe("/lab/own")
        with trio.fail_after(20):
            while not m.requester.ctx.topics.subscribers("/lab/own"):
                await trio.sleep(0.02)
        own = await m.post(spec(name="own"), topic="/lab/own")
        others = (*small, large, pushed, own)
        for job_id in others:
            m.requester.orchestrate(job_id)
        await waits(m, *others)
        # until each of them waits for some time, and is not just being searched for
        soon = quantities.format_time(quantities.now() + timedelta(seconds=6))
        with trio.fail_after(30):
            while any((wait := m.job(one).waiting) is None or wait.next_try < soon for one in others):
                await trio.sleep(0.02)

        async def ask(memory: int) -> list[str]:
            room = Resources(cpu=Cpu(cores=8), memory=memory, disk=2**30)
            did = m.requester.identity.did
            answer = await asker.ctx.messenger.request(did, "ask_open_requests", AskOpenRequests(room), timeout=20)
            assert isinstance(answer.body, OpenRequests)
            return [found.job_id for found in answer.body.requests]

        assert await ask(2**20) == []
        # in the order in which they came; and what one was given just now is not given to it or to another again
        assert await ask(40 * 2**20) == small[:2]
        assert set(await ask(2**30)) == {small[2], large}
        assert await ask(2**30) == []
        await m.requester.accounting.set_preferences(CapabilityComparator(deny=(asker.identity.did,)))
        monkeypatch.setattr(searches, "HANDED", 0)
        assert await ask(2**30) == []
        await m.requester.accounting.set_preferences(CapabilityComparator())
        assert await ask(2**30) == [*small, large]
        # what a topic's subscribers alone are asked for is shown to no one else
        await asker.subscribe("/lab/own")
        with trio.fail_after(20):
            while len(m.requester.ctx.topics.subscribers("/lab/own")) < 2:
                await trio.sleep(0.02)
        assert await ask(2**30) == [*small, large, own]
        for job_id in others:
            await m.requester.cancel_job(job_id)
        assert await ask(2**30) == []


async def test_who_takes_all_that_waits_and_bids_for_nothing_keeps_out_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "HANDED", 1.0)
    async with crowded(tmp_path) as m, open_node(tmp_path / "asker", config()) as asker, trio.open_nursery() as nursery:
        await asker.add_peer(m.requester.ctx.transport.describe())
        job_id = await m.post(spec())
        m.requester.orchestrate(job_id)
        await waits(m, job_id)
        room, had = Resources(cpu=Cpu(cores=8), memory=2**40, disk=2**40), 0

        async def take_all() -> None:
            nonlocal had
            did = m.requester.identity.did
            while True:
                answer = await asker.ctx.messenger.request(did, "ask_open_requests", AskOpenRequests(room), timeout=20)
                had += len(answer.body.requests)
                await trio.sleep(0.02)

        nursery.start_soon(take_all)
        with trio.fail_after(20):
            # it has had it to itself, and then has it again with the others
            while had < 2:
                await trio.sleep(0.02)
        await give_back(m.provider)
        await ends(m, job_id)
        nursery.cancel_scope.cancel()
        # the provider came, as nobody searched again before
        assert m.event_types(job_id).count("job_matching") == 1


async def test_who_found_nothing_does_not_have_thousands_looked_through_all_the_time(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(spec())
        await match.match(m.requester.ctx, job_id)
        (record,) = m.requester.ctx.store[BID_REQUESTS].by("job_id", job_id)
        waiting, looks = searches.Searches(), 0

        def is_for(_turn: searches.Turn) -> bool:
            nonlocal looks
            looks += 1
            return False

        room = Resources(cpu=Cpu(cores=8), memory=2**40, disk=2**40)
        with contextlib.ExitStack() as stack:
            for number in range(2000):
                own = structs.replace(record.request, id=f"request-{number}")
                stack.enter_context(waiting.open(searches.Turn("", own, structs.replace(m.job(job_id), id=own.id))))
            for _ in range(10):
                assert waiting.hand_out("did:key:asker", room, is_for)[0] == []
            assert looks == searches.LOOKED_THROUGH
            # and is not kept out for long
            await trio.sleep(0.15)
            assert waiting.hand_out("did:key:asker", room, lambda _: True)[0]


async def test_who_does_not_bid_for_what_it_found_does_not_have_thousands_looked_through_all_the_time(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(spec())
        await match.match(m.requester.ctx, job_id)
        (record,) = m.requester.ctx.store[BID_REQUESTS].by("job_id", job_id)
        waiting, looks, taken = searches.Searches(), 0, set[str]()

        def is_for(turn: searches.Turn) -> bool:
            nonlocal looks
            looks += 1
            return turn.request.count > 1 and turn.request.id not in taken

        room = Resources(cpu=Cpu(cores=8), memory=2**40, disk=2**40)

        def ask() -> list[str]:
            return [request.id for request in waiting.hand_out("did:key:asker", room, is_for)[0]]

        with contextlib.ExitStack() as stack:
            for number in range(2000):
                # batches, of which there is some for others: the first and the last that is looked through
                count = 5 if number in (0, searches.LOOKED_THROUGH - 1) else 1
                own = structs.replace(record.request, id=f"request-{number:04}", count=count)
                stack.enter_context(waiting.open(searches.Turn("", own, structs.replace(m.job(job_id), id=own.id))))
            first, last = "request-0000", f"request-{searches.LOOKED_THROUGH - 1:04}"
            for _ in range(10):
                assert ask() == [first, last]
            assert looks == searches.LOOKED_THROUGH + 9 * 2
            # who has bid is looked after anew; and so is one for whom nothing of that is left
            taken.add(first)
            waiting.note_bid("did:key:asker")
            assert ask() == [last]
            taken.add(last)
            assert (ask(), looks) == ([], 3 * searches.LOOKED_THROUGH + 9 * 2 + 1)


@pytest.mark.parametrize("way", ["pulled", "requested"])
async def test_who_locks_a_machine_again_and_again_for_nothing_keeps_it_from_nobody(tmp_path: Path, way: str) -> None:
    brief = config(lock_lease=3, pull_interval=1)
    async with (
        open_market(tmp_path, onboard=OFFER, provider=brief) as m,
        open_node(tmp_path / "liar", config()) as liar,
        trio.open_nursery() as nursery,
    ):
        await liar.add_peer(m.provider.ctx.transport.describe())
        job_id = await m.post(spec())
        await match.match(m.requester.ctx, job_id)
        (record,) = m.requester.ctx.store[BID_REQUESTS].by("job_id", job_id)
        me, work = liar.identity, m.provider.ctx.work

        def fresh() -> BidRequest:
            return structs.replace(record.request, id=new_id("request"), job_id=new_id("job"), requester=me.node_id)

        async def answer(_message: Any) -> Any:
            return "open_requests", OpenRequests(tuple(fresh() for _ in range(20)))

        async def lock_all() -> None:
            did = m.provider.identity.did
            while True:
                own = fresh()
                found = await liar.ctx.messenger.request(did, "bid_request", own, timeout=20)
                if isinstance(found.body, Bid):
                    await liar.ctx.messenger.request(did, "job_request", JobRequest(found.body.id, own), timeout=20)
                await trio.sleep(0.02)

        if way == "pulled":
            liar.ctx.messenger.register("ask_open_requests", AskOpenRequests, answer)
        else:
            nursery.start_soon(lock_all)
        with trio.fail_after(20):
            # it has had the whole machine, for a lease
            while not work.idle_locks.pause(m.provider.accounting, m.provider.ctx.store, me.did):
                await trio.sleep(0.05)
        for number in range(3):
            job_id = await m.post(spec(name=f"job-{number}"))
            with trio.fail_after(20):
                await orchestrate_job(m.requester.ctx, job_id)
        # who makes contracts of its locks has them
        assert not work.idle_locks.pause(m.provider.accounting, m.provider.ctx.store, m.requester.identity.did)
        nursery.cancel_scope.cancel()


async def test_what_is_given_back_soon_is_no_idle_lock_until_it_is_very_many(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    with Store(tmp_path) as store:
        locks, did, accounting = idle_locks.IdleLocks(), "did:key:z", CapabilityAccounting(store, Monitor(tmp_path))

        async def pause_after(bid_id: str, seconds: float, *, back: bool = True) -> float:
            locks.note(did, bid_id)
            await trio.sleep(seconds)
            if back:
                locks.given_back(did, bid_id)
            return locks.pause(accounting, store, did)

        assert [await pause_after(f"bid-{number}", 4) for number in range(15)] == [0.0] * 15
        assert await pause_after("bid-15", 4) == 30
        assert await pause_after("bid-16", 6) == 60
        assert await pause_after("bid-17", 1, back=False) == 120
        assert [await pause_after(f"bid-{number}", 6) for number in range(20, 26)][-1] == 600
        await trio.sleep(600)
        assert locks.pause(accounting, store, did) == 0
        await trio.sleep(4000)
        assert await pause_after("bid-30", 6) == 30


async def test_who_hands_out_the_same_request_for_ever_gets_one_bid(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m, open_node(tmp_path / "liar", config()) as liar:
        await liar.add_peer(m.provider.ctx.transport.describe())
        job_id = await m.post(spec())
        await match.match(m.requester.ctx, job_id)
        (record,) = m.requester.ctx.store[BID_REQUESTS].by("job_id", job_id)
        own = structs.replace(record.request, id="request-again", requester=liar.identity.node_id)
        asked = 0

        async def answer(_message: Any) -> Any:
            nonlocal asked
            asked += 1
            return "open_requests", OpenRequests((own,) * 20)

        liar.ctx.messenger.register("ask_open_requests", AskOpenRequests, answer)
        # somebody else waits as well, so that it is asked in turn
        m.provider.ctx.work.note_waiting(m.requester.identity.did)
        for _ in range(5):
            m.provider.ctx.work.note_waiting(liar.identity.did)
            m.provider.ctx.work.wake()
            with trio.move_on_after(0.5):
                await trio.sleep_forever()
        assert 1 <= asked <= 20
        assert len(m.provider.ctx.store[BIDS].by("bid_request_id", own.id)) == 1
        assert m.provider.ctx.store[OUTBOX].count("to", liar.identity.did) <= 1


async def test_one_that_is_silent_keeps_the_others_waiting_for_a_moment_only(tmp_path: Path) -> None:
    async with crowded(tmp_path) as m, open_node(tmp_path / "silent", config()) as silent:
        await silent.add_peer(m.provider.ctx.transport.describe())

        async def say_nothing(_message: Any) -> Any:
            await trio.sleep_forever()

        silent.ctx.messenger.register("ask_open_requests", AskOpenRequests, say_nothing)
        # it is the first in turn
        m.provider.ctx.work.note_waiting(silent.identity.did)
        job_id = await m.post(spec())
        m.requester.orchestrate(job_id)
        await waits(m, job_id)
        assert m.provider.ctx.work.turns() == [silent.identity.did, m.requester.identity.did]
        await give_back(m.provider)
        await ends(m, job_id)
        # the provider came, as nobody searched again before
        assert m.event_types(job_id).count("job_matching") == 1
        assert silent.identity.did not in m.provider.ctx.work.turns()


async def test_a_bid_that_comes_too_late_for_what_was_handed_out_is_freed_once(tmp_path: Path) -> None:
    async with crowded(tmp_path) as m:
        job_id = await m.post(spec())
        m.requester.orchestrate(job_id)
        await waits(m, job_id)
        did, room = m.provider.identity.did, Resources(cpu=Cpu(cores=8), memory=2**30, disk=2**30)
        (request_of,), _ = m.requester.ctx.searches.hand_out(did, room, lambda _: True)
        assert request_of.job_id == job_id
        assert not m.requester.ctx.searches.take_handed(job_id, m.authority.identity.did)
        assert m.requester.ctx.searches.take_handed(job_id, did)
        assert not m.requester.ctx.searches.take_handed(job_id, did)
        await m.requester.cancel_job(job_id)
        # it bids, with what is needed locked, and nobody wants that any more
        await give_back(m.provider)
        provider, me = m.provider.ctx, m.requester.identity.did
        assert await work._bid(provider, request_of, me)
        (bid,) = [row for row in provider.store[BIDS].all() if row.bid_request_id == request_of.id]
        assert bid.offer.resources_locked_until_timeout
        with trio.fail_after(20):
            while m.provider.accounting.has(provider.store, bid.id):
                await trio.sleep(0.02)
        assert quantities.utc_now() < bid.offer.timeout


async def test_a_provider_that_looks_for_work_takes_nobody_elses(tmp_path: Path) -> None:
    async with crowded(tmp_path) as m, open_node(tmp_path / "liar", config()) as liar:
        job_id = await m.post(spec())
        m.requester.orchestrate(job_id)
        await waits(m, job_id)
        (turn,) = m.requester.ctx.searches._turns
        await liar.add_peer(m.provider.ctx.transport.describe())

        async def answer(_message: Any) -> Any:
            return "open_requests", OpenRequests((turn.request,) * 20)

        liar.ctx.messenger.register("ask_open_requests", AskOpenRequests, answer)
        await m.requester.cancel_job(job_id)
        rows = m.provider.ctx.store[BIDS].count()
        m.provider.ctx.work.note_waiting(liar.identity.did)
        await give_back(m.provider)
        with trio.fail_after(20):
            while liar.identity.did in m.provider.ctx.work.turns():
                await trio.sleep(0.02)
        assert m.provider.ctx.store[BIDS].count() == rows
        assert m.provider.accounting.taken(m.provider.ctx.store) == []
