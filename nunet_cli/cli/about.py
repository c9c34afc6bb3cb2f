"""`nunet whoami`, `completion`, `version` and `schema`: what the product says about itself and about this node."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nunet_cli import SCHEMA_VERSION, __version__
from nunet_cli.cli import complete
from nunet_cli.cli.output import Format, OutputOption, dump, emit, fields, note
from nunet_cli.cli.state import STATE

app = typer.Typer()


def _who_is_not_running() -> dict[str, Any]:
    """Return what is known of a node that does not run: its address only where its port is configured."""
    import msgspec

    from nunet_cli.cli.state import passphrase
    from nunet_cli.network.addresses import parse_address
    from nunet_cli.network.identity import load_or_create
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
