"""`nunet peer`: who else is there."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nunet_cli.cli import complete
from nunet_cli.cli.ids import id_argument
from nunet_cli.cli.listing import Listing, list_command
from nunet_cli.cli.output import Format, OutputOption, emit, fields, price_text
from nunet_cli.cli.state import connect

app = typer.Typer()
PeerArgument = Annotated[str, id_argument("peer", complete.peers, help="Peer id or DID, or its beginning.")]


@list_command(app)
def list_peers() -> Listing:
    """List the known peers, connected ones first."""
    with connect(read_only=True) as client:
        rows = client.page("/peers", limit=0).rows
    columns = {
        "peer": lambda row: row["peer_id"],
        "connected": lambda row: row["connected"],
        "rtt": lambda row: "-" if row["rtt"] is None else f"{row['rtt']} ms",
        "found by": lambda row: row["source"],
        "address": lambda row: row["addresses"][0] if row["addresses"] else "-",
        "roles": lambda row: row["roles"] or "-",
        "problem": lambda row: row["problem"] or "-",
    }
    empty = "no peers yet; nodes on this network find each other while they run: nunet node start"
    return Listing(rows, columns, key="peer_id", empty=empty)


@app.command("show")
def show(peer: PeerArgument, output: OutputOption = Format.table) -> None:
    """Show a peer, and what it offers as it says itself."""
    with connect(read_only=True) as client:
        row = client.get(f"/peers/{peer}")
    told = row["told"]
    units = {
        "rtt": None if row["rtt"] is None else f"{row['rtt']} ms",
        "clock": None if row["clock"] is None else f"{row['clock']:+} s",
    }
    emit(row, output, lambda: fields({**{k: v for k, v in row.items() if k != "told"}, **units, **_offers(told)}))


def _offers(told: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a peer told of its capability, as people read it; nothing of it is checked."""
    from nunet_cli.quantities import format_cores, format_duration, format_size, now, parse_time

    if told is None:
        return {"offers": "not told"}
    ago = (now() - parse_time(told["at"])).total_seconds()
    age = f"{format_duration(max(0, round(ago)))} ago" + (", with its last bid" if told["by"] == "bid" else "")
    offered = told["offered"]
    if offered is None:
        return {"offers": "nothing to this node", "told": age}
    left = offered["resources"]
    return {
        "has left": f"{format_cores(left['cpu']['cores'])}, {format_size(left['memory'])} of memory, "
        f"{format_size(left['disk'])} of disk",
        "cpu": " ".join(text for text in (left["cpu"]["model"], left["cpu"]["arch"]) if text),
        "gpus": [f"{gpu['model'] or gpu['vendor']} {format_size(gpu['vram'])}".strip() for gpu in left["gpus"]],
        "executors": offered["executors"] or "none for this node",
        "price": price_text(offered["price"]) + ("" if offered["price"]["time_unit"] else " a job"),
        "longest job": format_duration(offered["time"]["max"]) if offered["time"]["max"] else "",
        "localities": [f"{item['kind']} {item['name']}" for item in offered["localities"]],
        "busy": f"{told['load']:.0%}", "told": age,
    }  # fmt: skip


@app.command("add")
def add(
    address: Annotated[str, typer.Argument(help="As `nunet whoami` prints it there.", metavar="PEER@HOST:PORT")],
    output: OutputOption = Format.table,
) -> None:
    """Add a peer that discovery does not find, and connect to it."""
    with connect() as client:
        row = client.post("/peers", {"address": address})

    def render() -> None:
        state = "connected" if row["connected"] else "added; not reached yet, it is tried again"
        typer.echo(f"{row['peer_id']}  {state}")

    emit(row, output, render, key="peer_id")


@app.command("remove")
def remove(peer: PeerArgument, output: OutputOption = Format.table) -> None:
    """Forget a peer."""
    with connect() as client:
        row = client.delete(f"/peers/{peer}")
    emit(row, output, lambda: typer.echo(f"{row['peer_id']}  removed"), key="peer_id")


@app.command("ping")
def ping(peer: PeerArgument, output: OutputOption = Format.table) -> None:
    """Measure the round trip to a peer."""
    with connect() as client:
        row = client.post(f"/peers/{peer}/ping")
    emit(row, output, lambda: typer.echo(f"{row['peer_id']}  {row['rtt']} ms"), key="peer_id")
