"""Stage 6, the provider's machine: one allocation from its inputs to its signed result.

The messages of the stage, and the requester's half, are in `execute`.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError
from nunet_cli.executor.base import Executor, ExecutorError, Exit, Task, make_scratch, output_file
from nunet_cli.jobs.job import OutputFile, Result, Usage
from nunet_cli.jobs.spec import JobSpec, decode_spec, output_name
from nunet_cli.jobs.states import ALLOCATION_ENDS, ALLOCATION_TRANSITIONS, check_transition
from nunet_cli.network.blobs import Blobs
from nunet_cli.network.documents import Document, make_document
from nunet_cli.orchestrator.context import Context, plain
from nunet_cli.orchestrator.messages import JobCompleted, JobStatusUpdate
from nunet_cli.tokenomics.contract import PROVIDER

log = logging.getLogger("nunet.allocation")

RESULT_LIFETIME = 14 * 86400
FETCH_TIMEOUT = 6 * 3600.0
JOB_FAULTS = {"no_workdir", "inputs_too_large"}


@dataclass
class Running:
    """An allocation that runs now: `cancelled` once the requester has called it off."""

    task: Task
    executor: Executor
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    cancelled: bool = False
    ended: trio.Event = field(default_factory=trio.Event)


async def run_allocation(ctx: Context, allocation_id: str, *, attached: bool = False) -> None:
    """Run one allocation to its end, and tell the requester; nothing that happens in it reaches the node.

    Args:
        ctx: the node's parts.
        allocation_id: the allocation.
        attached: the job was started by an earlier run of the node and still runs.
    """
    row = ctx.store.find("allocations", allocation_id)
    assert row is not None
    contract = ctx.store.find("contracts", row["contract_id"])
    assert contract is not None
    spec = decode_spec(contract["spec"])
    task = _task(ctx, row, spec)
    running = ctx.running[allocation_id] = Running(task, ctx.executors[spec.executor.type])
    try:
        with running.scope:
            try:
                await _run(ctx, running, row, spec, attached=attached)
            except Exception as error:
                # an engine that goes away, a full disk: the requester is told, and the node goes on
                log.exception("allocation %s failed", row["id"])
                with trio.CancelScope(shield=True):
                    await _end_broken(ctx, running, row, error)
        if running.cancelled:
            with trio.CancelScope(shield=True):
                await _end_cancelled(ctx, running, row)
    except trio.Cancelled:
        # the node stops: a process goes with it, a container stays and is found again
        if task.spec.type == "process":
            with trio.move_on_after(10) as patience:
                patience.shield = True
                await running.executor.stop(task, row["handle"])
        raise
    finally:
        ctx.running.pop(allocation_id, None)
        running.ended.set()


def _task(ctx: Context, row: dict[str, Any], spec: JobSpec) -> Task:
    process = ctx.config.executor.process
    trusted = row["requester"] == ctx.identity.did or row["requester"] in process.trusted
    # whoever may run without a sandbox still gets one where there is one
    bare = (trusted or process.foreign == "unsandboxed") and not _has_sandbox(ctx)
    return Task(
        allocation_id=row["id"], spec=spec.executor, resources=spec.resources, max_duration=spec.time.max_duration,
        max_log=ctx.config.limits.log_size, folder=ctx.home / "allocations" / row["id"],
        inputs=tuple(item.to for item in spec.inputs), sandbox=not bare,
        labels={"org.nunet.node": ctx.identity.did, "org.nunet.job": row["job_id"]},
    )  # fmt: skip


def _has_sandbox(ctx: Context) -> bool:
    return ctx.available_executors.get("process", "").startswith("bubblewrap")


async def _run(ctx: Context, running: Running, row: dict[str, Any], spec: JobSpec, *, attached: bool) -> None:
    task, executor = running.task, running.executor
    started_at = row["started_at"] or units.utc_now()
    try:
        if not attached:
            await set_allocation(ctx, row["id"], "starting")
            await _prepare(ctx, running, row, spec)
            handle = await executor.start(task)
            started_at = units.utc_now()
            await set_allocation(ctx, row["id"], "running", handle=handle, started_at=started_at)
            row["handle"] = handle
    except (NunetError, trio.TooSlowError, OSError) as error:
        log.warning("allocation %s could not start: %s", row["id"], error)
        code = error.code if isinstance(error, NunetError) else "executor_error"
        fault = "job" if code in JOB_FAULTS else "provider"
        await _finish(ctx, running, row, _failure(row, started_at, code, str(error), fault=fault))
        return
    exit_ = await _wait(ctx, running, row, started_at)
    if running.cancelled:
        return
    with trio.CancelScope(shield=True):
        result = await _result(ctx, running, row, spec, exit_, started_at)
        await _finish(ctx, running, row, result)


async def _prepare(ctx: Context, running: Running, row: dict[str, Any], spec: JobSpec) -> None:
    total = sum(item.size for item in spec.inputs)
    if total > min(ctx.config.limits.input_size, max(spec.resources.disk, 2**20)):
        raise ExecutorError(f"the inputs have {total} bytes, more than the job's disk", code="inputs_too_large")
    files: dict[str, Path] = {}
    with trio.fail_after(FETCH_TIMEOUT):
        for item in spec.inputs:
            files[item.to] = await ctx.blobs.fetch(
                row["requester"], item.cid, item.size, patience=ctx.config.limits.input_patience
            )
    if files:
        await ctx.store.save_event(row["job_id"], "inputs_received", count=len(files), bytes=total)
    await running.executor.prepare(running.task)
    await trio.to_thread.run_sync(make_scratch, running.task, files)


async def _wait(ctx: Context, running: Running, row: dict[str, Any], started_at: str) -> Exit:
    """Wait for the job with its wall-time limit, sending heartbeats; return how it ended."""
    used = (units.now() - units.parse_time(started_at)).total_seconds()
    left = max(0.0, running.task.max_duration - used)
    ended: list[Exit] = []
    overdue = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_beat, ctx, running, row)

        async def wait() -> None:
            ended.append(await running.executor.wait(running.task, row["handle"]))

        async with trio.open_nursery() as waiter:
            waiter.start_soon(wait)
            with trio.move_on_after(left) as limit:
                while not ended:
                    await trio.sleep(0.02)
            if limit.cancelled_caught and not ended:
                overdue = True
                await running.executor.stop(running.task, row["handle"])
        nursery.cancel_scope.cancel()
    exit_ = ended[0]
    return Exit(exit_.exit_code, exit_.usage, "max_duration") if overdue else exit_


async def _beat(ctx: Context, running: Running, row: dict[str, Any]) -> None:
    while True:
        with suppress(NunetError, trio.TooSlowError):
            await job_update(ctx, running, row)
        await trio.sleep(ctx.config.limits.heartbeat)


async def job_update(ctx: Context, running: Running, row: dict[str, Any]) -> JobStatusUpdate:
    """Send a sign of life with what is used so far (seed 6: `executor.jobUpdate`), and return it."""
    usage = await running.executor.usage(running.task, row["handle"])
    update = JobStatusUpdate(row["contract_id"], row["id"], "running", usage, units.utc_now())
    await ctx.messenger.tell(row["requester"], "job_status_update", update)
    return update


_REASONS = {
    "out_of_memory": "the job used more memory than it asked for",
    "disk_full": "the job wrote more than its disk",
    "too_many_processes": "the job started too many processes",
    "max_duration": "the job ran longer than its max_duration",
    "missing_output": "the job did not write its outputs",
}


async def _result(
    ctx: Context, running: Running, row: dict[str, Any], spec: JobSpec, exit_: Exit, started_at: str
) -> Result:
    """Take the outputs and logs in as blobs and return the result; shielded, as the job has ended."""
    task = running.task
    outputs, missing, total = [], [], 0
    for item in spec.outputs:
        file = output_file(task, item.path)
        size = file.stat().st_size if file is not None else 0
        if file is None or total + size > ctx.config.limits.output_size:
            missing.append(item.path)
            continue
        total += size
        cid, size = await ctx.blobs.add_file(file)
        outputs.append(OutputFile(output_name(item), cid, size))
    stdout_cid, stdout_size = await ctx.blobs.add_file(task.stdout)
    stderr_cid, stderr_size = await ctx.blobs.add_file(task.stderr)
    reason, message = exit_.reason, _REASONS.get(exit_.reason, "")
    if not reason and exit_.exit_code != 0:
        reason, message = "exit_code", f"the job exited with {exit_.exit_code}"
    elif not reason and missing:
        reason, message = "missing_output", f"the job did not write {', '.join(missing)}"
    return Result(
        job_id=row["job_id"], contract_id=row["contract_id"], allocation_id=row["id"],
        state="failed" if reason else "completed", exit_code=exit_.exit_code, started_at=started_at,
        ended_at=units.utc_now(), usage=exit_.usage, outputs=tuple(outputs), stdout_cid=stdout_cid,
        stdout_size=stdout_size, stderr_cid=stderr_cid, stderr_size=stderr_size, reason=reason, message=message,
        fault="job" if reason else "",
    )  # fmt: skip


def _failure(
    row: dict[str, Any], started_at: str, reason: str, message: str, *, fault: Any, state: Any = "failed"
) -> Result:
    return Result(
        job_id=row["job_id"], contract_id=row["contract_id"], allocation_id=row["id"], state=state, exit_code=None,
        started_at=started_at or units.utc_now(), ended_at=units.utc_now(), reason=reason, message=message[:4000],
        fault=fault,
    )  # fmt: skip


async def _end_broken(ctx: Context, running: Running, row: dict[str, Any], error: Exception) -> None:
    with suppress(NunetError, trio.TooSlowError):
        if row["handle"]:
            await running.executor.stop(running.task, row["handle"])
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    message = f"the provider could not go on: {error}"
    try:
        await _finish(ctx, running, row, _failure(row, row["started_at"], "provider_error", message, fault="provider"))
    except Exception:
        # found again, and reported, when the node starts the next time
        log.exception("the end of allocation %s could not be recorded", row["id"])


async def _end_cancelled(ctx: Context, running: Running, row: dict[str, Any]) -> None:
    usage = Usage()
    started_at = row["started_at"] or units.utc_now()
    if row["handle"]:
        usage = await running.executor.usage(running.task, row["handle"])
        await running.executor.stop(running.task, row["handle"])
    result = _failure(row, started_at, "cancelled", "called off by the requester", fault="", state="cancelled")
    await _finish(ctx, running, row, msgspec.structs.replace(result, usage=usage))


async def _finish(ctx: Context, running: Running, row: dict[str, Any], result: Result) -> None:
    """Sign the result; keep it, free the capability and queue the news in one change; then clean up."""
    await finish_allocation(ctx, row, result)
    try:
        if row["handle"]:
            await running.executor.cleanup(running.task, row["handle"])
        await trio.to_thread.run_sync(lambda: shutil.rmtree(running.task.folder, ignore_errors=True))
    except (NunetError, trio.TooSlowError) as error:
        log.warning("cleaning up after %s: %s", row["id"], error)


async def finish_allocation(ctx: Context, row: dict[str, Any], result: Result) -> Document:
    """Record the end of an allocation with its signed result, and queue the message to the requester."""
    document = make_document(result).sign(ctx.identity, PROVIDER)
    type_ = "job_completed" if result.state == "completed" else "job_error"
    message = ctx.messenger.outbox_row(
        row["requester"], type_, JobCompleted(row["contract_id"], document), lifetime=RESULT_LIFETIME
    )

    def change(t: Transaction) -> None:
        current = t.find("allocations", row["id"])
        contract = t.find("contracts", row["contract_id"])
        assert current is not None
        assert contract is not None
        if current["state"] in ALLOCATION_ENDS:
            return
        check_transition(ALLOCATION_TRANSITIONS, current["state"], result.state, f"allocation {row['id']}")
        current.update(state=result.state, ended_at=result.ended_at, error=result.message, usage=plain(result.usage))
        t.put("allocations", current)
        t.put("contracts", {**contract, "result": plain(document)})
        t.put("results", {"id": document.cid, "job_id": row["job_id"], "document": plain(document)})
        ctx.accounting.release(t, row["id"])
        for cid in (result.stdout_cid, result.stderr_cid, *(output.cid for output in result.outputs)):
            if cid:
                Blobs.grant(t, cid, row["requester"])
        ctx.messenger.enqueue(t, message)
        t.save_event(
            row["job_id"], f"allocation_{result.state}", allocation_id=row["id"], exit_code=result.exit_code,
            reason=result.reason,
        )  # fmt: skip

    await ctx.store.change(change)
    ctx.messenger.wake()
    return document


async def set_allocation(ctx: Context, allocation_id: str, state: str, **fields: Any) -> dict[str, Any]:
    """Put an allocation into a state, with its event."""

    def change(t: Transaction) -> dict[str, Any]:
        row = t.find("allocations", allocation_id)
        assert row is not None
        check_transition(ALLOCATION_TRANSITIONS, row["state"], state, f"allocation {allocation_id}")
        row.update(fields, state=state)
        t.put("allocations", row)
        t.save_event(row["job_id"], f"allocation_{state}", allocation_id=allocation_id)
        return row

    return await ctx.store.change(change)


def nothing_done(ctx: Context, contract: dict[str, Any]) -> Document:
    """Return the signed result of a contract that was called off before its invocation."""
    row = {"job_id": contract["job_id"], "contract_id": contract["id"], "id": ""}
    result = _failure(row, "", "cancelled", "called off before it was started", fault="", state="cancelled")
    return make_document(result).sign(ctx.identity, PROVIDER)


async def recover_allocations(ctx: Context) -> None:
    """After a restart: go on with what still runs, start what never did, and report what was lost."""
    for row in ctx.store.table("allocations").all():
        if row["state"] in ALLOCATION_ENDS:
            continue
        contract = ctx.store.find("contracts", row["contract_id"])
        assert contract is not None
        if row["state"] == "created":
            ctx.nursery.start_soon(run_allocation, ctx, row["id"])
            continue
        task = _task(ctx, row, decode_spec(contract["spec"]))
        try:
            alive = bool(row["handle"]) and await ctx.executors[row["executor"]].attach(task, row["handle"])
        except (NunetError, trio.TooSlowError) as error:
            log.warning("allocation %s cannot be looked for: %s", row["id"], error)
            alive = False
        if alive:
            await ctx.store.save_event(row["job_id"], "allocation_attached", allocation_id=row["id"])
            ctx.nursery.start_soon(_run_attached, ctx, row["id"])
        else:
            message = "the provider was restarted while the job ran"
            result = _failure(row, row["started_at"], "provider_restarted", message, fault="provider")
            await finish_allocation(ctx, dict(row), result)
            await trio.to_thread.run_sync(lambda folder=task.folder: shutil.rmtree(folder, ignore_errors=True))  # type: ignore[misc]  # the default binds the loop's value


async def _run_attached(ctx: Context, allocation_id: str) -> None:
    await run_allocation(ctx, allocation_id, attached=True)
