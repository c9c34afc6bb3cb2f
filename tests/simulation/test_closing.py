"""What time closes, on a virtual clock: when, by how many tasks, and how often the store is asked meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import trio

from nunet_cli import quantities
from nunet_cli.config import LimitsConfig
from nunet_cli.node.node import Node
from nunet_cli.records.contract_records import CONTRACTS, REGISTERED_CONTRACTS, ContractRecord
from nunet_cli.records.contracts import Receipt
from nunet_cli.records.results import Progress
from nunet_cli.tokenomics.payment import seconds_between
from tests.simulation.harness import Simulation, run
from tests.simulation.test_failures import held, reaches

WINDOW = 600


async def small(sim: Simulation) -> tuple[Node, Node, Node]:
    """Start an authority, a provider and a requester that know each other; return them."""
    authority = await sim.start("authority", roles=("contract-database", "oracle"))
    provider = await sim.start("provider", knows=("authority",))
    await sim.onboard(provider)
    return authority, provider, await sim.start("requester", knows=("authority", "provider"))


def the_contract(node: Node) -> ContractRecord:
    (contract,) = node.ctx.store[CONTRACTS].all()
    return contract


def closed_at(contract: ContractRecord) -> str:
    assert contract.receipt is not None
    return contract.receipt.read(Receipt).settled_at


@contextmanager
def counted(node: Node, table: str) -> Iterator[list[str]]:
    """Collect what a node reads from a table."""
    queries: list[str] = []

    def note(query: str) -> None:
        if query.startswith("SELECT") and f'"{table}"' in query:
            queries.append(query)

    node.ctx.store.connection.set_trace_callback(note)
    try:
        yield queries
    finally:
        node.ctx.store.connection.set_trace_callback(None)


def test_what_is_closed_has_no_task(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> None:
        _, provider, requester = await small(sim)
        for _ in range(6):
            jobs = {await sim.post(requester, seconds=1): "requester" for _ in range(2)}
            assert set((await sim.wait_ended(jobs)).values()) == {"settled"}
        await trio.sleep(60)
        assert (len(provider.ctx.closings), len(requester.ctx.closings)) == (0, 0)

    run(main, tmp_path)


def test_nothing_stays_in_memory_of_a_job_that_is_called_off_while_its_provider_is_away(tmp_path: Path) -> None:
    """Nor of one that was given up, or has failed: no result ever comes that would end what is known of them."""

    async def main(sim: Simulation) -> None:
        _, _, requester = await small(sim)
        called_off, failed = [await sim.post(requester, seconds=600, time={"max_duration": 900}) for _ in range(2)]
        for job_id in (called_off, failed):
            await reaches(sim, job_id, "running")
            requester.ctx.progress.note(job_id, Progress("image", 1, 2))
        await trio.sleep(10)
        assert len(requester.ctx.heard) == 2
        await sim.crash("provider")
        await requester.cancel_job(called_off)
        assert requester.get_job(called_off).state == "cancelled"
        await reaches(sim, failed, "failed", within=3600)
        assert len(requester.ctx.heard) == 0
        assert requester.ctx.progress.all() == {}

    run(main, tmp_path)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_provider_settles_at_the_deadline_and_hardly_looks_before(tmp_path: Path, restarted: bool) -> None:
    async def main(sim: Simulation) -> None:
        _, provider, requester = await small(sim)
        job_id = await sim.post(requester, seconds=20, time={"max_duration": 3600})
        await reaches(sim, job_id, "running")
        await sim.crash("requester")
        with trio.fail_after(60):
            while the_contract(provider).result is None:
                await trio.sleep(0.1)
        if restarted:
            await sim.crash("provider")
            provider = await sim.restart("provider")
        assert len(provider.ctx.closings) == 1
        deadline = the_contract(provider).deadline
        left = (quantities.parse_time(deadline) - quantities.now()).total_seconds()
        assert left > 1800
        with counted(provider, "contracts") as queries:
            await trio.sleep(left - 1)
        # once a minute, as clocks may be set
        assert len(queries) <= left / 60 + 2
        await trio.sleep(3)
        contract = the_contract(provider)
        assert contract.state == "settled"
        assert 0 <= seconds_between(deadline, closed_at(contract)) < 1
        assert len(provider.ctx.closings) == 0

    run(main, tmp_path)


@pytest.mark.parametrize("late", [0, 1800])
def test_a_contract_that_is_never_proved_expires_at_its_deadline(tmp_path: Path, late: int) -> None:
    """And by a clock that was set ahead: what sleeps until a time looks at the clock once a minute."""

    async def main(sim: Simulation) -> None:
        _, provider, requester = await small(sim)
        await sim.post(requester, seconds=1, time={"max_duration": 3600})
        with trio.fail_after(60):
            while not provider.ctx.store[CONTRACTS].count():
                await trio.sleep(0.001)
        await sim.crash("requester")
        await sim.crash("authority")
        assert the_contract(provider).state == "agreed"
        left = (quantities.parse_time(the_contract(provider).deadline) - quantities.now()).total_seconds()
        if late:
            sim.clock_ahead = timedelta(seconds=left - late)
        await trio.sleep((late or left) - 1)
        assert the_contract(provider).state == "agreed"
        await trio.sleep(3)
        assert the_contract(provider).state == "expired"
        assert len(provider.ctx.closings) == 0
        assert not sim.nodes["provider"].supervisor.failures

    run(main, tmp_path)


def test_a_jump_over_the_deadline_is_seen_within_a_minute(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> None:
        _, provider, requester = await small(sim)
        await sim.post(requester, seconds=1, time={"max_duration": 3600})
        with trio.fail_after(60):
            while not provider.ctx.store[CONTRACTS].count():
                await trio.sleep(0.001)
        await sim.crash("requester")
        await sim.crash("authority")
        sim.clock_ahead = timedelta(days=1)
        await trio.sleep(61)
        assert the_contract(provider).state == "expired"

    run(main, tmp_path)


def test_a_deposit_goes_back_at_the_end_of_the_window_and_the_books_are_hardly_read_before(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> None:
        authority, _, requester = await small(sim)
        job_id = await sim.post(requester, seconds=900, time={"max_duration": 3600})
        await reaches(sim, job_id, "running")
        await sim.crash("provider")
        await sim.crash("requester")
        (record,) = authority.ctx.store[REGISTERED_CONTRACTS].all()
        end = quantities.parse_time(record.window_from) + timedelta(seconds=WINDOW)
        left = (end - quantities.now()).total_seconds()
        with counted(authority, "registered_contracts") as queries:
            await trio.sleep(left - 1)
        assert len(held(sim)) == 1
        # what is due, and what is due next, once a minute
        assert len(queries) <= 2 * (left / 60 + 2)
        await trio.sleep(2)
        (record,) = authority.ctx.store[REGISTERED_CONTRACTS].all()
        assert (record.state, held(sim)) == ("refunded", [])

    run(main, tmp_path)


def test_a_contract_that_is_due_before_the_others_is_not_kept_waiting(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> None:
        authority = await sim.start(
            "authority", roles=("contract-database", "oracle"), limits=LimitsConfig(settlement_window=3600)
        )
        provider = await sim.start("provider", knows=("authority",))
        await sim.onboard(provider)
        requester = await sim.start("requester", knows=("authority", "provider"))
        for longest in (7200, 60):
            await reaches(sim, await sim.post(requester, seconds=50, time={"max_duration": longest}), "running")
        assert authority.contract_database is not None
        first, second = sorted(row.window_from for row in authority.ctx.store[REGISTERED_CONTRACTS].all())
        assert first < second
        assert authority.contract_database._refunding._next == first

    run(main, tmp_path)
