"""Messages that arrive together: the store is held, so that all have read what there is before any may write."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio

from nunet_cli.database.store import Store
from nunet_cli.errors import NunetError
from nunet_cli.node.node import Node
from tests.conftest import Market


@contextlib.asynccontextmanager
async def held(store: Store) -> AsyncIterator[Callable[[], None]]:
    """Let no commit begin until what is given is called; what is waiting then is done in its order, in one commit."""
    gate, real = trio.Event(), store._commit

    async def commit(together: list) -> None:  # type: ignore[type-arg]
        await gate.wait()
        store._commit = real  # type: ignore[method-assign]
        more, store._waiting = store._waiting, []
        together += more
        await real(together)

    store._commit = commit  # type: ignore[method-assign]
    try:
        yield gate.set
    finally:
        gate.set()
        store._commit = real  # type: ignore[method-assign]


async def ask(node: Node, m: Market, type_: str, body: Any) -> Any:
    """Send the authority a request; return the body of its answer."""
    return (await node.ctx.messenger.request(m.authority.identity.did, type_, body, timeout=20)).body


async def together(m: Market, *calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Let calls arrive at the authority one after the other, before any of them may write; return how each ended."""
    ends: list[Any] = [None] * len(calls)

    async def call(index: int) -> None:
        try:
            ends[index] = await calls[index]()
        except NunetError as error:
            ends[index] = error

    store = m.authority.ctx.store
    async with held(store) as release, trio.open_nursery() as nursery:
        for index in range(len(calls)):
            nursery.start_soon(call, index)
            with trio.fail_after(20):
                # the first is being committed, the others wait for their turn
                while len(store._waiting) + store._is_led <= index:
                    await trio.sleep(0.005)
        release()
    return ends
