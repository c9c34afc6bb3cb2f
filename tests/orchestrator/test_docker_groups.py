"""Pods and services in containers: the same as with processes, on a real Docker Engine."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli.allocation import recover
from nunet_cli.groups.group import outputs_of
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.node.opening import open_node
from nunet_cli.records.contract_records import CONTRACTS
from tests.conftest import Market, config, needs_docker
from tests.images import busybox_image

pytestmark = [pytest.mark.docker, needs_docker]
MarketOf = Callable[..., Any]
# of this process: those that run tests beside it take away theirs
IMAGE = f"nunet-test-groups-{os.getpid()}:busybox"


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with busybox_image(IMAGE) as name:
        yield name


def container(name: str, command: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name, "executor": {"type": "docker", "image": IMAGE, "command": ["sh", "-c", command]}, "price": "1",
        "resources": {"cpu": 0.2, "memory": "32MiB", "disk": "16MiB"}, "time": {"max_duration": "1m"}, **fields,
    }  # fmt: skip


def containers() -> list[str]:
    done = subprocess.run(
        ["docker", "ps", "-aq", "--filter", f"ancestor={IMAGE}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


async def nothing_is_left(m: Market) -> None:
    # a requester waits a few seconds for a provider that ends several containers, and no longer
    with trio.fail_after(30):
        while containers() or m.provider.accounting.taken(m.provider.ctx.store):
            await trio.sleep(0.1)


async def test_a_pod_of_containers_passes_its_data_along(market: MarketOf, image: str) -> None:
    async with market() as m:
        members = [
            container("first", "echo one > out; echo said by first", outputs=[{"path": "out"}]),
            container("second", "cat from/out > out; echo two >> out", outputs=[{"path": "out"}]),
        ]
        links = [{"from": "first", "to": "second", "kind": "data", "path": "from"}]
        text = json.dumps({"name": "pod", "pod": True, "children": members, "links": links})
        job = await orchestrate_job(m.requester.ctx, await m.post(text))
        assert job.state == "settled"
        found = {
            name: m.requester.ctx.blobs.path(item.cid).read_text()
            for name, item in outputs_of(m.requester.ctx, job).items()
        }
        assert found == {"first/out": "one\n", "second/out": "one\ntwo\n"}
        assert m.provider.ctx.store[CONTRACTS].count() == 1
        await nothing_is_left(m)


async def test_a_service_in_a_container_is_checked_restarted_and_paid_when_it_is_stopped(
    market: MarketOf, image: str
) -> None:
    async with market(price="36/h") as m:
        service = {"restart": "on_failure", "delay": "0s", "max_restarts": 5,
                   "health": {"command": ["test", "-f", "well"], "interval": "1s", "retries": 1}}  # fmt: skip
        # the first start is not well for long, the second one stays so
        command = (
            "if [ -f once ]; then touch well; sleep 60; else touch once; touch well; sleep 1; rm well; sleep 60; fi"
        )
        job_id = await m.post(json.dumps(container("web", command, type="service", service=service)))
        m.requester.orchestrate(job_id)
        with trio.fail_after(30):
            while "service_restarted" not in [event.type for _, event in m.provider.ctx.store.log(job_id)]:
                await trio.sleep(0.1)
        await trio.sleep(1.5)
        assert m.job(job_id).state == "running"
        assert len(containers()) == 1
        await m.requester.cancel_job(job_id)
        contract = m.requester.ctx.store[CONTRACTS].first("job_id", job_id)
        assert contract is not None
        assert contract.state == "settled"
        assert m.balance(m.provider) > 100_000_000
        await nothing_is_left(m)


async def test_cancelling_a_pod_ends_its_containers(market: MarketOf, image: str) -> None:
    async with market() as m:
        members = [container("first", "sleep 60"), container("second", "sleep 60")]
        job_id = await m.post(json.dumps({"name": "pod", "pod": True, "children": members}))
        m.requester.orchestrate(job_id)
        with trio.fail_after(20):
            while len(containers()) < 2:
                await trio.sleep(0.1)
        await m.requester.cancel_job(job_id)
        assert m.job(job_id).state == "cancelled"
        await nothing_is_left(m)


def stray(node: str, allocation_id: str) -> str:
    """Start a container as a node does that is killed before it has noted the handle; return its id."""
    labels = ["--label", f"org.nunet.node={node}", "--label", f"org.nunet.allocation={allocation_id}"]
    command = ["docker", "run", "-d", "--network", "none", *labels, IMAGE, "sleep", "600"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()[:12]


async def test_containers_that_no_allocation_owns_are_removed_when_the_node_starts(tmp_path: Path, image: str) -> None:
    """As an oracle's second run when the oracle was killed; another node's are not touched."""
    async with open_node(tmp_path / "provider", config()) as node:
        did = node.identity.did
    left = [stray(did, "reexecution-1"), stray(did, "allocation-1/member")]
    another = stray("did:key:another", "allocation-2")
    try:
        async with open_node(tmp_path / "provider", config()):
            with trio.fail_after(20):
                while set(containers()) & set(left):
                    await trio.sleep(0.1)
            assert containers() == [another]
    finally:
        subprocess.run(["docker", "rm", "-f", *left, another], capture_output=True, check=False)


async def test_what_an_engine_still_runs_after_it_was_given_up_is_removed_and_nothing_else(
    market: MarketOf, image: str
) -> None:
    async with market() as m:
        job_id = await m.post(json.dumps(container("web", "sleep 60", type="service", service={})))
        m.requester.orchestrate(job_id)
        with trio.fail_after(30):
            while m.job(job_id).state != "running":
                await trio.sleep(0.1)
        owned = containers()
        left = stray(m.provider.identity.did, "allocation-gone")
        try:
            await recover.remove_left(m.provider.ctx)
            assert (len(owned), containers()) == (1, owned)
        finally:
            subprocess.run(["docker", "rm", "-f", left], capture_output=True, check=False)
        await m.requester.cancel_job(job_id)
        await nothing_is_left(m)
