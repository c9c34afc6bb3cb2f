"""The peers that a node knows: who they are, where they listen, what they do, and how far away they are.

Knowing somebody costs memory, and making identities costs nothing. So a stranger is known for as long as there is room,
and leaves nothing in the store; who was of use is kept, and no number of strangers pushes it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Literal, NamedTuple

import trio

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import NotFoundError, NunetError, PeerError, UsageError
from nunet_cli.network.addresses import Address, format_address, is_address, neighbourhood, parse_address
from nunet_cli.network.envelope import MAX_SKEW
from nunet_cli.records.capability import Capability
from nunet_cli.records.identifiers import did_from_key, key_from_did, key_from_peer_id, peer_id_from_key
from nunet_cli.records.messaging import PEERS, PeerRecord

# Static peers and those that were of use: the parties of thousands of contracts a month, at about a kilobyte each.
MAX_KEPT = 10_000
# Strangers that are not connected: as many as a large laboratory has machines, so that each can be found again; with
# the eight addresses that each may have at most, a few megabytes.
MAX_STRANGERS = 1_000
MAX_ADDRESSES = 8
# Failed dials in a row after which a stranger is forgotten, with pauses that double: one that mDNS told of and that was
# never reached after some seconds, one that was here after two minutes. Who comes back says so itself, or is announced
# again.
MDNS_ATTEMPTS, ATTEMPTS = 5, 8
# who was of use, and was not seen for so long, has most likely gone for good; it becomes known again as strangers do
FORGET_AFTER = timedelta(days=30)
# a peer's last use is not written at each use: for forgetting after weeks a day is exact enough
WRITE_EVERY = timedelta(days=1)
Version = tuple[int, int]
PROTOCOL_VERSION: Version = (1, 0)


class Told(NamedTuple):
    """What a peer told last of its capability: when, how, what it has left for this node, and how busy it is, 0 to 1.

    `offered` is None where it offers this node nothing. It is the peer's word and no more.
    """

    at: str
    by: Literal["answer", "bid"]
    offered: Capability | None
    load: float = 0.0


@dataclass
class Peer:
    """One known peer; `rtt` is the measured round-trip time in seconds, `source` how it became known.

    `addresses` are those that the peer itself said, that it answered at, or that this node's operator gave; `hints` are
    what mDNS says, which anybody can: they are dialled, and displace nothing. `clock` is by how many seconds its clock
    is ahead of this machine's, None where that was not measured. `useful_at` is when it last was party or authority of
    a contract with this node, empty for never. `place` is the address or network that it came from, or is said to be
    at.
    """

    public_key: bytes
    addresses: list[Address] = field(default_factory=list)
    hints: list[Address] = field(default_factory=list)
    roles: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    agent: str = ""
    version: Version | None = None
    source: str = "inbound"
    connected: bool = False
    rtt: float | None = None
    clock: float | None = None
    last_seen: str = ""
    useful_at: str = ""
    place: str = ""
    failures: int = 0
    next_dial: float = 0.0
    introduced: bool = False
    reached: bool = False
    stored: bool = False
    told: Told | None = None

    @property
    def is_strange(self) -> bool:
        """Whether others told of it, and it was never reached: there may be no such node."""
        return self.source in ("relay", "mdns") and not self.reached

    @property
    def is_kept(self) -> bool:
        """Whether this node's operator named it, or it was of use: it has a place before strangers."""
        return self.source == "static" or bool(self.useful_at)

    @cached_property
    def did(self) -> str:
        """The peer's DID."""
        return did_from_key(self.public_key)

    @cached_property
    def peer_id(self) -> str:
        """The peer's libp2p peer id."""
        return peer_id_from_key(self.public_key)

    @property
    def to_try(self) -> list[Address]:
        """Where to dial it: what it said itself first."""
        return [*self.addresses, *(hint for hint in self.hints if hint not in self.addresses)]

    @property
    def obstacle(self) -> PeerError | None:
        """What keeps this node from dealing with the peer while they are connected; None where nothing does."""
        if self.version is not None and is_other_version(self):
            theirs, ours = (".".join(map(str, version)) for version in (self.version, PROTOCOL_VERSION))
            message = f"it speaks version {theirs} of the protocol, and this node {ours}"
            return PeerError(message, code="protocol_version", hint="the older one of the two has to be updated")
        if self.clock is not None and abs(self.clock) > MAX_SKEW.total_seconds():
            hint = "nunet doctor says whose clock is wrong; set it by NTP, for example: sudo timedatectl set-ntp true"
            details = {"seconds": round(self.clock)}
            return PeerError(f"its clock is {clock_text(self.clock)}", code="clock_differs", hint=hint, details=details)
        return None

    def record(self) -> PeerRecord:
        """Return what is kept in the store."""
        addresses = tuple(format_address(*address) for address in self.addresses)
        return PeerRecord(
            self.peer_id, self.did, addresses, self.roles, self.topics, self.source, self.last_seen, self.useful_at
        )


