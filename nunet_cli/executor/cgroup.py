"""Control groups: the kernel's own count of what a job uses, and its own list of what belongs to it.

Version 2 where its controllers are handed down to this process, or version 1; a job without one is watched instead.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("nunet.executor.cgroup")

PREFIX = "nunet-"
PERIOD = 100_000
PATIENCE = 5.0
V1_CONTROLLERS = ("memory", "pids", "cpuacct", "cpu")
_JOIN = "import sys\nfor path in sys.argv[1:]:\n    with open(path, 'w') as file: file.write('0')"


@dataclass(frozen=True)
class Place:
    """Where groups can be made: controller → folder; in version 2 all controllers have the same one."""

    version: int
    folders: dict[str, Path]


@dataclass(frozen=True)
class Group:
    """The control group of one job."""

    place: Place
    name: str

    @property
    def folders(self) -> list[Path]:
        """The group's folder in each hierarchy."""
        return list(dict.fromkeys(folder / self.name for folder in self.place.folders.values()))

    @property
    def entrances(self) -> list[str]:
        """The files by which a process joins."""
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def make(self, memory: int, processes: int, cores: float) -> None:
        """Make the group with its limits; with 0 cores that of the processor is set later, by `share_out`.

        Raises:
            OSError: it cannot be made.
        """
        for folder in self.folders:
            folder.mkdir()
        pids = str(processes)
        if self.place.version == 2:
            self._write("memory", "memory.max", str(memory))
            self._write("memory", "memory.swap.max", "0", needed=False)
            self._write("memory", "memory.oom.group", "1", needed=False)
            self._write("pids", "pids.max", pids)
            if cores:
                self.share_out(cores)
            return
        self._write("memory", "memory.limit_in_bytes", str(memory))
        self._write("memory", "memory.memsw.limit_in_bytes", str(memory), needed=False)
        self._write("pids", "pids.max", pids)
        self._write("cpu", "cpu.cfs_period_us", str(PERIOD))
        if cores:
            self.share_out(cores)

    def share_out(self, cores: float) -> None:
        """Give what is in the group so much of the processors, and no more.

        Raises:
            OSError: it cannot be limited.
        """
        quota = str(int(max(cores * PERIOD, 1000)))
        if self.place.version != 2:
            self._write("cpu", "cpu.cfs_quota_us", quota)
        elif "cpu" in self.place.folders:
            self._write("cpu", "cpu.max", f"{quota} {PERIOD}")

    def is_out_of_memory(self) -> bool:
        """Say whether the kernel has ended a process because the group was over its memory."""
        file = "memory.events" if self.place.version == 2 else "memory.oom_control"
        return self._numbers("memory", file).get("oom_kill", 0) > 0

    def measure(self) -> tuple[int, int, float]:
        """Return bytes of memory without the page cache, number of processes, and seconds of processor time."""
        numbers = self._numbers("memory", "memory.stat")
        if self.place.version == 2:
            memory = numbers.get("anon", 0) + numbers.get("shmem", 0)
            cpu = self._numbers("memory", "cpu.stat").get("usage_usec", 0) / 1e6
        else:
            memory = numbers.get("total_rss", 0) + numbers.get("total_shmem", 0)
            cpu = int(self._read("cpuacct", "cpuacct.usage") or 0) / 1e9
        return memory, int(self._read("pids", "pids.current") or 0), cpu

    def kill(self) -> None:
        """End every process of the group; what a process of it starts meanwhile is ended, too."""
        if self.place.version == 2 and self._write("memory", "cgroup.kill", "1", needed=False):
            return
        end = time.monotonic() + PATIENCE
        while (members := self._members()) and time.monotonic() < end:
            for pid in members:
                self._kill_member(pid)
            if self._members() == members:
                time.sleep(0.002)

    def _kill_member(self, pid: int) -> None:
        """End one process by a descriptor, held while it is looked at a second time: a number may change hands."""
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(pid)
            try:
                if pid in self._members():
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    becomes_readable(descriptor, 0.1)
            finally:
                os.close(descriptor)

    def is_empty(self) -> bool:
        """Say whether no process is left."""
        return not self._members()

    def remove(self) -> None:
        """End what is left, and remove the group."""
        self.kill()
        end = time.monotonic() + PATIENCE
        for folder in self.folders:
            while folder.exists():
                try:
                    folder.rmdir()
                except OSError as error:
                    if time.monotonic() > end:
                        log.warning("the control group %s could not be removed: %s", folder, error)
                        break
                    time.sleep(0.005)

    def _members(self) -> list[int]:
        found: set[int] = set()
        for entrance in self.entrances:
            with contextlib.suppress(OSError):
                found |= {int(line) for line in Path(entrance).read_text().split()}
        return sorted(found)

    def _write(self, controller: str, name: str, text: str, *, needed: bool = True) -> bool:
        try:
            (self.place.folders[controller] / self.name / name).write_text(text)
        except OSError:
            if needed:
                raise
            return False
        return True

    def _read(self, controller: str, name: str) -> str:
        try:
            return (self.place.folders[controller] / self.name / name).read_text()
        except OSError:
            return ""

    def _numbers(self, controller: str, name: str) -> dict[str, int]:
        lines = (line.split() for line in self._read(controller, name).splitlines())
        return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


