"""Jobs with children: each goes through the stages once what it is linked to is done (seed 1: `JobLink`, `Pod`)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import JobFailedError, NunetError, UsageError
from nunet_cli.jobs.check import check_spec, decode_spec, next_run
from nunet_cli.jobs.spec import InputSpec, JobLink, JobSpec, encode_spec
from nunet_cli.jobs.tree import Arrangement, arrange
from nunet_cli.orchestrator import cancel
from nunet_cli.orchestrator.cancel import Cancelling
from nunet_cli.orchestrator.changes import advance, change_job, error_record, find_job
from nunet_cli.orchestrator.needs import HasStore
from nunet_cli.orchestrator.patience import while_full
from nunet_cli.orchestrator.post import job_rows, put_job
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.jobs import JOB_ENDS, JOBS, Job, LinkRule
from nunet_cli.records.machine import REQUESTER
from nunet_cli.records.results import OutputFile

log = logging.getLogger("nunet.group")

Run = Callable[[str], Awaitable[Job]]
PLACED = frozenset({"contracted", "invoked", "running", "completed", "verified", "settled"})


async def run_group(ctx: Cancelling, job_id: str, run: Run) -> Job:
    """Take every child of a group through its stages, in the order of their links; return the group.

    Args:
        ctx: the node's parts.
        job_id: the group.
        run: takes one job through all stages.

    Raises:
        JobFailedError: a child failed: what had not ended is called off, and the group has failed.
    """
    job = await _begin(ctx, job_id)
    spec = decode_spec(job.spec)
    if spec.type == "recurring":
        return await _run_recurring(ctx, job_id, spec, run)
    arranged = Arrangement({}, (), {}) if spec.type == "batch" else arrange(spec)
    at_once = spec.batch.parallel if spec.batch is not None and spec.batch.parallel else max(1, len(job.children))
    places = trio.Semaphore(at_once)
    failures: list[tuple[str, NunetError]] = []
    async with trio.open_nursery() as nursery:

        async def go_through(name: str, child_id: str) -> Job:
            await _wait_for_links(ctx, job, arranged, name)
            async with places:
                await _release(ctx, job, arranged, name)
                return await run(child_id)

        async def take(name: str, child_id: str) -> None:
            try:
                child = await while_full(ctx, child_id, partial(go_through, name, child_id))
                if child.state != "settled":
                    raise _failure_of(child)
            except NunetError as error:
                failures.append((name, error))
                nursery.cancel_scope.cancel()

        for name, child_id in job.children.items():
            nursery.start_soon(take, name, child_id)
    if failures:
        await fail_group(ctx, job, *failures[0])
    return await _settle(ctx, job_id)


async def _begin(ctx: HasStore, job_id: str) -> Job:
    def change(t: Transaction) -> Job:
        job = t[JOBS].one(job_id)
        if job.state != "posted":
            return job
        return advance(t, job_id, "begin", by=REQUESTER, said={"children": len(job.children)})

    job = find_job(ctx.store, job_id)
    return job if job.state != "posted" else await ctx.store.change(change)


async def _wait_for_links(ctx: HasStore, job: Job, arranged: Arrangement, name: str) -> None:
    """Wait until what a child is linked to is settled, or for `colocate`, has a provider."""
    links = arranged.before(name) if arranged.children else []
    while True:
        changed = ctx.store.new_event
        # one that fails ends the whole group, and this wait with it
        waiting = []
        for source, link in links:
            state = find_job(ctx.store, job.children[source]).state
            if state not in (PLACED if link.kind == "colocate" else {"settled"}):
                waiting.append(source)
        if not waiting:
            return
        with trio.move_on_after(5):
            await changed.wait()


async def _release(ctx: HasStore, job: Job, arranged: Arrangement, name: str) -> None:
    """Give a child what its links bring: the data as inputs, the provider to run at, the constraints on its bids."""
    child = find_job(ctx.store, job.children[name])
    links = arranged.before(name) if arranged.children else []
    if not _is_held(child) or not links:
        return
    spec, push, rules = decode_spec(child.spec), child.push, []
    for source, link in links:
        other = find_job(ctx.store, job.children[source])
        if link.kind == "data":
            spec = _with_data(ctx, spec, link, other, in_pod=spec.pod)
        if link.kind == "colocate":
            contract = ctx.store[CONTRACTS].get(other.contract_id)
            push = contract.provider if contract is not None else push
        if link.constraint:
            rules.append(LinkRule(constraint=link.constraint, bid_id=other.bid_id, from_=link.from_))
    check_spec(spec)
    text = encode_spec(spec)

    def change(t: Transaction) -> None:
        # it may have been called off in the meantime
        if not _is_held(t[JOBS].one(child.id)):
            return
        change_job(
            t, child.id, spec=text.decode(), spec_cid=content_id(text), push=push, link_rules=tuple(rules),
            released=True,
        )  # fmt: skip
        t.save_event(child.id, "job_released", after=sorted({source for source, _ in links}))

    await ctx.store.change(change)


def _is_held(child: Job) -> bool:
    """Say whether a child waits for what its links bring."""
    return child.state == "posted" and not child.released


def _with_data(ctx: HasStore, spec: JobSpec, link: JobLink, source: Job, *, in_pod: bool) -> JobSpec:
    """Return a job with the outputs that a link brings among its inputs."""
    inside = link.from_ != source.name
    prefix = f"{link.from_}/" if inside else ""
    found = {
        name.removeprefix(prefix): output
        for name, output in outputs_of(ctx, source).items()
        if name.startswith(prefix) and link.output in ("", name.removeprefix(prefix))
    }
    if not found:
        raise UsageError(f"{link.from_} has no output {link.output or 'at all'} for {link.to}", code="no_output")
    whole = bool(link.path) and bool(link.output)
    inputs = tuple(
        InputSpec(to=link.path if whole else f"{link.path}/{name}".lstrip("/"), cid=output.cid, size=output.size)
        for name, output in found.items()
    )
    if in_pod:
        members = tuple(
            structs.replace(member, inputs=member.inputs + inputs) if member.name == link.to else member
            for member in spec.children
        )
        return structs.replace(spec, children=members)
    return structs.replace(spec, inputs=spec.inputs + inputs)


def outputs_of(ctx: HasStore, job: Job) -> dict[str, OutputFile]:
    """Return the outputs of a job by name; those of a group's children have the child's name before a slash."""
    if job.kind == "member":
        pod = find_job(ctx.store, job.parent)
        prefix = f"{job.name}/"
        return {k.removeprefix(prefix): v for k, v in outputs_of(ctx, pod).items() if k.startswith(prefix)}
    if job.kind == "group":
        found: dict[str, OutputFile] = {}
        for name, child_id in job.children.items():
            child = find_job(ctx.store, child_id)
            # a pod is no level of names of its own
            prefix = "" if child.members else f"{name}/"
            found |= {f"{prefix}{output}": file for output, file in outputs_of(ctx, child).items()}
        return found
    if job.kind == "replicas":
        replicas = [find_job(ctx.store, child_id) for child_id in job.children.values()]
        agreed = [replica for replica in replicas if replica.state == "settled"]
        return outputs_of(ctx, agreed[0]) if agreed else {}
    return {output.name: output for output in job.result.outputs} if job.result is not None else {}


def logs_of(ctx: HasStore, job: Job) -> dict[str, str]:
    """Return the logs of a job that are here and not empty: file name → content id; a folder for each child."""
    if job.kind == "group":
        return {
            f"{name}/{log_name}": cid
            for name, child in job.children.items()
            for log_name, cid in logs_of(ctx, find_job(ctx.store, child)).items()
        }
    result = job.result
    if result is None or not job.collected:
        return {}
    logs = {"stdout": (result.stdout_cid, result.stdout_size), "stderr": (result.stderr_cid, result.stderr_size)}
    return {name: cid for name, (cid, size) in logs.items() if size}


def _failure_of(child: Job) -> NunetError:
    if child.error is None:
        return JobFailedError(f"it is {child.state}", code=f"child_{child.state}")
    return JobFailedError(
        child.error.message or f"it is {child.state}", code=child.error.code or f"child_{child.state}"
    )


async def fail_group(ctx: Cancelling, job: Job, name: str, cause: NunetError) -> None:
    """Call off what has not ended, and fail the group.

    Raises:
        JobFailedError: always; it names the child, and has its exit code.
    """
    await cancel.cancel_children(ctx, job)
    error = JobFailedError(
        f"{name}: {cause.message}", code=cause.code, hint=f"see: nunet job show {job.children[name]}",
        details={"child": name, "job": job.children[name]},
    )  # fmt: skip
    error.exit_code = cause.exit_code
    event = {"child": name, "reason": cause.code, "message": cause.message}
    await ctx.store.change(lambda t: advance(t, job.id, "fail", by=REQUESTER, said=event, error=error_record(error)))
    raise error


async def _settle(ctx: HasStore, job_id: str) -> Job:
    def change(t: Transaction) -> Job:
        job = t[JOBS].one(job_id)
        if job.state == "settled":
            return job
        children = [t[JOBS].one(child_id) for child_id in job.children.values()]
        paid = total_paid(children)
        return advance(t, job_id, "settle", by=REQUESTER, said={"children": len(children), "paid": paid}, paid=paid)

    job = find_job(ctx.store, job_id)
    return job if job.state == "settled" else await ctx.store.change(change)


def total_paid(jobs: list[Job]) -> str:
    """Return what was paid for some jobs in all, in NTX."""
    return quantities.format_amount(sum(quantities.parse_amount(job.paid or "0") for job in jobs))


# -- recurring ---------------------------------------------------------------------------------------------------------


async def _run_recurring(ctx: HasStore, job_id: str, spec: JobSpec, run: Run) -> Job:
    """Run a job whenever its schedule says, as a new child each time; a time that was missed is made up once."""
    schedule = spec.schedule
    assert schedule is not None
    while True:
        job = find_job(ctx.store, job_id)
        done = len(job.children)
        open_ones = [child for child in job.children.values() if find_job(ctx.store, child).state not in JOB_ENDS]
        for child_id in open_ones:
            await _run_once(child_id, run)
        if schedule.count and done >= schedule.count:
            return await _settle(ctx, job_id)
        due = job.next_run or (quantities.utc_now() if schedule.every else next_run(schedule, quantities.utc_now()))
        if due != job.next_run:
            await ctx.store.change(partial(_note_next, job_id=job_id, due=due))
        wait = (quantities.parse_time(due) - quantities.now()).total_seconds()
        if wait > 0:
            await trio.sleep(min(wait, 3600))
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
    rows = job_rows(child_spec, job.requester, {"push": job.push, "topic": job.topic}, parent=job_id)
    for row in rows:
        put_job(t, row)
    due = next_run(spec.schedule, quantities.utc_now())
    change_job(t, job_id, children={**job.children, child_spec.name: rows[0].id}, next_run=due)
    t.save_event(job_id, "job_scheduled", next_run=due)
