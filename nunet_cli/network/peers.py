"""The peers that a node knows: who they are, where they listen, what they do, and how far away they are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import trio

from nunet_cli import units
from nunet_cli.database.store import Store
from nunet_cli.errors import IdentityError, NotFoundError, NunetError, UsageError
from nunet_cli.records.identifiers import did_from_key, key_from_did, key_from_peer_id, peer_id_from_key
from nunet_cli.records.messaging import PEERS, PeerRecord

MAX_PEERS = 10_000
MAX_ADDRESSES = 8
MDNS_ATTEMPTS = 5
Address = tuple[str, int]
# a host name of the letters, digits and hyphens that names have (RFC 1123), or underscores, as container names do
_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
                   r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?")  # fmt: skip
_NUMERIC = re.compile(r"[0-9A-Fa-f.:]{2,45}(%[0-9A-Za-z_.-]{1,15})?")
_PORT = re.compile(r"[0-9]{1,5}")


@dataclass
class Peer:
    """One known peer; `rtt` is the measured round-trip time in seconds, `source` how it became known."""

    public_key: bytes
    addresses: list[Address] = field(default_factory=list)
    roles: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    source: str = "inbound"
    connected: bool = False
    rtt: float | None = None
    last_seen: str = ""
    failures: int = 0
    next_dial: float = 0.0
    introduced: bool = False
    reached: bool = False

    @property
    def is_strange(self) -> bool:
        """Whether others told of it, and it was never reached: there may be no such node."""
        return self.source in ("relay", "mdns") and not self.reached

    @property
    def did(self) -> str:
        """The peer's DID."""
        return did_from_key(self.public_key)

    @property
    def peer_id(self) -> str:
        """The peer's libp2p peer id."""
        return peer_id_from_key(self.public_key)

    def record(self) -> PeerRecord:
        """Return what is kept in the store."""
        addresses = tuple(format_address(*address) for address in self.addresses)
        return PeerRecord(self.peer_id, self.did, addresses, self.roles, self.topics, self.source, self.last_seen)


def parse_peer(text: str) -> tuple[bytes, Address]:
    """Return public key and address for `PEER@HOST:PORT`.

    Raises:
        UsageError: another form, or a port out of range.
    """
    name, at, address = text.strip().partition("@")
    if not at:
        raise UsageError(f"not a peer: {text!r}", hint="write PEER_ID@HOST:PORT; `nunet whoami` prints a node's own")
    try:
        key, (host, port) = key_from_peer_id(name), parse_address(address, least_port=0)
    except IdentityError as error:
        raise UsageError(error.message, hint=error.hint) from None
    if is_wildcard(host) or port == 0:
        hint = "it says where a node listens; `nunet whoami` on its machine prints the addresses that others can reach"
        raise UsageError(f"nobody can be reached at {address}", hint=hint)
    return key, (host, port)


def is_wildcard(host: str) -> bool:
    """Say whether a host stands for all interfaces of the machine that listens, and so for no machine to dial."""
    return host in ("", "0.0.0.0", "0") or (":" in host and not host.strip("0:"))


def format_address(host: str, port: int) -> str:
    """Return `HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str, *, least_port: int = 1) -> Address:
    """Return host and port for `HOST:PORT`, with brackets around an IPv6 address.

    Args:
        text: what a user or a peer wrote.
        least_port: 0 for where to listen, where that takes a free one.

    Raises:
        UsageError: another form, a host that is neither an IP address nor a host name, or a port out of range.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not _PORT.fullmatch(port) or not is_address((host, int(port)), least_port):
        raise UsageError(f"not an address: {text[:300]!r}", hint="write HOST:PORT")
    return host, int(port)


def is_address(address: Address, least_port: int = 1) -> bool:
    """Say whether an address is of a form that can be dialled: an IP address or a legal host name, and a port."""
    host, port = address
    if not least_port <= port <= 65535:
        return False
    if _NUMERIC.fullmatch(host):
        try:
            ip_address(host)
            return True
        except ValueError:
            pass
    return _NAME.fullmatch(host) is not None


