"""Monitoring of the machine (second seed): what is used outside of us, before an allocation is made and all along."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from nunet_cli import quantities
from nunet_cli.config import LimitsConfig
from nunet_cli.records.capability import Cpu, Resources

# seconds for which what was seen is good enough: it takes half a millisecond, and each bid request asks for it twice
FRESH = 1.0
# so many looks make what others use of the processor: a program that starts is no reason to send jobs away
LOOKS = 3


@dataclass(frozen=True)
class Load:
    """The machine as it is now, whoever uses it: `cpu` is the busy share of all cores, 0 to 1; sizes are bytes."""

    cpu: float
    memory_free: int
    disk_free: int


class Monitor:
    """Looks at the machine.

    Args:
        home: the folder whose disk counts.
        limits: what of the machine stays free, whoever asks for it; read at each look.
    """

    # seconds between two looks while a node runs
    interval = 5.0

    def __init__(self, home: Path, limits: LimitsConfig | None = None) -> None:
        self._home, self._limits = home, limits or LimitsConfig()
        self._seen: Load | None = None
        self._seen_at = -math.inf
        self._others: deque[float] = deque(maxlen=LOOKS)
        self._last: tuple[float, float, float] | None = None
        self._known: dict[str, float] = {}
        psutil.cpu_percent(None)

    def load(self) -> Load:
        """Return the present load, as of the last second; the processor's is the mean since it was looked at last."""
        if self._seen is None or time.monotonic() - self._seen_at > FRESH:
            self._seen, self._seen_at = self._look(), time.monotonic()
        return self._seen

    def idle(self) -> Load:
        """Return the load that the machine would have if nobody used it."""
        return Load(0.0, psutil.virtual_memory().total, shutil.disk_usage(self._folder()).total)

    def _look(self) -> Load:
        return Load(
            cpu=round(psutil.cpu_percent(None) / 100, 3), memory_free=psutil.virtual_memory().available,
            disk_free=shutil.disk_usage(self._folder()).free,
        )  # fmt: skip

    def _folder(self) -> Path:
        return next(parent for parent in [self._home, *self._home.parents] if parent.exists())

    def watch_others(self, ours: Mapping[str, float]) -> None:
        """Look how much of the processor others have used since this was called last.

        Args:
            ours: the seconds of processor that each allocation which runs here has used so far.
        """
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        now, busy, node = time.monotonic(), sum(times[:8]) - idle, time.process_time()
        spent = sum(max(0.0, used - self._known.get(name, 0.0)) for name, used in ours.items())
        if self._last is not None and now > self._last[0]:
            then, was_busy, was_node = self._last
            self._others.append(max(0.0, busy - was_busy - (node - was_node) - spent) / (now - then))
        self._last, self._known = (now, busy, node), dict(ours)

    @property
    def others_cpu(self) -> float | None:
        """The cores that others have used of late, on the average; None as long as that is not known."""
        return sum(self._others) / LOOKS if len(self._others) == LOOKS else None

    def pressure(self) -> tuple[str, ...]:
        """Return what the machine is so short of that no job is taken; nothing where it has enough."""
        load, limits = self.load(), self._limits
        return tuple(
            f"{name}: {quantities.format_size(free)} free, {quantities.format_size(kept)} stay free"
            f" (limits.{name}_reserve)"
            for name, free, kept in (
                ("memory", load.memory_free, limits.memory_reserve), ("disk", load.disk_free, limits.disk_reserve),
            )
            if free < kept
        )  # fmt: skip

    def room(self, held: float) -> Resources:
        """Return what others leave of the machine for another job.

        Args:
            held: the cores that jobs have, or have locked; of memory and disk they take what they use.
        """
        load, limits, others = self.load(), self._limits, self.others_cpu
        cores = math.inf
        if limits.count_others_cpu and others is not None:
            cores = max(0.0, round((psutil.cpu_count() or 1) - others - held, 3))
        return Resources(
            cpu=Cpu(cores=cores), memory=max(0, load.memory_free - limits.memory_reserve),
            disk=max(0, load.disk_free - limits.disk_reserve),
        )  # fmt: skip

    def missing(self, resources: Resources, held: float = 0.0) -> str:
        """Return why the machine has no room for a job although the accounting has; empty where it has.

        Args:
            resources: what the job needs.
            held: as of `room`.
        """
        if short := self.pressure():
            return f"the machine is short of {', and of '.join(short)}"
        room = self.room(held)
        for name, free, wanted in (
            ("memory", room.memory, resources.memory), ("disk", room.disk, resources.disk),
        ):  # fmt: skip
            if wanted > free:
                return (
                    f"others use the machine: it has {quantities.format_size(free)} of {name} to give,"
                    f" the job needs {quantities.format_size(wanted)}"
                )
        if resources.cpu.share > room.cpu.cores:
            return (
                f"others use the machine: they leave {quantities.format_cores(room.cpu.cores)},"
                f" the job needs {quantities.format_cores(resources.cpu.share)}"
            )
        return ""
