"""Stage 6, the provider's machine: one allocation from its inputs to its signed result.

The messages of the stage, and the requester's half, are in `execute`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Protocol

import msgspec
import trio

from nunet_cli import quantities
from nunet_cli.allocation.actor import AllocationActor, HasRunning
from nunet_cli.allocation.part import Making, Part, Preparing, collect, make_part, prepare, set_up, start
from nunet_cli.allocation.place import LiningUp, wait_for_place
from nunet_cli.allocation.pod import Ended, run_pod, run_single
from nunet_cli.allocation.results import (
    Resulting,
    TakingLogs,
    broken_result,
    called_off_result,
    failed_result,
    held,
    readable,
    result_of,
    said_of,
    seconds_left,
    with_logs,
)
from nunet_cli.database.store import Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import NoSpaceError, NunetError, PeerError
from nunet_cli.executor.base import Exit
from nunet_cli.executor.files import allocation_folder, remove_folder
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import programs
from nunet_cli.network.blobs import Blobs
from nunet_cli.orchestrator.needs import (
    Asking,
    HasAccounting,
    HasBlobs,
    HasClosings,
    HasConfig,
    HasHome,
    HasIdentity,
    HasMessenger,
    HasStore,
    HasThreads,
)
from nunet_cli.records.allocations import ALLOCATION_ENDS, ALLOCATIONS, Allocation
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import PROVIDER, Contract
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.messages import JobCompleted, JobStatusUpdate
from nunet_cli.records.results import Result, Usage
from nunet_cli.supervise import meanwhile

log = logging.getLogger("nunet.allocation")

RESULT_LIFETIME = 14 * 86400
PROGRESS_INTERVAL = 0.25
END_PAUSE, MAX_END_PAUSE = 1.0, 60.0
# bytes of inputs that are brought while an allocation waits for its place: more take room that it does not have yet
EARLY = 2**24
JOB_FAULTS = {"no_workdir", "inputs_too_large", "bad_text", "bad_place"}
END_EVENTS = {"completed": "complete", "failed": "fail", "cancelled": "cancel"}
LATE_JOB_FAULTS = {"no_program", "no_image", "image_not_allowed"}


class Removing(HasHome, HasThreads, Protocol):
    """Removes what an allocation leaves behind."""


class Signing(HasBlobs, HasAccounting, HasClosings, HasConfig, HasIdentity, HasMessenger, HasStore, Protocol):
    """Signs a result, and keeps it."""


class Ending(Removing, TakingLogs, Signing, Protocol):
    """Ends an allocation."""


class Performing(Asking, Resulting, Preparing, LiningUp, Protocol):
    """Runs the programs of an allocation, and tells the requester."""


class Allocating(Ending, HasRunning, Making, Performing, Protocol):
    """Runs an allocation from its inputs to its signed result."""


async def run_allocation(ctx: Allocating, allocation_id: str, *, attached: bool = False) -> None:
    """Run one allocation to its end, and tell the requester; nothing that happens in it reaches the node.

    Args:
        ctx: the node's parts.
        allocation_id: the allocation.
        attached: the job was started by an earlier run of the node and still runs.
    """
    allocation = ctx.store[ALLOCATIONS].one(allocation_id)
    contract = ctx.store[CONTRACTS].one(allocation.contract_id)
    try:
        spec = decode_spec(contract.spec)
        parts = make_parts(ctx, allocation, spec)
    except NunetError as error:
        failed = failed_result(allocation, allocation.started_at, error.code, error.message, fault="provider")
        await _end(ctx, [], allocation, failed)
        return
    except Exception as error:
        log.exception("allocation %s cannot be begun", allocation_id)
        await _end(ctx, [], allocation, broken_result(allocation, error))
        return
    actor = AllocationActor(allocation, parts, spec)
    if contract.called_off_at:
        # before it had begun, or before this node was started again
        actor.call_off()
    ctx.running.add(actor)
    result: Result | None = None
    over = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(actor.run_mailbox)
            try:
                with actor.scope:
                    result = await _run(ctx, actor, spec, attached=attached)
            except Exception as error:
                # an engine that goes away, a full disk: the requester is told, and the node goes on
                log.exception("allocation %s failed", allocation_id)
                with trio.CancelScope(shield=True):
                    await actor.stop()
                result = broken_result(actor.allocation, error)
            with trio.CancelScope(shield=True):
                ended = result or await _called_off(ctx, actor, spec)
            await _end(ctx, actor.parts, actor.allocation, ended)
            over = True
            nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(10) as patience:
            patience.shield = True
            # the node stops: a process goes with it, a container stays and is found again
            if not over:
                await actor.stop("process")
        ctx.running.remove(allocation_id)
        actor.ended.set()


def make_parts(ctx: Making, allocation: Allocation, spec: JobSpec) -> list[Part]:
    """Return the programs of an allocation, with the handles of those that were started.

    Raises:
        ExecutorError: the node has no such executor any more.
    """
    found = [make_part(ctx, allocation, child, child.name) for child in spec.children]
    found = found or [make_part(ctx, allocation, spec)]
    for part in found:
        part.handle, part.started_at = allocation.handles.get(part.name, ""), allocation.started_at
    return found


async def _run(ctx: Performing, actor: AllocationActor, spec: JobSpec, *, attached: bool) -> Result | None:
    """Run the programs and return the result; None when the requester called them off."""

    async def begin() -> None:
        await wait_for_place(ctx, actor)
        actor.allocation = await _begin(ctx, actor.allocation)

    async def make_ready() -> None:
        (part,) = actor.parts
        await prepare(ctx, part, [])
        if ctx.accounting.is_in_line(ctx.store, actor.allocation_id):
            await set_up(part)

    async def started(part: Part) -> None:
        actor.allocation = await _note_started(ctx, actor.allocation, part)
        actor.began.set()

    async def run() -> Ended:
        if attached:
            actor.began.set()
        elif spec.pod or sum(item.size for item in spec.inputs) > EARLY:
            await wait_for_place(ctx, actor)
        if spec.pod:
            if not attached:
                await begin()
            return await run_pod(ctx, spec, actor.parts, started)
        (part,) = actor.parts
        if not attached:
            # nothing has been started before that it may have been is on the disk
            await meanwhile(begin, make_ready)
            await start(part, started)
        return await run_single(ctx, part, started)

    try:
        ended = await _beating(ctx, actor, run)
    except (NunetError, trio.TooSlowError, OSError) as error:
        log.warning("allocation %s could not start: %s", actor.allocation_id, error)
        code = error.code if isinstance(error, NunetError) else "executor_error"
        started_at = actor.allocation.started_at
        # a later start fails by what the job asked for, too: the machine was held for it until then
        late = bool(started_at) and (code in LATE_JOB_FAULTS or isinstance(error, PeerError))
        fault = "job" if code in JOB_FAULTS or late else "provider"
        return failed_result(actor.allocation, started_at, code, said_of(error), fault=fault)
    result: Result | None = None
    if not actor.cancelled:
        with trio.CancelScope(shield=True):
            result = await result_of(ctx, actor.allocation, ended)
    return result


async def _beating(ctx: Asking, actor: AllocationActor, run: Callable[[], Awaitable[Ended]]) -> Ended:
    """Run the programs, sending heartbeats all along."""
    problem: Exception | None = None
    ended: Ended | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_beat, ctx, actor)
        try:
            ended = await run()
        except Exception as error:
            # raised outside of the nursery, which would make a group of it
            problem = error
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
    assert ended is not None
    return ended


async def _begin(ctx: HasStore, allocation: Allocation) -> Allocation:
    """Record that an allocation is being started: from here on it is never begun again."""

    def change(t: Transaction) -> Allocation:
        t.save_event(allocation.job_id, "allocation_starting", allocation_id=allocation.id)
        return transition(t, allocation, "begin", by=PROVIDER)

    return await ctx.store.change(change)


async def _note_started(ctx: HasStore, allocation: Allocation, part: Part) -> Allocation:
    """Record the handle of a program that was started; the allocation runs from the first one on."""

    def change(t: Transaction) -> Allocation:
        current = t[ALLOCATIONS].one(allocation.id)
        if current.state == "starting":
            t.save_event(allocation.job_id, "allocation_running", allocation_id=allocation.id)
        return transition(
            t, current, "start", by=PROVIDER, handles={**current.handles, part.name: part.handle},
            started_at=current.started_at or part.started_at,
        )  # fmt: skip

    return await ctx.store.change(change)


async def _beat(ctx: Asking, actor: AllocationActor) -> None:
    """Tell how far the start has come, and once something runs, that it does."""
    while not actor.began.is_set():
        with _heard("progress", actor.allocation_id):
            await _tell_progress(ctx, actor)
        with trio.move_on_after(PROGRESS_INTERVAL):
            await actor.began.wait()
    while True:
        with _heard("a sign of life", actor.allocation_id):
            await job_update(ctx, actor)
        await trio.sleep(ctx.config.limits.heartbeat)


@contextmanager
def _heard(what: str, allocation_id: str) -> Iterator[None]:
    """Go on when news could not be sent: the next one will be."""
    try:
        yield
    except Exception as error:
        log.debug("%s of allocation %s was not sent: %s", what, allocation_id, error)


async def _tell_progress(ctx: HasMessenger, actor: AllocationActor) -> None:
    run = actor.allocation
    for part in actor.parts:
        progress, part.progress = part.progress, None
        if progress is not None:
            update = JobStatusUpdate(run.contract_id, run.id, "starting", Usage(), quantities.utc_now(), progress)
            await ctx.messenger.tell(run.requester, "job_status_update", update)


async def job_update(ctx: Asking, actor: AllocationActor) -> JobStatusUpdate:
    """Send a sign of life with what is used so far (seed 6: `executor.jobUpdate`), and return it."""
    run = actor.allocation
    usage = await actor.usage()
    remark = actor.remarks.look(usage, ctx.config.limits.stall)
    update = JobStatusUpdate(run.contract_id, run.id, "running", usage, quantities.utc_now(), None, remark)
    await ctx.messenger.tell(run.requester, "job_status_update", update)
    return update


async def _called_off(ctx: Performing, actor: AllocationActor, spec: JobSpec) -> Result:
    """End the programs for the requester, or for the provider's owner, and return the result, which says for whom."""
    try:
        usage = await actor.usage()
        await actor.stop()
        if actor.by_provider:
            message = "the provider ended it: its owner offers the machine no more"
            began = actor.allocation.started_at
            ended = failed_result(actor.allocation, began, "provider_ended", message, fault="provider")
            return msgspec.structs.replace(ended, usage=usage)
        if spec.type == "service" and actor.allocation.started_at:
            # to be stopped is how a service ends well
            outputs, missing = await collect(ctx, actor.parts[0], ctx.config.limits.output_size)
            return await result_of(ctx, actor.allocation, Ended(Exit(0, usage), outputs, missing))
    except Exception as error:
        log.exception("allocation %s could not be ended well", actor.allocation_id)
        await actor.stop()
        return broken_result(actor.allocation, error)
    return msgspec.structs.replace(called_off_result(actor.allocation), usage=usage)


