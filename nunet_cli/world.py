"""What a node takes from the world around it beside disk and network: the time, randomness for ids, worker threads.

A simulation supplies its own, for itself and all tasks that it starts: so whole networks run on a virtual clock, in one
thread, alike for one seed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class World:
    """`now` gives the time, `token` random bytes as hexadecimal text; without `threads` blocking calls run inline."""

    now: Callable[[], datetime] = _now
    token: Callable[[int], str] = secrets.token_hex
    threads: bool = True


_WORLD: ContextVar[World | None] = ContextVar("world", default=None)
_REAL = World()


def world() -> World:
    """Return the world of this task."""
    return _WORLD.get() or _REAL


@contextmanager
def use_world(other: World) -> Iterator[None]:
    """Let this task, and those that it starts, live in another world."""
    token = _WORLD.set(other)
    try:
        yield
    finally:
        _WORLD.reset(token)
