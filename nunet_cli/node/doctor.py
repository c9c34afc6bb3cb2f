"""Looking for what keeps a node from working: configuration, key, store, disk, clock, network, executors, peers."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import statistics
import struct
import subprocess
from pathlib import Path
from typing import Any, Literal

import psutil
import trio
from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.config import Config
from nunet_cli.config_file import from_environment, load
from nunet_cli.database.store import Store
from nunet_cli.errors import NunetError
from nunet_cli.executor.docker import DockerExecutor
from nunet_cli.executor.process import ProcessExecutor
from nunet_cli.network.addresses import parse_address
from nunet_cli.network.envelope import MAX_SKEW
from nunet_cli.network.identity import KEY_FILE, load_or_create
from nunet_cli.network.peers import clock_text
from nunet_cli.node.capability import CapabilityAccounting
from nunet_cli.node.monitor import Monitor
from nunet_cli.node.onboarding import kyc_fault
from nunet_cli.node.settings import check_settings, waiting_for_restart

LOW_DISK = 2**30
LOW_MEMORY = 2**28
PROBE_TIMEOUT = 10
MOST_NAMED = 8
MDNS_GROUP = "224.0.0.251"


class Finding(Struct, frozen=True):
    """What was looked at, how it is, and what to do about it."""

    check: str
    state: Literal["ok", "warning", "problem"]
    message: str
    hint: str = ""


def diagnose(home: Path, config_file: Path, status: dict[str, Any] | None, passphrase: str | None) -> list[Finding]:
    """Look at everything, and change nothing.

    Args:
        home: the node's folder.
        config_file: its configuration.
        status: what the running node says of itself, with its settings; None where none runs.
        passphrase: opens a sealed key.
    """
    found = [_home(home)]
    config: Config | None = None
    try:
        config = load(config_file, check=check_settings)
        found.append(_configuration(config, config_file, status))
    except NunetError as error:
        found.append(Finding("configuration", "problem", error.message, error.hint or "see: man 5 nunet-config"))
    key, did = _key(home, passphrase)
    found += [key, _store(home), *_kycs(home, did), *_machine(home), *_clock(status)]
    if config is not None:
        found += trio.run(_executors, config)
        found += _network(config, status)
    found += _peers(status) if status is not None else [
        Finding("node", "warning", "it does not run", "start it with: nunet node start")
    ]  # fmt: skip
    return found


def _configuration(config: Config, config_file: Path, status: dict[str, Any] | None) -> Finding:
    variables = sorted(from_environment(os.environ))
    said = str(config_file) if config_file.exists() else "all by default"
    said += f"; this environment sets {', '.join(variables)}" if variables else ""
    changed = waiting_for_restart((status or {}).get("settings", {}), config, (status or {}).get("known_roles", {}))
    if changed:
        said += f"; the running node has another {', '.join(changed)}"
        return Finding("configuration", "warning", said, "to take it up: nunet node stop && nunet node start")
    return Finding("configuration", "ok", said)


def _home(home: Path) -> Finding:
    if not home.exists():
        return Finding("home", "ok", f"{home} is made at the first start")
    if not os.access(home, os.W_OK):
        return Finding("home", "problem", f"{home} cannot be written", f"run: sudo chown -R $(id -un) {home}")
    if home.stat().st_mode & 0o077:
        return Finding("home", "warning", f"{home} can be read by others", f"run: chmod 700 {home}")
    return Finding("home", "ok", str(home))


def _key(home: Path, passphrase: str | None) -> tuple[Finding, str]:
    """Return how the key is, and its DID where it can be opened."""
    if not (home / KEY_FILE).exists():
        return Finding("key", "ok", "is made at the first start"), ""
    try:
        identity = load_or_create(home, passphrase)
        return Finding("key", "ok", identity.peer_id), identity.did
    except NunetError as error:
        return Finding("key", "problem", error.message, error.hint or "restore it from a copy"), ""


def _store(home: Path) -> Finding:
    path = home / "store.db"
    if not path.exists():
        return Finding("store", "ok", "is made at the first start")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            said = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        said = str(error)
    if said != "ok":
        return Finding("store", "problem", f"{path}: {said}", "move it away, or restore a copy")
    return Finding("store", "ok", f"{path}, {quantities.format_size(path.stat().st_size)}")


def _kycs(home: Path, did: str) -> list[Finding]:
    """Find statements of verifiers that count no more, and bare names, which never count."""
    if not did or not (home / "store.db").exists():
        return []
    try:
        with Store(home, read_only=True) as store:
            offered = CapabilityAccounting(store, Monitor(home)).get_registered_capability().kycs
    except NunetError:
        # what is wrong with the store is said already, and what is wrong with the offer by whoever asks for it
        return []
    faults = [kyc_fault(kyc, did) for kyc in offered]
    hint = "attach a new statement: nunet onboard --kyc FILE"
    return [Finding("kyc", "warning", fault, hint) for fault in faults if fault]


def _machine(home: Path) -> list[Finding]:
    folder = next(parent for parent in [home, *home.parents] if parent.exists())
    disk, memory = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    return [
        Finding(
            name, "warning" if free < low else "ok", f"{quantities.format_size(free)} free", hint if free < low else ""
        )
        for name, free, low, hint in (
            ("disk", disk, LOW_DISK, f"make room on the disk of {folder}"),
            ("memory", memory, LOW_MEMORY, "jobs are declined while others use it"),
        )
    ]


def _clock(status: dict[str, Any] | None) -> list[Finding]:
    """Compare this machine's clock with those of its peers: who is with most of them has the right time."""
    hint = "set it by NTP, for example: sudo timedatectl set-ntp true"
    clocks = (status or {}).get("clocks", {})
    most = MAX_SKEW.total_seconds()
    off = {peer: ahead for peer, ahead in clocks.items() if abs(ahead) > most}
    # the largest group of peers that agree with each other, beside those that agree with this machine
    groups = [[peer for peer, other in off.items() if abs(other - ahead) <= most] for ahead in off.values()]
    others, with_us = max(groups, key=len, default=[]), len(clocks) - len(off) + 1
    if len(others) > with_us:
        theirs = statistics.median(off[peer] for peer in others)
        said = f"wrong: the clocks of {len(others)} of {len(clocks)} peers are {clock_text(theirs)}, and agree"
        return [Finding("clock", "problem", said, f"it is this machine's; {hint}")]
    own = [_own_clock(hint)]
    if not off:
        return own
    whose = "which of them is wrong cannot be said from here; " if with_us <= len(others) else "on that machine: "
    return own + [
        Finding("clocks", "warning", f"the clock of {peer} is {clock_text(ahead)}", whose + hint)
        for peer, ahead in sorted(off.items())[:MOST_NAMED]
    ]


