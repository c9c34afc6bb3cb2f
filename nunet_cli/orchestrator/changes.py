"""A job as the stages find it, and the one way to change its state."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import NunetError
from nunet_cli.orchestrator.needs import HasHeard, HasProgress
from nunet_cli.records.jobs import JOB_ENDS, JOBS, ErrorRecord, Job
from nunet_cli.records.machine import REQUESTER


class Following(HasHeard, HasProgress, Protocol):
    """Follows jobs at their providers."""


def find_job(source: Store | Transaction, job_id: str) -> Job:
    """Return a job by its id or an unambiguous prefix.

    Raises:
        NotFoundError: there is none.
        UsageError: there are several.
    """
    return source[JOBS].get(job_id) or source[JOBS].resolve(job_id, what="job")


def advance(
    t: Transaction, job_id: str, event: str, *, by: str, about: str | None = None, said: dict[str, Any] | None = None,
    **changes: Any,
) -> Job:  # fmt: skip
    """Let an event happen to a job, and save it in the event log, as part of a change; return the job.

    Args:
        t: the change.
        job_id: the job.
        event: what happens, as in `records.jobs.JOB` or `GROUP`.
        by: which party causes it.
        about: what it is about: the contract that the job has now, for example.
        said: what else the log says of it; JSON.
        changes: fields of the job.

    Raises:
        StateError: the job's machine does not allow it.
    """
    job = transition(
        t, t[JOBS].one(job_id), event, by=by, about=about, changed_at=quantities.utc_now(), **changes
    )  # fmt: skip
    t.save_event(job_id, f"job_{job.state}", **(said or {}))
    if job.state in JOB_ENDS:
        t.ended.add(job_id)
    for member_id in job.members:
        # a job inside a pod has the pod's state, and no machine of its own
        member = t[JOBS].one(member_id)
        shared = {name: getattr(job, name) for name in _SHARED}
        t[JOBS].put(structs.replace(member, **shared))
        t.save_event(member_id, f"job_{job.state}", pod=job.id)
        if job.state in JOB_ENDS:
            t.ended.add(member_id)
    # the row of a group of thousands takes longer to read than all else
    if job.parent and job.state in JOB_ENDS and t[JOBS].count("state", "disputed"):
        resolve_replicas(t, job.parent)
    return job


def let_go(ctx: Following, t: Transaction, contract_id: str, job_id: str) -> None:
    """Forget, once a change is on disk, what is known in memory alone of a job that nobody follows any more."""
    t.then(partial(ctx.heard.forget, contract_id))
    t.then(partial(ctx.progress.done, job_id))


def total_paid(jobs: list[Job]) -> str:
    """Return what was paid for some jobs in all, earlier attempts with it, in NTX."""
    amounts = [paid for job in jobs for paid in (job.paid, *(attempt.paid for attempt in job.past))]
    return quantities.format_amount(sum(quantities.parse_amount(paid or "0") for paid in amounts))


def note_paid_late(t: Transaction, job: Job, amount: str) -> None:
    """Add what was paid for a job to what its group cost, where that was called off before it was known."""
    parent = job.parent
    # what goes on sums up at its end; its row may be that of a group of thousands, and is not read for each of them
    while parent and (found := t[JOBS].page(1, id=parent, state="cancelled").rows):
        (group,) = found
        total = quantities.parse_amount(group.paid or "0") + quantities.parse_amount(amount)
        parent = change_job(t, group.id, paid=quantities.format_amount(total)).parent


def resolve_replicas(t: Transaction, job_id: str) -> None:
    """End the replicas of a job that are in dispute once each of them has ended, as part of a change."""
    group = t[JOBS].get(job_id)
    if group is None or group.kind != "replicas" or group.state != "disputed":
        return
    found = [t[JOBS].get(child_id) for child_id in group.children.values()]
    replicas = [replica for replica in found if replica is not None]
    if all(replica.state in JOB_ENDS for replica in replicas):
        paid = quantities.format_amount(sum(quantities.parse_amount(replica.paid or "0") for replica in replicas))
        advance(t, job_id, "resolve", by=REQUESTER, said={"paid": paid}, paid=paid)


_SHARED = ("state", "changed_at", "contract_id", "allocation_id", "bid_id", "error", "usage")


def change_job(t: Transaction, job_id: str, **changes: Any) -> Job:
    """Change what a job says beside its state, as part of a change; return it."""
    job = structs.replace(t[JOBS].one(job_id), **changes)
    t[JOBS].put(job)
    return job


def error_record(error: NunetError) -> ErrorRecord:
    """Return an error as it is kept with a job."""
    return ErrorRecord(error.code, error.message, error.hint, error.details, error.exit_code)
