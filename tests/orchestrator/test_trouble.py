"""What breaks on a provider's machine while a job is there is that job's trouble, and not the node's."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli.allocation import recover
from nunet_cli.allocation import run as allocation
from nunet_cli.config import ExecutorConfig, ProcessConfig
from nunet_cli.executor.process import ProcessExecutor
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.network import blobs
from nunet_cli.network.data import patience
from nunet_cli.network.data.sealed import SealedStream
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import cancel, contract
from nunet_cli.records.allocations import ALLOCATIONS
from nunet_cli.records.offers import OnboardOptions
from tests.conftest import Market, config
from tests.orchestrator.test_lifecycle import STAGES, MarketOf, nothing_is_left, settled_with_both, spec


async def running(m: Market, text: str) -> str:
    """Bring a job as far as its program; return its id."""
    job_id = await m.post(text)
    for stage in STAGES[:4]:
        await stage(m.requester.ctx, job_id)
    with trio.fail_after(30):
        while m.job(job_id).state != "running":
            await trio.sleep(0.02)
    return job_id


def breaking(act: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Do what is asked for, and then fail as an engine does."""

    async def broken(*arguments: Any) -> Any:
        await act(*arguments)
        raise RuntimeError("cannot stop container: permission denied")

    return broken


@pytest.mark.parametrize("type_", ["task", "service"])
async def test_an_engine_that_cannot_stop_a_job_ends_no_node(market: MarketOf, type_: str) -> None:
    async with market() as m:
        executor = m.provider.ctx.executors["process"]
        job_id = await running(m, spec("sleep 60", type=type_))
        executor.stop, executor.cleanup = breaking(executor.stop), breaking(executor.cleanup)
        await cancel.cancel(m.requester.ctx, job_id)
        assert m.job(job_id).state in ("cancelled", "completed", "settled")
        with trio.fail_after(20):
            while m.provider.ctx.running:
                await trio.sleep(0.02)
        assert m.provider.ctx.accounting.taken(m.provider.ctx.store) == []


async def test_a_measurement_that_fails_while_a_job_is_called_off_ends_no_node(market: MarketOf) -> None:
    async with market() as m:
        executor = m.provider.ctx.executors["process"]
        job_id = await running(m, spec("sleep 60"))
        executor.usage = breaking(executor.usage)
        await cancel.cancel(m.requester.ctx, job_id)
        assert m.job(job_id).state == "cancelled"
        await settled_with_both(m, job_id)
        nothing_is_left(m)


@pytest.mark.parametrize("state", ["running", "created"])
async def test_a_node_starts_without_the_executor_of_a_job_that_it_had(
    tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        open_node(tmp_path / "a", config(), roles=("contract-database", "oracle")) as a,
        open_node(tmp_path / "r", config()) as r,
    ):
        await r.add_peer(a.ctx.transport.describe())
        with monkeypatch.context() as patch:
            if state == "created":
                # the node ends before the allocation begins
                async def nothing(*_: Any) -> None:
                    pass

                patch.setattr("nunet_cli.node.node.run_allocation", nothing)
            async with open_node(tmp_path / "p", config()) as p:
                await p.onboard(OnboardOptions(price="0.25"), None)
                await p.add_peer(a.ctx.transport.describe())
                await r.add_peer(p.ctx.transport.describe())
                m = Market(r, p, a, tmp_path)
                job_id = await m.post(spec("sleep 60"))
                for stage in STAGES[:4]:
                    await stage(r.ctx, job_id)
                with trio.fail_after(30):
                    while p.ctx.store[ALLOCATIONS].first("job_id", job_id).state != state:
                        await trio.sleep(0.02)
        off = config(executor=ExecutorConfig(process=ProcessConfig(enabled=False)))
        async with open_node(tmp_path / "p", off) as p:
            job = await orchestrate_job(r.ctx, job_id)
            assert (job.state, job.error.code) == ("failed", "no_executor")
            assert "no process executor any more" in job.error.message
            await settled_with_both(Market(r, p, a, tmp_path), job_id)
            nothing_is_left(Market(r, p, a, tmp_path))


