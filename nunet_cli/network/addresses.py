"""Where peers are: the texts that name them, and which addresses count as one place."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from nunet_cli.errors import IdentityError, UsageError
from nunet_cli.records.identifiers import key_from_peer_id

Address = tuple[str, int]
# an IPv6 network is what one subscriber has: whoever has one address of it has them all (RFC 6177)
NETWORK_BITS = 64
# a host name of the letters, digits and hyphens that names have (RFC 1123), or underscores, as container names do
_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
                   r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?")  # fmt: skip
_NUMERIC = re.compile(r"[0-9A-Fa-f.:]{2,45}(%[0-9A-Za-z_.-]{1,15})?")
_PORT = re.compile(r"[0-9]{1,5}")


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


@lru_cache(4096)
def neighbourhood(host: str) -> str:
    """Return what is counted as one place for fairness: an IPv4 address, an IPv6 network, or a name as it is."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> (128 - NETWORK_BITS) << (128 - NETWORK_BITS)))
    return str(address)
