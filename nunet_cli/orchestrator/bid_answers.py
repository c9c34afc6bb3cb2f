"""Stage 2, the answers to a bid request: bids, refusals and silence are checked and kept, each bidder's first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError, RejectedMessageError, StateError
from nunet_cli.matching.rank import bid_price
from nunet_cli.network.messenger import Change, Incoming
from nunet_cli.orchestrator.locks import release_message
from nunet_cli.orchestrator.needs import HasMessenger, HasSearches, HasStore, HasTransport
from nunet_cli.orchestrator.post import new_id
from nunet_cli.records.bids import BID_REQUESTS, BIDS, Bid, BidRecord, BidRequest, Decline, NodeID, is_unit
from nunet_cli.records.identifiers import key_from_did, peer_cid_from_key, peer_id_from_key
from nunet_cli.records.jobs import JOBS

ENOUGH_BIDS = 50
# of those that come by relay, to be able to say why nobody took the job
MOST_REFUSALS = 50


class Registering(HasSearches, HasStore, Protocol):
    """Keeps the answers to a bid request."""


class Gathering(HasTransport, HasMessenger, Registering, Protocol):
    """Takes the answers to a bid request."""


async def register_bid(ctx: Registering, request: BidRequest, message: Incoming) -> None:
    """Check a bid and add it to the compute providers index (seed 2: `registerComputeBid`).

    Raises:
        RejectedMessageError: it is not an answer to this request, not the sender's own, or over the price limit.
    """
    await ctx.store.change(_bid_change(ctx, request, message))


def _bid_change(ctx: HasSearches, request: BidRequest, message: Incoming) -> Callable[[Transaction], None]:
    """Check a bid, and return the change that keeps it."""
    bid: Bid = message.body
    _check_bidder(bid, message.sender)
    if is_unit(bid.id) or bid.units > request.count:
        raise RejectedMessageError("the bid is for more than was asked for", code="wrong_bid")
    if bid.bid_request_id != request.id or bid.job_id != request.job_id or bid.spec_cid != request.spec_cid:
        raise RejectedMessageError("the bid answers another request", code="wrong_bid")
    try:
        quantities.parse_time(bid.time.start), quantities.parse_time(bid.timeout)
    except NunetError as error:
        raise RejectedMessageError(error.message, code="wrong_bid") from None
    if bid.time.duration != request.required_capability.time.max:
        raise RejectedMessageError("the bid is for another duration", code="wrong_bid")
    if bid_price(bid) > quantities.parse_amount(request.required_capability.price.amount):
        raise RejectedMessageError("the bid is over the price limit", code="wrong_bid")
    record = BidRecord(
        bid.id, "bid", "received", message.sender, request.id, request.job_id, quantities.utc_now(), bid.bidder, bid,
        evidence=message.evidence,
    )  # fmt: skip

    def change(t: Transaction) -> None:
        # the first answer counts, however many somebody sends; but who was busy may have room by now
        known = _answer_of(t, request, message.sender)
        if t[BIDS].has(bid.id) or (known is not None and not known.free_at):
            return
        if known is not None:
            t[BIDS].remove(known.id)
        t[BIDS].put(record)
        t.save_event(
            request.job_id, "bid_received", bid_id=bid.id, bidder=bid.bidder.peer_id,
            price=quantities.format_amount(bid_price(bid)), start=bid.time.start, load=bid.load,
        )  # fmt: skip
        # here and not once it is on disk: many may come together
        ctx.searches.count(request.id)

    return change


def _answer_of(t: Transaction, request: BidRequest, did: str) -> BidRecord | None:
    rows = t[BIDS].page(1, bid_request_id=request.id, did=did).rows
    return rows[0] if rows else None


def _check_bidder(bid: Bid | Decline, sender: str) -> None:
    key = key_from_did(sender)
    if (bid.bidder.did, bid.bidder.peer_id, bid.bidder.cid) != (sender, peer_id_from_key(key), peer_cid_from_key(key)):
        raise RejectedMessageError("the bidder is not who signed", code="wrong_bid")


def decline_change(request: BidRequest, message: Incoming) -> Callable[[Transaction], None]:
    """Check a refusal, and return the change that keeps it."""
    decline: Decline = message.body
    _check_bidder(decline, message.sender)
    record = BidRecord(
        new_id("decline"), "decline", "received", message.sender, request.id, request.job_id, quantities.utc_now(),
        decline.bidder, comparison=decline.comparison, verdict="declined", reasons=decline.comparison.reasons,
        evidence=message.evidence, free_at=decline.free_at,
    )  # fmt: skip
    busy = {"free_at": decline.free_at} if decline.free_at else {}

    def change(t: Transaction) -> None:
        if _answer_of(t, request, message.sender) is None:
            t[BIDS].put(record)
            t.save_event(
                request.job_id, "bid_declined", bidder=decline.bidder.peer_id, reasons=list(record.reasons), **busy
            )  # fmt: skip

    return change


async def register_silence(ctx: HasStore, request: BidRequest, did: str, error: NunetError) -> None:
    """Keep that a peer did not answer a bid request, and why."""
    key = key_from_did(did)
    bidder = NodeID("", peer_cid_from_key(key), peer_id_from_key(key), did)
    record = BidRecord(
        new_id("silent"), "silent", "received", did, request.id, request.job_id, quantities.utc_now(), bidder,
        verdict="silent", reasons=(error.message,),
        clock=error.details.get("seconds", 0) if error.code == "clock_differs" else None,
    )  # fmt: skip

    def change(t: Transaction) -> None:
        # it may have answered by relay in the meantime
        if _answer_of(t, request, did) is None:
            t[BIDS].put(record)
            t.save_event(request.job_id, "bid_silent", bidder=bidder.peer_id, reasons=list(record.reasons))

    await ctx.store.change(change)


def register(ctx: Gathering) -> None:
    """Know bids and refusals as answers, and take those that come by relay."""

    async def on_answer(message: Incoming) -> Change:
        return _on_relayed_answer(ctx, message)

    ctx.messenger.register("bid", Bid, on_answer)
    ctx.messenger.register("decline", Decline, on_answer)


def _free(ctx: HasMessenger, t: Transaction, message: Incoming) -> None:
    """Have a bidder free what it has locked for a job that does not need it: it need not wait for the lease's end."""
    if t[BIDS].has(message.body.id):
        # it has come a second time, and may be the one that was taken
        return
    ctx.messenger.outbox.enqueue(t, release_message(ctx, message.body.id, message.sender))


