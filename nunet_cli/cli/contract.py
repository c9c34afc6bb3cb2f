"""`nunet contract`: contracts, their evidence, and disputes about them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nunet_cli.cli import complete
from nunet_cli.cli.ids import id_argument
from nunet_cli.cli.listing import Listing, Window, list_command
from nunet_cli.cli.output import (
    Format,
    OutputOption,
    YesOption,
    clean,
    confirm,
    dump,
    emit,
    emit_list,
    fields,
    note,
    say,
    short,
)
from nunet_cli.cli.state import connect
from nunet_cli.errors import ContractError, UsageError

app = typer.Typer()
ContractArgument = Annotated[
    str,
    id_argument("contract", complete.contracts, help="The contract's id or its beginning, or a job's id."),
]


@list_command(app)
def list_contracts(window: Window) -> Listing:
    """List this node's contracts."""
    with connect(read_only=True) as client:
        rows = window.read(client, "/contracts")
    columns = {
        "contract": lambda row: row["id"],
        "job": lambda row: short(row["job_id"]),
        "as": lambda row: row["role"],
        "with": lambda row: short(row["provider_peer"] if row["role"] == "requester" else row["requester_peer"]),
        "deposit": lambda row: f"{row['deposit']} NTX",
        "state": lambda row: row["state"],
        "message": lambda row: row["message"],
    }
    return Listing(rows, columns, empty="no contracts yet")


@app.command("show")
def show_contract(
    contract: ContractArgument,
    check: Annotated[bool, typer.Option("--check", help="Ask the contract database for its state, too.")] = False,
    output: OutputOption = Format.table,
) -> None:
    """Show a contract with its signed documents, and a dispute about it."""
    with connect(read_only=not check) as client:
        row = client.get(f"/contracts/{contract}", check="1" if check else None)

    def render() -> None:
        left_out = ("documents", "recorded_state", "dispute")
        fields({name: value for name, value in row.items() if name not in left_out})
        fields({"recorded state": row.get("recorded_state")})
        for name, document in row["documents"].items():
            for entry in (document or {}).get("signatures", []):
                say(f"{name}: signed by {entry['role']} {entry['did']}")
        if row.get("dispute"):
            _show_dispute(row["dispute"])

    emit(row, output, render)


def _show_dispute(dispute: dict[str, Any]) -> None:
    typer.echo(clean(f"dispute: opened by {short(dispute['opened_by'])}: {dispute['reason']}"))
    for item in dispute["evidence"]:
        with_documents = f" [{len(item['documents'])} signed documents]" if item["documents"] else ""
        typer.echo(clean(f"  {item['at'][:19]} {short(item['did'])}: {item['text']}{with_documents}"))
    if dispute["decision"]:
        say(f"resolved by {dispute['by']}: {dispute['decision']}, {dispute['paid']} NTX paid")
    else:
        typer.echo("not resolved yet: escrow is held")


@app.command("export")
def export(
    contract: ContractArgument,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Where to write it; standard output by default.", metavar="FILE")
    ] = None,
) -> None:
    """Write one bundle with every signed document of a contract, which anybody can check offline."""
    with connect(read_only=True) as client:
        data = client.get_bytes(f"/contracts/{contract}/evidence")
    if file is None or str(file) == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        file.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    note(f"check it anywhere with: nunet contract verify {file}")


@app.command("verify")
def verify(
    bundle: Annotated[
        Path, typer.Argument(help="A bundle that `contract export` wrote; - for stdin.", metavar="BUNDLE")
    ],
    outputs: Annotated[
        Path | None,
        typer.Option("--outputs", help="A folder with the job's output files, to check as well.", metavar="DIR"),
    ] = None,
    output: OutputOption = Format.table,
) -> None:
    """Check a bundle offline: every signature, content id and sum; needs no node."""
    import msgspec

    from nunet_cli.tokenomics.evidence import read_bundle, report

    try:
        data = sys.stdin.buffer.read() if str(bundle) == "-" else bundle.read_bytes()
    except OSError as error:
        raise UsageError(f"{bundle}: {error.strerror}") from None
    found = report(read_bundle(data, str(bundle)), outputs)
    if output is Format.table:
        fields({"contract": found.contract_id, "job": found.job_id, "requester": found.requester,
                "provider": found.provider, "outcome": found.outcome,
                "paid": f"{found.paid} NTX" if found.paid else None})  # fmt: skip
        for check in found.checks:
            typer.echo(
                clean(
                    f"{'ok  ' if check.passed else 'FAIL'}  {check.name}{': ' + check.detail if check.detail else ''}"
                )
            )
    else:
        dump({**msgspec.to_builtins(found), "valid": not found.failed}, output)
    if found.failed:
        names = ", ".join(check.name for check in found.failed[:5])
        raise ContractError(
            f"{bundle}: {len(found.failed)} of {len(found.checks)} checks fail: {names}", code="bad_bundle"
        )


@app.command("dispute")
def dispute(
    contract: Annotated[
        str,
        id_argument(
            "contract",
            complete.contracts,
            help="The contract; none lists the disputes (operator).",
            metavar="[CONTRACT]",
        ),
    ] = "",
    reason: Annotated[
        str, typer.Option("--reason", help="What is wrong, or what shows that it is not.", metavar="TEXT")
    ] = "",
    reexecute: Annotated[
        bool, typer.Option("--reexecute", help="Have the oracle run the job again, and add its verdict.")
    ] = False,
    output: OutputOption = Format.table,
) -> None:
    """Open a dispute about a contract that is not settled, or add evidence to one: its escrow is held meanwhile."""
    with connect() as client:
        if not contract:
            rows = sorted(client.page("/disputes", limit=0).rows, key=lambda row: bool(row["decision"]))
            columns = {
                "contract": lambda row: row["contract_id"], "opened by": lambda row: short(row["opened_by"]),
                "since": lambda row: row["opened_at"][:19].replace("T", " "), "reason": lambda row: row["reason"][:60],
                "evidence": lambda row: len(row["evidence"]), "decision": lambda row: row["decision"] or "open",
            }  # fmt: skip
            emit_list(rows, columns, output, key="contract_id", empty="no disputes")
            return
        if not reason and not reexecute:
            raise UsageError("say what is wrong with --reason, or have the job run again with --reexecute")
        row = client.post(f"/contracts/{contract}/dispute", {"text": reason, "reexecute": reexecute})
    emit(row, output, lambda: _show_dispute(row), key="contract_id")


@app.command("resolve")
def resolve(
    contract: ContractArgument,
    pay: Annotated[bool, typer.Option("--pay", help="Pay the provider what the result has earned.")] = False,
    refund: Annotated[bool, typer.Option("--refund", help="Give the deposit back to the requester.")] = False,
    split: Annotated[
        str,
        typer.Option("--split", help="Pay the provider this part of the deposit, for example 0.5.", metavar="SHARE"),
    ] = "",
    yes: YesOption = False,
    output: OutputOption = Format.table,
) -> None:
    """End a dispute (for the operator of the contract database): pay, refund or split."""
    if sum((pay, refund, bool(split))) != 1:
        raise UsageError("say one of --pay, --refund and --split SHARE")
    decision = "pay" if pay else "refund" if refund else "split"
    confirm(f"End the dispute by {decision}? This cannot be taken back.", yes=yes)
    with connect() as client:
        row = client.post(f"/contracts/{contract}/resolve", {"decision": decision, "share": split or "0.5"})

    def render() -> None:
        say(f"{row['contract_id']}  {row['paid']} NTX paid, {row['refunded']} NTX returned")

    emit(row, output, render, key="contract_id")
