"""Stage 3, choosing: the requester takes a bid of its own choice instead of the best ranked one."""

from __future__ import annotations

from functools import partial

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import StateError
from nunet_cli.orchestrator.changes import change_job
from nunet_cli.orchestrator.needs import HasStore
from nunet_cli.records.bids import BID, BIDS, BidRecord
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.machine import REQUESTER

# so many of the bids that stand are named where another one does not
MOST_NAMED = 5
CHOSEN = "chosen by hand"


async def choose_bid(ctx: HasStore, job: Job, bid: BidRecord) -> Job:
    """Put a bid of the job's present search in front of those whose turn is still to come; return the job.

    Raises:
        StateError: it is not one of them, or does not stand any more; code `bid_over`, and what does stand.
    """
    return await ctx.store.change(partial(_choose, job_id=job.id, bid_id=bid.id))


def _choose(t: Transaction, job_id: str, bid_id: str) -> Job:
    job, now = t[JOBS].one(job_id), quantities.utc_now()
    rows = {row.id: row for row in t[BIDS].by("bid_request_id", job.bid_request_id) if row.kind == "bid"}
    chosen = rows.get(bid_id)
    why = "it is no bid from the present search for this job" if chosen is None else _against(job, chosen, now)
    if chosen is None or why:
        raise _is_over(job, bid_id, why, [row for row in rows.values() if not _against(job, row, now)])
    gone, left = job.shortlist[: job.place], job.shortlist[job.place :]
    for other in left:
        if other != bid_id and other in rows and rows[other].verdict == "best":
            transition(t, rows[other], "shortlist", by=REQUESTER)
    why = chosen.why if chosen.why.startswith(CHOSEN) else f"{CHOSEN}; {chosen.why}"
    transition(t, chosen, "prefer", by=REQUESTER, why=why)
    t.save_event(job_id, "bid_chosen", bid_id=bid_id, bidder=chosen.bidder.peer_id)
    shortlist = (*gone, bid_id, *(other for other in left if other != bid_id))
    return change_job(t, job_id, shortlist=shortlist, bid_id=bid_id)


def _against(job: Job, bid: BidRecord, now: str) -> str:
    """Return why a bid cannot be taken; empty where it stands."""
    if bid.id in job.shortlist[: job.place]:
        said = [refusal.reason for refusal in job.refusals if refusal.bid == bid.id]
        return f"its turn is over: {said[-1]}" if said else "its turn is over"
    if bid.verdict in BID.ends:
        return f"it is {bid.verdict}" + (f": {'; '.join(bid.reasons)}" if bid.reasons else "")
    return f"it was valid until {bid.offer.timeout}" if bid.offer.timeout <= now else ""


def _is_over(job: Job, bid_id: str, why: str, others: list[BidRecord]) -> StateError:
    named = [row.id for row in sorted(others, key=lambda row: (row.rank or 10**6, row.at))]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return StateError(
        f"the bid {bid_id} cannot be taken: {why}", code="bid_over",
        hint=f"these stand: {', '.join(named[:MOST_NAMED])}{more}; see: nunet bids list {job.id}" if named
        else f"none stands any more; search again: nunet job match {job.id}",
        details={"standing": named},
    )  # fmt: skip
