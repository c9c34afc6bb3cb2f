"""Blocking calls: in a worker thread with a limiter, or inline in a simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import trio

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


class Threads:
    """Worker threads for what waits for the disk, so many at once."""

    def __init__(self, most: int) -> None:
        self._limiter = trio.CapacityLimiter(most)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function that waits for the disk, in a worker thread."""
        return await in_thread(function, *arguments, limiter=self._limiter)
