"""How a job's messages and its time grow with the network: whole nodes in memory, on a virtual clock, from one seed."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from benchmarks.lines import Line, Options
from nunet_cli.config import Config, NetworkConfig
from nunet_cli.node.node import Node
from nunet_cli.records.jobs import JOB_ENDS
from tests.simulation.harness import PORT, Simulation, run

AUTHORITY = "authority"
# every node knows the authority and so many of those that came before it; one in ten posts jobs, the others offer
SMALL, DEGREE, JOBS, REQUESTERS = 10, 8, 10, 10
# virtual seconds: until nothing but the usual goes on, and to count it; and for a job at most
SETTLING, USUAL, PATIENCE = 20.0, 40.0, 3600.0


class Quiet(Simulation):
    """A simulation that looks at no invariants, which the tests do: only the nodes themselves take time."""

    def config(self, name: str, **overrides: Any) -> Config:
        """Let the authority, which everybody knows, have as many connections as there are nodes."""
        network = NetworkConfig(
            listen=f"{name}:{PORT}", discovery=False, rate=10_000, max_connections=100_000 if name == AUTHORITY else 256
        )
        return super().config(name, network=network, **overrides)

    async def _watch(self, node: Node) -> None:
        await trio.sleep_forever()


def measure(options: Options) -> Iterator[Line]:
    """Measure a network of the size that was asked for over one of ten nodes."""
    small = simulated(options.folder / "simulation-small", SMALL)
    large = simulated(options.folder / "simulation", options.nodes)
    for name, key, form in (
        ("messages of a job", "messages", "{:,.0f}"), ("virtual time of a job", "seconds", "{:.3f} s"),
    ):  # fmt: skip
        yield Line(
            "simulation", f"{name}, {options.nodes:,} nodes", large[key] / small[key], f"{SMALL} nodes", "",
            f"{form.format(large[key])}; among {SMALL} nodes {form.format(small[key])};"
            f" {large['wall']:.0f} s of this machine's time",
            {**{f"large_{name}": value for name, value in large.items()},
             **{f"small_{name}": value for name, value in small.items()}, "nodes": options.nodes},
        )  # fmt: skip


def simulated(folder: Path, nodes: int) -> dict[str, float]:
    """Return the frames and the virtual seconds of a job in a network, and the wall seconds of the whole simulation."""

    async def main(sim: Simulation) -> dict[str, float]:
        requesters = await build(sim, nodes)
        await trio.sleep(SETTLING)
        before = sim.network.frames
        await trio.sleep(USUAL)
        usual = (sim.network.frames - before) / USUAL
        took, begin, before = [], trio.current_time(), sim.network.frames
        for number in range(JOBS):
            node = sim.nodes[requesters[number % len(requesters)]]
            posted = trio.current_time()
            await settled(node, await sim.post(node, seconds=0))
            took.append(trio.current_time() - posted)
        frames = sim.network.frames - before - usual * (trio.current_time() - begin)
        return {"messages": frames / JOBS, "seconds": statistics.median(took), "usual_per_node_s": usual / nodes}

    begin = time.monotonic()
    found: dict[str, float] = run(main, folder, seed=1, kind=Quiet)
    shutil.rmtree(folder)
    return {**found, "wall": time.monotonic() - begin}


async def build(sim: Simulation, nodes: int) -> list[str]:
    """Start all nodes of a network; return the names of the requesters."""
    await sim.start(AUTHORITY, roles=("contract-database", "oracle"))
    names = [
        f"{'requester' if number % REQUESTERS == REQUESTERS - 1 else 'provider'}-{number}"
        for number in range(nodes - 1)
    ]
    for number, name in enumerate(names):
        known = sim.random.sample(names[:number], min(DEGREE, number))
        node = await sim.start(name, knows=(AUTHORITY, *known))
        if name.startswith("provider"):
            await sim.onboard(node)
    # the last one posts, too: a small network has a requester
    return [name for name in names if name.startswith("requester")] or names[-1:]


async def settled(node: Node, job_id: str) -> None:
    """Wait until a job has settled.

    Raises:
        RuntimeError: it ended otherwise.
    """
    with trio.fail_after(PATIENCE):
        while (state := node.get_job(job_id).state) != "settled":
            if state in JOB_ENDS:
                raise RuntimeError(f"a job of the simulation ended {state}: {node.get_job(job_id).error}")
            await node.ctx.store.new_event.wait()
