"""Commands that are imported when they are named, so that a command starts without what the others need.

Lists of commands, in help and for completion, are made from the table alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import typer

from nunet_cli.cli.table import COMMANDS, GROUPS


class Later(typer.core.TyperCommand):
    """What stands for a command or a group in lists, until its arguments are to be parsed."""

    def __init__(self, name: str, line: str, load: Callable[[], Any]) -> None:
        super().__init__(name, short_help=line, rich_markup_mode=None)
        self.load = load

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Leave the parsing to the command itself."""
        return self.load().make_context(info_name, args, parent, **extra)


def commands() -> list[Later]:
    """Return the commands that stand in no group, then the groups."""
    single = [Later(name, line, partial(command, name)) for name, (_, line) in _below("")]
    return single + [Later(name, text, partial(group, name)) for name, text in GROUPS.items()]


def group(name: str) -> Any:
    """Return a group, with the commands in it."""
    inner = [Later(path.rpartition(" ")[2], line, partial(command, path)) for path, (_, line) in _below(name)]
    return typer.core.TyperGroup(
        name=name, commands=inner, help=GROUPS[name], no_args_is_help=True, rich_markup_mode=None
    )


def _below(group_name: str) -> list[tuple[str, tuple[str, str]]]:
    return [(path, entry) for path, entry in COMMANDS.items() if path.rpartition(" ")[0] == group_name]


def command(path: str) -> Any:
    """Return a command, named with its group, with its examples at the end of its help."""
    from nunet_cli.cli.examples import EXAMPLES

    place, line = COMMANDS[path]
    name = path.rpartition(" ")[2]
    module, _, attribute = place.partition(":")
    found = getattr(importlib.import_module(f"nunet_cli.cli.{module}"), attribute or "app")
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        alone.registered_commands = [info for info in found.registered_commands if info.name == name]
    else:
        alone.command(name)(found)
    (info,) = alone.registered_commands
    info.short_help = line
    # \b keeps the lines as they are
    info.epilog = "\b\nExamples:\n  " + "\n  ".join(EXAMPLES[path])
    return typer.main.get_command(alone)


def loaded(tree: Any) -> Any:
    """Return a command tree with all of it imported, for who looks at every command's options."""
    if isinstance(tree, Later):
        tree = tree.load()
    if isinstance(tree, typer.core.TyperGroup):
        tree.commands = {name: loaded(inner) for name, inner in tree.commands.items()}
    return tree
