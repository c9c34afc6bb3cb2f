"""The docker executor against a real Docker Engine, with an image made from busybox."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.config import DockerConfig
from nunet_cli.executor.base import ExecutorError, Exit, Given, Task, make_scratch, open_output
from nunet_cli.executor.docker import DockerExecutor
from nunet_cli.executor.files import remove_folder
from nunet_cli.jobs.spec import ExecutorSpec
from nunet_cli.records.capability import LEAST_CORES, Cpu, Gpu, Resources
from tests.conftest import needs_docker
from tests.images import busybox_image, registry

pytestmark = [pytest.mark.docker, needs_docker]
# of this process: those that run tests beside it take away theirs
IMAGE = f"nunet-test-{os.getpid()}:busybox"
MIB = 2**20


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with busybox_image(IMAGE) as name:
        yield name


def task(folder: Path, *command: str, image: str = IMAGE, memory: int = 32 * MIB) -> Task:
    source = folder / "in"
    source.write_text("b\na\n")
    made = Task(
        allocation_id=f"allocation-{os.getpid()}-{folder.name}", spec=ExecutorSpec(type="docker", image=image, command=command),
        resources=Resources(Cpu(0.5), memory, 16 * MIB), max_duration=30, max_log=4096, folder=folder / "scratch",
        inputs=("in",), foreign=False,
    )  # fmt: skip
    make_scratch(made, [Given("in", source)])
    return made


async def run(job: Task, executor: DockerExecutor | None = None) -> Exit:
    executor = executor or DockerExecutor(DockerConfig())
    await executor.prepare(job)
    handle = await executor.start(job)
    try:
        with trio.fail_after(40):
            return await executor.wait(job, handle)
    finally:
        with trio.CancelScope(shield=True):
            await executor.cleanup(job, handle)


def read(job: Task, path: str) -> str:
    made = open_output(job, path)
    assert made is not None
    with os.fdopen(made) as file:
        return file.read()


async def test_image_command_output_and_exit_code(tmp_path: Path, image: str) -> None:
    job = task(tmp_path, "sh", "-c", "sort in > out; cat out; echo bad >&2; id -u; exit 4")
    ended = await run(job)
    assert (ended.exit_code, ended.reason) == (4, "")
    assert job.stdout.read_text().startswith("a\nb\n")
    assert job.stdout.read_text().split()[-1] != "0"
    assert job.stderr.read_text() == "bad\n"
    assert read(job, "out") == "a\nb\n"


async def test_no_network_and_nothing_to_write_but_the_jobs_own_folder(tmp_path: Path, image: str) -> None:
    job = task(tmp_path, "sh", "-c", "ls /sys/class/net; touch /bin/x; echo x > in; touch ok && echo fine")
    assert (await run(job)).exit_code == 0
    assert job.stdout.read_text().split() == ["lo", "fine"]
    assert "Read-only" in job.stderr.read_text()
    assert read(job, "in") == "b\na\n"


async def test_memory_over_the_limit_ends_the_job(tmp_path: Path, image: str) -> None:
    ended = await run(task(tmp_path, "sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=200; sort /dev/zero"))
    assert ended.reason == "out_of_memory" or ended.exit_code != 0


async def test_a_job_that_asks_for_no_processor_has_a_least_share_of_it(tmp_path: Path, image: str) -> None:
    job = task(tmp_path, "cat", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu.max", image=image)
    await run(replace(job, resources=structs.replace(job.resources, cpu=Cpu())))
    assert job.stdout.read_text().split()[0] == str(int(LEAST_CORES * 100_000))


async def test_disk_over_the_limit_ends_the_job(tmp_path: Path, image: str) -> None:
    ended = await run(task(tmp_path, "sh", "-c", "dd if=/dev/zero of=big bs=1M count=64; sleep 20", memory=256 * MIB))
    assert ended.reason == "disk_full"


async def test_a_restarted_node_finds_its_container(tmp_path: Path, image: str) -> None:
    job = task(tmp_path, "sh", "-c", "sleep 2; echo survived")
    handle = await DockerExecutor(DockerConfig()).start(job)
    later = DockerExecutor(DockerConfig())
    assert await later.attach(job, handle)
    ended = await later.wait(job, handle)
    await later.cleanup(job, handle)
    assert ended.exit_code == 0
    assert job.stdout.read_text() == "survived\n"
    assert not await later.attach(job, handle)


async def test_a_link_that_the_job_left_is_not_mounted_at_its_next_start(tmp_path: Path, image: str) -> None:
    """The engine is root's, and would follow it: a service that was started again had any folder of the host."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "secret").write_text("key")
    source = tmp_path / "source"
    source.write_text("given\n")
    swap = f"mv data away; mkdir data; ln -s {tmp_path}/host data/x; ls -l data/x"
    first = replace(task(tmp_path, "sh", "-c", swap), inputs=("data/x",))
    make_scratch(first, [Given("data/x", source)])
    await run(first)
    assert "->" in first.stdout.read_text()
    second = replace(first, restarts=1, spec=structs.replace(first.spec, command=("cat", "data/x/secret", "data/x")))
    with contextlib.suppress(ExecutorError):
        await run(second)
    assert "key" not in second.stdout.read_text()


