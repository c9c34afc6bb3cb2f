"""Stage 7, what time brings: contracts that nobody closes by hand are closed here, each in a task of its own.

One contract's trouble is its own: an oracle that hangs, or a contract database that refuses, keeps no other waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Protocol

import trio

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError
from nunet_cli.orchestrator import disputes
from nunet_cli.orchestrator.changes import find_job
from nunet_cli.orchestrator.contract import set_contract
from nunet_cli.orchestrator.needs import Dealing, HasClosings, HasJobLocks, HasStore, HasTasks
from nunet_cli.orchestrator.outputs import Fetching, fetch_outputs
from nunet_cli.orchestrator.settle import Settling, close, require_honest_time, settle, verify_job
from nunet_cli.records.contract_records import CONTRACTS, LATE_RESULTS, ContractRecord
from nunet_cli.records.contracts import PROVIDER
from nunet_cli.records.jobs import JOBS
from nunet_cli.records.machine import CLOCK
from nunet_cli.records.results import Result

log = logging.getLogger("nunet.closing")

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
# how long a provider may take to give what it finished out of reach
LATE_PATIENCE = timedelta(days=14)


class Beginning(HasClosings, HasTasks, Protocol):
    """Has each thing closed by a task of its own."""


class Late(Dealing, Fetching, Protocol):
    """Fetches what came too late, or disputes it."""


class Finishing(HasJobLocks, Settling, Protocol):
    """Settles a job that nobody waits for."""


class Closing(Beginning, Finishing, Protocol):
    """Closes what time has made due."""


async def close_what_is_due(ctx: Closing) -> None:
    """Begin to close what is due now; returns at once, and what is being closed already is left alone."""
    for contract in ctx.store[CONTRACTS].by("state", "proved"):
        if contract.result is None:
            continue
        if contract.role == PROVIDER:
            if contract.deadline <= units.utc_now():
                _begin(ctx, contract.id, partial(_settle_overdue, ctx))
        elif _is_left(ctx, contract):
            _begin(ctx, contract.id, partial(_close_left, ctx))
    for late in ctx.store[LATE_RESULTS].all():
        _begin(ctx, f"late/{late.id}", partial(_fetch_late, ctx))
    for job in ctx.store[JOBS].by("state", "completed"):
        known = ctx.store[CONTRACTS].get(job.contract_id) if job.kind == "job" else None
        # somebody else had it closed, or its result came after it was given up: nobody is waiting for it here
        if known is not None and (known.receipt is not None or job.late):
            _begin(ctx, job.id, partial(_finish_late, ctx))


def _is_left(ctx: HasStore, contract: ContractRecord) -> bool:
    """Say whether a contract of this requester's has a result, and no job that would close it."""
    job = ctx.store[JOBS].get(contract.job_id)
    return job is None or job.contract_id != contract.id or job.state in ("cancelled", "failed")


def _begin(ctx: Beginning, key: str, close_one: Callable[[str], Awaitable[bool]]) -> None:
    if ctx.closings.begin(key):
        ctx.supervisor.start_soon(ctx.nursery, "closing", _keep_trying, ctx, key, close_one)


async def _keep_trying(ctx: Beginning, key: str, close_one: Callable[[str], Awaitable[bool]]) -> None:
    """Try to close one contract or job until that is done, with growing pauses."""
    pause, closed = FIRST_PAUSE, []

    async def try_once() -> None:
        if await close_one(key):
            closed.append(key)

    try:
        while True:
            await ctx.supervisor.watch("closing", try_once)
            if closed:
                return
            await trio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
    finally:
        ctx.closings.end(key)


async def _settle_overdue(ctx: Dealing, contract_id: str) -> bool:
    """As a provider: settle a finished job whose requester stays silent past the contract's deadline."""
    contract = ctx.store[CONTRACTS].get(contract_id)
    if contract is None or contract.state != "proved":
        return True
    given_up = units.parse_time(contract.deadline) + timedelta(seconds=ctx.config.limits.settlement_window)
    try:
        await close(ctx, contract, await verify_job(ctx, contract))
    except NunetError:
        if units.now() < given_up:
            raise
        # the deposit is on its way back by now; the receipt tells
        return False
    return True


async def _close_left(ctx: Dealing, contract_id: str) -> bool:
    """As a requester: close the contract of a job that was called off, has failed, or went on with another provider."""
    contract = ctx.store[CONTRACTS].get(contract_id)
    if contract is None or contract.result is None or contract.state != "proved" or not _is_left(ctx, contract):
        return True
    if ctx.store[LATE_RESULTS].has(contract_id):
        # what the provider had finished by then is paid once it is here
        return False
    await require_honest_time(ctx, contract, contract.result.read(Result))
    await close(ctx, contract, await verify_job(ctx, contract))
    return True


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


async def _fetch_late(ctx: Late, key: str) -> bool:
    """As a requester: fetch what a provider had finished before it heard that the job had gone on without it."""
    contract_id = key.removeprefix("late/")
    contract = ctx.store[CONTRACTS].get(contract_id)
    if contract is None or contract.result is None:
        return True
    result = contract.result.read(Result)
    if await _is_disputed_instead(ctx, contract):
        await ctx.store.change(lambda t: t[LATE_RESULTS].remove(contract_id))
        return True
    if units.parse_time(contract.result_at) > units.now() - LATE_PATIENCE:
        await fetch_outputs(ctx, contract, result)
    said = {"contract_id": contract.id, "outputs": {output.name: output.cid for output in result.outputs}}

    def change(t: Transaction) -> None:
        if t[LATE_RESULTS].remove(contract_id):
            t.save_event(contract.job_id, "late_result", **said)

    await ctx.store.change(change)
    return True


async def _finish_late(ctx: Finishing, job_id: str) -> bool:
    """As a requester: fetch what was paid while this node was away, and finish the job."""
    async with ctx.job_locks.hold(job_id):
        if find_job(ctx.store, job_id).state == "completed":
            await settle(ctx, job_id)
    return True


async def expire_unproved(ctx: HasStore) -> None:
    """Give up contracts that were agreed on and not proved before their deadline."""
    now = units.utc_now()
    due = [row.id for row in ctx.store[CONTRACTS].by("state", "agreed") if row.deadline < now]

    def change(t: Transaction) -> None:
        for contract_id in due:
            contract = t[CONTRACTS].one(contract_id)
            # the proof may have come just now
            if contract.state == "agreed":
                reason = f"not proved before its deadline {contract.deadline}"
                set_contract(t, contract_id, "expire", by=CLOCK, reason=reason)

    if due:
        await ctx.store.change(change)
