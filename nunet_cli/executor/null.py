"""The null executor: does nothing, at once, and writes empty outputs. For benchmarks and the simulation."""

from __future__ import annotations

from nunet_cli.executor.base import Exit, Probe, Task
from nunet_cli.jobs.job import Usage


class NullExecutor:
    """Runs nothing."""

    type = "null"

    async def probe(self) -> Probe:
        """Always works."""
        return Probe(True, "does nothing")

    async def refusal(self, image: str) -> str:
        """There are no images here."""
        return ""

    async def prepare(self, task: Task) -> None:
        """Nothing to prepare."""

    async def start(self, task: Task) -> str:
        """Start nothing."""
        return "null"

    async def attach(self, task: Task, handle: str) -> bool:
        """There is nothing to find."""
        return False

    async def wait(self, task: Task, handle: str) -> Exit:
        """End at once with exit code 0."""
        return Exit(0, Usage())

    async def usage(self, task: Task, handle: str) -> Usage:
        """Nothing was used."""
        return Usage()

    async def check(self, task: Task, handle: str, command: tuple[str, ...]) -> bool:
        """Nothing is always well."""
        return True

    async def stop(self, task: Task, handle: str) -> None:
        """Nothing runs."""

    async def cleanup(self, task: Task, handle: str) -> None:
        """Nothing was made."""
