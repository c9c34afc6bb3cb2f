"""Clocks that differ: both sides know by how much, say so instead of `does not answer`, and the majority is right."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from nunet_cli.api import views
from nunet_cli.errors import NoBidError, PeerError
from nunet_cli.jobs.reader import read_spec
from nunet_cli.network.identity import new_identity
from nunet_cli.node import overview
from nunet_cli.node.doctor import _clock
from nunet_cli.node.node import Node
from nunet_cli.node.onboarding import OnboardOptions
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator.match import match
from nunet_cli.orchestrator.post import process_job
from nunet_cli.world import World, use_world
from tests.conftest import config
from tests.network.test_places import introduced, wait

SPEC = "name: x\nexecutor: {type: process, command: ['true']}\nprice: 1\n"


@asynccontextmanager
async def node_with_clock(folder: Path, minutes: Callable[[], float]) -> AsyncIterator[Node]:
    """A node whose tasks all see a clock that is ahead."""
    with use_world(World(now=lambda: datetime.now(UTC) + timedelta(minutes=minutes()))):
        async with open_node(folder, config()) as node:
            with use_world(World()):
                yield node


@pytest.mark.parametrize("minutes", [10, -10])
async def test_a_provider_with_another_clock_is_named_and_its_clock_said_on_both_sides(
    tmp_path: Path, minutes: int
) -> None:
    async with open_node(tmp_path / "r", config()) as r, node_with_clock(tmp_path / "p", lambda: minutes) as p:
        await p.onboard(OnboardOptions(price="0"), None)
        await r.add_peer(p.ctx.transport.describe())
        await wait(lambda: r.ctx.transport.connected() and p.ctx.transport.connected(), r)
        here, there = r.ctx.peers.find(p.identity.did), p.ctx.peers.find(r.identity.did)
        assert here is not None
        assert there is not None
        side, other = ("ahead of", "behind") if minutes > 0 else ("behind", "ahead of")
        assert here.clock == pytest.approx(60 * minutes, abs=2)
        assert there.clock == pytest.approx(-60 * minutes, abs=2)
        assert views.peer(here)["problem"] == f"its clock is 10m {side} this machine's"
        assert views.peer(there)["problem"] == f"its clock is 10m {other} this machine's"
        job = await process_job(r.ctx, read_spec(SPEC), folder=tmp_path)
        with pytest.raises(NoBidError) as caught:
            await match(r.ctx, job.id, timeout=3)
        assert caught.value.message == f"no acceptable bid: 1 provider's clock is 10m {side} this machine's"
        assert "doctor" in caught.value.hint
        with pytest.raises(PeerError, match="its clock is 10m") as refused, trio.fail_after(5):
            await r.ctx.messenger.request(p.identity.did, "bid_request", here, timeout=3)  # type: ignore[arg-type]
        assert refused.value.code == "clock_differs"
        assert overview.status(r)["clocks"][p.identity.peer_id] == pytest.approx(60 * minutes, abs=2)


async def test_a_clock_that_was_set_is_measured_again(tmp_path: Path) -> None:
    minutes = [10.0]
    async with open_node(tmp_path / "a", config()) as a, node_with_clock(tmp_path / "b", lambda: minutes[0]) as b:
        await a.add_peer(b.ctx.transport.describe())
        await wait(lambda: a.ctx.transport.connected() and b.ctx.transport.connected(), a)
        known = a.ctx.peers.find(b.identity.did)
        assert known is not None
        assert known.obstacle is not None
        minutes[0] = 0
        with trio.fail_after(20):
            await a.ctx.transport.ping(b.identity.public_key)
        assert known.obstacle is None
        assert known.clock == pytest.approx(0, abs=2)


async def test_who_does_not_say_its_time_is_dealt_with_all_the_same(tmp_path: Path) -> None:
    async with open_node(tmp_path, config()) as node:
        peer = await introduced(node)
        await wait(lambda: node.ctx.transport.connected(), node)
        known = node.ctx.peers.find(peer.identity.did)
        assert known is not None
        assert known.clock is None
        assert known.obstacle is None


def test_doctor_says_whose_clock_is_wrong() -> None:
    def said(*seconds: float) -> list[tuple[str, str, str]]:
        clocks = {new_identity().peer_id: ahead for ahead in seconds}
        return [
            (f.state, f.message, f.hint)
            for f in _clock({"clocks": clocks})
            if f.check != "clock" or f.state == "problem"
        ]

    assert said() == said(0.5, -3, 59) == []
    [(state, message, hint)] = said(600, 0.1, -0.2)
    assert state == "warning"
    assert message.startswith("the clock of 12D3")
    assert message.endswith("is 10m ahead of this machine's")
    assert hint.startswith("on that machine")
    # the others agree with each other, and are more: it is this one
    [(state, message, hint)] = said(-600, -601, -599.5, 0.1)
    assert (state, message) == ("problem", "wrong: the clocks of 3 of 4 peers are 10m behind this machine's, and agree")
    assert "this machine's" in hint
    # one against one says nothing, and so do many that do not agree
    [(state, _, hint)] = said(600)
    assert state == "warning"
    assert "cannot be said" in hint
    assert [state for state, _, _ in said(600, -600, 7200)] == ["warning"] * 3
