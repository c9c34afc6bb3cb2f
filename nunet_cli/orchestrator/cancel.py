"""Cancelling, at every stage: locks and allocations are released, and the contract is settled by what was used.

What the provider does then is in `allocation.cancel`.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Protocol

import trio

from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError, StateError
from nunet_cli.orchestrator import execute
from nunet_cli.orchestrator.changes import advance, change_job, find_job, let_go, total_paid
from nunet_cli.orchestrator.contract import is_transient, register_contract
from nunet_cli.orchestrator.contract_keeping import check_proof, keep_proof, note_balance, set_contract
from nunet_cli.orchestrator.locks import release_lock
from nunet_cli.orchestrator.needs import (
    Asking,
    Dealing,
    HasClosings,
    HasHeard,
    HasJobLocks,
    HasMessenger,
    HasProgress,
    HasStore,
)
from nunet_cli.orchestrator.retry import CANCEL_LIFETIME, note_called_off
from nunet_cli.orchestrator.settle import Settling, settle
from nunet_cli.orchestrator.units import as_unit, bid_of
from nunet_cli.records.bids import BIDS, is_unit
from nunet_cli.records.contract_records import CONTRACTS, ContractRecord
from nunet_cli.records.contracts import DATABASE, REQUESTER, Contract
from nunet_cli.records.documents import Document
from nunet_cli.records.jobs import JOB_ENDS, JOBS, ErrorRecord, Job
from nunet_cli.records.messages import JobCancel, JobCancelled

log = logging.getLogger("nunet.cancel")

# how often a provider is asked to end a job before it is left the order
ASKED_TO_STOP = 2
# how many children of a group are called off at once
CALLED_OFF_AT_ONCE = 100
_UNDER_CONTRACT = ("contracted", "invoked", "running", "completed")


class Cancelling(HasJobLocks, Settling, Protocol):
    """Calls jobs off."""


class Registering(HasClosings, Dealing, Protocol):
    """Finds out whether a contract is recorded."""


class Leaving(HasHeard, HasMessenger, HasProgress, HasStore, Protocol):
    """Leaves a provider the order to stop."""


# -- requester ---------------------------------------------------------------------------------------------------------


async def cancel(ctx: Cancelling, job_id: str) -> Job:
    """Call a job off, at whatever stage it is; a cancelled one is left as it is.

    Raises:
        StateError: the job has ended otherwise, or its result is already in.
    """
    job = find_job(ctx.store, job_id)
    if job.state == "cancelled":
        return job
    if (job.state in JOB_ENDS and job.state != "expired") or job.state in ("verified", "disputed"):
        raise StateError(f"job {job.id} is {job.state}: it cannot be cancelled any more")
    if job.kind == "member":
        raise StateError("a job in a pod is cancelled with its pod", hint=f"run: nunet job cancel {job.parent}")
    if job.kind != "job":
        return await _cancel_group(ctx, job)
    if job.state in _UNDER_CONTRACT:
        return await _cancel_contract(ctx, job)
    contract = ctx.store[CONTRACTS].get(job.contract_id)
    recorded = await _is_recorded(ctx, job, contract) if contract is not None and contract.state == "agreed" else False
    if recorded:
        return await _cancel_contract(ctx, find_job(ctx.store, job.id))
    note = (
        ""
        if recorded is False or contract is None
        else (
            f"the contract database does not answer; if it has recorded the contract, the deposit of"
            f" {contract.deposit} NTX returns after {contract.deadline}"
        )
    )
    for place, bid_id in enumerate(job.shortlist if job.state in ("matched", "requested") else ()):
        bid = ctx.store[BIDS].get(bid_id)
        # the one that was asked last may have locked, and its answer may never have arrived
        if bid is not None and (bid.offer.resources_locked_until_timeout or place == job.place):
            note = await release_lock(ctx, bid, ctx.config.limits.answer_timeout) or note
    unit = bid_of(ctx.store, job.bid_id) if job.state == "requested" and is_unit(job.bid_id) else None
    if unit is not None:
        note = await release_lock(ctx, as_unit(unit, job.bid_id, job.id, ""), ctx.config.limits.answer_timeout) or note

    def change(t: Transaction) -> Job:
        current = t[JOBS].one(job.id)
        if current.state in _UNDER_CONTRACT or current.contract_id != job.contract_id:
            raise StateError(f"job {job.id} has got a contract just now", hint=f"run: nunet job cancel {job.id}")
        mine = t[CONTRACTS].get(job.contract_id)
        if recorded is False and mine is not None and mine.state in ("proposed", "agreed"):
            set_contract(t, mine.id, "refuse", by=REQUESTER, reason="cancelled by the requester")
            t.then(partial(ctx.closings.look, mine.id))
        return advance(t, job.id, "cancel", by=REQUESTER, said={"note": note})

    return await ctx.store.change(change)


async def _cancel_group(ctx: Cancelling, job: Job) -> Job:
    # first: a node that is killed in between does not go on with the children that are left
    await ctx.store.change(lambda t: change_job(t, job.id, calling_off=True))
    while True:
        ended = await cancel_children(ctx, job, f"{job.name} was called off")
        note = f"{ended} of {len(job.children)} children had ended" if ended else ""

        def change(t: Transaction, note: str = note) -> Job | None:
            if has_put_back(t, t[JOBS].one(job.id)):
                return None
            # what is known of it by now; the rest is added once there are receipts
            paid = total_paid(t[JOBS].by("parent", job.id))
            said = {"note": note}
            return advance(t, job.id, "cancel", by=REQUESTER, said=said, note=note, paid=paid, calling_off=False)

        done = await ctx.store.change(change)
        if done is not None:
            return done


def has_put_back(t: Transaction, group: Job) -> bool:
    """Say whether a child of a group is to run again by now: with its group ended, nobody would take it further."""
    return bool(t[JOBS].page(1, parent=group.id, state="posted").rows)


async def cancel_children(ctx: Cancelling, job: Job, why: str) -> int:
    """Call off every child of a group that has not ended, saying why with it; return how many had, or could not be."""
    left = [child.id for child in ctx.store[JOBS].by("parent", job.id) if child.state not in JOB_ENDS]
    cancelled: list[str] = []
    places = trio.Semaphore(CALLED_OFF_AT_ONCE)

    async def one(child_id: str) -> None:
        async with places:
            if (await call_off(ctx, child_id, why)).state == "cancelled":
                cancelled.append(child_id)

    async with trio.open_nursery() as nursery:
        for child_id in left:
            nursery.start_soon(one, child_id)
    return len(job.children) - len(cancelled)


async def call_off(ctx: Cancelling, job_id: str, why: str, error: ErrorRecord | None = None) -> Job:
    """Cancel a job that its group does not let run, or not to its end; one that has ended is left as it is.

    Args:
        ctx: the node's parts.
        job_id: the job.
        why: what is kept with it, and lets it run again when what failed in its group does.
        error: why it could not be taken further, where that is the reason.
    """

    def change(t: Transaction) -> Job:
        job = t[JOBS].one(job_id)
        if job.state in JOB_ENDS:
            return job
        fields: dict[str, Any] = {"called_off": why, "error": error or job.error}
        if job.kind == "job" and job.state == "posted":
            # nobody was asked yet: that is all
            return advance(t, job_id, "cancel", by=REQUESTER, said={"note": why}, **fields)
        return change_job(t, job_id, **fields)

    async with ctx.job_locks.hold(job_id):
        job = await ctx.store.change(change)
        try:
            return job if job.state in JOB_ENDS else await cancel(ctx, job_id)
        except NunetError as problem:
            log.info("child %s is not cancelled: %s", job_id, problem)
            return find_job(ctx.store, job_id)


async def _is_recorded(ctx: Registering, job: Job, contract: ContractRecord) -> bool | None:
    """Say whether the contract database has recorded a contract whose proof never arrived here; then take the proof.

    None where it does not answer: nobody knows. It is asked to record it, once more: a mere question could overtake the
    registration that is on its way, and a deposit would be held for a job that is called off.
    """
    text = contract.document.read(Contract)
    try:
        body = await register_contract(ctx, contract.document, text)
        check_proof(body.proof, contract.document)
    except NunetError as error:
        return None if is_transient(error) else False

    def change(t: Transaction) -> None:
        keep_proof(ctx, t, contract.id, body.proof)
        note_balance(t, text.contract_database, body.balance)
        said = {"contract_id": contract.id, "deposit": contract.deposit}
        advance(t, job.id, "prove", by=DATABASE, about=contract.id, said=said)

    await ctx.store.change(change)
    return True


async def _cancel_contract(ctx: Settling, job: Job) -> Job:
    contract = ctx.store[CONTRACTS].one(job.contract_id)
    # also where the result is here: whatever that says, the job is not to be tried again
    await ctx.store.change(lambda t: note_called_off(t, contract.id, "cancel"))
    if job.state != "completed":
        body = JobCancel(contract_id=contract.id)
        try:
            await execute.take_result(ctx, contract, await _ask_to_stop(ctx, contract, body))
        except NunetError as error:
            done = await _cancel_later(ctx, job, contract, body, error)
            if done.state != "completed":
                return done
    return await settle(ctx, job.id)


async def _ask_to_stop(ctx: Asking, contract: ContractRecord, body: JobCancel) -> Document:
    """Have the provider end the job, and return its signed result.

    An order that meets the start itself is answered before the job has ended: asked again, the provider waits for that.
    """
    for _ in range(ASKED_TO_STOP):
        answer = await ctx.messenger.request(
            contract.provider, "job_cancel", body, timeout=ctx.config.limits.answer_timeout
        )
        if isinstance(answer.body, JobCancelled) and answer.body.result is not None:
            result: Document = answer.body.result
            return result
    raise StateError("the provider did not say how the job ended")


async def _cancel_later(ctx: Leaving, job: Job, contract: ContractRecord, body: JobCancel, error: NunetError) -> Job:
    """The provider does not answer: leave it the order, and say what happens with the deposit.

    A job whose result has come in the meantime is left as it is.
    """
    note = f"{error.message}; it is told when it is back, and an unused deposit returns after {contract.deadline}"
    message = ctx.messenger.outbox.outgoing(contract.provider, "job_cancel", body, lifetime=CANCEL_LIFETIME)

    def change(t: Transaction) -> Job:
        current = t[JOBS].one(job.id)
        if current.contract_id == contract.id and current.state == "completed":
            return current
        ctx.messenger.outbox.enqueue(t, message)
        let_go(ctx, t, contract.id, job.id)
        return advance(t, job.id, "cancel", by=REQUESTER, said={"note": note}, note=note, calling_off=False)

    return await ctx.store.change(change)


# -- answers -----------------------------------------------------------------------------------------------------------


def register(ctx: HasMessenger) -> None:
    """Know the answer of a provider."""
    ctx.messenger.register("job_cancelled", JobCancelled)
