import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from nunet_cli.executor import cgroup, process
from nunet_cli.executor.base import ExecutorError, Exit, Task, make_scratch, open_output
from nunet_cli.executor.cgroup import Group
from nunet_cli.executor.launch import Running
from nunet_cli.executor.process import ProcessExecutor
from nunet_cli.jobs.spec import ExecutorSpec
from nunet_cli.records.capability import Cpu, Resources

MIB = 2**20


def task(folder: Path, *command: str, sandbox: bool = False, memory: int = 256 * MIB, **options: object) -> Task:
    spec = ExecutorSpec(type="process", command=command, env={"GREETING": "hello"})
    made = Task(
        allocation_id=f"allocation-{os.getpid()}", spec=spec, resources=Resources(Cpu(1), memory, 32 * MIB), max_duration=30,
        max_log=4096, folder=folder / "scratch", sandbox=sandbox, **options,
    )  # fmt: skip
    make_scratch(made, [])
    return made


async def run(job: Task) -> Exit:
    executor = ProcessExecutor()
    await executor.prepare(job)
    handle = await executor.start(job)
    with trio.fail_after(30):
        ended = await executor.wait(job, handle)
    await executor.cleanup(job, handle)
    return ended


@pytest.fixture(params=[False, True], ids=["bare", "sandbox"])
async def sandbox(request: pytest.FixtureRequest) -> bool:
    if request.param and not await ProcessExecutor().can_sandbox():
        pytest.skip("bubblewrap does not work here")
    return bool(request.param)


async def test_output_exit_code_and_environment(tmp_path: Path, sandbox: bool) -> None:
    job = task(tmp_path, "sh", "-c", 'echo "$GREETING"; echo bad >&2; touch made; exit 3', sandbox=sandbox)
    ended = await run(job)
    assert (ended.exit_code, ended.reason) == (3, "")
    assert job.stdout.read_text() == "hello\n"
    assert job.stderr.read_text() == "bad\n"
    assert open_output(job, "made") is not None


async def test_nothing_of_the_nodes_environment_gets_in(
    tmp_path: Path, sandbox: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUNET_PASSPHRASE", "correct horse")
    job = task(tmp_path, "env", sandbox=sandbox)
    assert (await run(job)).exit_code == 0
    assert "correct horse" not in job.stdout.read_text()


async def test_a_sandboxed_job_sees_neither_the_disk_nor_the_network_nor_other_processes(tmp_path: Path) -> None:
    if not await ProcessExecutor().can_sandbox():
        pytest.skip("bubblewrap does not work here")
    secret = tmp_path / "secret"
    secret.write_text("key")
    probe = (
        f"cat {secret}; ls /root /home; cat /etc/passwd; ls /sys/class/net; echo pids $(ls /proc | grep -c '^[0-9]')"
    )
    job = task(tmp_path, "sh", "-c", probe, sandbox=True)
    await run(job)
    out = job.stdout.read_text()
    assert "key" not in out
    assert "root:x:" not in out
    assert "eth0" not in out
    assert int(out.split("pids ")[1]) < 8


async def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExecutorError) as caught:
        await run(task(tmp_path, "no-such-program"))
    assert (caught.value.code, caught.value.message) == (
        "no_program",
        "there is no program 'no-such-program' on this provider",
    )
    job = task(tmp_path, "./no-such-program")
    assert (await run(job)).exit_code == 127
    assert "./no-such-program: command not found" in job.stderr.read_text()


async def test_memory_over_the_limit_ends_the_job(tmp_path: Path, sandbox: bool) -> None:
    hog = "import mmap\nm = mmap.mmap(-1, 400 << 20)\nfor i in range(0, 400 << 20, 4096): m[i] = 1\nprint('kept')"
    job = task(tmp_path, "python3", "-c", hog + "\nimport time; time.sleep(20)", sandbox=sandbox, memory=96 * MIB)
    ended = await run(job)
    assert ended.reason == "out_of_memory"


