"""`nunet registry`: who is verified, for the operator of a contract database and for those who verify others."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from nunet_cli.cli import complete
from nunet_cli.cli.listing import Listing, Window, list_command
from nunet_cli.cli.output import Format, OutputOption, YesOption, confirm, dump, emit, note, short
from nunet_cli.cli.state import connect

app = typer.Typer()
DidArgument = Annotated[str, typer.Argument(help="DID or peer id.", metavar="DID", autocompletion=complete.peers)]
NoteOption = Annotated[str, typer.Option("--note", help="Why.", metavar="TEXT")]


@list_command(app)
def list_entries(window: Window) -> Listing:
    """List everybody who was ever admitted."""
    with connect() as client:
        rows = window.read(client, "/registry")
    columns = {
        "did": lambda row: row["id"], "status": lambda row: row["status"],
        "since": lambda row: row["at"][:19].replace("T", " "), "note": lambda row: row["note"],
    }  # fmt: skip
    return Listing(rows, columns, empty="nobody yet")


@list_command(app, "contracts")
def list_contracts(
    window: Window,
    *,
    party: Annotated[
        str, typer.Option("--party", help="Only those of a node.", metavar="DID", autocompletion=complete.peers)
    ] = "",
    state: Annotated[
        str,
        typer.Option(
            "--state", metavar="STATE",
            help="Only those in a state: proved, disputed, settled or refunded; open for the first two.",
        ),
    ] = "",
) -> Listing:  # fmt: skip
    """List the contracts that this contract database has recorded, the oldest first."""
    with connect(read_only=True) as client:
        rows = window.read(client, "/registry/contracts", party=party or None, state=state or None)
    columns = {
        "contract": lambda row: row["id"], "requester": lambda row: short(row["requester_peer"]),
        "provider": lambda row: short(row["provider_peer"]), "state": lambda row: row["state"],
        "deposit": lambda row: f"{row['deposit']} NTX", "paid": lambda row: row["paid"] or "-",
        "recorded": lambda row: row["recorded_at"][:19].replace("T", " "),
        "deadline": lambda row: row["deadline"][:19].replace("T", " "), "reason": lambda row: row["reason"] or "",
    }  # fmt: skip
    return Listing(rows, columns, empty="no contracts recorded here yet")


@list_command(app, "completions")
def list_completions(
    window: Window,
    *,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Only those that nobody has brought to verification.")
    ] = False,
) -> Listing:
    """List the jobs that providers told this oracle they completed, the oldest first."""
    with connect(read_only=True) as client:
        rows = window.read(client, "/registry/completions", unverified=1 if unverified else None)
    columns = {
        "contract": lambda row: row["id"], "requester": lambda row: short(row["requester_peer"]),
        "provider": lambda row: short(row["provider_peer"]), "verdict": lambda row: row["verdict"] or "-",
        "completed": lambda row: row["told_at"][:19].replace("T", " "),
        "deadline": lambda row: row["deadline"][:19].replace("T", " "),
        "another result": lambda row: "shown" if row["shown_instead"] else "",
    }  # fmt: skip
    return Listing(rows, columns, empty="no provider has told of any")


@app.command("approve")
def approve(did: DidArgument, note: NoteOption = "", output: OutputOption = Format.table) -> None:
    """Admit a node as verified."""
    with connect() as client:
        row = client.post("/registry/approve", {"did": did, "note": note})
    emit(row, output, lambda: typer.echo(f"{row['id']}  {row['status']}"))


@app.command("attest")
def attest(
    did: DidArgument,
    name: Annotated[str, typer.Option("--as", help="What you go by as a verifier.", metavar="NAME")],
    valid: Annotated[
        str, typer.Option("--valid", help="How long it counts, for example 90d; or forever.", metavar="TIME")
    ] = "365d",
    output: OutputOption = Format.table,
) -> None:
    """Sign that you have verified a node, for jobs that ask for it (`kycs`); any node can do so.

    The statement goes to the provider, who attaches it with: nunet onboard --kyc FILE. It cannot be taken back before
    it expires.
    """
    with connect() as client:
        document = client.post("/registry/attest", {"did": did, "name": name, "valid": valid})
        verifier = document["signatures"][0]["did"]
    dump(document, Format.json if output is Format.table else output)
    key = shlex.quote(f"kyc.verifiers.{name}")
    note(f"requesters who trust you type: nunet config set {key} {verifier}")


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
