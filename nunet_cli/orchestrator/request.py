"""Stage 3, job request: the chosen provider locks what its bid offers, or the next one on the shortlist is asked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import ContractError, DeclinedError, NunetError, RejectedMessageError, StateError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.matching.rank import SOON, start_delay
from nunet_cli.network.messenger import Answer, Change, Incoming
from nunet_cli.orchestrator.bid import NOT_YOUR_TURN, Assessing, assess, busy_until, offered_until, sent_bid
from nunet_cli.orchestrator.changes import advance, change_job, error_record, find_job
from nunet_cli.orchestrator.choose import choose_bid
from nunet_cli.orchestrator.going_on import No
from nunet_cli.orchestrator.idle_locks import idle_reason
from nunet_cli.orchestrator.locks import check_resource_lock, release_lock, release_message
from nunet_cli.orchestrator.needs import (
    Asking,
    Dealing,
    HasAccounting,
    HasAsked,
    HasConfig,
    HasMessenger,
    HasStore,
    HasTasks,
    HasWork,
)
from nunet_cli.orchestrator.retry import look_again, may_retry, search_again
from nunet_cli.records.bids import BID, BID_REQUESTS, BIDS, Bid, BidRecord, BidRequest
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.jobs import JOBS, Job, Refusal
from nunet_cli.records.machine import CLOCK, PROVIDER, REQUESTER
from nunet_cli.records.messages import DeclineJobRequest, JobRequest, TimeoutJobRequest

# seconds for which a search waits for those that may have locked
RELEASE_WAIT = 2.0
Also = Callable[[Transaction, Job, BidRecord], None]


class JobRequesting(HasAsked, Dealing, Protocol):
    """Has bidders lock."""


class Releasing(HasMessenger, HasStore, Protocol):
    """Frees what a bidder has locked."""


class Forgetting(HasTasks, Dealing, Protocol):
    """Frees what nobody remembers to be locked."""


class Requested(Assessing, HasMessenger, Protocol):
    """Takes job requests."""


class Locking(HasAccounting, HasConfig, HasWork, Protocol):
    """Locks what was bid."""


# -- requester ---------------------------------------------------------------------------------------------------------


async def request(ctx: JobRequesting, job_id: str, also: Also | None = None, *, chosen: BidRecord | None = None) -> Job:
    """Get the resources of the best bid locked, walking the shortlist; a job that has them already is left as it is.

    A job with a deadline goes back to the search when nobody on the shortlist takes it. With a bid that was chosen, its
    bidder alone is asked.

    Args:
        ctx: the node's parts.
        job_id: the job.
        also: what follows from the lock, and is kept in the same change.
        chosen: the bid to take, instead of the best ranked one.

    Raises:
        StateError: the job is not at this stage, or the chosen bid does not stand any more.
        DeclinedError: everybody on the shortlist declined or did not answer; the details say what each said.
    """
    job = find_job(ctx.store, job_id)
    if job.state == "requested":
        if chosen is not None and chosen.id != job.bid_id:
            raise StateError(f"job {job.id} has what {job.bid_id} offers locked already", code="bid_taken")
        return job
    if job.state != "matched":
        before = job.state in ("posted", "matching", "expired")
        hint = f"run: nunet job match {job.id}" if before else ""
        raise StateError(f"job {job.id} is {job.state}, not matched", hint=hint)
    if chosen is not None:
        job = await choose_bid(ctx, job, chosen)
    for place in range(job.place, len(job.shortlist)):
        bid = ctx.store[BIDS].one(job.shortlist[place])
        if bid.verdict in ("refused", "lapsed", "released"):
            # an earlier version did not keep how far it had come; or it was passed over for a chosen one
            continue
        # a busy provider is free a moment later: its bid said when
        await trio.sleep(min(SOON, start_delay(bid.offer, quantities.utc_now())))
        if check_resource_lock(bid.offer):
            return await _requested(ctx, job.id, place, bid, also)
        locked = ctx.asked.take(bid.id) or await _try_bid(ctx, bid)
        if isinstance(locked, BidRecord):
            return await _requested(ctx, job.id, place, locked, also)
        left = await ctx.store.change(partial(_note_refusal, job_id=job.id, place=place, bid=bid, no=locked))
        if left.state != "matched":
            # that was the last one, or the job was called off in the meantime
            return _unless_failed(left)
        if chosen is not None:
            raise DeclinedError(
                f"{bid.bidder.peer_id} declined: {locked.reason}",
                hint=f"choose another: nunet bids list {job.id}; or take the best one: nunet job request {job.id}",
            )
    return _unless_failed(await ctx.store.change(lambda t: _give_up_shortlist(t, t[JOBS].one(job.id))))


async def ask_first(ctx: JobRequesting, bid_id: str) -> None:
    """Ask a bidder to lock before its turn, which is next: its answer waits for that."""
    bid = ctx.store[BIDS].one(bid_id)
    if not check_resource_lock(bid.offer) and start_delay(bid.offer, quantities.utc_now()) <= 0:
        ctx.asked.keep(bid.id, await _try_bid(ctx, bid))


def _unless_failed(job: Job) -> Job:
    if job.state == "failed":
        raise _all_declined(job)
    return job


def _note_refusal(t: Transaction, job_id: str, place: int, bid: BidRecord, no: No) -> Job:
    """Go on to the next bid of the shortlist; after the last, to what is left for the job."""
    reason = no.reason
    if no.lapsed:
        transition(t, bid, "lapse", by=CLOCK, reasons=(reason,))
    else:
        transition(t, bid, "decline", by=PROVIDER, reasons=(reason,))
    t.save_event(job_id, "job_request_declined", bidder=bid.bidder.peer_id, bid_id=bid.id, reason=reason)
    job = t[JOBS].one(job_id)
    if job.state != "matched":
        return job
    refusals = (*job.refusals, Refusal(bid.id, bid.bidder.peer_id, reason, no.busy))
    job = change_job(t, job_id, place=place + 1, refusals=refusals)
    return job if job.place < len(job.shortlist) else _give_up_shortlist(t, job)


def _give_up_shortlist(t: Transaction, job: Job) -> Job:
    """Search again where somebody is busy, or bids had lapsed, or the job has a deadline or a retry; else it fails."""
    refusals = [structs.asdict(refusal) for refusal in job.refusals]
    said: dict[str, Any] = {"refusals": refusals}
    deadline = decode_spec(job.spec).time.deadline
    waits = not deadline and any(refusal.busy for refusal in job.refusals)
    if waits or deadline > quantities.utc_now():
        return advance(
            t, job.id, "search_again", by=REQUESTER, said=said, tries=job.tries + 1, shortlist=(), place=0
        )  # fmt: skip
    refused = _who_refused(t, job)
    if refused and _has_others(t, job, {*job.excluded, *refused}):
        # these are not asked again; whoever bids and takes it back ends nobody's job that others would run
        return advance(
            t, job.id, "search_again", by=REQUESTER, said=said, tries=job.tries + 1, shortlist=(), place=0,
            excluded=tuple(sorted({*job.excluded, *refused})),
        )  # fmt: skip
    bids = [t[BIDS].get(bid_id) for bid_id in job.shortlist]
    has_lapsed = any(bid is not None and bid.verdict == "lapsed" for bid in bids)
    # this node was away, or slow, while they stood: nobody has declined the job
    if has_lapsed and look_again(t, job, {"reason": "lapsed", **said}):
        return t[JOBS].one(job.id)
    if job.given_up and may_retry(job):
        # one of them had signed and did not start: that is what `retry` is for
        bid = t[BIDS].get(job.shortlist[0])
        return search_again(t, job, bid.did if bid is not None else "", {"reason": "declined", **said})
    error = error_record(_all_declined(job))
    return advance(t, job.id, "fail", by=REQUESTER, said=said, error=error)


def _who_refused(t: Transaction, job: Job) -> set[str]:
    """Return who bid for a job, and then would not take it: not those that are busy, or whose bids were over."""
    refused = {refusal.bid for refusal in job.refusals if not refusal.busy}
    bids = [bid for bid in map(t[BIDS].get, job.shortlist) if bid is not None and bid.id in refused]
    return {bid.did for bid in bids if bid.verdict != "lapsed"}


def _has_others(t: Transaction, job: Job, but: set[str]) -> bool:
    """Say whether others would run a job: they bid for it too, and were not asked, or are busy just now."""
    rows = [row for row in t[BIDS].by("bid_request_id", job.bid_request_id) if row.did not in but]
    return any(row.free_at if row.kind == "decline" else row.verdict in ("offered", "later") for row in rows)


def _all_declined(job: Job) -> DeclinedError:
    return DeclinedError(
        f"every provider on the shortlist declined ({len(job.refusals)})",
        hint=f"see why with: nunet job explain {job.id}; search again with: nunet job run",
        details={"refusals": [structs.asdict(refusal) for refusal in job.refusals]},
    )


async def _try_bid(ctx: Dealing, record: BidRecord) -> BidRecord | No:
    """Ask a bidder to lock; return the bid with its lock, or why there is none."""
    over = record.offer.timeout <= quantities.utc_now()
    answer = await _ask_to_lock(ctx, record)
    if isinstance(answer, BidRecord):
        return answer
    return answer._replace(lapsed=answer.lapsed or over)


async def _ask_to_lock(ctx: Dealing, record: BidRecord) -> BidRecord | No:
    bid_request = ctx.store[BID_REQUESTS].one(record.bid_request_id).request
    try:
        answer = await query_peer(ctx, record.did, JobRequest(record.id, bid_request))
    except NunetError as error:
        return No(error.message, lapsed=False)
    body, bid = answer.body, record.offer
    if isinstance(body, DeclineJobRequest):
        return No(body.reason, lapsed=False, busy=body.busy)
    if isinstance(body, TimeoutJobRequest):
        return No(f"the bid timed out at {body.timeout}", lapsed=True)
    if not isinstance(body, Bid) or _but_for_the_lock(body) != _but_for_the_lock(bid):
        return No("the provider came back with another bid", lapsed=False)
    if not body.resources_locked_until_timeout:
        return No("the provider did not lock the resources", lapsed=False)
    locked = structs.replace(bid, resources_locked_until_timeout=True, timeout=body.timeout)
    return structs.replace(record, bid=locked, evidence=answer.evidence)


def _but_for_the_lock(bid: Bid) -> Bid:
    return structs.replace(bid, resources_locked_until_timeout=False, timeout="")


async def query_peer(ctx: Asking, did: str, body: JobRequest) -> Incoming:
    """Send the request to lock resources (seed 3: `network.queryPeer`)."""
    return await ctx.messenger.request(did, "job_request", body, timeout=ctx.config.limits.answer_timeout)


async def _requested(ctx: Releasing, job_id: str, place: int, bid: BidRecord, also: Also | None) -> Job:
    def change(t: Transaction) -> Job:
        locked = transition(t, bid, "lock", by=PROVIDER, bid=bid.offer, evidence=bid.evidence)
        said = {"bid_id": bid.id, "bidder": bid.bidder.peer_id, "locked_until": bid.offer.timeout}
        job = advance(
            t, job_id, "lock", by=PROVIDER, about=bid.bid_request_id, said=said, place=place, bid_id=bid.id
        )  # fmt: skip
        if also is not None:
            also(t, job, locked)
        _free_others(ctx, t, job)
        return job

    return await ctx.store.change(change)


def _free_others(ctx: HasMessenger, t: Transaction, job: Job) -> None:
    """Free what other bidders on the shortlist have locked: they kept it while a person chose among them."""
    for bid in map(t[BIDS].get, job.shortlist[job.place + 1 :]):
        if bid is not None and bid.verdict not in BID.ends and check_resource_lock(bid.offer):
            transition(t, bid, "release", by=REQUESTER)
            ctx.messenger.outbox.enqueue(t, release_message(ctx, bid.id, bid.did))


async def next_bid(ctx: Releasing, job_id: str, reason: str) -> Job:
    """Give up the current bid and go back to the shortlist, from the next one on; what is locked for it is freed."""
    bid_id = find_job(ctx.store, job_id).bid_id

    def change(t: Transaction) -> Job:
        job, bid = t[JOBS].one(job_id), t[BIDS].get(bid_id)
        peer = bid.bidder.peer_id if bid is not None else ""
        if bid is not None:
            ctx.messenger.outbox.enqueue(t, release_message(ctx, bid.id, bid.did))
        refusals = (*job.refusals, Refusal(bid_id, peer, reason))
        said = {"refused_by": peer, "reason": reason}
        return advance(
            t, job_id, "decline", by=PROVIDER, about=bid_id, said=said, place=job.place + 1, refusals=refusals
        )  # fmt: skip

    return await ctx.store.change(change)


async def release_forgotten(ctx: Forgetting, job: Job) -> None:
    """Before another search: free what may be locked for bids of one that ended before it was kept which is the best.

    This node was killed, or its disk was full, and nobody knows whom it had asked (see `ask_first`): a bidder would
    decline the job as long as it keeps its machine for it.
    """
    now = quantities.utc_now()
    bids = [row for row in ctx.store[BIDS].by("bid_request_id", job.bid_request_id) if row.kind == "bid"]
    patience = min(RELEASE_WAIT, ctx.config.limits.answer_timeout)
    async with trio.open_nursery() as nursery:
        for bid in bids:
            if bid.verdict == "offered" and bid.score is None and bid.offer.timeout > now:
                ctx.supervisor.start_soon(nursery, "freeing a lock", release_lock, ctx, bid, patience)


# -- provider ----------------------------------------------------------------------------------------------------------


def register(ctx: Requested) -> None:
    """Take job requests."""

    async def on_job_request(message: Incoming) -> Answer | Change:
        return await _on_job_request(ctx, message)

    ctx.messenger.register("job_request", JobRequest, on_job_request)
    ctx.messenger.register("decline_job_request", DeclineJobRequest)
    ctx.messenger.register("timeout_job_request", TimeoutJobRequest)


async def _on_job_request(ctx: Assessing, message: Incoming) -> Answer | Change:
    body: JobRequest = message.body
    record = sent_bid(ctx.store, body.bid_id, message.sender)
    if record.bid_request_id != body.bid_request.id or record.offer.spec_cid != body.bid_request.spec_cid:
        raise RejectedMessageError("the job request is not what was bid for", code="wrong_bid")
    if _is_over(ctx, ctx.store, record):
        return _timed_out(record)
    original = ctx.store[BID_REQUESTS].one(body.bid_request.id).request
    if original.count > 1:
        raise RejectedMessageError("a unit of this bid is locked with its contract", code="wrong_bid")
    if not ctx.accounting.is_locked(ctx.store, record.id):
        comparison = (await assess(ctx, original)).comparison
        if comparison.verdict != "accept":
            busy = bool(await busy_until(ctx, original))
            return lambda t: _decline(ctx, t, record, "; ".join(comparison.reasons), busy=busy)
    return lambda t: lock_resources(ctx, t, sent_bid(t, body.bid_id, message.sender), original)


def _is_over(ctx: HasAccounting, source: Store | Transaction, record: BidRecord) -> bool:
    """Say whether an offer is over; a lock that was taken while it stood holds to its end."""
    return offered_until(record) <= quantities.utc_now() and not ctx.accounting.is_locked(source, record.id)


def lock_resources(ctx: Locking, t: Transaction, record: BidRecord, request: BidRequest) -> Answer:
    """Lock for a lease what a bid offers, and submit the bid again (seed 3: `lockResources`).

    Raises:
        StateError: the bid was released.
        ContractError: it has its contract already, and with that its resources.
    """
    if _is_over(ctx, t, record):
        return _timed_out(record)
    if t[CONTRACTS].first("bid_id", record.id) is not None:
        raise ContractError("there is a contract for this bid already", code="bid_used")
    bid = record.offer
    if offered_until(record) <= quantities.utc_now():
        # it is locked still, and no longer than that
        return "bid", bid
    pause = ctx.work.idle_locks.pause(ctx.accounting, t, record.did)
    if pause and not ctx.accounting.is_locked(t, record.id):
        return _decline(ctx, t, record, idle_reason(pause), busy=True)
    if not ctx.work.is_turn(record.did) and not ctx.accounting.is_locked(t, record.id):
        t.then(ctx.work.wake_soon)
        return _decline(ctx, t, record, NOT_YOUR_TURN, busy=True)
    until = quantities.format_time(quantities.now() + timedelta(seconds=ctx.config.lock_lease))
    resources = request.required_capability.resources
    try:
        ctx.accounting.lock_capability(
            t, record.id, record.job_id, resources, until, bid.time.duration, record.did
        )  # fmt: skip
    except StateError as error:
        return _decline(ctx, t, record, error.message, busy=True)
    if not bid.resources_locked_until_timeout:
        t.then(partial(ctx.work.served, record.did))
        t.then(partial(ctx.work.took_turn, record.did))
    locked = structs.replace(bid, resources_locked_until_timeout=True, timeout=until)
    transition(t, record, "lock", by=PROVIDER, bid=locked, offered_until=offered_until(record))
    t.save_event(record.job_id, "resources_locked", bid_id=record.id, until=until)
    t.then(partial(ctx.work.idle_locks.note, record.did, record.id))
    return "bid", locked


def _timed_out(record: BidRecord) -> Answer:
    return "timeout_job_request", TimeoutJobRequest(record.id, record.offer.timeout)


def _decline(ctx: HasWork, t: Transaction, record: BidRecord, reason: str, *, busy: bool) -> Answer:
    t.save_event(record.job_id, "job_request_declined", bid_id=record.id, reason=reason)
    if busy:
        t.then(partial(ctx.work.note_waiting, record.did))
    return "decline_job_request", DeclineJobRequest(record.id, reason, busy)
