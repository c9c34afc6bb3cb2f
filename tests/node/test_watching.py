"""What others use of the machine, with real programs that use it."""

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from nunet_cli.config import LimitsConfig
from nunet_cli.errors import StateError
from nunet_cli.node.monitor import LOOKS, Monitor
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.node.overview import status
from nunet_cli.records.capability import Cpu, Resources
from nunet_cli.records.events import EVENTS
from nunet_cli.records.offers import OnboardOptions
from tests.conftest import config

MIB = 2**20
EATEN = 700 * MIB
# they end by themselves, should the test be killed
EATS = f"import time; block = b'x' * {EATEN}; print('fed', flush=True); time.sleep(60)"
SPINS = "import time\nend = time.monotonic() + 60\nprint('spins', flush=True)\nwhile time.monotonic() < end: pass"


@asynccontextmanager
async def other(code: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run a program of somebody else's until the end of the context."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            with trio.fail_after(30):
                assert await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
            yield process
        finally:
            process.kill()


async def until_event(node: Node, type_: str) -> None:
    with trio.fail_after(30):
        while type_ not in [event.type for _, event in node.ctx.store[EVENTS].after(0, job_id="")]:
            await trio.sleep(0.05)


async def test_a_machine_short_of_memory_takes_no_job_says_so_and_takes_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Monitor, "interval", 0.2)
    async with open_node(tmp_path, config()) as node:
        await node.onboard(OnboardOptions(cpu=0.5, memory="64MiB", disk="64MiB"), None)
        job = Resources(Cpu(0.1), 16 * MIB, MIB)
        assert node.accounting.crowded(job) == ""
        # half of what is going to be eaten is kept free
        node.ctx.config.limits.memory_reserve = psutil.virtual_memory().available - EATEN // 2
        async with other(EATS):
            await until_event(node, "machine_short")
            assert "the machine is short of memory" in node.accounting.crowded(job)
            (short,) = status(node)["machine"]["short_of"]
            assert "limits.memory_reserve" in short
            assert node.get_available_capability().resources.memory == 0
            assert node.get_registered_capability().resources.memory == 64 * MIB

            def take(t: object) -> None:
                node.accounting.allocate(t, "bid", "allocation", job)  # type: ignore[arg-type]

            with pytest.raises(StateError, match="short of memory"):
                await node.ctx.store.change(take)
        await until_event(node, "machine_relieved")
        # the others' memory comes and goes by more than this provider offers
        node.ctx.config.limits.memory_reserve = 2**28
        assert status(node)["machine"]["short_of"] == []
        assert node.get_available_capability().resources.memory == 64 * MIB


async def test_a_machine_short_of_disk_takes_no_job(tmp_path: Path) -> None:
    limits = LimitsConfig()
    monitor = Monitor(tmp_path, limits)
    assert monitor.missing(Resources(disk=MIB)) == ""
    limits.disk_reserve = psutil.disk_usage(str(tmp_path)).total
    assert "short of disk" in monitor.missing(Resources(disk=MIB))
    limits.disk_reserve = 0
    assert "of disk to give" in monitor.missing(Resources(disk=psutil.disk_usage(str(tmp_path)).total))


async def test_what_others_use_of_the_processor_is_not_offered_and_what_our_jobs_use_is_not_theirs(
    tmp_path: Path,
) -> None:
    limits = LimitsConfig(count_others_cpu=True)
    monitor = Monitor(tmp_path, limits)
    cores = psutil.cpu_count() or 1

    async def look() -> float:
        """Look as often as it takes; return how many cores others use."""
        for _ in range(LOOKS + 1):
            monitor.watch_others({})
            await trio.sleep(0.4)
        assert monitor.others_cpu is not None
        return monitor.others_cpu

    assert monitor.others_cpu is None
    assert monitor.missing(Resources(Cpu(cores))) == ""
    async with other(SPINS):
        with_it = await look()
        # it wants a core whole: either it has that, or others have the rest
        assert with_it > 0.5
        assert "others use the machine: they leave" in monitor.missing(Resources(Cpu(cores)))
        assert monitor.room(0).cpu.cores == pytest.approx(max(0, cores - with_it), abs=0.01)
        assert monitor.room(0.5).cpu.cores == pytest.approx(max(0, cores - with_it - 0.5), abs=0.01)
        limits.count_others_cpu = False
        assert monitor.missing(Resources(Cpu(cores))) == ""
        limits.count_others_cpu = True
    # as a job of ours, the same program is nobody else's: two look at the same moments
    blind = Monitor(tmp_path, limits)
    async with other(SPINS) as process:
        mine = psutil.Process(process.pid)
        marks = []
        for _ in range(LOOKS + 2):
            used = sum(mine.cpu_times()[:2])
            marks.append((time.monotonic(), used))
            monitor.watch_others({"job": used})
            blind.watch_others({})
            await trio.sleep(0.4)
    (then, before), (now, after) = marks[-LOOKS - 1], marks[-1]
    assert blind.others_cpu is not None
    assert monitor.others_cpu is not None
    assert blind.others_cpu - monitor.others_cpu == pytest.approx((after - before) / (now - then), abs=0.1)
    assert after - before > 0.1
