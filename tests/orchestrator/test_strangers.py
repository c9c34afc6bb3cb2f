"""What strangers may run on a provider with a Docker Engine: nothing that its owner did not allow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.allocation.part import make_part
from nunet_cli.config import DockerConfig, ExecutorConfig
from nunet_cli.errors import NoBidError, NunetError
from nunet_cli.executor.base import Probe
from nunet_cli.jobs.reader import read_spec
from nunet_cli.orchestrator import bid, match, permissions
from nunet_cli.records.allocations import Allocation
from nunet_cli.records.bids import BID_REQUESTS, BIDS
from tests.conftest import Market, config, nunet

MarketOf = Callable[..., Any]
IMAGE_JOB = json.dumps({
    "name": "image", "executor": {"type": "docker", "image": "lab/tool:1"}, "price": "1",
    "resources": {"cpu": 0.1, "memory": "16MiB", "disk": "1MiB"}, "time": {"max_duration": "1m"},
})  # fmt: skip


def provider(**docker: Any) -> Any:
    return config(executor=ExecutorConfig(docker=DockerConfig(**docker)))


async def with_an_engine(m: Market) -> None:
    """Let the provider believe that an engine with the image answers."""
    executor: Any = m.provider.ctx.executors["docker"]

    async def probe() -> Probe:
        return Probe(True, "Docker Engine")

    async def refusal(image: str) -> str:
        return ""

    executor.probe, executor.refusal = probe, refusal
    await m.provider.probe_executors()


async def declined(m: Market) -> list[str]:
    with pytest.raises(NoBidError) as caught:
        await match.match(m.requester.ctx, await m.post(IMAGE_JOB))
    return list(caught.value.details["answers"][0]["reasons"])


async def test_by_default_strangers_run_no_image(market: MarketOf) -> None:
    async with market(provider=provider()) as m:
        await with_an_engine(m)
        assert any("executors" in reason for reason in await declined(m))
        assert not permissions.may_use(m.provider.ctx, "docker", m.requester.identity.did)
        assert permissions.may_use(m.provider.ctx, "docker", m.provider.identity.did)


@pytest.mark.parametrize(("pattern", "runs"), [("python:*", False), ("lab/*", True), ("*", True)])
async def test_strangers_run_the_images_that_are_allowed_and_no_other(
    market: MarketOf, pattern: str, runs: bool
) -> None:
    async with market(provider=provider(images=(pattern,))) as m:
        await with_an_engine(m)
        m.provider.ctx.executors["docker"]._config.pull = True  # the engine is not asked whether the image is there
        if runs:
            assert (await match.match(m.requester.ctx, await m.post(IMAGE_JOB))).state == "matched"
        else:
            assert any("does not run the image" in reason for reason in await declined(m))


async def test_a_trusted_requester_runs_any_image(market: MarketOf) -> None:
    async with market(provider=provider()) as m:
        m.provider.ctx.config.executor.docker.trusted = (m.requester.identity.did,)
        await with_an_engine(m)
        assert (await match.match(m.requester.ctx, await m.post(IMAGE_JOB))).state == "matched"
        mine = Allocation("a", "j", "c", m.requester.identity.did, "docker")
        assert not make_part(m.provider.ctx, mine, read_spec(IMAGE_JOB)).task.foreign
        others = structs.replace(mine, requester=m.authority.identity.did)
        assert make_part(m.provider.ctx, others, read_spec(IMAGE_JOB)).task.foreign


def test_onboarding_says_what_strangers_may_run_and_takes_the_images(tmp_path: Path) -> None:
    def images() -> str:
        return nunet("config", "get", "executor.docker.images", home=tmp_path).stdout

    assert "strangers may run  nothing" in nunet("onboard", "--cpu", "0.5", "--no-benchmark", home=tmp_path).stdout
    nunet("onboard", "--docker-image", "python:*", "--docker-image", "lab/*", "--no-benchmark", home=tmp_path)
    nunet("onboard", "--cpu", "0.4", "--no-benchmark", home=tmp_path)
    assert "python:*" in images()
    assert "lab/*" in images()
    nunet("onboard", "--reset", "--no-benchmark", home=tmp_path)
    assert "python" not in images()


async def test_what_one_requester_makes_a_provider_keep_is_bounded(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each offer is rows in the provider's store: of those that came to nothing the oldest give way, or there is none."""
    monkeypatch.setattr(bid, "MOST_OFFERS", 5)
    async with market(provider=config(bid_timeout=1)) as m:
        store, did = m.provider.ctx.store, m.requester.identity.did
        job_id = await m.post(json.dumps({"name": "n", "executor": {"type": "null"}, "price": "1"}))
        await match.match(m.requester.ctx, job_id)
        (first,) = store[BIDS].by("did", did)
        request = store[BID_REQUESTS].one(first.bid_request_id).request

        async def ask(number: int) -> Any:
            wanted = structs.replace(request, id=f"request-{number}", job_id=f"job-{number}")
            answer = await m.requester.ctx.messenger.request(m.provider.identity.did, "bid_request", wanted, timeout=5)
            return answer.body

        for number in range(4):
            await ask(number)
        with pytest.raises(NunetError, match="offers to you are kept"):
            await ask(4)
        assert store[BIDS].count("did", did) == 5
        with trio.fail_after(10):
            while min(row.offer.timeout for row in store[BIDS].by("did", did)) >= quantities.utc_now():
                await trio.sleep(0.05)
        await ask(5)
        assert store[BIDS].count("did", did) <= 5
        assert {event.job_id for _, event in store.log()} >= {"job-5"}
