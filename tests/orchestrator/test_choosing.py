"""A requester chooses: which providers are asked, and which of their bids is taken."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.config import Config
from nunet_cli.errors import DeclinedError, StateError, UsageError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.jobs.reader import read_spec
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator.match import match
from nunet_cli.orchestrator.request import request
from nunet_cli.records.allocations import HOLDINGS
from nunet_cli.records.bids import BIDS, BidRecord, CapabilityComparator
from nunet_cli.records.jobs import JOBS
from nunet_cli.records.offers import OnboardOptions
from tests.conftest import Market, config, open_market

SMALL = {"cpu": 0.1, "memory": "16MiB", "disk": "1MiB"}
OFFER = OnboardOptions(price="0.2", cpu=0.3, memory="64MiB", disk="64MiB")


def spec(**fields: Any) -> str:
    body = {"name": "test", "executor": {"type": "process", "command": ["true"]}, "price": "1", "resources": SMALL}
    return json.dumps({**body, **fields})


@asynccontextmanager
async def with_providers(
    folder: Path, *prices: str, provider: Config | None = None
) -> AsyncIterator[tuple[Market, list[Node]]]:
    """Open a market with a provider for each price; the market's own is the first."""
    settings = provider or config()
    async with AsyncExitStack() as stack:
        onboard = structs.replace(OFFER, price=prices[0])
        m = await stack.enter_async_context(open_market(folder, onboard=onboard, provider=settings))
        nodes = [m.provider]
        for place, price in enumerate(prices[1:]):
            node = await stack.enter_async_context(open_node(folder / f"provider-{place}", settings))
            await node.onboard(structs.replace(OFFER, price=price), None)
            await node.add_peer(m.authority.ctx.transport.describe())
            await m.requester.add_peer(node.ctx.transport.describe())
            nodes.append(node)
        yield m, nodes


def bids(m: Market, job_id: str) -> dict[str, BidRecord]:
    """Return the bids for a job by who made them."""
    return {row.did: row for row in m.requester.ctx.store[BIDS].by("job_id", job_id)}


def is_locked(node: Node) -> bool:
    return bool(list(node.ctx.store[HOLDINGS].all()))


async def test_the_providers_that_a_job_is_pushed_to_are_asked_and_no_others(tmp_path: Path) -> None:
    async with with_providers(tmp_path, "0.1", "0.3", "0.2") as (m, (cheapest, dearest, middle)):
        named = [dearest.identity.peer_id, middle.identity.did]
        for options in ({"push": named}, {}):
            text = spec() if options else spec(push=named)
            job_id = await m.post(text, **options)
            assert m.job(job_id).push == (dearest.identity.did, middle.identity.did)
            assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"
            assert set(bids(m, job_id)) == {dearest.identity.did, middle.identity.did}
            # the best of their bids
            assert m.job(job_id).paid == "0.2"
        # whom else it asked is none of a provider's business
        assert json.loads(m.job(job_id).spec)["push"] == []
        # who asks on the command line asks those, whatever the file says
        job_id = await m.post(spec(push=named), push=[cheapest.identity.did])
        assert m.job(job_id).push == (cheapest.identity.did,)


async def test_what_is_pushed_to_must_be_a_peer_and_stands_at_the_top(tmp_path: Path) -> None:
    async with with_providers(tmp_path, "0.1") as (m, _):
        with pytest.raises(UsageError, match="unknown peer 'nobody'") as caught:
            await m.post(spec(push="nobody"))
        assert caught.value.details["path"] == "push"
        with pytest.raises(UsageError, match="--pull asks the network"):
            await m.post(spec(push=m.provider.identity.did), pull=True)
    child = json.loads(spec(push=["12D3KooW"]))
    with pytest.raises(UsageError, match=r"children\[0\]\.push: `push` belongs to the whole job"):
        read_spec(json.dumps({"name": "group", "children": [child]}))


