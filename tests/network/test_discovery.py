"""Discovery on loopback, with real mDNS, beside somebody who names nodes that are not there."""

import contextlib
import os
import secrets
import threading
from collections.abc import AsyncIterator
from typing import Any

import trio
from zeroconf import DNSOutgoing, DNSPointer, ServiceBrowser, ServiceInfo, Zeroconf

from nunet_cli.network.discovery import SERVICE, Discovery, network_tag
from nunet_cli.network.identity import Identity, new_identity
from tests.conftest import free_port, wait_until

CLASS_IN, TYPE_PTR, RESPONSE = 1, 12, 0x8400
NAMES = 100


class Watcher:
    """Discovery that remembers whom it found."""

    def __init__(self, network: bytes) -> None:
        self.found: set[bytes] = set()
        self.discovery = Discovery(new_identity(), network, ("127.0.0.1", free_port()), self._on_peer)
        self._changed = trio.Event()

    def _on_peer(self, key: bytes, address: tuple[str, int]) -> None:
        self.found.add(key)
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, node: Identity, seconds: float) -> None:
        with trio.fail_after(seconds):
            while node.public_key not in self.found:
                await self._changed.wait()


def announcer(node: Identity, network: bytes) -> Discovery:
    return Discovery(node, network, ("127.0.0.1", free_port()), lambda key, address: None)


@contextlib.asynccontextmanager
async def bare_names(*names: str) -> AsyncIterator[None]:
    """Announce names and nothing else, again and again, until the end; enter once others have heard them all."""
    heard: set[str] = set()
    stop = threading.Event()

    def on_change(*, name: str, **_: Any) -> None:
        heard.add(name)

    sender, listener = Zeroconf(interfaces=["127.0.0.1"]), Zeroconf(interfaces=["127.0.0.1"])
    ServiceBrowser(listener, SERVICE, handlers=[on_change])

    def send() -> None:
        while not stop.is_set():
            out = DNSOutgoing(RESPONSE)
            for name in names:
                out.add_answer_at_time(DNSPointer(SERVICE, TYPE_PTR, CLASS_IN, 10, f"{name}.{SERVICE}"), 0)
            sender.send(out)
            stop.wait(0.5)

    thread = threading.Thread(target=send)
    thread.start()
    wanted = {f"{name}.{SERVICE}" for name in names}
    try:
        await trio.to_thread.run_sync(lambda: wait_until(lambda: wanted <= heard, timeout=20, what="every name"))
        yield
    finally:
        stop.set()
        thread.join()
        sender.close()
        listener.close()


async def test_a_node_is_found_at_once_beside_a_hundred_names_that_nobody_answers_for() -> None:
    early, late, network = new_identity(), new_identity(), secrets.token_bytes(32)
    watcher = Watcher(network)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.discovery.run, (), False)
        nursery.start_soon(announcer(early, network).run, (), True)
        await watcher.until(early, 20)
        async with bare_names(*(f"bare-{os.getpid()}-{number}" for number in range(NAMES))):
            nursery.start_soon(announcer(late, network).run, (), True)
            await watcher.until(late, 15)
        nursery.cancel_scope.cancel()


async def test_a_node_that_is_named_and_nothing_more_is_asked_where_it_is() -> None:
    node, network = new_identity(), secrets.token_bytes(32)
    info = ServiceInfo(
        SERVICE, f"{node.peer_id}.{SERVICE}", port=9000, server=f"{node.peer_id[-24:].lower()}.local.",
        addresses=[b"\x7f\0\0\1"], properties={"id": node.peer_id, "net": network_tag(network)},
    )  # fmt: skip
    watcher = Watcher(network)
    # it answers questions about itself, but announces nothing and is not in the list of its kind
    responder = Zeroconf(interfaces=["127.0.0.1"])
    responder.registry.async_add(info)
    listed = dict(responder.registry.types)
    responder.registry.types.clear()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.discovery.run, (), False)
            async with bare_names(node.peer_id):
                await watcher.until(node, 15)
            nursery.cancel_scope.cancel()
    finally:
        responder.registry.types.update(listed)
        responder.close()
