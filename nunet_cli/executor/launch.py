"""Starting a command through the launcher, and ending everything of it: the process executor's lower half.

What is ended is held by descriptor: the first process of the sandbox, with which the kernel ends all in it, and the
job's control group. Process ids and process groups are for jobs without either.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from nunet_cli.executor import sandbox
from nunet_cli.executor.base import ExecutorError, Task
from nunet_cli.executor.cgroup import Group, becomes_readable
from nunet_cli.executor.family import bearing, kill, parent_of
from nunet_cli.records.results import Usage

START_SECONDS = 30
CHECK_SECONDS = 3600
END_SECONDS = 10
MARK = "NUNET_ALLOCATION"
_LAUNCHER = Path(__file__).with_name("launcher.py")


@dataclass
class Running:
    """A command that was started.

    `outer` is a descriptor of the process that the node started, `init` of the sandbox's first process, whose number is
    `init_pid`; -1 where there is none. `helpers` are health checks that run beside it. `mark` is in the environment of
    what the kernel holds together in no other way.
    """

    popen: subprocess.Popen[bytes]
    started: float
    group: Group | None
    user: int | None
    mark: str = ""
    outer: int = -1
    init: int = -1
    init_pid: int = 0
    gate: socket.socket | None = None
    info: int = -1
    helpers: set[int] = field(default_factory=set)
    peak_memory: int = 0
    cpu_seconds: float = 0.0
    reason: str = ""
    returncode: int | None = None

    def usage(self) -> Usage:
        """Return what was used so far."""
        wall = round(time.monotonic() - self.started, 3)
        return Usage(round(self.cpu_seconds, 3), wall, self.peak_memory)

    def ask_to_end(self) -> None:
        """Send the polite signal to the job's own processes, not to what holds the sandbox."""
        if self.init < 0:
            _kill_group(self.popen.pid, signal.SIGTERM)
        elif not _is_readable(self.init):
            # the first process of a PID namespace does not get it, those of its session do
            _kill_group(self.init_pid, signal.SIGTERM)

    async def end(self, limiter: trio.CapacityLimiter) -> None:
        """End everything at once, in a worker thread: what takes long to die keeps nobody else waiting."""
        await trio.to_thread.run_sync(self.kill, limiter=limiter)

    def kill(self) -> None:
        """End everything at once; it may take seconds."""
        if self.gate is not None:
            # what is on its way into the sandbox, and held by nothing yet, comes to a closed gate
            with contextlib.suppress(OSError):
                self.gate.shutdown(socket.SHUT_WR)
        if self.init >= 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.init, signal.SIGKILL)
        if self.returncode is None:
            _kill_group(self.popen.pid, signal.SIGKILL)
        for pid in self.helpers:
            _kill_group(pid, signal.SIGKILL)
        if self.group is not None:
            self.group.kill()
        end = time.monotonic() + END_SECONDS
        while self.mark and (left := bearing(self.mark)) and time.monotonic() < end:
            for process in left:
                kill(process)
            time.sleep(0.002)

    async def ended(self) -> None:
        """Wait until the command has ended; it is not reaped by that."""
        if self.outer >= 0:
            await _wait_readable(self.outer)
        else:
            while self.returncode is None and self.popen.pid and _is_alive(self.popen.pid):
                await trio.sleep(0.05)

    async def reap(self, limiter: trio.CapacityLimiter) -> None:
        """Wait for the command's end, end its process group while its number is still its own, and take its code."""
        pid = self.popen.pid
        if self.outer >= 0:
            await _wait_readable(self.outer)
            _kill_group(pid, signal.SIGKILL)
            _, status, used = os.wait4(pid, 0)
        else:
            _, status, used = await trio.to_thread.run_sync(os.wait4, pid, 0, limiter=limiter, abandon_on_cancel=True)
            _kill_group(pid, signal.SIGKILL)
        self.returncode = self.popen.returncode = os.waitstatus_to_exitcode(status)
        if self.group is None:
            # a sandbox's init does not always pass on what it has reaped: what was seen while it ran counts, too
            self.cpu_seconds = max(self.cpu_seconds, used.ru_utime + used.ru_stime)
            # a process begins as a copy of this one, and what that has counts for it: only more than that is its own
            if used.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
                self.peak_memory = max(self.peak_memory, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))

    async def gone(self, limiter: trio.CapacityLimiter) -> None:
        """Wait until nothing is left of what was ended.

        Raises:
            ExecutorError: the kernel does not let go of it.
        """
        with trio.move_on_after(END_SECONDS):
            for descriptor in (self.init, self.outer):
                if descriptor >= 0:
                    await _wait_readable(descriptor)
            if self.gate is not None:
                await _wait_closed(self.gate)
            while self.group is not None and not self.group.is_empty():
                await trio.to_thread.run_sync(self.group.kill, limiter=limiter)
                await trio.sleep(0.01)
            return
        raise ExecutorError("a process of the job does not end")

    def files_in_memory(self) -> int:
        """Return the bytes in the sandbox's file systems that are kept in memory."""
        total = 0
        for place in ("/tmp", "/dev/shm") if self.init >= 0 else ():
            with contextlib.suppress(OSError):
                found = os.statvfs(f"/proc/{self.init_pid}/root{place}")
                total += (found.f_blocks - found.f_bfree) * found.f_frsize
        return total

    def close(self) -> None:
        """Let go of what the kernel holds for it; what still runs is ended."""
        self.kill()
        for pipe in (self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()
        if self.returncode is None and self.popen.poll() is not None:
            self.returncode = self.popen.returncode
        for descriptor in (self.outer, self.init, self.info):
            if descriptor >= 0:
                os.close(descriptor)
        self.outer = self.init = self.info = -1
        if self.gate is not None:
            self.gate.close()
        if self.group is not None:
            self.group.remove()


def launch(
    task: Task, environment: dict[str, str], limits: dict[str, int], group: Group | None, user: int | None
) -> Running:
    """Start the launcher for a job; in a sandbox the command waits for `open_gate`.

    Raises:
        OSError: it cannot be started.
    """
    options = _options(task, limits, group, user)
    given: list[int] = []
    ours: socket.socket | None = None
    info = -1
    try:
        if task.sandbox:
            bubblewrap = sandbox.find_bubblewrap()
            if bubblewrap is None:
                raise FileNotFoundError("there is no bubblewrap")
            texts = sandbox.arguments(task, staged=user is not None)
            ours, theirs = socket.socketpair()
            info, info_in = os.pipe()
            given = [theirs.detach(), info_in]
            given.append(sandbox.sealed(b"".join(os.fsencode(text) + b"\0" for text in texts)))
            given.append(sandbox.sealed(os.fsencode(sandbox.script(task, environment))))
            options["stage"] = sandbox.stage(task.work) if user is not None else {}
            options |= {"command": sandbox.command(bubblewrap, task.spec.command), "environment": sandbox.OUTSIDE}
        else:
            options |= {"command": task.spec.command, "environment": environment}
            options["folder"] = [str(task.work), task.spec.workdir]
        popen = _run({**options, "keep": given}, given, subprocess.PIPE)
    except BaseException:
        if ours is not None:
            ours.close()
            os.close(info)
        raise
    finally:
        for descriptor in given:
            os.close(descriptor)
    mark = f"{MARK}={task.allocation_id}" if not task.sandbox and group is None else ""
    running = Running(popen, time.monotonic(), group, user, mark, gate=ours, info=info)
    running.outer = _open_process(popen.pid)
    return running


def _options(task: Task, limits: dict[str, int], group: Group | None, user: int | None) -> dict[str, Any]:
    shared_out = group is not None and "cpu" in group.place.folders
    return {
        "groups": group.entrances if group is not None else [], "limits": limits, "parent": os.getpid(), "user": user,
        "cpus": 0 if shared_out else max(1, round(task.resources.cpu.cores + 0.5)), "stage": {}, "keep": [],
        "enter": None, "processes": 0, "folder": ["/", ""],
    }  # fmt: skip


def _run(options: dict[str, Any], given: list[int], output: int) -> subprocess.Popen[bytes]:
    """Start the launcher: with nothing of the job's on its command line, in its environment or as its folder."""
    told = sandbox.sealed(marshal.dumps(options))
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(told)], cwd="/", env=sandbox.OUTSIDE,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, close_fds=True,
            pass_fds=[told, *given],
        )  # fmt: skip
    finally:
        os.close(told)


