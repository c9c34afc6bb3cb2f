"""`nunet job`: posting and running; the single stages are in `job_stages`, looking at jobs in `job_views`."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nunet_cli.cli import complete
from nunet_cli.cli.ids import given_id, id_argument
from nunet_cli.cli.job_logs import print_logs
from nunet_cli.cli.job_words import outcome
from nunet_cli.cli.output import (
    Format,
    OutputOption,
    QuietOption,
    dump,
    emit,
    note,
    say_path,
)
from nunet_cli.cli.results import check_results_folder, results_folder
from nunet_cli.cli.state import connect, is_embedded
from nunet_cli.errors import EXIT_INTERRUPTED, EXIT_JOB_FAILED, DeclinedError, NodeError, NunetError, UsageError

if TYPE_CHECKING:
    from nunet_cli.api.client import ApiClient
    from nunet_cli.jobs.spec import JobSpec

SECOND_CHANCE = 3.0
app = typer.Typer()

JobArgument = Annotated[str, id_argument("job", complete.jobs)]
SpecArgument = Annotated[
    str, typer.Argument(help="The job specification (YAML, JSON or TOML); - for stdin.", metavar="SPEC")
]
PushOption = Annotated[
    list[str] | None,
    typer.Option(
        "--push", help="Ask this provider alone; several times for several.", metavar="PEER",
        autocompletion=complete.peers, callback=given_id("peer"),
    ),
]  # fmt: skip
PullOption = Annotated[bool, typer.Option("--pull", help="Ask the network, whatever the configuration says.")]
TopicOption = Annotated[str, typer.Option("--topic", help="Ask the subscribers of a topic.", metavar="/TOPIC")]
DetachOption = Annotated[
    bool, typer.Option("--detach/--wait", "-d", help="Print the id and leave the rest to the running node; or wait.")
]
TimeoutOption = Annotated[
    str, typer.Option("--timeout", help="Wait no longer than that, for example 10m; exit code 5.", metavar="TIME")
]
FolderOption = Annotated[Path | None, typer.Option("--output-dir", help="Where to write the outputs.", metavar="DIR")]


def _read(spec: str) -> dict[str, Any]:
    """Return the posting for a specification file or standard input."""
    if spec == "-":
        return {"spec_text": sys.stdin.read(), "source": "stdin", "folder": str(Path.cwd())}
    path = Path(spec)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="give the path of a job specification") from None
    if not text.strip():
        raise UsageError(f"{path}: the file is empty")
    return {"spec_text": text, "source": str(path), "folder": str(path.parent.absolute())}


def read_with_items(spec: str) -> tuple[dict[str, Any], JobSpec]:
    """Return a posting with the items of its batches, and what it says; the node looks whether the inputs are there."""
    from nunet_cli.cli.items import ItemFiles
    from nunet_cli.jobs.reader import read_spec

    posting = _read(spec)
    files = ItemFiles(Path(posting["folder"]))
    read = read_spec(posting["spec_text"], source=posting["source"], load=files.load)
    return {**posting, "items": files.sent}, read


def _check(posting: dict[str, Any]) -> JobSpec:
    """Refuse a bad specification, or one whose files are not there, before a node is started for it.

    The items of its batches are put into the posting: a node reads none of a person's files but the inputs.
    """
    from nunet_cli.cli.items import ItemFiles
    from nunet_cli.jobs.reader import placed, read_spec
    from nunet_cli.orchestrator.inputs import check_inputs

    files = ItemFiles(Path(posting["folder"]))
    spec = read_spec(posting["spec_text"], source=posting["source"], load=files.load)
    posting["items"] = files.sent
    try:
        check_inputs(spec, Path(posting["folder"]))
    except UsageError as error:
        raise placed(error, posting["spec_text"], posting["source"], files.load) from None
    return spec


@app.command("post")
def post(
    spec: SpecArgument, push: PushOption = None, pull: PullOption = False, topic: TopicOption = "",
    output: OutputOption = Format.table, quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Keep a job and print its id; nothing is asked of the network yet."""
    posting = _read(spec)
    _check(posting)
    with connect() as client:
        row = client.post(
            "/orchestrator/postJob", {**posting, "push": push or [], "pull": pull, "topic": topic, "orchestrate": False}
        )

    def render() -> None:
        typer.echo(row["id"])
        if sys.stderr.isatty():
            if row["next"] == "run":
                note(f"next: nunet job run --job {row['id']}")
            else:
                note(f"next: nunet job match {row['id']}   (or all stages: nunet job run --job {row['id']})")

    emit(row, output, render, quiet=quiet)


