"""`nunet demo`: a market of five providers doing ten jobs, live."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nunet_cli.cli.output import Format, OutputOption, console, dump, note
from nunet_cli.errors import NodeError

if TYPE_CHECKING:
    from rich.console import Group

    from nunet_cli.node.demo import Demo

SECONDS = 120
PAUSE = 1.0
MARKS = {"settled": "green", "failed": "red", "expired": "yellow", "running": "cyan"}
BAR = 10


def demo(output: OutputOption = Format.table) -> None:
    """Show a market at work: five providers with different machines and prices, ten jobs, all on this machine.

    Real nodes, contracts and a ledger, in a folder that is thrown away at the end. Takes about half a minute.
    """
    import trio

    interrupted = False
    with tempfile.TemporaryDirectory(prefix="nunet-demo-") as folder:
        try:
            trio.run(_main, Path(folder), output)
        except* KeyboardInterrupt:
            # it comes out of the nurseries as a group
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt


async def _main(folder: Path, output: Format) -> None:
    import trio

    from nunet_cli.api import views
    from nunet_cli.node.demo import open_demo

    live = sys.stdout.isatty() and output is Format.table
    if not live:
        note("opening a market of five providers, an authority and a requester …")
    problem: NodeError | None = None
    async with open_demo(folder, slow=live) as market:
        with trio.move_on_after(SECONDS) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(market.post, PAUSE if live else 0)
                if live:
                    await _show_live(market)
                else:
                    await _show_lines(market, silent=output is not Format.table)
        if patience.cancelled_caught:
            problem = NodeError(f"the jobs did not end in {SECONDS} s", code="too_slow")
        jobs, machines = market.rows(), market.machines()
        for row in jobs:
            if row["state"] == "expired":
                suggestion = views.explain(market.requester, market.requester.get_job(row["id"]))["suggestion"]
                row["suggestion"] = suggestion["text"] if suggestion else ""
    if output is not Format.table:
        dump({"jobs": jobs, "providers": machines}, output)
    else:
        _summary(jobs, machines)
    if problem is not None:
        raise problem


async def _show_live(market: Demo) -> None:
    import trio
    from rich.live import Live

    with Live(_screen(market), console=console(), refresh_per_second=8, transient=False) as view:
        while not market.ended():
            await trio.sleep(0.15)
            view.update(_screen(market))
        view.update(_screen(market))


async def _show_lines(market: Demo, *, silent: bool) -> None:
    """Print a line for each change of a job's state."""
    said: dict[str, str] = {}
    store = market.requester.ctx.store
    while True:
        changed = store.new_event
        for row in market.rows():
            if said.get(row["id"]) != row["state"]:
                said[row["id"]] = row["state"]
                if not silent:
                    where = f" at {row['provider']}" if row["provider"] else ""
                    paid = f", {row['paid']} NTX" if row["paid"] else ""
                    typer.echo(f"{row['name']:<14} {row['state']}{where}{paid}")
        if market.ended():
            return
        await changed.wait()


def _screen(market: Demo) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    machines = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in ("PROVIDER", "WHERE", "CORES", "MEMORY", "PRICE", "BUSY", "EARNED"):
        machines.add_column(header)
    for row in market.machines():
        filled = round(BAR * row["load"])
        bar = Text("█" * filled, "cyan").append("░" * (BAR - filled), "dim")
        machines.add_row(row["name"], row["country"], f"{row['cores']:g}", row["memory"], f"{row['price']} NTX", bar,
                         f"{row['earned']} NTX")  # fmt: skip
    work = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in ("JOB", "STATE", "PROVIDER", "PAID"):
        work.add_column(header)
    for row in market.rows():
        state = Text(row["state"], MARKS.get(row["state"], ""))
        work.add_row(row["name"], state, row["provider"], f"{row['paid']} NTX" if row["paid"] else "")
    return Group(machines, Text(), work)


def _summary(jobs: list[dict[str, Any]], machines: list[dict[str, Any]]) -> None:
    from decimal import Decimal

    settled = [row for row in jobs if row["state"] == "settled"]
    typer.echo()
    typer.echo(f"{len(settled)} of {len(jobs)} jobs settled; the providers earned "
               f"{sum((Decimal(row['earned']) for row in machines), Decimal(0))} NTX")  # fmt: skip
    for row in jobs:
        if row["error"]:
            typer.echo(f"{row['name']}: {row['error']}")
        if row.get("suggestion"):
            typer.echo(f"{row['name']}: the smallest change that would have got a bid: {row['suggestion']}")
    note("everything is cleaned up; your own market: nunet onboard && nunet node start")
