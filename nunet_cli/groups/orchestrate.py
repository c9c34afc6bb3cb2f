"""Walking a job, or many as one, through all stages (seed: `orchestrateJob`), from whatever the store holds."""

from __future__ import annotations

from nunet_cli.errors import DisputedError, StateError
from nunet_cli.groups.group import run_group
from nunet_cli.groups.replicas import run_replicas
from nunet_cli.orchestrator.context import Context
from nunet_cli.orchestrator.orchestrate import next_stage
from nunet_cli.records.jobs import JOB_ENDS, Job


async def orchestrate_job(ctx: Context, job_id: str) -> Job:
    """Take a job through every stage that is left, to its end; return the job.

    A failure before the invocation tries the next bid; one after it follows the job's retry policy.

    Raises:
        NunetError: the job ended otherwise than settled; what is raised is stored with the job.
    """
    async with ctx.one_at_a_time(job_id):
        while True:
            job = ctx.job(job_id)
            if job.state in JOB_ENDS and job.state != "expired":
                return job
            if job.state == "disputed":
                raise DisputedError("the job is disputed")
            if job.kind == "member":
                raise StateError("a job in a pod runs with its pod", hint=f"run: nunet job run --job {job.parent}")
            if job.kind == "group":
                return await run_group(ctx, job_id, orchestrate_job)
            if job.kind == "replicas":
                return await run_replicas(ctx, job_id, _one_stage)
            await next_stage(ctx, job)


async def _one_stage(ctx: Context, job_id: str) -> Job:
    async with ctx.one_at_a_time(job_id):
        await next_stage(ctx, ctx.job(job_id))
    return ctx.job(job_id)
