"""Stage 6, the allocations that run now: each an actor, to which the node routes messages."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import msgspec
import trio

from nunet_cli import quantities
from nunet_cli.actor import Actor
from nunet_cli.allocation.part import Part, add_usage
from nunet_cli.allocation.remarks import Remarks
from nunet_cli.allocation.results import held
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.records.allocations import Allocation
from nunet_cli.records.results import Usage

log = logging.getLogger("nunet.allocation")


class HasRunning(Protocol):
    """The allocations that run now."""

    @property
    def running(self) -> Running:
        """Those that messages can be routed to."""


class AllocationActor(Actor):
    """An allocation that runs now (second seed: an allocation is an actor, and the node routes messages to it).

    Its mailbox takes `cancel`, `end` and `status`. `allocation` is as it was last recorded; `began` is set once a
    program runs, `cancelled` once the requester has called it off, or the provider has ended it (`by_provider`).
    """

    def __init__(self, allocation: Allocation, parts: list[Part], spec: JobSpec) -> None:
        super().__init__({"cancel": self._on_cancel, "end": self._on_end, "status": self._on_status})
        self.allocation, self.parts, self.remarks = allocation, parts, Remarks(spec)
        self.scope = trio.CancelScope()
        self.cancelled = self.by_provider = False
        self.began, self.ended = trio.Event(), trio.Event()

    @property
    def allocation_id(self) -> str:
        """The id of the allocation."""
        return self.allocation.id

    def call_off(self) -> None:
        """Have what runs ended, for the requester."""
        self.cancelled = True
        self.scope.cancel()

    async def _on_cancel(self, _body: Any) -> str:
        self.call_off()
        return "cancelling"

    async def _on_end(self, _body: Any) -> str:
        # whoever was first is who ended it
        self.by_provider = not self.cancelled
        return await self._on_cancel(None)

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
        return msgspec.structs.replace(total, wall_seconds=held(first, quantities.utc_now()), restarts=restarts)

    async def stop(self, *types: str) -> None:
        """End every program, or those of some executors; what cannot be ended is said, and keeps no other from it."""
        for part in self.parts:
            try:
                if part.is_set_up and not part.handle:
                    # it was not started: nothing of the job is in it
                    await part.executor.cleanup(part.task, "")
                if part.handle and (not types or part.task.spec.type in types):
                    await part.executor.stop(part.task, part.handle)
            except Exception as error:
                # an engine says what it likes
                log.warning("%s cannot be stopped: %s", part.task.allocation_id, error)


class Running:
    """The allocations that run now."""

    def __init__(self) -> None:
        self._actors: dict[str, AllocationActor] = {}

    def __len__(self) -> int:
        return len(self._actors)

    def add(self, actor: AllocationActor) -> None:
        """Let messages be routed to an allocation."""
        self._actors[actor.allocation_id] = actor

    def remove(self, allocation_id: str) -> None:
        """Route no more messages to an allocation."""
        self._actors.pop(allocation_id, None)

    def get(self, allocation_id: str) -> AllocationActor | None:
        """Return an allocation that runs; None where it does not."""
        return self._actors.get(allocation_id)

    def all(self) -> list[AllocationActor]:
        """Return those that run, the oldest first."""
        return list(self._actors.values())
