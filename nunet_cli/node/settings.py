"""What the form of a setting does not say: whether a node can start with it."""

from __future__ import annotations

import socket
from typing import Any

from nunet_cli.config import Config
from nunet_cli.config_file import shown
from nunet_cli.errors import IdentityError, UsageError
from nunet_cli.network.addresses import parse_address, parse_peer
from nunet_cli.records.identifiers import did_from_key, key_from_did, key_from_peer_id


def check_settings(config: Config) -> None:
    """Refuse settings that no node starts with, or that name nobody.

    Raises:
        UsageError: the message begins with the key.
    """
    _address(config.network.listen)
    for text in config.network.peers:
        try:
            parse_peer(text)
        except UsageError as error:
            raise UsageError(f"network.peers: {error.message}", hint=error.hint) from None
    executors = config.executor
    for key, names in (
        ("contract_database", (config.contract_database,)), ("oracle", (config.oracle,)),
        ("executor.docker.trusted", executors.docker.trusted), ("executor.process.trusted", executors.process.trusted),
        *((f"kyc.verifiers.{name}", (did or "no DID",)) for name, did in config.kyc.verifiers.items()),
    ):  # fmt: skip
        for name in names:
            if name:
                _did(key, name)


def check_here(key: str, value: Any) -> None:
    """Refuse a host to listen on that this machine does not know; looked at where a person sets it, as it takes DNS.

    Raises:
        UsageError: the message begins with the key.
    """
    if key != "network.listen":
        return
    host, _, port = str(value).rpartition(":")
    try:
        socket.getaddrinfo(host.removeprefix("[").removesuffix("]"), port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError, OverflowError):
        # what is not even an address is refused with its form
        _address(str(value))
        hint = "write an address of this machine's; 0.0.0.0:PORT is all of them"
        raise UsageError(f"{key}: {value!r}: this machine knows no host {host!r}", hint=hint) from None


def waiting_for_restart(running: dict[str, Any], now: Config, roles: dict[str, str]) -> list[str]:
    """Return the keys that a running node has otherwise than they are configured by now.

    Args:
        running: the settings that the node says it has, as JSON.
        now: what is configured.
        roles: whom the node uses in each role; a choice that it has taken up already waits for nothing.
    """
    found = []
    for key, value in shown(now).items():
        plain = list(value) if isinstance(value, tuple) else value
        chosen = key in ("contract_database", "oracle") and plain and roles.get(key.replace("_", "-")) == plain
        if key in running and running[key] != plain and not chosen:
            found.append(key)
    return found


def _address(text: str) -> None:
    try:
        parse_address(text, least_port=0)
    except UsageError:
        raise UsageError(
            f"network.listen: {text!r}: expected HOST:PORT, for example 0.0.0.0:9000", hint="see: nunet config list"
        ) from None


def _did(key: str, text: str) -> None:
    try:
        key_from_did(text)
    except IdentityError as error:
        hint = "`nunet whoami` on its machine prints it"
        try:
            hint = f"its DID is {did_from_key(key_from_peer_id(text))}"
        except IdentityError:
            pass
        raise UsageError(f"{key}: {error.message}", hint=hint) from None
