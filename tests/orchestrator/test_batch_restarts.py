"""A requester, or a provider, that is started again in the middle of a batch, with items in the line: all are settled."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from nunet_cli import quantities
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.records.allocations import ALLOCATIONS, HOLDINGS
from nunet_cli.records.books import LEDGER
from nunet_cli.records.contract_records import CONTRACTS, REGISTERED_CONTRACTS
from nunet_cli.records.jobs import JOB_ENDS
from nunet_cli.tokenomics import ledger
from tests.conftest import Market, config, total
from tests.orchestrator.test_units import OFFER, PLACES, batch, begun, children

ITEMS, SECONDS = 20, 0.5


@contextlib.asynccontextmanager
async def node_of(folder: Path, name: str, *others: Node) -> AsyncIterator[Node]:
    """Open a node of a home, again or for the first time, and make it known to others."""
    roles = ("contract-database", "oracle") if name == "authority" else ()
    async with open_node(folder / name, config(), roles=roles) as node:
        for other in others:
            await node.add_peer(other.ctx.transport.describe())
        yield node


def in_line(provider: Node) -> list[str]:
    """Return the allocations that wait for a place."""
    rows = provider.ctx.store[ALLOCATIONS].by("state", "created")
    return [row.id for row in rows if provider.accounting.is_in_line(provider.ctx.store, row.id)]


async def the_middle(m: Market) -> None:
    """Wait until some items have ended, and others have lined up behind those that run."""
    with trio.fail_after(60):
        while len(begun(m.provider)) <= PLACES or not in_line(m.provider):
            await trio.sleep(0.005)


async def all_is_settled(m: Market, job_id: str, *others: Node, lost: int) -> None:
    """Wait for the end of a batch of which so many items at most were lost by their provider; look at the books."""
    store = m.authority.ctx.store
    with trio.fail_after(90):
        while m.job(job_id).state not in ("settled", "failed"):
            await trio.sleep(0.05)
        items = children(m, job_id)
        assert [(item.state, item.error) for item in items] == [("settled", None)] * ITEMS
        while any(row.receipt is None for row in store[REGISTERED_CONTRACTS].all()):
            await trio.sleep(0.05)
        while any(list(node.ctx.store[HOLDINGS].all()) for node in (m.provider, *others)):
            await trio.sleep(0.05)
    assert sum(item.attempt > 1 for item in items) <= lost
    # each was paid once, and all that was held is back
    providers = {node.identity.did for node in (m.provider, *others)}
    paid = Counter(row.contract_id for row in store[LEDGER].all() if row.payee in providers and row.contract_id)
    assert paid == {item.contract_id: 1 for item in items}
    assert store[REGISTERED_CONTRACTS].count() <= ITEMS + lost
    assert total(store) == 0
    assert not [key for key, held in m.balances().items() if key.startswith(ledger.escrow("")) and held]


async def test_a_batch_goes_on_after_a_restart_of_its_requester(tmp_path: Path) -> None:
    async with node_of(tmp_path, "authority") as authority, node_of(tmp_path, "provider", authority) as provider:
        await provider.onboard(OFFER, None)
        async with node_of(tmp_path, "requester", authority, provider) as requester:
            m = Market(requester, provider, authority, tmp_path)
            job_id = await m.post(batch(ITEMS, SECONDS), orchestrate=True)
            requester.orchestrate(job_id)
            await the_middle(m)
        async with node_of(tmp_path, "requester", authority, provider) as requester:
            # nobody says so again: it goes on by itself, and no item ran a second time
            await all_is_settled(Market(requester, provider, authority, tmp_path), job_id, lost=0)


async def test_a_batch_that_is_being_called_off_is_called_off_after_a_restart_of_its_requester(tmp_path: Path) -> None:
    async with node_of(tmp_path, "authority") as authority, node_of(tmp_path, "provider", authority) as provider:
        await provider.onboard(OFFER, None)
        async with node_of(tmp_path, "requester", authority, provider) as requester:
            m = Market(requester, provider, authority, tmp_path)
            job_id = await m.post(batch(ITEMS, SECONDS), orchestrate=True)
            requester.orchestrate(job_id)
            await the_middle(m)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(requester.cancel_job, job_id)
                with trio.fail_after(20):
                    while not any(item.state == "cancelled" for item in children(m, job_id)):
                        await trio.sleep(0)
                # killed with the rest of them to be called off yet
                nursery.cancel_scope.cancel()
            assert m.job(job_id).state == "running"
            contracts = requester.ctx.store[CONTRACTS].count()
        async with node_of(tmp_path, "requester", authority, provider) as requester:
            m = Market(requester, provider, authority, tmp_path)
            with trio.fail_after(60):
                while m.job(job_id).state not in JOB_ENDS:
                    await trio.sleep(0.02)
            assert m.job(job_id).state == "cancelled"
            assert {item.state for item in children(m, job_id)} <= {"cancelled", "settled"}
            # what was on its way may have begun meanwhile, and nothing else is asked for
            assert requester.ctx.store[CONTRACTS].count() == contracts < ITEMS
            assert not m.job(job_id).calling_off


async def test_what_is_in_the_line_is_run_after_a_restart_of_its_provider(tmp_path: Path) -> None:
    async with (
        node_of(tmp_path, "authority") as authority,
        node_of(tmp_path, "requester", authority) as requester,
        node_of(tmp_path, "second", authority, requester) as second,
    ):
        async with node_of(tmp_path, "provider", authority, requester) as provider:
            await provider.onboard(OFFER, None)
            m = Market(requester, provider, authority, tmp_path)
            job_id = await m.post(batch(ITEMS, SECONDS, retry={"attempts": 1}), orchestrate=True)
            requester.orchestrate(job_id)
            await the_middle(m)
            waited = in_line(provider)
            # what runs is lost with its provider, and runs once more elsewhere
            await second.onboard(OFFER, None)
        stopped = quantities.utc_now()
        async with node_of(tmp_path, "provider", authority, requester) as provider:
            m = Market(requester, provider, authority, tmp_path)
            await all_is_settled(m, job_id, second, lost=PLACES)
            found = [provider.ctx.store[ALLOCATIONS].one(key) for key in waited]
            # they may have begun before the restart
            assert all(row.state == "completed" for row in found if row.started_at > stopped), found
            assert all(row.started_at for row in found), found
