"""The outbox: messages that are part of a change, repeated until they are acknowledged or expire."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import PeerError
from nunet_cli.network.connection import ENVELOPE
from nunet_cli.network.envelope import Envelope, seal, unseal
from nunet_cli.network.identity import Identity
from nunet_cli.network.transport import TcpTransport
from nunet_cli.network.waiting import Waiting, short
from nunet_cli.records.identifiers import key_from_did
from nunet_cli.records.messaging import OUTBOX, Outgoing

log = logging.getLogger("nunet.messages")

RETRY_INTERVAL = 3.0
LONGEST_PAUSE = 60.0
ToSelf = Callable[[Envelope, bytes, Waiting], Awaitable[None]]


class Outbox:
    """What this node has to say to others, whether or not they are there now.

    Args:
        identity: who signs.
        transport: carries the messages.
        store: keeps them.
        pending: by message id, who waits for an acknowledgement; the messenger fills them in.
        to_self: gives a message to this node's own behaviour.
    """

    def __init__(
        self, identity: Identity, transport: TcpTransport, store: Store, pending: dict[str, Waiting], to_self: ToSelf
    ) -> None:
        self._identity, self._transport, self._store = identity, transport, store
        self._pending, self._to_self = pending, to_self
        self._woken, self._look_at = trio.Event(), 0.0
        self._fresh: list[Outgoing] = []
        self._delivering: set[str] = set()
        # acknowledged, and still in the store: they are removed together, as no harm is done if they are sent again
        self._delivered: set[str] = set()
        self._pauses: dict[str, float] = {}

    def outgoing(self, to: str, type_: str, body: Struct, *, lifetime: float) -> Outgoing:
        """Return a new message; put it with `enqueue` in the transaction that makes it true."""
        envelope, raw = seal(self._identity, to, type_, body, lifetime=lifetime)
        return Outgoing(envelope.id, to, type_, envelope.expires_at, raw)

    def enqueue(self, t: Transaction, message: Outgoing, *, soon: bool = True) -> None:
        """Put a message into the outbox as part of a change; it leaves once the change is on disk.

        What need not leave at once, with `soon` False, leaves within `RETRY_INTERVAL`.
        """
        t[OUTBOX].put(message)
        if soon:
            t.then(partial(self._send_soon, message))

    def _send_soon(self, message: Outgoing) -> None:
        # sent as soon as it is kept, without being looked up
        self._fresh.append(message)
        self._woken.set()

    def wake(self) -> None:
        """Deliver what can be delivered now that a peer is there."""
        self._look_at = 0.0
        self._woken.set()

    async def flush(self, timeout: float) -> bool:
        """Deliver what need not leave at once, too, and wait until nothing is left for connected peers.

        Returns:
            Whether that is so; False after `timeout` seconds.
        """
        self.wake()
        with trio.move_on_after(timeout):
            while self._waiting():
                await trio.sleep(0.02)
            await self._forget_delivered()
            return True
        return False

    def _waiting(self) -> list[Outgoing]:
        there = [did for did in self._store[OUTBOX].distinct("to") if self._is_reachable(did)]
        rows = [row for did in there for row in self._store[OUTBOX].by("to", did)]
        return [row for row in rows if row.id not in self._delivered]

    def _is_reachable(self, did: str) -> bool:
        return did == self._identity.did or self._transport.connection(key_from_did(did)) is not None

    async def deliver(self, nursery: trio.Nursery) -> None:
        """Deliver, for ever: at once what is new, and again what was not acknowledged."""
        while True:
            self._woken = trio.Event()
            found, self._fresh = self._fresh, []
            is_time = trio.current_time() >= self._look_at
            if is_time:
                self._look_at = trio.current_time() + RETRY_INTERVAL
                found = self._waiting()
            for message in found:
                if message.id not in self._delivering and message.id not in self._delivered:
                    self._delivering.add(message.id)
                    name = f"delivery of {message.type}"
                    self._transport.supervisor.start_soon(nursery, name, self._deliver, message)
            if is_time:
                await self._tidy()
            with trio.move_on_at(self._look_at):
                await self._woken.wait()

    async def _tidy(self) -> None:
        await self._forget_delivered()
        now = quantities.utc_now()
        if self._store[OUTBOX].below("expires_at", now, limit=1):
            await self._store.change(lambda t: t[OUTBOX].remove_below("expires_at", now))
        # what expired needs none any more
        self._pauses = {key: pause for key, pause in self._pauses.items() if self._store[OUTBOX].has(key)}

    async def _forget_delivered(self) -> None:
        delivered = set(self._delivered)
        if delivered:
            await self._store.change(lambda t: [t[OUTBOX].remove(key) for key in delivered])
            self._delivered -= delivered

    async def _deliver(self, message: Outgoing) -> None:
        waiting = self._pending[message.id] = Waiting(message.to)
        try:
            connection = self._transport.connection(key_from_did(message.to))
            if message.to == self._identity.did:
                await self._to_self(unseal(message.raw, me=self._identity.did), message.raw, waiting)
            elif connection is None:
                return
            else:
                await connection.send(ENVELOPE, message.raw)
            with trio.move_on_after(RETRY_INTERVAL):
                await waiting.arrived.wait()
            if waiting.trouble():
                pause = min(LONGEST_PAUSE, 2 * self._pauses.get(message.id, RETRY_INTERVAL / 2))
                self._pauses[message.id] = pause
                await trio.sleep(pause)
            elif waiting.arrived.is_set():
                self._pauses.pop(message.id, None)
                if waiting.rejected:
                    log.warning("%s rejected a %s: %s", short(message.to), message.type, waiting.rejected)
                self._delivered.add(message.id)
        except PeerError:
            pass
        finally:
            del self._pending[message.id]
            self._delivering.discard(message.id)
