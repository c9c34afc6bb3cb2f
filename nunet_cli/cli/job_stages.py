"""`nunet job`: the stages one by one, and calling off."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from nunet_cli.cli.job import JobArgument, app, next_command, outcome
from nunet_cli.cli.output import Format, OutputOption, QuietOption, emit, note
from nunet_cli.cli.state import connect

__all__ = ["app"]


def _stage(job: str, stage: str, output: Format, quiet: bool, body: dict[str, Any] | None = None) -> None:
    with connect() as client:
        if sys.stderr.isatty():
            from nunet_cli.cli.output import console

            with console(stderr=True).status(f"{stage} …"):
                row = client.post(f"/jobs/{job}/stages/{stage}", body)
        else:
            row = client.post(f"/jobs/{job}/stages/{stage}", body)

    def render() -> None:
        typer.echo(f"{row['id']}  {row['state']}")
        if row["next"] and sys.stderr.isatty():
            note(f"next: {next_command(row)}")

    emit(row, output, render, quiet=quiet)
    if row["error"] is not None and row["state"] == "failed":
        from nunet_cli.cli.progress import error_of

        error = error_of(row, {"type": "job_failed", "data": {}})
        assert error is not None
        raise error


@app.command("match")
def match(
    job: JobArgument,
    timeout: Annotated[
        str, typer.Option("--timeout", help="How long to search, for example 30s.", metavar="TIME")
    ] = "",
    output: OutputOption = Format.table,
    quiet: QuietOption = False,
) -> None:
    """Ask for bids, and shortlist the best (stage 2)."""
    from nunet_cli.quantities import parse_duration

    _stage(job, "match", output, quiet, {"timeout": parse_duration(timeout)} if timeout else None)


@app.command("request")
def request(job: JobArgument, output: OutputOption = Format.table, quiet: QuietOption = False) -> None:
    """Have the best bidder lock its resources (stage 3)."""
    _stage(job, "request", output, quiet)


@app.command("contract")
def contract(job: JobArgument, output: OutputOption = Format.table, quiet: QuietOption = False) -> None:
    """Sign a contract with the provider, and have it proved (stage 4)."""
    _stage(job, "contract", output, quiet)


@app.command("invoke")
def invoke(job: JobArgument, output: OutputOption = Format.table, quiet: QuietOption = False) -> None:
    """Order the provider to start (stage 5)."""
    _stage(job, "invoke", output, quiet)


@app.command("settle")
def settle(job: JobArgument, output: OutputOption = Format.table, quiet: QuietOption = False) -> None:
    """Wait for the end, fetch the outputs, have them verified and the contract settled (stages 6 and 7)."""
    _stage(job, "settle", output, quiet)


@app.command("cancel")
def cancel(job: JobArgument, output: OutputOption = Format.table, quiet: QuietOption = False) -> None:
    """Call a job off: release its lock or allocation, and settle its contract by what was used."""
    with connect() as client:
        row = client.post(f"/jobs/{job}/cancel")

    def render() -> None:
        typer.echo(f"{row['id']}  {row['state']}" + "".join(f"  ({text})" for text in outcome(row)))

    emit(row, output, render, quiet=quiet)
