"""What the form of a setting does not say: whether a node can start with it."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from msgspec import Struct

from nunet_cli.config import Config
from nunet_cli.config_file import (
    check_key,
    from_environment,
    get,
    keys,
    load,
    parse_value,
    set_in_file,
    shown,
    shown_value,
    split,
)
from nunet_cli.errors import IdentityError, StateError, UsageError
from nunet_cli.network.addresses import parse_address, parse_peer
from nunet_cli.records.identifiers import did_from_key, key_from_did, key_from_peer_id
from nunet_cli.threads import Threads

# what a running node takes up at once: it is read wherever it counts, for what begins from then on; of all the rest a
# part of the node has made something at its start (a socket, an executor, a window that others rely on)
LIVE = frozenset(
    {
        "default_orchestration_type", "default_search_timeout", "pull_interval", "lock_on_bid", "lock_lease",
        "bid_timeout", "contract_database", "oracle", "executor.docker.enabled", "executor.docker.images",
        "executor.docker.trusted", "executor.docker.pull", "executor.docker.max_pids", "executor.process.foreign",
        "executor.process.trusted", "registry.admission", "registry.opening_balance", "kyc.verifiers",
        *(key for key in keys() if key.startswith(("limits.", "retention."))),
    }
    - {"limits.settlement_window"}
)  # fmt: skip


class Setting(Struct, frozen=True):
    """What became of a setting: `in_force` says whether the running node goes by it, `reason` why it does not yet."""

    key: str
    value: Any
    in_force: bool
    reason: str = ""


class Settings:
    """A running node's settings, which change while it runs.

    Args:
        running: what the node goes by; it is changed in place, and its parts read it wherever it counts.
        path: the configuration file, or None where there is none.
        threads: where the file is written.
        changed: what follows once the node goes by another value of a key.
    """

    def __init__(
        self, running: Config, path: Path | None, threads: Threads, changed: Callable[[str], Awaitable[None]]
    ) -> None:
        self._running, self._path, self._threads, self._changed = running, path, threads, changed
        self._lock = trio.Lock()

    async def change(self, key: str, value: Any) -> Setting:
        """Set a key in the file, and in the node where it can take it up as it runs (first seed: changed by API).

        Args:
            key: the dotted key.
            value: what it has in the file, or the text that a person writes for that.

        Raises:
            UsageError: unknown key, or a value that does not validate; nothing is changed.
            StateError: the node has no file.
        """
        check_key(key)
        if self._path is None:
            raise StateError("this node was started without a configuration file", code="no_config_file")
        # one at a time: each reads the file that the one before wrote
        async with self._lock:
            now = await self._threads.run(_write, self._path, key, value)
            table = split(key)[0]
            wanted = get(now, table)
            variable = next((name for name, named in from_environment(os.environ).items() if named == table), "")
            if table in LIVE and not variable and get(self._running, table) != wanted:
                put_in_force(self._running, table, wanted)
                await self._changed(table)
        if variable:
            return Setting(key, shown_value(now, key), False, f"{variable} in the node's environment is what counts")
        in_force = get(self._running, table) == wanted
        reason = "" if in_force else "the running node takes this up when it is restarted"
        return Setting(key, shown_value(now, key), in_force, reason)


def _write(path: Path, key: str, value: Any) -> Config:
    """Set a key in the file; return what is configured then."""
    parsed = parse_value(key, value) if isinstance(value, str) else value
    check_here(key, parsed)
    set_in_file(path, key, parsed, check_settings)
    return load(path, check=check_settings)


def put_in_force(running: Config, key: str, value: Any) -> None:
    """Let a node go by another value of a key from now on."""
    *sections, name = key.split(".")
    part: Any = running
    for section in sections:
        part = getattr(part, section)
    setattr(part, name, value)


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
