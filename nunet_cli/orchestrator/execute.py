"""Stage 6, execution: the provider runs the job and signs the result; the requester follows and fetches the outputs."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import msgspec
import trio

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NotFoundError, NunetError, PeerError, RejectedMessageError, StateError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.tree import output_names
from nunet_cli.network.messenger import Answer, Incoming
from nunet_cli.orchestrator.context import Context, advance, plain, read
from nunet_cli.orchestrator.retry import may_retry
from nunet_cli.records.contracts import PROVIDER
from nunet_cli.records.documents import Document, require_signature
from nunet_cli.records.messages import JobCompleted, JobLogs, JobState, JobStatusUpdate, JobSync, LogChunk
from nunet_cli.records.results import Progress, Result, Usage
from nunet_cli.records.states import ALLOCATION_ENDS

log = logging.getLogger("nunet.execute")

LOG_PIECE = 256 * 1024
SILENT = "provider_silent"
LATE_RESULTS = "late_results"

# -- provider ----------------------------------------------------------------------------------------------------------


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
    end = trio.current_time() + body.wait
    while True:
        data, ended = await _read_log(ctx, contract["id"], body)
        if data or ended or trio.current_time() >= end:
            return "log_chunk", LogChunk(data, ended)
        await trio.sleep(min(0.1, body.wait))


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
    data = await ctx.blocking(_read_piece, path, body.offset)
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
    job = ctx.store.find("jobs", contract["job_id"])
    if job is None or job["contract_id"] != contract["id"] or job["state"] not in ("contracted", "invoked", "running"):
        return
    ctx.heard[contract["id"]] = trio.current_time()
    if body.state == "starting":
        if body.progress is not None and job["state"] in ("contracted", "invoked"):
            ctx.progress[contract["job_id"]] = body.progress
        return
    ctx.progress.pop(contract["job_id"], None)
    await _note_running(ctx, contract, body.allocation_id, plain(body.usage))


async def _note_running(ctx: Context, contract: dict[str, Any], allocation_id: str, usage: dict[str, Any]) -> None:
    job_id = contract["job_id"]

    def change(t: Transaction) -> None:
        job = t.find("jobs", job_id)
        if job is None or job["contract_id"] != contract["id"]:
            # the provider of an earlier attempt
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
    # the names become files of ours: nothing is taken that the job did not ask for
    unasked = {output.name for output in result.outputs} - set(output_names(decode_spec(contract["spec"])))
    if unasked:
        raise RejectedMessageError(
            f"the result has outputs that nobody asked for: {sorted(unasked)[0]!r}", code="wrong_result"
        )

    def change(t: Transaction) -> None:
        row = t.find("contracts", contract["id"])
        job = t.find("jobs", contract["job_id"])
        assert row is not None
        if row["result"] is None:
            t.put("contracts", {**row, "result": plain(document), "result_at": units.utc_now()})
        elif read(row, "result", Document).cid != document.cid:
            raise RejectedMessageError("the provider has signed another result already", code="second_result")
        mine = job is not None and job["contract_id"] == contract["id"]
        given_up = job is not None and mine and job["state"] == "failed" and (job["error"] or {}).get("code") == SILENT
        late = given_up and result.state == "completed"
        if job is not None and mine and (late or job["state"] in ("contracted", "invoked", "running")):
            if job["state"] == "contracted":
                advance(t, job["id"], "running", {"allocation_id": result.allocation_id})
            event = {"exit_code": result.exit_code, "reason": result.reason, "message": result.message, "late": late}
            usage = plain(result.usage)
            fields = {"result": plain(result), "usage": usage, "late": late, "error": None}
            advance(t, job["id"], "completed", {**event, "usage": usage}, **fields)
        elif result.state == "completed" and row["result"] is None:
            # the job goes on without it, or was called off; it will be paid, so it is fetched, too: see `closing`
            t.put(LATE_RESULTS, {"id": contract["id"]})

    await ctx.store.change(change)
    ctx.heard.pop(contract["id"], None)


async def follow(ctx: Context, job_id: str) -> dict[str, Any]:
    """Wait until a running job's result is here; ask the provider when it falls silent.

    Raises:
        StateError: the job does not run.
        PeerError: the provider is silent past the contract's deadline, or for `limits.silence` where the job may be
            tried with another one; code `provider_silent`.
    """
    beat = ctx.config.limits.heartbeat
    began, asked = trio.current_time(), -math.inf
    while True:
        changed = ctx.store.new_event
        job = ctx.job(job_id)
        if job["state"] not in ("invoked", "running", "contracted"):
            return job
        if job["state"] == "contracted" or not job["contract_id"]:
            raise StateError(f"job {job['id']} does not run: it is {job['state']}")
        contract = ctx.store.find("contracts", job["contract_id"])
        assert contract is not None
        silent = trio.current_time() - max(began, ctx.heard.get(contract["id"], began))
        overdue = contract["deadline"] <= units.utc_now()
        if not overdue and silent > ctx.config.limits.silence and may_retry(job):
            raise PeerError(f"the provider has been silent for {units.format_duration(silent)}", code=SILENT)
        if (overdue or silent > beat * 2) and trio.current_time() - asked > beat * 2:
            # also past the deadline: this node may have been away, and the result may wait for it
            await _sync_quietly(ctx, contract)
            asked = trio.current_time()
            continue
        if overdue:
            raise PeerError(
                "the provider is silent past the contract's deadline; the contract database gives the deposit back",
                code=SILENT,
            )
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
    ctx.heard[contract["id"]] = trio.current_time()
    if state.result is not None:
        await take_result(ctx, contract, state.result)
    elif state.state in ("starting", "running"):
        await _note_running(ctx, contract, state.allocation_id, plain(state.usage))
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
    total = await fetch_outputs(ctx, contract, result)

    def change(t: Transaction) -> dict[str, Any]:
        row = t.find("jobs", job["id"])
        assert row is not None
        row["collected"] = True
        t.put("jobs", row)
        t.save_event(job["id"], "outputs_received", count=len(result.outputs), bytes=total)
        return row

    return await ctx.store.change(change)


async def fetch_outputs(ctx: Context, contract: dict[str, Any], result: Result) -> int:
    """Fetch the outputs and logs of a result, each checked against its content id; return their bytes.

    Raises:
        PeerError: the provider does not give them.
        RejectedMessageError: it gave something else, or they are too large.
    """
    wanted = [(output.cid, output.size) for output in result.outputs]
    wanted += [(result.stdout_cid, result.stdout_size), (result.stderr_cid, result.stderr_size)]
    total = sum(size for _, size in wanted)
    if total > ctx.config.limits.output_size + 2 * ctx.config.limits.log_size:
        raise RejectedMessageError(f"the outputs have {total} bytes, over limits.output_size", code="outputs_too_large")
    job_id, arrived = contract["job_id"], 0
    try:
        for cid, size in wanted:
            if cid:
                await ctx.blobs.fetch(
                    contract["provider"], cid, size,
                    progress=lambda here, before=arrived: _note_arrived(ctx, job_id, before + here, total),  # type: ignore[misc]  # bound now
                )  # fmt: skip
            arrived += size
    finally:
        ctx.progress.pop(job_id, None)
    return total


def _note_arrived(ctx: Context, job_id: str, done: int, total: int) -> None:
    ctx.progress[job_id] = Progress("outputs", done, total)


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
        data = await ctx.blocking(_read_piece, ctx.blobs.path(cid), offset)
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
