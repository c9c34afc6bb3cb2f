"""The places for connections: how many there are, and who gives way when they are taken.

Making connections costs an attacker little, and must not keep others out. Whom this node knows has a place before
strangers; of strangers, the one gives way whose address has most; and a handshake that takes long gives way to new
ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from nunet_cli.network.addresses import neighbourhood
from nunet_cli.network.connection import Connection, TokenBucket
from nunet_cli.network.peers import Peer

# Handshakes that are under way at once. A handshake takes two round trips, a second at the worst between honest nodes,
# so these are enough for a hundred newcomers a second; and with the descriptors of the connections they stay below the
# 1,024 that a process may have open by default.
MAX_HALF_OPEN = 128
# Two nodes that dial each other at the same moment have two, and a restart leaves old ones for a while.
MAX_PER_PEER = 4
# Seconds that a newcomer has to become of use before another one of equal standing may take its place.
STAY = 5.0
# Such changes in a second. Without a limit, one node more than there are places would have all of them reconnect in
# turn.
CHANGES = 1.0
# Seconds after which a peer that was of use, and says nothing, gives way where all places are taken by such peers: it
# comes back as soon as there is something to say.
LONG_IDLE = 60.0


class HalfOpen:
    """Handshakes that are under way, oldest first; where there are too many, one gives way to the newest."""

    def __init__(self, most: int = MAX_HALF_OPEN) -> None:
        self._most = most
        self._waiting: dict[trio.CancelScope, str] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def place(self, host: str, timeout: float) -> Iterator[trio.CancelScope]:
        """Hold a place for a handshake; the scope ends it when it gives way, or after `timeout` seconds.

        The oldest one of the address that has most gives way, so that who opens many of them closes its own.
        """
        mine = neighbourhood(host)
        while len(self._waiting) >= self._most:
            count = Counter([mine, *self._waiting.values()])
            most = max(count[place] for place in self._waiting.values())
            oldest = next(scope for scope, place in self._waiting.items() if count[place] == most)
            del self._waiting[oldest]
            oldest.cancel()
        with trio.move_on_after(timeout) as scope:
            self._waiting[scope] = mine
            try:
                yield scope
            finally:
                self._waiting.pop(scope, None)


class Places:
    """Connections that are open.

    Args:
        most: how many.
        most_per_address: of strangers at one address, or in one IPv6 network.
        is_known: whether a peer has its place before strangers.
    """

    def __init__(self, most: int, most_per_address: int, is_known: Callable[[Peer], bool]) -> None:
        self._most, self._most_per_address, self._is_known = most, most_per_address, is_known
        self._taken: dict[Connection, str] = {}
        self._changes = TokenBucket(CHANGES)

    def __len__(self) -> int:
        return len(self._taken)

    @property
    def is_full(self) -> bool:
        """Whether a stranger would have to take somebody else's place."""
        return len(self._taken) >= self._most

    def take(self, connection: Connection) -> None:
        """Count a connection."""
        self._taken[connection] = neighbourhood(connection.host)

    def leave(self, connection: Connection) -> None:
        """Count it no more."""
        self._taken.pop(connection, None)

    def make_room(self, peer: Peer, host: str) -> bool:
        """Return whether a peer that has proved its key may have a place; who gives way for it is closed.

        Args:
            peer: who comes.
            host: its address.
        """
        own = [connection for connection in self._taken if connection.peer is peer]
        if len(own) >= MAX_PER_PEER:
            self._close(min(own, key=_last_use))
        known, mine = self._is_known(peer), neighbourhood(host)
        strangers = {c: place for c, place in self._taken.items() if not self._is_known(c.peer)}
        if not known:
            neighbours = [connection for connection, place in strangers.items() if place == mine]
            if len(neighbours) >= self._most_per_address and not self._change(neighbours):
                return False
        if len(self._taken) < self._most:
            return True
        strangers = {c: place for c, place in strangers.items() if c in self._taken}
        count = Counter(strangers.values())
        own_count = count[mine] + (not known)
        crowd = max(count.values(), default=0)
        largest = [c for c, place in strangers.items() if count[place] == crowd]
        if largest and (known or crowd > own_count):
            self._close(min(largest, key=_last_use))
            return True
        if self._change([c for c, place in strangers.items() if place == mine or count[place] >= own_count]):
            return True
        if not known:
            return False
        silent = [c for c in self._taken if c.peer.source != "static" and c.idle > LONG_IDLE]
        if silent:
            self._close(min(silent, key=_last_use))
        return bool(silent) or peer.source == "static"

    def _change(self, candidates: list[Connection]) -> bool:
        """Let one of equal standing give way: the longest idle one that had its time; not too often."""
        ripe = [connection for connection in candidates if connection.age >= STAY]
        if not ripe or not self._changes.take():
            return False
        self._close(min(ripe, key=_last_use))
        return True

    def _close(self, connection: Connection) -> None:
        del self._taken[connection]
        connection.close()


def _last_use(connection: Connection) -> float:
    return connection.used_at