async def test_a_file_over_the_disk_limit_ends_the_job(tmp_path: Path, sandbox: bool) -> None:
    writer = "for n in 1 2 3 4 5 6; do dd if=/dev/zero of=f$n bs=1M count=16 2>/dev/null; done; sleep 20"
    ended = await run(task(tmp_path, "sh", "-c", writer, sandbox=sandbox))
    assert ended.reason == "disk_full"


async def test_a_log_over_its_limit_is_cut_and_the_job_goes_on(tmp_path: Path) -> None:
    job = task(tmp_path, "sh", "-c", "yes | head -c 1000000; echo done > done")
    assert (await run(job)).exit_code == 0
    assert job.stdout.stat().st_size < 5000
    assert "over its limit" in job.stdout.read_text()
    assert open_output(job, "done")


async def test_stop_ends_the_whole_family(tmp_path: Path, sandbox: bool) -> None:
    job = task(tmp_path, "sh", "-c", "trap '' TERM; sleep 301 & sleep 302", sandbox=sandbox)
    executor = ProcessExecutor()
    handle = await executor.start(job)
    ended: list[Exit] = []

    async def wait() -> None:
        ended.append(await executor.wait(job, handle))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        family: list[psutil.Process] = []
        with trio.fail_after(30):
            while not any("302" in " ".join(process.cmdline()) for process in family):
                await trio.sleep(0.05)
                family = psutil.Process(int(handle)).children(recursive=True)
        await executor.stop(job, handle)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert ended[0].exit_code not in (0, None)
    await executor.cleanup(job, handle)


async def test_links_that_the_job_made_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    job = task(tmp_path, "sh", "-c", f"ln -s {tmp_path}/secret out; ln -s {tmp_path} folder; mkdir sub; echo a > sub/a")
    await run(job)
    assert open_output(job, "out") is None
    assert open_output(job, "folder/secret") is None
    assert open_output(job, "../secret") is None
    assert open_output(job, "sub/a") is not None


async def test_a_job_that_needs_a_sandbox_is_refused_where_there_is_none(tmp_path: Path) -> None:
    executor = ProcessExecutor()
    executor._sandbox = False
    with pytest.raises(ExecutorError) as caught:
        await executor.prepare(task(tmp_path, "true", sandbox=True))
    assert caught.value.code == "no_sandbox"


async def test_the_nodes_of_a_process_find_out_about_the_sandbox_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find_bubblewrap", lambda: "/usr/bin/bwrap")
    monkeypatch.setattr(process, "HOLDS", set())
    asked = []

    async def holds(_executor: ProcessExecutor) -> bool:
        asked.append(answers.pop(0))
        return asked[-1]

    monkeypatch.setattr(ProcessExecutor, "_holds", holds)
    # what does not work may work for the next node; what works is not tried again, unless somebody wants to know of now
    answers = [False, True, False, False]
    assert not await ProcessExecutor().can_sandbox()
    assert await ProcessExecutor().can_sandbox()
    assert await ProcessExecutor().can_sandbox()
    assert asked == [False, True]
    assert not await ProcessExecutor().try_sandbox()
    assert not await ProcessExecutor().can_sandbox()
    assert asked == [False, True, False, False]


async def test_a_sandbox_is_set_up_before_the_start_and_nothing_of_the_job_runs_until_then(tmp_path: Path) -> None:
    executor = ProcessExecutor()
    if not await executor.can_sandbox():
        pytest.skip("bubblewrap does not work here")
    job = task(tmp_path, "sh", "-c", "echo ran; touch made", sandbox=True)
    before = set(psutil.Process().children(recursive=True))
    await executor.set_up(job)
    with trio.fail_after(10):
        # it is up: bubblewrap has started the first process in it
        while len(set(psutil.Process().children(recursive=True)) - before) < 2:
            await trio.sleep(0.01)
    assert open_output(job, "made") is None
    handle = await executor.start(job)
    with trio.fail_after(30):
        assert (await executor.wait(job, handle)).exit_code == 0
    await executor.cleanup(job, handle)
    assert job.stdout.read_text() == "ran\n"
    assert open_output(job, "made") is not None


