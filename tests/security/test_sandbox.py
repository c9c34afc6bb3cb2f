"""What a hostile job tries in the sandbox, and against what stands around it."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio

from nunet_cli.executor import cgroup, process, sandbox
from nunet_cli.executor.base import ExecutorError
from nunet_cli.executor.process import ProcessExecutor
from tests.executor.jobs import MIB, command_lines, run, started, task, until_there

NEEDED = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
pytestmark = NEEDED


@pytest.fixture(autouse=True)
async def works() -> None:
    if not await ProcessExecutor().can_sandbox():
        pytest.skip("bubblewrap does not work here")


@pytest.fixture(params=["counted", "watched"])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to hold a job to its limits: by the kernel's control groups, and by looking."""
    if request.param == "watched":
        monkeypatch.setattr(cgroup, "place", lambda: None)
    elif cgroup.place() is None:
        pytest.skip("no control groups can be made here")
    return str(request.param)


@pytest.fixture
def busy() -> Iterator[None]:
    """Keep every processor busy."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


# -- nothing of the job outside ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [False, True], ids=["command", "health-check"])
async def test_a_file_of_the_jobs_is_not_run_in_place_of_a_program_of_ours(tmp_path: Path, check: bool) -> None:
    trap = f"#!/bin/sh\ntouch {tmp_path}/escaped\n"
    names = ("bwrap", "sh", "python3", "python", "nsenter", "env")
    job = task(
        tmp_path / "job", "/bin/sh", "-c", "echo fine; exec /bin/sleep 30" if check else "echo fine",
        env={"PATH": ".:/job"}, files=dict.fromkeys(names, trap),
    )  # fmt: skip
    if check:
        async with started(job) as (executor, handle, _):
            assert await executor.check(job, handle, ("/bin/true",))
    else:
        assert (await run(job)).exit_code == 0
        assert job.stdout.read_text() == "fine\n"
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("sandbox", [True, False], ids=["sandbox", "bare"])
async def test_the_jobs_environment_steers_no_program_of_ours(tmp_path: Path, sandbox: bool) -> None:
    """The loader writes a file for every program that it starts with this environment, where it can."""
    folder = tmp_path / "loader"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    tmp_path.chmod(0o755)
    steering = {
        "LD_DEBUG": "libs", "LD_DEBUG_OUTPUT": f"{folder}/seen", "PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere",
        "PYTHONVERBOSE": "1", "BASH_ENV": "/job/x", "ENV": "/job/x",
    }  # fmt: skip
    job = task(tmp_path / "job", "/bin/sh", "-c", "echo $PYTHONHOME", sandbox=sandbox, env=steering)
    assert (await run(job)).exit_code == 0
    assert job.stdout.read_text().endswith("/nowhere\n")
    seen = [path.read_text() for path in folder.iterdir()]
    # without a sandbox the command itself is seen: one program
    assert len(seen) == (0 if sandbox else 1)
    assert not any("python" in text or "bwrap" in text for text in seen)


@pytest.mark.parametrize("sandbox", [True, False], ids=["sandbox", "bare"])
async def test_what_is_secret_in_the_environment_is_on_no_command_line(tmp_path: Path, sandbox: bool) -> None:
    secret = f"secret-{os.urandom(8).hex()}"
    job = task(
        tmp_path / "job", "sh", "-c", 'echo "$TOKEN" > got; exec sleep 30', sandbox=sandbox, env={"TOKEN": secret}
    )
    async with started(job) as (executor, handle, _):
        await until_there(job.work / "got")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(executor.check, job, handle, ("sh", "-c", "touch checking; sleep 30"))
            await until_there(job.work / "checking")
            assert (job.work / "got").read_text().strip() == secret
            assert not command_lines(secret)
            assert command_lines("touch checking")
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "fields",
    [
        {"env": {"A": "x\0--bind\0/\0/job"}},
        {"env": {"A=B": "x"}},
        {"env": {"A; touch /job/x; B": "x"}},
        {"command": ("true", "a\0b")},
    ],
)
async def test_a_text_that_would_become_another_argument_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    job = task(tmp_path / "job", "true")
    import msgspec

    with pytest.raises(ExecutorError) as caught:
        await ProcessExecutor().start(replace(job, spec=msgspec.structs.replace(job.spec, **fields)))
    assert caught.value.code == "bad_text"


async def test_the_environment_arrives_as_it_was_written(tmp_path: Path) -> None:
    values = {"A": "it's\n$(touch x) `touch x` \\ \"", "B": "", "C": "é\t", "IFS": "/", "PATH": "/job:/usr/bin:/bin"}
    look = "import os, json; print(json.dumps({name: os.environ.get(name) for name in 'A B C IFS PATH PWD'.split()}))"
    job = task(tmp_path / "job", "python3", "-c", look, env=values)
    assert (await run(job)).exit_code == 0
    assert json.loads(job.stdout.read_text()) == {**values, "PWD": "/job"}
    assert not (job.work / "x").exists()


@pytest.mark.parametrize(
    "env", [{"LD_PRELOAD": "/job/x"}, {"PATH": "/job"}, {"ENV": "/job/x", "BASH_ENV": "/job/x", "OPTIND": "x"}]
)
async def test_no_environment_makes_the_sandbox_look_broken(tmp_path: Path, env: dict[str, str]) -> None:
    """A requester could have made its job fail as the provider's fault."""
    job = task(tmp_path / "job", "sh", "-c", "exit 7", env=env, files={"x": "exec sleep 60"})
    assert (await run(job)).exit_code in (2, 7, 127)