async def open_gate(running: Running, cores: float, limiter: trio.CapacityLimiter) -> None:
    """Take hold of the sandbox's first process, and let the command begin, with so much of the processors.

    Whenever the node ends before that, the gate closes and nothing of the job runs; once the command begins, every
    process on the way to it ends with the one before it.

    Raises:
        ExecutorError: the sandbox did not come up.
    """
    if running.gate is None:
        return
    with trio.move_on_after(START_SECONDS):
        told = b""
        async with trio.lowlevel.FdStream(running.info) as info:
            running.info = -1
            async for chunk in info:
                told += chunk
        try:
            running.init_pid = int(json.loads(told)["child-pid"])
        except (ValueError, KeyError):
            raise await _not_up(running, limiter) from None
        running.init = _open_process(running.init_pid)
        # the number is that process's as long as its parent has not ended, and so not reaped it
        if parent_of(running.init_pid) != running.popen.pid or _is_readable(running.outer):
            running.init = _drop(running.init)
            raise await _not_up(running, limiter)
        gate = trio.socket.from_stdlib_socket(running.gate)
        try:
            ready = await gate.recv(1)
        except OSError:
            ready = b""
        if not ready or _is_readable(running.outer):
            raise await _not_up(running, limiter)
        if running.group is not None:
            try:
                running.group.share_out(cores)
            except OSError as error:
                raise ExecutorError(f"the job's processor time cannot be limited: {error}") from None
        with contextlib.suppress(OSError):
            await gate.send(b"\n")
        gate.close()
        running.gate = None
        return
    raise ExecutorError("the sandbox takes too long to come up", code="no_sandbox")


