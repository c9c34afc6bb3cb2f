"""What runs on the machine, and as whose child: looked at once for all jobs, in a worker thread."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import trio

_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True)
class Process:
    """One process: its parent, resident bytes, seconds of processor time, start by some clock, and its threads."""

    pid: int
    parent: int
    memory: int
    cpu: float
    started: float
    threads: int = 1


@dataclass
class Census:
    """The processes of the machine by their parents."""

    children: dict[int, list[Process]] = field(default_factory=dict)
    known: dict[int, Process] = field(default_factory=dict)

    def family(self, roots: Iterable[int]) -> list[Process]:
        """Return processes and all their descendants."""
        found: dict[int, Process] = {}
        waiting = [self.known[pid] for pid in roots if pid in self.known]
        while waiting:
            process = waiting.pop()
            if process.pid not in found:
                found[process.pid] = process
                waiting += self.children.get(process.pid, [])
        return list(found.values())


def take_census() -> Census:
    """Look at every process of the machine."""
    children: defaultdict[int, list[Process]] = defaultdict(list)
    known = {}
    for process in _from_proc() if sys.platform == "linux" else _from_psutil():
        children[process.parent].append(process)
        known[process.pid] = process
    return Census(dict(children), known)


def _from_proc() -> Iterable[Process]:
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    yield _read_stat(int(entry.name))


def _read_stat(pid: int) -> Process:
    descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # the name, in brackets, may have any character
        fields = os.read(descriptor, 4096).rsplit(b")", 1)[1].split()
    finally:
        os.close(descriptor)
    cpu = (int(fields[11]) + int(fields[12])) / _TICK
    return Process(pid, int(fields[1]), int(fields[21]) * _PAGE, cpu, int(fields[19]), int(fields[17]))


def _from_psutil() -> Iterable[Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error), process.oneshot():
            times = process.cpu_times()
            memory, cpu = process.memory_info().rss, times.user + times.system
            threads = process.num_threads()
            yield Process(process.pid, process.ppid(), memory, cpu, process.create_time(), threads)


def bearing(mark: str) -> list[Process]:
    """Return the processes that were started with `NAME=VALUE` in their environment, as far as that shows."""
    found = []
    for process in take_census().known.values():
        with contextlib.suppress(OSError, psutil.Error):
            if sys.platform == "linux":
                bears = mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            else:
                name, _, value = mark.partition("=")
                bears = psutil.Process(process.pid).environ().get(name) == value
            if bears:
                found.append(process)
    return found


def parent_of(pid: int) -> int:
    """Return a process's parent; 0 when it is gone."""
    try:
        return _read_stat(pid).parent
    except (OSError, IndexError, ValueError):
        return 0


def kill(process: Process) -> None:
    """End a process, unless its number is another's by now."""
    with contextlib.suppress(OSError, psutil.Error):
        if sys.platform == "linux":
            descriptor = os.pidfd_open(process.pid)
            try:
                if _read_stat(process.pid).started == process.started:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)
        elif psutil.Process(process.pid).create_time() == process.started:
            os.kill(process.pid, signal.SIGKILL)


class Machine:
    """The latest census, shared by all jobs: however many ask, the machine is looked at once in a while."""

    def __init__(self, limiter: trio.CapacityLimiter, max_age: float = 0.1) -> None:
        self._limiter, self._max_age = limiter, max_age
        self._lock = trio.Lock()
        self._census, self._taken = Census(), float("-inf")

    async def census(self) -> Census:
        """Return a census that is not older than `max_age`."""
        async with self._lock:
            if trio.current_time() - self._taken > self._max_age:
                self._census = await trio.to_thread.run_sync(take_census, limiter=self._limiter)
                self._taken = trio.current_time()
            return self._census
