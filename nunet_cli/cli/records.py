"""`nunet bids` and `nunet allocation`: looking at records."""

from __future__ import annotations

from typing import Annotated

import typer

from nunet_cli.cli import complete
from nunet_cli.cli.ids import id_argument
from nunet_cli.cli.listing import Listing, Window, list_command
from nunet_cli.cli.output import Format, OutputOption, emit, fields, price_text, say, short
from nunet_cli.cli.state import connect

bids = typer.Typer()
allocations = typer.Typer()


@list_command(bids)
def list_bids(
    window: Window,
    job: Annotated[str, id_argument("job", complete.jobs, help="Only the bids for this job.", metavar="[JOB]")] = "",
) -> Listing:
    """List bids with price, time, score, verdict and who, job by job, the best first; declines with their reasons."""
    with connect(read_only=True) as client:
        rows = window.read(client, "/bids", job=job or None)
    begun = {row["job_id"]: row["at"] for row in reversed(rows)}
    rows.sort(key=lambda row: (begun[row["job_id"]], row["job_id"], row["rank"] or 10**6, row["at"]))
    columns = {
        "id": lambda row: row["id"],
        "job": lambda row: short(row["job_id"]),
        "who": lambda row: short(row["bidder"]) + (" (this node)" if row["direction"] == "sent" else ""),
        "price": lambda row: price_text(row["price"]),
        "time": lambda row: f"{row['time']['duration']}s from {row['time']['start'][11:19]}" if row["time"] else "-",
        "score": lambda row: row["score"],
        "verdict": lambda row: row["verdict"],
        "why": lambda row: row["why"] or "; ".join(row["reasons"]),
    }
    return Listing(rows, columns, empty="no bids yet; ask for some with: nunet job match JOB")


@bids.command("show")
def show_bid(bid: Annotated[str, id_argument("bid", complete.bids)], output: OutputOption = Format.table) -> None:
    """Show a bid with the comparison that it rests on."""
    with connect(read_only=True) as client:
        row = client.get(f"/bids/{bid}")

    def render() -> None:
        fields(
            {
                "id": row["id"], "job": row["job_id"], "who": row["bidder"], "verdict": row["verdict"],
                "price": price_text(row["price"]), "score": row["score"], "rank": row["rank"], "why": row["why"],
                "valid until": row["timeout"], "locked": row["locked"], "reasons": row["reasons"],
            }
        )  # fmt: skip
        for item in (row["comparison"] or {}).get("fields", []):
            margin = f" ({item['margin']})" if item["margin"] else ""
            say(f"  {item['field']}: {item['result']}: {item['available']} for {item['required']}{margin}")

    emit(row, output, render)


@list_command(allocations)
def list_allocations(window: Window) -> Listing:
    """List the allocations that were ever made here."""
    with connect(read_only=True) as client:
        rows = window.read(client, "/allocations")
    columns = {
        "id": lambda row: row["id"],
        "job": lambda row: short(row["job_id"]),
        "for": lambda row: short(row["requester"]),
        "executor": lambda row: row["executor"],
        "state": lambda row: row["state"],
        "error": lambda row: row["error"],
    }
    return Listing(rows, columns, empty="no allocations yet")


@allocations.command("show")
def show_allocation(
    allocation: Annotated[str, id_argument("allocation", complete.allocations)], output: OutputOption = Format.table
) -> None:
    """Show an allocation."""
    with connect(read_only=True) as client:
        row = client.get(f"/allocations/{allocation}")
    emit(row, output, lambda: fields(row))
