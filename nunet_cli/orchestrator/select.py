"""Stage 2, selecting: the bids of a search are held against the preferences, ranked, and the best are shortlisted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple, Protocol

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import NoBidError
from nunet_cli.jobs import expressions
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.tree import required_capability
from nunet_cli.matching.accept import refusals, unwanted
from nunet_cli.matching.compare import compare_kycs, known_kycs
from nunet_cli.matching.rank import SOON, RankedBid, Wishes, bid_names, rank, start_delay
from nunet_cli.network.peers import clock_text, is_other_version
from nunet_cli.orchestrator.changes import advance, find_job
from nunet_cli.orchestrator.locks import release_message
from nunet_cli.orchestrator.needs import HasAccounting, HasConfig, HasJudging, HasMessenger, HasPeers, HasStore
from nunet_cli.records.bids import BID, BIDS, Bid, BidRecord
from nunet_cli.records.capability import Capability
from nunet_cli.records.jobs import JOBS, Job, LinkRule
from nunet_cli.records.machine import REQUESTER
from nunet_cli.supervise import meanwhile

First = Callable[[str], Awaitable[None]]
SHORTLIST = 5
# more bids than that take long enough to be ranked off the event loop
MANY = 100


class Linking(HasConfig, HasStore, Protocol):
    """Knows what the jobs that one is linked to have got."""


class Selecting(HasAccounting, HasJudging, HasPeers, HasConfig, HasMessenger, HasStore, Protocol):
    """Selects among the bids for a job."""


class Ranking(NamedTuple):
    """The bids for a request: those that stand, the best first, and what becomes of the others, and why."""

    ranked: list[RankedBid]
    refused: dict[str, tuple[str, list[str]]]

    def ready(self, now: str) -> list[RankedBid]:
        """Return those of whom the job can begin at once."""
        return [item for item in self.ranked if start_delay(item.bid, now) <= SOON]

    def note_refused(self, t: Transaction) -> None:
        """Keep, as part of a change, which bids are not taken, and why."""
        for bid_id, (event, why) in self.refused.items():
            transition(t, t[BIDS].one(bid_id), event, by=REQUESTER, reasons=tuple(why))


async def rank_bids(ctx: Selecting, job: Job, request_id: str, now: str) -> Ranking:
    """Hold the bids of a request against the preferences, the job and its links, and rank those that stand."""
    spec = decode_spec(job.spec)
    comparator = ctx.accounting.get_preferences()
    needs = required_capability(spec, ctx.config.kyc.verifiers)
    wishes = Wishes(job.limit, comparator.weights, spec.constraints.soft, needs, spec.name)
    distance = {peer.did: peer.rtt for peer in ctx.peers if peer.rtt is not None}
    links = _linked(ctx, job)
    valid: list[Bid] = []
    # by bid: what becomes of it, and why
    refused: dict[str, tuple[str, list[str]]] = {}
    for row in ctx.store[BIDS].by("bid_request_id", request_id):
        if row.kind != "bid" or row.verdict in BID.ends:
            # what was not taken once is not looked at again
            continue
        if row.did in job.excluded:
            refused[row.id] = "exclude", ["excluded: it has run this job or refused it, or runs another replica of it"]
            continue
        bid = row.offer
        # signatures are checked off the event loop
        unproved = await ctx.judging.run(missing_kycs, needs, bid) if needs.kycs else []
        if unproved:
            refused[bid.id] = "distrust", unproved
            continue
        if bid.offer.kycs:
            bid = structs.replace(bid, offer=await ctx.judging.run(_as_known, ctx, bid.offer, row.did))
        reasons = unwanted(comparator, row.did)
        names = bid_names(bid, wishes, now=now, rtt=distance.get(row.did))
        rules = comparator.bid_rules
        against = await ctx.judging.run_where(bool(rules), refusals, rules, names, "preferences.bid_rules")
        for rule, linked in links:
            found = await ctx.judging.run(
                refusals, (rule.constraint,), {**names, "linked": linked}, f"links.{rule.from_}"
            )
            against += found
        reasons += [f"{item.field}: {item.required}: {item.reason}" for item in against]
        if reasons:
            refused[bid.id] = "reject", reasons
        elif bid.valid_offer and bid.timeout > now:
            valid.append(bid)
    slow = bool(wishes.soft) or len(valid) > MANY
    ranked = await ctx.judging.run_where(slow, partial(rank, now=now, distance=distance), valid, wishes)
    return Ranking(ranked, refused)


async def select_best_bid(ctx: Selecting, job_id: str, request_id: str, first: First | None = None) -> Job:
    """Rank the bids of a request and keep the shortlist with the job (seed 2: `selectBestBid`).

    Bids that the preferences refuse are left out, each with its reasons. Who can start now is preferred to who cannot.
    With `first`, something is done with the best bid meanwhile; without, a person may choose another of them.

    Raises:
        NoBidError: there is none for now; code `not_yet` with `details["start"]` where a provider can start later.
    """
    job, now = find_job(ctx.store, job_id), quantities.utc_now()
    ranking = await rank_bids(ctx, job, request_id, now)
    ranked, ready = ranking.ranked, ranking.ready(now)
    best = ready[0] if ready else None
    # those who have locked at once, and are not the best, keep their machines for others; by hand another may be chosen
    others = ranked if first is not None else []
    spare = [item.bid for item in others if item is not best and item.bid.resources_locked_until_timeout]
    shortlist = tuple(item.bid.id for item in ready[:SHORTLIST] if item.bid not in spare)

    def change(t: Transaction) -> Job:
        for bid in spare if best is not None else ():
            ctx.messenger.outbox.enqueue(t, release_message(ctx, bid.id, bid.bidder.did))
        ranking.note_refused(t)
        for item in ranked:
            if item.bid.id in shortlist:
                event = "prefer" if item.bid.id == shortlist[0] else "shortlist"
            else:
                event = "pass_over" if item in ready else "postpone"
            transition(
                t, t[BIDS].one(item.bid.id), event, by=REQUESTER, score=item.score, rank=item.rank, why=item.why
            )  # fmt: skip
        if best is None:
            return t[JOBS].one(job_id)
        said = {"bids": len(ranked), "best": best.bid.id, "bidder": best.bid.bidder.peer_id, "why": best.why}
        return advance(
            t, job_id, "match", by=REQUESTER, about=request_id, said=said, shortlist=shortlist, place=0,
            bid_id=shortlist[0], waiting=None, refusals=(),
        )  # fmt: skip

    if first is not None and ready:
        return (await meanwhile(partial(ctx.store.change, change), partial(first, shortlist[0])))[0]
    changed = await ctx.store.change(change)
    if not ready:
        raise why_none(ctx, request_id, ranked)
    return changed


def why_none(ctx: Selecting, request_id: str, ranked: list[RankedBid]) -> NoBidError:
    """Return why no bid for a request can be taken, with what each said."""
    rows = ctx.store[BIDS].by("bid_request_id", request_id)
    return _not_yet(ranked) if ranked else _no_bid(rows, _of_other_versions(ctx))


def missing_kycs(needs: Capability, bid: Bid) -> list[str]:
    """Return why a bidder has not shown the statements (`kycs`) that a job names, which nobody's word stands for."""
    fields = compare_kycs(needs, bid.offer, bid.bidder.did, quantities.utc_now())
    return [f"{field.field}: {field.reason}" for field in fields if field.result != "equal"]


