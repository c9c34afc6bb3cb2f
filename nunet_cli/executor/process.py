"""The process executor: a command in its own process group, with limits, a scratch folder and a clean environment.

In a bubblewrap sandbox where `bwrap` works (own user, PID, network, mount, IPC and UTS namespaces). Without one, a job
can read what the node's user can read: so it is refused to strangers unless the configuration says otherwise.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import trio

from nunet_cli.executor.base import POLL_INTERVAL, TERM_GRACE, Executor, ExecutorError, Exit, Probe, Task, folder_size
from nunet_cli.jobs.job import Usage

log = logging.getLogger("nunet.executor.process")

MAX_PROCESSES = 256
EAGER_TURNS = 20
CHECK_SECONDS = 3600
SANDBOXED = "bubblewrap sandbox"
_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")
_LAUNCHER = Path(__file__).with_name("launcher.py")
_LOST = "\n[nunet: the log is over its limit; the rest is not kept]\n"


@dataclass
class _Running:
    popen: subprocess.Popen[bytes]
    started: float
    peak_memory: int = 0
    cpu_seconds: float = 0.0
    reason: str = ""
    returncode: int | None = None


class ProcessExecutor:
    """Runs commands of the machine itself."""

    type = "process"

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}
        self._limiter = trio.CapacityLimiter(256)
        self._sandbox: bool | None = None

    async def probe(self) -> Probe:
        """Say whether commands run here, and whether in a sandbox."""
        if sys.platform == "win32":
            return Probe(False, "needs a POSIX system")
        sandboxed = await self.can_sandbox()
        return Probe(True, SANDBOXED if sandboxed else "no sandbox (bubblewrap does not work here)")

    async def can_sandbox(self) -> bool:
        """Say whether bubblewrap is there and may make namespaces; asked of the machine once."""
        if self._sandbox is None:
            self._sandbox = await trio.to_thread.run_sync(_try_sandbox, limiter=self._limiter)
        return self._sandbox

    async def refusal(self, image: str) -> str:
        """There are no images here."""
        return ""

    async def prepare(self, task: Task) -> None:
        """Refuse a job that needs a sandbox where there is none."""
        if task.sandbox and not await self.can_sandbox():
            raise ExecutorError("this machine has no sandbox for a process job", code="no_sandbox")

    async def start(self, task: Task) -> str:
        """Start the command; the handle is its process id."""
        memory, disk = task.resources.memory, task.resources.disk
        cores = task.resources.cpu.cores
        options = {
            "limits": {
                "RLIMIT_CORE": 0,
                "RLIMIT_NOFILE": 1024,
                "RLIMIT_FSIZE": max(disk, 2**20),
                "RLIMIT_CPU": math.ceil(task.max_duration * max(1.0, cores)) + 5,
                # writable memory; the watcher below ends what shares or maps its way around this
                "RLIMIT_DATA": max(memory, 2**25),
            },
            "cpus": math.ceil(cores),
            "die_with_parent": True,
        }
        command = [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(options)]
        environment = _environment(task)
        if task.sandbox:
            command += [*_bubblewrap(task, environment), "--", *task.spec.command]
        else:
            command += task.spec.command
        folder = task.work / task.spec.workdir
        if not folder.is_dir():
            raise ExecutorError(f"the working folder {task.spec.workdir!r} is not there", code="no_workdir")
        program = task.spec.command[0]
        sought = "/" not in program and "PATH" not in task.spec.env
        if sought and shutil.which(program, path=environment["PATH"]) is None:
            raise ExecutorError(f"there is no program {program!r} on this provider", code="no_program")
        try:
            # in this thread, not a worker's: the parent-death signal follows the thread that made the process
            popen = subprocess.Popen(
                command, cwd=folder if not task.sandbox else task.work, env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, close_fds=True,
            )  # fmt: skip
        except OSError as error:
            raise ExecutorError(f"the process cannot be started: {error}") from None
        self._running[task.allocation_id] = _Running(popen, time.monotonic())
        return str(popen.pid)

    async def attach(self, task: Task, handle: str) -> bool:
        """A process does not outlive its node: there is nothing to find."""
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
                await self._reap(running)
                # a child that outlives the command must not keep the pipes open
                _kill_group(running.popen.pid, signal.SIGKILL)
                pumps.cancel_scope.deadline = trio.current_time() + TERM_GRACE
            nursery.cancel_scope.cancel()
        code = running.returncode
        assert code is not None
        return Exit(code if code >= 0 else 128 - code, self._usage(running), running.reason)

    async def _reap(self, running: _Running) -> None:
        pid = running.popen.pid
        _, status, used = await trio.to_thread.run_sync(os.wait4, pid, 0, limiter=self._limiter, abandon_on_cancel=True)
        running.returncode = running.popen.returncode = os.waitstatus_to_exitcode(status)
        # a sandbox's init does not always pass on what it has reaped: what was seen while it ran counts, too
        running.cpu_seconds = max(running.cpu_seconds, used.ru_utime + used.ru_stime)
        running.peak_memory = max(running.peak_memory, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))

    async def _watch(self, task: Task, running: _Running) -> None:
        turn = 0
        while True:
            memory, count, cpu = _measure(running.popen.pid)
            running.peak_memory = max(running.peak_memory, memory)
            running.cpu_seconds = max(running.cpu_seconds, cpu)
            if memory > task.resources.memory:
                running.reason = "out_of_memory"
            elif count > MAX_PROCESSES:
                running.reason = "too_many_processes"
            elif turn % 4 == 3:
                limit = task.resources.disk
                if await trio.to_thread.run_sync(folder_size, task.work, limit, limiter=self._limiter) > limit:
                    running.reason = "disk_full"
            if running.reason:
                _kill_group(running.popen.pid, signal.SIGKILL)
                return
            turn += 1
            await trio.sleep(POLL_INTERVAL if turn > EAGER_TURNS else POLL_INTERVAL / 5)

    async def usage(self, task: Task, handle: str) -> Usage:
        """Return what the process group has used so far."""
        return self._usage(self._running[task.allocation_id])

    @staticmethod
    def _usage(running: _Running) -> Usage:
        wall = round(time.monotonic() - running.started, 3)
        return Usage(round(running.cpu_seconds, 3), wall, running.peak_memory)

    async def check(self, task: Task, handle: str, command: tuple[str, ...]) -> bool:
        """Run a command in the job's folder, in a sandbox of its own where the job has one: it sees the job's files."""
        environment = _environment(task)
        whole = [*_bubblewrap(task, environment), "--", *command] if task.sandbox else list(command)
        with trio.move_on_after(CHECK_SECONDS):
            try:
                done = await trio.run_process(
                    whole, cwd=task.work, env=environment, check=False, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise ExecutorError(f"the health check cannot be run: {error}") from None
            return done.returncode == 0
        return False

    async def stop(self, task: Task, handle: str) -> None:
        """End the process group: a polite signal, and after a grace period a sure one."""
        running = self._running.get(task.allocation_id)
        if running is None or running.returncode is not None:
            return
        _kill_group(running.popen.pid, signal.SIGTERM)
        with trio.move_on_after(TERM_GRACE):
            while running.returncode is None and psutil.pid_exists(running.popen.pid):
                await trio.sleep(0.05)
        _kill_group(running.popen.pid, signal.SIGKILL)

    async def cleanup(self, task: Task, handle: str) -> None:
        """Close the pipes."""
        running = self._running.pop(task.allocation_id, None)
        if running is not None:
            for pipe in (running.popen.stdout, running.popen.stderr):
                if pipe is not None:
                    pipe.close()

    def kill_all(self) -> None:
        """End every process at once: for a node that stops."""
        for running in self._running.values():
            if running.returncode is None:
                _kill_group(running.popen.pid, signal.SIGKILL)


def _environment(task: Task) -> dict[str, str]:
    inside = "/job" if task.sandbox else str(task.work)
    path = os.pathsep.join(["/usr/local/bin", "/usr/bin", "/bin", str(Path(sys.executable).parent)])
    base = {"PATH": path, "HOME": inside, "TMPDIR": "/tmp" if task.sandbox else inside, "LANG": "C.UTF-8"}
    return {**base, "PYTHONDONTWRITEBYTECODE": "1", **task.spec.env}


def _bubblewrap(task: Task, environment: dict[str, str]) -> list[str]:
    workdir = f"/job/{task.spec.workdir}".rstrip("/")
    arguments = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--uid", "65534", "--gid", "65534"]
    arguments += ["--hostname", "job", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for folder in dict.fromkeys([*_SYSTEM_FOLDERS, sys.prefix, sys.base_prefix]):
        arguments += ["--ro-bind-try", folder, folder]
    arguments += ["--bind", str(task.work), "/job", "--chdir", workdir, "--clearenv"]
    for name, value in environment.items():
        arguments += ["--setenv", name, value]
    return arguments


def _try_sandbox() -> bool:
    if shutil.which("bwrap") is None:
        return False
    command = ["bwrap", "--unshare-all", "--uid", "65534", "--gid", "65534", "--ro-bind", "/", "/", "--dev", "/dev"]
    try:
        done = subprocess.run([*command, "--proc", "/proc", "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


async def _pump(stream: trio.lowlevel.FdStream, path: Path, limit: int) -> None:
    """Copy a pipe to a file up to a limit; what comes after it is read and dropped, so that the job does not block."""
    kept = 0
    async with stream:
        with path.open("ab", buffering=0) as file:
            async for chunk in stream:
                if kept < limit:
                    file.write(chunk[: limit - kept])
                    kept += len(chunk)
                    if kept >= limit:
                        file.write(_LOST.encode())


def _measure(pid: int) -> tuple[int, int, float]:
    """Return resident bytes, number of processes and seconds of processor time of a process and its descendants."""
    try:
        family = [psutil.Process(pid)]
        family += family[0].children(recursive=True)
    except psutil.Error:
        return 0, 0, 0.0
    memory, cpu = 0, 0.0
    for process in family:
        try:
            memory += process.memory_info().rss
            times = process.cpu_times()
            cpu += times.user + times.system
        except psutil.Error:
            continue
    return memory, len(family), cpu


def _kill_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


_protocol: type[Executor] = ProcessExecutor