async def test_a_bid_that_is_chosen_is_taken_instead_of_the_best(tmp_path: Path) -> None:
    async with with_providers(tmp_path, "0.1", "0.3", "0.2") as (m, (best, dearest, middle)):
        ctx, job_id = m.requester.ctx, await m.post(spec())
        await match(ctx, job_id)
        made = bids(m, job_id)
        assert made[best.identity.did].verdict == "best"
        chosen = made[dearest.identity.did]
        job = await request(ctx, job_id, chosen=chosen)
        assert (job.state, job.bid_id) == ("requested", chosen.id)
        assert [is_locked(node) for node in (best, dearest, middle)] == [False, True, False]
        made = bids(m, job_id)
        verdicts = [made[node.identity.did].verdict for node in (best, dearest, middle)]
        assert verdicts == ["shortlisted", "best", "shortlisted"]
        assert made[dearest.identity.did].why.startswith("chosen by hand; 0.3 NTX of 1")
        # once more is the same; another one is not
        assert (await request(ctx, job_id, chosen=chosen)).bid_id == chosen.id
        with pytest.raises(StateError, match=f"has what {chosen.id} offers locked already"):
            await request(ctx, job_id, chosen=made[best.identity.did])
        done = await orchestrate_job(ctx, job_id)
        assert (done.state, done.paid) == ("settled", "0.3")


async def test_a_bid_that_does_not_stand_is_not_taken_and_those_that_do_are_named(tmp_path: Path) -> None:
    short = config(bid_timeout=2)
    async with with_providers(tmp_path, "0.1", "0.3", provider=short) as (m, (best, dearest)):
        ctx, job_id, other_id = m.requester.ctx, await m.post(spec()), await m.post(spec())
        await match(ctx, job_id)
        await match(ctx, other_id)
        made, others = bids(m, job_id), bids(m, other_id)
        with pytest.raises(StateError, match="no bid from the present search for this job"):
            await request(ctx, job_id, chosen=others[best.identity.did])
        # its provider thinks better of it
        await dearest.set_preferences(CapabilityComparator(deny=(m.requester.identity.did,)))
        with pytest.raises(DeclinedError, match=r"declined: .*the preferences exclude it"):
            await request(ctx, job_id, chosen=made[dearest.identity.did])
        assert m.job(job_id).state == "matched"
        with pytest.raises(StateError, match=r"its turn is over: .*the preferences exclude it") as caught:
            await request(ctx, job_id, chosen=made[dearest.identity.did])
        assert caught.value.details["standing"] == [made[best.identity.did].id]
        assert not is_locked(dearest)
        with trio.fail_after(30):
            while quantities.utc_now() <= made[best.identity.did].offer.timeout:
                await trio.sleep(0.05)
        with pytest.raises(StateError, match="it was valid until") as caught:
            await request(ctx, job_id, chosen=made[best.identity.did])
        assert f"nunet job match {job_id}" in caught.value.hint
        # and that finds new ones, though the job had been matched
        old = m.job(job_id).bid_request_id
        job = await match(ctx, job_id)
        assert job.bid_request_id != old
        (bid,) = (row for row in ctx.store[BIDS].by("bid_request_id", job.bid_request_id) if row.kind == "bid")
        assert (await request(ctx, job_id, chosen=bid)).state == "requested"


async def test_what_all_have_locked_at_once_is_kept_until_one_is_chosen(tmp_path: Path) -> None:
    locking = config(lock_on_bid=True)
    async with with_providers(tmp_path, "0.1", "0.3", provider=locking) as (m, (best, dearest)):
        ctx, job_id = m.requester.ctx, await m.post(spec())
        await match(ctx, job_id)
        assert is_locked(best)
        assert is_locked(dearest)
        job = await request(ctx, job_id, chosen=bids(m, job_id)[dearest.identity.did])
        assert job.state == "requested"
        with trio.fail_after(30):
            while is_locked(best):
                await trio.sleep(0.02)
        assert is_locked(dearest)
        assert ctx.store[JOBS].one(job_id).bid_id == bids(m, job_id)[dearest.identity.did].id
        assert bids(m, job_id)[best.identity.did].verdict == "released"
