"""Recurring jobs: whenever the schedule says, the job runs once more, as another child."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError
from nunet_cli.jobs.check import next_run
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.orchestrator.cancel import has_put_back
from nunet_cli.orchestrator.changes import advance, change_job, find_job, total_paid
from nunet_cli.orchestrator.needs import HasStore
from nunet_cli.orchestrator.post import Asked, job_rows, put_job
from nunet_cli.records.jobs import JOB_ENDS, JOBS, Job
from nunet_cli.records.machine import REQUESTER

log = logging.getLogger("nunet.group")

Run = Callable[[str], Awaitable[Job]]


async def run_recurring(ctx: HasStore, job_id: str, spec: JobSpec, run: Run) -> Job:
    """Run a job whenever its schedule says, as a new child each time; a time that was missed is made up once."""
    schedule = spec.schedule
    assert schedule is not None
    while True:
        changed = ctx.store.news(job_id)
        job = find_job(ctx.store, job_id)
        done = len(job.children)
        open_ones = [child for child in job.children.values() if find_job(ctx.store, child).state not in JOB_ENDS]
        for child_id in open_ones:
            await _run_once(child_id, run)
        if schedule.count and done >= schedule.count:
            settled = await _settle(ctx, job_id)
            if settled is None:
                continue
            return settled
        due = job.next_run or (quantities.utc_now() if schedule.every else next_run(schedule, quantities.utc_now()))
        if due != job.next_run:
            await ctx.store.change(partial(_note_next, job_id=job_id, due=due))
        wait = (quantities.parse_time(due) - quantities.now()).total_seconds()
        if wait > 0:
            # a run that failed may be run again meanwhile
            with trio.move_on_after(min(wait, 3600)):
                await changed.wait()
            continue
        await ctx.store.change(partial(_add_run, job_id=job_id, spec=spec, number=done))


async def _run_once(child_id: str, run: Run) -> None:
    try:
        await run(child_id)
    except NunetError as error:
        # one time that fails does not end the schedule
        log.info("a run of a recurring job failed: %s: %s", child_id, error)


def _note_next(t: Transaction, job_id: str, due: str) -> None:
    change_job(t, job_id, next_run=due)
    t.save_event(job_id, "job_scheduled", next_run=due)


def _add_run(t: Transaction, job_id: str, spec: JobSpec, number: int) -> None:
    assert spec.schedule is not None
    job = t[JOBS].one(job_id)
    if job.state in JOB_ENDS or len(job.children) != number:
        return
    child_spec = structs.replace(spec, type="task", schedule=None, name=f"{spec.name[:90]}-{number}")
    rows = job_rows(child_spec, job.requester, Asked(job.push, job.topic), parent=job_id)
    for row in rows:
        put_job(t, row)
    due = next_run(spec.schedule, quantities.utc_now())
    change_job(t, job_id, children={**job.children, child_spec.name: rows[0].id}, next_run=due)
    t.save_event(job_id, "job_scheduled", next_run=due)


async def _settle(ctx: HasStore, job_id: str) -> Job | None:
    """End a job that has run as often as it should; None where one of its times is to run again.

    A time that failed does not make it fail.
    """

    def change(t: Transaction) -> Job | None:
        job = t[JOBS].one(job_id)
        if job.state == "settled":
            return job
        if has_put_back(t, job):
            return None
        paid = total_paid([t[JOBS].one(child_id) for child_id in job.children.values()])
        return advance(t, job_id, "settle", by=REQUESTER, said={"children": len(job.children), "paid": paid}, paid=paid)

    return await ctx.store.change(change)