def is_other_version(peer: Peer) -> bool:
    """Say whether a peer speaks another major version of the protocol; not where it is not known."""
    return peer.version is not None and peer.version[0] != PROTOCOL_VERSION[0]


def clock_text(seconds: float) -> str:
    """Return how a clock differs, in words: `10m ahead of this machine's`."""
    side = "ahead of" if seconds > 0 else "behind"
    return f"{quantities.format_duration(round(abs(seconds)))} {side} this machine's"


class Peers:
    """All known peers, by public key; bounded. Those that are kept are in the store, for a restarted node to dial."""

    def __init__(self, store: Store, own_key: bytes, *, persistent: bool = True) -> None:
        self._store, self._own_key, self._persistent = store, own_key, persistent
        self._peers: dict[bytes, Peer] = {}
        # the rows of peers that gave way, until the next change takes them out of the store
        self._dropped: set[str] = set()
        rows = store[PEERS].all() if persistent else ()
        known = [peer for peer in map(_from_record, rows) if peer is not None]
        strangers = sorted((p for p in known if not p.is_kept), key=lambda p: p.last_seen, reverse=True)
        # those of version 0.1, which kept everybody: they are known for as long as there is room
        for peer in [p for p in known if p.is_kept] + strangers[:MAX_STRANGERS]:
            self._peers[peer.public_key] = peer

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def get(self, public_key: bytes) -> Peer | None:
        """Return the peer with this key, or None."""
        return self._peers.get(public_key)

    def find(self, did: str) -> Peer | None:
        """Return the peer with this DID, or None."""
        return self._peers.get(key_from_did(did))

    def add(self, public_key: bytes, address: Address | None, source: str, *, host: str = "") -> Peer | None:
        """Note that a peer exists, and where; None for this node itself.

        An address that is none is left out: it may come from anybody.

        Args:
            public_key: the peer's key.
            address: where it is; of `mdns` a hint, else the word of the peer itself or of this node's operator.
            source: `static`, `mdns`, `relay` or `inbound`.
            host: the other end of the connection that proved who it is.
        """
        if public_key == self._own_key:
            return None
        if address is not None and not is_address(address):
            address = None
        peer = self._peers.get(public_key)
        if peer is None:
            place = neighbourhood(host or (address[0] if address else ""))
            if source != "static":
                self._make_room(place)
            peer = self._peers[public_key] = Peer(public_key, source=source, place=place)
        elif host:
            peer.place = neighbourhood(host)
        if source == "static" or peer.source == "inbound":
            peer.source = source
        if address is not None:
            self.note_address(peer, address, is_hint=source == "mdns")
        return peer

    @staticmethod
    def note_address(peer: Peer, address: Address, *, is_hint: bool = False) -> None:
        """Put an address before the others of a peer, and let it be dialled at once if it is another one."""
        known = peer.hints if is_hint else peer.addresses
        if known and known[0] == address:
            return
        is_new = address not in peer.to_try
        known[:] = [address, *(other for other in known if other != address)][:MAX_ADDRESSES]
        if is_new or not is_hint:
            peer.failures, peer.next_dial = 0, 0.0

    def _make_room(self, place: str) -> None:
        """Let a stranger that is not connected give way to another one where there are too many.

        Those that others told of and that were never reached go first; then one of the place that has most, so that who
        makes identities pushes out its own; of these the one that was not seen for longest.
        """
        if len(self._peers) < MAX_STRANGERS:
            return
        away = [peer for peer in self._peers.values() if not peer.connected and not peer.is_kept]
        if len(away) < MAX_STRANGERS:
            return
        told = [peer for peer in away if peer.is_strange]
        count = Counter(peer.place for peer in away)
        count[place] += 1
        # who was never seen sorts before every time
        self._drop(min(told or away, key=lambda p: (p.source != "relay", -count[p.place], p.last_seen)))

    def _drop(self, peer: Peer) -> None:
        self._peers.pop(peer.public_key, None)
        if peer.stored:
            self._dropped.add(peer.peer_id)

    async def save(self, peer: Peer) -> None:
        """Keep a peer in the store, if it is one to keep: a stranger who only said hello leaves nothing there."""
        if self._persistent and peer.is_kept:
            await self._write([peer])

    async def note_useful(self, *dids: str) -> None:
        """Note that peers are party or authority of a contract with this node: they are kept from now on."""
        due = self._became_useful(*dids)
        if due:
            await self._write(due)

    def keep_useful(self, t: Transaction, *dids: str) -> None:
        """Note the same as part of a change."""
        due = self._became_useful(*dids)
        if due:
            self._written(due)(t)

    def _became_useful(self, *dids: str) -> list[Peer]:
        """Note in memory who was of use; return those of whom the store has not heard that today."""
        now = quantities.utc_now()
        before = quantities.format_time(quantities.parse_time(now) - WRITE_EVERY)
        found = [peer for peer in (self.find(did) for did in dict.fromkeys(dids)) if peer is not None]
        due = [peer for peer in found if peer.useful_at < before]
        for peer in found:
            peer.useful_at = now
        kept = [p for p in self._peers.values() if p.is_kept] if due else []
        free = [p for p in kept if p.source != "static" and not p.connected]
        for peer in sorted(free, key=lambda p: p.useful_at)[: max(0, len(kept) - MAX_KEPT)]:
            self._drop(peer)
        return due if self._persistent else []

    async def forget_old(self) -> None:
        """Forget who was not seen for weeks, here and in the store; static peers stay."""
        now = quantities.now()
        long_ago, today = quantities.format_time(now - FORGET_AFTER), quantities.format_time(now - WRITE_EVERY)
        for peer in self:
            if peer.source != "static" and not peer.connected and max(peer.last_seen, peer.useful_at) < long_ago:
                self._drop(peer)
        if not self._persistent:
            return
        stored = {row.id: row.last_seen for row in self._store[PEERS].all()}
        self._dropped |= stored.keys() - {peer.peer_id for peer in self if peer.stored}
        kept = [peer for peer in self if peer.is_kept and peer.last_seen >= today]
        due = [peer for peer in kept if stored.get(peer.peer_id, "") < today]
        if due or self._dropped:
            await self._write(due)

    async def _write(self, peers: list[Peer]) -> None:
        await self._store.change(self._written(peers))

    def _written(self, peers: list[Peer]) -> Callable[[Transaction], None]:
        """Return the change that keeps peers, and removes those that gave way."""
        rows = [peer.record() for peer in peers]
        for peer in peers:
            peer.stored = True
        gone, self._dropped = self._dropped - {row.id for row in rows}, set()

        def change(t: Transaction) -> None:
            for row in rows:
                t[PEERS].put(row)
            for peer_id in gone:
                t[PEERS].remove(peer_id)

        return change

    async def remove(self, peer: Peer) -> None:
        """Forget a peer, here and in the store."""
        self._drop(peer)
        await self._write([])

    def seen(self, peer: Peer) -> None:
        """Note that a peer was heard just now."""
        peer.last_seen = quantities.utc_now()

    def to_dial(self) -> list[Peer]:
        """Return the peers that are not connected and whose back-off is over."""
        now = trio.current_time()
        return [p for p in self._peers.values() if not p.connected and p.to_try and p.next_dial <= now]

    def next_dial(self, dialling: set[bytes]) -> float:
        """Return the seconds until the next peer may be dialled, at most a minute; those in `dialling` do not count."""
        waiting = [
            peer.next_dial for peer in self._peers.values()
            if not peer.connected and peer.to_try and peer.public_key not in dialling
        ]  # fmt: skip
        return min(60.0, max(0.02, min(waiting, default=60.0 + trio.current_time()) - trio.current_time()))

    def failed(self, peer: Peer, *, is_wanted: bool = False) -> None:
        """Note a failed dial: the next one waits, twice as long each time, at most a minute.

        A stranger is forgotten after a few, unless somebody waits for it; one that others told of and that was never
        reached at the first: they tell again, mDNS not as soon.
        """
        peer.failures += 1
        attempts = ATTEMPTS if not peer.is_strange else 1 if peer.source == "relay" else MDNS_ATTEMPTS
        is_given_up = peer.failures >= attempts and (peer.is_strange or not is_wanted)
        if is_given_up and not peer.is_kept and not peer.connected:
            self._drop(peer)
        peer.next_dial = trio.current_time() + min(60.0, 0.25 * 2 ** min(peer.failures, 10))

    def resolve(self, text: str) -> Peer:
        """Return the known peer for a peer id, DID or unambiguous prefix of either; or for the end of its peer id.

        The end is what lists show, with an ellipsis before it.

        Raises:
            NotFoundError: none.
            UsageError: several.
        """
        end = text.removeprefix("…") if text.startswith("…") else ""
        found = [
            p for p in self._peers.values()
            if (text and (p.peer_id.startswith(text) or p.did.startswith(text))) or (end and p.peer_id.endswith(end))
        ]  # fmt: skip
        if not found:
            raise NotFoundError(
                f"unknown peer {text!r}", hint="see: nunet peer list; or: nunet peer add PEER@HOST:PORT"
            )
        if len(found) > 1:
            raise UsageError(f"peer {text!r} is ambiguous: {', '.join(p.peer_id for p in found[:4])}")
        return found[0]

    def with_role(self, role: str) -> list[Peer]:
        """Return the peers that say they act in a role, connected ones first."""
        return sorted((p for p in self._peers.values() if role in p.roles), key=lambda p: not p.connected)


def _from_record(row: PeerRecord) -> Peer | None:
    try:
        addresses = [parse_address(text) for text in row.addresses]
        peer = Peer(key_from_peer_id(row.id), addresses, source=row.source, last_seen=row.last_seen)
    except NunetError:
        return None
    peer.roles, peer.useful_at = row.roles, row.useful_at
    peer.reached, peer.stored = bool(peer.last_seen), True
    peer.place = neighbourhood(addresses[0][0]) if addresses else ""
    return peer
