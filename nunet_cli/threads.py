"""Blocking calls: in a worker thread with a limiter, or inline in a simulation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import trio
from outcome import Outcome

from nunet_cli.world import world

T = TypeVar("T")


async def in_thread(
    function: Callable[..., T], *arguments: Any, limiter: trio.CapacityLimiter, abandon_on_cancel: bool = False
) -> T:
    """Run a function that waits for the disk or the like, in a worker thread."""
    if not world().threads:
        await trio.lowlevel.checkpoint()
        return function(*arguments)
    return await trio.to_thread.run_sync(function, *arguments, limiter=limiter, abandon_on_cancel=abandon_on_cancel)


async def alone_in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a worker thread, for a caller that has one in a thread at a time and waits for its end.

    Without a limiter and the rest of what `trio.to_thread` does it takes half of the event loop's time; a cancellation
    waits for the end.
    """
    if not world().threads:
        await trio.lowlevel.cancel_shielded_checkpoint()
        return function(*arguments)
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

    def deliver(result: Outcome[T]) -> None:
        token.run_sync_soon(trio.lowlevel.reschedule, task, result)

    trio.lowlevel.start_thread_soon(partial(function, *arguments), deliver)
    return cast(T, await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED))


class Threads:
    """Worker threads for what waits for the disk, so many at once."""

    def __init__(self, most: int) -> None:
        self._limiter = trio.CapacityLimiter(most)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function that waits for the disk, in a worker thread."""
        return await in_thread(function, *arguments, limiter=self._limiter)
