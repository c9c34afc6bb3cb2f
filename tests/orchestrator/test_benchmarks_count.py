"""What the benchmark measured is part of what is offered: jobs demand it or prefer it, and who falls short says so."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.api.client import ApiClient, socket_path
from nunet_cli.api.server import served
from nunet_cli.errors import NoBidError
from nunet_cli.jobs.reader import read_spec
from nunet_cli.node.benchmark import run_benchmark
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import match
from nunet_cli.records.bids import BIDS
from nunet_cli.records.capability import MOST_SPEED, Speeds
from nunet_cli.records.offers import Benchmark, OnboardOptions
from tests.conftest import Market, config, open_market

FAST = Benchmark(2e9, 2e10, 1e9, "2026-11-26T00:00:00.000Z")
SLOW = Benchmark(4e8, 5e9, 1e8, "2026-11-26T00:00:00.000Z")


def spec(**fields: Any) -> str:
    body = {
        "name": "test", "executor": {"type": "null"}, "price": "1",
        "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}, **fields,
    }  # fmt: skip
    return json.dumps(body)


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[Market, Node, Node]]:
    """A market with a slow provider, which is the cheaper one, and a fast one."""
    async with open_market(folder, price="0.1") as m, open_node(folder / "fast", config()) as fast:
        await m.provider.onboard(OnboardOptions(price="0.1"), SLOW)
        await fast.onboard(OnboardOptions(price="0.2"), FAST)
        for other in (m.authority, m.requester):
            await fast.add_peer(other.ctx.transport.describe())
        with trio.fail_after(20):
            while len(m.requester.ctx.topics.subscribers("/nunet/bids")) < 2:
                await trio.sleep(0.02)
        yield m, m.provider, fast


async def test_a_job_that_demands_speed_goes_to_who_measured_it(tmp_path: Path) -> None:
    async with two(tmp_path) as (m, slow, fast):
        job = await match.match(m.requester.ctx, await m.post(spec()))
        best = {bid.rank: bid for bid in m.requester.get_registered_bids(job.bid_request_id)}
        assert best[1].bidder.did == slow.identity.did
        assert best[1].offer.offer.benchmark == SLOW.speeds
        demanding = spec(benchmark={"cpu_hash": "1GB/s", "disk_write": "500MB/s"})
        job = await match.match(m.requester.ctx, await m.post(demanding))
        bids = {bid.bidder.did: bid for bid in m.requester.ctx.store[BIDS].by("job_id", job.id)}
        assert (bids[fast.identity.did].verdict, bids[slow.identity.did].verdict) == ("best", "declined")
        reasons = bids[slow.identity.did].reasons
        assert reasons == (
            "benchmark.cpu_hash: SHA-256 on one core: 600 MB/s short",
            "benchmark.disk_write: synced writing to disk: 400 MB/s short",
        )  # fmt: skip


async def test_a_job_may_prefer_speed(tmp_path: Path) -> None:
    async with two(tmp_path) as (m, slow, fast):
        wish = {"rank": "node.benchmark.memory_copy > 10000000000", "weight": 100}
        for constraints, first in (({"soft": [wish]}, fast), ({}, slow)):
            job = await match.match(m.requester.ctx, await m.post(spec(constraints=constraints)))
            bids = {bid.rank: bid for bid in m.requester.get_registered_bids(job.bid_request_id)}
            assert bids[1].bidder.did == first.identity.did
        hard = {"hard": ["node.benchmark.cpu_hash >= 1000000000"]}
        job = await match.match(m.requester.ctx, await m.post(spec(constraints=hard)))
        (bid,) = [bid for bid in m.requester.get_registered_bids(job.bid_request_id) if bid.kind == "bid"]
        assert bid.bidder.did == fast.identity.did


async def test_explain_says_what_was_measured_and_what_would_do(tmp_path: Path) -> None:
    async with two(tmp_path) as (m, slow, fast), served(m.requester, socket_path(tmp_path / "requester")):
        job_id = await m.post(spec(benchmark={"cpu_hash": "3GB/s"}))
        with pytest.raises(NoBidError):
            await match.match(m.requester.ctx, job_id)
        client = ApiClient(socket_path(tmp_path / "requester"))
        said = await trio.to_thread.run_sync(client.get, f"/jobs/{job_id}/explain")
        assert "benchmark.cpu_hash: 2 GB/s (2000000000) instead of 3 GB/s" in json.dumps(said)
        # who never measured is no slower than it says, and no faster either
        for node in (slow, fast):
            offered = structs.replace(node.get_registered_capability(), benchmark=Speeds())
            await node.set_registered_capability(offered)
        job_id = await m.post(spec(benchmark={"cpu_hash": "1MB/s"}))
        with pytest.raises(NoBidError):
            await match.match(m.requester.ctx, job_id)
        said = await trio.to_thread.run_sync(client.get, f"/jobs/{job_id}/explain")
        assert "SHA-256 on one core was not measured here" in json.dumps(said)


def test_what_is_measured_is_in_bytes_a_second(tmp_path: Path) -> None:
    measured = run_benchmark(tmp_path)
    # slower than any machine of today, and faster than all of them
    assert 10**6 < measured.cpu_hash < 10**11
    assert 10**6 < measured.memory_copy < 10**13
    assert measured.disk_write > 0
    assert measured.speeds == Speeds(int(measured.cpu_hash), int(measured.memory_copy), int(measured.disk_write))
    assert structs.replace(measured, disk_write=1e99).speeds.disk_write == MOST_SPEED


@pytest.mark.parametrize(
    ("text", "value"), [("1GB/s", 10**9), ("2 MiB/s", 2**21), ("700", 700), (5, 5), ("1.5kB/s", 1500)]
)
def test_speeds_as_people_write_them(text: str | int, value: int) -> None:
    assert quantities.parse_speed(text) == value
    assert read_spec(spec(benchmark={"cpu_hash": text})).benchmark.cpu_hash == value