def becomes_readable(descriptor: int, seconds: float) -> bool:
    """Say whether a descriptor is readable within a time; its number may be any, as `select` does not let it be."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


@functools.cache
def place() -> Place | None:
    """Return where this process can make groups that count memory and processes, tried once; None where it cannot."""
    if sys.platform != "linux":
        return None
    try:
        candidates = _candidates(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mounts").read_text())
    except OSError:
        return None
    for candidate in candidates:
        if _works(candidate):
            _forget_gone(candidate)
            return candidate
    return None


def _candidates(memberships: str, mounts: str) -> list[Place]:
    """Return the places to try: below this process's own groups, and, in version 2, beside it."""
    own = {}
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    v1: dict[str, Path] = {}
    v2: list[Path] = []
    for line in mounts.splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup":
            for name in set(options.split(",")) & set(V1_CONTROLLERS):
                v1[name] = _below(Path(where), own.get(name, "/"))
        elif kind == "cgroup2":
            mine = _below(Path(where), own.get("", "/"))
            # a group with processes of its own hands no controllers down
            v2 += [mine, mine.parent] if mine != Path(where) else [mine]
    found = []
    for folder in v2:
        with contextlib.suppress(OSError):
            handed = (folder / "cgroup.subtree_control").read_text().split()
            if {"memory", "pids"} <= set(handed):
                found.append(Place(2, {name: folder for name in ("memory", "pids", "cpu") if name in handed}))
    if set(V1_CONTROLLERS) <= set(v1):
        found.append(Place(1, v1))
    return found


def _below(mount: Path, path: str) -> Path:
    inside = mount / path.lstrip("/")
    return inside if inside.is_dir() else mount


def _works(candidate: Place) -> bool:
    group = Group(candidate, f"{PREFIX}probe-{os.getpid()}")
    try:
        group.make(64 * 2**20, 16, 1.0)
        command = [sys.executable, "-I", "-S", "-c", _JOIN, *group.entrances]
        done = subprocess.run(command, capture_output=True, timeout=10, check=False, cwd="/")
    except (OSError, subprocess.TimeoutExpired):
        return False
    else:
        return done.returncode == 0
    finally:
        group.remove()


def _forget_gone(candidate: Place) -> None:
    """Remove the empty groups of nodes that ended before they could."""
    for folder in set(candidate.folders.values()):
        for left in folder.glob(f"{PREFIX}*"):
            pid = left.name.rsplit("-", 1)[-1]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                with contextlib.suppress(OSError):
                    left.rmdir()


def make_group(key: str, memory: int, processes: int, cores: float) -> Group | None:
    """Return a group of a job's own, or None where this process can make none.

    Raises:
        OSError: this one cannot be made; the job does not run without, as its limits are the group's.
    """
    where = place()
    if where is None:
        return None
    group = Group(where, f"{_start_of(key)}{os.getpid()}")
    try:
        group.remove()
        group.make(memory, processes, cores)
    except OSError:
        group.remove()
        raise
    return group


def _start_of(key: str) -> str:
    """Return the beginning of the names of a job's groups: a folder's name, whatever the job's names are."""
    plain = key.replace("/", ".")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,160}", plain):
        plain = hashlib.sha256(key.encode()).hexdigest()[:40]
    return f"{PREFIX}{plain}-"


def sweep(key: str) -> None:
    """End and remove what an earlier run of the node left of a job."""
    where = place()
    if where is None:
        return
    start = _start_of(key)
    for name in {path.name for folder in where.folders.values() for path in folder.glob(f"{start}*")}:
        if name.removeprefix(start).isdigit():
            Group(where, name).remove()