async def test_a_service_that_closed_its_folder_is_started_again(tmp_path: Path) -> None:
    job = task(tmp_path / "job", "sh", "-c", "mkdir -p sub; chmod 0 sub /job")
    assert (await run(job)).exit_code == 0
    assert (await run(replace(job, restarts=1))).exit_code == 0


# -- what the sandbox gives no way to ----------------------------------------------------------------------------------


async def test_the_kernels_settings_cannot_be_written_and_no_rights_are_had_outside(tmp_path: Path) -> None:
    """Also under a node of root's: the job's processes are then another user's, one who owns nothing."""
    attempts = "; ".join(
        f"(cat {name} > /tmp/value && cat /tmp/value > {name}) 2>/dev/null && echo wrote {name}"
        for name in (
            "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/shmmax", "/proc/sys/kernel/hostname",
            "/proc/sys/net/ipv4/ip_forward", "/proc/sys/user/max_user_namespaces", "/proc/sys/fs/mqueue/msg_max",
            "/proc/sys/vm/overcommit_memory",
        )
    )  # fmt: skip
    more = "find /proc/sys /proc/irq /proc/bus /proc/fs -type f -perm /222 -writable 2>/dev/null | head -3"
    job = task(tmp_path / "job", "sh", "-c", f"{attempts}; {more}; touch done; exec sleep 30")
    async with started(job) as (_, handle, _):
        await until_there(job.work / "done")
        family = psutil.Process(int(handle)).children(recursive=True)
        assert len(family) >= 2
        assert all(0 not in process.uids() for process in [psutil.Process(int(handle)), *family])
    assert job.stdout.read_text() == ""


