"""`nunet job`: the stages one by one, calling off, and running again."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nunet_cli.cli import complete
from nunet_cli.cli.ids import given_id, id_argument
from nunet_cli.cli.job import (
    DetachOption,
    FolderOption,
    JobArgument,
    TimeoutOption,
    app,
    ends_at,
    follow_job,
    has_own_node,
    read_with_items,
)
from nunet_cli.cli.job_words import next_command, outcome
from nunet_cli.cli.output import Format, OutputOption, QuietOption, emit, note, say
from nunet_cli.cli.results import check_results_folder
from nunet_cli.cli.state import connect
from nunet_cli.errors import NunetError, UsageError

if TYPE_CHECKING:
    from nunet_cli.jobs.spec import JobSpec

__all__ = ["app"]

# names that are told
MOST_NEW = 5


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
            choice = f"   (or choose: nunet bids list {row['id']})" if stage == "match" else ""
            note(f"next: {next_command(row)}{choice}")

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
def request(
    job: JobArgument,
    bid: Annotated[
        str,
        typer.Option(
            "--bid",
            help="Take this bid instead of the best one; `nunet bids list JOB` has them.",
            metavar="BID",
            autocompletion=complete.bids,
            callback=given_id("bid", hint="see: nunet bids list JOB"),
        ),
    ] = "",
    output: OutputOption = Format.table,
    quiet: QuietOption = False,
) -> None:
    """Have the best bidder lock its resources (stage 3); with `--bid` the one of your choice."""
    _stage(job, "request", output, quiet, {"bid": bid} if bid else None)


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
        whole = client.get(f"/jobs/{row['id']}") if row["kind"] == "group" else row

    def render() -> None:
        say(f"{row['id']}  {row['state']}" + "".join(f"  ({text})" for text in outcome(whole)))

    emit(row, output, render, quiet=quiet)


def _tell_of_new(row: dict[str, Any], spec: JobSpec) -> None:
    """Say which items a specification has that are no part of the batch which is run again."""
    from nunet_cli.jobs.items import item_name, item_values

    if spec.batch is None or spec.name != row["name"]:
        return
    known = {child["name"] for child in row["children"]}
    names = [item_name(spec, item_values(spec, index)) for index in range(spec.batch.count)]
    new = [name for name in names if name not in known]
    if new:
        more = f" and {len(new) - MOST_NEW} more" if len(new) > MOST_NEW else ""
        note(f"nunet: new, and so no part of this batch: {', '.join(new[:MOST_NEW])}{more}; run them as another one")


@app.command("retry")
def retry(
    jobs: Annotated[
        list[str], id_argument("job", complete.jobs, help="The jobs' ids, or their beginnings.", metavar="JOB…")
    ],
    failed: Annotated[
        bool, typer.Option("--failed", help="Leave alone those that did not fail; what a group does in any case.")
    ] = False,
    spec: Annotated[
        str, typer.Option("--spec", help="Run it as this specification has it now, with its inputs.", metavar="SPEC")
    ] = "",
    local: Annotated[
        bool, typer.Option("--local", help="Run provider, contract database and oracle here, on loopback.")
    ] = False,
    detach: DetachOption = False,
    timeout: TimeoutOption = "",
    folder: FolderOption = None,
    output: OutputOption = Format.table,
    quiet: QuietOption = False,
) -> None:
    """Run again what failed, as a new attempt of the same job, and fetch its outputs.

    Of a group or batch it is what failed in it, and what did not run because of that; then the group goes on. A job
    that was cancelled, or that nobody took, is run again where it is named. How it went before stays with the job.

    It is the same job, with the inputs that it was posted with; with `--spec` a batch, or a single job, has those that
    the specification names now, and all else that it says. Items are told by their names.
    """
    from nunet_cli.cli.authorities import choose

    if spec and len(jobs) > 1:
        raise UsageError("--spec is of one job")
    written, read = read_with_items(spec) if spec else (None, None)
    named = spec if spec != "-" else ""
    embedded, until = has_own_node(detach=detach), ends_at(timeout)
    if not detach:
        check_results_folder(folder)
    failure: NunetError | None = None
    with connect(local=local) as client:
        if not local:
            choose(client)
        rows = [client.get(f"/jobs/{job}") for job in dict.fromkeys(jobs)]
        chosen = [row for row in rows if not failed or row["state"] in ("failed", "expired")]
        if read is not None and chosen:
            _tell_of_new(chosen[0], read)
        again = [client.post(f"/jobs/{row['id']}/retry", written) for row in chosen]
        for row in again:
            if detach:
                emit(row, output, partial(typer.echo, row["id"]), quiet=quiet)
                continue
            target = folder / row["id"] if folder is not None and len(again) > 1 else folder
            try:
                follow_job(client, row, target, output, quiet=quiet, embedded=embedded, until=until, spec=named)
            except NunetError as error:
                if row is not again[-1]:
                    note(f"nunet: {row['name']}: {error.message}")
                failure = failure or error
    if not again:
        note("nothing failed")
    if failure is not None:
        raise failure
