"""`nunet job`: looking at jobs: lists, logs, results, what happened and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nunet_cli.cli import complete
from nunet_cli.cli.ids import given_id, id_argument
from nunet_cli.cli.job import FolderOption, JobArgument, app
from nunet_cli.cli.job_logs import begins, print_logs
from nunet_cli.cli.job_words import next_command, notes
from nunet_cli.cli.listing import Listing, Window, list_command
from nunet_cli.cli.output import (
    Format,
    OutputOption,
    QuietOption,
    clean,
    dump,
    emit,
    fields,
    note,
    say_path,
    short,
    table,
)
from nunet_cli.cli.results import results_folder
from nunet_cli.cli.state import connect
from nunet_cli.errors import NunetError

if TYPE_CHECKING:
    from nunet_cli.api.client import ApiClient

__all__ = ["app"]

JobsArgument = Annotated[
    list[str], id_argument("job", complete.jobs, help="The jobs' ids, or their beginnings.", metavar="JOB…")
]
POLL = 0.2
# a group with more of them has a list of its own
MOST_CHILDREN = 30


@list_command(app)
def list_jobs(
    window: Window,
    group: Annotated[
        str,
        typer.Option(
            "--in", help="Those of a group or batch.", metavar="JOB", autocompletion=complete.jobs,
            callback=given_id("job"),
        ),
    ] = "",
    whole: Annotated[bool, typer.Option("--all", "-a", help="Also those in groups and batches.")] = False,
) -> Listing:  # fmt: skip
    """List the jobs that were posted here; those of groups and batches with `--in` or `--all`."""
    with connect(read_only=True) as client:
        rows = window.read(client, "/jobs", **({} if whole else {"parent": group}))
    columns = {
        "id": lambda row: row["id"], "name": lambda row: row["path"], "state": lambda row: row["state"],
        "paid": lambda row: row["paid"], "created": lambda row: row["created_at"][:19].replace("T", " "),
    }  # fmt: skip
    return Listing(rows, columns, empty="no jobs yet; try: nunet job run examples/word-count/job.yaml --local")


@app.command("show")
def show(job: JobArgument, output: OutputOption = Format.table, quiet: QuietOption = False) -> None:
    """Show a job: its state, contract, result, and what comes next."""
    with connect(read_only=True) as client:
        row = client.get(f"/jobs/{job}")

    from nunet_cli.cli.receipt import used

    def render() -> None:
        result, error = row["result"] or {}, row["error"] or {}
        fields(
            {
                "id": row["id"], "name": row["name"], "state": row["state"], "created": row["created_at"],
                "changed": row["changed_at"], "price limit": f"{row['limit']} NTX", "paid": row["paid"],
                "bid": row["bid_id"], "contract": row["contract_id"], "allocation": row["allocation_id"],
                "exit code": result.get("exit_code"), "outputs": [item["name"] for item in result.get("outputs", [])],
                "used": used(row["usage"]), "message": row["message"], "note": "; ".join(notes(row)) or None,
                "remark": row.get("remark"),
                "error": error.get("message"), "called off": row["called_off"],
                "attempt": row["attempt"] if row["past"] else None, "children": _counted(row["counts"]),
                "waiting": _waiting(row), "next run": row["next_run"], "parent": row["parent"],
                "item": ", ".join(f"{name}={value}" for name, value in (row["item"] or {}).items()) or None,
                # what waits for a provider with room goes on by itself
                "next": None if row["waiting"] else next_command(row),
            }
        )  # fmt: skip
        for past in row["past"]:
            why = (past["error"] or {}).get("message") or past["called_off"] or ""
            paid = f"{past['paid']} NTX" if past["paid"] is not None else ""
            who = short(past["provider"]) if past["provider"] else ""
            number, at = f"attempt {past['number']}", past["ended_at"][:19].replace("T", " ")
            typer.echo(clean(f"  {number:<24} {past['state']:<12} {at}  {who:<15} {paid:<10} {why}".rstrip()))
        if len(row["children"]) <= MOST_CHILDREN:
            for child in row["children"]:
                typer.echo(f"  {child['name']:<24} {child['state']:<12} {child['id']}")
        else:
            note(f"its {len(row['children'])} children: nunet job list --in {row['id']}")
        for failure in row["failures"]:
            typer.echo(clean(f"  {failure['name']}: {failure['message']}"))
            for line in failure["lines"]:
                typer.echo(clean(f"    | {line}"))

    emit(row, output, render, quiet=quiet)


def _counted(counts: dict[str, int] | None) -> str | None:
    """Return how many children are in which state, for people: `18 settled, 2 failed`."""
    return ", ".join(f"{count} {state}" for state, count in counts.items()) if counts else None


def _waiting(row: dict[str, Any]) -> str | None:
    """Return what a job waits for, and when it is tried again; of a group what most of its children wait for."""
    if row["waiting"]:
        # one that has a provider says itself until when
        again = "" if row["state"] in ("invoked", "running") and not row["children"] else _again(row["waiting"])
        return f"{row['waiting']['for']}{again}"
    children = row["children"] if isinstance(row["children"], list) else []
    held = Counter(child["waiting"]["for"] for child in children if child["waiting"])
    if not held:
        return None
    text, count = held.most_common(1)[0]
    more = f"; {held.total() - count} for something else" if held.total() > count else ""
    return f"{count} of {len(children)} for {text}{more}"


def _again(waiting: dict[str, Any]) -> str:
    return f"; next try at {waiting['next_try'][11:19]} UTC"


@app.command("logs")
def logs(
    jobs: JobsArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="Standard error instead of standard output.")] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="What it wrote in an earlier attempt.", min=1, metavar="NUMBER")
    ] = None,
) -> None:
    """Print what jobs wrote, while they run or afterwards; of several, or a group, with their names."""
    with connect() as client:
        print_logs(client, *jobs, stream="stderr" if stderr else "stdout", follow=follow, attempt=attempt or 0)


@app.command("wait")
def wait(
    jobs: JobsArgument,
    timeout: Annotated[
        str, typer.Option("--timeout", help="Give up after that long, for example 10m.", metavar="TIME")
    ] = "",
    output: OutputOption = Format.table,
    quiet: QuietOption = False,
) -> None:
    """Wait until jobs have ended, and print how, each as it ends; the exit code is that of the first that failed."""
    import time

    from nunet_cli.cli.progress import error_of
    from nunet_cli.errors import DeclinedError
    from nunet_cli.quantities import parse_duration

    end = time.monotonic() + parse_duration(timeout) if timeout else None
    failure: NunetError | None = None
    with connect() as client:
        open_ones = list(dict.fromkeys(client.get(f"/jobs/{job}")["id"] for job in jobs))
        while open_ones:
            for job_id in list(open_ones):
                row = client.get(f"/jobs/{job_id}")
                if row["next"] is not None and row["state"] != "expired":
                    continue
                open_ones.remove(job_id)
                if output is Format.table:
                    emit(row, output, lambda row=row: typer.echo(f"{row['id']}  {row['state']}"), quiet=quiet)  # type: ignore[misc]  # bound now
                else:
                    emit(row, Format.jsonl, lambda: None, quiet=quiet)
                failure = failure or error_of(row, {"type": f"job_{row['state']}", "data": {}})
            if not open_ones:
                break
            if end is not None and time.monotonic() > end:
                raise DeclinedError(f"{len(open_ones)} jobs have not ended in {timeout}: {', '.join(open_ones[:5])}")
            time.sleep(POLL)
    if failure is not None:
        raise failure


@app.command("result")
def result(
    job: JobArgument, folder: FolderOption = None, output: OutputOption = Format.table, quiet: QuietOption = False
) -> None:
    """Fetch a job's outputs and logs into a folder, and print their paths."""
    with connect() as client:
        row = client.get(f"/jobs/{job}")
        target = results_folder(folder, row["id"])
        files = client.post(f"/jobs/{row['id']}/outputs", {"folder": str(target)})
        # a group's results are its children's
        document = files if row["kind"] == "group" else {**client.get(f"/jobs/{row['id']}/result"), **files}

    def render() -> None:
        for path in files["files"]:
            say_path(path)

    emit(document, output, render, quiet=quiet, key="folder")