@app.command("run")
def run(
    spec: Annotated[str, typer.Argument(help="The job specification; - for stdin.", metavar="[SPEC]")] = "",
    job: Annotated[
        str,
        typer.Option(
            "--job",
            help="Go on with a posted job instead.",
            metavar="JOB",
            autocompletion=complete.jobs,
            callback=given_id("job"),
        ),
    ] = "",
    push: PushOption = None,
    pull: PullOption = False,
    topic: TopicOption = "",
    local: Annotated[
        bool, typer.Option("--local", help="Run provider, contract database and oracle here, on loopback.")
    ] = False,
    detach: DetachOption = False,
    timeout: TimeoutOption = "",
    folder: FolderOption = None,
    output: OutputOption = Format.table,
    quiet: QuietOption = False,
) -> None:
    """Take a job through all stages, from post to settlement, and fetch its outputs."""
    from nunet_cli.cli.authorities import choose

    if bool(spec) == bool(job):
        raise UsageError("give a job specification, or --job JOB", hint="for example: nunet job run job.yaml")
    posting = _read(spec) if spec else {}
    if posting:
        run_posting(
            posting, _check(posting), push=push, pull=pull, topic=topic, local=local, detach=detach, timeout=timeout,
            folder=folder, output=output, quiet=quiet,
        )  # fmt: skip
        return
    embedded, until = has_own_node(detach=detach), ends_at(timeout)
    if not detach:
        check_results_folder(folder)
    with connect(local=local) as client:
        row = client.get(f"/jobs/{job}")
        _refuse_ended(row)
        if row["next"] is not None:
            if not local:
                choose(client)
            row = client.post(f"/jobs/{row['id']}/run")
        if detach:
            emit(row, output, lambda: typer.echo(row["id"]), quiet=quiet)
            return
        follow_job(client, row, folder, output, quiet=quiet, embedded=embedded, until=until)


def _refuse_ended(row: dict[str, Any]) -> None:
    """Say of a job that has ended, and not well, how that was, and how it is run again.

    Raises:
        NunetError: with the exit code that the job had.
    """
    from nunet_cli.cli.progress import error_of

    if row["state"] not in ("failed", "cancelled", "resolved"):
        return
    error = error_of(row, {"type": f"job_{row['state']}", "data": {}})
    why = f": {error.message}" if error is not None and row["state"] == "failed" else ""
    ended = NunetError(
        f"job {row['id']} has ended, it is {row['state']}{why}", code=f"job_{row['state']}",
        hint=f"run it again: nunet job retry {row['id']}",
    )  # fmt: skip
    ended.exit_code = error.exit_code if error is not None else EXIT_JOB_FAILED
    raise ended


def run_posting(
    posting: dict[str, Any], read: JobSpec, *, push: list[str] | None, pull: bool, topic: str, local: bool,
    folder: Path | None, output: Format, quiet: bool, detach: bool = False, timeout: str = "", show_logs: bool = False,
) -> None:  # fmt: skip
    """Post a job, and follow it to its end; with `show_logs` what it wrote is printed, as if it had run here."""
    from nunet_cli.cli.authorities import UNDECIDED, choose

    embedded, until = has_own_node(detach=detach), ends_at(timeout)
    source = posting["source"] if posting["source"] != "stdin" else ""
    if not detach:
        check_results_folder(folder, read)
    body = {**posting, "push": push or [], "pull": pull, "topic": topic, "orchestrate": True}
    follow = partial(
        follow_job, folder=folder, output=output, quiet=quiet, embedded=embedded, until=until, show_logs=show_logs,
        spec=source,
    )  # fmt: skip
    with connect(local=local) as client:
        if not local:
            choose(client)
        row = client.post("/orchestrator/postJob", body)
        if detach:
            emit(row, output, lambda: typer.echo(row["id"]), quiet=quiet)
            return
        try:
            follow(client, row)
        except NunetError as error:
            # a node that began with this command has heard of the second one only now
            if error.code not in UNDECIDED or not choose(client):
                raise
            row = client.post("/orchestrator/postJob", body)
            follow(client, row)


def has_own_node(*, detach: bool) -> bool:
    """Say whether the command brings a node of its own; one that would end with it cannot be left alone with a job."""
    embedded = is_embedded()
    if embedded and detach:
        raise NodeError("--detach needs a node that goes on", hint="start one with: nunet node start")
    return embedded


def ends_at(timeout: str) -> float | None:
    """Return the `time.monotonic()` at which a time is over, as `--timeout` gives it; None for never."""
    import time

    from nunet_cli.quantities import parse_duration

    return time.monotonic() + parse_duration(timeout) if timeout else None


