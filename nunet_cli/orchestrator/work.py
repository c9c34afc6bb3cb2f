"""Stage 2, the other way round: a provider with room asks what is open, and bids for what fits (seed 3: pull)."""

from __future__ import annotations

import logging
from collections.abc import Container
from functools import partial
from typing import Literal, Protocol

from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError
from nunet_cli.matching.accept import unwanted
from nunet_cli.matching.shares import weight_of
from nunet_cli.network.messenger import Answer, Incoming
from nunet_cli.network.topics import BIDS as BID_TOPIC
from nunet_cli.orchestrator.bid import RELAYED_LIFETIME, Bidding, answer_request
from nunet_cli.orchestrator.needs import (
    HasAccounting,
    HasMessenger,
    HasPeers,
    HasSearches,
    HasStanding,
    HasStore,
    HasTransport,
)
from nunet_cli.orchestrator.searches import Turn
from nunet_cli.records.bids import BIDS, AskOpenRequests, BidRecord, BidRequest, OpenRequests
from nunet_cli.records.capability import Resources

log = logging.getLogger("nunet.work")

# peers that are asked at each look, beyond those that were declined for want of room
MOST_ASKED = 64
# seconds for an answer: who is silent keeps the others waiting no longer, and is forgotten
PATIENCE = 1.0


class LookingForWork(Bidding, HasMessenger, HasTransport, Protocol):
    """Asks who has work, and bids for it."""


class HandingOut(HasAccounting, HasSearches, HasStore, HasStanding, HasMessenger, HasPeers, Protocol):
    """Says which of its jobs wait."""


# -- provider ----------------------------------------------------------------------------------------------------------


async def look_for_work(ctx: LookingForWork) -> None:
    """Ask who has work until cancelled: when this node or a peer joins, as something is given back, now and then."""
    while True:
        look = await ctx.work.wait(ctx.config.pull_interval)
        if not ctx.accounting.is_onboarded():
            continue
        waiting = ctx.work.turns()
        # what is saved for one is nobody's who has just come
        asked = waiting if look.freed or look.around or ctx.work.is_saving else []
        more = _others(ctx, waiting) if look.around else look.came
        for did in dict.fromkeys([*asked, *more]):
            left = ctx.accounting.available(ctx.store).resources
            if left.cpu.cores <= 0 or left.memory <= 0:
                break
            if ctx.accounting.lines_up(ctx.store, did) and await ctx.store.change(
                partial(ctx.accounting.hand_over, requester=did)
            ):
                # what it has a contract for already
                ctx.work.served(did)
                ctx.work.look_again(look)
                break
            became = await _ask(ctx, did, left, one_of=len({*waiting, did}))
            if became == "saved":
                # until more is given back
                break
            ctx.work.end_turn(did)
            if became == "taken":
                # whose turn is next may be another's, or its own once more
                ctx.work.look_again(look)
                break


def _others(ctx: LookingForWork, waiting: list[str]) -> list[str]:
    there = [peer.did for peer in ctx.transport.connected() if peer.introduced and peer.did not in waiting]
    return there[:MOST_ASKED]


Became = Literal["taken", "left", "saved"]


