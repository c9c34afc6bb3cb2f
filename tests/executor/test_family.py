"""What runs as whose child, seen by one look for all jobs."""

import os
import subprocess
import threading
import time

import pytest
import trio

from nunet_cli.executor import family
from nunet_cli.executor.family import Census, Machine, bearing, kill, take_census


async def test_one_look_serves_all_jobs_and_keeps_the_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten jobs on a machine with many processes left the event loop no time for anything else."""
    looks: list[int] = []

    def slow() -> Census:
        looks.append(threading.get_ident())
        time.sleep(0.3)
        return take_census()

    monkeypatch.setattr(family, "take_census", slow)
    machine = Machine(trio.CapacityLimiter(4), max_age=60)
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = trio.current_time()
            await trio.sleep(0.01)
            longest = max(longest, trio.current_time() - before)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        async with trio.open_nursery() as jobs:
            for _ in range(10):
                jobs.start_soon(machine.census)
        nursery.cancel_scope.cancel()
    assert len(looks) == 1
    assert looks[0] != threading.get_ident()
    assert longest < 0.25


def test_a_process_has_threads() -> None:
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    try:
        assert take_census().known[os.getpid()].threads > 20
    finally:
        over.set()


def test_a_family_is_a_process_with_all_that_came_from_it() -> None:
    shell = subprocess.Popen(["sh", "-c", "sh -c 'sleep 60; true' & sleep 60; true"])
    try:
        found: list[family.Process] = []
        while len(found) < 4:
            found = take_census().family([shell.pid])
        assert shell.pid in {process.pid for process in found}
        assert os.getpid() not in {process.pid for process in found}
    finally:
        for process in take_census().family([shell.pid]):
            kill(process)
        shell.wait()


def test_what_was_started_with_a_mark_is_found_wherever_it_went() -> None:
    mark = f"NUNET_TEST_MARK={os.urandom(8).hex()}"
    name, _, value = mark.partition("=")
    subprocess.run(["sh", "-c", "setsid sleep 60 &"], env={**os.environ, name: value}, check=True)
    (stray,) = bearing(mark)
    kill(family.Process(stray.pid, stray.parent, 0, 0.0, stray.started - 1))
    assert len(bearing(mark)) == 1
    kill(stray)
    while bearing(mark):
        time.sleep(0.01)
