"""`nunet peer`: who else is there."""

from __future__ import annotations

from typing import Annotated

import typer

from nunet_cli.cli import complete
from nunet_cli.cli.ids import id_argument
from nunet_cli.cli.listing import Listing, list_command
from nunet_cli.cli.output import Format, OutputOption, emit, fields
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
    """Show a peer."""
    with connect(read_only=True) as client:
        row = client.get(f"/peers/{peer}")
    emit(row, output, lambda: fields(row))


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
