"""The indices of activity follow from the event log alone."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from nunet_cli.errors import NoBidError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.node import indices
from nunet_cli.orchestrator import match
from nunet_cli.records.jobs import JOBS
from tests.orchestrator.test_groups import diamond
from tests.orchestrator.test_matching_on_the_wire import spec

MarketOf = Callable[..., Any]


async def test_the_event_log_gives_the_same_indices_as_the_tables(market: MarketOf) -> None:
    async with market() as m:
        await orchestrate_job(m.requester.ctx, await m.post(diamond()))
        with pytest.raises(NoBidError):
            await match.match(m.requester.ctx, await m.post(spec(resources={"memory": "900GiB"})))
        await m.post(spec())
        for node in (m.requester, m.provider, m.authority):
            assert indices.differences(node.ctx.store) == []
        found = indices.from_events(m.requester.ctx.store)
        assert {name: len(entries) for name, entries in found.items()} == {
            "jobs": 9, "bid_requests_sent": 5, "bid_requests_received": 0, "bids_sent": 0, "bids_received": 4,
        }  # fmt: skip
        assert len(indices.from_events(m.provider.ctx.store)["bids_sent"]) == 4
        # what was declined is not kept: anybody could ask without end
        assert len(indices.from_events(m.provider.ctx.store)["bid_requests_received"]) == 4


async def test_a_table_that_was_tampered_with_differs(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec())
        settled = structs.replace(m.job(job_id), state="settled")
        await m.requester.ctx.store.change(lambda t: t[JOBS].put(settled))
        assert indices.differences(m.requester.ctx.store) == [
            {"index": "jobs", "id": job_id, "tables": "settled", "events": "posted"}
        ]
        assert json.dumps(indices.from_tables(m.requester.ctx.store))