class Peers:
    """All known peers, by public key; bounded, and kept in the store so that a restarted node knows whom to dial."""

    def __init__(self, store: Store, own_key: bytes, *, persistent: bool = True) -> None:
        self._store, self._own_key, self._persistent = store, own_key, persistent
        self._peers: dict[bytes, Peer] = {}
        for row in store[PEERS].all() if persistent else ():
            try:
                addresses = [parse_address(text) for text in row.addresses]
                peer = Peer(key_from_peer_id(row.id), addresses, source=row.source, last_seen=row.last_seen)
            except NunetError:
                continue
            peer.roles = row.roles
            peer.reached = bool(peer.last_seen)
            self._peers[peer.public_key] = peer

    def __iter__(self) -> Any:
        return iter(list(self._peers.values()))

    def get(self, public_key: bytes) -> Peer | None:
        """Return the peer with this key, or None."""
        return self._peers.get(public_key)

    def find(self, did: str) -> Peer | None:
        """Return the peer with this DID, or None."""
        return self._peers.get(key_from_did(did))

    def add(self, public_key: bytes, address: Address | None, source: str) -> Peer | None:
        """Note that a peer exists, and where; None for this node itself, or when too many are known.

        An address that is none is left out: it may come from anybody.
        """
        if public_key == self._own_key:
            return None
        if address is not None and not is_address(address):
            address = None
        peer = self._peers.get(public_key)
        if peer is None:
            if len(self._peers) >= MAX_PEERS and not self._forget_one():
                return None
            peer = self._peers[public_key] = Peer(public_key, source=source)
        if source == "static" or peer.source == "inbound":
            peer.source = source
        if address is not None and (not peer.addresses or peer.addresses[0] != address):
            peer.addresses = [address, *(known for known in peer.addresses if known != address)][:MAX_ADDRESSES]
            peer.failures, peer.next_dial = 0, 0.0
        return peer

    def _forget_one(self) -> bool:
        for key, peer in self._peers.items():
            if not peer.connected and peer.source != "static":
                del self._peers[key]
                return True
        return False

    async def save(self, peer: Peer) -> None:
        """Keep a peer in the store."""
        record = peer.record()
        if self._persistent:
            await self._store.change(lambda t: t[PEERS].put(record))

    async def remove(self, peer: Peer) -> None:
        """Forget a peer, here and in the store."""
        self._peers.pop(peer.public_key, None)
        await self._store.change(lambda t: t[PEERS].remove(peer.peer_id))

    def seen(self, peer: Peer) -> None:
        """Note that a peer was heard just now."""
        peer.last_seen = units.utc_now()

    def to_dial(self) -> list[Peer]:
        """Return the peers that are not connected and whose back-off is over."""
        now = trio.current_time()
        return [p for p in self._peers.values() if not p.connected and p.addresses and p.next_dial <= now]

    def next_dial(self, dialling: set[bytes]) -> float:
        """Return the seconds until the next peer may be dialled, at most a minute; those in `dialling` do not count."""
        waiting = [
            peer.next_dial for peer in self._peers.values()
            if not peer.connected and peer.addresses and peer.public_key not in dialling
        ]  # fmt: skip
        return min(60.0, max(0.02, min(waiting, default=60.0 + trio.current_time()) - trio.current_time()))

    def failed(self, peer: Peer) -> None:
        """Note a failed dial: the next one waits, twice as long each time, at most a minute.

        A peer that others told of is forgotten if it was never reached: they tell again, mDNS not as soon.
        """
        peer.failures += 1
        if peer.is_strange and peer.failures >= (1 if peer.source == "relay" else MDNS_ATTEMPTS):
            self._peers.pop(peer.public_key, None)
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