async def test_an_allocation_that_cannot_be_taken_up_again_keeps_no_node_from_starting(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market() as m:
        await running(m, spec("sleep 60"))
        monkeypatch.setattr(ProcessExecutor, "attach", breaking(ProcessExecutor.attach))
        await recover.recover_allocations(m.provider.ctx, recover.left_open(m.provider.ctx.store))
        assert len(m.provider.ctx.running) == 1


async def test_an_end_that_cannot_be_kept_is_kept_later(market: MarketOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "END_PAUSE", 0.05)
    keep, failures = allocation.finish_allocation, []

    async def full(*arguments: Any) -> Any:
        if len(failures) < 3:
            failures.append(1)
            raise OSError(errno.ENOSPC, "No space left on device")
        return await keep(*arguments)

    async with market() as m:
        monkeypatch.setattr(allocation, "finish_allocation", full)
        job = await orchestrate_job(m.requester.ctx, job_id := await m.post(spec("echo made")))
        assert job.state == "settled"
        assert len(failures) == 3
        await settled_with_both(m, job_id)
        nothing_is_left(m)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The provider's home, on a disk of its own."""
    home = tmp_path / "provider"
    home.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g,mode=700", "tmpfs", home], check=False)
    if done.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield home
    subprocess.run(["umount", "-l", home], check=True)


def set_room(disk: Path, room: int) -> None:
    """Leave that many bytes on a disk."""
    found = os.statvfs(disk)
    size = (found.f_blocks - found.f_bfree) * found.f_frsize + room
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("what", ["logs", "folder"])
async def test_a_full_disk_fails_the_job_and_not_the_node(market: MarketOf, disk: Path, what: str) -> None:
    """Whatever fills it: the disk is free again when the job has been cleaned up, and the next job runs."""
    fill = "" if what == "logs" else "head -c 9000000 /dev/zero > file; "
    async with market() as m:
        command = f"while ! test -e go; do sleep 0.05; done; {fill}yes"
        job_id = await running(m, spec(f"({command}) 2>/dev/null; sleep 60"))
        set_room(disk, 4 * 2**20)
        (work,) = disk.glob("allocations/*/work")
        (work / "go").touch()
        job = await orchestrate_job(m.requester.ctx, job_id)
        assert (job.state, job.error.code) == ("failed", "provider_error")
        assert "No space left" in job.error.message
        await settled_with_both(m, job_id)
        nothing_is_left(m)
        set_room(disk, 2**30)
        assert (await orchestrate_job(m.requester.ctx, await m.post(spec("echo fine")))).state == "settled"


async def test_an_output_with_holes_has_the_bytes_that_reading_it_gives(market: MarketOf) -> None:
    """Sixteen files without a block each came back as a gigabyte, of a job that had bought 16 MiB of disk."""
    async with market() as m:
        resources = {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}
        outputs = [{"path": "small"}, *({"path": f"f{number}"} for number in range(4))]
        command = "echo a > small; for n in 0 1 2 3; do truncate -s 15M f$n; done"
        text = spec(command, resources=resources, outputs=outputs)
        job = await orchestrate_job(m.requester.ctx, job_id := await m.post(text))
        assert (job.state, job.error.code) == ("failed", "missing_output")
        assert "f1, f2, f3" in job.error.message
        await settled_with_both(m, job_id)


async def test_a_requester_is_told_what_went_wrong_and_no_path_of_the_providers_machine(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: ProcessExecutor, task: Any, *_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(task.folder))

    for name in ("start", "wait"):
        async with market() as m:
            with monkeypatch.context() as patch:
                patch.setattr(ProcessExecutor, name, fail)
                job = await orchestrate_job(m.requester.ctx, await m.post(spec("sleep 5")))
            assert job.state == "failed"
            assert "Permission denied" in job.error.message
            assert "/" not in job.error.message


async def test_trouble_of_a_provider_that_passes_refuses_no_contract(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market() as m:
        monkeypatch.setattr(contract, "RETRY_PAUSE", 0.05)
        messenger = m.provider.ctx.messenger
        known, failures = messenger._types["contract_proposal"], [1, 2]
        assert known.behaviour is not None
        real = known.behaviour

        async def behaviour(message: Any) -> Any:
            if failures:
                raise RuntimeError(f"trouble {failures.pop()}")
            return await real(message)

        messenger.register("contract_proposal", known.kind, behaviour)
        job_id = await m.post(spec("true"))
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"
        assert m.event_types(job_id).count("provider_unanswered") == 1
        assert not failures


@pytest.mark.parametrize("drip", [False, True])
async def test_a_requester_that_promises_inputs_and_sends_none_holds_nothing_for_long(
    market: MarketOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drip: bool
) -> None:
    monkeypatch.setattr(blobs, "STALL_TIMEOUT", 0.5)
    monkeypatch.setattr(patience, "THERE", 1.0)
    (tmp_path / "in.txt").write_bytes(bytes(2**20))
    async with market() as m:
        data = m.requester.ctx.blobs._data
        assert data is not None

        async def promise(sealed: SealedStream, _did: str, _asked: bytes) -> bool:
            await sealed.send_word(json.dumps({"size": 2**20}).encode())
            while True:
                if drip:
                    # a sign of life now and then, and never a whole chunk
                    await sealed._stream.send_all(b"\0")
                await trio.sleep(0.1)

        data._give = promise
        job_id = await m.post(spec("cat in.txt", inputs=[{"path": "in.txt"}]))
        for stage in STAGES[:4]:
            await stage(m.requester.ctx, job_id)
        assert m.provider.accounting.taken(m.provider.ctx.store)
        # the provider waits ten minutes for a requester that is away
        assert m.provider.ctx.config.limits.input_patience == 600
        with trio.fail_after(30):
            while m.provider.accounting.taken(m.provider.ctx.store):
                await trio.sleep(0.05)
        (row,) = m.provider.ctx.store[ALLOCATIONS].all()
        assert (row.state, "stalled while sending" in row.error) == ("failed", True)
