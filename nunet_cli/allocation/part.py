"""Stage 6, one program of an allocation: its inputs, its run within limits, its restarts and health, its outputs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

import msgspec
import trio

from nunet_cli import quantities
from nunet_cli.allocation.taking import Keeping, take_in
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError
from nunet_cli.executor.base import NODE_LABEL, Executor, ExecutorError, Exit, Given, SettingUp, Task, make_scratch
from nunet_cli.executor.files import allocation_folder
from nunet_cli.jobs.spec import HealthSpec, JobSpec, ServiceSpec, output_name
from nunet_cli.jobs.tree import output_room
from nunet_cli.network.data.trees import entries_of
from nunet_cli.orchestrator.needs import HasConfig, HasExecutors, HasHome, HasStore
from nunet_cli.orchestrator.permissions import Permitting, trusts
from nunet_cli.records.allocations import Allocation
from nunet_cli.records.results import OutputFile, Progress, Usage
from nunet_cli.records.trees import TreeError, size_on_disk

log = logging.getLogger("nunet.part")

MEMBERS = "members"  # the folders of a pod's members: beside its logs, whatever they are called
FETCH_TIMEOUT = 6 * 3600.0
Started = Callable[["Part"], Awaitable[None]]


class Making(HasExecutors, HasHome, Permitting, Protocol):
    """Makes the programs of an allocation."""


class Preparing(Keeping, HasConfig, HasStore, Protocol):
    """Takes a program from its inputs to its outputs."""


@dataclass
class Part:
    """One program: `name` is empty for a job of its own, or the member's name in a pod."""

    name: str
    spec: JobSpec
    task: Task
    executor: Executor
    job_id: str
    requester: str
    handle: str = ""
    is_set_up: bool = False
    started_at: str = ""
    spent: Usage = field(default_factory=Usage)
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Hear what the executor reports."""
        self.task = replace(self.task, report=self.report)

    def report(self, what: str, done: int, total: int) -> None:
        """Note how far the start has come."""
        self.progress = Progress(what, done, total)

    async def usage(self) -> Usage:
        """Return what the program has used so far, in all its starts."""
        return add_usage(self.spent, await self.executor.usage(self.task, self.handle)) if self.handle else self.spent


def add_usage(first: Usage, second: Usage) -> Usage:
    """Return the sum of the seconds and restarts, and the larger memory."""
    return Usage(
        round(first.cpu_seconds + second.cpu_seconds, 3), round(first.wall_seconds + second.wall_seconds, 3),
        max(first.max_memory, second.max_memory), first.restarts + second.restarts,
    )  # fmt: skip


def make_part(ctx: Making, allocation: Allocation, spec: JobSpec, name: str = "") -> Part:
    """Return a program of an allocation, ready to be prepared.

    Raises:
        ExecutorError: the node has no such executor any more.
    """
    assert spec.executor is not None
    if spec.executor.type not in ctx.executors:
        raise ExecutorError(f"the provider has no {spec.executor.type} executor any more", code="no_executor")
    process = ctx.config.executor.process
    trusted = trusts(ctx, "process", allocation.requester)
    has_sandbox = ctx.available_executors.get("process", "").startswith("bubblewrap")
    # whoever may run without a sandbox still gets one where there is one
    bare = (trusted or process.foreign == "unsandboxed") and not has_sandbox
    folder = allocation_folder(ctx.home, allocation.id)
    task = Task(
        allocation_id=f"{allocation.id}/{name}" if name else allocation.id, spec=spec.executor,
        resources=spec.resources, max_duration=spec.time.max_duration, max_log=ctx.config.limits.log_size,
        sandbox=not bare, foreign=not trusts(ctx, spec.executor.type, allocation.requester),
        folder=folder / MEMBERS / name if name else folder,
        inputs=tuple(item.to for item in spec.inputs if item.kind == "file"),
        labels={NODE_LABEL: ctx.identity.did, "org.nunet.job": allocation.job_id},
    )  # fmt: skip
    return Part(name, spec, task, ctx.executors[spec.executor.type], allocation.job_id, allocation.requester)


async def prepare(ctx: Preparing, part: Part, given: Sequence[Given]) -> None:
    """Fetch the inputs from the requester, and make the scratch folder.

    Args:
        ctx: the node's parts.
        part: the program.
        given: inputs that are here already.

    Raises:
        ExecutorError: the inputs have no room, or the executor cannot be made ready.
        PeerError: the requester does not give the inputs.
    """
    spec = part.spec
    total = sum(item.size for item in spec.inputs) + sum(item.source.stat().st_size for item in given)
    room = min(ctx.config.limits.input_size, max(spec.resources.disk, 2**20))
    _check_room(total, room)
    inputs = list(given)
    with trio.fail_after(FETCH_TIMEOUT):
        arrived = 0
        for item in spec.inputs:
            path = await ctx.blobs.fetch(
                part.requester, item.cid, item.size, patience=ctx.config.limits.input_patience,
                progress=lambda here, before=arrived: part.report("inputs", before + here, total),  # type: ignore[misc]  # bound now
            )  # fmt: skip
            inputs.append(Given(item.to, path, item.kind == "folder"))
            arrived += item.size
    if inputs:
        event = {"count": len(inputs), "bytes": total} | ({"member": part.name} if part.name else {})
        brought = [item.cid for item in spec.inputs]

        def note(t: Transaction) -> None:
            ctx.blobs.note_brought(t, brought, part.requester)
            t.save_event(part.job_id, "inputs_received", **event)

        await ctx.store.change(note)
    _check_room(await ctx.threads.run(_unpacked_size, inputs), room)
    await part.executor.prepare(part.task)
    part.task = replace(part.task, inputs=tuple(item.place for item in inputs if not item.is_folder))
    await ctx.threads.run(make_scratch, part.task, inputs)


def _check_room(total: int, room: int) -> None:
    if total > room:
        raise ExecutorError(f"the inputs have {total} bytes, more than the job's disk", code="inputs_too_large")


def _unpacked_size(inputs: Sequence[Given]) -> int:
    """Return what inputs take of the disk once they are in their places: empty files and folders are something, too."""
    try:
        return sum(
            size_on_disk(entries_of(item.source)) if item.is_folder else item.source.stat().st_size for item in inputs
        )
    except TreeError as error:
        raise ExecutorError(f"an input is no folder: {error.message}", code="bad_place") from None


async def set_up(part: Part) -> None:
    """Have what the program runs in set up, where its executor can, before it may start; it is not cancelled half-way.

    Raises:
        ExecutorError: it cannot be.
    """
    if isinstance(part.executor, SettingUp):
        with trio.CancelScope(shield=True):
            part.is_set_up = True
            await part.executor.set_up(part.task)


async def start(part: Part, started: Started) -> None:
    """Start the program and have it recorded; neither is cancelled half-way: nobody would know of it."""
    with trio.CancelScope(shield=True):
        part.handle = await part.executor.start(part.task)
        part.started_at = part.started_at or quantities.utc_now()
        await started(part)


async def wait(ctx: HasStore, part: Part, restarted: Started) -> Exit:
    """Wait for the program's end within its wall time, and say when it was; a service is started again as it says.

    What ended by itself while the node was away has ended then, and not when the node came back.

    Args:
        ctx: the node's parts.
        part: the program, started.
        restarted: called when a service has been started again, to record its new handle.
    """
    service = part.spec.service or ServiceSpec()
    until = quantities.parse_time(part.started_at) + timedelta(seconds=part.task.max_duration)
    while True:
        exit_ = await _wait_once(ctx, part, until)
        exit_ = replace(exit_, usage=add_usage(part.spent, exit_.usage))
        if part.spec.type != "service" or exit_.reason == "max_duration":
            break
        clean = exit_.exit_code == 0 and not exit_.reason
        if service.restart == "never" or (clean and service.restart == "on_failure"):
            break
        if part.task.restarts >= service.max_restarts or quantities.now() >= until:
            break
        event = {"restart": part.task.restarts + 1, "exit_code": exit_.exit_code, "reason": exit_.reason}
        await ctx.store.save_event(part.job_id, "service_restarted", **event)
        part.spent = exit_.usage
        await part.executor.cleanup(part.task, part.handle)
        part.handle = ""
        await trio.sleep(service.delay)
        part.task = replace(part.task, restarts=part.task.restarts + 1)
        await start(part, restarted)
    now = quantities.utc_now()
    exit_ = replace(
        exit_, usage=msgspec.structs.replace(exit_.usage, restarts=part.task.restarts),
        # another's clock is believed between the start and now
        ended_at=min(max(exit_.ended_at, part.started_at), now) if exit_.ended_at else now,
    )  # fmt: skip
    # a service that was up for the whole time it was paid for has done its work
    return replace(exit_, exit_code=0, reason="") if _is_over(part, exit_) else exit_


def _is_over(part: Part, exit_: Exit) -> bool:
    return part.spec.type == "service" and exit_.reason == "max_duration"


async def _wait_once(ctx: HasStore, part: Part, until: datetime) -> Exit:
    left = max(0.0, (until - quantities.now()).total_seconds())
    ended: list[Exit] = []
    reason = ""
    health = part.spec.service.health if part.spec.service is not None else None
    sick = trio.Event()
    over = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            ended.append(await part.executor.wait(part.task, part.handle))
            over.set()

        async with trio.open_nursery() as waiter:
            waiter.start_soon(run)
            if health is not None:
                nursery.start_soon(_watch_health, ctx, part, health, sick)
            with trio.move_on_after(left) as limit:
                async with trio.open_nursery() as either:
                    for event in (over, sick):
                        either.start_soon(_first, event, either.cancel_scope)
            if not ended and (limit.cancelled_caught or sick.is_set()):
                reason = "unhealthy" if sick.is_set() else "max_duration"
                await part.executor.stop(part.task, part.handle)
        nursery.cancel_scope.cancel()
    exit_ = ended[0]
    if reason == "max_duration" and exit_.ended_at and quantities.parse_time(exit_.ended_at) <= until:
        # it had ended in time by itself, before it was looked at
        return exit_
    return replace(exit_, reason=reason) if reason else exit_


async def _first(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _watch_health(ctx: HasStore, part: Part, health: HealthSpec, sick: trio.Event) -> None:
    await trio.sleep(health.start_period)
    failures, told = 0, ""
    while True:
        await trio.sleep(health.interval)
        well = False
        with trio.move_on_after(health.timeout):
            try:
                well = await part.executor.check(part.task, part.handle, health.command)
            except (NunetError, trio.TooSlowError) as error:
                log.info("health of %s: %s", part.task.allocation_id, error)
        failures = 0 if well else failures + 1
        state = "healthy" if well else "unhealthy" if failures >= health.retries else told
        if state != told:
            told = state
            await ctx.store.save_event(part.job_id, f"service_{state}", failures=failures)
        if failures >= health.retries:
            sick.set()
            return


async def collect(ctx: Keeping, part: Part, room: int) -> tuple[list[OutputFile], list[str]]:
    """Take the outputs in as blobs; return them, and the paths that are missing or have no room.

    Args:
        ctx: the node's parts.
        part: the program, ended.
        room: the bytes that the outputs may have; they have no more than the job's disk either.
    """
    outputs: list[OutputFile] = []
    missing, total = [], 0
    room = min(room, output_room(part.spec))
    for item in part.spec.outputs:
        taken = await take_in(ctx, part.task, item, room - total)
        if taken is None:
            missing.append(f"{part.name}/{item.path}" if part.name else item.path)
            continue
        total += taken.size
        name = output_name(item)
        outputs.append(OutputFile(f"{part.name}/{name}" if part.name else name, taken.cid, taken.size, taken.kind))
    return outputs, missing
