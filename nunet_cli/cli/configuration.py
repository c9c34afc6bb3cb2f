"""`nunet config`: reading and changing the configuration file."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nunet_cli.cli import complete, setting
from nunet_cli.cli.output import Format, OutputOption, dump, note
from nunet_cli.cli.state import STATE

app = typer.Typer()
KeyArgument = Annotated[
    str, typer.Argument(help="For example network.name.", metavar="KEY", autocompletion=complete.config_keys)
]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        value = tuple(f"{name}={text}" for name, text in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@app.command("get")
def get(key: KeyArgument, output: OutputOption = Format.table) -> None:
    """Print the value in force."""
    from nunet_cli.config_file import check_key
    from nunet_cli.config_file import get as read

    check_key(key)
    value = read(STATE.config(), key)
    if output is Format.table:
        typer.echo(_text(value))
    else:
        dump({key: value}, output)


@app.command("set")
def set_value(
    key: KeyArgument,
    value: Annotated[str, typer.Argument(help="The value; lists are comma-separated.", metavar="VALUE")],
) -> None:
    """Change the file, keeping its comments; a value that does not validate is refused.

    A node that runs takes it up at once where it can, and it is said where it cannot.
    """
    if later := setting.change(key, value):
        note(later)


@app.command("list")
def list_values(output: OutputOption = Format.table) -> None:
    """Print every key with the value in force."""
    from nunet_cli.config_file import shown

    values = shown(STATE.config())
    if output is Format.table:
        for key, value in values.items():
            typer.echo(f"{key} = {_text(value)}")
    else:
        dump(values, output)


@app.command("path")
def path() -> None:
    """Print where the file is."""
    typer.echo(STATE.config_file)