async def test_a_job_of_root_s_node_runs_as_a_user_of_its_own(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start as others")
    users = set()
    for name in ("one", "two"):
        job = task(tmp_path / name, "sh", "-c", "touch made")
        assert (await run(job)).exit_code == 0
        users.add((job.work / "made").stat().st_uid)
    assert len(users) == 2
    assert not users & {0, 65534}


@pytest.mark.parametrize("program", ["unshare -U true", "unshare -r true", "bwrap --ro-bind / / true"])
async def test_no_namespaces_are_made_inside(tmp_path: Path, program: str) -> None:
    assert subprocess.run(program, shell=True, capture_output=True, check=False).returncode == 0
    job = task(tmp_path / "job", "sh", "-c", f"{program}; echo $?")
    await run(job)
    assert job.stdout.read_text() != "0\n"


async def test_only_the_jobs_folder_and_the_counted_file_systems_can_be_written(tmp_path: Path) -> None:
    job = task(tmp_path / "job", "sh", "-c", "for f in / /dev /dev/pts /usr /proc /etc; do touch $f/x && echo $f; done")
    await run(job)
    assert job.stdout.read_text() == ""


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
async def test_files_in_memory_count_as_memory(tmp_path: Path, limits: str, place: str) -> None:
    writer = f"for n in 1 2 3 4 5 6; do dd if=/dev/zero of={place}/f$n bs=1M count=50; done; sleep 20"
    ended = await run(task(tmp_path / "job", "sh", "-c", writer, memory=64 * MIB))
    assert ended.reason == "out_of_memory"
    assert ended.usage.max_memory < 100 * MIB


async def test_memory_in_the_mapped_and_the_nameless_counts_where_the_kernel_counts(tmp_path: Path) -> None:
    if cgroup.place() is None:
        pytest.skip("no control groups can be made here")
    hog = "import os, time\nfor _ in range(20): os.write(os.memfd_create('x'), bytes(10 << 20))\ntime.sleep(20)"
    ended = await run(task(tmp_path / "job", "python3", "-c", hog, memory=64 * MIB))
    assert ended.reason == "out_of_memory"


async def test_a_health_check_is_counted_with_its_job(tmp_path: Path, limits: str) -> None:
    hog = (
        "import mmap, time\nm = mmap.mmap(-1, 400 << 20)\nfor i in range(0, 400 << 20, 4096): m[i] = 1\ntime.sleep(20)"
    )
    async with started(job := task(tmp_path / "job", "sleep", "30", memory=96 * MIB)) as (executor, handle, ended):
        with trio.fail_after(30):
            assert not await executor.check(job, handle, ("python3", "-c", hog))
            while not ended:
                await trio.sleep(0.01)
    assert ended[0].reason == "out_of_memory"


async def test_a_health_check_sees_the_job_and_has_its_limits_and_no_more(tmp_path: Path) -> None:
    job = task(tmp_path / "job", "sh", "-c", "touch up; exec sleep 31.7", env={"NAME": "value"})
    look = 'test "$NAME" = value && test "$PWD" = /job && pgrep -f "sleep 31.7" && test $(ulimit -c) = 0 && ! unshare -U true'
    rights = "grep -q 'CapEff:.0000000000000000' /proc/self/status && grep -q 'NoNewPrivs:.1' /proc/self/status"
    async with started(job) as (executor, handle, _):
        await until_there(job.work / "up")
        assert await executor.check(job, handle, ("sh", "-c", look))
        assert await executor.check(job, handle, ("sh", "-c", rights))
        assert not await executor.check(job, handle, ("sh", "-c", "exit 3"))
        assert not await executor.check(job, handle, ("cat", str(tmp_path)))


async def test_a_health_check_that_takes_too_long_is_ended(tmp_path: Path, limits: str) -> None:
    token = f"32.{random.randrange(10**9)}"
    async with started(job := task(tmp_path / "job", "sleep", "30")) as (executor, handle, _):
        with trio.move_on_after(1) as scope:
            await executor.check(job, handle, ("sh", "-c", f"sleep {token} & touch on; wait"))
        assert scope.cancelled_caught
        assert (job.work / "on").exists()
        with trio.fail_after(5):
            while command_lines(token):
                await trio.sleep(0.01)


@pytest.mark.parametrize(("cores", "at_most"), [(0.2, 0.35), (0, 0.2)])
async def test_a_share_of_a_processor_is_all_that_is_had(tmp_path: Path, cores: float, at_most: float) -> None:
    """Also by a job that asks for none: it had all of them."""
    if cgroup.place() is None:
        pytest.skip("no control groups can be made here")
    loop = "sh -c 'while :; do :; done' & "
    job = task(tmp_path / "job", "sh", "-c", loop * 2 + "wait", cores=cores)
    async with started(job) as (executor, handle, _):
        await trio.sleep(2)
        used = await executor.usage(job, handle)
    assert used.cpu_seconds < at_most * used.wall_seconds + 0.1


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sandbox", [True, False], ids=["sandbox", "bare"])
async def test_nothing_lives_on_after_a_stop_at_any_moment(
    tmp_path: Path, limits: str, sandbox: bool, busy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "TERM_GRACE", 0.2)
    for turn in range(8):
        token = f"33.{random.randrange(10**9)}"
        job = task(
            tmp_path / str(turn), "sh", "-c", f"trap '' TERM; sleep {token} & setsid sleep {token} & wait",
            sandbox=sandbox,
        )  # fmt: skip
        executor = ProcessExecutor()
        with trio.move_on_after(random.uniform(0, 0.15)):
            handle = await executor.start(job)
            await executor.wait(job, handle)
        with trio.CancelScope(shield=True):
            if turn % 2:
                executor.kill_all()
            await executor.stop(job, "")
            assert not command_lines(token)
            await executor.cleanup(job, "")


async def test_what_is_on_its_way_into_the_sandbox_is_gone_when_a_start_was_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in no process group of ours any more, and not yet in the sandbox."""
    token = f"34.{random.randrange(10**9)}"
    (script := tmp_path / "slow").write_text(f"read -r _ <&3; touch {tmp_path}/closed; sleep 0.5; true {token}")
    (program := tmp_path / "bwrap").write_text(f"#!/bin/sh\nsetsid sh -c '. {script}' {token} & exec sleep 60")
    program.chmod(0o755)
    monkeypatch.setattr(cgroup, "place", lambda: None)
    monkeypatch.setattr(process, "job_user", lambda key: None)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: str(program))
    job = task(tmp_path / "job", "true")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ProcessExecutor().start, job)
            with trio.fail_after(20):
                while not any("setsid" not in line and script.name in line for line in command_lines(token)):
                    await trio.sleep(0.01)
            scope.cancel()
    assert not command_lines(token)
    assert (tmp_path / "closed").exists()


async def test_a_job_in_a_sandbox_is_asked_to_end_before_it_is_ended(tmp_path: Path) -> None:
    script = "trap 'echo saved > out; exit 5' TERM; touch up; while :; do sleep 0.05; done"
    async with started(job := task(tmp_path / "job", "sh", "-c", script)) as (executor, handle, ended):
        await until_there(job.work / "up")
        await executor.stop(job, handle)
        with trio.fail_after(5):
            while not ended:
                await trio.sleep(0.01)
    assert ended[0].exit_code == 5
    assert (job.work / "out").read_text() == "saved\n"


NODE = """
import sys, trio
from pathlib import Path
from nunet_cli.executor.process import ProcessExecutor
from tests.executor.jobs import task

async def main():
    job = task(Path(sys.argv[1]), "sleep", sys.argv[2])
    executor = ProcessExecutor()
    print("here", flush=True)
    await executor.start(job)
    await trio.sleep_forever()

trio.run(main)
"""


async def test_no_job_outlives_a_node_that_is_killed_while_it_starts_one(tmp_path: Path) -> None:
    for turn in range(5):
        token = f"34.{random.randrange(10**9)}"
        node = subprocess.Popen([sys.executable, "-c", NODE, str(tmp_path / str(turn)), token], stdout=subprocess.PIPE)
        assert node.stdout is not None
        await trio.to_thread.run_sync(node.stdout.readline)
        await trio.sleep(random.uniform(0, 0.2))
        node.kill()
        node.wait()
        node.stdout.close()
        with trio.fail_after(10):
            while any(line.startswith("sleep") for line in command_lines(token)):
                await trio.sleep(0.01)
        # what is left of it goes when a node looks after it the next time
        key = f"allocation-{node.pid}-{turn}"
        cgroup.sweep(key)
        place = cgroup.place()
        assert place is None or not [*place.folders["memory"].glob(f"nunet-{key}-*")]
