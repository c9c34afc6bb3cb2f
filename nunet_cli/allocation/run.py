"""Stage 6, the provider's machine: one allocation from its inputs to its signed result.

The messages of the stage, and the requester's half, are in `execute`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import trio

from nunet_cli import units
from nunet_cli.actor import Actor
from nunet_cli.allocation.part import Part, add_usage, collect, make_part, prepare, start
from nunet_cli.allocation.pod import Ended, run_pod, run_single
from nunet_cli.allocation.results import broken_result, failed_result, held, readable, result_of, said_of
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NoSpaceError, NunetError, PeerError
from nunet_cli.executor.base import Exit
from nunet_cli.executor.files import remove_folder
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import programs
from nunet_cli.network.blobs import Blobs
from nunet_cli.orchestrator.context import Context, plain, read
from nunet_cli.records.contracts import PROVIDER, Contract
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.messages import JobCompleted, JobStatusUpdate
from nunet_cli.records.results import Result, Usage
from nunet_cli.records.states import ALLOCATION_ENDS, ALLOCATION_TRANSITIONS, check_transition

log = logging.getLogger("nunet.allocation")

RESULT_LIFETIME = 14 * 86400
PROGRESS_INTERVAL = 0.25
END_PAUSE, MAX_END_PAUSE = 1.0, 60.0
JOB_FAULTS = {"no_workdir", "inputs_too_large", "bad_text", "bad_place"}
LATE_JOB_FAULTS = {"no_program", "no_image", "image_not_allowed"}


class AllocationActor(Actor):
    """An allocation that runs now (second seed: an allocation is an actor, and the node routes messages to it).

    Its mailbox takes `cancel` and `status`. `began` is set once a program runs, `cancelled` once the requester has
    called it off.
    """

    def __init__(self, allocation_id: str, parts: list[Part]) -> None:
        super().__init__({"cancel": self._on_cancel, "status": self._on_status})
        self.allocation_id, self.parts = allocation_id, parts
        self.scope = trio.CancelScope()
        self.cancelled = False
        self.began, self.ended = trio.Event(), trio.Event()

    async def _on_cancel(self, _body: Any) -> str:
        self.cancelled = True
        self.scope.cancel()
        return "cancelling"

    async def _on_status(self, _body: Any) -> Usage:
        return await self.usage()

    async def usage(self) -> Usage:
        """Return what all its programs have used so far, and how long the machine has been held for them."""
        total = Usage()
        for part in self.parts:
            try:
                total = add_usage(total, await part.usage())
            except Exception as error:
                log.warning("what %s used is not known: %s", part.task.allocation_id, error)
        first = min((part.started_at for part in self.parts if part.started_at), default="")
        restarts = sum(part.task.restarts for part in self.parts)
        return msgspec.structs.replace(total, wall_seconds=held(first, units.utc_now()), restarts=restarts)

    async def stop(self, *types: str) -> None:
        """End every program, or those of some executors; what cannot be ended is said, and keeps no other from it."""
        for part in self.parts:
            if part.handle and (not types or part.task.spec.type in types):
                try:
                    await part.executor.stop(part.task, part.handle)
                except Exception as error:
                    # an engine says what it likes
                    log.warning("%s cannot be stopped: %s", part.task.allocation_id, error)


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
    try:
        spec = decode_spec(contract["spec"])
        parts = make_parts(ctx, row, spec)
    except NunetError as error:
        await _end(ctx, [], row, failed_result(row, row["started_at"], error.code, error.message, fault="provider"))
        return
    except Exception as error:
        log.exception("allocation %s cannot be begun", allocation_id)
        await _end(ctx, [], row, broken_result(row, error))
        return
    actor = ctx.running[allocation_id] = AllocationActor(allocation_id, parts)
    result: Result | None = None
    over = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(actor.run_mailbox)
            try:
                with actor.scope:
                    result = await _run(ctx, actor, row, spec, attached=attached)
            except Exception as error:
                # an engine that goes away, a full disk: the requester is told, and the node goes on
                log.exception("allocation %s failed", allocation_id)
                with trio.CancelScope(shield=True):
                    await actor.stop()
                result = broken_result(row, error)
            with trio.CancelScope(shield=True):
                ended = result or await _called_off(ctx, actor, row, spec)
            await _end(ctx, actor.parts, row, ended)
            over = True
            nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(10) as patience:
            patience.shield = True
            # the node stops: a process goes with it, a container stays and is found again
            if not over:
                await actor.stop("process")
        ctx.running.pop(allocation_id, None)
        actor.ended.set()


def make_parts(ctx: Context, row: dict[str, Any], spec: JobSpec) -> list[Part]:
    """Return the programs of an allocation, with the handles of those that were started.

    Raises:
        ExecutorError: the node has no such executor any more.
    """
    found = [make_part(ctx, row, child, child.name) for child in spec.children] or [make_part(ctx, row, spec)]
    handles = row.get("handles", {})
    for part in found:
        part.handle, part.started_at = handles.get(part.name, ""), row["started_at"]
    return found


async def _run(
    ctx: Context, actor: AllocationActor, row: dict[str, Any], spec: JobSpec, *, attached: bool
) -> Result | None:
    """Run the programs and return the result; None when the requester called them off."""

    async def started(part: Part) -> None:
        row["started_at"] = row["started_at"] or part.started_at
        row["handles"] = {**row.get("handles", {}), part.name: part.handle}
        await _note_started(ctx, row)
        actor.began.set()

    try:
        if attached:
            actor.began.set()
        else:
            await set_allocation(ctx, row["id"], "starting")
        if spec.pod:
            ended = await _beating(ctx, actor, row, lambda: run_pod(ctx, spec, actor.parts, started))
        else:
            (part,) = actor.parts

            async def run() -> Ended:
                if not attached:
                    await prepare(ctx, part, {})
                    await start(part, started)
                return await run_single(ctx, part, started)

            ended = await _beating(ctx, actor, row, run)
    except (NunetError, trio.TooSlowError, OSError) as error:
        log.warning("allocation %s could not start: %s", row["id"], error)
        code = error.code if isinstance(error, NunetError) else "executor_error"
        # a later start fails by what the job asked for, too: the machine was held for it until then
        late = bool(row["started_at"]) and (code in LATE_JOB_FAULTS or isinstance(error, PeerError))
        fault = "job" if code in JOB_FAULTS or late else "provider"
        return failed_result(row, row["started_at"], code, said_of(error), fault=fault)
    result: Result | None = None
    if not actor.cancelled:
        with trio.CancelScope(shield=True):
            result = await result_of(ctx, row, ended)
    return result


async def _beating(
    ctx: Context, actor: AllocationActor, row: dict[str, Any], run: Callable[[], Awaitable[Ended]]
) -> Ended:
    """Run the programs, sending heartbeats all along."""
    problem: Exception | None = None
    ended: Ended | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_beat, ctx, actor, row)
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


async def _note_started(ctx: Context, row: dict[str, Any]) -> None:
    """Record the handle of a program that was started; the allocation runs from the first one on."""
    fields = {"handles": row["handles"], "started_at": row["started_at"]}

    def change(t: Transaction) -> None:
        current = t.find("allocations", row["id"])
        assert current is not None
        if current["state"] == "starting":
            _set_allocation(t, row["id"], "running", fields)
        else:
            t.put("allocations", {**current, **fields})

    await ctx.store.change(change)


async def _beat(ctx: Context, actor: AllocationActor, row: dict[str, Any]) -> None:
    """Tell how far the start has come, and once something runs, that it does."""
    while not actor.began.is_set():
        with _heard("progress", row):
            await _tell_progress(ctx, actor, row)
        with trio.move_on_after(PROGRESS_INTERVAL):
            await actor.began.wait()
    while True:
        with _heard("a sign of life", row):
            await job_update(ctx, actor, row)
        await trio.sleep(ctx.config.limits.heartbeat)


@contextmanager
def _heard(what: str, row: dict[str, Any]) -> Iterator[None]:
    """Go on when news could not be sent: the next one will be."""
    try:
        yield
    except Exception as error:
        log.debug("%s of allocation %s was not sent: %s", what, row["id"], error)


async def _tell_progress(ctx: Context, actor: AllocationActor, row: dict[str, Any]) -> None:
    for part in actor.parts:
        progress, part.progress = part.progress, None
        if progress is not None:
            update = JobStatusUpdate(row["contract_id"], row["id"], "starting", Usage(), units.utc_now(), progress)
            await ctx.messenger.tell(row["requester"], "job_status_update", update)


async def job_update(ctx: Context, actor: AllocationActor, row: dict[str, Any]) -> JobStatusUpdate:
    """Send a sign of life with what is used so far (seed 6: `executor.jobUpdate`), and return it."""
    update = JobStatusUpdate(row["contract_id"], row["id"], "running", await actor.usage(), units.utc_now())
    await ctx.messenger.tell(row["requester"], "job_status_update", update)
    return update


async def _called_off(ctx: Context, actor: AllocationActor, row: dict[str, Any], spec: JobSpec) -> Result:
    """End the programs for the requester, and return the result."""
    try:
        usage = await actor.usage()
        await actor.stop()
        if spec.type == "service" and row["started_at"]:
            # to be stopped is how a service ends well
            outputs, missing = await collect(ctx, actor.parts[0], ctx.config.limits.output_size)
            return await result_of(ctx, row, Ended(Exit(0, usage), outputs, missing))
    except Exception as error:
        log.exception("allocation %s could not be ended well", row["id"])
        await actor.stop()
        return broken_result(row, error)
    started_at = row["started_at"] or units.utc_now()
    result = failed_result(row, started_at, "cancelled", "called off by the requester", fault="", state="cancelled")
    return msgspec.structs.replace(result, usage=usage)


async def _end(ctx: Context, parts: list[Part], row: dict[str, Any], result: Result) -> None:
    """Sign the result; keep it, free the capability and queue the news in one change; then clean up.

    Where that cannot be kept, as on a full disk, what the job left is removed first, and it is tried again until it
    can: nothing but this allocation waits for it. What is refused for another reason would be refused for ever: the
    allocation ends as failed then.
    """
    pause, clean = END_PAUSE, False
    while True:
        with trio.CancelScope(shield=True):
            try:
                await finish_allocation(ctx, row, result)
                break
            except Exception as error:
                log.exception("the end of allocation %s cannot be kept; it is tried again", row["id"])
                if not isinstance(error, NoSpaceError | OSError):
                    result = broken_result(row, error)
                if not clean:
                    await _clean_up(ctx, parts, row)
                clean = True
        await trio.sleep(pause)
        pause = min(pause * 2, MAX_END_PAUSE)
    if not clean:
        with trio.CancelScope(shield=True):
            await _clean_up(ctx, parts, row)


async def _clean_up(ctx: Context, parts: list[Part], row: dict[str, Any]) -> None:
    for part in parts:
        if part.handle:
            try:
                await part.executor.cleanup(part.task, part.handle)
            except Exception as error:
                log.warning("cleaning up after %s: %s", row["id"], error)
    try:
        await ctx.blocking(remove_folder, ctx.home / "allocations" / row["id"])
    except Exception as error:
        log.warning("removing the folder of %s: %s", row["id"], error)


async def finish_allocation(ctx: Context, row: dict[str, Any], result: Result) -> Document:
    """Record the end of an allocation with its signed result, and queue the message to the requester."""
    known = ctx.store.find("contracts", row["contract_id"])
    assert known is not None
    # however late the end was seen to: nobody agreed to more
    agreed = read(known, "document", Document).read(Contract).terms.max_duration
    seconds = min(held(result.started_at, result.ended_at), float(agreed))
    used = msgspec.structs.replace(result.usage, wall_seconds=seconds)
    result = readable(msgspec.structs.replace(result, usage=used))
    document = make_document(result).sign(ctx.identity, PROVIDER)
    inputs = [item.cid for part in programs(decode_spec(known["spec"])) for item in part.inputs]
    type_ = "job_completed" if result.state == "completed" else "job_error"
    message = ctx.messenger.outbox.outgoing(
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
        ctx.accounting.release(t, row["id"])
        for cid in (result.stdout_cid, result.stderr_cid, *(output.cid for output in result.outputs)):
            if cid:
                Blobs.grant(t, cid, row["requester"])
        for cid in inputs if contract["oracle"] else ():
            # an oracle may run the job again
            Blobs.grant(t, cid, contract["oracle"])
        ctx.messenger.outbox.enqueue(t, message)
        t.save_event(
            row["job_id"], f"allocation_{result.state}", allocation_id=row["id"], exit_code=result.exit_code,
            reason=result.reason,
        )  # fmt: skip

    await ctx.store.change(change)
    ctx.messenger.outbox.wake()
    return document


async def set_allocation(ctx: Context, allocation_id: str, state: str) -> dict[str, Any]:
    """Put an allocation into a state, with its event."""
    return await ctx.store.change(lambda t: _set_allocation(t, allocation_id, state, {}))


def _set_allocation(t: Transaction, allocation_id: str, state: str, fields: dict[str, Any]) -> dict[str, Any]:
    row = t.find("allocations", allocation_id)
    assert row is not None
    check_transition(ALLOCATION_TRANSITIONS, row["state"], state, f"allocation {allocation_id}")
    row.update(fields, state=state)
    t.put("allocations", row)
    t.save_event(row["job_id"], f"allocation_{state}", allocation_id=allocation_id)
    return row
