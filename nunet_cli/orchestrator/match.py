"""Stage 2, search and match: bid requests go out, bids and refusals come in.

What comes in is checked and kept in `bid_answers`, the best are shortlisted in `select`; the provider's half is `bid`.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from functools import partial
from typing import Protocol

import msgspec
import trio

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NoBidError, NunetError, StateError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import images_of, required_capability
from nunet_cli.network.topics import BIDS as BID_TOPIC
from nunet_cli.orchestrator.bid_answers import ENOUGH_BIDS, Gathering, decline_change, register_bid, register_silence
from nunet_cli.orchestrator.changes import advance, change_job, error_record, find_job
from nunet_cli.orchestrator.needs import (
    HasConfig,
    HasIdentity,
    HasPeers,
    HasRelay,
    HasSearches,
    HasStore,
    HasTasks,
    HasTopics,
)
from nunet_cli.orchestrator.post import new_id
from nunet_cli.orchestrator.searched import forget_searches
from nunet_cli.orchestrator.searches import Turn
from nunet_cli.orchestrator.select import First, Selecting, select_best_bid
from nunet_cli.records.bids import BID_REQUESTS, BIDS, Bid, BidRequest, BidRequestRecord, Decline
from nunet_cli.records.jobs import JOBS, Job, Waiting
from nunet_cli.records.machine import CLOCK, REQUESTER
from nunet_cli.supervise import meanwhile

log = logging.getLogger("nunet.match")

SETTLE_TIME = 2.0
RELAY_WAIT = 2.0
# how often a search looks whether others are there to be asked
LOOK_AROUND = 0.1
FIRST_PAUSE, BUSY_PAUSE, LONGEST_PAUSE = 1.0, 5.0, 30.0
# searches in a row without a pause, where others were faster; searches in which nobody answered
QUICK_TRIES, SILENT_TRIES = 2, 3


class Awaiting(HasTopics, HasSearches, HasStore, Protocol):
    """Waits for a time, for a provider to come, or for one to look for work."""


class Relaying(HasRelay, HasSearches, Protocol):
    """Sends a bid request by relay."""


class LookingAround(HasPeers, HasConfig, HasSearches, Protocol):
    """Knows whether others had the time to be found."""


class Searching(HasPeers, HasRelay, HasTasks, HasTopics, HasConfig, Gathering, Protocol):
    """Sends a bid request to everybody who may answer."""


class Requesting(HasConfig, HasIdentity, HasStore, Protocol):
    """Makes a bid request."""


class Matching(Requesting, Searching, Selecting, Awaiting, Protocol):
    """Searches, and selects."""


async def match(ctx: Matching, job_id: str, *, timeout: float | None = None, first: First | None = None) -> Job:
    """Ask for bids and shortlist the best; a job that is matched is left as it is, as long as one of its bids stands.

    A job that somebody could take, and cannot just now, waits, and says for what: it is searched for again, with
    growing pauses and whenever the network changes, and is bid for by providers that look for work. With a deadline it
    waits until then also for those who are not there yet.

    Args:
        ctx: the node's parts.
        job_id: the job.
        timeout: seconds of one single search, instead of `default_search_timeout` and waiting.
        first: what is done with the best bid while it is kept that it is the best.

    Raises:
        StateError: the job is past this stage.
        NoBidError: nobody answered, or nobody can take it; the details say what each said.
    """
    job = find_job(ctx.store, job_id)
    if job.state == "matched" and _any_stands(ctx, job):
        return job
    if job.kind != "job":
        raise StateError(f"job {job.id} is a {job.kind}", hint=f"run it with: nunet job run --job {job.id}")
    if job.state not in ("posted", "matching", "expired", "matched"):
        raise StateError(f"job {job.id} is {job.state}: it has been matched")
    spec = decode_spec(job.spec)
    search = ctx.config.default_search_timeout if timeout is None else timeout
    if timeout is None and spec.time.start:
        await _wait(ctx, job.id, spec.time.start, "its start time")
    tries = job.tries
    if timeout is None and tries > QUICK_TRIES:
        pause = doubled(FIRST_PAUSE, tries - QUICK_TRIES - 1)
        await _wait(ctx, job.id, in_time(pause, spec.time.deadline), "every provider asked declined")
    request: BidRequest | None = None
    while True:
        if request is None:
            request = await _search(ctx, find_job(ctx.store, job.id), spec, search)
        try:
            return await select_best_bid(ctx, job.id, request.id, first)
        except NoBidError as error:
            again = next_try(error, spec.time.deadline, tries) if timeout is None else ""
            if not again:
                await expire(ctx, job.id, error)
                raise
            tries += 1
            if not await _wait_in_turn(ctx, job, request, again, error.message):
                request = None


def _any_stands(ctx: HasStore, job: Job) -> bool:
    """Say whether a bid that a job was matched with, and whose turn is still to come, can be taken."""
    bids = [ctx.store[BIDS].get(bid_id) for bid_id in job.shortlist[job.place :]]
    return any(bid is not None and bid.offer.timeout > quantities.utc_now() for bid in bids)


async def _search(ctx: Matching, job: Job, spec: JobSpec, timeout: float) -> BidRequest:
    """Send a bid request while it is kept here, and return it once everybody has answered, or the time is over."""
    request, kept = new_bid_request(ctx, job, spec), trio.Event()

    async def keep() -> None:
        await ctx.store.change(partial(begin_search, request=request))
        kept.set()

    named = [job.topic] if job.topic else []
    # one that declined, and has room a moment later, comes by itself
    with ctx.searches.shown(Turn(job.created_at, request, job, is_out=True)):
        await meanwhile(
            keep, partial(publish_bid_request, ctx, request, *named, push=job.push, timeout=timeout, kept=kept)
        )
    return request


def begin_search(t: Transaction, request: BidRequest) -> None:
    """Keep, as part of a change, that a bid request goes out for a job."""
    forget_searches(t, request.job_id)
    t[BID_REQUESTS].put(BidRequestRecord(request.id, request.job_id, "sent", quantities.utc_now(), request))
    said = {"bid_request_id": request.id}
    t.save_event(request.job_id, "bid_request_sent", **said)
    # what it waits for, and since when, stands until that is known to be something else
    advance(t, request.job_id, "search", by=REQUESTER, said=said, bid_request_id=request.id, error=None)


async def expire(ctx: HasStore, job_id: str, error: NoBidError) -> None:
    """End a job that nobody takes, saying why."""
    said, record = {"reason": error.code, "message": error.message}, error_record(error)
    await ctx.store.change(lambda t: advance(t, job_id, "expire", by=CLOCK, said=said, error=record, waiting=None))


def next_try(error: NoBidError, deadline: str, tries: int) -> str:
    """Return when to search again: after a pause that doubles, or when a busy provider is free; empty for never."""
    starts = error.details.get("start")
    if deadline <= quantities.utc_now() if deadline else not (starts or _may_be_silent(error, tries)):
        return ""
    # a provider that is busy comes by itself once it has room
    again = in_time(doubled(BUSY_PAUSE if starts else FIRST_PAUSE, tries), deadline)
    # who said when it is free at the latest is asked then; one that is wrong about it not all the time
    least = in_time(min(BUSY_PAUSE, doubled(FIRST_PAUSE, tries)), deadline)
    return max(starts, least) if starts and starts < again else again


def doubled(pause: float, times: int) -> float:
    """Return a pause that was doubled so often, in seconds: who waits for days is tried thousands of times."""
    return min(LONGEST_PAUSE, pause * float(2 ** min(times, 10)))


def _may_be_silent(error: NoBidError, tries: int) -> bool:
    """Say whether those who did not answer are asked once more: they may have had too much to do."""
    return bool(error.details.get("silent")) and tries < SILENT_TRIES


def in_time(pause: float, deadline: str) -> str:
    """Return the time after a pause, or the deadline where that is earlier."""
    again = quantities.format_time(quantities.now() + timedelta(seconds=pause))
    return min(deadline, again) if deadline else again


async def _wait(ctx: HasStore, job_id: str, until: str, what: str) -> None:
    """Wait for a time, saying so with the job."""
    await note_waiting(ctx, job_id, until, what)
    while (left := (quantities.parse_time(until) - quantities.now()).total_seconds()) > 0:
        await trio.sleep(min(left, 60))


async def note_waiting(ctx: HasStore, job_id: str, until: str, what: str) -> None:
    """Say with a job what it waits for, and when it is tried again."""

    def begin(t: Transaction) -> None:
        known = t[JOBS].one(job_id).waiting
        since = known.since if known is not None and known.for_ == what else quantities.utc_now()
        change_job(t, job_id, waiting=Waiting(what, until, since))
        t.save_event(job_id, "job_waiting", reason=what, next_try=until)

    if until > quantities.utc_now():
        await ctx.store.change(begin)


def _has_bid(ctx: HasStore, request_id: str) -> bool:
    return any(row.kind == "bid" for row in ctx.store[BIDS].by("bid_request_id", request_id))


async def _wait_in_turn(ctx: Awaiting, job: Job, request: BidRequest, until: str, what: str) -> bool:
    """Wait for a time, or until another provider comes; say whether one that looked for work has bid meanwhile."""
    known = askable(ctx, job, request)
    with ctx.searches.open(Turn(job.created_at, request, job)):
        await note_waiting(ctx, job.id, until, what)
        while (left := (quantities.parse_time(until) - quantities.now()).total_seconds()) > 0:
            await ctx.searches.wait(request.id, min(left, 1.0))
            # counted is it a moment before it is kept
            if ctx.searches.answers(request.id) and _has_bid(ctx, request.id):
                return True
            if askable(ctx, job, request) - known:
                return False
    return False


def askable(ctx: HasTopics, job: Job, request: BidRequest) -> set[str]:
    """Return who is there that the job is for: of a job for some providers, these alone."""
    there = {peer.did for peer in ctx.topics.subscribers(request.topic or BID_TOPIC)}
    return there & set(job.push) if job.push else there


def new_bid_request(ctx: Requesting, job: Job, spec: JobSpec) -> BidRequest:
    """Return a new bid request for a job."""
    search = timedelta(seconds=ctx.config.default_search_timeout)
    return BidRequest(
        id=new_id("request"), job_id=job.id, requester=ctx.identity.node_id, name=spec.name,
        required_capability=required_capability(spec, ctx.config.kyc.verifiers), spec_cid=job.spec_cid,
        deadline=quantities.format_time(quantities.now() + search), topic="" if job.push else job.topic or BID_TOPIC,
        images=images_of(spec), hard=spec.constraints.hard,
    )  # fmt: skip


async def publish_bid_request(
    ctx: Searching, request: BidRequest, *topics: str, push: tuple[str, ...] = (), timeout: float = 10, kept: trio.Event
) -> None:
    """Send a bid request to every subscriber of its topics, or to some peers, and register what they answer.

    Peers that appear during the search are asked as well, whoever has not answered is asked again, and peers that are
    not connected get the request by relay. It ends when everybody known has answered, when there are enough bids, or
    after `timeout` seconds (seed 2: `publishBidRequest`).

    Args:
        ctx: the node's parts.
        request: what is sent.
        topics: whose subscribers are asked; that of the request where none is given.
        push: the only peers to ask, by their DIDs.
        timeout: seconds, at most.
        kept: is set once the request is in the store: nothing goes by relay before, as such an answer is looked up.
    """
    asked: set[str] = set()
    waiting: set[str] = set()
    end = trio.current_time() + timeout
    relayed = _Relayed(patience=trio.current_time())
    with trio.move_on_at(end + 1), ctx.searches.out(request.id):
        async with trio.open_nursery() as nursery:
            while trio.current_time() < end:
                targets = list(push) if push else _subscribers(ctx, topics or (request.topic,))
                for did in targets:
                    if did not in asked:
                        asked.add(did)
                        waiting.add(did)
                        left = end - trio.current_time()
                        ctx.supervisor.start_soon(nursery, "asking for a bid", _ask, ctx, request, did, left, waiting)
                if not push and not relayed.begun and _is_settled(ctx):
                    relayed.begun = True
                    ctx.supervisor.start_soon(
                        nursery, "publishing", _relay, ctx, request, topics or (request.topic,), relayed, timeout, kept
                    )
                # a bid for many units is taken at once, and others may come while it stands
                has_heard = trio.current_time() >= relayed.patience or (
                    request.count > 1 and bool(ctx.searches.answers(request.id))
                )
                settled = bool(push) or (_is_settled(ctx) and relayed.done and has_heard)
                everybody = bool(asked or relayed.count) and not waiting and settled
                if everybody or (ctx.searches.answers(request.id) or 0) >= ENOUGH_BIDS:
                    nursery.cancel_scope.cancel()
                    break
                await ctx.searches.wait(request.id, LOOK_AROUND)


class _Relayed(msgspec.Struct):
    """How far a request has gone by relay: whether that is done, to how many nodes, and how long to wait for them."""

    patience: float
    begun: bool = False
    done: bool = False
    count: int = 0


def _subscribers(ctx: HasTopics, topics: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(peer.did for topic in topics for peer in ctx.topics.subscribers(topic)))


async def _relay(
    ctx: Relaying, request: BidRequest, topics: tuple[str, ...], relayed: _Relayed, timeout: float, kept: trio.Event
) -> None:
    await kept.wait()
    for topic in topics:
        relayed.count += await ctx.relay.publish(topic, "bid_request", request, lifetime=timeout + 5)
    if relayed.count:
        relayed.patience = trio.current_time() + min(RELAY_WAIT, timeout)
    relayed.done = True
    ctx.searches.wake(request.id)


def _is_settled(ctx: LookingAround) -> bool:
    """Say whether who is there could be found: known peers are connected, or discovery had its time."""
    pending = [peer for peer in ctx.peers if not peer.introduced and peer.failures == 0]
    return ctx.searches.age >= SETTLE_TIME or (not ctx.config.network.discovery and not pending)


async def _ask(ctx: Gathering, request: BidRequest, did: str, timeout: float, waiting: set[str]) -> None:
    try:
        answer = await ctx.messenger.request(did, "bid_request", request, timeout=timeout)
        if isinstance(answer.body, Bid):
            await register_bid(ctx, request, answer)
        elif isinstance(answer.body, Decline):
            await ctx.store.change(decline_change(request, answer))
    except NunetError as error:
        if error.code != "peer_unreachable" or request.topic == "":
            await register_silence(ctx, request, did, error)
    finally:
        waiting.discard(did)
        ctx.searches.wake(request.id)
