"""Running a job again on the oracle's own machine, to compare (policy `reexecute`).

The oracle runs only what its operator lets the job's requester run, and only what it has room for: it is onboarded, and
the second run takes its share of the registered capability as any allocation does.
"""

from __future__ import annotations

import logging
from typing import Protocol

import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.allocation.part import Making, Part, Preparing, Started, prepare, start
from nunet_cli.allocation.pod import Ended, run_pod, run_single
from nunet_cli.allocation.results import Resulting, result_of, said_of
from nunet_cli.allocation.run import make_parts
from nunet_cli.database.store import Store
from nunet_cli.errors import ContractError, PeerError
from nunet_cli.executor.files import allocation_folder, remove_folder
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import programs, required_capability
from nunet_cli.orchestrator.needs import HasAccounting, HasExecutors, HasStore, HasTasks
from nunet_cli.orchestrator.permissions import Permitting, may_use
from nunet_cli.orchestrator.post import TakingIn, new_id
from nunet_cli.records.allocations import HOLDINGS, Allocation
from nunet_cli.records.contracts import Contract
from nunet_cli.records.messages import JobVerification
from nunet_cli.records.results import Result

log = logging.getLogger("nunet.reexecute")

MAX_AT_ONCE = 2
MAX_SECONDS = 3600
GIVE_BACK_PAUSE, MAX_GIVE_BACK_PAUSE = 1.0, 60.0
KIND = "reexecution"


class HasSecondRuns(Protocol):
    """The second runs that go on here."""

    @property
    def second_runs(self) -> SecondRuns:
        """At most `MAX_AT_ONCE`."""


class Holding(HasAccounting, HasStore, Protocol):
    """Takes capability, and gives it back."""


class GivingBack(Holding, HasTasks, Protocol):
    """Gives capability back, however long that takes."""


class Permitted(HasAccounting, HasExecutors, Permitting, Protocol):
    """Knows which jobs the oracle's operator lets run."""


class Rerunning(Making, Preparing, Resulting, Protocol):
    """Runs the programs of a job."""


class Reexecuting(Rerunning, Permitted, HasSecondRuns, GivingBack, Protocol):
    """Runs a job again."""


class SecondRuns:
    """The second runs of jobs that go on here."""

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._ids

    def begin(self, run_id: str) -> None:
        """Take one on.

        Raises:
            ContractError: there are as many as may be.
        """
        if len(self._ids) >= MAX_AT_ONCE:
            raise ContractError("the oracle runs other jobs again just now", code="oracle_busy")
        self._ids.add(run_id)

    def end(self, run_id: str) -> None:
        """Let go of one."""
        self._ids.discard(run_id)


async def reexecute(ctx: Reexecuting, request: JobVerification, sender: str) -> Result:
    """Run the job of a verification here and return its result, unsigned.

    Args:
        ctx: the node's parts.
        request: the documents, checked already.
        sender: who asked; it has the inputs, or the other party does.

    Raises:
        ContractError: this machine may not run the job, or the run takes too long.
        StateError: it has no room for it.
        PeerError: nobody gives the inputs.
    """
    contract = request.contract.read(Contract)
    spec = decode_spec(request.spec)
    await _check(ctx, spec, contract.requester)
    # whose job it is decides what it may do here, whoever asks
    run = Allocation(
        id=new_id(KIND), job_id=contract.job_id, contract_id=request.contract.cid, requester=contract.requester,
        executor="",
    )  # fmt: skip
    ctx.second_runs.begin(run.id)
    try:
        await _take_room(ctx, run.id, spec)
        with trio.move_on_after(MAX_SECONDS):
            for item in (item for part in programs(spec) for item in part.inputs):
                await _fetch(ctx, (sender, contract.requester, contract.provider), item.cid, item.size)
            return await _run(ctx, run, spec)
        raise ContractError(f"the oracle gives a second run no more than {MAX_SECONDS} s", code="reexecution_too_long")
    finally:
        ctx.second_runs.end(run.id)
        with trio.CancelScope(shield=True):
            await _give_back(ctx, run.id)


async def _give_back(ctx: GivingBack, key: str) -> None:
    """Free the capability; where that cannot be kept, as on a full disk, the verdict does not wait for it."""
    try:
        await _release(ctx, key)
    except Exception as error:
        log.warning("what %s held cannot be given back yet: %s", key, error)
        ctx.supervisor.start_soon(ctx.nursery, "giving back what a second run held", _give_back_later, ctx, key)


