"""What a provider's allocation comes to at bad moments, on a virtual clock: its end is kept, its machine is free again."""

import errno
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli import quantities
from nunet_cli.allocation import run as allocation
from nunet_cli.errors import NodeError
from nunet_cli.executor.base import Exit, Task
from nunet_cli.executor.null import NullExecutor
from nunet_cli.node.node import Node
from nunet_cli.records.allocations import ALLOCATIONS
from nunet_cli.records.messaging import OUTBOX
from nunet_cli.records.results import Usage
from nunet_cli.tokenomics.payment import seconds_between
from tests.simulation.harness import Simulation, run
from tests.simulation.test_failures import OPENING, balance, contract_with, held, reaches


async def two(sim: Simulation, **onboarding: Any) -> tuple[Node, Node]:
    """An authority, a provider that was onboarded, and a requester; return the last two."""
    await sim.start("authority", roles=("contract-database", "oracle"))
    provider = await sim.start("first", knows=("authority",))
    await sim.onboard(provider, **onboarding)
    return provider, await sim.start("requester", knows=("authority", "first"))


def allocations(node: Node) -> list[str]:
    return [row.state for row in node.ctx.store[ALLOCATIONS].all()]


async def ends(node: Node) -> None:
    """Wait until a provider's only allocation has ended and its machine is free."""
    with trio.fail_after(120):
        while node.ctx.running or node.accounting.taken(node.ctx.store):
            await trio.sleep(0.1)


def test_a_service_that_is_called_off_while_it_starts_gives_the_machine_back(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> None:
        provider, requester = await two(sim)
        executor = provider.ctx.executors["null"]
        start: Callable[[Task], Awaitable[str]] = executor.start

        async def slow(task: Task) -> str:
            # as an engine that makes a container
            await trio.sleep(3)
            return await start(task)

        executor.start = slow  # type: ignore[method-assign]  # an engine is slower than nothing
        job_id = await sim.post(requester, seconds=60, type="service", service={}, time={"max_duration": 300})
        await reaches(sim, job_id, "invoked")
        with trio.fail_after(30):
            while allocations(provider) != ["starting"]:
                await trio.sleep(0.1)
        await requester.cancel_job(job_id)
        await ends(provider)
        assert allocations(provider) == ["completed"]

    run(main, tmp_path)


@pytest.mark.parametrize("where", ["finish", "make"])
def test_an_allocation_ends_as_failed_where_its_end_or_its_beginning_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """What will be refused again and again is not tried for ever, and the machine not held for it."""
    finish = allocation.finish_allocation

    async def refuse(ctx: Any, row: Any, result: Any) -> Any:
        if result.state == "completed":
            raise NodeError("not this one")
        return await finish(ctx, row, result)

    def fail(*arguments: Any) -> Any:
        raise AssertionError

    async def main(sim: Simulation) -> None:
        provider, requester = await two(sim)
        if where == "finish":
            monkeypatch.setattr(allocation, "finish_allocation", refuse)
        else:
            monkeypatch.setattr(allocation, "make_parts", fail)
        job_id = await sim.post(requester, seconds=1)
        assert await sim.wait_ended({job_id: "requester"}) == {job_id: "failed"}
        await ends(provider)
        assert allocations(provider) == ["failed"]
        assert held(sim) == []
        assert balance(sim, "requester") == OPENING

    run(main, tmp_path)


@pytest.mark.parametrize("seen_after", [0.0, 0.2])
@pytest.mark.parametrize(("away", "longest"), [(600, 120), (300, 3600)])
def test_a_container_that_ended_while_its_node_was_away_is_paid_for_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: int, longest: int, seen_after: float
) -> None:
    """The requester pays neither for the provider's absence, nor is the provider disputed for it."""

    class Container(NullExecutor):
        """What ended 60 s after its start, whoever looked."""

        async def attach(self, task: Task, handle: str) -> bool:
            return True

        async def wait(self, task: Task, handle: str) -> Exit:
            await trio.sleep(seen_after)
            return Exit(0, Usage(1, 60), ended_at=finished)

        async def usage(self, task: Task, handle: str) -> Usage:
            return Usage(1, 60)

        async def stop(self, task: Task, handle: str) -> None:
            pass

    async def main(sim: Simulation) -> None:
        nonlocal finished
        _, requester = await two(sim, unit="s", price="0.001")
        job_id = await sim.post(requester, seconds=60, time={"max_duration": longest}, price="10")
        await reaches(sim, job_id, "running")
        (row,) = sim.nodes["first"].ctx.store[ALLOCATIONS].all()
        finished = quantities.format_time(quantities.parse_time(row.started_at) + timedelta(seconds=60))
        await sim.crash("first")
        for name in ("attach", "wait", "usage", "stop"):
            monkeypatch.setattr(NullExecutor, name, getattr(Container, name))
        await trio.sleep(away)
        provider = await sim.restart("first")
        provider.ctx.peers.add(sim.nodes["authority"].identity.public_key, ("authority", 4000), "static")
        # its requester gave it up; what it did is paid all the same
        with trio.fail_after(3600):
            while contract_with(sim, "first").state not in ("settled", "refunded", "disputed"):
                await trio.sleep(1)
        assert allocations(provider) == ["completed"]
        assert (contract_with(sim, "first").state, held(sim)) == ("settled", [])
        assert balance(sim, "first") - OPENING == quantities.parse_amount("0.06")

    finished = ""
    run(main, tmp_path)


