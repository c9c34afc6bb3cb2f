"""Cancelling, on the provider's machine: a lock is released, or an allocation ended, and its result signed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import trio

from nunet_cli.allocation.results import failed_result
from nunet_cli.allocation.run import AllocationActor
from nunet_cli.database.store import Transaction
from nunet_cli.errors import StateError
from nunet_cli.network.messenger import Answer, Incoming
from nunet_cli.orchestrator import execute
from nunet_cli.orchestrator.bid import sent_bid
from nunet_cli.orchestrator.context import Context, plain, read
from nunet_cli.orchestrator.retry import CANCEL_LIFETIME
from nunet_cli.records.contracts import PROVIDER
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.messages import JobCancel, JobCancelled, JobCompleted
from nunet_cli.records.states import ALLOCATION_ENDS


def register(ctx: Context) -> None:
    """Take cancellations."""

    async def on_cancel(message: Incoming) -> Answer:
        return await _on_cancel(ctx, message)

    ctx.messenger.register("job_cancel", JobCancel, on_cancel)


async def _on_cancel(ctx: Context, message: Incoming) -> Answer:
    body: JobCancel = message.body
    if not body.contract_id:
        bid = sent_bid(ctx, body.bid_id, message.sender)

        def release(t: Transaction) -> None:
            ctx.accounting.release(t, bid["id"])
            t.put("bids", {**bid, "valid_offer": False, "verdict": "released"})
            t.save_event(bid["job_id"], "lock_released", bid_id=bid["id"])

        await ctx.store.change(release)
        return "job_cancelled", JobCancelled()
    contract = execute.contract_with(ctx, body.contract_id, message.sender)
    allocation = ctx.store.find("allocations", contract["id"], "contract_id")
    if allocation is None:
        try:
            return "job_cancelled", JobCancelled(await _cancel_unstarted(ctx, contract))
        except StateError:
            allocation = ctx.store.find("allocations", contract["id"], "contract_id")
            assert allocation is not None
    with trio.move_on_after(max(1, ctx.config.limits.answer_timeout - 1)):
        await _end_allocation(ctx, allocation["id"])
    contract = ctx.store.find("contracts", contract["id"]) or contract
    return "job_cancelled", JobCancelled(read(contract, "result", Document) if contract["result"] else None)


async def route_to_allocation(ctx: Context, allocation_id: str, type_: str) -> AllocationActor | None:
    """Put a message into the mailbox of an allocation (second seed: `routeToAllocation`); None if it has ended."""
    actor: AllocationActor | None = ctx.running.get(allocation_id)
    if actor is not None:
        with suppress(trio.BrokenResourceError):
            await actor.send_message(type_)
    return actor


async def _end_allocation(ctx: Context, allocation_id: str) -> None:
    """End an allocation, also one whose task is just about to begin; returns once its result is signed."""
    while True:
        row = ctx.store.find("allocations", allocation_id)
        if row is None or row["state"] in ALLOCATION_ENDS:
            return
        actor = await route_to_allocation(ctx, allocation_id, "cancel")
        if actor is None:
            await trio.sleep(0.02)
            continue
        await actor.ended.wait()


async def _cancel_unstarted(ctx: Context, contract: dict[str, Any]) -> Document:
    """Sign that nothing was done, release the lock, and let nothing be started under this contract any more."""
    if contract["result"] is not None:
        return read(contract, "result", Document)
    document = nothing_done(ctx, contract)
    body = JobCompleted(contract["id"], document)
    message = ctx.messenger.outbox.outgoing(contract["requester"], "job_error", body, lifetime=CANCEL_LIFETIME)

    def change(t: Transaction) -> None:
        if t.find("allocations", contract["id"], "contract_id") is not None:
            raise StateError("the job was just started", code="just_started")
        ctx.accounting.release(t, contract["bid_id"])
        row = t.find("contracts", contract["id"])
        assert row is not None
        t.put("contracts", {**row, "result": plain(document)})
        # the answer may find nobody, when the order had to wait for this node
        ctx.messenger.outbox.enqueue(t, message)
        t.save_event(contract["job_id"], "contract_called_off", contract_id=contract["id"])

    await ctx.store.change(change)
    ctx.messenger.outbox.wake()
    return document


def nothing_done(ctx: Context, contract: dict[str, Any]) -> Document:
    """Return the signed result of a contract that was called off before its invocation."""
    row = {"job_id": contract["job_id"], "contract_id": contract["id"], "id": ""}
    result = failed_result(row, "", "cancelled", "called off before it was started", fault="", state="cancelled")
    return make_document(result).sign(ctx.identity, PROVIDER)