async def test_an_input_is_what_was_given_at_every_start(tmp_path: Path, image: str) -> None:
    job = task(tmp_path, "sh", "-c", "cat in; rm -f in; mv in x; echo changed > in")
    await run(job)
    await run(replace(job, restarts=1))
    assert job.stdout.read_text() == "b\na\nb\na\n"
    assert read(job, "in") == "b\na\n"


async def test_a_folder_in_memory_has_no_more_room_than_the_memory(tmp_path: Path, image: str) -> None:
    job = task(tmp_path, "sh", "-c", "df -k /tmp /dev/shm | awk 'NR > 1 {print $2}'")
    job = replace(job, resources=structs.replace(job.resources, disk=512 * MIB))
    await run(job)
    sizes = [int(size) * 1024 for size in job.stdout.read_text().split()]
    assert len(sizes) == 2
    assert max(sizes) <= 32 * MIB


async def test_a_health_check_is_run_once_at_a_time_and_its_output_is_not_read(tmp_path: Path, image: str) -> None:
    job = task(tmp_path, "sleep", "30")
    executor = DockerExecutor(DockerConfig())
    handle = await executor.start(job)
    try:
        with trio.fail_after(20):
            assert await executor.check(job, handle, ("sh", "-c", "yes | head -c 50000000"))
            assert not await executor.check(job, handle, ("sh", "-c", "exit 3"))
        with trio.move_on_after(1):
            await executor.check(job, handle, ("sh", "-c", "echo one >> begun; sleep 20"))
        with trio.fail_after(5):
            assert not await executor.check(job, handle, ("sh", "-c", "echo two >> begun"))
        assert (job.work / "begun").read_text() == "one\n"
    finally:
        await executor.cleanup(job, handle)


async def test_an_entrypoint_stands_before_the_command(tmp_path: Path, image: str) -> None:
    job = task(tmp_path, "one", "two")
    job = replace(job, spec=structs.replace(job.spec, entrypoint=("echo", "first")))
    assert (await run(job)).exit_code == 0
    assert job.stdout.read_text() == "first one two\n"


async def test_images_that_are_not_there_or_not_allowed_are_refused(tmp_path: Path, image: str) -> None:
    for config, name, code in (
        (DockerConfig(images=("*",)), "no-such-image:1", "no_image"),
        (DockerConfig(images=("python:*",)), IMAGE, "image_not_allowed"),
        (DockerConfig(), IMAGE, "image_not_allowed"),
    ):
        with pytest.raises(ExecutorError) as caught:
            await DockerExecutor(config).prepare(replace(task(tmp_path, "true", image=name), foreign=True))
        assert caught.value.code == code


async def test_an_image_is_pulled_and_its_bytes_are_reported(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    size = 8 * MIB
    with registry(tmp_path) as address, busybox_image(f"{address}/lab/tool:2", os.urandom(size)) as name:
        for command in ("push", "rmi"):
            subprocess.run(["docker", command, name], check=True, capture_output=True)
        job = replace(task(tmp_path, "true", image=name), report=lambda *line: said.append(line))
        assert (await run(job, DockerExecutor(DockerConfig(pull=True)))).exit_code == 0
    assert {what for what, _, _ in said} == {f"pulling {name}"}
    assert said[-1][1] == said[-1][2] >= size
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)


async def test_an_engine_that_does_not_answer_is_no_executor(tmp_path: Path) -> None:
    probe = await DockerExecutor(DockerConfig(host=f"unix://{tmp_path}/none.sock")).probe()
    assert not probe.available


async def test_the_engine_says_when_a_container_ended(tmp_path: Path, image: str) -> None:
    """However late it is asked: the node may have been away."""
    job = task(tmp_path, "sleep", "1")
    before = quantities.utc_now()
    executor = DockerExecutor(DockerConfig())
    handle = await executor.start(job)
    try:
        with trio.fail_after(30):
            await executor.wait(job, handle)
            after = quantities.utc_now()
            late = await DockerExecutor(DockerConfig()).wait(job, handle)
    finally:
        await executor.cleanup(job, handle)
    assert before < late.ended_at <= after


