"""Cancelling, on the provider's machine: a lock is released, or an allocation ended, and its result signed."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Protocol

import trio
from msgspec import structs

from nunet_cli.allocation.actor import AllocationActor, HasRunning
from nunet_cli.allocation.results import failed_result
from nunet_cli.database.store import Transaction
from nunet_cli.database.transition import transition
from nunet_cli.network.messenger import Answer, Change, Incoming
from nunet_cli.orchestrator import execute
from nunet_cli.orchestrator.bid import sent_bid
from nunet_cli.orchestrator.needs import (
    Asking,
    HasAccounting,
    HasClosings,
    HasIdentity,
    HasMessenger,
    HasStore,
    HasTasks,
    HasWork,
)
from nunet_cli.orchestrator.retry import CANCEL_LIFETIME, note_called_off
from nunet_cli.records.allocations import ALLOCATION_ENDS, ALLOCATIONS, Allocation
from nunet_cli.records.bids import BID, bid_id_of, is_unit
from nunet_cli.records.contract_records import CONTRACTS, ContractRecord
from nunet_cli.records.contracts import PROVIDER, REQUESTER
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.messages import JobCancel, JobCancelled, JobCompleted


class Stopping(HasRunning, HasStore, Protocol):
    """Ends allocations that run."""


class CallingOff(Stopping, HasAccounting, HasClosings, HasTasks, HasIdentity, HasMessenger, HasWork, Protocol):
    """Calls off what has not started, and ends what has."""


class Releasing(HasAccounting, HasWork, Protocol):
    """Takes back what was locked."""


class CalledOff(CallingOff, Releasing, Asking, Protocol):
    """Takes cancellations."""


def register(ctx: CalledOff) -> None:
    """Take cancellations."""

    async def on_cancel(message: Incoming) -> Answer | Change:
        return await _on_cancel(ctx, message)

    ctx.messenger.register("job_cancel", JobCancel, on_cancel)


async def _on_cancel(ctx: CalledOff, message: Incoming) -> Answer | Change:
    body: JobCancel = message.body
    if not body.contract_id:
        return _release_change(ctx, body.bid_id, message.sender)
    contract = execute.contract_with(ctx.store, body.contract_id, message.sender)
    allocation = ctx.store[ALLOCATIONS].first("contract_id", contract.id)
    if allocation is None:
        return _unstarted_change(ctx, contract)
    if allocation.state not in ALLOCATION_ENDS:
        # kept first: the answer may go out before the job has ended, and this node may be killed in between
        await ctx.store.change(lambda t: note_called_off(t, contract.id, "cancel"))
    with trio.move_on_after(max(1, ctx.config.limits.answer_timeout - 1)):
        await _end_allocation(ctx, allocation.id)
    return "job_cancelled", JobCancelled(ctx.store[CONTRACTS].one(contract.id).result)


def _release_change(ctx: Releasing, bid_id: str, requester: str) -> Change:
    """Return the change that gives back what a bid has locked."""

    def change(t: Transaction) -> Answer:
        bid = sent_bid(t, bid_id_of(bid_id), requester)
        may_release = not is_unit(bid_id) and bid.verdict != "released" and BID.may(bid.verdict, "release")
        if not may_release and not ctx.accounting.has(t, bid_id):
            # there is nothing to be released, and who says so again and again leaves no trace
            if is_unit(bid_id):
                t.then(partial(ctx.work.give_back_first, bid_id))
            return "job_cancelled", JobCancelled()
        ctx.accounting.release(t, bid_id)
        t.then(partial(ctx.work.idle_locks.given_back, requester, bid_id))
        if may_release:
            # of a bid for many, which stands, it is a unit
            transition(t, bid, "release", by=REQUESTER, bid=structs.replace(bid.offer, valid_offer=False))
        t.save_event(bid.job_id, "lock_released", bid_id=bid_id)
        return "job_cancelled", JobCancelled()

    return change


async def route_to_allocation(ctx: HasRunning, allocation_id: str, type_: str) -> AllocationActor | None:
    """Put a message into the mailbox of an allocation (second seed: `routeToAllocation`); None if it has ended."""
    actor = ctx.running.get(allocation_id)
    if actor is not None:
        with suppress(trio.BrokenResourceError):
            await actor.send_message(type_)
    return actor


async def _end_allocation(ctx: Stopping, allocation_id: str) -> None:
    """End an allocation, also one whose task is just about to begin; returns once its result is signed."""
    while True:
        allocation = ctx.store[ALLOCATIONS].get(allocation_id)
        if allocation is None or allocation.state in ALLOCATION_ENDS:
            return
        actor = await route_to_allocation(ctx, allocation_id, "cancel")
        if actor is None:
            await trio.sleep(0.02)
            continue
        await actor.ended.wait()


def _unstarted_change(ctx: CallingOff, contract: ContractRecord) -> Change:
    """Return the change that signs that nothing was done, and lets nothing start under this contract any more.

    It releases the lock. A job that was started just now is ended as any other, and its result follows by itself.
    """
    document = contract.result or nothing_done(ctx, contract)
    body = JobCompleted(contract.id, document)
    message = ctx.messenger.outbox.outgoing(contract.requester, "job_error", body, lifetime=CANCEL_LIFETIME)

    def change(t: Transaction) -> Answer:
        current = t[CONTRACTS].one(contract.id)
        started = t[ALLOCATIONS].first("contract_id", contract.id)
        if started is not None:
            key = started.id
            note_called_off(t, contract.id, "cancel")
            t.then(lambda: ctx.supervisor.start_soon(ctx.nursery, "calling off", _end_allocation, ctx, key))
        elif current.result is None:
            ctx.accounting.release(t, contract.bid_id)
            t.then(partial(ctx.work.idle_locks.given_back, contract.requester, contract.bid_id))
            current = structs.replace(current, result=document)
            t[CONTRACTS].put(current)
            t.then(partial(ctx.closings.look, current.id))
            # the answer may find nobody, when the order had to wait for this node
            ctx.messenger.outbox.enqueue(t, message)
            t.save_event(contract.job_id, "contract_called_off", contract_id=contract.id)
        return "job_cancelled", JobCancelled(current.result)

    return change


def nothing_done(ctx: HasIdentity, contract: ContractRecord) -> Document:
    """Return the signed result of a contract that was called off before its invocation."""
    nothing = Allocation(
        id="", job_id=contract.job_id, contract_id=contract.id, requester=contract.requester, executor=""
    )
    result = failed_result(nothing, "", "cancelled", "called off before it was started", fault="", state="cancelled")
    return make_document(result).sign(ctx.identity, PROVIDER)
