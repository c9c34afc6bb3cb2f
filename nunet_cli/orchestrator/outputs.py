"""Stage 6, what comes of a job: the requester fetches its outputs, and reads its logs, here or at the provider."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import trio
from msgspec import structs

from nunet_cli.database.store import Transaction
from nunet_cli.errors import LOGS_GONE, NotFoundError, PeerError, RejectedMessageError, StateError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.globs import MAX_STEPS, Pattern
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import loose_names, output_room, patterns_of
from nunet_cli.network.data.trees import entries_of, make_way, opened, strays, unpack
from nunet_cli.network.data.written import Written, take_away
from nunet_cli.orchestrator.changes import change_job, find_job
from nunet_cli.orchestrator.logs import LOG_PIECE, read_piece
from nunet_cli.orchestrator.needs import (
    Dealing,
    HasBlobs,
    HasConfig,
    HasProgress,
    HasStore,
    HasThreads,
)
from nunet_cli.records.contract_records import CONTRACTS, ContractRecord
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.messages import JobLogs, LogChunk
from nunet_cli.records.results import OutputFile, Progress, Result
from nunet_cli.records.trees import TreeError

# seconds
NOTHING_NEW_PAUSE = 0.2
# bytes that a provider may add to a log that it has cut, to say so
LOG_NOTE = 1024
CUT = b"\n[nunet: the provider sends more than limits.log_size; the rest is left out]\n"


class Fetching(HasProgress, HasBlobs, HasConfig, HasThreads, Protocol):
    """Fetches what a job has made."""


class Collecting(Fetching, HasStore, Protocol):
    """Fetches what a job has made, and keeps with the job that it is here."""


class Reading(HasBlobs, HasThreads, Dealing, Protocol):
    """Reads logs, here or at the provider."""


async def collect_outputs(ctx: Collecting, job_id: str) -> Job:
    """Fetch the outputs and logs of a job that ended, each checked against its content id; return the job.

    Where there are none that is all: what follows notes that they are here, with `note_collected`.

    Raises:
        PeerError: the provider does not give them.
        RejectedMessageError: it gave something else.
    """
    job = find_job(ctx.store, job_id)
    if job.result is None or job.collected:
        return job
    result = job.result
    total = await fetch_outputs(ctx, ctx.store[CONTRACTS].one(job.contract_id), result)
    if is_empty(result):
        return job
    provider, cids = ctx.store[CONTRACTS].one(job.contract_id).provider, [cid for cid, _ in _wanted(result)]

    def note(t: Transaction) -> Job:
        ctx.blobs.note_brought(t, cids, provider)
        return note_collected(t, job, total)

    return await ctx.store.change(note)


def is_empty(result: Result) -> bool:
    """Say whether a job has left nothing, not even a line of its logs."""
    return not (result.outputs or result.stdout_size or result.stderr_size)


def note_collected(t: Transaction, job: Job, size: int) -> Job:
    """Note that a job's outputs and logs are here, with their bytes in all; return the job as it is then.

    One that has gone on with another provider, or was noted before, is left as it is.
    """
    current = t[JOBS].one(job.id)
    if current.contract_id != job.contract_id or current.collected or job.result is None:
        return current
    t.save_event(job.id, "outputs_received", count=len(job.result.outputs), bytes=size)
    return change_job(t, job.id, collected=True)


async def fetch_outputs(ctx: Fetching, contract: ContractRecord, result: Result) -> int:
    """Fetch the outputs and logs of a result, each checked against its content id; return their bytes.

    Raises:
        PeerError: the provider does not give them.
        RejectedMessageError: it gave something else, what nobody asked for, or they are too large.
    """
    wanted = _wanted(result)
    total = sum(size for _, size in wanted)
    spec = decode_spec(contract.spec)
    made, room = sum(output.size for output in result.outputs), output_room(spec)
    if made > room:
        # a provider that keeps to the rules takes no more of them from the job's disk
        text = f"the outputs have {made} bytes, over the {room} of the job's disk"
        raise RejectedMessageError(text, code="outputs_too_large")
    if total > ctx.config.limits.output_size + 2 * ctx.config.limits.log_size:
        raise RejectedMessageError(f"the outputs have {total} bytes, over limits.output_size", code="outputs_too_large")
    job_id, arrived = contract.job_id, 0
    try:
        for cid, size in wanted:
            if cid:
                await ctx.blobs.fetch(
                    contract.provider, cid, size,
                    progress=lambda here, before=arrived: _note_arrived(ctx, job_id, before + here, total),  # type: ignore[misc]  # bound now
                )  # fmt: skip
            arrived += size
        await _check_folders(ctx, spec, result)
    finally:
        ctx.progress.done(job_id)
    return total


def _wanted(result: Result) -> list[tuple[str, int]]:
    """Return the content ids and sizes of outputs and logs."""
    wanted = [(output.cid, output.size) for output in result.outputs]
    return [*wanted, (result.stdout_cid, result.stdout_size), (result.stderr_cid, result.stderr_size)]


async def _check_folders(ctx: Fetching, spec: JobSpec, result: Result) -> None:
    """Look whether what should be folders are some, and whether a pattern would have found what came for it.

    What came for a pattern is written beside what stands in the user's folder: nothing else may come with it, nor a
    link to anything else. What has a loose pattern's own name is a folder by itself, and may have anything in it.

    Raises:
        RejectedMessageError: it is something else: not what was to be delivered.
    """
    patterns, loose = patterns_of(spec), loose_names(spec)
    for output in result.outputs:
        if output.kind == "file":
            continue
        is_own_folder = output.kind == "folder" and output.name in loose
        pattern = None if is_own_folder else patterns.get(output.name)
        # a list of as many names as there may be takes seconds of the processor
        wrong = await ctx.threads.run(_wrong_in, ctx.blobs.path(output.cid), pattern)
        if wrong:
            raise RejectedMessageError(f"the output {output.name}{wrong}", code="wrong_content")


def _wrong_in(source: Path, pattern: Pattern | None) -> str:
    """Return what is wrong with what should be a folder, or what a pattern has found; empty where nothing is."""
    try:
        entries = entries_of(source)
    except TreeError as error:
        return f": {error.message}"
    if pattern is None:
        return ""
    try:
        stray = strays(entries, pattern)
    except ValueError:
        return f" takes over {MAX_STEPS} comparisons with its pattern: no provider that keeps to the rules sends that"
    return f" has {stray[0]!r} in it, which the pattern does not find" if stray else ""


async def write_outputs(
    ctx: Reading, outputs: Mapping[str, OutputFile], logs: Mapping[str, str], folder: Path
) -> list[str]:
    """Write outputs and logs that are here into a folder; return the paths of what was written, folders as one.

    Files that are there are overwritten, folders are kept; nothing is written outside of the folder, also where links
    in it lead out: they give way.

    Args:
        ctx: the node's parts.
        outputs: what is written, by name.
        logs: the same, by content id.
        folder: where to; it is made.

    Raises:
        NotFoundError: something is not here.
        TreeError: what should be a folder is none.
        OSError: the folder cannot be written to, or something in it, which is the error's `filename`.
    """
    written, failed = list[str](), list[OSError]()

    @contextlib.contextmanager
    def noted(path: Path) -> Iterator[None]:
        """Note with its path what cannot be written: the others are, all the same."""
        try:
            yield
        except OSError as error:
            failed.append(OSError(error.errno, error.strerror, str(path)))

    for name, output in outputs.items():
        with noted(folder / name):
            if output.kind == "file":
                written.append(await _write_file(ctx, output.cid, folder, name))
                continue
            above = name.rpartition("/")[0] if output.kind == "files" else name
            target = await ctx.threads.run(partial(make_way, folder, above, whole=True))
            names = await ctx.threads.run(_write_folder, ctx.blobs.path(output.cid), target)
            written += [str(target / part) for part in names] if output.kind == "files" else [str(target)]
    for name, cid in logs.items():
        with noted(folder / name):
            written.append(await _write_file(ctx, cid, folder, name))
    if failed:
        raise failed[0]
    return written


async def take_away_earlier(ctx: Reading, earlier: Mapping[str, list[OutputFile]], folder: Path) -> None:
    """Remove from a folder what earlier attempts left there, as far as it still is what was written then.

    Args:
        ctx: the node's parts.
        earlier: what was written, by what stands before its name.
        folder: where to; it need not be there.
    """
    written = []
    for prefix, files in earlier.items():
        for file in files:
            path = f"{prefix}{file.name}"
            if file.kind == "file":
                written.append(Written(path, file.cid, file.size))
            elif ctx.blobs.has(file.cid):
                inside = path.rpartition("/")[0] if file.kind == "files" else path
                written.append(Written(inside, file.cid, file.size, ctx.blobs.path(file.cid)))
    if written:
        await ctx.threads.run(_take_away, folder, written)


def _take_away(folder: Path, written: list[Written]) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), opened(folder) as root:
        take_away(root, written)


async def _write_file(ctx: Reading, cid: str, folder: Path, name: str) -> str:
    target = await ctx.threads.run(make_way, folder, name)
    await ctx.blobs.copy_out(cid, target)
    return str(target)


def _write_folder(source: Path, target: Path) -> list[str]:
    with opened(target) as root:
        return unpack(source, root, replace=True)


def _note_arrived(ctx: HasProgress, job_id: str, done: int, total: int) -> None:
    ctx.progress.note(job_id, Progress("outputs", done, total))


async def read_logs(
    ctx: Reading, job: Job, stream: str, offset: int, wait: float, *, attempt: int = 0
) -> tuple[bytes, bool]:
    """Return output of a job from an offset on, and whether that is all: from here, or from the provider.

    What a provider says of a running job is cut where it is over `limits.log_size`, and said to be. With `attempt`,
    what is here of an earlier one.

    Raises:
        StateError: the job has not been started, or there was no such attempt.
        NotFoundError: nobody has kept what it wrote; code `logs_gone`.
        PeerError: the provider does not answer.
    """
    if attempt and attempt != job.attempt:
        past = next((past for past in job.past if past.number == attempt), None)
        if past is None or (past.result is None and not past.contract_id):
            raise StateError(f"job {job.id} has no logs of an attempt {attempt}")
        # as the job was then
        is_here = past.result is not None and ctx.blobs.has(past.result.stdout_cid or past.result.stderr_cid)
        job = structs.replace(job, result=past.result, contract_id=past.contract_id, collected=is_here)
    if job.result is not None and job.collected:
        return await _read_kept(ctx, job, job.result, stream, offset)
    if job.result is not None:
        # of a job that ended by itself the provider would have it
        _check_kept(job, job.result)
    contract = ctx.store[CONTRACTS].get(job.contract_id)
    if contract is None or contract.state in ("proposed", "refused"):
        raise StateError(f"job {job.id} is {job.state}: it has no logs yet")
    room = ctx.config.limits.log_size + LOG_NOTE - offset
    if room <= 0:
        return b"", True
    answer = await ctx.messenger.request(
        contract.provider, "job_logs",
        JobLogs(contract.id, stream, offset, wait),  # type: ignore[arg-type]  # the API checked the stream's name
        timeout=ctx.config.limits.answer_timeout + wait,
    )  # fmt: skip
    chunk = answer.body
    if not isinstance(chunk, LogChunk):
        raise PeerError("the provider answered something else", code="bad_answer")
    if wait and not chunk.data and not chunk.ended:
        # who says at once that there is nothing new is not asked again at once
        await trio.sleep(NOTHING_NEW_PAUSE)
    if len(chunk.data) >= room:
        return chunk.data[: room - 1] + CUT, True
    return chunk.data, chunk.ended


async def _read_kept(ctx: Reading, job: Job, result: Result, stream: str, offset: int) -> tuple[bytes, bool]:
    """Return a piece of a log that was fetched, and whether it is the last."""
    _check_kept(job, result)
    cid = result.stdout_cid if stream == "stdout" else result.stderr_cid
    if not cid:
        return b"", True
    if not ctx.blobs.has(cid):
        raise NotFoundError(f"what job {job.id} wrote is not here", code=LOGS_GONE)
    data = await ctx.threads.run(read_piece, ctx.blobs.path(cid), offset)
    return data, len(data) < LOG_PIECE


def _check_kept(job: Job, result: Result) -> None:
    """Refuse to call empty what a job wrote that was ended, and of which its provider has kept nothing.

    Raises:
        StateError: it had not been started.
        NotFoundError: it is gone.
    """
    if result.stdout_cid or result.stderr_cid or result.state == "completed" or result.fault == "job":
        return
    if not result.allocation_id:
        raise StateError(f"job {job.id} is {job.state}: it had not been started, and has no logs")
    raise NotFoundError(f"what job {job.id} wrote is gone: its provider has kept nothing of it", code=LOGS_GONE)