async def _ask(ctx: LookingForWork, did: str, left: Resources, *, one_of: int) -> Became:
    """Ask a requester what waits, and bid for it; return what became of what this machine has left.

    Of several that wait each gets one job at a time; how often it has its turn, the preferences say. It has *taken*
    what it needs, or what there is is *left* to the others, or *saved*: its job needs more, and it is its turn.
    """
    ctx.work.give_turn(did)
    try:
        answer = await ctx.messenger.request(did, "ask_open_requests", AskOpenRequests(left), timeout=PATIENCE)
        said = answer.body if isinstance(answer.body, OpenRequests) else OpenRequests()
        found = said.requests
        if not found and said.takes:
            # under a bid that it has already
            if one_of > 1 and not await ctx.work.turn_taken(did, PATIENCE):
                # it let the others wait for nothing
                ctx.work.let_lie(did)
                return "left"
            ctx.work.served(did)
            return "taken" if one_of > 1 else "left"
        if not found and said.needs is not None and not left.fits(said.needs) and _could_have(ctx, did, said.needs):
            ctx.work.note_waiting(did)
            if ctx.work.save_for(did):
                return "saved"
            ctx.work.served(did)
        elif not found:
            ctx.work.forget(did)
        for request in found:
            if not await _bid(ctx, request, did):
                ctx.work.pass_over(did)
                ctx.work.took_turn(did)
                break
            # a unit of a bid for many is taken with its contract
            taken = request.count == 1 or one_of == 1 or await ctx.work.turn_taken(did, PATIENCE)
            if request.count == 1:
                ctx.work.took_turn(did)
            if not taken:
                ctx.work.let_lie(did)
                return "left"
            ctx.work.served(did)
            if one_of > 1:
                return "taken"
    except NunetError as error:
        log.debug("looking for work at %s: %s", did, error)
        ctx.work.forget(did)
    return "left"


def _could_have(ctx: LookingForWork, did: str, needs: Resources) -> bool:
    """Say whether a requester's job needs no more than there will be, once others have given back what they have."""
    books, store = ctx.accounting, ctx.store
    return bool(books.earliest_start(store, needs, did)) and not books.over_cap(store, did, needs)


def weigh(ctx: LookingForWork, did: str) -> float:
    """Return how many turns the preferences give a requester for one of another."""
    peer = ctx.peers.find(did)
    return weight_of(ctx.accounting.get_preferences().shares, did, peer.rtt if peer is not None else None)


async def _bid(ctx: LookingForWork, request: BidRequest, did: str) -> bool:
    """Bid for an open request, with what it needs locked; say whether there was room, and this is its first bid."""
    found = await answer_request(ctx, request, did, lock=True)
    if not callable(found):
        # declined; or its bid is on the way already, and who hands it out again and again gets no second one
        return False

    def change(t: Transaction) -> bool:
        type_, body = found(t)
        if type_ == "bid":
            answer = ctx.messenger.outbox.outgoing(did, type_, body, lifetime=RELAYED_LIFETIME)
            ctx.messenger.outbox.enqueue(t, answer)
        return type_ == "bid"

    return await ctx.store.change(change)


# -- requester ---------------------------------------------------------------------------------------------------------


def register(ctx: HandingOut) -> None:
    """Take the questions of providers that look for work."""

    async def on_question(message: Incoming) -> Answer:
        if unwanted(ctx.accounting.get_preferences(), message.sender):
            return "open_requests", OpenRequests()
        did, left = message.sender, message.body.resources
        peer = ctx.peers.find(did)
        is_for = partial(_is_for, ctx, did, peer.topics if peer is not None else ())
        takes, larger = ctx.standing.note_room(did, left)
        found, needs = ctx.searches.hand_out(did, left, is_for)
        if not (takes or found):
            return "open_requests", OpenRequests(needs=needs or larger)
        return "open_requests", OpenRequests(tuple(found), takes)

    ctx.messenger.register("ask_open_requests", AskOpenRequests, on_question)
    ctx.messenger.register("open_requests", OpenRequests)


def _is_for(ctx: HandingOut, did: str, topics: Container[str], turn: Turn) -> bool:
    """Say whether a job that waits is one that a provider may have, and has not made a bid for that stands.

    One of a topic is for its subscribers alone.
    """
    if did in turn.job.excluded or ctx.standing.stands(turn.job.id, did):
        return False
    if turn.is_out and not any(row.free_at for row in _answers(ctx, turn.request.id, did)):
        return False
    if turn.job.push:
        return did in turn.job.push
    return turn.request.topic == BID_TOPIC or turn.request.topic in topics


def _answers(ctx: HasStore, request_id: str, did: str) -> tuple[BidRecord, ...]:
    return tuple(ctx.store[BIDS].page(1, bid_request_id=request_id, did=did).rows)
