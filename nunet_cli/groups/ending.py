"""How a group ends: settled when all its children are, else failed, with counts and names."""

from __future__ import annotations

from nunet_cli.database.store import Transaction
from nunet_cli.errors import JobFailedError, NunetError
from nunet_cli.orchestrator import cancel
from nunet_cli.orchestrator.cancel import Cancelling
from nunet_cli.orchestrator.changes import advance, error_record, total_paid
from nunet_cli.orchestrator.needs import HasStore
from nunet_cli.records.jobs import JOB_ENDS, JOBS, ErrorRecord, Job
from nunet_cli.records.machine import REQUESTER

Failures = dict[str, NunetError]
NAMED = 5
NOT_RUN = "not_run"


def failure_of(child: Job) -> NunetError:
    """Return why a child that has ended is not settled."""
    if child.state == "cancelled" and child.called_off and child.error is None:
        return JobFailedError(child.called_off, code=NOT_RUN)
    code, message = f"child_{child.state}", f"it is {child.state}"
    if child.error is None:
        return JobFailedError(message, code=code)
    error = JobFailedError(child.error.message or message, code=child.error.code or code)
    error.exit_code = child.error.exit_code
    return error


async def conclude(ctx: HasStore, job_id: str, failures: Failures, stuck: set[str]) -> Job | None:
    """End a group whose children have ended; return it, or None where one of them is to run again.

    Args:
        ctx: the node's parts.
        job_id: the group.
        failures: why children failed, by name, as it was seen.
        stuck: the names of those that could neither be taken further nor ended.
    """

    def change(t: Transaction) -> Job | None:
        job = t[JOBS].one(job_id)
        if job.state != "running":
            return job
        children = {name: t[JOBS].one(child_id) for name, child_id in job.children.items()}
        done = JOB_ENDS | {"disputed"}
        if any(child.state not in done and name not in stuck for name, child in children.items()):
            return None
        paid = total_paid(list(children.values()))
        said = {"children": len(children), "paid": paid}
        lost = {
            name: failures[name] if name in failures else failure_of(child)
            for name, child in children.items()
            if child.state != "settled"
        }
        if not lost:
            return advance(t, job_id, "settle", by=REQUESTER, said=said, paid=paid)
        error = _sum_up(job, lost)
        said |= {"failed": error.details["failed"], "reason": error.code, "message": error.message}
        return advance(t, job_id, "fail", by=REQUESTER, said=said, error=error_record(error), paid=paid)

    return await ctx.store.change(change)


def end_failed(job: Job) -> Job:
    """Return a group that is settled.

    Raises:
        JobFailedError: it failed, as is kept with it.
    """
    if job.state == "failed" and job.error is not None:
        raise _raised(job.error)
    return job


def _raised(kept: ErrorRecord) -> JobFailedError:
    error = JobFailedError(kept.message, code=kept.code, hint=kept.hint, details=kept.details)
    error.exit_code = kept.exit_code
    return error


def _sum_up(job: Job, lost: Failures) -> JobFailedError:
    """Return the error of a group: how many failed and which, and why the first one did, whose exit code it has."""
    failed = {name: error for name, error in lost.items() if error.code not in (NOT_RUN, "child_cancelled")}
    not_run = [name for name, error in lost.items() if error.code == NOT_RUN]
    by_hand = [name for name, error in lost.items() if error.code == "child_cancelled"]
    parts = []
    if failed:
        first = next(iter(failed))
        names = f"{first}: {failed[first].message}"
        if len(failed) > 1:
            names = f"{_named(list(failed))} ({names})"
        parts.append(f"{len(failed)} of {len(job.children)} failed: {names}")
    for others, what in ((by_hand, "cancelled"), (not_run, "called off")):
        if others:
            parts.append(f"{len(others)} of {len(job.children)} {what}: {_named(others)}")
    name, cause = next(iter((failed or lost).items()))
    codes = {error.code for error in (failed or lost).values()}
    error = JobFailedError(
        "; ".join(parts), code=cause.code if len(codes) == 1 else "children_failed",
        hint=f"see why: nunet job explain {job.id}; run them again: nunet job retry {job.id}",
        details={"child": name, "job": job.children[name], "failed": len(failed), "not_run": len(not_run),
                 "cancelled": len(by_hand), "children": len(job.children)},
    )  # fmt: skip
    error.exit_code = cause.exit_code
    return error


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


async def fail_group(ctx: Cancelling, job: Job, name: str, cause: NunetError) -> None:
    """Call off what has not ended, and fail a job of which one part is enough to fail it, such as its replicas.

    Raises:
        JobFailedError: always; it names the child, and has its exit code.
    """
    await cancel.cancel_children(ctx, job, f"{name} failed")
    error = JobFailedError(
        f"{name}: {cause.message}", code=cause.code, hint=f"see: nunet job show {job.children[name]}",
        details={"child": name, "job": job.children[name]},
    )  # fmt: skip
    error.exit_code = cause.exit_code

    def change(t: Transaction) -> None:
        paid = total_paid([t[JOBS].one(child_id) for child_id in job.children.values()])
        event = {"child": name, "reason": cause.code, "message": error.message, "paid": paid}
        advance(t, job.id, "fail", by=REQUESTER, said=event, error=error_record(error), paid=paid)

    await ctx.store.change(change)
    raise error
