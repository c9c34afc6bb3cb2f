"""The process executor: a command with limits, a scratch folder and a clean environment.

In a bubblewrap sandbox where `bwrap` works (see `sandbox`). Without one, a job can read what the node's user can read:
so it is refused to strangers unless the configuration says otherwise. Its limits are the kernel's where control groups
can be made, else it is watched.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import trio

from nunet_cli.executor import cgroup, launch
from nunet_cli.executor.base import POLL_INTERVAL, TERM_GRACE, Executor, ExecutorError, Exit, Probe, Task
from nunet_cli.executor.family import Machine
from nunet_cli.executor.files import folder_size, give_folder, open_folder
from nunet_cli.executor.launch import MARK, Running
from nunet_cli.executor.sandbox import (
    HARD_PROCESSES,
    MAX_PROCESSES,
    SYSTEM_PATH,
    check_texts,
    find_bubblewrap,
    job_user,
)
from nunet_cli.jobs.spec import ExecutorSpec
from nunet_cli.records.capability import Cpu, Resources
from nunet_cli.records.results import LOG_CUT, Usage

log = logging.getLogger("nunet.executor.process")

EAGER_TURNS = 20
PROBE_SECONDS = 10
SANDBOXED = "bubblewrap sandbox"
# where the bubblewrap is that holds commands on this machine: the nodes of a process need not each find out
HOLDS: set[str] = set()


class ProcessExecutor:
    """Runs commands of the machine itself."""

    type = "process"

    def __init__(self) -> None:
        self._running: dict[str, Running] = {}
        # sandboxes that are up, and at whose gate a command waits for its start
        self._ready: dict[str, Running] = {}
        self._limiter = trio.CapacityLimiter(256)
        self._machine = Machine(self._limiter)
        self._sandbox: bool | None = None

    async def probe(self) -> Probe:
        """Say whether commands run here, and whether in a sandbox."""
        if sys.platform == "win32":
            return Probe(False, "needs a POSIX system")
        sandboxed = await self.can_sandbox()
        return Probe(True, SANDBOXED if sandboxed else "no sandbox (bubblewrap does not work here)")

    async def can_sandbox(self) -> bool:
        """Say whether bubblewrap is there and holds a command as it holds a job's; asked of the machine once."""
        if self._sandbox is None:
            self._sandbox = find_bubblewrap() in HOLDS or await self.try_sandbox()
        return self._sandbox

    async def try_sandbox(self) -> bool:
        """Say what `can_sandbox` says, as it is now."""
        bubblewrap = find_bubblewrap()
        if bubblewrap is None:
            return False
        if await self._holds():
            HOLDS.add(bubblewrap)
        else:
            HOLDS.discard(bubblewrap)
        return bubblewrap in HOLDS

    async def _holds(self) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            task = Task(
                allocation_id=f"probe-{Path(folder).name}", spec=ExecutorSpec(type="process", command=("true",)),
                resources=Resources(Cpu(1), 2**26, 2**20), max_duration=PROBE_SECONDS, max_log=4096,
                folder=Path(folder) / "job",
            )  # fmt: skip
            task.work.mkdir(parents=True)
            try:
                with trio.fail_after(PROBE_SECONDS):
                    handle = await self.start(task)
                    return (await self.wait(task, handle)).exit_code == 0
            except (ExecutorError, trio.TooSlowError, OSError) as error:
                log.info("bubblewrap does not work here: %s", error)
                return False
            finally:
                with trio.CancelScope(shield=True):
                    await self.cleanup(task, "")

    async def refusal(self, image: str) -> str:
        """There are no images here."""
        return ""

    async def prepare(self, task: Task) -> None:
        """Refuse a job that needs a sandbox where there is none."""
        if task.sandbox and not await self.can_sandbox():
            raise ExecutorError("this machine has no sandbox for a process job", code="no_sandbox")

    async def set_up(self, task: Task) -> None:
        """Put the sandbox up: the command waits at its gate. It takes longer than all that a start takes besides."""
        if task.sandbox:
            # of an earlier run of the node, which had not come to the start
            await trio.to_thread.run_sync(cgroup.sweep, task.allocation_id, limiter=self._limiter)
            self._ready[task.allocation_id] = await self._launch(task)

    async def start(self, task: Task) -> str:
        """Start the command; the handle is its process id. Cancelled or failed, it leaves nothing behind."""
        running = self._ready.pop(task.allocation_id, None) or await self._launch(task)
        running.started = time.monotonic()
        self._running[task.allocation_id] = running
        try:
            await launch.open_gate(running, task.resources.cpu.share, self._limiter)
        except BaseException:
            with trio.CancelScope(shield=True):
                await running.end(self._limiter)
                try:
                    await running.gone(self._limiter)
                finally:
                    await self.cleanup(task, "")
            raise
        return str(running.popen.pid)

    async def _launch(self, task: Task) -> Running:
        """Start the launcher; in a sandbox the command waits."""
        check_texts(task)
        try:
            # its own modes do not keep a service from being started again
            task.work.chmod(0o700)
            os.close(open_folder(task.work, task.spec.workdir))
        except OSError:
            raise ExecutorError(f"the working folder {task.spec.workdir!r} is not there", code="no_workdir") from None
        environment = _environment(task)
        program = task.spec.command[0]
        sought = "/" not in program and "PATH" not in task.spec.env
        if sought and shutil.which(program, path=environment["PATH"]) is None:
            raise ExecutorError(f"there is no program {program!r} on this provider", code="no_program")
        user = job_user(task.allocation_id) if task.sandbox else None
        if user is not None and not task.restarts:
            await trio.to_thread.run_sync(give_folder, task.work, user, task.inputs, limiter=self._limiter)
        # a sandbox is put up with all the processor there is: with a tenth of one it would take long
        cores = 0.0 if task.sandbox else task.resources.cpu.share
        try:
            group = await trio.to_thread.run_sync(
                cgroup.make_group, task.allocation_id, task.resources.memory, HARD_PROCESSES, cores,
                limiter=self._limiter,
            )  # fmt: skip
        except OSError as error:
            raise ExecutorError(f"the job's control group cannot be made: {error}", code="no_control_group") from None
        try:
            # in this thread, not a worker's: the parent-death signal follows the thread that made the process
            return launch.launch(task, environment, _limits(task), group, user)
        except (OSError, ValueError) as error:
            if group is not None:
                await trio.to_thread.run_sync(group.remove, limiter=self._limiter)
            raise ExecutorError(f"the process cannot be started: {error}") from None

    async def attach(self, task: Task, handle: str) -> bool:
        """A process does not outlive its node: there is nothing to find, and what is left of it is removed."""
        await trio.to_thread.run_sync(cgroup.sweep, task.allocation_id, limiter=self._limiter)
        return False

    async def wait(self, task: Task, handle: str) -> Exit:
        """Copy the output, watch the limits, and return how the command ended."""
        running = self._running[task.allocation_id]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, task, running)
            async with trio.open_nursery() as pumps:
                for pipe, path in ((running.popen.stdout, task.stdout), (running.popen.stderr, task.stderr)):
                    assert pipe is not None
                    pumps.start_soon(_pump, trio.lowlevel.FdStream(os.dup(pipe.fileno())), path, task.max_log)
                await running.reap(self._limiter)
                # a child that outlives the command must not keep the pipes open
                await running.end(self._limiter)
                await running.gone(self._limiter)
                pumps.cancel_scope.deadline = trio.current_time() + TERM_GRACE
            nursery.cancel_scope.cancel()
        if running.group is not None:
            self._count(task, running, *running.group.measure())
        code = running.returncode
        assert code is not None
        return Exit(code if code >= 0 else 128 - code, running.usage(), running.reason)

    async def _watch(self, task: Task, running: Running) -> None:
        turn = 0
        while True:
            if running.group is not None:
                measured = running.group.measure()
            else:
                measured = await self._look(running)
            self._count(task, running, *measured)
            if not running.reason and turn % 4 == 3:
                limit = task.resources.disk
                if await trio.to_thread.run_sync(folder_size, task.work, limit, limiter=self._limiter) > limit:
                    running.reason = "disk_full"
            if running.reason:
                await running.end(self._limiter)
                return
            turn += 1
            await trio.sleep(POLL_INTERVAL if turn > EAGER_TURNS else POLL_INTERVAL / 5)

    async def _look(self, running: Running) -> tuple[int, int, float]:
        """Return what the job uses where no control group counts it: by its processes, and its files in memory."""
        census = await self._machine.census()
        family = census.family([running.popen.pid, *running.helpers])
        memory = sum(process.memory for process in family) + await trio.to_thread.run_sync(
            running.files_in_memory, limiter=self._limiter
        )
        return memory, sum(process.threads for process in family), sum(process.cpu for process in family)

    @staticmethod
    def _count(task: Task, running: Running, memory: int, count: int, cpu: float) -> None:
        running.peak_memory = max(running.peak_memory, memory)
        running.cpu_seconds = max(running.cpu_seconds, cpu)
        if running.reason:
            return
        if memory > task.resources.memory or (running.group is not None and running.group.is_out_of_memory()):
            running.reason = "out_of_memory"
        elif count > MAX_PROCESSES:
            running.reason = "too_many_processes"

    async def usage(self, task: Task, handle: str) -> Usage:
        """Return what the command has used so far."""
        running = self._running.get(task.allocation_id)
        return running.usage() if running is not None else Usage()

    async def check(self, task: Task, handle: str, command: tuple[str, ...]) -> bool:
        """Run a command beside the job, in its sandbox, inside its limits and counted with it."""
        running = self._running.get(task.allocation_id)
        if running is None or running.returncode is not None:
            return False
        try:
            return await launch.run_beside(task, _environment(task), _limits(task), running, command, self._limiter)
        except OSError as error:
            raise ExecutorError(f"the health check cannot be run: {error}") from None

    async def stop(self, task: Task, handle: str) -> None:
        """End the job: a polite signal, and after a grace period a sure one; once it returns, nothing of it lives."""
        running = self._running.get(task.allocation_id)
        if running is None:
            return
        if running.returncode is None:
            running.ask_to_end()
            with trio.move_on_after(TERM_GRACE):
                await running.ended()
        await running.end(self._limiter)
        await running.gone(self._limiter)

    async def cleanup(self, task: Task, handle: str) -> None:
        """Forget the job, and what the kernel holds of it."""
        waiting = self._ready.pop(task.allocation_id, None)
        running = self._running.pop(task.allocation_id, waiting)
        try:
            if waiting is not None:
                await waiting.end(self._limiter)
                await waiting.gone(self._limiter)
        finally:
            if running is not None:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(running.close, limiter=self._limiter)

    def kill_all(self) -> None:
        """End every job at once: for a node that stops."""
        for running in (*self._running.values(), *self._ready.values()):
            running.kill()


