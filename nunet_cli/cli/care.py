"""`nunet gc`, `nunet node backup` and `nunet node restore`: the care of a home."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nunet_cli.cli.output import Format, OutputOption, YesOption, confirm, emit, note
from nunet_cli.cli.state import STATE, connect
from nunet_cli.quantities import format_size

app = typer.Typer()
node = typer.Typer()


@app.command("gc")
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many jobs would go.")] = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Add the jobs to this file before they go: JSON, one a line.", metavar="FILE"),
    ] = None,
    output: OutputOption = Format.table,
) -> None:
    """Remove what is past its age (`retention.*`), and the content that nothing names any more.

    A node that runs does this once a day. What is open stays, and so do a contract database's ledger and log.
    """
    body = {"dry_run": dry_run, "export": str(export.expanduser().absolute()) if export is not None else ""}
    with connect() as client:
        document = client.post("/gc", body)

    def render() -> None:
        removed = document["removed"]
        if removed is None:
            typer.echo(f"{_count(document['jobs'], 'job')} would go")
            return
        rows = removed["rows"]
        kinds = ("job", "bid", "allocation", "contract")
        typer.echo(f"removed {', '.join(_count(rows[kind + 's'], kind) for kind in kinds)}")
        typer.echo(f"and {_count(removed['blobs'], 'file')} ({format_size(removed['blob_bytes'])})")
        before, after = format_size(removed["store_before"]), format_size(removed["store_after"])
        typer.echo(f"the store has {after}" + (f", and had {before}" if after != before else ""))

    emit(document, output, render)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@node.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="Where to write it.", metavar="FILE")],
    blobs: Annotated[bool, typer.Option("--blobs/--no-blobs", help="Also what jobs read and wrote.")] = True,
    output: OutputOption = Format.table,
) -> None:
    """Write a backup: the key, the configuration, the store and what jobs read and wrote, as of one moment.

    The node may go on meanwhile. Keep the file as you keep the key: who has it is this node.
    """
    target = file.expanduser().absolute()
    client = STATE.running()
    if client is not None:
        body: dict[str, Any] = {"path": str(target), "config": str(STATE.config_file.absolute()), "blobs": blobs}
        document = client.post("/backup", body)
    else:
        import msgspec

        from nunet_cli import SCHEMA_VERSION
        from nunet_cli.node.backup import make_backup

        done = make_backup(STATE.folder, STATE.config_file, target, blobs=blobs)
        document = {"schema": SCHEMA_VERSION, **msgspec.to_builtins(done)}

    def render() -> None:
        typer.echo(document["path"])
        note(f"{format_size(document['size'])}, readable by you alone: it has this node's key in it")

    emit(document, output, render)


@node.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="The backup.", metavar="FILE")],
    force: Annotated[
        bool, typer.Option("--force", help="Also where the home has another node's key, which is given up.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Put a backup in the place of this node; a node that runs is stopped for it, and started again.

    What was there stays in the home, in a folder of its own. Nothing is changed by a backup that is damaged.
    """
    from nunet_cli.cli.node import start, stop
    from nunet_cli.node.backup import restore_backup

    client = STATE.running() if not STATE.node else None
    roles = [role for role in client.get("/status")["roles"] if role != "provider"] if client is not None else []
    stopped = False

    def before() -> None:
        nonlocal stopped
        if client is not None:
            confirm(f"stop the node in {STATE.folder}, and let it go on as it was then?", yes=yes)
            stop()
            stopped = True
        elif (STATE.folder / "store.db").exists():
            confirm(f"put {STATE.folder} back to what it was then?", yes=yes)

    try:
        aside = restore_backup(file, STATE.folder, STATE.config_file, force=force, before=before)
        typer.echo(f"{STATE.folder} is as it was")
        if aside is not None:
            note(f"what was there is in {aside}")
        note("the node that the backup was made of must not run as well: two with one key harm each other")
    finally:
        if stopped:
            start(roles)
