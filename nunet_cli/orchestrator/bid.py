"""Stage 2, the provider's half: a bid request is compared, accepted or declined, and answered with a signed bid."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Protocol

import msgspec
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.retention import has_contract
from nunet_cli.database.store import Store, Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import PeerError, RejectedMessageError, StateError
from nunet_cli.executor.docker import is_allowed
from nunet_cli.matching.accept import accept
from nunet_cli.matching.compare import compare
from nunet_cli.matching.shares import CAP
from nunet_cli.network.messenger import Answer, Change, Incoming
from nunet_cli.orchestrator.idle_locks import idle_reason
from nunet_cli.orchestrator.needs import (
    HasAccounting,
    HasConfig,
    HasExecutors,
    HasIdentity,
    HasJudging,
    HasMessenger,
    HasPeers,
    HasRelay,
    HasStore,
    HasWork,
)
from nunet_cli.orchestrator.owners_rules import cost_of, names_for
from nunet_cli.orchestrator.permissions import Permitting, may_use, trusts
from nunet_cli.orchestrator.post import new_id
from nunet_cli.records.bids import (
    BID_REQUESTS,
    BIDS,
    Bid,
    BidRecord,
    BidRequest,
    BidRequestRecord,
    CapabilityComparison,
    Comparison,
    Decline,
    NodeID,
    TimeBid,
)
from nunet_cli.records.capability import Capability, PriceBid
from nunet_cli.records.events import EVENTS
from nunet_cli.records.identifiers import key_from_did, peer_cid_from_key, peer_id_from_key
from nunet_cli.records.jobs import JOBS
from nunet_cli.records.machine import REQUESTER

log = logging.getLogger("nunet.bid")

RELAYED_LIFETIME = 120
# seconds after which what is busy for no known time may be free
BUSY_PAUSE = 10
# offers to one requester that are kept here: a day's work of many machines; of more the oldest go that came to nothing
MOST_OFFERS, LOOKED_AT = 2000, 50
# a time at which nothing is taken any more that has an end
EVER = "9999-12-31T23:59:59.999Z"
NOT_YOUR_TURN = "others wait for a place here, and it is their turn"
# units that a bid takes at once
MOST_AT_ONCE = 1000


class Offering(HasAccounting, Permitting, HasStore, Protocol):
    """Knows what this machine can offer."""


class Assessing(HasJudging, HasPeers, HasWork, Offering, Protocol):
    """Holds a bid request against what this machine can offer."""


class Vetting(HasExecutors, Permitting, Protocol):
    """Knows which images it would run for whom."""


class Bidding(HasExecutors, Assessing, Protocol):
    """Answers a bid request."""


class Invited(Bidding, HasRelay, HasMessenger, Protocol):
    """Takes bid requests, however they come."""


def check_names(node: NodeID) -> None:
    """Refuse a node whose identifiers are not all of one key.

    Raises:
        RejectedMessageError: they name another node.
    """
    key = key_from_did(node.did)
    if (node.peer_id, node.cid) != (peer_id_from_key(key), peer_cid_from_key(key)):
        raise RejectedMessageError("the identifiers belong to different keys", code="wrong_sender")


def register(ctx: Invited) -> None:
    """Take bid requests, sent directly or relayed."""

    async def on_bid_request(message: Incoming) -> Answer | Change:
        return await _on_bid_request(ctx, message)

    async def on_relayed(message: Incoming) -> None:
        found = await _on_bid_request(ctx, message)

        def change(t: Transaction) -> None:
            type_, body = found(t) if callable(found) else found
            answer = ctx.messenger.outbox.outgoing(message.sender, type_, body, lifetime=RELAYED_LIFETIME)
            ctx.messenger.outbox.enqueue(t, answer)

        await ctx.store.change(change)

    ctx.messenger.register("bid_request", BidRequest, on_bid_request)
    ctx.relay.on_publication("bid_request", BidRequest, on_relayed)


async def _on_bid_request(ctx: Bidding, message: Incoming) -> Answer | Callable[[Transaction], Answer]:
    return await answer_request(ctx, message.body, message.sender)


async def answer_request(
    ctx: Bidding, request: BidRequest, sender: str, *, lock: bool = False
) -> Answer | Callable[[Transaction], Answer]:
    """Compare a bid request, and return the refusal, or the change that makes the bid.

    Args:
        ctx: the node's parts.
        request: the bid request.
        sender: who brought it, by its DID.
        lock: what is bid is locked at once, and not only when the requester asks for that.

    Raises:
        RejectedMessageError: it is not the sender's own, or another one with the same id was here.
    """
    if request.requester.did != sender:
        raise RejectedMessageError("the bid request is not the sender's own", code="wrong_sender")
    check_names(request.requester)
    made = _made_bid(ctx.store, request)
    if made is not None:
        return "bid", made
    images = await _compare_images(ctx, request)
    offer = await assess(ctx, request, images)
    if offer.comparison.verdict != "accept":
        free_at = await busy_until(ctx, request, images)
        if free_at:
            ctx.work.note_waiting(sender)
        # no row and no event: whoever asks without end would fill the disk
        log.debug("declined %s of %s: %s", request.id, sender, "; ".join(offer.comparison.reasons))
        return "decline", Decline(request.id, request.job_id, ctx.identity.node_id, offer.comparison, free_at)
    if not lock and request.count == 1 and not ctx.work.is_turn(sender):
        ctx.work.note_waiting(sender)
        ctx.work.wake_soon()
        return "decline", _taken(ctx, request, offer, StateError(NOT_YOUR_TURN))
    bid = create_bid(ctx, request, offer)

    def change(t: Transaction) -> Answer:
        # the same request may have come by another way as well: it gets one bid
        known = _made_bid(t, request)
        if known is not None:
            return "bid", known
        offered = bid
        # a unit of many is locked with its contract: others may have the rest meanwhile
        locks = request.count == 1 and (ctx.config.lock_on_bid or lock)
        pause = ctx.work.idle_locks.pause(ctx.accounting, t, sender) if locks or request.count > 1 else 0.0
        if pause:
            return "decline", _taken(ctx, request, offer, StateError(idle_reason(pause)), pause)
        if locks:
            resources = request.required_capability.resources
            until = bid.timeout if ctx.config.lock_on_bid else _lease_end(ctx)
            try:
                ctx.accounting.lock_capability(
                    t, bid.id, request.job_id, resources, until, bid.time.duration, sender
                )  # fmt: skip
            except StateError as error:
                # another took what was free when this one was compared
                t.then(partial(ctx.work.note_waiting, sender))
                return "decline", _taken(ctx, request, offer, error)
            t.then(partial(ctx.work.idle_locks.note, sender, bid.id))
            offered = structs.replace(bid, resources_locked_until_timeout=True, timeout=until)
        now = quantities.utc_now()
        make_room(t, sender, now)
        t[BID_REQUESTS].put(BidRequestRecord(request.id, request.job_id, "received", now, request))
        t[BIDS].put(
            BidRecord(
                bid.id,
                "bid",
                "sent",
                sender,
                request.id,
                request.job_id,
                now,
                bid.bidder,
                offered,
                offered_until=bid.timeout if offered.resources_locked_until_timeout else "",
            )
        )
        t.save_event(request.job_id, "bid_sent", bid_id=bid.id, bid_request_id=request.id,
                     requester=request.requester.peer_id)  # fmt: skip
        return "bid", offered

    return change


def make_room(t: Transaction, did: str, now: str) -> None:
    """Let the oldest offers that came to nothing go, where one requester has caused very many.

    Raises:
        RejectedMessageError: all of them still stand.
    """
    if t[BIDS].page(0, did=did, verdict="offered").total < MOST_OFFERS:
        return
    gone = 0
    for old in t[BIDS].page(LOOKED_AT, did=did, verdict="offered").rows:
        if old.direction != "sent":
            continue
        stands = offered_until(old) >= now
        if stands and t[BID_REQUESTS].one(old.bid_request_id).request.count > 1:
            # units of it may be taken yet
            continue
        if has_contract(t, old.id):
            # an earlier version did not say so with the bid
            transition(t, old, "take", by=REQUESTER)
            gone += 1
        elif not stands:
            t[BIDS].remove(old.id)
            t[BID_REQUESTS].remove(old.bid_request_id)
            # the job may be this node's own: a peer names what it likes
            if not t[BIDS].by("job_id", old.job_id, limit=1) and not t[JOBS].has(old.job_id):
                t[EVENTS].remove_by("job_id", old.job_id)
            gone += 1
    if not gone:
        raise RejectedMessageError(f"{MOST_OFFERS} offers to you are kept here already", code="too_many_offers")


def _made_bid(source: Store | Transaction, request: BidRequest) -> Bid | None:
    """Return the bid that was made for a request already.

    Raises:
        RejectedMessageError: it is another request with the same id.
    """
    known = source[BID_REQUESTS].get(request.id)
    if known is None:
        return None
    if known.direction != "received" or known.request != request:
        raise RejectedMessageError("there is another bid request with this id", code="wrong_bid_request")
    made = source[BIDS].page(1, bid_request_id=request.id, did=request.requester.did).rows
    return made[0].offer if made and made[0].direction == "sent" else None


def _taken(
    ctx: HasIdentity, request: BidRequest, offer: Offer, error: StateError, free_in: float = BUSY_PAUSE
) -> Decline:
    """Return the refusal of a request that would have been accepted a moment ago, or is in so many seconds."""
    name = CAP if error.code == "over_cap" else "resources"
    fields = (*offer.comparison.fields, Comparison(name, "worse", reason=error.message))
    comparison = CapabilityComparison(fields, "decline", (f"{name}: {error.message}",))
    return Decline(request.id, request.job_id, ctx.identity.node_id, comparison, _soon(free_in))


def _lease_end(ctx: HasConfig) -> str:
    return _soon(ctx.config.lock_lease)


def _soon(seconds: float) -> str:
    return quantities.format_time(quantities.now() + timedelta(seconds=seconds))


async def _compare_images(ctx: Vetting, request: BidRequest) -> tuple[Comparison, ...]:
    """Compare the images that are asked for with what the docker executor would run."""
    executor = ctx.executors.get("docker")
    if executor is None or "docker" not in ctx.available_executors:
        return ()
    found = []
    foreign = not trusts(ctx, "docker", request.requester.did)
    for image in request.images:
        refused = foreign and not is_allowed(ctx.config.executor.docker, image)
        reason = "this provider does not run the image" if refused else await executor.refusal(image)
        found.append(Comparison("executor.image", "worse" if reason else "equal", image, "", "", reason))
    return tuple(found)


class Offer(msgspec.Struct, frozen=True):
    """What a request comes to here: the comparison with its verdict, the price, and what is left."""

    comparison: CapabilityComparison
    price: PriceBid
    available: Capability


async def assess(
    ctx: Assessing, request: BidRequest, more: tuple[Comparison, ...] = (), *, at: str = "", idle: bool = False
) -> Offer:
    """Compare a request with what this provider has left, and decide (seed 2: `compare`, then `accept`).

    Expressions, the requester's and the provider's own, are evaluated off the event loop; a requester's only as long as
    it has steps left in this minute.

    Args:
        ctx: the node's parts.
        request: the bid request.
        more: comparisons that the caller had to wait for.
        at: a later time to look at instead of now.
        idle: expressions see the machine as if nobody used it: whether the request could ever be accepted.
    """
    required = request.required_capability
    price = ctx.accounting.price()
    cost = cost_of(request, price)
    available = _offered(ctx, request.requester.did, cost, at)
    # what is left once everybody has given back what they have
    whole = _offered(ctx, request.requester.did, cost, EVER) if idle else available
    names = names_for(ctx, request, whole, cost, idle=idle)
    did, comparator = request.requester.did, ctx.accounting.get_preferences()
    judge_fields = partial(compare, subject=ctx.identity.did, now=at or quantities.utc_now())
    if ctx.judging.is_spent(did, request.hard, names):
        spent = "its expressions take too much of this provider's time; ask again in a minute"
        fields = (*judge_fields(required, available), Comparison("constraints.hard", "error", reason=spent), *more)
    else:
        there_are = bool(request.hard or required.kycs)
        found = await ctx.judging.run_where(there_are, judge_fields, required, available, request.hard, names)
        fields = found + more
    fits = all(field.result in ("equal", "better") for field in fields)
    crowded = ctx.accounting.crowded(required.resources) if fits and not at else ""
    if crowded:
        fields += (Comparison("machine", "worse", reason=crowded),)
    over = ctx.accounting.over_cap(ctx.store, did, required.resources, at)
    if over:
        fields += (Comparison(CAP, "worse", reason=over),)
    judge = partial(accept, requester=did, price=cost, names=names)
    comparison = await ctx.judging.run_where(bool(comparator.rules), judge, fields, comparator)
    return Offer(comparison, price, available)


async def busy_until(ctx: Assessing, request: BidRequest, more: tuple[Comparison, ...] = ()) -> str:
    """Return when a job that is declined could begin here at the latest; empty where it never can.

    It is busy where it would take the job if nobody held anything: what is locked, what runs, and what other programs
    use of the machine; or if the requester's other jobs here had ended, where it may have no more of them at a time.
    """
    needs, did = request.required_capability.resources, request.requester.did
    start = ctx.accounting.earliest_start(ctx.store, needs, did)
    if not start or (await assess(ctx, request, more, at=start, idle=True)).comparison.verdict != "accept":
        return ""
    return max(start, _soon(BUSY_PAUSE)) if start <= quantities.utc_now() else start


def _offered(ctx: Offering, requester: str, cost: int, at: str) -> Capability:
    """Return what this provider offers a requester: what is left, the executors it may use, and the cost."""
    available = ctx.accounting.available(ctx.store, at)
    usable = tuple(name for name in available.executors if may_use(ctx, name, requester))
    return structs.replace(available, executors=usable, price=PriceBid(amount=quantities.format_amount(cost)))


def create_bid(ctx: Offering, request: BidRequest, offer: Offer) -> Bid:
    """Return the offer as a bid (seed 2: `createBid`), for as many units of what is asked for as there is room for."""
    needs = request.required_capability.resources.as_run()
    return Bid(
        id=new_id("bid"), bid_request_id=request.id, job_id=request.job_id, bidder=ctx.identity.node_id,
        price=offer.price, timeout=_soon(ctx.config.bid_timeout), spec_cid=request.spec_cid,
        comparison=offer.comparison,
        time=TimeBid(start=quantities.utc_now(), duration=max(1, request.required_capability.time.max)),
        offer=offer.available, load=ctx.accounting.load(ctx.store),
        units=max(1, offer.available.resources.times(needs, min(request.count, MOST_AT_ONCE))),
    )  # fmt: skip


def offered_until(record: BidRecord) -> str:
    """Return how long an offer stands: a lock that lapses earlier is taken again, while there is room.

    It is as long as it was at first, however often the requester asks: what is locked is not another's. One for many
    units stands longer with each that is taken.
    """
    return record.offered_until or record.offer.timeout


def sent_bid(source: Store | Transaction, bid_id: str, requester: str) -> BidRecord:
    """Return a bid of this provider's that was made to a requester.

    Raises:
        PeerError: there is no such bid.
    """
    record = source[BIDS].get(bid_id)
    if record is None or record.direction != "sent" or record.did != requester:
        raise PeerError(f"no bid {bid_id} was made to you", code="no_bid_here")
    return record