def _limits(task: Task) -> dict[str, int]:
    return {
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 1024,
        "RLIMIT_FSIZE": max(task.resources.disk, 2**20),
        "RLIMIT_CPU": math.ceil(task.max_duration * max(1.0, task.resources.cpu.cores)) + 5,
        # writable memory; what shares or maps its way around this is counted by the control group, or the watcher
        "RLIMIT_DATA": max(task.resources.memory, 2**25),
        "RLIMIT_MSGQUEUE": 0,
    }


def _environment(task: Task) -> dict[str, str]:
    inside = "/job" if task.sandbox else str(task.work)
    path = os.pathsep.join([*SYSTEM_PATH, str(Path(sys.executable).parent)])
    base = {"PATH": path, "HOME": inside, "TMPDIR": "/tmp" if task.sandbox else inside, "LANG": "C.UTF-8"}
    mark = {} if task.sandbox else {MARK: task.allocation_id}
    return {**base, "PYTHONDONTWRITEBYTECODE": "1", **task.spec.env, **mark}


async def _pump(stream: trio.lowlevel.FdStream, path: Path, limit: int) -> None:
    """Copy a pipe to a file up to a limit; what comes after it is read and dropped, so that the job does not block.

    What earlier starts of a service wrote counts.
    """
    async with stream:
        with path.open("ab", buffering=0) as file:
            kept = file.tell()
            async for chunk in stream:
                if kept < limit:
                    file.write(chunk[: limit - kept])
                    kept += len(chunk)
                    if kept >= limit:
                        file.write(LOG_CUT)


_protocol: type[Executor] = ProcessExecutor