def _as_known(ctx: HasConfig, offer: Capability, did: str) -> Capability:
    return known_kycs(offer, ctx.config.kyc.verifiers, did, quantities.utc_now())


def _linked(ctx: Linking, job: Job) -> list[tuple[LinkRule, expressions.Variables]]:
    """Return the constraints of links to this job, each with what the provider of the linked job has."""
    found = []
    for rule in job.link_rules:
        bid = ctx.store[BIDS].get(rule.bid_id)
        linked = _as_known(ctx, bid.offer.offer, bid.did) if bid is not None else Capability()
        found.append((rule, {**expressions.describe(linked), "did": bid.did if bid is not None else ""}))
    return found


def _not_yet(ranked: list[RankedBid]) -> NoBidError:
    soonest = min(ranked, key=lambda item: item.bid.time.start)
    start = soonest.bid.time.start
    return NoBidError(
        f"{soonest.bid.bidder.peer_id} is busy, and can start at {start}",
        code="not_yet", details={"start": start}, hint="the job is offered again then",
    )  # fmt: skip


def _of_other_versions(ctx: HasPeers) -> list[str]:
    """Return what is said of the peers that are there, and of which it cannot be known whether they are providers."""
    return [peer.obstacle.message for peer in ctx.peers if is_other_version(peer) and peer.obstacle is not None]