def _on_relayed_answer(ctx: Gathering, message: Incoming) -> Change:
    """Register a bid or refusal of a provider that got the request by relay."""
    body: Bid | Decline = message.body
    sent = ctx.store[BID_REQUESTS].get(body.bid_request_id)
    if sent is None or sent.direction != "sent":
        raise RejectedMessageError("there is no such bid request", code="wrong_bid")
    if isinstance(body, Bid):
        ctx.searches.note_bid(message.sender)
    answers = ctx.searches.answers(sent.id)
    is_locked = isinstance(body, Bid) and body.resources_locked_until_timeout
    if answers is None:
        ctx.searches.take_handed(sent.job_id, message.sender)
    if (answers is None or answers >= ENOUGH_BIDS) and is_locked:
        # it looked for work, and another was faster
        return lambda t: _free(ctx, t, message)
    if answers is None:
        raise StateError("the search is over", code="search_over")
    if answers >= ENOUGH_BIDS:
        raise StateError("there are enough bids", code="enough_bids")
    keep = _bid_change(ctx, sent.request, message) if isinstance(body, Bid) else decline_change(sent.request, message)

    def change(t: Transaction) -> None:
        job = t[JOBS].get(sent.job_id)
        # a batch asks for many units, and goes on asking while some of them run
        searching = "running" if job is not None and job.children else "matching"
        is_over = job is None or job.bid_request_id != sent.id or job.state != searching
        known = None if is_over else _answer_of(t, sent.request, message.sender)
        is_late = is_over or (isinstance(body, Bid) and (ctx.searches.answers(sent.id) or 0) >= ENOUGH_BIDS)
        if is_locked and (is_late or (known is not None and known.kind == "bid")):
            _free(ctx, t, message)
            return
        if is_over:
            raise StateError("the search is over", code="search_over")
        if known is not None and not (known.free_at and isinstance(body, Bid)):
            return
        # whoever has a key can answer, and keys cost nothing: a search keeps so many rows, and no more
        if is_late:
            raise StateError("there are enough bids", code="enough_bids")
        if isinstance(body, Decline) and ctx.searches.count_refusal(sent.id) >= MOST_REFUSALS:
            raise StateError("there are enough refusals", code="enough_refusals")
        keep(t)
        t.then(partial(ctx.searches.wake, sent.id))

    return change