async def _end(ctx: Ending, parts: list[Part], allocation: Allocation, result: Result) -> None:
    """Sign the result, with what the job wrote; keep it, free the capability and queue the news; then clean up.

    Where that cannot be kept, as on a full disk, what the job left is removed first, and it is tried again until it
    can: nothing but this allocation waits for it. What is refused for another reason would be refused for ever: the
    allocation ends as failed then.
    """
    pause, clean = END_PAUSE, False
    with trio.CancelScope(shield=True):
        result = await with_logs(ctx, result)
    while True:
        with trio.CancelScope(shield=True):
            try:
                await finish_allocation(ctx, allocation, result)
                break
            except Exception as error:
                log.exception("the end of allocation %s cannot be kept; it is tried again", allocation.id)
                if not isinstance(error, NoSpaceError | OSError):
                    result = broken_result(allocation, error)
                if not clean:
                    await _clean_up(ctx, parts, allocation.id)
                clean = True
        await trio.sleep(pause)
        pause = min(pause * 2, MAX_END_PAUSE)
    if not clean:
        with trio.CancelScope(shield=True):
            await _clean_up(ctx, parts, allocation.id)


async def _clean_up(ctx: Removing, parts: list[Part], allocation_id: str) -> None:
    for part in parts:
        if part.handle or part.is_set_up:
            try:
                await part.executor.cleanup(part.task, part.handle)
            except Exception as error:
                log.warning("cleaning up after %s: %s", allocation_id, error)
    try:
        await ctx.threads.run(remove_folder, allocation_folder(ctx.home, allocation_id))
    except Exception as error:
        log.warning("removing the folder of %s: %s", allocation_id, error)


