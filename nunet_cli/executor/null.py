"""The null executor: runs nothing, for as long as its environment says. For benchmarks and the simulation.

`NULL_SECONDS` is how long it takes, `NULL_EXIT` its exit code; by default it ends at once, with 0.
"""

from __future__ import annotations

import trio

from nunet_cli.executor.base import ExecutorError, Exit, Probe, Task
from nunet_cli.records.results import Usage


class NullExecutor:
    """Runs nothing."""

    type = "null"

    def __init__(self) -> None:
        self._starts: dict[str, float] = {}
        self._stops: dict[str, trio.Event] = {}

    async def probe(self) -> Probe:
        """Always works."""
        return Probe(True, "does nothing")

    async def refusal(self, image: str) -> str:
        """There are no images here."""
        return ""

    async def prepare(self, task: Task) -> None:
        """Nothing to prepare."""

    async def start(self, task: Task) -> str:
        """Note the time."""
        self._starts[task.allocation_id] = trio.current_time()
        self._stops[task.allocation_id] = trio.Event()
        return "null"

    async def attach(self, task: Task, handle: str) -> bool:
        """There is nothing to find."""
        return False

    async def wait(self, task: Task, handle: str) -> Exit:
        """Wait as long as the job says, and return its exit code."""
        stop = self._stops[task.allocation_id]
        with trio.move_on_after(_number(task, "NULL_SECONDS")):
            await stop.wait()
        code = 143 if stop.is_set() else int(_number(task, "NULL_EXIT"))
        return Exit(code, await self.usage(task, handle))

    async def usage(self, task: Task, handle: str) -> Usage:
        """Return the time since the start; nothing else is used."""
        return Usage(0.0, round(trio.current_time() - self._starts[task.allocation_id], 3))

    async def check(self, task: Task, handle: str, command: tuple[str, ...]) -> bool:
        """Nothing is always well."""
        return True

    async def stop(self, task: Task, handle: str) -> None:
        """End the wait."""
        self._stops[task.allocation_id].set()

    async def cleanup(self, task: Task, handle: str) -> None:
        """Forget the job."""
        self._starts.pop(task.allocation_id, None)
        self._stops.pop(task.allocation_id, None)


def _number(task: Task, name: str) -> float:
    try:
        return max(0.0, float(task.spec.env.get(name, "0")))
    except ValueError:
        raise ExecutorError(f"{name} is no number: {task.spec.env[name]!r}") from None
