"""Stage 6, after a restart of the provider: what became of the allocations that had not ended."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Protocol

import trio

from nunet_cli.allocation.reexecute import HasSecondRuns, leftovers
from nunet_cli.allocation.results import called_off_result, failed_result, with_logs
from nunet_cli.allocation.run import Allocating, finish_allocation, make_parts, run_allocation
from nunet_cli.database.store import Store
from nunet_cli.errors import NunetError, StateError
from nunet_cli.executor.base import Lasting
from nunet_cli.executor.files import allocation_folder, remove_folder
from nunet_cli.jobs.check import decode_spec
from nunet_cli.orchestrator.needs import HasAvailable, HasExecutors, HasIdentity, HasStore, HasTasks
from nunet_cli.records.allocations import ALLOCATION, ALLOCATION_ENDS, ALLOCATIONS, Allocation
from nunet_cli.records.contract_records import CONTRACTS

log = logging.getLogger("nunet.recover")

_OPEN = tuple(state for state in ALLOCATION.states if state not in ALLOCATION_ENDS)


class Recovering(HasTasks, Allocating, Protocol):
    """Takes allocations up again."""


class Sweeping(HasSecondRuns, HasAvailable, HasExecutors, HasIdentity, HasStore, Protocol):
    """Removes what nobody owns."""


def left_open(store: Store) -> tuple[str, ...]:
    """Return the allocations that have not ended; before a node takes messages: those that an earlier run left."""
    return tuple(allocation.id for allocation in store[ALLOCATIONS].by("state", *_OPEN))


async def recover_allocations(ctx: Recovering, left: tuple[str, ...]) -> None:
    """After a restart: go on with what still runs, start what never did, and report what was lost.

    Args:
        ctx: the node's parts.
        left: what an earlier run left, as `left_open` says; what has been invoked since then has been begun.
    """
    for key in leftovers(ctx.store):
        # an oracle's second run: whoever waited for it asks again
        await ctx.store.change(lambda t, key=key: ctx.accounting.release(t, key))  # type: ignore[misc]  # bound now
        with suppress(StateError):
            await ctx.threads.run(remove_folder, allocation_folder(ctx.home, key))
    for allocation_id in left:
        allocation = ctx.store[ALLOCATIONS].one(allocation_id)
        if allocation.state in ALLOCATION_ENDS:
            # called off meanwhile
            continue
        try:
            await _recover(ctx, allocation)
        except Exception:
            # the others, and the node, are not to suffer for it; it is looked at again at the next start
            log.exception("allocation %s cannot be taken up again", allocation.id)


async def remove_left(ctx: Sweeping) -> None:
    """End and remove what no allocation of this node owns, at every engine that answers.

    Who was killed, or gave an engine up that did not answer, has not ended what it had started there.
    """

    def is_owned(allocation_id: str) -> bool:
        known = ctx.store[ALLOCATIONS].get(allocation_id)
        return (known is not None and known.state not in ALLOCATION_ENDS) or allocation_id in ctx.second_runs

    for name, executor in ctx.executors.items():
        if name in ctx.available_executors and isinstance(executor, Lasting):
            for allocation_id in await executor.remove_left(ctx.identity.did, is_owned):
                log.warning("%s was left behind and is removed", allocation_id)


async def _recover(ctx: Recovering, allocation: Allocation) -> None:
    contract = ctx.store[CONTRACTS].one(allocation.contract_id)
    if allocation.state == "created":
        ctx.supervisor.start_soon(ctx.nursery, "allocation", run_allocation, ctx, allocation.id)
        return
    spec = decode_spec(contract.spec)
    alive = False
    code, message = "provider_restarted", "the provider was restarted while the job ran"
    try:
        parts = make_parts(ctx, allocation, spec)
        found = [part for part in parts if part.handle and await part.executor.attach(part.task, part.handle)]
        # a pod is more than its containers: its order is lost with the node, so it is ended
        alive = bool(found) and not spec.pod
        for part in found if spec.pod else []:
            await part.executor.stop(part.task, part.handle)
            await part.executor.cleanup(part.task, part.handle)
    except (NunetError, trio.TooSlowError) as error:
        log.warning("allocation %s cannot be looked for: %s", allocation.id, error)
        if isinstance(error, NunetError) and error.code == "no_executor":
            code, message = error.code, f"{message}: {error.message}"
    if alive:
        await ctx.store.save_event(allocation.job_id, "allocation_attached", allocation_id=allocation.id)
        ctx.supervisor.start_soon(ctx.nursery, "allocation", _run_attached, ctx, allocation.id)
    else:
        result = failed_result(allocation, allocation.started_at, code, message, fault="provider")
        if contract.called_off_at:
            # the requester was told that it ends, which it has
            result = called_off_result(allocation)
        await finish_allocation(ctx, allocation, await with_logs(ctx, result))
        await ctx.threads.run(remove_folder, allocation_folder(ctx.home, allocation.id))


async def _run_attached(ctx: Allocating, allocation_id: str) -> None:
    await run_allocation(ctx, allocation_id, attached=True)