async def finish_allocation(ctx: Signing, allocation: Allocation, result: Result) -> Document:
    """Record the end of an allocation with its signed result, and queue the message to the requester.

    Returns the signed result; where the allocation has ended already, the one that was kept then.
    """
    known = ctx.store[CONTRACTS].one(allocation.contract_id)
    # however late the end was seen to: nobody agreed to more
    agreed = known.document.read(Contract).terms.max_duration
    ended_at = result.ended_at
    if known.called_off_at:
        # the requester pays no longer than it takes to stop a program, whenever this node came to it
        patience = timedelta(seconds=ctx.config.limits.answer_timeout)
        ended_at = min(ended_at, quantities.format_time(quantities.parse_time(known.called_off_at) + patience))
    seconds = min(held(result.started_at, ended_at), float(agreed))
    used = msgspec.structs.replace(result.usage, wall_seconds=seconds)
    result = readable(msgspec.structs.replace(result, usage=used))
    document = make_document(result).sign(ctx.identity, PROVIDER)
    inputs = [item.cid for part in programs(decode_spec(known.spec)) for item in part.inputs]
    type_ = "job_completed" if result.state == "completed" else "job_error"
    body = JobCompleted(allocation.contract_id, document)
    messages = [ctx.messenger.outbox.outgoing(allocation.requester, type_, body, lifetime=RESULT_LIFETIME)]
    if result.state == "completed" and known.oracle:
        # whatever its requester shows it later, the oracle knows this result
        told = JobCompleted(known.id, document, known.document, known.proof)
        lifetime = min(seconds_left(known) + ctx.config.limits.settlement_window, RESULT_LIFETIME)
        messages.append(ctx.messenger.outbox.outgoing(known.oracle, type_, told, lifetime=lifetime))

    def change(t: Transaction) -> Document:
        current, contract = t[ALLOCATIONS].one(allocation.id), t[CONTRACTS].one(allocation.contract_id)
        if current.state in ALLOCATION_ENDS:
            return contract.result or document
        transition(
            t, current, END_EVENTS[result.state], by=PROVIDER, ended_at=result.ended_at, error=result.message,
            usage=result.usage,
        )  # fmt: skip
        t[CONTRACTS].put(msgspec.structs.replace(contract, result=document))
        t.then(partial(ctx.closings.look, contract.id))
        ctx.accounting.release(t, allocation.id)
        for cid in (result.stdout_cid, result.stderr_cid, *(output.cid for output in result.outputs)):
            if cid:
                Blobs.grant(t, cid, allocation.requester)
        for cid in inputs if contract.oracle else ():
            # an oracle may run the job again; what its requester has only named is not its to give
            if Blobs.may_have(t, cid, allocation.requester):
                Blobs.grant(t, cid, contract.oracle)
        for message in messages:
            ctx.messenger.outbox.enqueue(t, message)
        t.save_event(
            allocation.job_id, f"allocation_{result.state}", allocation_id=allocation.id, exit_code=result.exit_code,
            reason=result.reason,
        )  # fmt: skip
        return document

    return await ctx.store.change(change)