def made_for(job: Task) -> str:
    """Return the containers that the engine has for a job."""
    command = ["docker", "ps", "-aq", "--filter", f"label=org.nunet.allocation={job.allocation_id}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def test_a_container_that_does_not_start_is_not_left_behind(tmp_path: Path, image: str) -> None:
    """Here it wants a device that the engine has no driver for."""
    job = task(tmp_path, "true")
    job = replace(job, resources=structs.replace(job.resources, gpus=(Gpu(),)))
    with pytest.raises(ExecutorError):
        await DockerExecutor(DockerConfig()).start(job)
    assert made_for(job) == ""


@pytest.mark.parametrize("field", [{"env": {"A": "x\0y"}}, {"command": ("echo", "x\0y")}, {"entrypoint": ("a\0b",)}])
async def test_a_text_that_no_program_can_get_is_the_jobs_fault(
    tmp_path: Path, image: str, field: dict[str, Any]
) -> None:
    job = task(tmp_path, "true")
    job = replace(job, spec=structs.replace(job.spec, **field))
    with pytest.raises(ExecutorError) as caught:
        await DockerExecutor(DockerConfig()).start(job)
    assert (made_for(job), caught.value.code) == ("", "bad_text")


async def test_a_volume_of_the_image_gives_no_room_on_the_hosts_disk(tmp_path: Path, image: str) -> None:
    """What is written there counts as the job's memory; what the image does not make writable stays so."""
    name = f"nunet-test-{os.getpid()}:volume"
    made = subprocess.run(
        ["docker", "create", IMAGE, "true"], check=True, capture_output=True, text=True
    ).stdout.strip()
    changes = ["--change", 'VOLUME ["/data", "/var/lib//x/", "/job", "/job/deep", "/tmp"]']
    try:
        subprocess.run(["docker", "commit", *changes, made, name], check=True, capture_output=True)
        job = task(tmp_path, "sh", "-c", "echo x > /data/x && echo x > /job/y && cat /proc/mounts", image=name)
        job = replace(job, max_log=2**16)
        assert (await run(job)).exit_code == 0
        assert (job.work / "y").exists()
        mounts = {line.split()[1]: line.split() for line in job.stdout.read_text().splitlines()}
        for place in ("/data", "/var/lib/x", "/job/deep", "/tmp"):
            assert mounts[place][2] == "tmpfs"
            assert f"size={32 * 1024}k" in mounts[place][3].split(",")
    finally:
        subprocess.run(["docker", "rm", "-fv", made], check=False, capture_output=True)
        subprocess.run(["docker", "rmi", "-f", name], check=False, capture_output=True)


async def test_a_container_can_write_in_its_working_folder_and_nothing_of_it_stays(tmp_path: Path, image: str) -> None:
    job = task(tmp_path, "sh", "-c", "pwd; touch made; mkdir more")
    job = replace(job, spec=structs.replace(job.spec, workdir="a/b"), inputs=())
    make_scratch(job, [])
    assert (await run(job)).exit_code == 0
    assert job.stdout.read_text() == "/job/a/b\n"
    assert (job.work / "a" / "b" / "made").exists()
    assert {path.stat().st_uid for path in job.work.rglob("*")} == {job.work.stat().st_uid}
    remove_folder(job.folder)
    assert not job.folder.exists()


@pytest.mark.parametrize(
    ("act", "code"),
    [
        ("rmdir /job/wd; ln -s /tmp/x /job/wd", "no_workdir"),
        ("rmdir /job/wd", "no_workdir"),
        ("mv /job/data /job/x", "bad_place"),
        ("mv /job/data /job/x; mkdir /job/data; ln -s in /job/data/in", "bad_place"),
    ],
)
async def test_a_service_that_takes_away_what_its_next_start_needs_has_itself_to_blame(
    tmp_path: Path, image: str, act: str, code: str
) -> None:
    source = tmp_path / "source"
    source.write_text("given\n")
    job = replace(task(tmp_path, "sh", "-c", f"cd /; {act}"), inputs=("data/in",))
    job = replace(job, spec=structs.replace(job.spec, workdir="wd"))
    make_scratch(job, [Given("data/in", source)])
    assert (await run(job)).exit_code == 0
    with pytest.raises(ExecutorError) as caught:
        await run(replace(job, restarts=1))
    assert (caught.value.code, made_for(job)) == (code, "")