async def _give_back_later(ctx: Holding, key: str) -> None:
    pause = GIVE_BACK_PAUSE
    while True:
        await trio.sleep(pause)
        pause = min(2 * pause, MAX_GIVE_BACK_PAUSE)
        try:
            await _release(ctx, key)
            return
        except Exception as error:
            log.debug("%s: %s", key, error)


async def _release(ctx: Holding, key: str) -> None:
    await ctx.store.change(lambda t: ctx.accounting.release(t, key))


async def _check(ctx: Permitted, spec: JobSpec, requester: str) -> None:
    """Refuse what this oracle's operator does not let the requester run, and what is too large to fetch."""
    if not ctx.accounting.is_onboarded():
        raise ContractError("this oracle offers no machine to run jobs on", code="not_onboarded")
    whom = ctx.accounting.get_preferences()
    if requester in whom.deny or (whom.allow and requester not in whom.allow):
        raise ContractError("the oracle runs no jobs of this requester's", code="not_allowed")
    for part in programs(spec):
        assert part.executor is not None
        kind = part.executor.type
        if kind not in ctx.available_executors:
            raise ContractError(f"the oracle has no {kind} executor", code="no_executor")
        if not may_use(ctx, kind, requester):
            raise ContractError(f"the oracle does not run the requester's {kind} jobs", code="not_allowed")
        refusal = await ctx.executors[kind].refusal(part.executor.image)
        if refusal:
            raise ContractError(f"the oracle does not run the job: {refusal}", code="not_allowed")
        size = sum(item.size for item in part.inputs)
        if size > min(ctx.config.limits.input_size, max(part.resources.disk, 2**20)):
            raise ContractError(f"the inputs have {size} bytes, more than the job's disk", code="inputs_too_large")


async def _take_room(ctx: Holding, key: str, spec: JobSpec) -> None:
    needs = required_capability(spec)

    await ctx.store.change(
        lambda t: ctx.accounting.allocate(t, key, key, needs.resources, min(needs.time.max, MAX_SECONDS))
    )


def leftovers(source: Store) -> list[str]:
    """Return the second runs that hold capability; after a restart, none of them runs any more."""
    return [row.id for row in source[HOLDINGS].by("kind", "allocation") if row.id.startswith(f"{KIND}-")]


async def _run(ctx: Rerunning, run: Allocation, spec: JobSpec) -> Result:
    parts = make_parts(ctx, run, spec)

    async def started(_part: Part) -> None:
        # what runs is not kept: whoever waits for a second run asks again after a restart
        pass

    try:
        ended = await _run_parts(ctx, parts, spec, started)
        first = min((part.started_at for part in parts if part.started_at), default=quantities.utc_now())
        result = await result_of(ctx, structs.replace(run, started_at=first), ended)
        return structs.replace(result, allocation_id="")
    except (OSError, trio.TooSlowError, ExceptionGroup) as error:
        log.exception("the second run %s failed", run.id)
        raise ContractError(f"the oracle could not run the job: {said_of(error)}", code="reexecution_failed") from None
    finally:
        with trio.move_on_after(10) as patience:
            patience.shield = True
            for part in parts:
                await _end(part)
            await ctx.threads.run(remove_folder, allocation_folder(ctx.home, run.id))


async def _end(part: Part) -> None:
    if part.handle:
        try:
            await part.executor.stop(part.task, part.handle)
            await part.executor.cleanup(part.task, part.handle)
        except Exception as error:
            # an engine says what it likes; the verdict does not depend on it
            log.warning("%s cannot be ended: %s", part.task.allocation_id, error)


async def _run_parts(ctx: Preparing, parts: list[Part], spec: JobSpec, started: Started) -> Ended:
    if spec.pod:
        return await run_pod(ctx, spec, parts, started)
    await prepare(ctx, parts[0], [])
    await start(parts[0], started)
    return await run_single(ctx, parts[0], started)


async def _fetch(ctx: TakingIn, parties: tuple[str, ...], cid: str, size: int) -> None:
    problem: PeerError | None = None
    for did in dict.fromkeys(parties):
        try:
            await ctx.blobs.fetch(did, cid, size, patience=ctx.config.limits.answer_timeout)
        except PeerError as error:
            problem = error
        else:
            return
    assert problem is not None
    raise problem
