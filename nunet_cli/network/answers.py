"""What this node answered, so that a message that comes again gets its first answer and the work is done once."""

from __future__ import annotations

import base64
from collections import OrderedDict

from nunet_cli import units
from nunet_cli.database.store import Store
from nunet_cli.network.envelope import Envelope

MAX_REMEMBERED = 20_000
MAX_BYTES = 32 * 2**20
# a larger answer is worked out again after a restart: what is kept for a small message is small
MAX_DURABLE = 64 * 2**10


class Answers:
    """First answers, by sender and message id: the latest in memory, within bounds, and in the store what must last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._latest: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def find(self, envelope: Envelope) -> bytes | None:
        """Return what was answered before: None for a new message, empty bytes for a mere acknowledgement."""
        key = _key(envelope)
        if key in self._latest:
            return self._latest[key]
        row = self._store.find("inbox", key)
        return None if row is None else base64.b64decode(row["answer"])

    async def keep(self, envelope: Envelope, answer: bytes, *, durable: bool) -> None:
        """Remember an answer; a durable one that is not large outlives a restart, until the message expires."""
        key = _key(envelope)
        self._bytes += len(answer) - len(self._latest.get(key, b""))
        self._latest[key] = answer
        while len(self._latest) > MAX_REMEMBERED or self._bytes > MAX_BYTES:
            _, oldest = self._latest.popitem(last=False)
            self._bytes -= len(oldest)
        if durable and len(answer) <= MAX_DURABLE:
            # in the one form that this node compares by
            until = units.format_time(units.parse_time(envelope.expires_at))
            row = {"id": key, "type": envelope.type, "expires_at": until, "answer": base64.b64encode(answer).decode()}
            await self._store.change(lambda t: t.put("inbox", row))

    async def forget(self, now: str) -> None:
        """Let go of what belongs to expired messages: they cannot come again."""
        if self._store.table("inbox").before("expires_at", now, limit=1):
            await self._store.change(lambda t: t.table("inbox").remove_before("expires_at", now))


def _key(envelope: Envelope) -> str:
    return f"{envelope.from_}/{envelope.id}"
