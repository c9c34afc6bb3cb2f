"""Stage 6, execution: the provider runs the job and signs the result; the requester follows and fetches the outputs."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NotFoundError, NunetError, PeerError, RejectedMessageError, StateError
from nunet_cli.executor.base import Executor, ExecutorError, Exit, Task, make_scratch, output_file
from nunet_cli.jobs.job import OutputFile, Result, Usage
from nunet_cli.jobs.spec import JobSpec, decode_spec, output_name
from nunet_cli.jobs.states import ALLOCATION_ENDS, ALLOCATION_TRANSITIONS, check_transition
from nunet_cli.network.blobs import Blobs
from nunet_cli.network.documents import Document, make_document, require_signature
from nunet_cli.network.messenger import Answer, Incoming
from nunet_cli.orchestrator.context import Context, advance, plain, read
from nunet_cli.orchestrator.messages import JobCompleted, JobLogs, JobState, JobStatusUpdate, JobSync, LogChunk
from nunet_cli.tokenomics.contract import PROVIDER

log = logging.getLogger("nunet.execute")

LOG_PIECE = 256 * 1024
RESULT_LIFETIME = 14 * 86400
SILENCE_BEATS = 10
FETCH_TIMEOUT = 6 * 3600.0
JOB_FAULTS = {"no_workdir", "inputs_too_large"}

# -- provider ----------------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """An allocation that runs now: `cancelled` once the requester has called it off."""

    task: Task
    executor: Executor
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    cancelled: bool = False
    ended: trio.Event = field(default_factory=trio.Event)


def register(ctx: Context) -> None:
    """Take questions about running jobs, and what providers tell of ours."""

    async def on_sync(message: Incoming) -> Answer:
        return await _on_sync(ctx, message)

    async def on_logs(message: Incoming) -> Answer:
        return await _on_logs(ctx, message)

    async def on_update(message: Incoming) -> None:
        await _on_update(ctx, message)

    async def on_completed(message: Incoming) -> None:
        await _on_completed(ctx, message)

    ctx.messenger.register("job_sync", JobSync, on_sync, ephemeral=True)
    ctx.messenger.register("job_logs", JobLogs, on_logs, ephemeral=True)
    ctx.messenger.register("job_status_update", JobStatusUpdate, on_update, ephemeral=True)
    ctx.messenger.register("job_completed", JobCompleted, on_completed)
    ctx.messenger.register("job_error", JobCompleted, on_completed)
    ctx.messenger.register("job_state", JobState)
    ctx.messenger.register("log_chunk", LogChunk)


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
            await _run(ctx, running, row, spec, attached=attached)
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
            files[item.to] = await ctx.blobs.fetch(row["requester"], item.cid, item.size)
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


def contract_with(ctx: Context, contract_id: str, requester: str) -> dict[str, Any]:
    """Return this provider's contract with a requester.

    Raises:
        NotFoundError: there is none.
    """
    row = ctx.store.find("contracts", contract_id)
    if row is None or row["role"] != "provider" or row["requester"] != requester:
        raise NotFoundError(f"no contract {contract_id} with you here", code="no_contract")
    return row


async def _on_sync(ctx: Context, message: Incoming) -> Answer:
    contract = contract_with(ctx, message.body.contract_id, message.sender)
    allocation = ctx.store.find("allocations", contract["id"], "contract_id")
    result = read(contract, "result", Document) if contract["result"] else None
    if allocation is None:
        return "job_state", JobState(contract["id"], "", "none", Usage(), result)
    usage = msgspec.convert(allocation["usage"], Usage) if allocation["usage"] else Usage()
    return "job_state", JobState(contract["id"], allocation["id"], allocation["state"], usage, result)


async def _on_logs(ctx: Context, message: Incoming) -> Answer:
    body: JobLogs = message.body
    contract = contract_with(ctx, body.contract_id, message.sender)
    with trio.move_on_after(body.wait):
        while True:
            data, ended = await _read_log(ctx, contract["id"], body)
            if data or ended:
                return "log_chunk", LogChunk(data, ended)
            await trio.sleep(0.1)
    return "log_chunk", LogChunk(b"", False)


async def _read_log(ctx: Context, contract_id: str, body: JobLogs) -> tuple[bytes, bool]:
    allocation = ctx.store.find("allocations", contract_id, "contract_id")
    if allocation is None:
        return b"", False
    path, ended = ctx.home / "allocations" / allocation["id"] / body.stream, False
    if allocation["state"] in ALLOCATION_ENDS:
        contract = ctx.store.find("contracts", contract_id)
        assert contract is not None
        result = read(contract, "result", Document).read(Result)
        cid = result.stdout_cid if body.stream == "stdout" else result.stderr_cid
        if not cid:
            return b"", True
        path, ended = ctx.blobs.path(cid), True
    data = await trio.to_thread.run_sync(_read_piece, path, body.offset)
    return data, ended and len(data) < LOG_PIECE


def _read_piece(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(LOG_PIECE)
    except OSError:
        return b""


# -- requester ---------------------------------------------------------------------------------------------------------


async def _on_update(ctx: Context, message: Incoming) -> None:
    body: JobStatusUpdate = message.body
    contract = ctx.store.find("contracts", body.contract_id)
    if contract is None or contract["role"] != "requester" or contract["provider"] != message.sender:
        raise NotFoundError("no such contract with you here", code="no_contract")
    await _note_running(ctx, contract["job_id"], body.allocation_id, plain(body.usage))


async def _note_running(ctx: Context, job_id: str, allocation_id: str, usage: dict[str, Any]) -> None:
    def change(t: Transaction) -> None:
        job = t.find("jobs", job_id)
        if job is None:
            return
        if job["state"] in ("contracted", "invoked"):
            advance(t, job_id, "running", {"allocation_id": allocation_id}, allocation_id=allocation_id)
        elif job["state"] == "running":
            t.put("jobs", {**job, "usage": usage, "heard_at": units.utc_now()})

    await ctx.store.change(change)


async def _on_completed(ctx: Context, message: Incoming) -> None:
    body: JobCompleted = message.body
    contract = ctx.store.find("contracts", body.contract_id)
    if contract is None or contract["role"] != "requester" or contract["provider"] != message.sender:
        raise NotFoundError("no such contract with you here", code="no_contract")
    await take_result(ctx, contract, body.result)


async def take_result(ctx: Context, contract: dict[str, Any], document: Document) -> None:
    """Check a provider's signed result and keep it; the job is completed then, whatever the result says.

    Raises:
        RejectedMessageError: not signed by the provider, or for another contract.
    """
    require_signature(document, contract["provider"], PROVIDER, "result")
    result = document.read(Result)
    if result.contract_id != contract["id"] or result.job_id != contract["job_id"]:
        raise RejectedMessageError("the result belongs to another contract", code="wrong_result")

    def change(t: Transaction) -> None:
        row = t.find("contracts", contract["id"])
        job = t.find("jobs", contract["job_id"])
        assert row is not None
        if row["result"] is None:
            t.put("contracts", {**row, "result": plain(document)})
            t.put("results", {"id": document.cid, "job_id": contract["job_id"], "document": plain(document)})
        if (
            job is not None
            and job["contract_id"] == contract["id"]
            and job["state"] in ("contracted", "invoked", "running")
        ):
            if job["state"] == "contracted":
                advance(t, job["id"], "running", {"allocation_id": result.allocation_id})
            event = {"exit_code": result.exit_code, "reason": result.reason, "message": result.message}
            usage = plain(result.usage)
            advance(t, job["id"], "completed", {**event, "usage": usage}, result=plain(result), usage=usage)

    await ctx.store.change(change)


async def follow(ctx: Context, job_id: str) -> dict[str, Any]:
    """Wait until a running job's result is here; ask the provider when it falls silent.

    Raises:
        StateError: the job does not run.
        PeerError: the provider is silent past the contract's deadline.
    """
    beat = ctx.config.limits.heartbeat
    asked = 0.0
    while True:
        changed = ctx.store.new_event
        job = ctx.job(job_id)
        if job["state"] not in ("invoked", "running", "contracted"):
            return job
        if job["state"] == "contracted" or not job["contract_id"]:
            raise StateError(f"job {job['id']} does not run: it is {job['state']}")
        contract = ctx.store.find("contracts", job["contract_id"])
        assert contract is not None
        if contract["deadline"] <= units.utc_now():
            raise PeerError(
                "the provider is silent past the contract's deadline; the contract database gives the deposit back",
                code="provider_silent",
            )
        heard = units.parse_time(job.get("heard_at") or job["changed_at"])
        silent = (units.now() - heard).total_seconds()
        if silent > beat * 2 and trio.current_time() - asked > beat * 2:
            asked = trio.current_time()
            await _sync_quietly(ctx, contract)
        with trio.move_on_after(beat):
            await changed.wait()


async def _sync_quietly(ctx: Context, contract: dict[str, Any]) -> None:
    try:
        await job_sync(ctx, contract)
    except NunetError as error:
        log.info("asking about %s: %s", contract["job_id"], error)


async def job_sync(ctx: Context, contract: dict[str, Any]) -> JobState:
    """Ask the provider what was missed about a contract, and take the result if there is one."""
    answer = await ctx.messenger.request(
        contract["provider"], "job_sync", JobSync(contract["id"]), timeout=ctx.config.limits.answer_timeout
    )
    state = answer.body
    if not isinstance(state, JobState) or state.contract_id != contract["id"]:
        raise PeerError("the provider answered something else", code="bad_answer")
    if state.result is not None:
        await take_result(ctx, contract, state.result)
    elif state.state in ("starting", "running"):
        await _note_running(ctx, contract["job_id"], state.allocation_id, plain(state.usage))
    return state


async def collect_outputs(ctx: Context, job_id: str) -> dict[str, Any]:
    """Fetch the outputs and logs of a job that ended, each checked against its content id; return the job.

    Raises:
        PeerError: the provider does not give them.
        RejectedMessageError: it gave something else.
    """
    job = ctx.job(job_id)
    if not job.get("result") or job.get("collected"):
        return job
    contract = ctx.store.find("contracts", job["contract_id"])
    assert contract is not None
    result = msgspec.convert(job["result"], Result)
    wanted = [(output.cid, output.size) for output in result.outputs]
    wanted += [(result.stdout_cid, result.stdout_size), (result.stderr_cid, result.stderr_size)]
    total = sum(size for _, size in wanted)
    if total > ctx.config.limits.output_size + 2 * ctx.config.limits.log_size:
        raise RejectedMessageError(f"the outputs have {total} bytes, over limits.output_size", code="outputs_too_large")
    for cid, size in wanted:
        if cid:
            await ctx.blobs.fetch(contract["provider"], cid, size)

    def change(t: Transaction) -> dict[str, Any]:
        row = t.find("jobs", job["id"])
        assert row is not None
        row["collected"] = True
        t.put("jobs", row)
        t.save_event(job["id"], "outputs_received", count=len(result.outputs), bytes=total)
        return row

    return await ctx.store.change(change)


async def read_logs(ctx: Context, job: dict[str, Any], stream: str, offset: int, wait: float) -> tuple[bytes, bool]:
    """Return output of a job from an offset on, and whether that is all: from here, or from the provider.

    Raises:
        StateError: the job has not been started.
        PeerError: the provider does not answer.
    """
    if job.get("result") and job.get("collected"):
        cid = job["result"][f"{stream}_cid"]
        if not cid:
            return b"", True
        data = await trio.to_thread.run_sync(_read_piece, ctx.blobs.path(cid), offset)
        return data, len(data) < LOG_PIECE
    contract = ctx.store.find("contracts", job["contract_id"]) if job["contract_id"] else None
    if contract is None or contract["state"] in ("proposed", "refused"):
        raise StateError(f"job {job['id']} is {job['state']}: it has no logs yet")
    answer = await ctx.messenger.request(
        contract["provider"], "job_logs",
        JobLogs(contract["id"], stream, offset, wait),  # type: ignore[arg-type]  # the API checked the stream's name
        timeout=ctx.config.limits.answer_timeout + wait,
    )  # fmt: skip
    chunk = answer.body
    if not isinstance(chunk, LogChunk):
        raise PeerError("the provider answered something else", code="bad_answer")
    return chunk.data, chunk.ended