async def test_a_sandbox_that_was_set_up_and_not_started_leaves_nothing(tmp_path: Path) -> None:
    executor = ProcessExecutor()
    if not await executor.can_sandbox():
        pytest.skip("bubblewrap does not work here")
    job = task(tmp_path, "touch", "made", sandbox=True)
    before = set(psutil.Process().children(recursive=True))
    await executor.set_up(job)
    family = set(psutil.Process().children(recursive=True)) - before
    assert family
    with trio.fail_after(20):
        await executor.cleanup(job, "")
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert open_output(job, "made") is None


class Slow(Group):
    """A control group whose processes take two seconds to die, as one with much memory does."""

    def kill(self) -> None:
        time.sleep(2)
        super().kill()


async def longest_step(act: Callable[[], Awaitable[object]]) -> float:
    """Return for how many seconds nothing else had its turn while something was done."""
    longest, turns = 0.0, 0

    async def look() -> None:
        nonlocal longest, turns
        while True:
            before = time.monotonic()
            await trio.sleep(0.01)
            longest, turns = max(longest, time.monotonic() - before), turns + 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        with trio.fail_after(30):
            while not turns:
                await trio.sleep(0.01)
            await act()
            last = turns
            while turns < last + 2:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return longest


async def test_what_takes_long_to_die_keeps_nobody_else_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = cgroup.make_group

    def made(*arguments: Any) -> Group | None:
        group = make(*arguments)
        return Slow(group.place, group.name) if group is not None else None

    monkeypatch.setattr(cgroup, "make_group", made)
    job, executor = task(tmp_path, "sh", "-c", "sleep 60 & exit 0"), ProcessExecutor()
    handle = await executor.start(job)
    running = executor._running[job.allocation_id]
    try:
        if running.group is None:
            pytest.skip("there are no control groups here")
        with trio.fail_after(10):
            await running.ended()
        assert not running.group.is_empty()
        assert await longest_step(partial(running.gone, executor._limiter)) < 1.5
        assert running.group.is_empty()
    finally:
        await executor.cleanup(job, handle)


async def test_a_sandbox_that_does_not_come_up_keeps_nobody_else_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not await ProcessExecutor().can_sandbox():
        pytest.skip("bubblewrap does not work here")
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho no namespaces here >&2\nexit 1\n")
    broken.chmod(0o755)
    job, executor = task(tmp_path, "true", sandbox=True), ProcessExecutor()
    kill = Running.kill

    def slow(self: Running) -> None:
        time.sleep(2)
        kill(self)

    monkeypatch.setattr(Running, "kill", slow)
    monkeypatch.setattr("nunet_cli.executor.sandbox.find_bubblewrap", lambda: str(broken))

    async def start() -> None:
        with pytest.raises(ExecutorError, match="the sandbox did not come up"):
            await executor.start(job)

    assert await longest_step(start) < 1.5


async def test_what_the_kernel_holds_of_a_sandbox_is_let_go_also_where_it_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = ProcessExecutor()
    if not await executor.can_sandbox():
        pytest.skip("bubblewrap does not work here")
    job = task(tmp_path, "true", sandbox=True)
    await executor.set_up(job)
    running = executor._ready[job.allocation_id]

    async def never(_self: Running, _limiter: trio.CapacityLimiter) -> None:
        raise ExecutorError("a process of the job does not end")

    monkeypatch.setattr(Running, "gone", never)
    with pytest.raises(ExecutorError, match="does not end"):
        await executor.cleanup(job, "")
    assert (running.outer, running.info) == (-1, -1)
    assert running.group is None or not any(folder.exists() for folder in running.group.folders)
