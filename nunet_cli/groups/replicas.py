"""Replicated jobs: several providers run the same job, the oracle compares, and the odd one out is not paid."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from nunet_cli.database.store import Transaction
from nunet_cli.errors import DisputedError, JobFailedError, NunetError
from nunet_cli.groups.ending import fail_group
from nunet_cli.jobs.check import decode_spec
from nunet_cli.orchestrator.cancel import Cancelling
from nunet_cli.orchestrator.changes import advance, change_job, error_record, find_job, total_paid
from nunet_cli.orchestrator.needs import HasStore
from nunet_cli.orchestrator.outputs import Collecting, collect_outputs
from nunet_cli.orchestrator.patience import FULL
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.jobs import JOB_ENDS, JOBS, Job
from nunet_cli.records.machine import REQUESTER

log = logging.getLogger("nunet.replicas")

Run = Callable[[str], Awaitable[Job]]
UNPLACED = frozenset({"posted", "matching", "expired", "matched", "requested"})
UNFINISHED = frozenset({"contracted", "invoked", "running"})


async def run_replicas(ctx: Cancelling, job_id: str, next_stage: Run) -> Job:
    """Run a job at several providers, have the results compared, and settle each contract; return the job.

    Args:
        ctx: the node's parts.
        job_id: the job, whose children are its replicas.
        next_stage: takes one replica through the stage that comes next for it.

    Raises:
        NunetError: too few providers were found; what had begun is called off.
        JobFailedError: too few replicas ended well.
        DisputedError: there is no quorum: the contracts are disputed.
    """
    job = await _begin(ctx, job_id)
    for child_id in job.children.values():
        try:
            await _place(ctx, job, child_id, next_stage)
        except NunetError as error:
            if error.code == FULL:
                raise
            replica = find_job(ctx.store, child_id)
            if replica.state in UNPLACED | JOB_ENDS and replica.result is None:
                await fail_group(ctx, job, replica.name, error)
            log.info("replica %s: %s", child_id, error)
    async with trio.open_nursery() as nursery:
        for child_id in job.children.values():
            nursery.start_soon(_finish, ctx, child_id, next_stage)
    # each is settled with the others' results, so all must have ended first
    for child_id in job.children.values():
        if find_job(ctx.store, child_id).state in ("completed", "verified"):
            try:
                await next_stage(child_id)
            except NunetError as error:
                log.info("replica %s: %s", child_id, error)
    return await _conclude(ctx, job_id)


async def _begin(ctx: HasStore, job_id: str) -> Job:
    def change(t: Transaction) -> Job:
        job = t[JOBS].one(job_id)
        if job.state != "posted":
            return job
        return advance(t, job_id, "begin", by=REQUESTER, said={"replicas": len(job.children)})

    job = find_job(ctx.store, job_id)
    return job if job.state != "posted" else await ctx.store.change(change)


async def _place(ctx: HasStore, job: Job, child_id: str, next_stage: Run) -> None:
    """Get one replica a contract, with a provider that has none of the others."""

    def exclude(t: Transaction) -> None:
        taken = [
            t[CONTRACTS].get(t[JOBS].one(other).contract_id) for other in job.children.values() if other != child_id
        ]
        known = t[JOBS].one(child_id).excluded
        excluded = tuple(sorted({*known, *(contract.provider for contract in taken if contract is not None)}))
        if excluded != known:
            change_job(t, child_id, excluded=excluded)

    while find_job(ctx.store, child_id).state in UNPLACED:
        await ctx.store.change(exclude)
        await next_stage(child_id)


async def _finish(ctx: Collecting, child_id: str, next_stage: Run) -> None:
    try:
        while find_job(ctx.store, child_id).state in UNFINISHED:
            await next_stage(child_id)
        if find_job(ctx.store, child_id).state == "completed":
            await collect_outputs(ctx, child_id)
    except NunetError as error:
        log.info("replica %s: %s", child_id, error)


async def _conclude(ctx: HasStore, job_id: str) -> Job:
    def change(t: Transaction) -> tuple[Job, NunetError | None]:
        job = t[JOBS].one(job_id)
        if job.state in JOB_ENDS:
            return job, None
        replicas = [t[JOBS].one(child_id) for child_id in job.children.values()]
        agreed = [replica for replica in replicas if replica.state == "settled"]
        paid, needed = total_paid(replicas), decode_spec(job.spec).verify.n // 2 + 1
        if len(agreed) >= needed:
            first = agreed[0]
            said = {"agreed": len(agreed), "replicas": len(replicas), "paid": paid}
            job = advance(
                t, job_id, "settle", by=REQUESTER, said=said, paid=paid, result=first.result, message=first.message,
                collected=first.collected, contract_id=first.contract_id,
            )  # fmt: skip
            return job, None
        text = f"{len(agreed)} of {len(replicas)} providers agree on the result, {needed} are needed"
        disputed = any(replica.state == "disputed" for replica in replicas)
        error: NunetError = DisputedError(text) if disputed else JobFailedError(text, code="no_quorum")
        said = {"agreed": len(agreed), "message": text}
        event = "dispute" if disputed else "fail"
        job = advance(t, job_id, event, by=REQUESTER, said=said, error=error_record(error), paid=paid)
        return job, error

    job, error = await ctx.store.change(change)
    if error is not None:
        raise error
    return job
