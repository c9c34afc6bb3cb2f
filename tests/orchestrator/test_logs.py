"""What a job wrote is there after it was called off, and after its provider was started again; else it is said to be gone."""

import json
from pathlib import Path

import pytest
import trio
from msgspec import structs

from nunet_cli.errors import LOGS_GONE, NotFoundError, StateError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator.changes import change_job
from nunet_cli.orchestrator.outputs import read_logs
from nunet_cli.records.offers import OnboardOptions
from tests.conftest import Market, config, open_market

OFFER = OnboardOptions(price="0.2", cpu=0.3, memory="64MiB", disk="64MiB")
SLOW = json.dumps({
    "name": "slow", "price": "1", "resources": {"cpu": 0.1, "memory": "16MiB", "disk": "1MiB"},
    "executor": {"type": "process", "command": ["sh", "-c", "echo so far; echo oops >&2; exec sleep 600"]},
})  # fmt: skip


async def logs(node: Node, job_id: str) -> list[bytes]:
    """Return all that is there of both streams."""
    return [(await read_logs(node.ctx, node.get_job(job_id), name, 0, 0))[0] for name in ("stdout", "stderr")]


async def writes(m: Market, job_id: str) -> None:
    """Wait until a job has written its lines."""
    with trio.fail_after(60):
        while True:
            try:
                if await logs(m.requester, job_id) == [b"so far\n", b"oops\n"]:
                    return
            except StateError:
                pass
            await trio.sleep(0.05)


async def test_what_a_job_wrote_is_there_after_it_was_called_off(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(SLOW)
        m.requester.orchestrate(job_id)
        await writes(m, job_id)
        await m.requester.cancel_job(job_id)
        job = m.job(job_id)
        assert job.result is not None
        assert (job.state, job.result.state, job.result.stdout_size) == ("cancelled", "cancelled", 7)
        assert await logs(m.requester, job_id) == [b"so far\n", b"oops\n"]
        # one that was not started wrote nothing
        early = await m.post(SLOW)
        await m.requester.cancel_job(early)
        with pytest.raises(StateError, match="no logs yet"):
            await logs(m.requester, early)


async def test_what_a_job_wrote_is_there_after_its_provider_was_started_again(tmp_path: Path) -> None:
    async with (
        open_node(tmp_path / "authority", config(), roles=("contract-database", "oracle")) as authority,
        open_node(tmp_path / "requester", config()) as requester,
    ):
        await requester.add_peer(authority.ctx.transport.describe())
        async with open_node(tmp_path / "provider", config()) as provider:
            await provider.onboard(OFFER, None)
            for node in (authority, requester):
                await provider.add_peer(node.ctx.transport.describe())
            m = Market(requester, provider, authority, tmp_path)
            job_id = await m.post(SLOW)
            requester.orchestrate(job_id)
            await writes(m, job_id)
        async with open_node(tmp_path / "provider", config()):
            with trio.fail_after(60):
                while requester.get_job(job_id).state != "failed":
                    await trio.sleep(0.05)
            job = requester.get_job(job_id)
            assert job.error is not None
            assert job.error.code == "provider_restarted"
            assert await logs(requester, job_id) == [b"so far\n", b"oops\n"]


async def test_what_nobody_has_kept_is_said_to_be_gone(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        job_id = await m.post(SLOW)
        m.requester.orchestrate(job_id)
        await writes(m, job_id)
        await m.requester.cancel_job(job_id)
        result = m.job(job_id).result
        assert result is not None
        # the provider's disk was full, or it is an older one
        nothing = structs.replace(result, stdout_cid="", stdout_size=0, stderr_cid="", stderr_size=0)
        await m.requester.ctx.store.change(lambda t: change_job(t, job_id, result=nothing))
        with pytest.raises(NotFoundError, match=f"what job {job_id} wrote is gone") as caught:
            await logs(m.requester, job_id)
        assert (caught.value.code, caught.value.exit_code) == (LOGS_GONE, 2)
        await m.requester.ctx.store.change(lambda t: change_job(t, job_id, result=result))
        m.requester.ctx.blobs.path(result.stdout_cid).unlink()
        with pytest.raises(NotFoundError, match="is not here"):
            await logs(m.requester, job_id)
        await m.requester.ctx.store.change(lambda t: change_job(t, job_id, collected=False))
        m.provider.ctx.blobs.path(result.stdout_cid).unlink()
        with pytest.raises(Exception, match="the provider does not keep what the job wrote any more") as said:
            await logs(m.requester, job_id)
        assert getattr(said.value, "code", "") == LOGS_GONE


async def test_a_job_that_ended_by_itself_and_wrote_nothing_has_empty_logs(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        quiet = {**json.loads(SLOW), "executor": {"type": "process", "command": ["true"]}}
        job_id = await m.post(json.dumps(quiet))
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"
        assert await logs(m.requester, job_id) == [b"", b""]
