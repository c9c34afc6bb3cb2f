"""Stages 2 and 3 of the items of a batch: one search finds bids for many units, and each item takes one of them.

A unit is locked with its contract, so nobody is asked for a lock. What cannot go this way, such as an item that a
provider has failed already, is searched for alone: see `match`.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Protocol

import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import NoBidError, NunetError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.matching import explain
from nunet_cli.orchestrator.changes import advance, change_job, find_job
from nunet_cli.orchestrator.contract import TRANSIENT, Contracting, propose_at_once
from nunet_cli.orchestrator.locks import release_message
from nunet_cli.orchestrator.match import (
    Matching,
    askable,
    doubled,
    expire,
    in_time,
    new_bid_request,
    next_try,
    note_waiting,
    publish_bid_request,
)
from nunet_cli.orchestrator.needs import HasAccounting, HasMessenger, HasStanding, HasStore
from nunet_cli.orchestrator.searched import forget_searches
from nunet_cli.orchestrator.searches import Turn
from nunet_cli.orchestrator.select import rank_bids, why_none
from nunet_cli.orchestrator.standing import GroupBids, Taken
from nunet_cli.orchestrator.units import as_unit, bid_of
from nunet_cli.records.bids import BID_REQUESTS, BIDS, MOST_UNITS, BidRequest, BidRequestRecord
from nunet_cli.records.jobs import JOBS, Job, Refusal
from nunet_cli.records.machine import REQUESTER
from nunet_cli.supervise import meanwhile

log = logging.getLogger("nunet.batch")

# what a provider says whose bid stands, and which has no room just now; and those after which another bid is needed
FULL = frozenset({"no_place", "not_available", "machine_busy"})
OVER = frozenset({
    "bad_times", "bid_timeout", "no_bid_here", "offer_changed", "not_offered", "not_wanted", "illegal_transition",
})  # fmt: skip
SILENT = TRANSIENT
FIRST_PAUSE, BUSY_PAUSE = 1.0, 5.0


class Finding(HasStanding, Matching, Protocol):
    """Finds bids for many units."""


class TakingUnits(HasAccounting, HasStanding, Contracting, Protocol):
    """Takes units of bids that stand."""


class Leaving(HasStanding, HasMessenger, HasStore, Protocol):
    """Gives units back."""


# -- one item ----------------------------------------------------------------------------------------------------------


async def take_unit(ctx: TakingUnits, job: Job) -> bool:
    """Wait for a unit of a bid that stands for an item's batch, and take it; False where the item goes its own way.

    Raises:
        NoBidError: nobody can run it, or nobody had room until its deadline.
    """
    group = ctx.standing.of(job.parent) if job.parent else None
    if group is None:
        return False
    # also one that goes its own way from here on: a provider has failed it
    ctx.standing.leave(job.parent, job.id)
    if job.excluded or job.refusals:
        return False
    spec = decode_spec(job.spec)
    if spec.time.start > quantities.utc_now():
        return False
    taken: Taken | None = None
    try:
        with trio.move_on_after(_left(spec.time.deadline)):
            taken = await group.take(job.id)
            while not group.hold_against(ctx.accounting.get_preferences()):
                # whom the owner would not take any more is given nothing more
                taken = None
                taken = await group.take(job.id)
    except NoBidError as error:
        await expire(ctx, job.id, error)
        raise
    if taken is not None:
        # not within the deadline: an item that has its unit is not ended by it in the same moment
        await ctx.store.change(partial(_take, ctx, job_id=job.id, taken=taken))
        return True
    late = NoBidError(f"no provider had room until {spec.time.deadline}", code="busy")
    await expire(ctx, job.id, late)
    raise late


def _left(deadline: str) -> float:
    return max(0.0, (quantities.parse_time(deadline) - quantities.now()).total_seconds()) if deadline else float("inf")


def _take(ctx: Contracting, t: Transaction, job_id: str, taken: Taken) -> None:
    bid, name = taken
    if not t[BIDS].has(bid.id):
        # nothing had come of it in many searches: it was forgotten, and stands
        t[BIDS].put(bid)
    said = {"bid_id": name, "bidder": bid.bidder.peer_id}
    job = advance(
        t, job_id, "take", by=REQUESTER, said=said, bid_id=name, bid_request_id=bid.bid_request_id, waiting=None,
        error=None, shortlist=(), place=0,
    )  # fmt: skip
    propose_at_once(ctx, t, job, as_unit(bid, name, job.id, job.spec_cid))


async def put_back(ctx: Leaving, job_id: str, error: NunetError) -> None:
    """Let an item that a provider did not take wait for another unit; for bids of its own, where it is its fault.

    Whoever refuses one item after the other is at fault itself, and gets no more of them.
    """
    cause = str(error.details.get("cause", ""))
    job = find_job(ctx.store, job_id)
    ctx.standing.turned_down(job.parent, job_id, stands=cause in FULL)
    bid = bid_of(ctx.store, job.bid_id)
    is_its_own = cause not in FULL | OVER | SILENT
    is_barred = is_its_own and bid is not None and ctx.standing.refused(job.parent, bid.did)
    # it may have locked the unit, and its answer not have arrived
    release = release_message(ctx, job.bid_id, bid.did) if bid is not None and cause in SILENT else None

    def change(t: Transaction) -> None:
        current = t[JOBS].one(job_id)
        if release is not None:
            ctx.messenger.outbox.enqueue(t, release)
        refusals = current.refusals
        if is_its_own and not is_barred:
            refusals = (*refusals, Refusal(current.bid_id, "", error.message))
        advance(
            t, job_id, "search_again", by=REQUESTER, said={"reason": cause or error.code, "message": error.message},
            bid_id="", contract_id="", bid_request_id="", refusals=refusals,
        )  # fmt: skip

    await ctx.store.change(change)


# -- the batch ---------------------------------------------------------------------------------------------------------


async def find_units(ctx: Finding, group: GroupBids) -> None:
    """Search for bids for many units whenever items wait and none stands that has room; until cancelled.

    While some stand that have no more room, only those are asked who come anew, or look for work.
    """
    tries, request = 0, None
    asked, had = set[str](), set[str]()
    while True:
        news = group.news
        if not group.waiting:
            await news.wait()
            continue
        if group.dropped:
            # whoever bids, and takes it back, is not asked all the time
            await trio.sleep(doubled(FIRST_PAUSE, group.dropped - 1))
            if not group.waiting:
                continue
        item, error = find_job(ctx.store, group.next()), None
        works = any(standing.taken for standing in group.bids.values())
        if request is None or not works or had - set(group.bids) or askable(ctx, item, request) - asked:
            request = await _search(ctx, group, item)
            error = await _take_over(ctx, group, item, request)
            asked, had = askable(ctx, item, request), set(group.bids)
        if not group.waiting:
            tries = 0
            continue
        works = any(standing.taken for standing in group.bids.values())
        again = in_time(doubled(BUSY_PAUSE, tries), "")
        if not works and error is not None:
            again = next_try(error, decode_spec(item.spec).time.deadline, tries)
        if not again:
            if error is not None:
                error, why = _with_reasons(error)
                said = {"reason": error.code, "message": error.message, "why": why}
                await ctx.store.save_event(group.group_id, "search_ended", **said)
                group.fail(error)
            await trio.sleep(0)
            continue
        what = error.message if error is not None else "every provider has as many of its jobs as it takes"
        tries = 0 if await _wait(ctx, group, item, request, again, what) else tries + 1


def _with_reasons(error: NoBidError) -> tuple[NoBidError, str]:
    """Return an error with what those that declined had to say, for it becomes that of each item, and that alone."""
    answers = error.details.get("answers", [])
    reasons = [one["reasons"] for one in answers if one["kind"] == "decline" and not one.get("free_at")]
    why = explain.common(reasons)
    if not why:
        return error, error.message
    message = f"{error.message}; {why}"
    return NoBidError(message, code=error.code, hint=error.hint, details=error.details), why


async def _search(ctx: Finding, group: GroupBids, item: Job) -> BidRequest:
    """Ask for bids for as many units as there are items left, and return once everybody has answered."""
    spec = decode_spec(item.spec)
    whole = find_job(ctx.store, group.group_id)
    batch = decode_spec(whole.spec).batch
    left = ctx.store[JOBS].page(0, parent=whole.id, state=("posted", "matching", "expired")).total
    most = batch.parallel if batch is not None and batch.parallel else MOST_UNITS
    # a bid for many is one in which each unit is locked with its contract, also where one is left
    count = max(2, min(left, most, MOST_UNITS))
    request = new_bid_request(ctx, item, spec)
    request = structs.replace(request, job_id=whole.id, spec_cid=whole.spec_cid, name=whole.name, count=count)
    group.needs = request.required_capability.resources.as_run()
    kept = trio.Event()

    def change(t: Transaction) -> None:
        forget_searches(t, whole.id)
        t[BID_REQUESTS].put(BidRequestRecord(request.id, whole.id, "sent", quantities.utc_now(), request))
        change_job(t, whole.id, bid_request_id=request.id)
        t.save_event(whole.id, "bid_request_sent", bid_request_id=request.id, count=count)

    async def keep() -> None:
        await ctx.store.change(change)
        kept.set()

    named = [item.topic] if item.topic else []
    search = ctx.config.default_search_timeout
    publish = partial(publish_bid_request, ctx, request, *named, push=item.push, timeout=search, kept=kept)
    # one that declined, and has room a moment later, comes by itself
    with ctx.searches.shown(Turn(whole.created_at, request, whole, is_out=True)):
        await meanwhile(keep, publish)
    return request


async def _take_over(ctx: Finding, group: GroupBids, item: Job, request: BidRequest) -> NoBidError | None:
    """Let the bids stand that can be taken; return why there is none, where there is none."""
    now = quantities.utc_now()
    group.hold_against(ctx.accounting.get_preferences())
    # those that refuse what they have bid for are as if they were not there
    item = structs.replace(item, excluded=(*item.excluded, *group.barred()))
    ranking = await rank_bids(ctx, item, request.id, now)
    ready = ranking.ready(now)

    def change(t: Transaction) -> None:
        ranking.note_refused(t)
        for place in ranking.ranked:
            event = "shortlist" if place in ready else "postpone"
            transition(
                t, t[BIDS].one(place.bid.id), event, by=REQUESTER, score=place.score, rank=place.rank, why=place.why
            )  # fmt: skip
        if ready:
            change_job(t, group.group_id, waiting=None)
        t.save_event(group.group_id, "bids_ranked", bids=len(ranking.ranked), units=sum(i.bid.units for i in ready))

    await ctx.store.change(change)
    for place in ready:
        group.stand(ctx.store[BIDS].one(place.bid.id))
    group.fill()
    return None if ready else why_none(ctx, request.id, ranking.ranked)


async def _wait(ctx: Finding, group: GroupBids, item: Job, request: BidRequest, until: str, what: str) -> bool:
    """Wait until somebody comes who may have room, or until a time; return whether items got on meanwhile.

    As long as units of bids that stand are taken, there is nothing to be asked again.
    """
    known, bids = askable(ctx, item, request), set(group.bids)
    whole, progress, noted = find_job(ctx.store, group.group_id), False, False
    with ctx.searches.open(Turn(whole.created_at, request, whole)):
        while group.waiting:
            works = any(standing.taken for standing in group.bids.values())
            if not works and not noted:
                noted = True
                await note_waiting(ctx, whole.id, until, what)
            late = until <= quantities.utc_now()
            if (late and not works) or bids - set(group.bids) or askable(ctx, item, request) - known:
                break
            left = len(group.waiting)
            await ctx.searches.wait(request.id, 1.0)
            if _has_new_bid(ctx, group, request):
                await _take_over(ctx, group, item, request)
                bids = set(group.bids)
            # what had no room a while ago may have some
            group.fill()
            progress = progress or len(group.waiting) < left
    return progress


def _has_new_bid(ctx: Finding, group: GroupBids, request: BidRequest) -> bool:
    if not ctx.searches.answers(request.id):
        return False
    rows = ctx.store[BIDS].by("bid_request_id", request.id)
    fresh = [row.offer for row in rows if row.kind == "bid" and row.verdict == "offered" and row.score is None]
    # one that is over already is never ranked
    return any(offer.valid_offer and offer.timeout > quantities.utc_now() for offer in fresh)
