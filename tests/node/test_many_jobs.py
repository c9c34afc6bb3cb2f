"""A home with thousands of finished jobs: a start and the first page of a list read what they show, and not all."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli.api.client import ApiClient
from nunet_cli.api.server import served
from nunet_cli.database.records import Remembered
from nunet_cli.node.opening import open_node
from nunet_cli.records.bids import BIDS
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.jobs import JOBS
from tests.conftest import MarketFactory, config

MANY = 3000


async def test_neither_a_start_nor_a_page_reads_every_row(
    market: MarketFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market() as m:
        job_id = await m.post(json.dumps({"name": "one", "executor": {"type": "null"}, "price": "1"}))
        m.requester.orchestrate(job_id)
        with trio.fail_after(30):
            while m.job(job_id).state != "settled":
                await trio.sleep(0.02)
        store = m.requester.ctx.store
        job, (bid,) = store[JOBS].one(job_id), store[BIDS].by("job_id", job_id)
        contract = store[CONTRACTS].one(job.contract_id)

        def fill(t: Any) -> None:
            for number in range(MANY):
                t[JOBS].put(structs.replace(job, id=f"job-{number}", contract_id=f"contract-{number}"))
                t[BIDS].put(structs.replace(bid, id=f"bid-{number}", job_id=f"job-{number}"))
                t[CONTRACTS].put(structs.replace(contract, id=f"contract-{number}", job_id=f"job-{number}"))

        await store.change(fill)
    read = 0
    original = Remembered.read

    def counted(self: Remembered, seq: int, doc: Any) -> Any:
        nonlocal read
        read += 1
        return original(self, seq, doc)

    monkeypatch.setattr(Remembered, "read", counted)
    async with open_node(tmp_path / "requester", config()) as node, served(node, tmp_path / "socket"):
        client = ApiClient(tmp_path / "socket")
        # what is open is looked through at the start, and nothing is
        assert read < 100
        for path in ("/jobs", "/bids", "/contracts"):
            read = 0
            page = await trio.to_thread.run_sync(lambda path=path: client.page(path, limit=5, newest=True))  # type: ignore[misc]  # bound now
            assert len(page.rows) == 5
            assert page.total == MANY + 1
            assert 0 < read < 50, path
