"""A provider's machine among the requesters that wait for it: turns, shares of them, and the most that one may have."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli.network.messenger import Answer, Incoming
from nunet_cli.node.node import Node
from nunet_cli.orchestrator.turns import LONGEST_SAVING
from nunet_cli.records.allocations import ALLOCATIONS
from nunet_cli.records.bids import BIDS, AskOpenRequests, CapabilityComparator, OpenRequests
from nunet_cli.records.capability import Cpu, Resources
from nunet_cli.records.shares import MostPerRequester, Share
from tests.simulation.harness import Simulation, run

SECONDS = 10.0
NO_DEADLINE = {"max_duration": 60}


async def three(sim: Simulation, *, cores: float, **preferences: Any) -> tuple[Node, Node, Node]:
    """Open an authority, a provider with so many places, and two requesters; return the last three."""
    await sim.start("authority", roles=("contract-database", "oracle"))
    provider = await sim.start("first", knows=("authority",))
    await sim.onboard(provider, cores=cores, comparator=CapabilityComparator(**preferences))
    nodes = [await sim.start(name, knows=("authority", "first")) for name in ("requester", "other")]
    return provider, nodes[0], nodes[1]


async def post(sim: Simulation, node: Node, count: int, **fields: Any) -> list[str]:
    return [
        await sim.post(node, name=f"job-{number}", seconds=SECONDS, time=NO_DEADLINE, price="1", **fields)
        for number in range(count)
    ]


def begun(provider: Node) -> Counter[str]:
    """Return how many jobs of each requester have begun at a provider."""
    return Counter(row.requester for row in provider.ctx.store[ALLOCATIONS].all())


async def until_begun(provider: Node, count: int, within: float) -> Counter[str]:
    with trio.fail_after(within):
        while sum(begun(provider).values()) < count:
            await trio.sleep(0.1)
    return begun(provider)


def states(node: Node, jobs: Sequence[str]) -> set[str]:
    return {node.get_job(job).state for job in jobs}


@pytest.mark.parametrize("cores", [1])
def test_one_job_is_served_within_two_job_lengths_beside_forty(tmp_path: Path, cores: float) -> None:
    async def main(sim: Simulation) -> None:
        provider, many, one = await three(sim, cores=cores)
        await post(sim, many, 40)
        # all of them wait, and some run
        await until_begun(provider, 2 * int(cores), 120)
        begin = trio.current_time()
        (job_id,) = await post(sim, one, 1)
        with trio.fail_after(10 * SECONDS):
            while one.get_job(job_id).state != "settled":
                await trio.sleep(0.1)
        # it waits for a place for one length at most, and runs for one
        assert trio.current_time() - begin <= 2 * SECONDS + 3
        assert begun(provider)[many.identity.did] < 40

    run(main, tmp_path)


async def many_small(sim: Simulation, node: Node) -> list[str]:
    """Post jobs of one core that never end all at once."""
    return [
        await sim.post(node, name=f"small-{number}", seconds=SECONDS - 3 + number % 4 * 2, time=NO_DEADLINE, price="1")
        for number in range(16)
    ]


def test_a_job_that_needs_most_of_the_machine_has_its_turn_beside_small_ones(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> None:
        provider, many, one = await three(sim, cores=4)
        await many_small(sim, many)
        await until_begun(provider, 6, 120)
        begin = trio.current_time()
        large = {"cpu": 3, "memory": "64MiB", "disk": "64MiB"}
        (job_id,) = await post(sim, one, 1, resources=large)
        with trio.fail_after(10 * SECONDS):
            while one.get_job(job_id).state != "settled":
                await trio.sleep(0.5)
        # what is given back is saved for it: that takes as long as the longest of the small ones
        assert trio.current_time() - begin <= SECONDS + 3 + SECONDS + 3
        # and no longer than it is needed
        with trio.fail_after(150):
            while begun(provider)[many.identity.did] < 16:
                await trio.sleep(0.5)

    run(main, tmp_path)


@pytest.mark.parametrize(("needs", "saved"), [(4, LONGEST_SAVING), (0.5, 0)], ids=["all", "what is there"])
def test_who_says_what_it_needs_and_never_takes_it_costs_the_others_little(
    tmp_path: Path, needs: float, saved: float
) -> None:
    async def main(sim: Simulation) -> None:
        provider, many, liar = await three(sim, cores=4)
        asked = list[str]()

        async def answer(message: Incoming) -> Answer:
            asked.append(message.sender)
            return "open_requests", OpenRequests(needs=Resources(Cpu(needs), 2**20, 2**20))

        liar.ctx.messenger.register("ask_open_requests", AskOpenRequests, answer)
        provider.ctx.work.note_waiting(liar.identity.did)
        await many_small(sim, many)
        begin = trio.current_time()
        # alone they take 40 seconds
        await until_begun(provider, 16, 400)
        assert asked
        assert trio.current_time() - begin <= 40 + saved + 2 * SECONDS

    run(main, tmp_path)


def test_who_says_that_it_takes_what_is_free_and_lets_it_lie_costs_the_others_little(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> None:
        provider, many, liar = await three(sim, cores=1)

        async def answer(_message: Incoming) -> Answer:
            return "open_requests", OpenRequests(takes=True)

        liar.ctx.messenger.register("ask_open_requests", AskOpenRequests, answer)
        for number in range(20):
            await sim.post(many, name=f"short-{number}", seconds=1, time=NO_DEADLINE, price="1")
        await until_begun(provider, 2, 60)
        provider.ctx.work.note_waiting(liar.identity.did)
        begin = trio.current_time()
        await until_begun(provider, 20, 120)
        # a second at each of its turns, of which it has fewer and fewer
        assert trio.current_time() - begin <= 18 * 1.3

    run(main, tmp_path)


def test_shares_of_three_to_one_are_kept(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> None:
        provider, much, little = await three(sim, cores=2)
        did = much.identity.did
        share = Share(f"peer.did == '{did}'", 3.0)
        comparator = structs.replace(provider.get_preferences(), shares=(share,))
        await provider.set_preferences(comparator)
        await post(sim, much, 18)
        await post(sim, little, 9)
        # once both wait for places
        before = await until_begun(provider, 4, 600)
        after = await until_begun(provider, 20, 3600)
        count = after - before
        assert sum(count.values()) >= 16
        assert 2.5 <= count[did] / count[little.identity.did] <= 3.6, count

    run(main, tmp_path)


@pytest.mark.parametrize("most", [MostPerRequester(jobs=2), MostPerRequester(share=0.5)])
def test_no_requester_has_more_than_one_may_and_says_that_it_is_busy(tmp_path: Path, most: MostPerRequester) -> None:
    async def main(sim: Simulation) -> None:
        provider, requester, other = await three(sim, cores=4, most_per_requester=most)
        jobs = await post(sim, requester, 8)
        await until_begun(provider, 2, 60)
        with trio.fail_after(300):
            while not all(requester.get_job(job).waiting for job in jobs if requester.get_job(job).state == "matching"):
                await trio.sleep(0.1)
        waiting = [job for job in jobs if requester.get_job(job).state == "matching"]
        assert waiting
        declines = [row for row in requester.ctx.store[BIDS].by("job_id", waiting[0]) if row.kind == "decline"]
        # busy, and not never; `job explain` shows the reasons
        assert all(row.free_at for row in declines)
        assert any("preferences.most_per_requester: one requester may have" in text
                   for row in declines for text in row.reasons), declines  # fmt: skip
        # the rest of the machine is another's
        (job_id,) = await post(sim, other, 1)
        with trio.fail_after(60):
            while other.get_job(job_id).state != "settled":
                await trio.sleep(0.05)
        with trio.fail_after(600):
            while states(requester, jobs) != {"settled"}:
                mine = [row for row in provider.accounting.taken(provider.ctx.store)
                        if row.requester == requester.identity.did]  # fmt: skip
                assert len(mine) <= 2, mine
                await trio.sleep(0.05)

    run(main, tmp_path)


def test_a_job_over_the_share_is_refused_for_ever(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> None:
        _, requester, _ = await three(sim, cores=4, most_per_requester=MostPerRequester(share=0.5))
        (job_id,) = await post(sim, requester, 1, resources={"cpu": 3, "memory": "1GiB", "disk": "1GiB"})
        with trio.fail_after(60):
            while requester.get_job(job_id).state != "expired":
                await trio.sleep(0.1)
        (row,) = requester.ctx.store[BIDS].by("job_id", job_id)
        assert (row.kind, row.free_at) == ("decline", "")
        assert row.reasons == (
            "preferences.most_per_requester: one requester may have 50% of the cores here at a time",
        )

    run(main, tmp_path)