def _other_clocks(seconds: list[float]) -> str:
    if len(seconds) == 1:
        return f"1 provider's clock is {clock_text(seconds[0])}"
    least = quantities.format_duration(min(map(abs, seconds)))
    return f"{len(seconds)} providers' clocks differ from this machine's by {least} or more"


def _no_bid(rows: list[BidRecord], others: list[str]) -> NoBidError:
    if not rows:
        also = f"; of {len(others)} that could not be asked, one: {others[0]}" if others else ""
        return NoBidError(
            f"nobody to ask: no provider was found{also}",
            code="no_peer",
            hint="see: nunet peer list; a machine becomes a provider with: nunet onboard && nunet node run",
        )
    said = [
        {"peer": row.bidder.peer_id, "kind": row.kind, "reasons": list(row.reasons)}
        | ({"free_at": row.free_at} if row.free_at else {})
        for row in rows
    ]
    free = sorted(row.free_at for row in rows if row.free_at)
    declined = sum(row.kind == "decline" and not row.free_at for row in rows)
    refused = sum(row.verdict == "unwanted" for row in rows)
    excluded = sum(row.verdict == "excluded" for row in rows)
    unverified = sum(row.verdict == "unverified" for row in rows)
    clocks = [row.clock for row in rows if row.clock is not None]
    silent = sum(row.kind == "silent" and row.clock is None for row in rows)
    parts = [f"{len(free)} {'is' if len(free) == 1 else 'are'} busy"] if free else []
    parts += [f"{declined} declined"] if declined else []
    parts += [f"{silent} did not answer"] if silent else []
    parts += [_other_clocks(clocks)] if clocks else []
    parts += [f"{refused} bid against the preferences"] if refused else []
    parts += [f"{unverified} without the statements (kycs) that the job names"] if unverified else []
    parts += [f"{excluded} cannot be taken a second time"] if excluded else []
    details = {"answers": said, "silent": silent}
    if free:
        return NoBidError(
            f"no provider has room: {', '.join(parts)}", code="busy", details={**details, "start": free[0]},
            hint="the job waits; see for what with: nunet job explain JOB",
        )  # fmt: skip
    if any(row.kind == "bid" and row.verdict not in BID.ends for row in rows):
        # they stood, and do no more: a new search brings others
        return NoBidError(
            f"the bids stand no more{''.join(f', {part}' for part in parts)}", code="bids_over",
            details={**details, "start": quantities.utc_now()}, hint="the job is offered again",
        )  # fmt: skip
    return NoBidError(
        f"no acceptable bid: {', '.join(parts)}",
        hint="see whose clock is wrong with: nunet doctor" if clocks else "see why with: nunet job explain JOB",
        details=details,
    )


def get_registered_bids(ctx: HasStore, bid_request_id: str) -> list[BidRecord]:
    """Return the bids received for a request with rank, score and why, best first; they survive restarts.

    Second seed: `getRegisteredBids`; seed 2: `computeProvidersIndex`.
    """
    rows = ctx.store[BIDS].by("bid_request_id", bid_request_id)
    return sorted((row for row in rows if row.kind == "bid" and row.direction == "received"), key=_place)


def _place(row: BidRecord) -> tuple[int, str]:
    return row.rank or 10**6, row.at
