"""What the tests leave behind on the machine: processes, containers, mounts, network namespaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

# in the environment of everything that the tests start, whatever starts it
MARK = "TESTS_OF_NUNET"
PATIENCE = 20.0


def mark() -> str:
    """Mark this process, and with it all that it starts; return the mark. A process that was marked keeps its own."""
    return os.environ.setdefault(MARK, f"{os.getpid()}-{time.time_ns()}")


def _processes(mark: str) -> dict[int, str]:
    """Return the processes that carry a mark, but for those that run tests, with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            ended = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        runs_tests = int(folder.name) == os.getpid() or "execnet" in command
        if f"{MARK}={mark}".encode() in environment and not runs_tests and not ended:
            found[int(folder.name)] = command
    return found


def _containers(folder: Path) -> list[str]:
    """Return the containers of allocations whose files are below a folder."""

    def docker(*arguments: str) -> str:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=30)
        return done.stdout if done.returncode == 0 else ""

    try:
        ids = docker("ps", "-aq", "--filter", "label=org.nunet.allocation").split()
        rows = json.loads(docker("inspect", *ids) or "[]") if ids else []
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return [
        row["Id"] for row in rows if any(str(item.get("Source", "")).startswith(f"{folder}/") for item in row["Mounts"])
    ]


def _mounts(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [place for place in (line.split()[4] for line in lines) if place.startswith(f"{folder}/")]


def namespace_tag() -> str:
    """Return what the names of this run's network namespaces begin with."""
    return f"nn{int(mark().partition('-')[0]) % 10**5}"


def _namespaces(tag: str) -> list[str]:
    names = Path("/run/netns")
    return sorted(path.name for path in names.glob(f"{tag}*")) if names.exists() else []


def left_behind(mark: str, folder: Path, tag: str, *, patience: float = PATIENCE) -> list[str]:
    """Return what is there still, in words; what is about to end gets a moment, and a process that stays is killed.

    Args:
        mark: of the processes.
        folder: where the tests have their files.
        tag: what the names of their network namespaces begin with.
        patience: the moment, in seconds.
    """
    end = time.monotonic() + patience
    while (processes := _processes(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    for pid in processes:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return [
        *(f"process {pid}: {command}" for pid, command in processes.items()),
        *(f"container {name}" for name in _containers(folder)), *(f"mount {place}" for place in _mounts(folder)),
        *(f"network namespace {name}" for name in _namespaces(tag)),
    ]  # fmt: skip
