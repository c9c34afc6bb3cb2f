"""Walking a job, or many as one, through all stages (seed: `orchestrateJob`), from whatever the store holds."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from nunet_cli.errors import DisputedError, StateError
from nunet_cli.groups.replicas import run_replicas
from nunet_cli.groups.walk import run_group
from nunet_cli.orchestrator.cancel import cancel
from nunet_cli.orchestrator.changes import find_job
from nunet_cli.orchestrator.needs import HasJobLocks
from nunet_cli.orchestrator.orchestrate import Orchestrating, next_stage
from nunet_cli.records.jobs import JOB_ENDS, Job


class Walking(HasJobLocks, Orchestrating, Protocol):
    """Takes jobs through all stages, alone and as one."""


async def orchestrate_job(ctx: Walking, job_id: str) -> Job:
    """Take a job through every stage that is left, to its end; return the job.

    A failure before the invocation tries the next bid; one after it follows the job's retry policy.

    Raises:
        NunetError: the job ended otherwise than settled; what is raised is stored with the job.
    """
    while True:
        with ctx.job_locks.walk(job_id):
            async with ctx.job_locks.hold(job_id):
                return await _to_the_end(ctx, job_id)
        # somebody calls it off: how that ended is in its state, once it may be had again


async def _to_the_end(ctx: Walking, job_id: str) -> Job:
    while True:
        job = find_job(ctx.store, job_id)
        if job.state in JOB_ENDS and job.state != "expired":
            return job
        if job.state == "disputed":
            raise DisputedError("the job is disputed")
        if job.kind == "member":
            raise StateError("a job in a pod runs with its pod", hint=f"run: nunet job run --job {job.parent}")
        if job.calling_off:
            return await cancel(ctx, job_id)
        if job.kind == "group":
            return await run_group(ctx, job_id, partial(orchestrate_job, ctx))
        if job.kind == "replicas":
            return await run_replicas(ctx, job_id, partial(_one_stage, ctx))
        await next_stage(ctx, job)


async def _one_stage(ctx: Walking, job_id: str) -> Job:
    async with ctx.job_locks.hold(job_id):
        await next_stage(ctx, find_job(ctx.store, job_id))
    return find_job(ctx.store, job_id)
