"""Jobs with children: each goes through the stages once what it is linked to is done (seed 1: `JobLink`, `Pod`)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import trio
from msgspec import structs

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import JobFailedError, NunetError, UsageError
from nunet_cli.jobs.check import check_spec, decode_spec, next_run
from nunet_cli.jobs.spec import InputSpec, JobLink, JobSpec, encode_spec
from nunet_cli.jobs.tree import Arrangement, arrange
from nunet_cli.orchestrator import cancel
from nunet_cli.orchestrator.context import Context, advance, error_fields
from nunet_cli.orchestrator.patience import while_full
from nunet_cli.orchestrator.post import job_rows, put_job
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.results import OutputFile, Result
from nunet_cli.records.states import JOB_ENDS

log = logging.getLogger("nunet.group")

Run = Callable[[Context, str], Awaitable[dict[str, Any]]]
PLACED = frozenset({"contracted", "invoked", "running", "completed", "verified", "settled"})


async def run_group(ctx: Context, job_id: str, run: Run) -> dict[str, Any]:
    """Take every child of a group through its stages, in the order of their links; return the group.

    Args:
        ctx: the node's parts.
        job_id: the group.
        run: takes one job through all stages.

    Raises:
        JobFailedError: a child failed: what had not ended is called off, and the group has failed.
    """
    job = await _begin(ctx, job_id)
    spec = decode_spec(job["spec"])
    if spec.type == "recurring":
        return await _run_recurring(ctx, job_id, spec, run)
    arranged = Arrangement({}, (), {}) if spec.type == "batch" else arrange(spec)
    at_once = spec.batch.parallel if spec.batch is not None and spec.batch.parallel else max(1, len(job["units"]))
    places = trio.Semaphore(at_once)
    failures: list[tuple[str, NunetError]] = []
    async with trio.open_nursery() as nursery:

        async def go_through(name: str, child_id: str) -> dict[str, Any]:
            await _wait_for_links(ctx, job, arranged, name)
            async with places:
                await _release(ctx, job, arranged, name)
                return await run(ctx, child_id)

        async def take(name: str, child_id: str) -> None:
            try:
                child = await while_full(ctx, child_id, partial(go_through, name, child_id))
                if child["state"] != "settled":
                    raise _failure_of(child)
            except NunetError as error:
                failures.append((name, error))
                nursery.cancel_scope.cancel()

        for name, child_id in job["units"].items():
            nursery.start_soon(take, name, child_id)
    if failures:
        await fail_group(ctx, job, *failures[0])
    return await _settle(ctx, job_id)


async def _begin(ctx: Context, job_id: str) -> dict[str, Any]:
    job = ctx.job(job_id)
    if job["state"] != "posted":
        return job
    event = {"children": len(job["units"])}
    return await ctx.store.change(lambda t: advance(t, job_id, "running", event))


async def _wait_for_links(ctx: Context, job: dict[str, Any], arranged: Arrangement, name: str) -> None:
    """Wait until what a child is linked to is settled, or for `colocate`, has a provider."""
    links = arranged.before(name) if arranged.units else []
    while True:
        changed = ctx.store.new_event
        # one that fails ends the whole group, and this wait with it
        waiting = []
        for source, link in links:
            state = ctx.job(job["units"][source])["state"]
            if state not in (PLACED if link.kind == "colocate" else {"settled"}):
                waiting.append(source)
        if not waiting:
            return
        with trio.move_on_after(5):
            await changed.wait()


async def _release(ctx: Context, job: dict[str, Any], arranged: Arrangement, name: str) -> None:
    """Give a child what its links bring: the data as inputs, the provider to run at, the constraints on its bids."""
    child = ctx.job(job["units"][name])
    links = arranged.before(name) if arranged.units else []
    if child["state"] != "posted" or not links or child.get("released"):
        return
    spec, push, rules = decode_spec(child["spec"]), child["push"], []
    for source, link in links:
        other = ctx.job(job["units"][source])
        if link.kind == "data":
            spec = _with_data(ctx, spec, link, other, in_pod=spec.pod)
        if link.kind == "colocate":
            contract = ctx.store.find("contracts", other["contract_id"])
            push = contract["provider"] if contract is not None else push
        if link.constraint:
            rules.append({"constraint": link.constraint, "bid_id": other["bid_id"], "from": link.from_})
    check_spec(spec)
    text = encode_spec(spec)

    def change(t: Transaction) -> None:
        row = t.find("jobs", child["id"])
        assert row is not None
        fields = {"spec": text.decode(), "spec_cid": content_id(text), "push": push, "link_rules": rules}
        t.put("jobs", {**row, **fields, "released": True})
        t.save_event(child["id"], "job_released", after=sorted({source for source, _ in links}))

    await ctx.store.change(change)


def _with_data(ctx: Context, spec: JobSpec, link: JobLink, source: dict[str, Any], *, in_pod: bool) -> JobSpec:
    """Return a job with the outputs that a link brings among its inputs."""
    inside = link.from_ != source["name"]
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


def outputs_of(ctx: Context, job: dict[str, Any]) -> dict[str, OutputFile]:
    """Return the outputs of a job by name; those of a group's children have the child's name before a slash."""
    if job["kind"] == "member":
        pod = ctx.job(job["parent"])
        prefix = f"{job['name']}/"
        return {k.removeprefix(prefix): v for k, v in outputs_of(ctx, pod).items() if k.startswith(prefix)}
    if job["kind"] == "group":
        below = {name: outputs_of(ctx, ctx.job(child)) for name, child in job["units"].items()}
        return {
            # a pod is no level of names of its own
            (output if ctx.job(job["units"][unit])["members"] else f"{unit}/{output}"): file
            for unit, files in below.items()
            for output, file in files.items()
        }
    if job["kind"] == "replicas":
        agreed = [ctx.job(child) for child in job["units"].values() if ctx.job(child)["state"] == "settled"]
        return outputs_of(ctx, agreed[0]) if agreed else {}
    if not job.get("result"):
        return {}
    return {output.name: output for output in msgspec.convert(job["result"], Result).outputs}


def logs_of(ctx: Context, job: dict[str, Any]) -> dict[str, str]:
    """Return the logs of a job that are here and not empty: file name → content id; a folder for each child."""
    if job["kind"] == "group":
        return {
            f"{name}/{log_name}": cid
            for name, child in job["units"].items()
            for log_name, cid in logs_of(ctx, ctx.job(child)).items()
        }
    result = job.get("result")
    if not result or not job.get("collected"):
        return {}
    return {name: result[f"{name}_cid"] for name in ("stdout", "stderr") if result[f"{name}_size"]}


def _failure_of(child: dict[str, Any]) -> NunetError:
    error = child.get("error") or {}
    return JobFailedError(
        error.get("message") or f"it is {child['state']}", code=error.get("code") or f"child_{child['state']}"
    )


async def fail_group(ctx: Context, job: dict[str, Any], name: str, cause: NunetError) -> None:
    """Call off what has not ended, and fail the group.

    Raises:
        JobFailedError: always; it names the child, and has its exit code.
    """
    await cancel.cancel_children(ctx, job)
    error = JobFailedError(
        f"{name}: {cause.message}", code=cause.code, hint=f"see: nunet job show {job['units'][name]}",
        details={"child": name, "job": job["units"][name]},
    )  # fmt: skip
    error.exit_code = cause.exit_code
    event = {"child": name, "reason": cause.code, "message": cause.message}
    await ctx.store.change(lambda t: advance(t, job["id"], "failed", event, error=error_fields(error)))
    raise error


async def _settle(ctx: Context, job_id: str) -> dict[str, Any]:
    job = ctx.job(job_id)
    if job["state"] == "settled":
        return job
    children = [ctx.job(child_id) for child_id in job["units"].values()]
    paid = units.format_amount(sum(units.parse_amount(child.get("paid") or "0") for child in children))
    event = {"children": len(children), "paid": paid}
    return await ctx.store.change(lambda t: advance(t, job_id, "settled", event, paid=paid))


# -- recurring ---------------------------------------------------------------------------------------------------------


async def _run_recurring(ctx: Context, job_id: str, spec: JobSpec, run: Run) -> dict[str, Any]:
    """Run a job whenever its schedule says, as a new child each time; a time that was missed is made up once."""
    schedule = spec.schedule
    assert schedule is not None
    while True:
        job = ctx.job(job_id)
        done = len(job["units"])
        open_ones = [child for child in job["units"].values() if ctx.job(child)["state"] not in JOB_ENDS]
        for child_id in open_ones:
            await _run_once(ctx, child_id, run)
        if schedule.count and done >= schedule.count:
            return await _settle(ctx, job_id)
        due = job.get("next_run") or (units.utc_now() if schedule.every else next_run(schedule, units.utc_now()))
        if due != job.get("next_run"):
            await ctx.store.change(partial(_note_next, job_id=job_id, due=due))
        wait = (units.parse_time(due) - units.now()).total_seconds()
        if wait > 0:
            await trio.sleep(min(wait, 3600))
            continue
        await ctx.store.change(partial(_add_run, job=job, spec=spec, number=done))


async def _run_once(ctx: Context, child_id: str, run: Run) -> None:
    try:
        await run(ctx, child_id)
    except NunetError as error:
        # one time that fails does not end the schedule
        log.info("a run of a recurring job failed: %s: %s", child_id, error)


def _note_next(t: Transaction, job_id: str, due: str) -> None:
    row = t.find("jobs", job_id)
    assert row is not None
    t.put("jobs", {**row, "next_run": due})
    t.save_event(job_id, "job_scheduled", next_run=due)


def _add_run(t: Transaction, job: dict[str, Any], spec: JobSpec, number: int) -> None:
    assert spec.schedule is not None
    child_spec = structs.replace(spec, type="task", schedule=None, name=f"{spec.name[:90]}-{number}")
    rows = job_rows(child_spec, job["requester"], {"push": job["push"], "topic": job["topic"]}, parent=job["id"])
    for row in rows:
        put_job(t, row)
    current = t.find("jobs", job["id"])
    assert current is not None
    due = next_run(spec.schedule, units.utc_now())
    t.put("jobs", {**current, "units": {**current["units"], child_spec.name: rows[0]["id"]}, "next_run": due})
    t.save_event(job["id"], "job_scheduled", next_run=due)
