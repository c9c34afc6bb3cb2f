"""Running again by a specification that was mended since: with the inputs that it has now, and what else it says."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from nunet_cli.database.store import Transaction
from nunet_cli.errors import StateError, UsageError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.items import expand_batch, item_values
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import price_limit
from nunet_cli.orchestrator.changes import change_job, find_job
from nunet_cli.orchestrator.post import Posting, take_in
from nunet_cli.orchestrator.retry import start_over
from nunet_cli.records.jobs import JOB_ENDS, JOBS, Job, is_lost


class Mend(NamedTuple):
    """What a job is to be from now on: its specification, with its inputs by content id; of an item its values."""

    spec: JobSpec
    values: dict[str, str]


# by the ids of the jobs
Mended = dict[str, Mend]


async def mend(ctx: Posting, job_id: str, spec: JobSpec, folder: Path) -> Mended:
    """Take in what failed in a batch, or a single job that did, as a specification has it now.

    Items are told by their names: what has settled stays as it is, whatever the specification says of it.

    Args:
        ctx: the node's parts.
        job_id: the job or batch, which has ended.
        spec: the checked specification.
        folder: what the paths of its inputs are relative to.

    Raises:
        StateError: the job goes on.
        UsageError: an input is not there, or the specification is of something else.
    """
    job = find_job(ctx.store, job_id)
    if job.state not in JOB_ENDS:
        raise StateError(f"job {job.id} is {job.state}: with another specification it is run again once it has ended")
    is_batch = decode_spec(job.spec).batch is not None
    if job.parent or job.members or (job.kind != "job" and not is_batch):
        raise UsageError(
            f"job {job.id} is part of another one, or has parts", hint="--spec is for a batch, or a single job"
        )
    if spec.name != job.name or (spec.batch is not None) != is_batch:
        raise UsageError(
            f"the specification is of {spec.name}, and not of {job.name}", hint="give that which it was posted with"
        )
    if spec.batch is None:
        if spec.children or spec.type == "recurring" or spec.verify.policy == "replicate":
            raise UsageError("--spec is for a batch, or a single job")
        return {job.id: Mend(await take_in(ctx, spec, folder), {})}
    places = {child.name: (index, child) for index, child in enumerate(expand_batch(spec))}
    mended: Mended = {}
    for child in ctx.store[JOBS].by("parent", job.id):
        if not is_lost(child):
            continue
        if child.name not in places:
            raise UsageError(f"the specification has no item {child.name}, which failed",
                             hint="leave what did not fail as it is, and mend what did")  # fmt: skip
        index, item = places[child.name]
        mended[child.id] = Mend(await take_in(ctx, item, folder), item_values(spec, index))
    return mended


def start_over_as(t: Transaction, job: Job, mend: Mend) -> Job:
    """Put a job back to its beginning as it is to be from now on, as part of a change; return it."""
    start_over(t, job, mend.spec, job.push)
    return change_job(t, job.id, limit=price_limit(mend.spec), item=mend.values)
