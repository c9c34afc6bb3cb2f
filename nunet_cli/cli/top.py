"""`nunet top`: peers, capability, allocations, jobs and money, live."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nunet_cli.cli.output import Format, OutputOption, clean, console, dump, id_text, short
from nunet_cli.cli.overview import money, offer
from nunet_cli.cli.state import STATE
from nunet_cli.errors import NodeError
from nunet_cli.quantities import format_cores, format_size, parse_duration

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from nunet_cli.api.client import ApiClient

BAR, ROWS, MOST = 20, 8, 100


def top(
    interval: Annotated[
        str, typer.Option("--interval", help="How often it looks, for example 5s.", metavar="TIME")
    ] = "1s",
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    output: OutputOption = Format.table,
) -> None:
    """Show peers, capability used and free, allocations, jobs and money of the running node, live."""
    seconds = parse_duration(interval)
    client = STATE.running()
    if client is None:
        raise NodeError(f"no node runs in {STATE.folder}", hint="start it with: nunet node start")
    if output is not Format.table:
        while True:
            dump(look(client), Format.jsonl if not once else output)
            sys.stdout.flush()
            if once:
                return
            time.sleep(seconds)
    if once or not sys.stdout.isatty():
        _print(look(client))
        while not once:
            time.sleep(seconds)
            _print(look(client))
        return
    from rich.live import Live

    with Live(screen(look(client)), console=console(), screen=True, auto_refresh=False) as view:
        while True:
            time.sleep(seconds)
            view.update(screen(look(client)), refresh=True)


def look(client: ApiClient) -> dict[str, Any]:
    """Return everything that is shown, in one document."""

    def latest(path: str, count: int, state: str) -> list[dict[str, Any]]:
        return client.page(path, limit=count, newest=True, state=state).rows[::-1]

    ended = latest("/jobs", ROWS, "ended")
    return {
        "status": {"running": True, **client.get("/status")}, "peers": client.page("/peers", limit=MOST).rows,
        "capability": client.get("/capability"), "allocations": latest("/allocations", MOST, "open"),
        "jobs": [*latest("/jobs", 2 * ROWS - len(ended), "open"), *ended],
    }  # fmt: skip


def _print(document: dict[str, Any]) -> None:
    """Print a look as plain text."""
    from rich.console import Console

    Console(width=120, no_color=True, highlight=False, force_terminal=False).print(screen(document))


def screen(document: dict[str, Any]) -> Group:
    """Return a look as rich shows it."""
    from rich.console import Group
    from rich.text import Text

    status, capability = document["status"], document["capability"]
    peers = status["peers"]
    machine = status["machine"]
    parts: list[Any] = [
        Text.assemble(("nunet ", "bold"), f"{short(status['peer_id'])} in {status['network']}, ",
                      f"{peers['connected']} peers connected; ", f"machine {machine['cpu_load']:.0%} busy, ",
                      f"{format_size(machine['memory_free'])} of memory free"),
        Text(f"offers {offer(status)}; {money(status)}"),
    ]  # fmt: skip
    if capability["onboarded"]:
        parts += [Text(), *_bars(capability)]
    parts += _section(
        "PEERS", ("PEER", "RTT", "ROLES", "ADDRESS"),
        [[short(row["peer_id"]), "-" if row["rtt"] is None else f"{row['rtt']} ms", ", ".join(row["roles"]) or "-",
          row["addresses"][0] if row["addresses"] else "-"] for row in document["peers"] if row["connected"]][:ROWS],
    )  # fmt: skip
    parts += _section(
        "ALLOCATIONS", ("ALLOCATION", "FOR", "STATE", "CPU", "MEMORY"),
        [[id_text(row["id"]), short(row["requester"]), row["state"], *_used(row["usage"] or {})]
         for row in document["allocations"]][:ROWS],
    )  # fmt: skip
    parts += _section(
        "JOBS", ("JOB", "NAME", "STATE", "PAID"),
        [[id_text(row["id"]), row["name"], row["state"], row["paid"] or ""] for row in document["jobs"]],
    )  # fmt: skip
    return Group(*parts)


def _used(usage: dict[str, Any]) -> tuple[str, str]:
    return f"{usage.get('cpu_seconds', 0):.1f} s", format_size(usage.get("max_memory", 0))


def _section(title: str, headers: tuple[str, ...], rows: list[list[str]]) -> list[Table | Text]:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return [Text(), Text(f"{title.lower()}: none", "dim")]
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        grid.add_column(header, no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(clean(str(cell))) for cell in row))
    return [Text(), grid]


def _bars(capability: dict[str, Any]) -> list[Text]:
    from rich.text import Text

    whole, left = capability["registered"]["resources"], capability["available"]["resources"]
    rows: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("cpu", whole["cpu"]["cores"], left["cpu"]["cores"], format_cores),
        ("memory", whole["memory"], left["memory"], lambda value: format_size(int(value))),
        ("disk", whole["disk"], left["disk"], lambda value: format_size(int(value))),
    ]
    found = []
    for name, most, free, write in rows:
        taken = most - free
        filled = round(BAR * taken / most) if most else 0
        line = Text(f"{name:<7} ").append("█" * filled, "cyan").append("░" * (BAR - filled), "dim")
        found.append(line.append(f"  {write(taken)} of {write(most)}"))
    return found