def follow_job(
    client: ApiClient, row: dict[str, Any], folder: Path | None, output: Format, *, quiet: bool, embedded: bool,
    until: float | None, show_logs: bool = False, spec: str = "",
) -> None:  # fmt: skip
    """Follow a job to its end, and fetch its outputs; `spec` is the file that it was posted with, where it is known.

    Raises:
        NunetError: it did not end well, or not in time.
    """
    from nunet_cli.cli.counted import MANY
    from nunet_cli.cli.progress import TIMED_OUT, Follower, error_of

    plain = quiet or output is not Format.table
    try:
        with Follower(client, row["id"], attempt=row["attempt"], quiet=quiet, show_logs=not show_logs) as follower:
            event = follower.follow(until=until)
    except KeyboardInterrupt:
        _interrupted(client, row, embedded=embedded)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except DeclinedError as late:
        if late.code == TIMED_OUT:
            _leave(client, row, embedded=embedded, why="the time is over")
        raise
    except NodeError as gone:
        to = f" --output-dir {shlex.quote(str(folder))}" if folder is not None else ""
        gone.hint = f"the job is kept: go on with nunet job run --job {row['id']}{to}, once the node runs again"
        raise
    job = client.get(f"/jobs/{row['id']}")
    files: dict[str, Any] = {"folder": None, "files": []}
    error = error_of(job, event, spec)
    # a group that failed has the outputs of those that did not
    if (job["result"] is not None and job["result"]["state"] != "cancelled") or job["kind"] == "group":
        try:
            target = results_folder(folder, job["id"])
            files = client.post(f"/jobs/{job['id']}/outputs", {"folder": str(target)})
        except NunetError as problem:
            # why the job ended as it did comes before what is missing of its outputs
            error = error or problem
    if show_logs and job["result"] is not None:
        # as if it had run here: what it wrote, and nothing else on standard output
        try:
            print_logs(client, job["id"])
            print_logs(client, job["id"], stream="stderr", out=sys.stderr)
        except NunetError as problem:
            error = error or problem
        for path in files["files"]:
            note(path)
    elif plain:
        emit({**job, "outputs": files}, output, lambda: None, quiet=quiet)
    else:
        if error is None and sys.stderr.isatty():
            from nunet_cli.cli.receipt import print_receipt

            print_receipt(client, job)
        many = len(job["children"]) >= MANY and bool(files["files"])
        # of many jobs the folder is enough; JSON has all files
        for path in [files["folder"]] if many else files["files"]:
            say_path(path)
    if error is not None:
        raise error


def _interrupted(client: ApiClient, row: dict[str, Any], *, embedded: bool) -> None:
    """After Ctrl-C: leave the job; a second Ctrl-C at a terminal calls off what a running node goes on with."""
    import time

    try:
        _leave(client, row, embedded=embedded, why="interrupted")
        if not embedded and sys.stdin.isatty():
            note(f"Ctrl-C again within {SECOND_CHANCE:g} s stops it now")
            time.sleep(SECOND_CHANCE)
    except KeyboardInterrupt:
        if embedded:
            note(f"\nnunet: left as it is; see: nunet job show {row['id']}; stop it with: nunet job cancel {row['id']}")
        else:
            _call_off(client, row["id"])


def _leave(client: ApiClient, row: dict[str, Any], *, embedded: bool, why: str) -> None:
    """Say that a job goes on in the running node; the job of a node that ends with this command is called off."""
    job = client.get(f"/jobs/{row['id']}")
    if not embedded:
        note(f"\nnunet: {why}; job {job['id']} ({job['state']}) goes on in the running node")
        note(f"follow it with: nunet job run --job {job['id']}; stop it with: nunet job cancel {job['id']}")
    elif job["state"] in ("completed", "verified"):
        note(f"\nnunet: {why} when the job had been done: settling …")
        try:
            client.post(f"/jobs/{job['id']}/stages/settle", timeout=60)
        except NunetError as error:
            note(f"nunet: {error.message}")
        _say_state(client, job["id"])
    elif job["next"] is not None:
        note(f"\nnunet: {why} while {job['state']}: calling the job off …")
        _call_off(client, job["id"])


def _call_off(client: ApiClient, job_id: str) -> None:
    try:
        client.post(f"/jobs/{job_id}/cancel", timeout=60)
    except NunetError as error:
        # the job may have ended in the meantime; its state says how
        note(f"nunet: {error.message}")
    _say_state(client, job_id)


def _say_state(client: ApiClient, job_id: str) -> None:
    job = client.get(f"/jobs/{job_id}")
    note("; ".join([f"nunet: job {job['id']} is {job['state']}", *outcome(job)]))


@app.command("validate")
def validate(spec: SpecArgument, output: OutputOption = Format.table, quiet: QuietOption = False) -> None:
    """Check a job specification and that its files are there, without a node."""
    import msgspec

    from nunet_cli.jobs.tree import price_limit
    from nunet_cli.quantities import format_amount

    posting = _read(spec)
    checked = _check(posting)
    said = f"{posting['source']}: valid"
    if checked.batch is not None:
        said += f": {checked.batch.count} items, at most {format_amount(price_limit(checked))} NTX"
    emit(msgspec.to_builtins(checked), output, lambda: typer.echo(said), quiet=quiet, key="name")


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a job specification, for editors."""
    from nunet_cli.jobs.schema import job_schema

    dump(job_schema(), Format.json)
