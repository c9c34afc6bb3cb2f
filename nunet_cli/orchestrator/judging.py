"""Evaluating expressions: off the event loop, one at a time, and not without end for any one peer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from nunet_cli.jobs import expressions
from nunet_cli.network.connection import TokenBucket
from nunet_cli.threads import in_thread

T = TypeVar("T")
# some 1.2 s of the processor, at the worst; a rule that people write takes 10 to 50 steps
STEPS_PER_MINUTE = 200_000
MAX_PEERS = 1000


class Judging:
    """Runs what evaluates expressions, and keeps account of the steps that peers cause."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)
        self._left: OrderedDict[str, TokenBucket] = OrderedDict()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function that evaluates expressions in a worker thread.

        The library keeps Python's lock during one expression, which is bounded; between two, others have their turn.
        """
        return await in_thread(function, *arguments, limiter=self._limiter)

    async def run_where(self, there_are: bool, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function that evaluates expressions, in a worker thread where there are any: else it takes no time."""
        return await self.run(function, *arguments) if there_are else function(*arguments)

    def is_spent(self, did: str, rules: tuple[str, ...], names: expressions.Variables) -> bool:
        """Say whether a peer has used up its steps of this minute, or take these from them."""
        steps = sum(expressions.steps(rule, names) for rule in rules)
        if not steps:
            return False
        left = self._left.setdefault(did, TokenBucket(STEPS_PER_MINUTE / 60, burst=60))
        self._left.move_to_end(did)
        if len(self._left) > MAX_PEERS:
            self._left.popitem(last=False)
        return not left.take(steps)
