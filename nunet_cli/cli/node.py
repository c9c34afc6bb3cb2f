"""`nunet node`: running the node as a service."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nunet_cli.cli.output import Format, OutputOption, dump, note
from nunet_cli.cli.state import STATE, passphrase
from nunet_cli.errors import NodeError, UsageError


class LogFormat(StrEnum):
    """How to log."""

    auto = "auto"
    text = "text"
    json = "json"
    journal = "journal"


app = typer.Typer()
LOG_FILE = "node.log"
START_SECONDS = 30.0
STOP_SECONDS = 30.0
KNOWN_ROLES = ("contract-database", "oracle", "requester")
RoleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--role",
        metavar="ROLE",
        help="Also act as contract-database or oracle, also from now on; may be repeated. requester gives both up.",
    ),
]


def _roles(role: list[str] | None) -> tuple[str, ...]:
    roles = tuple(dict.fromkeys(role or ()))
    for name in roles:
        if name not in KNOWN_ROLES:
            raise UsageError(f"--role: unknown role {name!r}", hint=f"one of {', '.join(KNOWN_ROLES)}")
    if "requester" in roles and len(roles) > 1:
        raise UsageError("--role requester gives the other roles up", hint="leave it out: every node is a requester")
    return roles


@app.command("run")
def run(
    role: RoleOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log everything.")] = False,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", help="auto is text, or what journald reads where it listens.")
    ] = LogFormat.auto,
) -> None:
    """Run the node in the foreground, until Ctrl-C."""
    import trio

    from nunet_cli.api.embedded import only
    from nunet_cli.api.server import run_node
    from nunet_cli.cli.logs import set_up
    from nunet_cli.network.addresses import format_address
    from nunet_cli.node.node import Node
    from nunet_cli.node.opening import wait_for_stop

    roles, config = _roles(role), STATE.config()
    set_up(log_format, verbose=verbose)

    def ready(node: Node) -> None:
        note(f"node {node.identity.peer_id}")
        transport = node.ctx.transport
        note(f"listening on {format_address(transport.host, transport.port)}, network {config.network.name!r}")
        acting = ", ".join(node.ctx.topics.roles) or "requester only; offer this machine with: nunet onboard"
        note(f"acting as {acting}")
        note("stop with Ctrl-C")

    async def main() -> str:
        reason = await run_node(
            STATE.folder, config, roles=roles, remember=True, passphrase=passphrase(), ready=ready, until=wait_for_stop,
            config_file=STATE.config_file,
        )  # fmt: skip
        return str(reason)

    try:
        reason = trio.run(main)
    except BaseExceptionGroup as group:
        raise only(group) from None
    note(f"stopped ({reason})")


@app.command("start")
def start(role: RoleOption = None) -> None:
    """Start the node in the background; its log is in its home."""
    roles = _roles(role)
    if STATE.running() is not None:
        raise NodeError(f"a node runs already in {STATE.folder}", code="home_in_use", hint="see: nunet node status")
    STATE.config()
    home = STATE.folder
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", "nunet_cli"]
    if STATE.home is not None:
        command += ["--home", str(home)]
    command += ["node", "run", *(part for name in roles for part in ("--role", name))]
    with (home / LOG_FILE).open("ab") as log:
        size = log.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    end = time.monotonic() + START_SECONDS
    while STATE.running() is None:
        if process.poll() is not None or time.monotonic() > end:
            text = (home / LOG_FILE).read_bytes()[size:].decode(errors="replace").strip()
            raise NodeError(f"the node did not start: {text[-2000:]}", hint="see: nunet node logs")
        time.sleep(0.05)
    typer.echo(f"the node runs (pid {process.pid}); its log: {home / LOG_FILE}")


@app.command("install-service")
def install_service(
    role: RoleOption = None,
    show: Annotated[bool, typer.Option("--print", help="Print the unit, and write nothing.")] = False,
) -> None:
    """Write a systemd user unit that runs this node whenever this user's services run."""
    roles = _roles(role)
    STATE.config()
    text = unit(roles)
    if show:
        typer.echo(text, nl=False)
        return
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = settings / "systemd" / "user" / "nunet.service"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="print it instead: --print") from None
    typer.echo(path)
    note("start it:      systemctl --user daemon-reload && systemctl --user enable --now nunet")
    note("without login: sudo loginctl enable-linger $USER")
    note("its log:       journalctl --user -u nunet -f")


