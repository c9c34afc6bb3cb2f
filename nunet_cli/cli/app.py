"""The command tree: global options, top-level commands and the groups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from nunet_cli.cli.lazy import commands, loaded
from nunet_cli.cli.state import STATE

GLOBAL_VALUES, GLOBAL_FLAGS = ("--home", "--node"), ("--no-color", "--debug")
# commands whose arguments are the words of another program: what is theirs ends where that begins
BEFORE_A_COMMAND = ("map",)


class Root(typer.core.TyperGroup):
    """All commands; the global options may also stand behind the command's name, up to where another's words begin."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": commands()})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the global options to the front."""
        return super().parse_args(ctx, to_front(args, self._end(args)))

    def _end(self, args: list[str]) -> int | None:
        """Return where the words of another program begin that no `--` stands before; None where there are none."""
        at = own_length(self, args)
        name = args[at] if at < len(args) else ""
        if name not in BEFORE_A_COMMAND:
            return None
        inner: Any = self.commands[name]
        return at + 1 + own_length(inner.load(), args[at + 1 :])


def own_length(command: Any, args: list[str]) -> int:
    """Return how many arguments are options of a command, with their values, before the first that is none."""
    flags, values = set(GLOBAL_FLAGS), set(GLOBAL_VALUES)
    for param in command.params:
        if param.param_type_name == "option":
            (flags if param.is_flag else values).update([*param.opts, *param.secondary_opts])
    at = 0
    while at < len(args) and args[at].startswith("-") and args[at] not in ("-", "--"):
        word = args[at]
        at += 1
        if word.startswith("--"):
            at += word in values
            continue
        # short ones may stand together, the last with its value: -kj4, -kj 4
        for place, letter in enumerate(word[1:], 2):
            if f"-{letter}" in values:
                at += place == len(word)
                break
    return min(at, len(args))


def to_front(args: list[str], end: int | None = None) -> list[str]:
    """Return the arguments with the global options first; what stands after `end`, else after `--`, is left."""
    if end is None:
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


app = typer.Typer(
    name="nunet",
    cls=Root,
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


def whole_tree() -> Any:
    """Return the command tree with every command imported."""
    return loaded(typer.main.get_command(app))
