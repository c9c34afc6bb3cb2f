"""`nunet registry`: for the operator of a contract database."""

from __future__ import annotations

from typing import Annotated

import typer

from nunet_cli.cli import complete
from nunet_cli.cli.listing import Listing, list_command
from nunet_cli.cli.output import Format, OutputOption, YesOption, confirm, emit
from nunet_cli.cli.state import connect

app = typer.Typer()
DidArgument = Annotated[str, typer.Argument(help="DID or peer id.", metavar="DID", autocompletion=complete.peers)]
NoteOption = Annotated[str, typer.Option("--note", help="Why.", metavar="TEXT")]


@list_command(app)
def list_entries() -> Listing:
    """List everybody who was ever admitted."""
    with connect() as client:
        rows = client.get("/registry")
    columns = {
        "did": lambda row: row["id"], "status": lambda row: row["status"],
        "since": lambda row: row["at"][:19].replace("T", " "), "note": lambda row: row["note"],
    }  # fmt: skip
    return Listing(rows, columns, empty="nobody yet")


@app.command("approve")
def approve(did: DidArgument, note: NoteOption = "", output: OutputOption = Format.table) -> None:
    """Admit a node as verified."""
    with connect() as client:
        row = client.post("/registry/approve", {"did": did, "note": note})
    emit(row, output, lambda: typer.echo(f"{row['id']}  {row['status']}"))


@app.command("audit")
def audit(output: OutputOption = Format.table) -> None:
    """Check the books: every account, their sum (which is zero), and the whole hash-chained log."""
    from nunet_cli.cli.output import fields
    from nunet_cli.errors import ContractError

    with connect(read_only=True) as client:
        row = client.get("/registry/books")

    def render() -> None:
        fields({**row["accounts"], "sum": f"{row['total']} NTX", "log": f"{row['log_entries']} entries",
                "log intact": row["log_intact"], "problem": row["log_problem"]})  # fmt: skip

    emit(row, output, render)
    if row["total"] != "0" or not row["log_intact"]:
        raise ContractError(row["log_problem"] or f"the accounts sum up to {row['total']} NTX", code="books_wrong")


@app.command("revoke")
def revoke(
    did: DidArgument, note: NoteOption = "", yes: YesOption = False, output: OutputOption = Format.table
) -> None:
    """Stop a node from closing new contracts."""
    confirm(f"Refuse new contracts of {did}?", yes=yes)
    with connect() as client:
        row = client.post("/registry/revoke", {"did": did, "note": note})
    emit(row, output, lambda: typer.echo(f"{row['id']}  {row['status']}"))