def test_a_service_that_ended_while_its_node_was_away_is_not_started_for_an_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is over: it is paid for while it was up."""

    async def attach(self: NullExecutor, task: Task, handle: str) -> bool:
        return True

    async def wait(self: NullExecutor, task: Task, handle: str) -> Exit:
        return Exit(1, Usage(1, 60), ended_at=finished)

    async def usage(self: NullExecutor, task: Task, handle: str) -> Usage:
        return Usage(1, 60)

    async def main(sim: Simulation) -> None:
        nonlocal finished
        _, requester = await two(sim, unit="s", price="0.001")
        service: dict[str, Any] = {"restart": "always", "max_restarts": 5}
        fields: dict[str, Any] = {"type": "service", "service": service, "time": {"max_duration": 120}}
        job_id = await sim.post(requester, seconds=600, price="10", **fields)
        await reaches(sim, job_id, "running")
        (row,) = sim.nodes["first"].ctx.store[ALLOCATIONS].all()
        finished = quantities.format_time(quantities.parse_time(row.started_at) + timedelta(seconds=60))
        await sim.crash("first")
        for name, function in (("attach", attach), ("wait", wait), ("usage", usage)):
            monkeypatch.setattr(NullExecutor, name, function)
        await trio.sleep(300)
        provider = await sim.restart("first")
        await ends(provider)
        (row,) = provider.ctx.store[ALLOCATIONS].all()
        assert (row.usage.restarts, row.usage.wall_seconds) == (0, 60.0)

    finished = ""
    run(main, tmp_path)


@pytest.mark.parametrize("runs_on", [True, False])
def test_a_job_that_was_called_off_is_ended_also_by_a_node_that_was_killed_while_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs_on: bool
) -> None:
    """The order was acknowledged, so nobody repeats it; and what ran on without its node is not paid for."""

    async def main(sim: Simulation) -> None:
        provider, requester = await two(sim, unit="s", price="0.001")
        job_id = await sim.post(requester, seconds=3000, time={"max_duration": 3600}, price="10")
        await reaches(sim, job_id, "running")
        (begun,) = provider.ctx.store[ALLOCATIONS].all()

        async def slow(*_: Any) -> None:
            await trio.sleep(300)

        async def true(*_: Any) -> bool:
            return True

        async def nothing(*_: Any) -> None:
            pass

        async def usage(*_: Any) -> Usage:
            return Usage(1, 900)

        provider.ctx.executors["null"].stop = slow  # type: ignore[method-assign]  # an engine that takes its time
        await trio.sleep(20)
        called_off = quantities.utc_now()
        await requester.cancel_job(job_id)
        with trio.fail_after(120):
            while list(requester.ctx.store[OUTBOX].all()):
                await trio.sleep(0.5)
        assert allocations(provider) == ["running"]
        await sim.crash("first")
        if runs_on:
            for name, function in (("attach", true), ("wait", slow), ("usage", usage), ("stop", nothing)):
                monkeypatch.setattr(NullExecutor, name, function)
        await trio.sleep(600)
        provider = await sim.restart("first")
        provider.ctx.peers.add(sim.nodes["authority"].identity.public_key, ("authority", 4000), "static")
        await ends(provider)
        assert allocations(provider) == ["cancelled"]
        with trio.fail_after(300):
            while contract_with(sim, "first").state not in ("settled", "refunded", "disputed"):
                await trio.sleep(1)
        assert (contract_with(sim, "first").state, held(sim)) == ("settled", [])
        seconds = seconds_between(begun.started_at, called_off) + 10
        paid = balance(sim, "first") - OPENING
        assert 0 < paid <= quantities.parse_amount("0.001") * (seconds + 1)

    run(main, tmp_path)


def test_an_oracle_whose_disk_was_full_at_the_end_of_second_runs_judges_them_and_runs_others(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> None:
        provider, requester = await two(sim)
        oracle = sim.nodes["authority"]
        await sim.onboard(oracle, price="1000")
        release = oracle.ctx.accounting.release

        def full(t: Any, key: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        for count in range(3):
            oracle.ctx.accounting.release = full if count < 2 else release  # type: ignore[method-assign]
            fields: dict[str, Any] = {"time": {"max_duration": 60}, "verify": {"policy": "reexecute"}}
            job_id = await sim.post(requester, seconds=5, **fields)
            assert await sim.wait_ended({job_id: "requester"}, 600) == {job_id: "settled"}
        await ends(provider)
        with trio.fail_after(120):
            while oracle.accounting.taken(oracle.ctx.store):
                await trio.sleep(0.1)

    run(main, tmp_path)