@app.command("explain")
def explain(
    job: JobArgument,
    whole: Annotated[bool, typer.Option("--all", "-a", help="Also what was fulfilled.")] = False,
    output: OutputOption = Format.table,
) -> None:
    """Say, provider by provider, why a job was taken or not, by how much each missed, and what would have helped.

    Of a group or batch: how many of its jobs are in which state, and why they wait or failed.
    """
    with connect(read_only=True) as client:
        document = client.get(f"/jobs/{job}/explain")
    if output is not Format.table:
        dump(document, output)
        return
    typer.echo(f"job {document['job_id']} is {document['state']}")
    if waiting := _waiting(document):
        typer.echo(clean(f"waiting: {waiting}"))
    if document["error"]:
        typer.echo(clean(f"reason: {document['error']['message']}"))
    if document["children"]:
        typer.echo(_counted(document["children"]["counts"]))
        table(
            [
                [part["state"], str(part["count"]), part["reason"],
                 ", ".join(part["examples"]) + (", …" if part["count"] > len(part["examples"]) else "")]
                for part in document["children"]["parts"]
            ],
            ["state", "jobs", "why", "for example"],
        )  # fmt: skip
        if not document["answers"] or any(answer["bid"] for answer in document["answers"]):
            return
        # of a batch that nobody can run just now, or ever
    rows = [
        [short(row["peer"]), row["constraint"], row["required"], row["available"], row["margin"], row["reason"]]
        for row in document["table"]
        if whole or row["result"] in ("worse", "error")
    ]
    quiet_ones = [answer for answer in document["answers"] if not answer["missed"] and not answer["reasons"]]
    rows += [
        [short(answer["peer"]), answer["verdict"], "", answer["bid"] or "", "", answer["why"] or ""]
        for answer in quiet_ones
    ]
    rows += [[short(item["peer"]), "declined later", "", "", "", item["reason"]] for item in document["refusals"]]
    if rows:
        table(rows, ["peer", "constraint", "required", "available", "margin", "reason"])
    else:
        note("nobody has answered yet; see: nunet peer list")
    if document["state"] == "matched":
        note(f"take another than the best: nunet job request {document['job_id']} --bid BID")
    if document["suggestion"]:
        peer = short(document["suggestion"]["peer"])
        typer.echo(clean(f"the smallest change that would have got a bid ({peer}): {document['suggestion']['text']}"))


def _all_events(client: ApiClient, path: str) -> Iterator[dict[str, Any]]:
    """Yield what has happened to a job so far, piece by piece."""
    after = 0
    while piece := client.get(path, after=after):
        yield from piece
        after = piece[-1]["seq"]


@app.command("events")
def events(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    output: OutputOption = Format.table,
) -> None:
    """Print everything that happened to a job, in order."""
    import json

    from nunet_cli.cli.progress import ENDS

    with connect(read_only=not follow) as client:
        path = f"/jobs/{job}/events"
        attempt = client.get(f"/jobs/{job}")["attempt"] if follow else 1
        begun = attempt == 1
        stream = client.events(path, follow=1) if follow else _all_events(client, path)
        if output in (Format.json, Format.yaml) and not follow:
            dump(list(stream), output)
            return
        for event in stream:
            if output is Format.table:
                typer.echo(f"{event['at'][:23]}  {event['type']:<22} {json.dumps(event['data'])}")
            else:
                typer.echo(json.dumps(event))
            begun = begun or begins(event, attempt)
            if follow and begun and event["type"] in ENDS and not event["child"]:
                break