def unit(roles: tuple[str, ...]) -> str:
    """Return the systemd unit for the node of these options."""

    def quoted(text: str) -> str:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
        return f'"{escaped}"'

    words = [sys.executable, "-m", "nunet_cli", *(["--home", str(STATE.folder)] if STATE.home is not None else [])]
    words += ["node", "run", *(part for name in roles for part in ("--role", name))]
    return f"""[Unit]
Description=nunet node
Documentation=man:nunet(1) man:nunet-node(1)
Wants=network-online.target
After=network-online.target docker.service

[Service]
Type=exec
ExecStart={" ".join(map(quoted, words))}
Restart=on-failure
RestartSec=5
# a node that stops ends its processes, tells its peers and closes its store
TimeoutStopSec=60
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""


@app.command("stop")
def stop() -> None:
    """Stop the running node; jobs in containers go on and are found again."""
    client = STATE.running()
    if client is None:
        raise NodeError(f"no node runs in {STATE.folder}")
    client.post("/stop")
    end = time.monotonic() + STOP_SECONDS
    while client.answers() or _owner_alive():
        if time.monotonic() > end:
            raise NodeError("the node does not stop", hint="see: nunet node logs")
        time.sleep(0.05)
    typer.echo("the node has stopped")


def _owner_alive() -> bool:
    from nunet_cli.database.store import lock_owner

    owner = lock_owner(STATE.folder)
    try:
        os.kill(owner["pid"], 0)
    except (KeyError, ProcessLookupError, PermissionError):
        return False
    return True


@app.command("status")
def status(output: OutputOption = Format.table) -> None:
    """Say whether the node runs; exit code 3 when it does not."""
    client = STATE.running()
    if client is None:
        if output is not Format.table:
            dump({"running": False}, output)
        raise NodeError(f"no node runs in {STATE.folder}", hint="start it with: nunet node start")
    document = {"running": True, **client.get("/status")}
    if output is not Format.table:
        dump(document, output)
    else:
        peers = document["peers"]
        since = document["started_at"][:19].replace("T", " ")
        roles = ", ".join(document["roles"]) or "requester"
        typer.echo(f"running since {since} UTC (pid {document['pid']}): {roles}")
        typer.echo(f"listening on {document['listen']}, {peers['connected']} of {peers['known']} peers connected")


@app.command("logs")
def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many lines from the end.", min=0)] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
) -> None:
    """Print the log of a node that was started with `nunet node start`."""
    path: Path = STATE.folder / LOG_FILE
    if not path.exists():
        raise UsageError(f"there is no log {path}", hint="a node started with `nunet node run` logs to its terminal")
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in deque(file, maxlen=lines):
            typer.echo(line, nl=False)
        while follow:
            line = file.readline()
            if line:
                typer.echo(line, nl=False)
            else:
                time.sleep(0.2)


@app.command("indices")
def indices(output: OutputOption = Format.table) -> None:
    """Show the node's indices of activity, and prove that the event log alone gives the same."""
    from nunet_cli.cli.output import fields
    from nunet_cli.cli.state import connect

    with connect(read_only=True) as client:
        found = client.get("/indices")
    if output is Format.table:
        fields({name.replace("_", " "): count for name, count in found["sizes"].items()})
        note("the event log gives the same" if not found["differences"] else "the event log gives something else")
    else:
        dump(found, output)
    if found["differences"]:
        first = found["differences"][0]
        raise NodeError(
            f"{len(found['differences'])} entries differ, the first: {first['index']} {first['id']}:"
            f" {first['tables']} in the tables, {first['events']} by the events",
            code="indices_differ",
        )
