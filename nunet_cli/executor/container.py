"""A job's container: what it is created with, and what the engine says of its end."""

from __future__ import annotations

import os
import posixpath
from datetime import datetime
from typing import Any

from nunet_cli import quantities
from nunet_cli.executor.base import ExecutorError, Task
from nunet_cli.executor.files import open_file, open_folder

LABEL = "org.nunet.allocation"
LEAST_MEMORY = 6 * 2**20


def container_options(task: Task, user: int, max_pids: int) -> dict[str, Any]:
    """Return what a job's container is created with: its folder, its limits, and nothing of the machine's beside."""
    from docker.types import Mount

    inside = f"/job/{task.spec.workdir}".rstrip("/")
    # the engine follows links, so it gets no path that the job could have changed; and makes no folder for one
    mounts = [Mount("/job", str(task.work), type="bind")]
    for number, place in enumerate(task.inputs):
        mounts.append(Mount(f"/job/{place}", str(task.kept_inputs / str(number)), type="bind", read_only=True))
    memory = max(task.resources.memory, LEAST_MEMORY)
    options: dict[str, Any] = {
        "entrypoint": list(task.spec.entrypoint) or None,
        "environment": {"HOME": "/job", **task.spec.env},
        "labels": {LABEL: task.allocation_id, **task.labels},
        "working_dir": inside,
        "user": f"{user}:{user}",
        "mounts": mounts,
        "network_mode": "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "shm_size": memory,
        "tmpfs": {"/tmp": in_memory(memory)},
        "mem_limit": memory,
        "memswap_limit": memory,
        "pids_limit": max_pids,
        "log_config": {"type": "json-file", "config": {"max-size": str(task.max_log), "max-file": "1"}},
        "init": True,
        "nano_cpus": int(task.resources.cpu.share * 1e9),
    }
    if task.resources.gpus:
        from docker.types import DeviceRequest

        options["device_requests"] = [DeviceRequest(count=len(task.resources.gpus), capabilities=[["gpu"]])]
    return options


def in_memory(size: int) -> str:
    """Return the options of a folder in memory of so many bytes."""
    return f"size={size},mode=1777"


def volumes(image: dict[str, Any], memory: int) -> dict[str, str]:
    """Return the volumes that an image declares as folders in memory, which counts as the job's.

    The engine would give each a folder of the host's disk, writable and as large as the disk. What is at or below
    the job's own folder is left to that: /job is mounted there.
    """
    wanted = (image.get("Config") or {}).get("Volumes") or {}
    paths = {posixpath.normpath(f"/{path}".replace("//", "/")) for path in wanted}
    return {path: in_memory(max(memory, LEAST_MEMORY)) for path in paths if path != "/job"}


def check_texts(task: Task) -> None:
    """Refuse what no program can be given.

    Raises:
        ExecutorError: there is such a text.
    """
    spec = task.spec
    texts = [*spec.env, *spec.env.values(), *spec.command, *spec.entrypoint, spec.workdir]
    if any("\0" in text for text in texts) or any(not name or "=" in name for name in spec.env):
        raise ExecutorError("the environment or the command has a character that cannot be in it", code="bad_text")


def check_places(task: Task) -> None:
    """Refuse a start where what the engine needs in the job's folder is not there: only the job can have moved it.

    Raises:
        ExecutorError: the working folder, or an input's place, is gone, or is a link.
    """
    try:
        os.close(open_folder(task.work, task.spec.workdir))
    except OSError:
        raise ExecutorError(f"the working folder {task.spec.workdir!r} is not there", code="no_workdir") from None
    for place in task.inputs:
        try:
            os.close(open_file(task.work, place))
        except OSError:
            raise ExecutorError(f"the place of the input {place!r} is not there", code="bad_place") from None


def _parse_time(text: str) -> datetime:
    """Return a time as the engine writes it, with nanoseconds or with none.

    Raises:
        ValueError: it is no time.
    """
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00")


def engine_time(text: str) -> str:
    """Return a time of the engine's as documents carry it; empty where the engine does not know it."""
    try:
        when = _parse_time(text)
    except ValueError:
        return ""
    # year 1 is how it says: not yet
    return quantities.format_time(when) if when.year > 1 else ""


def seconds_between(started: str, finished: str) -> float:
    """Return the seconds between two times of the engine's; 0 where it does not know them."""
    try:
        first, last = _parse_time(started), _parse_time(finished)
    except ValueError:
        return 0.0
    return max(0.0, round((last - first).total_seconds(), 3))
