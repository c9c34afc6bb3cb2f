"""Messages that arrive together: the store is held, so that all have read what there is before any may write."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import trio

from nunet_cli.database.store import Store


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
