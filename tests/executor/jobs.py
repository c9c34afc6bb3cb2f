"""Jobs of the process executor, and what of them is on the machine."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from nunet_cli.executor.base import Exit, Given, Task, make_scratch
from nunet_cli.executor.process import ProcessExecutor
from nunet_cli.jobs.spec import ExecutorSpec
from nunet_cli.records.capability import Cpu, Resources

MIB = 2**20


def task(
    folder: Path, *command: str, sandbox: bool = True, memory: int = 256 * MIB, env: dict[str, str] | None = None,
    files: dict[str, str] | None = None, cores: float = 1,
) -> Task:  # fmt: skip
    """A job with its scratch folder made; `files` are inputs by their names, all of them programs."""
    spec = ExecutorSpec(type="process", command=command, env=env or {})
    folder.mkdir(exist_ok=True)
    given = [Given(name, folder / f"input-{name}") for name in files or {}]
    for item in given:
        item.source.write_text((files or {})[item.place])
    made = Task(
        allocation_id=f"allocation-{os.getpid()}-{folder.name}", spec=spec, max_duration=60, max_log=4096,
        resources=Resources(Cpu(cores), memory, 32 * MIB), folder=folder / "scratch", sandbox=sandbox,
        inputs=tuple(item.place for item in given),
    )  # fmt: skip
    make_scratch(made, given)
    return made


@contextlib.asynccontextmanager
async def started(job: Task) -> AsyncIterator[tuple[ProcessExecutor, str, list[Exit]]]:
    """A job that runs, and how it ended once it has; ended and forgotten at the end."""
    executor = ProcessExecutor()
    ended: list[Exit] = []
    handle = await executor.start(job)

    async def wait() -> None:
        ended.append(await executor.wait(job, handle))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            yield executor, handle, ended
            await executor.stop(job, handle)
    finally:
        with trio.CancelScope(shield=True):
            await executor.stop(job, handle)
            await executor.cleanup(job, handle)


async def run(job: Task) -> Exit:
    """Run a job to its end."""
    async with started(job) as (_, _, ended):
        with trio.fail_after(40):
            while not ended:
                await trio.sleep(0.01)
    return ended[0]


async def until_there(path: Path) -> None:
    """Wait for a file that the job makes."""
    with trio.fail_after(30):
        while not path.exists():
            await trio.sleep(0.01)


def command_lines(text: str) -> list[str]:
    """Return the command lines of living processes that have a text in them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            if text in line and int(folder.name) != os.getpid():
                found.append(line)
    return found