async def _not_up(running: Running, limiter: trio.CapacityLimiter) -> ExecutorError:
    assert running.popen.stderr is not None
    said = b""
    await running.end(limiter)
    with contextlib.suppress(OSError):
        os.set_blocking(running.popen.stderr.fileno(), False)
        said = os.read(running.popen.stderr.fileno(), 1000)
    text = said.decode(errors="replace").strip() or "it ended without a word"
    return ExecutorError(f"the sandbox did not come up: {text}", code="no_sandbox")


async def run_beside(
    task: Task, environment: dict[str, str], limits: dict[str, int], running: Running, command: tuple[str, ...],
    limiter: trio.CapacityLimiter,
) -> bool:  # fmt: skip
    """Run a command in a job's sandbox, group and limits; say whether it ended with 0. Cancelled, it is ended.

    Raises:
        OSError: it cannot be started.
    """
    options = _options(task, limits, running.group, running.user)
    options |= {"command": command, "environment": environment, "folder": [str(task.work), ""]}
    given = []
    if running.init >= 0:
        options["enter"] = running.init
        options["processes"] = sandbox.process_limit()
        given = [running.init]
    popen = _run(options, given, subprocess.DEVNULL)
    outer = _open_process(popen.pid)
    running.helpers.add(popen.pid)
    try:
        with trio.move_on_after(CHECK_SECONDS):
            if outer >= 0:
                await _wait_readable(outer)
            else:
                await trio.to_thread.run_sync(popen.wait, limiter=limiter, abandon_on_cancel=True)
    finally:
        # before it is reaped: until then its number is its own
        _kill_group(popen.pid, signal.SIGKILL)
        running.helpers.discard(popen.pid)
        with trio.CancelScope(shield=True):
            # it ends with the job's share of the processor: that may take a while, and is nobody else's
            await trio.to_thread.run_sync(_reap, popen, limiter=limiter)
        _drop(outer)
    return popen.returncode == 0


def _reap(popen: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        popen.wait(END_SECONDS)


def _open_process(pid: int) -> int:
    if not hasattr(os, "pidfd_open"):
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _drop(descriptor: int) -> int:
    if descriptor >= 0:
        os.close(descriptor)
    return -1


def _is_readable(descriptor: int) -> bool:
    """Say whether a process has ended."""
    return descriptor < 0 or becomes_readable(descriptor, 0)


async def _wait_readable(descriptor: int) -> None:
    # a descriptor of its own: several may wait for the same process
    own = os.dup(descriptor)
    try:
        await trio.lowlevel.wait_readable(own)
    finally:
        trio.lowlevel.notify_closing(own)
        os.close(own)


async def _wait_closed(gate: socket.socket) -> None:
    """Wait until nobody has the other end of a gate."""
    gate.setblocking(False)
    with contextlib.suppress(ConnectionError):
        while True:
            await trio.lowlevel.wait_readable(gate)
            if not gate.recv(64):
                return


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _kill_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
