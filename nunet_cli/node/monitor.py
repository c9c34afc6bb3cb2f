"""Monitoring of the machine (second seed): what is used outside of us, before an allocation is made and all along."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from nunet_cli import quantities
from nunet_cli.records.capability import Resources

# seconds for which what was seen is good enough: it takes half a millisecond, and each bid request asks for it twice
FRESH = 1.0


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
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._seen: Load | None = None
        self._seen_at = -math.inf
        psutil.cpu_percent(None)

    def load(self) -> Load:
        """Return the present load, as of the last second; the processor's is the mean since it was looked at last."""
        if self._seen is None or time.monotonic() - self._seen_at > FRESH:
            self._seen, self._seen_at = self._look(), time.monotonic()
        return self._seen

    def _look(self) -> Load:
        folder = next(parent for parent in [self._home, *self._home.parents] if parent.exists())
        return Load(
            cpu=round(psutil.cpu_percent(None) / 100, 3), memory_free=psutil.virtual_memory().available,
            disk_free=shutil.disk_usage(folder).free,
        )  # fmt: skip

    def missing(self, resources: Resources) -> str:
        """Return why the machine has no room for a job although the accounting has; empty where it has."""
        load = self.load()
        for name, free, wanted in (
            ("memory", load.memory_free, resources.memory), ("disk", load.disk_free, resources.disk),
        ):  # fmt: skip
            if wanted > free:
                return (
                    f"others use the machine: it has {quantities.format_size(free)} of {name} free,"
                    f" the job needs {quantities.format_size(wanted)}"
                )
        return ""
