"""Stage 7, what time brings: contracts that nobody closes by hand are closed here, each in a task of its own.

A task begins with the change that leaves a contract to time (it was agreed on, or has a result), or with the node for
those in the store. It sleeps until something is due, and ends when nothing is left to do.
One contract's trouble is its own: an oracle that hangs, or a contract database that refuses, keeps no other waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import NamedTuple, Protocol

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import JobFailedError, NunetError
from nunet_cli.orchestrator import disputes
from nunet_cli.orchestrator.changes import advance, error_record, find_job
from nunet_cli.orchestrator.contract import check_contract
from nunet_cli.orchestrator.contract_keeping import set_contract
from nunet_cli.orchestrator.needs import Dealing, HasConfig, HasJobLocks, HasStore, HasTasks
from nunet_cli.orchestrator.outputs import Fetching, fetch_outputs
from nunet_cli.orchestrator.settle import (
    Receipts,
    Settling,
    close,
    closing_change,
    require_honest_time,
    settle,
    verify_job,
)
from nunet_cli.records.contract_records import CONTRACTS, LATE_RESULTS, ContractRecord
from nunet_cli.records.contracts import DATABASE, PROVIDER, Receipt
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.machine import CLOCK
from nunet_cli.records.messages import Message
from nunet_cli.records.results import Result
from nunet_cli.tokenomics.closing import closing_text

log = logging.getLogger("nunet.closing")

# what fails is tried again after a pause that doubles; and as clocks may be set, no sleep is longer than the last
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
# how long a provider may take to give what it finished out of reach
LATE_PATIENCE = timedelta(days=14)
# what a contract database says of a contract that it does not know
NO_CONTRACT = "no_contract"


class Late(Dealing, Fetching, Protocol):
    """Fetches what came too late, or disputes it."""


class Hearing(Dealing, Receipts, Protocol):
    """Hears how a contract ended."""


class Finishing(HasJobLocks, Settling, Protocol):
    """Settles a job that nobody waits for."""


class Closing(HasTasks, Finishing, Protocol):
    """Closes what time has made due."""


class Step(NamedTuple):
    """What is to be done about a contract: from when on, empty for at once, and how; that raises what it fails of."""

    at: str
    take: Callable[[Closing, str], Awaitable[None]]


async def take_up_contracts(ctx: Closing) -> None:
    """After a start: give each contract that time has to close its task."""
    for contract in ctx.store[CONTRACTS].by("state", "agreed", "proved"):
        ctx.closings.look(contract.id)
    for late in ctx.store[LATE_RESULTS].all():
        ctx.closings.look(late.id)
    for job in ctx.store[JOBS].by("state", "completed"):
        ctx.closings.look(job.contract_id)


def begin(ctx: Closing, contract_id: str) -> None:
    """Give a contract its task, where time has to close it; one that has it already is not to be given another."""
    if next_step(ctx, contract_id) is not None:
        ctx.closings.watch(contract_id)
        ctx.supervisor.start_soon(ctx.nursery, "closing", _see_to, ctx, contract_id)


def next_step(ctx: HasStore, contract_id: str) -> Step | None:
    """Return what time has to do about a contract, as it is now; None for nothing."""
    contract = ctx.store[CONTRACTS].get(contract_id)
    if contract is None:
        return None
    if contract.state == "agreed":
        return Step(contract.deadline, _expire)
    is_open = contract.state == "proved" and contract.result is not None
    if contract.role == PROVIDER:
        return Step(contract.deadline, _settle_overdue) if is_open else None
    if ctx.store[LATE_RESULTS].has(contract_id):
        # what the provider had finished by then is paid once it is here
        return Step("", _fetch_late)
    job = ctx.store[JOBS].get(contract.job_id)
    if is_open and _is_left(job, contract):
        return Step("", _close_left)
    is_waiting = job is not None and job.contract_id == contract_id and job.kind == "job" and job.state == "completed"
    if job is not None and is_waiting and (contract.receipt is not None or job.late):
        # somebody else had it closed, or its result came after it was given up: nobody is waiting for it here
        return Step("", _finish_late)
    # the job has it closed until then; who asked for that is told by the answer alone, which may have been lost
    return Step(contract.deadline, _hear_how_it_ended) if is_open else None


def _is_left(job: Job | None, contract: ContractRecord) -> bool:
    """Say whether a requester's contract has no job that would close it."""
    return job is None or job.contract_id != contract.id or job.state in ("cancelled", "failed")


async def _see_to(ctx: Closing, contract_id: str) -> None:
    """Do what is due about one contract, when it is due, until nothing is left."""
    pause = FIRST_PAUSE
    try:
        while (step := next_step(ctx, contract_id)) is not None:
            wait = (quantities.parse_time(step.at) - quantities.now()).total_seconds() if step.at else 0
            if wait > 0:
                await ctx.closings.sleep(contract_id, min(wait, LONGEST_PAUSE))
                continue
            await ctx.supervisor.watch("closing", step.take, ctx, contract_id)
            if next_step(ctx, contract_id) == step:
                # what it changed itself is no reason to try again at once
                ctx.closings.watch(contract_id)
                await ctx.closings.sleep(contract_id, pause)
                pause = min(LONGEST_PAUSE, pause * 2)
            else:
                pause = FIRST_PAUSE
    finally:
        ctx.closings.end(contract_id)


