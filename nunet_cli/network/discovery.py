"""Finding peers on the local network with mDNS (`_nunet._tcp.local.`).

What mDNS says is not believed: it only gives addresses to dial, and the handshake proves who answers there. Anybody can
name nodes that are not there, too: names are looked up side by side, a bounded number of them, so that those for which
nobody answers do not keep the others waiting.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING

import trio

from nunet_cli.errors import IdentityError
from nunet_cli.network.addresses import Address, is_wildcard
from nunet_cli.network.identity import Identity
from nunet_cli.network.peers import MAX_ADDRESSES
from nunet_cli.records.identifiers import content_id, key_from_peer_id

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

log = logging.getLogger("nunet.discovery")

SERVICE = "_nunet._tcp.local."
LOOKUP_TIMEOUT_MS = 1000
LOOKUPS, WAITING_NAMES = 16, 256
VIRTUAL = ("docker", "br-", "veth", "virbr", "vmnet", "cni", "lxc", "lxd")


def network_tag(network_id: bytes) -> str:
    """Return the short hash of the network identifier that tells one network's nodes from another's."""
    return content_id(b"nunet-mdns\n" + network_id)[-16:]


def local_addresses(host: str) -> list[str]:
    """Return where others reach a listening host, best first: itself, or all of the machine's when it is a wildcard.

    The best is the one that the machine itself would speak from to the world; those of bridges for containers and
    virtual machines, which others rarely reach, come last. Of a machine without a network there is only loopback.
    """
    if not is_wildcard(host):
        return [host]
    import ifaddr

    six = ":" in host
    found: dict[str, bool] = {}
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            address = ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0])
            if (address.version == 6) == six and not address.is_loopback and not address.is_link_local:
                found[str(address)] = adapter.name.startswith(VIRTUAL)
    best = _outgoing(six=six)
    return sorted(found, key=lambda address: (address != best, found[address])) or ["::1" if six else "127.0.0.1"]


def _outgoing(*, six: bool) -> str:
    """Return the address that packets to the world leave from; empty where there is no way out. Nothing is sent."""
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("2001:db8::1" if six else "192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


class Discovery:
    """Announces this node and watches for others.

    Args:
        identity: this node's key.
        network_id: only nodes of the same network are of interest.
        address: where this node listens.
        on_peer: called in the node's thread with a public key and an address.
    """

    def __init__(
        self, identity: Identity, network_id: bytes, address: Address, on_peer: Callable[[bytes, Address], None]
    ) -> None:
        self._identity, self._tag, self._address, self._on_peer = identity, network_tag(network_id), address, on_peer
        self._limiter = trio.CapacityLimiter(2)
        self._zeroconf: Zeroconf | None = None
        self._info: ServiceInfo | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._names, self._waiting = trio.open_memory_channel[str](WAITING_NAMES)

    async def run(self, roles: tuple[str, ...], announce: bool = True) -> None:
        """Announce and watch until cancelled; a machine without multicast is no error, only a warning."""
        self._token = trio.lowlevel.current_trio_token()
        limiter = trio.CapacityLimiter(LOOKUPS)
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(LOOKUPS):
                    nursery.start_soon(self._look_up_forever, limiter)
                try:
                    await trio.to_thread.run_sync(self._open, roles, announce, limiter=self._limiter)
                except OSError as error:
                    log.warning("mDNS does not work here (%s); use: nunet peer add", error)
                await trio.sleep_forever()
        finally:
            self._token = None
            with trio.move_on_after(3) as patience:
                patience.shield = True
                await trio.to_thread.run_sync(self._close, limiter=self._limiter, abandon_on_cancel=True)

    async def update(self, roles: tuple[str, ...]) -> None:
        """Announce changed roles."""
        if self._zeroconf is not None and self._info is not None:
            await trio.to_thread.run_sync(self._announce_again, roles, limiter=self._limiter)

    def _open(self, roles: tuple[str, ...], announce: bool) -> None:
        from zeroconf import InterfaceChoice, IPVersion, NonUniqueNameException, ServiceBrowser, Zeroconf

        host = self._address[0]
        self._zeroconf = Zeroconf(
            interfaces=InterfaceChoice.All if is_wildcard(host) else [host], ip_version=IPVersion.V4Only
        )
        ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._on_change])
        if announce:
            self._info = self._make_info(roles)
            try:
                self._zeroconf.register_service(self._info, cooperating_responders=True)
            except NonUniqueNameException:
                log.warning("another node on this network announces this node's own key")

    def _make_info(self, roles: tuple[str, ...]) -> ServiceInfo:
        from zeroconf import ServiceInfo

        peer_id = self._identity.peer_id
        host, port = self._address
        return ServiceInfo(
            SERVICE, f"{peer_id}.{SERVICE}", port=port, server=f"{peer_id[-24:].lower()}.local.",
            addresses=[ip_address(address).packed for address in local_addresses(host)][:MAX_ADDRESSES],
            properties={"id": peer_id, "v": "1", "net": self._tag, "roles": ",".join(roles)},
        )  # fmt: skip

    def _announce_again(self, roles: tuple[str, ...]) -> None:
        assert self._zeroconf is not None
        self._info = self._make_info(roles)
        self._zeroconf.update_service(self._info)

    def _close(self) -> None:
        if self._zeroconf is not None:
            if self._info is not None:
                self._zeroconf.unregister_service(self._info)
            self._zeroconf.close()

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: object) -> None:
        """Take a name that came or changed, in zeroconf's thread, which must not be kept."""
        from zeroconf import ServiceInfo, ServiceStateChange

        token = self._token
        if state_change is ServiceStateChange.Removed or token is None:
            return
        info = ServiceInfo(service_type, name)
        # a node says with its name where it is; only a name alone has to be asked for
        if info.load_from_cache(zeroconf):
            self._found(info)
            return
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(self._wait_in_line, name)

    def _wait_in_line(self, name: str) -> None:
        # a name that finds no room is forgotten; it comes again when its node says more than its name
        with contextlib.suppress(trio.WouldBlock):
            self._names.send_nowait(name)

    async def _look_up_forever(self, limiter: trio.CapacityLimiter) -> None:
        async with self._waiting.clone() as names:
            async for name in names:
                await trio.to_thread.run_sync(self._look_up, name, limiter=limiter, abandon_on_cancel=True)

    def _look_up(self, name: str) -> None:
        from zeroconf import ServiceInfo

        zeroconf, info = self._zeroconf, ServiceInfo(SERVICE, name)
        try:
            if zeroconf is not None and info.request(zeroconf, LOOKUP_TIMEOUT_MS):
                self._found(info)
        except Exception as error:
            # while zeroconf closes, or on a machine that is too busy, a look-up fails in many ways
            log.debug("mDNS name %s could not be looked up: %r", name, error)

    def _found(self, info: ServiceInfo) -> None:
        """Hand on what a look-up found, from whatever thread."""
        if info.port is None:
            return
        name, properties = info.name, info.decoded_properties
        if properties.get("net") != self._tag:
            return
        try:
            key = key_from_peer_id(properties.get("id") or "")
        except IdentityError:
            log.debug("mDNS name %s carries no peer id", name)
            return
        token = self._token
        if token is None:
            return
        for address in info.parsed_addresses()[:MAX_ADDRESSES]:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._on_peer, key, (address, info.port))
