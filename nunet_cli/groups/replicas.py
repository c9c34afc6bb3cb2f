"""Replicated jobs: several providers run the same job, the oracle compares, and the odd one out is not paid."""

from __future__ import annotations

import logging
from typing import Any

import trio

from nunet_cli import units
from nunet_cli.errors import DisputedError, JobFailedError, NunetError
from nunet_cli.groups import group
from nunet_cli.groups.group import Run
from nunet_cli.jobs.check import decode_spec
from nunet_cli.orchestrator import execute
from nunet_cli.orchestrator.context import Context, advance, error_fields
from nunet_cli.orchestrator.patience import FULL
from nunet_cli.records.states import JOB_ENDS

log = logging.getLogger("nunet.replicas")

UNPLACED = frozenset({"posted", "matching", "expired", "matched", "requested"})
UNFINISHED = frozenset({"contracted", "invoked", "running"})


async def run_replicas(ctx: Context, job_id: str, next_stage: Run) -> dict[str, Any]:
    """Run a job at several providers, have the results compared, and settle each contract; return the job.

    Args:
        ctx: the node's parts.
        job_id: the job, whose units are its replicas.
        next_stage: takes one replica through the stage that comes next for it.

    Raises:
        NunetError: too few providers were found; what had begun is called off.
        JobFailedError: too few replicas ended well.
        DisputedError: there is no quorum: the contracts are disputed.
    """
    job = ctx.job(job_id)
    if job["state"] == "posted":
        job = await ctx.store.change(lambda t: advance(t, job_id, "running", {"replicas": len(job["units"])}))
    for child_id in job["units"].values():
        try:
            await _place(ctx, job, child_id, next_stage)
        except NunetError as error:
            if error.code == FULL:
                raise
            if ctx.job(child_id)["state"] in UNPLACED | JOB_ENDS and not ctx.job(child_id).get("result"):
                await group.fail_group(ctx, job, ctx.job(child_id)["name"], error)
            log.info("replica %s: %s", child_id, error)
    async with trio.open_nursery() as nursery:
        for child_id in job["units"].values():
            nursery.start_soon(_finish, ctx, child_id, next_stage)
    # each is settled with the others' results, so all must have ended first
    for child_id in job["units"].values():
        if ctx.job(child_id)["state"] in ("completed", "verified"):
            try:
                await next_stage(ctx, child_id)
            except NunetError as error:
                log.info("replica %s: %s", child_id, error)
    return await _conclude(ctx, job_id)


async def _place(ctx: Context, job: dict[str, Any], child_id: str, next_stage: Run) -> None:
    """Get one replica a contract, with a provider that has none of the others."""
    while ctx.job(child_id)["state"] in UNPLACED:
        taken = []
        for other_id in job["units"].values():
            contract = ctx.store.find("contracts", ctx.job(other_id)["contract_id"]) if other_id != child_id else None
            if contract is not None:
                taken.append(contract["provider"])
        excluded = sorted({*taken, *ctx.job(child_id).get("excluded", [])})
        if excluded != ctx.job(child_id).get("excluded", []):
            await ctx.store.change(
                lambda t, left=excluded: t.put("jobs", {**(t.find("jobs", child_id) or {}), "excluded": left})  # type: ignore[misc]  # the default binds the loop's value
            )
        await next_stage(ctx, child_id)


async def _finish(ctx: Context, child_id: str, next_stage: Run) -> None:
    try:
        while ctx.job(child_id)["state"] in UNFINISHED:
            await next_stage(ctx, child_id)
        if ctx.job(child_id)["state"] == "completed":
            await execute.collect_outputs(ctx, child_id)
    except NunetError as error:
        log.info("replica %s: %s", child_id, error)


async def _conclude(ctx: Context, job_id: str) -> dict[str, Any]:
    job = ctx.job(job_id)
    if job["state"] in JOB_ENDS:
        return job
    replicas = [ctx.job(child_id) for child_id in job["units"].values()]
    agreed = [replica for replica in replicas if replica["state"] == "settled"]
    paid = units.format_amount(sum(units.parse_amount(replica.get("paid") or "0") for replica in replicas))
    needed = decode_spec(job["spec"]).verify.n // 2 + 1
    if len(agreed) >= needed:
        first = agreed[0]
        event = {"agreed": len(agreed), "replicas": len(replicas), "paid": paid}
        shown = {name: first.get(name) for name in ("result", "collected", "contract_id", "message")}
        return await ctx.store.change(lambda t: advance(t, job_id, "settled", event, paid=paid, **shown))
    disputed = [replica for replica in replicas if replica["state"] == "disputed"]
    text = f"{len(agreed)} of {len(replicas)} providers agree on the result, {needed} are needed"
    error: NunetError = DisputedError(text) if disputed else JobFailedError(text, code="no_quorum")
    state = "disputed" if disputed else "failed"
    event = {"agreed": len(agreed), "message": text}
    await ctx.store.change(lambda t: advance(t, job_id, state, event, error=error_fields(error), paid=paid))
    raise error
