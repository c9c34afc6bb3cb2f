"""Finding peers on the local network with mDNS (`_nunet._tcp.local.`).

What mDNS says is not believed: it only gives addresses to dial, and the handshake proves who answers there.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from nunet_cli.errors import IdentityError
from nunet_cli.network.identity import Identity, content_id, key_from_peer_id
from nunet_cli.network.peers import MAX_ADDRESSES, Address

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

log = logging.getLogger("nunet.discovery")

SERVICE = "_nunet._tcp.local."
LOOKUP_TIMEOUT_MS = 2000


def network_tag(network_id: bytes) -> str:
    """Return the short hash of the network identifier that tells one network's nodes from another's."""
    return content_id(b"nunet-mdns\n" + network_id)[-16:]


def local_addresses(host: str) -> list[str]:
    """Return the addresses to announce for a listening host: itself, or all of the machine's when it is a wildcard."""
    if host not in ("0.0.0.0", "::", ""):
        return [host]
    import ifaddr

    found = [str(ip.ip) for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]
    outside = [address for address in found if not address.startswith(("127.", "169.254."))]
    return outside or ["127.0.0.1"]


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

    async def run(self, roles: tuple[str, ...], announce: bool = True) -> None:
        """Announce and watch until cancelled; a machine without multicast is no error, only a warning."""
        self._token = trio.lowlevel.current_trio_token()
        try:
            await trio.to_thread.run_sync(self._open, roles, announce, limiter=self._limiter)
            await trio.sleep_forever()
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
        wildcard = host in ("0.0.0.0", "::", "")
        self._zeroconf = Zeroconf(interfaces=InterfaceChoice.All if wildcard else [host], ip_version=IPVersion.V4Only)
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
            addresses=[socket.inet_aton(address) for address in local_addresses(host)][:MAX_ADDRESSES],
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
        from zeroconf import ServiceStateChange

        if state_change is ServiceStateChange.Removed:
            return
        try:
            info = zeroconf.get_service_info(service_type, name, LOOKUP_TIMEOUT_MS)
        except Exception as error:
            # this thread is zeroconf's: while it closes, or on a machine that is too busy, a look-up fails in many ways
            log.debug("mDNS name %s could not be looked up: %r", name, error)
            return
        if info is None or info.port is None:
            return
        properties = info.decoded_properties
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
            try:
                token.run_sync_soon(self._on_peer, key, (address, info.port))
            except trio.RunFinishedError:
                return
