"""The command tree: global options, top-level commands and the groups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from nunet_cli import SCHEMA_VERSION, __version__
from nunet_cli.cli import (
    account,
    complete,
    configuration,
    contract,
    dashboard,
    demo,
    examples,
    importing,
    job_views,
    node,
    overview,
    peer,
    preferences,
    provider,
    records,
    registry,
    shortcut,
    top,
)
from nunet_cli.cli.output import Format, OutputOption, dump, emit, fields, note
from nunet_cli.cli.state import STATE

GLOBAL_VALUES, GLOBAL_FLAGS = ("--home", "--node"), ("--no-color", "--debug")


class Anywhere(typer.core.TyperGroup):
    """A group whose own options may also stand behind the command's name, up to a `--`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the global options to the front."""
        return super().parse_args(ctx, to_front(args))


def to_front(args: list[str]) -> list[str]:
    """Return the arguments with the global options first; what stands after `--` is left where it is."""
    end = args.index("--") if "--" in args else len(args)
    front: list[str] = []
    rest: list[str] = []
    at = 0
    while at < end:
        # an option without its value is left for the parser to complain of
        length = 2 if args[at] in GLOBAL_VALUES and at + 1 < end else 1
        taken = (
            length == 2 or args[at] in GLOBAL_FLAGS or args[at].startswith(tuple(f"{name}=" for name in GLOBAL_VALUES))
        )
        (front if taken else rest).extend(args[at : at + length])
        at += length
    return [*front, *rest, *args[end:]]


def narrow(tree: typer.Typer, words: list[str]) -> None:
    """Leave of a command tree only what the words name, where they name something.

    To build all of it takes longer than most commands take; whoever asks for help, or has mistyped, gets all of it.
    """
    words = to_front(words)
    while words and words[0].startswith(("--home", "--node", *GLOBAL_FLAGS)):
        words = words[2 if words[0] in GLOBAL_VALUES else 1 :]
    if not words:
        return
    for group in tree.registered_groups:
        if group.name == words[0] and group.typer_instance is not None:
            tree.registered_commands, tree.registered_groups = [], [group]
            narrow(group.typer_instance, words[1:])
            return
    for command in tree.registered_commands:
        if command.name == words[0]:
            tree.registered_commands, tree.registered_groups = [command], []
            return


app = typer.Typer(
    name="nunet",
    cls=Anywhere,
    help="Turn any set of machines into a compute market.\n\nPost a job, get bids from providers, close a contract,"
    " run the job in a sandbox, have the result verified and the contract settled.\n\nThe options below may"
    " stand before or behind the command.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    home: Annotated[
        Path | None,
        typer.Option("--home", envvar="NUNET_HOME", help="The node's folder; one node per folder.", metavar="DIR"),
    ] = None,
    node: Annotated[
        str,
        typer.Option(
            "--node", envvar="NUNET_NODE", help="Another running node: its socket, or http://HOST:PORT.", metavar="NODE"
        ),
    ] = "",
    no_color: Annotated[bool, typer.Option("--no-color", help="No colour, as with NO_COLOR.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Take the global options."""
    STATE.home, STATE.node = home, node
    if debug:
        os.environ["NUNET_DEBUG"] = "1"
    if no_color:
        os.environ["NO_COLOR"] = "1"


app.command("run", cls=shortcut.AfterDashes)(shortcut.run)
app.command("onboard")(provider.onboard)
app.command("offboard")(provider.offboard)


app.command("status")(overview.status)
app.command("doctor")(overview.doctor)
app.command("top")(top.top)
app.command("dashboard")(dashboard.dashboard)
app.command("demo")(demo.demo)


def _who_is_not_running() -> dict[str, Any]:
    """Return what is known of a node that does not run: its address only where its port is configured."""
    import msgspec

    from nunet_cli.cli.state import passphrase
    from nunet_cli.network.identity import load_or_create
    from nunet_cli.network.peers import parse_address
    from nunet_cli.network.transport import own_addresses

    identity = load_or_create(STATE.folder, passphrase())
    host, port = parse_address(STATE.config().network.listen, least_port=0)
    found = own_addresses(identity, host, port) if port else []
    own = msgspec.to_builtins(identity.node_id)
    return {"schema": SCHEMA_VERSION, **own, "address": found[0] if found else None, "addresses": found}


@app.command("whoami")
def whoami(output: OutputOption = Format.table, quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False) -> None:
    """Print this node's identifiers, and the addresses that `peer add` takes on other machines, the best first."""
    client = STATE.running()
    document = client.get("/whoami") if client is not None else _who_is_not_running()

    def render() -> None:
        addresses = document["addresses"]
        fields(
            {
                "peer id": document["peer_id"], "did": document["did"], "cid": document["cid"],
                "uuid": document["uuid"], "address": document["address"] or "none until the node runs",
            }
        )  # fmt: skip
        for other in addresses[1:]:
            typer.echo(f"{'or':<7}  {other}")
        if not addresses:
            note("start it: nunet node start; or give it a port: nunet config set network.listen 0.0.0.0:9000")
        elif client is None:
            note("it is reached there once it runs: nunet node start")
        elif not STATE.node and STATE.config().network.listen.endswith(":0"):
            note("each start takes another port; to keep one: nunet config set network.listen 0.0.0.0:9000")

    emit(document, output, render, quiet=quiet, key="peer_id")


app.add_typer(node.app, name="node")
job_views.app.command("init")(shortcut.init)
job_views.app.command("import")(importing.import_job)
app.add_typer(job_views.app, name="job")
app.add_typer(records.bids, name="bids")
app.add_typer(contract.app, name="contract")
app.add_typer(records.allocations, name="allocation")
app.add_typer(provider.capability, name="capability")
app.add_typer(preferences.app, name="preferences")
app.add_typer(peer.app, name="peer")
app.add_typer(account.app, name="account")
app.add_typer(registry.app, name="registry")
app.add_typer(configuration.app, name="config")


@app.command("completion")
def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.", metavar="SHELL", autocompletion=complete.shells)],
    install: Annotated[bool, typer.Option("--install", help="Put it where the shell looks, and say where.")] = False,
) -> None:
    """Print the completion script for a shell, or install it for this user."""
    from nunet_cli.cli.pages import completion_script, install_completion

    if not install:
        typer.echo(completion_script(shell))
        return
    path, advice = install_completion(shell)
    typer.echo(path)
    note(advice)


@app.command("version")
def version(output: OutputOption = Format.table) -> None:
    """Print the version."""
    if output is Format.table:
        typer.echo(f"nunet {__version__}")
    else:
        dump({"version": __version__, "schema": SCHEMA_VERSION}, output)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of what commands print with `--output json`."""
    from nunet_cli.api.openapi import output_schema

    dump(output_schema(), Format.json)


examples.attach(app)
