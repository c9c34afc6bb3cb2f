"""Running again what failed: as new attempts of the same jobs, after which their groups go on."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from nunet_cli.database.store import Transaction
from nunet_cli.errors import StateError
from nunet_cli.groups.mended import Mended, start_over_as
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import Arrangement, arrange
from nunet_cli.orchestrator.changes import change_job
from nunet_cli.orchestrator.needs import HasStore
from nunet_cli.orchestrator.retry import start_over
from nunet_cli.records.jobs import JOB_ENDS, JOBS, Job, is_lost

# children of a group that are named where they are to run again; of more all are looked at
MOST_NAMED = 100


class Again(NamedTuple):
    """A job that is to run again, the job at the top of its groups, which takes it further, and how many run again."""

    job: Job
    top: Job
    runs: int


async def run_again(ctx: HasStore, job_id: str, mended: Mended | None = None) -> Again:
    """Put a job that did not end well back to its beginning; of a group, what failed in it and what did not run then.

    What a child of a group is put back for goes on with its group, and with the children that did not run because of
    it. All of that is one change.

    Args:
        ctx: the node's parts.
        job_id: the job.
        mended: what jobs are from now on that are not to run as they did.

    Raises:
        StateError: it has not ended, is settled, or is not to be run again by itself.
    """
    return await ctx.store.change(partial(_run_again, job_id=job_id, mended=mended or {}))


def _run_again(t: Transaction, job_id: str, mended: Mended) -> Again:
    job = t[JOBS].one(job_id)
    parent = t[JOBS].get(job.parent) if job.parent else None
    if job.kind == "member" or (parent is not None and parent.kind == "replicas"):
        what = "a job in a pod runs with its pod" if job.kind == "member" else "replicas run together"
        raise StateError(what, hint=f"run: nunet job retry {job.parent}")
    may_have_failed = job.kind == "group" and job.state == "running"
    if job.state == "settled" or (job.state not in JOB_ENDS and not may_have_failed):
        why = "it has not ended" if job.state != "settled" else "there is nothing to run again"
        raise StateError(f"job {job.id} is {job.state}: {why}")
    arranged = _linked(parent)
    names = [job.name]
    if parent is None or arranged is None:
        count = _put_back(t, job, mended=mended)
    else:
        names += (name for name in _after(arranged, job.name) if _did_not_run(t, parent, name))
        count = sum(_put_back(t, t[JOBS].one(parent.children[name]), parent, arranged) for name in names)
    if not count and decode_spec(job.spec).type != "recurring":
        raise StateError(
            f"nothing failed in job {job.id}",
            hint="what was cancelled by hand is run again by its own id",
        )
    top = _lift(t, t[JOBS].one(job.id), names)
    return Again(t[JOBS].one(job.id), change_job(t, top.id, orchestrate=True), count)


def _put_back(
    t: Transaction,
    job: Job,
    parent: Job | None = None,
    arranged: Arrangement | None = None,
    mended: Mended | None = None,
) -> int:
    """Put back a job, or what failed in a group and the group with it; return how many jobs with a contract that are.

    `arranged` has the links of the parent: what they brought is brought again.
    """
    spec: JobSpec | None = arranged.children[job.name] if arranged is not None else None
    push = parent.push if parent is not None else ()
    if mended and job.id in mended:
        start_over_as(t, job, mended[job.id])
        return 1
    if job.kind == "job":
        start_over(t, job, spec, push)
        return 1
    inside, count, names = _linked(job), 0, []
    for name, child_id in job.children.items():
        child = t[JOBS].one(child_id)
        if _is_lost(child, job):
            count += _put_back(t, child, job, inside, mended)
            names.append(name)
    if job.state not in JOB_ENDS:
        _wake(t, job, count, names)
    elif count or decode_spec(job.spec).type == "recurring":
        start_over(t, job, spec, push)
    return count


def _is_lost(child: Job, parent: Job) -> bool:
    """Say whether a child failed, or did not run because others had: what a person called off by itself stays so."""
    if parent.kind == "replicas":
        return child.state in JOB_ENDS - {"settled"}
    if child.kind == "group" and child.state == "running":
        return True
    return is_lost(child)


def _linked(group: Job | None) -> Arrangement | None:
    """Return how the children of a group are linked; None where they are not."""
    if group is None or group.kind != "group":
        return None
    spec = decode_spec(group.spec)
    return arrange(spec) if spec.links else None


def _after(arranged: Arrangement, name: str) -> list[str]:
    """Return the children that a child's links lead to, also by way of others."""
    found = {name}
    while more := {
        arranged.child_of[link.to]
        for link in arranged.links
        if arranged.child_of[link.from_] in found and arranged.child_of[link.to] not in found
    }:
        found |= more
    return [other for other in arranged.children if other in found and other != name]


def _did_not_run(t: Transaction, parent: Job, name: str) -> bool:
    child = t[JOBS].one(parent.children[name])
    return child.state == "cancelled" and bool(child.called_off)


def _lift(t: Transaction, job: Job, names: list[str]) -> Job:
    """Have the groups that a job is below go on with it; return the one at the top that does.

    Args:
        t: the change.
        job: the job.
        names: what is put back in its group, itself among them.
    """
    while job.parent:
        parent = t[JOBS].one(job.parent)
        if parent.state == "settled":
            # a recurring job does not fail by one of its times
            return job
        if parent.state in JOB_ENDS:
            parent = start_over(t, parent)
        else:
            _wake(t, parent, 1, names)
        job, names = parent, [parent.name]
    return job


def _wake(t: Transaction, group: Job, count: int, names: list[str]) -> None:
    """Say in the log of a group that goes on that there is more for it to do: it hears of that, and looks at those."""
    if count:
        said = {"children": names} if len(names) <= MOST_NAMED else {}
        t.save_event(group.id, "job_retried", count=count, **said)
