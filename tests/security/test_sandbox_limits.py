"""Ways around a limit that the sandbox itself holds: through names, restarts, and what runs beside a job."""

import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from nunet_cli.executor import cgroup, process, sandbox
from nunet_cli.executor.process import ProcessExecutor
from nunet_cli.jobs.spec import JobName
from nunet_cli.records.reading import convert
from tests.executor.jobs import run, started, task, until_there


@pytest.mark.parametrize("name", ["a\n", "a/b\n", "ä", "x" * 300, ""])
async def test_no_name_takes_a_job_out_of_its_control_group(tmp_path: Path, name: str) -> None:
    if cgroup.place() is None:
        pytest.skip("needs control groups that can be written")
    job = task(tmp_path, "sleep", "60")
    job = replace(job, allocation_id=f"{job.allocation_id}/{name}")
    async with started(job) as (executor, _, _):
        group = executor._running[job.allocation_id].group
        assert group is not None
        assert not group.is_empty()
    assert not any(folder.exists() for folder in group.folders)


async def test_a_job_whose_control_group_cannot_be_made_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cgroup.place() is None:
        pytest.skip("needs control groups that can be written")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cgroup.Group, "make", full)
    executor = ProcessExecutor()
    with pytest.raises(Exception, match="control group cannot be made"):
        await executor.start(task(tmp_path, "true"))


@pytest.mark.parametrize("name", ["a\n", "\n", "a b", "..", "-a", ""])
def test_a_jobs_name_is_one_plain_word(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        convert(name, JobName)


async def test_all_starts_of_a_service_share_one_logs_room(tmp_path: Path) -> None:
    job = task(tmp_path, "sh", "-c", "head -c 4096 /dev/zero; head -c 4096 /dev/zero >&2")
    for start in range(4):
        await run(replace(job, restarts=start))
    for log in (job.stdout, job.stderr):
        assert log.stat().st_size < job.max_log + 200


async def test_nobody_waits_in_the_nodes_thread_for_the_end_of_a_health_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the job's share of the processor, which may be next to nothing."""
    waited: list[threading.Thread] = []
    wait = subprocess.Popen.wait

    def noted(popen: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        waited.append(threading.current_thread())
        return wait(popen, timeout)

    job = task(tmp_path, "sleep", "60")
    async with started(job) as (executor, handle, _):
        monkeypatch.setattr(subprocess.Popen, "wait", noted)
        with trio.move_on_after(0.5):
            await executor.check(job, handle, ("sleep", "60"))
        assert await executor.check(job, handle, ("true",))
    assert waited
    assert threading.main_thread() not in waited


THREADS = """
import sys, threading, time
threading.stack_size(65536)
try:
    for number in range(600): threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
except RuntimeError: pass
else: number = 600
open(sys.argv[1], "w").write(str(number))
time.sleep(30 if sys.argv[1] == "made" else 0)
"""


async def test_threads_count_as_processes_where_limits_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "place", lambda: None)
    assert (await run(task(tmp_path, "python3", "-c", THREADS, "made"))).reason == "too_many_processes"


async def test_the_kernel_ends_the_number_of_threads_where_limits_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is quicker than the watcher, and a health check has no number of its own."""
    if not sandbox.process_limit():
        pytest.skip("the kernel counts the processes of a user, not of a sandbox")
    monkeypatch.setattr(cgroup, "place", lambda: None)
    monkeypatch.setattr(process, "MAX_PROCESSES", 10**6)
    async with started(job := task(tmp_path, "python3", "-c", THREADS, "made")) as (executor, handle, _):
        await until_there(job.work / "made")
        assert await executor.check(job, handle, ("true",)) is False
        made = int((job.work / "made").read_text())
    assert sandbox.HARD_PROCESSES - 10 < made < sandbox.HARD_PROCESSES


async def test_a_health_check_has_no_more_processes_than_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not sandbox.process_limit():
        pytest.skip("the kernel counts the processes of a user, not of a sandbox")
    monkeypatch.setattr(cgroup, "place", lambda: None)
    monkeypatch.setattr(process, "MAX_PROCESSES", 10**6)
    async with started(job := task(tmp_path, "sleep", "60")) as (executor, handle, _):
        assert await executor.check(job, handle, ("python3", "-c", THREADS, "checked"))
        assert int((job.work / "checked").read_text()) < sandbox.HARD_PROCESSES


@pytest.fixture
def many_open() -> Iterator[None]:
    """More than 1024 descriptors open: what comes now has a larger number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("so many descriptors cannot be opened here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    yield
    for descriptor in opened:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_open")
@pytest.mark.parametrize("sandbox", [True, False], ids=["sandbox", "bare"])
async def test_jobs_start_and_end_however_many_descriptors_the_node_has(tmp_path: Path, sandbox: bool) -> None:
    job = task(tmp_path, "sh", "-c", "setsid sleep 60 & sleep 60", sandbox=sandbox)
    async with started(job) as (executor, handle, ended):
        assert await executor.check(job, handle, ("true",))
        running = executor._running[job.allocation_id]
        await executor.stop(job, handle)
    assert ended
    assert running.returncode is not None
    assert running.group is None or not any(folder.exists() for folder in running.group.folders)
