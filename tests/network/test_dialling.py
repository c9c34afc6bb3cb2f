"""Whom a node dials: strangers who name others that are not there keep nobody else waiting."""

import json
from pathlib import Path

import trio

from nunet_cli import quantities
from nunet_cli.network.connection import RELAY
from nunet_cli.network.envelope import seal
from nunet_cli.network.identity import new_identity
from nunet_cli.node.opening import open_node
from nunet_cli.records.bids import BidRequest
from nunet_cli.records.capability import Capability
from nunet_cli.records.offers import OnboardOptions
from tests.conftest import config


async def test_names_at_an_address_that_says_nothing_keep_nobody_from_being_dialled(tmp_path: Path) -> None:
    """A listener that accepts and is silent holds each dial for as long as a handshake may take."""
    begun, reached = trio.Event(), 0

    async def silent(_: trio.SocketStream) -> None:
        nonlocal reached
        reached += 1
        begun.set()
        await trio.sleep_forever()

    async with (
        open_node(tmp_path / "provider", config()) as p, open_node(tmp_path / "stranger", config()) as s,
        open_node(tmp_path / "requester", config()) as r, trio.open_nursery() as nursery,
    ):  # fmt: skip
        await p.onboard(OnboardOptions(price="0"), None)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, silent, listeners)
        await s.add_peer(p.ctx.transport.describe())
        connection = await s.ctx.transport.wait_connected(p.identity.public_key)
        for index in range(60):
            nobody = new_identity()
            body = BidRequest(
                f"request-{index}", f"job-{index}", nobody.node_id, Capability(), "bafyx", quantities.utc_now(),
                topic="/nunet/bids",
            )  # fmt: skip
            at = (f"127.0.0.1:{port}",)
            _, raw = seal(nobody, "/nunet/bids", "bid_request", body, lifetime=60, at=at)
            await connection.send(RELAY, json.dumps({"hops": 1}).encode() + b"\n" + raw)
        with trio.fail_after(10):
            while sum(peer.source == "relay" for peer in p.ctx.peers) < 60:
                await trio.sleep(0.02)
            await begun.wait()
        with trio.fail_after(3):
            await p.add_peer(r.ctx.transport.describe())
            await p.ctx.transport.wait_connected(r.identity.public_key)
        assert reached <= 2
        # they were told of once, and are forgotten once they were tried
        with trio.fail_after(15):
            while sum(peer.source == "relay" for peer in p.ctx.peers) >= 60:
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
