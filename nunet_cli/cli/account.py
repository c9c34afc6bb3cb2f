"""`nunet account`: money."""

from __future__ import annotations

from typing import Annotated

import typer

from nunet_cli.cli import complete
from nunet_cli.cli.listing import Listing, list_command
from nunet_cli.cli.output import Format, OutputOption, emit, fields, note, short
from nunet_cli.cli.state import connect

app = typer.Typer()


@app.command("balance")
def balance(output: OutputOption = Format.table) -> None:
    """Show the balance, and what escrow holds."""
    with connect() as client:
        document = client.get("/accounts/balance")

    def render() -> None:
        fields({"balance": f"{document['balance']} NTX"})
        if document["in_escrow"] not in (None, "0"):
            fields({"in escrow": f"{document['in_escrow']} NTX"})
        if not document["live"]:
            note(f"as of {document['as_of']}: {document['reason']}")

    emit(document, output, render)


@list_command(app, "history")
def history() -> Listing:
    """List the movements on the account."""
    with connect() as client:
        document = client.get("/accounts/balance")
    columns = {
        "at": lambda row: row["at"][:19].replace("T", " "), "kind": lambda row: row["kind"],
        "amount": lambda row: f"{row['amount']} NTX", "contract": lambda row: short(row["contract_id"]),
    }  # fmt: skip
    return Listing(document["entries"], columns, key="contract_id", empty="no movements yet")


@app.command("deposit")
def deposit(
    amount: Annotated[str, typer.Argument(help="In NTX.", metavar="AMOUNT")],
    to: Annotated[
        str, typer.Option("--to", help="Whose account: DID or peer id.", metavar="DID", autocompletion=complete.peers)
    ],
    output: OutputOption = Format.table,
) -> None:
    """Credit an account (for the operator of a contract database, on its own node)."""
    with connect() as client:
        row = client.post("/accounts/deposit", {"to": to, "amount": amount})
    emit(row, output, lambda: typer.echo(f"{row['did']}  {row['balance']} NTX"), key="did")