def _own_clock(hint: str) -> Finding:
    if shutil.which("timedatectl") is not None:
        done = subprocess.run(
            ["timedatectl", "show", "--property=NTPSynchronized", "--value"], capture_output=True, text=True,
            check=False, timeout=PROBE_TIMEOUT,
        )  # fmt: skip
        if done.stdout.strip() == "no":
            return Finding("clock", "warning", f"{quantities.utc_now()}, not set by NTP", hint)
    return Finding("clock", "ok", quantities.utc_now())


async def _executors(config: Config) -> list[Finding]:
    found = []
    with trio.move_on_after(PROBE_TIMEOUT):
        if config.executor.docker.enabled:
            probe = await DockerExecutor(config.executor.docker).probe()
            images = ", ".join(config.executor.docker.images)
            said = f"; images that strangers may run: {images or 'none'}" if probe.available else ""
            hint = "" if images else "to allow some: nunet config set executor.docker.images 'python:*'"
            hint = hint if probe.available else "install Docker Engine, and add yourself to the group docker"
            found.append(Finding("docker", "ok" if probe.available else "warning", probe.detail + said, hint))
    with trio.move_on_after(PROBE_TIMEOUT):
        if config.executor.process.enabled:
            sandboxed = await ProcessExecutor().try_sandbox()
            foreign = config.executor.process.foreign
            if sandboxed:
                found.append(Finding("sandbox", "ok", f"bubblewrap works; other people's commands: {foreign}"))
            else:
                state: Literal["warning", "problem"] = "problem" if foreign == "sandboxed" else "warning"
                hint = "install bubblewrap: sudo apt install bubblewrap"
                found.append(
                    Finding(
                        "sandbox", state, f"bubblewrap does not work here; other people's commands: {foreign}", hint
                    )
                )
    return found


def _network(config: Config, status: dict[str, Any] | None) -> list[Finding]:
    host, port = parse_address(config.network.listen, least_port=0)
    found = []
    if status is not None:
        listens = status["listen"]
        found.append(Finding("listening", "ok" if listens else "problem", listens or "the node has no network"))
    else:
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
            found.append(Finding("listening", "ok", f"{config.network.listen} is free"))
        except OSError as error:
            hint = "choose another: nunet config set network.listen HOST:PORT"
            found.append(Finding("listening", "problem", f"{config.network.listen}: {error.strerror}", hint))
    if host.startswith("127.") or host == "::1":
        hint = "for other machines: nunet config set network.listen 0.0.0.0:9000"
        found.append(Finding("firewall", "warning", "it listens on this machine only", hint))
    elif port == 0:
        hint = "behind a firewall choose one, and open it: nunet config set network.listen 0.0.0.0:9000"
        found.append(Finding("firewall", "ok", "each start takes another port", hint))
    else:
        found.append(Finding("firewall", "ok", f"others must reach TCP port {port}, and UDP port 5353 for mDNS"))
    if not config.network.discovery:
        found.append(Finding("mDNS", "ok", "turned off (network.discovery)"))
        return found
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            member = struct.pack("4sl", socket.inet_aton(MDNS_GROUP), socket.INADDR_ANY)
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        found.append(Finding("mDNS", "ok", "multicast works"))
    except OSError as error:
        hint = "there is no multicast here: nunet peer add PEER@HOST:PORT, or network.discovery = false"
        found.append(Finding("mDNS", "warning", f"multicast: {error.strerror}", hint))
    return found


def _peers(status: dict[str, Any]) -> list[Finding]:
    peers, roles = status["peers"], status.get("known_roles", {})
    found = [Finding("node", "ok", f"runs since {status['started_at'][:19]}, version {status['version']}")]
    hint = "on the other machine: nunet whoami; here: nunet peer add PEER@HOST:PORT"
    if peers["connected"]:
        found.append(Finding("peers", "ok", f"{peers['connected']} connected of {peers['known']} known"))
    else:
        found.append(Finding("peers", "warning", f"none connected of {peers['known']} known", hint))
    for role in ("contract-database", "oracle"):
        if roles.get(role):
            found.append(Finding(role, "ok", roles[role]))
        elif status["undecided"].get(role):
            hint = f"for paid work choose whose you trust: nunet config set {role.replace('-', '_')} DID"
            found.append(Finding(role, "warning", f"several: {', '.join(status['undecided'][role])}", hint))
        else:
            hint = f"no job can be contracted; start one: nunet node run --role {role}"
            found.append(Finding(role, "warning", "none is known", hint))
    return found
