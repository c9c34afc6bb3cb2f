"""Data on connections of its own when the network is cut, or either machine loses power: it goes on where it was."""

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli.network.data.sealed import CHUNK
from nunet_cli.node.node import Node
from tests.conftest import add_bytes
from tests.simulation.harness import Simulation, run

SIZE = 40 * CHUNK + 3


@pytest.mark.parametrize("trouble", ["cut", "giver", "taker"])
def test_a_transfer_goes_on_where_it_was(tmp_path: Path, trouble: str) -> None:
    seen: list[int] = []

    async def main(sim: Simulation) -> None:
        data = os.urandom(SIZE)
        giver = await sim.start("giver")
        taker = await sim.start("taker", knows=("giver",))
        did = giver.identity.did
        cid, _ = await add_bytes(giver.ctx.blobs, data)
        await giver.ctx.store.change(lambda t: giver.ctx.blobs.grant(t, cid, taker.identity.did))
        midway = trio.Event()

        async def fetch(node: Node, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            with trio.CancelScope() as scope:
                task_status.started(scope)
                await node.ctx.blobs.fetch(did, cid, SIZE, progress, patience=600)

        def progress(count: int) -> None:
            seen.append(count)
            if count > SIZE // 3:
                midway.set()

        async with trio.open_nursery() as nursery:
            scope = await nursery.start(fetch, taker)
            with trio.fail_after(300):
                await midway.wait()
            assert seen[-1] < SIZE
            if trouble == "cut":
                sim.network.partition({"giver"})
                await trio.sleep(200)
                sim.network.partition()
                continue_with = taker
            else:
                if trouble == "taker":
                    scope.cancel()
                await sim.crash(trouble)
                await trio.sleep(5)
                continue_with = await sim.restart(trouble)
                sim.nodes["taker"].ctx.peers.add(giver.identity.public_key, ("giver", 4000), "static")
            if trouble == "taker":
                nursery.start_soon(fetch, continue_with)
        assert sim.nodes["taker"].ctx.blobs.path(cid).read_bytes() == data

    run(main, tmp_path)
    # nothing came twice
    assert seen == sorted(set(seen))
    assert seen[-1] == SIZE