async def _expire(ctx: HasStore, contract_id: str) -> None:
    """Give up a contract that was agreed on and not proved before its deadline."""

    def change(t: Transaction) -> None:
        contract = t[CONTRACTS].one(contract_id)
        # the proof may have come just now
        if contract.state == "agreed":
            reason = f"not proved before its deadline {contract.deadline}"
            set_contract(t, contract_id, "expire", by=CLOCK, reason=reason)

    await ctx.store.change(change)


async def _settle_overdue(ctx: Hearing, contract_id: str) -> None:
    """As a provider: settle a finished job whose requester stays silent past the contract's deadline."""
    contract = ctx.store[CONTRACTS].one(contract_id)
    if not _can_be_settled(ctx, contract):
        # the deposit is on its way back by now; the receipt tells
        await _hear_how_it_ended(ctx, contract_id)
        return
    await close(ctx, contract, await verify_job(ctx, contract))


def _can_be_settled(ctx: HasConfig, contract: ContractRecord) -> bool:
    """Say whether a contract's window is still open, as far as this node knows: after it a failure is no news."""
    window = timedelta(seconds=ctx.config.limits.settlement_window)
    return quantities.now() < quantities.parse_time(contract.deadline) + window


async def _close_left(ctx: Dealing, contract_id: str) -> None:
    """As a requester: close the contract of a job that was called off, has failed, or went on with another provider."""
    contract = ctx.store[CONTRACTS].one(contract_id)
    assert contract.result is not None
    await require_honest_time(ctx, contract, contract.result.read(Result))
    await close(ctx, contract, await verify_job(ctx, contract))


async def _hear_how_it_ended(ctx: Hearing, contract_id: str) -> None:
    """Ask how a contract ended that this node had closed, or wanted to, before its deadline."""
    try:
        status = await check_contract(ctx, contract_id)
    except NunetError as error:
        if _can_be_settled(ctx, ctx.store[CONTRACTS].one(contract_id)):
            raise
        if error.code == NO_CONTRACT:
            await ctx.store.change(partial(_forget, contract_id=contract_id))
        return
    if status.receipt is not None:
        text = closing_text(status.receipt.read(Receipt))
        message = Message(contract_id, text, status.receipt, status.balance)
        await ctx.store.change(closing_change(ctx, ctx.store[CONTRACTS].one(contract_id), message))


def _forget(t: Transaction, contract_id: str) -> None:
    """End a contract that its database proved, and knows nothing of any more; the job that it is for has failed.

    The documents stay: with the database's own signature they show that it was recorded.
    """
    contract = t[CONTRACTS].one(contract_id)
    if contract.state != "proved":
        return
    reason = "its contract database proved it, and knows nothing of it any more: it was put back to an earlier state"
    set_contract(t, contract_id, "forget", by=DATABASE, reason=reason)
    job = t[JOBS].get(contract.job_id)
    if contract.role == PROVIDER or job is None or job.contract_id != contract_id:
        return
    if job.state in ("completed", "verified"):
        hint = (
            f"nothing was paid; what it wrote: nunet job result {job.id}; the evidence: nunet contract export {job.id}"
        )
        error = JobFailedError(f"the contract is not settled: {reason}", code="contract_forgotten", hint=hint)
        said = {"reason": error.code, "message": error.message}
        advance(t, job.id, "fail", by=DATABASE, about=contract_id, said=said, error=error_record(error), paid="0")


async def _is_disputed_instead(ctx: Dealing, contract: ContractRecord) -> bool:
    """Put a result that came too late into dispute, where the job has gone on with another provider; else return False.

    Exactly one of them is paid: whether this one had done the work is for the contract database's operator to see.
    """
    job = ctx.store[JOBS].get(contract.job_id)
    moved_on = job is not None and job.contract_id != contract.id
    if not moved_on or contract.called_off_by != "silence" or contract.payment == "volunteer":
        return False
    if contract.state != "proved":
        # it is paid already, past the contract's deadline: then it is fetched, too
        return False
    text = f"called off at {contract.called_off_at} after its provider was silent; the job went on with another one"
    await disputes.add(ctx, contract.id, text, with_result=True)
    return True


async def _fetch_late(ctx: Late, contract_id: str) -> None:
    """As a requester: fetch what a provider had finished before it heard that the job had gone on without it."""
    contract = ctx.store[CONTRACTS].one(contract_id)
    assert contract.result is not None
    result = contract.result.read(Result)
    if await _is_disputed_instead(ctx, contract):
        await ctx.store.change(lambda t: t[LATE_RESULTS].remove(contract_id))
        return
    if quantities.parse_time(contract.result_at) > quantities.now() - LATE_PATIENCE:
        await fetch_outputs(ctx, contract, result)
    said = {"contract_id": contract.id, "outputs": {output.name: output.cid for output in result.outputs}}

    def change(t: Transaction) -> None:
        if t[LATE_RESULTS].remove(contract_id):
            t.save_event(contract.job_id, "late_result", **said)

    await ctx.store.change(change)


async def _finish_late(ctx: Finishing, contract_id: str) -> None:
    """As a requester: fetch what was paid while this node was away, and finish the job."""
    job_id = ctx.store[CONTRACTS].one(contract_id).job_id
    async with ctx.job_locks.hold(job_id):
        job = find_job(ctx.store, job_id)
        if job.state == "completed" and job.contract_id == contract_id:
            await settle(ctx, job_id)
