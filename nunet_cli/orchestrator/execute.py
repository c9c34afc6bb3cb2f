"""Stage 6, execution: the provider runs the job and signs the result; the requester follows, and takes the result.

The outputs are fetched in `outputs`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Protocol

import msgspec
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import LOGS_GONE, NotFoundError, NunetError, PeerError, RejectedMessageError, StateError
from nunet_cli.executor.files import allocation_folder
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.tree import loose_names, output_names
from nunet_cli.network.messenger import Answer, Change, Incoming
from nunet_cli.network.waiting import short
from nunet_cli.orchestrator.changes import advance, change_job, find_job, let_go
from nunet_cli.orchestrator.logs import LOG_PIECE, read_piece
from nunet_cli.orchestrator.needs import (
    Dealing,
    HasBlobs,
    HasClosings,
    HasHeard,
    HasHome,
    HasMessenger,
    HasProgress,
    HasStanding,
    HasStore,
    HasThreads,
    TakesCompletions,
)
from nunet_cli.orchestrator.retry import may_retry
from nunet_cli.records.allocations import ALLOCATION_ENDS, ALLOCATIONS
from nunet_cli.records.contract_records import CONTRACTS, LATE_RESULTS, ContractRecord, LateResult
from nunet_cli.records.contracts import PROVIDER, REQUESTER
from nunet_cli.records.documents import Document, require_signature
from nunet_cli.records.identifiers import key_from_did, peer_id_from_key
from nunet_cli.records.jobs import JOBS, SILENT, Job, Waiting
from nunet_cli.records.messages import JobCompleted, JobLogs, JobState, JobStatusUpdate, JobSync, LogChunk
from nunet_cli.records.results import Result, Usage

log = logging.getLogger("nunet.execute")

# so many of what a provider remarks on a job are events: it may say something else with each sign of life
MOST_REMARKS = 20
# why an allocation that had lined up failed
NO_PLACE = "no_place"
_RUNS = ("contracted", "invoked", "running")


class Telling(HasBlobs, HasHome, HasThreads, HasStore, Protocol):
    """Tells a requester what its job writes."""


class Taking(HasClosings, HasHeard, HasProgress, HasStanding, Protocol):
    """Takes results."""


class Hearing(Taking, HasStore, Protocol):
    """Takes what a provider tells."""


class Following(Hearing, Dealing, Protocol):
    """Follows a job at its provider."""


class Executing(Hearing, Telling, HasMessenger, TakesCompletions, Protocol):
    """Has both halves of the stage."""


# -- provider ----------------------------------------------------------------------------------------------------------


def register(ctx: Executing) -> None:
    """Take questions about running jobs, and what providers tell of ours."""

    async def on_sync(message: Incoming) -> Answer:
        return await _on_sync(ctx, message)

    async def on_logs(message: Incoming) -> Answer:
        return await _on_logs(ctx, message)

    async def on_update(message: Incoming) -> Change | None:
        return _on_update(ctx, message)

    async def on_completed(message: Incoming) -> Change:
        body: JobCompleted = message.body
        if body.contract is not None:
            # told to the contract's oracle
            return ctx.take_completion(message)
        contract = _contract_of(ctx.store, body.contract_id, message.sender)
        return result_change(ctx, contract, body.result)

    ctx.messenger.register("job_sync", JobSync, on_sync)
    ctx.messenger.register("job_logs", JobLogs, on_logs)
    ctx.messenger.register("job_status_update", JobStatusUpdate, on_update)
    ctx.messenger.register("job_completed", JobCompleted, on_completed)
    ctx.messenger.register("job_error", JobCompleted, on_completed)
    ctx.messenger.register("job_state", JobState)
    ctx.messenger.register("log_chunk", LogChunk)


def contract_with(source: Store | Transaction, contract_id: str, requester: str) -> ContractRecord:
    """Return this provider's contract with a requester.

    Raises:
        NotFoundError: there is none.
    """
    contract = source[CONTRACTS].get(contract_id)
    if contract is None or contract.role != PROVIDER or contract.requester != requester:
        raise NotFoundError(f"no contract {contract_id} with you here", code="no_contract")
    return contract


async def _on_sync(ctx: HasStore, message: Incoming) -> Answer:
    contract = contract_with(ctx.store, message.body.contract_id, message.sender)
    allocation = ctx.store[ALLOCATIONS].first("contract_id", contract.id)
    if allocation is None:
        return "job_state", JobState(contract.id, "", "none", Usage(), contract.result)
    return "job_state", JobState(contract.id, allocation.id, allocation.state, allocation.usage, contract.result)


async def _on_logs(ctx: Telling, message: Incoming) -> Answer:
    body: JobLogs = message.body
    contract = contract_with(ctx.store, body.contract_id, message.sender)
    end = trio.current_time() + body.wait
    while True:
        data, ended = await _read_log(ctx, contract.id, body)
        if data or ended or trio.current_time() >= end:
            return "log_chunk", LogChunk(data, ended)
        await trio.sleep(min(0.1, body.wait))


async def _read_log(ctx: Telling, contract_id: str, body: JobLogs) -> tuple[bytes, bool]:
    allocation = ctx.store[ALLOCATIONS].first("contract_id", contract_id)
    if allocation is None:
        return b"", False
    path, ended = allocation_folder(ctx.home, allocation.id) / body.stream, False
    if allocation.state in ALLOCATION_ENDS:
        signed = ctx.store[CONTRACTS].one(contract_id).result
        # the end and the result are one change
        assert signed is not None
        result = signed.read(Result)
        cid = result.stdout_cid if body.stream == "stdout" else result.stderr_cid
        if not cid:
            return b"", True
        if not ctx.blobs.has(cid):
            raise NotFoundError("the provider does not keep what the job wrote any more", code=LOGS_GONE)
        path, ended = ctx.blobs.path(cid), True
    data = await ctx.threads.run(read_piece, path, body.offset)
    return data, ended and len(data) < LOG_PIECE


# -- requester ---------------------------------------------------------------------------------------------------------


def _contract_of(source: Store | Transaction, contract_id: str, provider: str) -> ContractRecord:
    """Return this requester's contract with a provider.

    Raises:
        NotFoundError: there is none.
    """
    contract = source[CONTRACTS].get(contract_id)
    if contract is None or contract.role != REQUESTER or contract.provider != provider:
        raise NotFoundError("no such contract with you here", code="no_contract")
    return contract


def _on_update(ctx: Hearing, message: Incoming) -> Change | None:
    body: JobStatusUpdate = message.body
    contract = _contract_of(ctx.store, body.contract_id, message.sender)
    job = ctx.store[JOBS].get(contract.job_id)
    if job is None or job.contract_id != contract.id or job.state not in _RUNS:
        return None
    ctx.heard.note(contract.id)
    if body.state == "starting":
        if body.progress is not None and job.state != "running":
            ctx.progress.note(job.id, body.progress)
        return None
    ctx.progress.done(job.id)
    return _running_change(contract, body.allocation_id, body.usage, body.remark)


def _running_change(
    contract: ContractRecord, allocation_id: str, usage: Usage, remark: str | None = None
) -> Callable[[Transaction], None]:
    """Return the change by which a job runs, or has used that much."""

    def change(t: Transaction) -> None:
        job = t[JOBS].get(contract.job_id)
        if job is None or job.contract_id != contract.id:
            # the provider of an earlier attempt
            return
        if job.state in ("contracted", "invoked"):
            said = {"allocation_id": allocation_id}
            advance(t, job.id, "start", by=PROVIDER, about=contract.id, said=said, allocation_id=allocation_id)
        elif job.state == "running":
            now = job.remark if remark is None else remark
            is_new = bool(now) and now != job.remark
            if is_new and job.remarks < MOST_REMARKS:
                t.save_event(job.id, "job_remark", text=now)
            remarks = job.remarks + is_new
            change_job(t, job.id, usage=usage, heard_at=quantities.utc_now(), remark=now, remarks=remarks)

    return change


async def take_result(ctx: Hearing, contract: ContractRecord, document: Document) -> None:
    """Check a provider's signed result and keep it; the job is completed then, whatever the result says.

    Raises:
        RejectedMessageError: not signed by the provider, for another contract, or not the first that it signed.
    """
    await ctx.store.change(result_change(ctx, contract, document))


def result_change(ctx: Taking, contract: ContractRecord, document: Document) -> Callable[[Transaction], None]:
    """Check a provider's signed result, and return the change that keeps it.

    Raises:
        RejectedMessageError: not signed by the provider, or for another contract; the change raises it where another
            result of the provider's is here already.
    """
    require_signature(document, contract.provider, PROVIDER, "result")
    result = document.read(Result)
    if result.contract_id != contract.id or result.job_id != contract.job_id:
        raise RejectedMessageError("the result belongs to another contract", code="wrong_result")
    # the names become files of ours: nothing is taken that the job did not ask for
    unasked = {output.name for output in result.outputs} - set(output_names(decode_spec(contract.spec)))
    loose = {output.name for output in result.outputs if output.kind == "files"}
    unasked |= loose - loose_names(decode_spec(contract.spec))
    if unasked:
        raise RejectedMessageError(
            f"the result has outputs that nobody asked for: {sorted(unasked)[0]!r}", code="wrong_result"
        )

    def change(t: Transaction) -> None:
        current = t[CONTRACTS].one(contract.id)
        is_first = current.result is None
        if current.result is not None and current.result.cid != document.cid:
            raise RejectedMessageError("the provider has signed another result already", code="second_result")
        if is_first:
            t[CONTRACTS].put(structs.replace(current, result=document, result_at=quantities.utc_now()))
        job = t[JOBS].get(contract.job_id)
        mine = job is not None and job.contract_id == contract.id
        if job is not None and mine and (job.state in _RUNS or _is_late(job, result)):
            _complete(t, job, result)
            # where it was not even begun, others take too long for another to line up behind them
            seconds = math.inf if result.reason == NO_PLACE else result.usage.wall_seconds
            t.then(partial(ctx.standing.ended, job.parent, job.id, seconds))
        elif result.state == "completed" and is_first:
            # the job goes on without it, or was called off; it will be paid, so it is fetched, too: see `closing`
            t[LATE_RESULTS].put(LateResult(contract.id))
        if mine:
            let_go(ctx, t, contract.id, contract.job_id)
        t.then(partial(ctx.heard.forget, contract.id))
        t.then(partial(ctx.closings.look, contract.id))

    return change


def _is_late(job: Job, result: Result) -> bool:
    """Say whether a result brings what a job was given up for, as its provider was silent."""
    was_silent = job.error is not None and job.error.code == SILENT
    return job.state == "failed" and was_silent and result.state == "completed"


def _complete(t: Transaction, job: Job, result: Result) -> None:
    late = job.state == "failed"
    said = {"exit_code": result.exit_code, "reason": result.reason, "message": result.message, "late": late}
    advance(
        t, job.id, "complete", by=PROVIDER, about=result.contract_id,
        said={**said, "usage": msgspec.to_builtins(result.usage)}, result=result, usage=result.usage, late=late,
        error=None, waiting=None, allocation_id=result.allocation_id or job.allocation_id,
    )  # fmt: skip


async def follow(ctx: Following, job_id: str) -> Job:
    """Wait until a running job's result is here; ask the provider when it falls silent.

    Raises:
        StateError: the job does not run.
        PeerError: the provider is silent past the contract's deadline, or for `limits.silence` where the job may be
            tried with another one; code `provider_silent`.
    """
    beat = ctx.config.limits.heartbeat
    began, asked = trio.current_time(), -math.inf
    while True:
        changed = ctx.store.news(job_id)
        job = find_job(ctx.store, job_id)
        if job.state not in _RUNS:
            return job
        if job.state == "contracted" or not job.contract_id:
            raise StateError(f"job {job.id} does not run: it is {job.state}")
        contract = ctx.store[CONTRACTS].one(job.contract_id)
        silent = trio.current_time() - ctx.heard.since(contract.id, began)
        overdue = contract.deadline <= quantities.utc_now()
        is_silent = silent > ctx.config.limits.silence
        # after a restart it is known of nobody whether he is there
        is_heard = not is_silent and ctx.heard.since(contract.id, began) > began
        if (is_heard if job.waiting is not None else is_silent) and not may_retry(job):
            since = silent if is_silent else None
            await ctx.store.change(partial(_note_silence, job_id=job.id, contract=contract, seconds=since))
            continue
        if not overdue and is_silent and may_retry(job):
            raise PeerError(f"the provider has been silent for {quantities.format_duration(silent)}", code=SILENT)
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


def _note_silence(t: Transaction, job_id: str, contract: ContractRecord, seconds: float | None) -> None:
    """Say with a job that it waits for a provider that has been silent for so many seconds; None: it is heard again."""
    job = t[JOBS].one(job_id)
    if job.contract_id != contract.id or job.state not in _RUNS:
        return
    peer = peer_id_from_key(key_from_did(contract.provider))
    if seconds is None:
        change_job(t, job_id, waiting=None)
        t.save_event(job_id, "provider_heard", peer=peer)
        return
    since, until = quantities.format_time(quantities.now() - timedelta(seconds=seconds)), contract.deadline
    # to the minute: of a batch all that wait for the same are counted together
    text = f"its provider {short(contract.provider)}, silent since {since[11:16]} UTC"
    text += f"; its result is waited for until {until[11:16]} UTC"
    change_job(t, job_id, waiting=Waiting(text, until, since))
    t.save_event(job_id, "provider_silent", peer=peer, since=since, until=until)


async def _sync_quietly(ctx: Following, contract: ContractRecord) -> None:
    try:
        await job_sync(ctx, contract)
    except NunetError as error:
        log.info("asking about %s: %s", contract.job_id, error)


async def job_sync(ctx: Following, contract: ContractRecord) -> JobState:
    """Ask the provider what was missed about a contract, and take the result if there is one."""
    answer = await ctx.messenger.request(
        contract.provider, "job_sync", JobSync(contract.id), timeout=ctx.config.limits.answer_timeout
    )
    state = answer.body
    if not isinstance(state, JobState) or state.contract_id != contract.id:
        raise PeerError("the provider answered something else", code="bad_answer")
    job = ctx.store[JOBS].get(contract.job_id)
    if job is not None and job.contract_id == contract.id and job.state in _RUNS:
        ctx.heard.note(contract.id)
    if state.result is not None:
        await take_result(ctx, contract, state.result)
    elif state.state in ("starting", "running"):
        await ctx.store.change(_running_change(contract, state.allocation_id, state.usage))
    return state
