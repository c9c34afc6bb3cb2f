"""What the machine has: probed with psutil, GPUs through NVML where its library is there, and measured in seconds."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from nunet_cli.records.capability import Cpu, Gpu, Library, Resources
from nunet_cli.records.offers import Benchmark

CPU_SECONDS = 1.0
MEMORY_SECONDS = 0.5
DISK_BYTES = 64 * 2**20
PROBED_LIBRARIES = ("numpy", "scipy", "pandas", "torch", "jax", "tensorflow")


def probe_machine(home: Path) -> Resources:
    """Return what the machine has in all: logical cores, frequency, memory, the disk that the home is on, GPUs."""
    frequency = psutil.cpu_freq()
    mhz = float(frequency.max or frequency.current) if frequency else 0.0
    folder = next(parent for parent in [home, *home.parents] if parent.exists())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Resources(
        cpu=Cpu(cores=float(cores), mhz=round(mhz), arch=platform.machine(), model=_cpu_model()[:200]),
        memory=psutil.virtual_memory().total,
        disk=shutil.disk_usage(folder).free,
        gpus=probe_gpus(),
    )


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def probe_gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA devices that NVML knows; none where its library or driver is missing."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            name: Any = pynvml.nvmlDeviceGetName(device)
            name = name.decode() if isinstance(name, bytes) else name
            found.append(Gpu("NVIDIA", name, int(pynvml.nvmlDeviceGetMemoryInfo(device).total)))
        return tuple(found)
    finally:
        pynvml.nvmlShutdown()


def probe_libraries() -> tuple[Library, ...]:
    """Return Python's version and those of well-known packages that the node's interpreter has."""
    # imported here: it brings much along, and few commands measure anything
    import importlib.metadata

    found = [Library("python", ".".join(map(str, sys.version_info[:3])))]
    for name in PROBED_LIBRARIES:
        try:
            found.append(Library(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def run_benchmark(home: Path) -> Benchmark:
    """Measure processor, memory and disk; blocks for about two seconds.

    Args:
        home: where to write the test file.
    """
    from nunet_cli import quantities

    cpu = _rate(CPU_SECONDS, b"\0" * 2**20, lambda block: hashlib.sha256(block).digest())
    memory = _rate(MEMORY_SECONDS, bytearray(2**24), bytes)
    disk = _disk_rate(home)
    return Benchmark(round(cpu), round(memory), round(disk), quantities.utc_now())


def _rate(seconds: float, block: Any, work: Callable[[Any], Any]) -> float:
    done, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        work(block)
        done += len(block)
    return done / elapsed


def _disk_rate(home: Path) -> float:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    size = min(DISK_BYTES, shutil.disk_usage(home).free // 4)
    block = os.urandom(2**20)
    begin = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=home) as file:
        for _ in range(max(1, size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return size / (time.perf_counter() - begin)
