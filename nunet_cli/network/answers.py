"""What this node answered, so that a message that comes again gets its first answer and the work is done once."""

from __future__ import annotations

from collections import Counter, OrderedDict

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.network.envelope import Envelope
from nunet_cli.records.messaging import INBOX, Handled

MAX_REMEMBERED = 20_000
MAX_BYTES = 32 * 2**20
# a larger answer is worked out again after a restart: what is kept for a small message is small
MAX_DURABLE = 64 * 2**10
# what is kept for one peer: the oldest gives way, whose message has long been acknowledged
MOST_FOR_ONE = 2000
LOOKED_AT_EVERY = 100


class Answers:
    """First answers, by sender and message id: the latest in memory, within bounds, and in the store what must last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._latest: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._kept: Counter[str] = Counter()

    def find(self, envelope: Envelope) -> bytes | None:
        """Return what was answered before: None for a new message, empty bytes for a mere acknowledgement."""
        key = _key(envelope)
        if key in self._latest:
            return self._latest[key]
        row = self._store[INBOX].get(key)
        return None if row is None else row.answer

    def remember(self, envelope: Envelope, answer: bytes) -> None:
        """Remember an answer for as long as the node runs and there is room."""
        key = _key(envelope)
        self._bytes += len(answer) - len(self._latest.get(key, b""))
        self._latest[key] = answer
        while len(self._latest) > MAX_REMEMBERED or self._bytes > MAX_BYTES:
            _, oldest = self._latest.popitem(last=False)
            self._bytes -= len(oldest)

    def keep(self, t: Transaction, envelope: Envelope, answer: bytes) -> None:
        """Keep, as part of what the message changed, that it was handled, until it expires."""
        if len(answer) > MAX_DURABLE:
            return
        t[INBOX].put(Handled(_key(envelope), envelope.type, envelope.expires_at, answer))
        if len(self._kept) >= MAX_REMEMBERED:
            # so many senders cost their identities alone: they are counted anew
            self._kept.clear()
        self._kept[envelope.from_] += 1
        if self._kept[envelope.from_] % LOOKED_AT_EVERY == 0:
            rows = t[INBOX].with_prefix(f"{envelope.from_}/", limit=MOST_FOR_ONE + LOOKED_AT_EVERY)
            for row in sorted(rows, key=lambda row: row.expires_at)[: max(0, len(rows) - MOST_FOR_ONE)]:
                t[INBOX].remove(row.id)

    async def forget(self) -> None:
        """Let go of what belongs to expired messages: they cannot come again."""
        now = quantities.utc_now()
        if self._store[INBOX].below("expires_at", now, limit=1):
            await self._store.change(lambda t: t[INBOX].remove_below("expires_at", now))


def _key(envelope: Envelope) -> str:
    return f"{envelope.from_}/{envelope.id}"
