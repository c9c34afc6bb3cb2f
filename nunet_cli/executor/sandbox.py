"""The sandbox of a command: what bubblewrap is told, as whom it runs, and whether it works here.

Nothing of the job reaches bubblewrap but the command that it passes on. The first program inside is a gate of ours,
with an environment of ours: it lets the command begin once the node holds the sandbox by a descriptor, and takes the
job's environment from another one. Until then nothing that the job says can keep the sandbox from coming up.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shlex
import sys
import tempfile
from pathlib import Path

from nunet_cli.executor.base import ExecutorError, Task

JOB = "/job"
INSIDE_USER = 65534
PROBE_SECONDS = 10
# as of systemd's list of user ids, these are nobody's
FIRST_USER, USERS = 0x70000000, 2**27
SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin")
OUTSIDE = {"PATH": os.pathsep.join(SYSTEM_PATH), "LANG": "C.UTF-8"}
GATE, INFO, ARGUMENTS, JOBS = 3, 4, 5, 6
# a job with more processes and threads is ended; the kernel, where it can, lets it have no more than the second
MAX_PROCESSES, HARD_PROCESSES = 256, 288
COUNTED_SINCE = (5, 14)
_GATE = (
    f"echo >&{GATE} && read -r _ <&{GATE} && exec {GATE}>&- && . /proc/self/fd/{JOBS} && "
    f'exec {JOBS}<&- && exec "$@"; exit 126'
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")
_KERNEL = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/scsi")


def find_bubblewrap() -> str | None:
    """Return where bubblewrap is, in the system's own folders and nowhere else."""
    for folder in SYSTEM_PATH:
        if os.access(f"{folder}/bwrap", os.X_OK):
            return f"{folder}/bwrap"
    return None


def job_user(key: str) -> int | None:
    """Return the user that a job's sandbox runs as: one of the job's own under a node of root's, else None, its own."""
    if os.geteuid() != 0:
        return None
    ranges = [(0, 2**32)]
    if sys.platform == "linux":
        rows = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
        ranges = [(int(first), int(count)) for first, _, count in rows]
    number = FIRST_USER + int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % USERS
    while _is_known(number):
        number += 1
    if any(first <= number < first + count for first, count in ranges):
        return number
    # a container with few users
    return INSIDE_USER if any(first <= INSIDE_USER < first + count for first, count in ranges) else None


def _is_known(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True


def programs() -> list[str]:
    """Return the folders of this Python, which jobs may use, where they are not the system's."""
    return [path for path in dict.fromkeys((sys.prefix, sys.base_prefix)) if path not in ("/", "/usr")]


def stage(work: Path) -> dict[str, str]:
    """Return what a user without rights cannot reach by itself: name → folder."""
    return {"work": str(work), **{f"programs-{number}": path for number, path in enumerate(programs())}}


def arguments(task: Task, *, staged: bool) -> list[str]:
    """Return bubblewrap's arguments for a job, to be read from a descriptor.

    Args:
        task: the job.
        staged: the job's folder and our programs are on the launcher's stage.
    """
    size = str(max(task.resources.memory, 2**20))
    found = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    found += ["--uid", str(INSIDE_USER), "--gid", str(INSIDE_USER), "--hostname", "job", "--proc", "/proc"]
    for path in _KERNEL:
        found += ["--ro-bind-try", path, path]
    found += ["--dev", "/dev", "--perms", "1777", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    found += ["--perms", "1777", "--size", size, "--tmpfs", "/tmp"]
    for folder in _SYSTEM_FOLDERS:
        found += ["--ro-bind-try", folder, folder]
    for number, folder in enumerate(programs()):
        found += ["--ro-bind-try", f"/tmp/programs-{number}" if staged else folder, folder]
    found += ["--bind", "/tmp/work" if staged else str(task.work), JOB, "--remount-ro", "/"]
    return [*found, "--chdir", JOB, "--clearenv"]


def script(task: Task, environment: dict[str, str]) -> str:
    """Return what the gate reads before the command: its environment and its folder."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return "\n".join([f"cd {shlex.quote(f'{JOB}/{task.spec.workdir}')} || exit 126", *lines, ""])


def check_texts(task: Task) -> None:
    """Refuse what no program can be given; a zero byte would end one argument and begin another.

    Raises:
        ExecutorError: there is such a text.
    """
    names = list(task.spec.env)
    texts = [*names, *task.spec.env.values(), *task.spec.command, task.spec.workdir]
    bad = any("=" in name or (task.sandbox and _NAME.fullmatch(name) is None) for name in names)
    if bad or any("\0" in text for text in texts):
        raise ExecutorError("the environment or the command has a character that cannot be in it", code="bad_text")


def command(bubblewrap: str, inside: tuple[str, ...]) -> list[str]:
    """Return the command line of a sandbox whose arguments come from a descriptor."""
    outside = [bubblewrap, "--args", str(ARGUMENTS), "--info-fd", str(INFO)]
    most = process_limit()
    # set in the user namespace, by the one letter or the other: outside of it, the user's other processes would count
    limited = f"{{ ulimit -u {most} || ulimit -p {most}; }} 2>/dev/null; {_GATE}" if most else _GATE
    return [*outside, "--", "/bin/sh", "-c", limited, "job", *inside]


def process_limit() -> int:
    """Return a sandbox's limit on processes and threads; 0 where the kernel counts those of the user elsewhere, too."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release) if sys.platform == "linux" else None
    counted = release is not None and (int(release[1]), int(release[2])) >= COUNTED_SINCE
    return HARD_PROCESSES if counted else 0


def sealed(data: bytes) -> int:
    """Return a descriptor of a file without a name that holds these bytes, to be read from its start."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("nunet")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
