"""Stage 7, what time brings: contracts that nobody closes by hand are closed here, each in a task of its own.

One contract's trouble is its own: an oracle that hangs, or a contract database that refuses, keeps no other waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import trio
from tinydb import Query

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError
from nunet_cli.orchestrator import disputes, execute
from nunet_cli.orchestrator.context import Context, read
from nunet_cli.orchestrator.contract import set_contract
from nunet_cli.orchestrator.settle import close, require_honest_time, settle, verify_job
from nunet_cli.records.documents import Document
from nunet_cli.records.results import Result

log = logging.getLogger("nunet.closing")

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
# how long a provider may take to give what it finished out of reach
LATE_PATIENCE = timedelta(days=14)


async def close_what_is_due(ctx: Context) -> None:
    """Begin to close what is due now; returns at once, and what is being closed already is left alone."""
    contracts, jobs = Query(), Query()
    for row in ctx.store.table("contracts").search(contracts.state == "proved"):
        if row["result"] is None:
            continue
        if row["role"] == "provider":
            if row["deadline"] <= units.utc_now():
                _begin(ctx, row["id"], _settle_overdue)
        elif _is_left(ctx, row):
            _begin(ctx, row["id"], _close_left)
    for row in ctx.store.table(execute.LATE_RESULTS).all():
        _begin(ctx, f"late/{row['id']}", _fetch_late)
    for job in ctx.store.table("jobs").search(jobs.state == "completed"):
        contract = ctx.store.find("contracts", job["contract_id"])
        # somebody else had it closed, or its result came after it was given up: nobody is waiting for it here
        if job["kind"] == "job" and contract is not None and (contract["receipt"] is not None or job.get("late")):
            _begin(ctx, job["id"], _finish_late)


def _is_left(ctx: Context, row: dict[str, Any]) -> bool:
    """Say whether a contract of this requester's has a result, and no job that would close it."""
    job = ctx.store.find("jobs", row["job_id"])
    return job is None or job["contract_id"] != row["id"] or job["state"] in ("cancelled", "failed")


def _begin(ctx: Context, key: str, close_one: Callable[[Context, str], Awaitable[bool]]) -> None:
    if key not in ctx.closing:
        ctx.closing.add(key)
        ctx.supervisor.start_soon(ctx.nursery, "closing", _keep_trying, ctx, key, close_one)


async def _keep_trying(ctx: Context, key: str, close_one: Callable[[Context, str], Awaitable[bool]]) -> None:
    """Try to close one contract or job until that is done, with growing pauses."""
    pause, closed = FIRST_PAUSE, []

    async def try_once() -> None:
        if await close_one(ctx, key):
            closed.append(key)

    try:
        while True:
            await ctx.supervisor.watch("closing", try_once)
            if closed:
                return
            await trio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
    finally:
        ctx.closing.discard(key)


async def _settle_overdue(ctx: Context, contract_id: str) -> bool:
    """As a provider: settle a finished job whose requester stays silent past the contract's deadline."""
    row = ctx.store.find("contracts", contract_id)
    if row is None or row["state"] != "proved":
        return True
    given_up = units.parse_time(row["deadline"]) + timedelta(seconds=ctx.config.limits.settlement_window)
    try:
        await close(ctx, row, await verify_job(ctx, row))
    except NunetError:
        if units.now() < given_up:
            raise
        # the deposit is on its way back by now; the receipt tells
        return False
    return True


async def _close_left(ctx: Context, contract_id: str) -> bool:
    """As a requester: close the contract of a job that was called off, has failed, or went on with another provider."""
    row = ctx.store.find("contracts", contract_id)
    if row is None or row["state"] != "proved" or not _is_left(ctx, row):
        return True
    if ctx.store.find(execute.LATE_RESULTS, contract_id) is not None:
        # what the provider had finished by then is paid once it is here
        return False
    await require_honest_time(ctx, row, read(row, "result", Document).read(Result))
    await close(ctx, row, await verify_job(ctx, row))
    return True


async def _is_disputed_instead(ctx: Context, row: dict[str, Any]) -> bool:
    """Put a result that came too late into dispute, where the job has gone on with another provider; else return False.

    Exactly one of them is paid: whether this one had done the work is for the contract database's operator to see.
    """
    job = ctx.store.find("jobs", row["job_id"])
    moved_on = job is not None and job["contract_id"] != row["id"]
    if not moved_on or row.get("called_off_by") != "silence" or row["payment"] == "volunteer":
        return False
    if row["state"] != "proved":
        # it is paid already, past the contract's deadline: then it is fetched, too
        return False
    text = f"called off at {row['called_off_at']} after its provider was silent; the job went on with another one"
    await disputes.add(ctx, row["id"], text, with_result=True)
    return True


async def _fetch_late(ctx: Context, key: str) -> bool:
    """As a requester: fetch what a provider had finished before it heard that the job had gone on without it."""
    contract_id = key.removeprefix("late/")
    row = ctx.store.find("contracts", contract_id)
    if row is None:
        return True
    result = read(row, "result", Document).read(Result)
    if await _is_disputed_instead(ctx, row):
        await ctx.store.change(lambda t: t.table(execute.LATE_RESULTS).remove(Query().id == contract_id))
        return True
    if units.parse_time(row["result_at"]) > units.now() - LATE_PATIENCE:
        await execute.fetch_outputs(ctx, row, result)
    event = {"contract_id": row["id"], "outputs": {output.name: output.cid for output in result.outputs}}

    def change(t: Transaction) -> None:
        t.table(execute.LATE_RESULTS).remove(Query().id == contract_id)
        t.save_event(row["job_id"], "late_result", **event)

    await ctx.store.change(change)
    return True


async def _finish_late(ctx: Context, job_id: str) -> bool:
    """As a requester: fetch what was paid while this node was away, and finish the job."""
    async with ctx.one_at_a_time(job_id):
        if ctx.job(job_id)["state"] == "completed":
            await settle(ctx, job_id)
    return True


async def expire_unproved(ctx: Context) -> None:
    """Give up contracts that were agreed on and not proved before their deadline."""
    contracts, now = Query(), units.utc_now()
    for row in ctx.store.table("contracts").search(contracts.state == "agreed"):
        if row["deadline"] < now:
            reason = f"not proved before its deadline {row['deadline']}"
            await ctx.store.change(lambda t, row=row, why=reason: set_contract(t, row["id"], "expired", reason=why))  # type: ignore[misc]  # the defaults bind the loop's values
