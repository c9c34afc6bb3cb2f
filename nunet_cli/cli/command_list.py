"""The page of the documents with every command and option, made from the command tree."""

from __future__ import annotations

from typing import Any

from nunet_cli.cli.examples import EXAMPLES
from nunet_cli.cli.page_text import metavar

HEAD = """\
# Commands

Made from the command tree: `nunet COMMAND --help` and `man nunet` say the same. The options of `nunet` itself may stand
before or behind the command.
"""


def command_list(root: Any) -> str:
    """Return the page for a command tree, Markdown."""
    out = [HEAD, "## nunet", "", *_options(root), ""]
    groups = {name: command for name, command in root.commands.items() if hasattr(command, "commands")}
    for name, command in root.commands.items():
        if name not in groups:
            out += _command(name, command, "##")
    for name, group in groups.items():
        out += [f"## nunet {name}", "", (group.help or "").strip(), ""]
        for inner, command in group.commands.items():
            out += _command(f"{name} {inner}", command, "###")
    return "\n".join(out).rstrip() + "\n"


def _command(name: str, command: Any, level: str) -> list[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    usage = " ".join(["nunet", name, *(metavar(argument, command) for argument in arguments)])
    out = [f"{level} nunet {name}", "", f"`{usage}`", "", " ".join((command.help or "").split()), ""]
    said = [
        f"| `{metavar(param, command)}` | {_cell(param.help)} |" for param in arguments if getattr(param, "help", "")
    ]
    lines = said + _rows(command)
    if lines:
        out += ["| option | what |", "| --- | --- |", *lines, ""]
    return [*out, "For example: " + "; ".join(f"`{line}`" for line in EXAMPLES[name]) + ".", ""]


def _options(command: Any) -> list[str]:
    return ["| option | what |", "| --- | --- |", *_rows(command)]


def _rows(command: Any) -> list[str]:
    found = []
    for param in command.params:
        if param.param_type_name != "option" or param.hidden:
            continue
        value = "" if param.is_flag else f" {metavar(param, command)}"
        names = ", ".join(f"`{name}{value}`" for name in [*param.opts, *param.secondary_opts])
        found.append(f"| {_cell(names)} | {_cell(param.help)} |")
    return found


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")
