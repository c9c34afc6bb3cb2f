"""Stage 6, an allocation that has lined up: it begins once another of its requester's jobs has ended here."""

from __future__ import annotations

from typing import Protocol

import trio

from nunet_cli import quantities
from nunet_cli.allocation.actor import AllocationActor
from nunet_cli.executor.base import ExecutorError
from nunet_cli.orchestrator.needs import HasAccounting, HasConfig, HasStore
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import Contract
from nunet_cli.records.results import Progress

WAITING = "waiting for a place"
# seconds in a line after which others' places may come free earlier
LONGEST = 90.0


class LiningUp(HasAccounting, HasConfig, HasStore, Protocol):
    """Waits for what an allocation needs."""


async def wait_for_place(ctx: LiningUp, actor: AllocationActor) -> None:
    """Wait until an allocation has what it needs, telling its requester so; most have it from the beginning.

    Raises:
        ExecutorError: those before it take too long, or it would not have its time before the contract's deadline any
            more; code `no_place`.
    """
    if not ctx.accounting.is_in_line(ctx.store, actor.allocation_id):
        return
    contract = ctx.store[CONTRACTS].one(actor.allocation.contract_id).document.read(Contract)
    left = (quantities.parse_time(contract.terms.deadline) - quantities.now()).total_seconds()
    until = trio.current_time() + min(left - contract.terms.max_duration, LONGEST)
    while not await ctx.accounting.wait_in_line(
        actor.allocation_id, min(until, trio.current_time() + ctx.config.limits.heartbeat)
    ):
        if not ctx.accounting.is_onboarded():
            raise ExecutorError("this machine is offered no more", code="no_place")
        if trio.current_time() >= until:
            raise ExecutorError("no place came free in time", code="no_place")
        # a sign of life
        actor.parts[0].progress = Progress(WAITING, 0)
