"""Completions and man pages, from command tree and documents: `python -m nunet_cli.cli.pages DIR` writes them all."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from nunet_cli import RELEASE_DATE, __version__
from nunet_cli.cli.command_list import command_list
from nunet_cli.cli.examples import EXAMPLES
from nunet_cli.cli.manual import document_pages
from nunet_cli.cli.page_text import context_of, escape, metavar
from nunet_cli.errors import UsageError

SHELLS = {"bash": "nunet", "zsh": "_nunet", "fish": "nunet.fish"}
EXIT_STATUS = (
    ("0", "Done."), ("1", "The job failed."), ("2", "Usage, or bad input."), ("3", "No node."),
    ("4", "No acceptable bid."), ("5", "Declined, or timed out."), ("6", "Contract or settlement refused."),
    ("7", "Disputed."), ("130", "Interrupted."),
)  # fmt: skip
ENVIRONMENT = (
    ("NUNET_HOME", "The node's folder, as with --home."),
    ("NUNET_NODE", "The socket of another running node, or http://HOST:PORT, as with --node."),
    ("NUNET_TOKEN", "For --node http://HOST:PORT: the token of the node's API (the file api.token in its home)."),
    ("NUNET_PASSPHRASE", "Seals a new key, and opens a sealed one."),
    ("NO_COLOR", "No colour."),
)


def completion_script(shell: str) -> str:
    """Return the completion script for a shell.

    Raises:
        UsageError: a shell that is not supported.
    """
    import typer.completion

    if shell not in SHELLS:
        raise UsageError(f"no completions for {shell!r}", hint=f"one of {', '.join(SHELLS)}")
    make: Any = typer.completion.__dict__["get_completion_script"]
    return str(make(prog_name="nunet", complete_var="_NUNET_COMPLETE", shell=shell))


def install_completion(shell: str) -> tuple[Path, str]:
    """Write a shell's script where this user's shell looks for it; return the file, and what to do next.

    Raises:
        UsageError: another shell, or a folder that cannot be written.
    """
    script = completion_script(shell)
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folder = {
        "bash": data / "bash-completion" / "completions", "zsh": data / "zsh" / "site-functions",
        "fish": settings / "fish" / "completions",
    }[shell]  # fmt: skip
    path = folder / SHELLS[shell]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(script + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint=f"print it instead: nunet completion {shell}") from None
    advice = {
        "bash": "it works in the next shell (needs the package bash-completion)",
        "zsh": f"add to ~/.zshrc, before compinit: fpath=({folder} $fpath)",
        "fish": "it works in the next shell",
    }[shell]
    return path, advice


def man_pages() -> dict[str, str]:
    """Return every man page by file name: one for the whole, one per group."""
    from nunet_cli.cli.app import whole_tree

    root = whole_tree()
    groups = {name: command for name, command in root.commands.items() if hasattr(command, "commands")}
    single = {name: command for name, command in root.commands.items() if name not in groups}
    pages = {"nunet.1": _page("", root, single, groups)}
    for name, group in groups.items():
        pages[f"nunet-{name}.1"] = _page(name, group, group.commands, {})
    return pages


def _page(name: str, group: Any, commands: dict[str, Any], groups: dict[str, Any]) -> str:
    title = f"nunet-{name}" if name else "nunet"
    summary, _, rest = (group.help or "").partition("\n\n")
    brief = summary.strip().rstrip(".").replace("\n", " ")
    out = [f'.TH {escape(title.upper())} 1 "{RELEASE_DATE}" "nunet {__version__}" "nunet manual"']
    out += [".SH NAME", f"{escape(title)} \\- {escape(brief[:1].lower() + brief[1:])}"]
    out += [
        ".SH SYNOPSIS",
        f".B nunet\n[\\fIoptions\\fR] {escape(name + ' ' if name else '')}\\fIcommand\\fR [\\fIarguments\\fR]",
    ]
    out += [".SH DESCRIPTION", escape(f"{summary}\n{rest}".strip())]
    if not name:
        out += [".SH OPTIONS", *_options(group)]
    out += [".SH COMMANDS"]
    for command_name, command in commands.items():
        out += _command(f"nunet {name} {command_name}".replace("  ", " "), command)
    if groups:
        out += [".SH COMMAND GROUPS"]
        for group_name, inner in groups.items():
            first = (inner.help or "").splitlines()[0]
            out += [".TP", f".BR nunet\\-{escape(group_name)} (1)", escape(first)]
    out += [".SH EXIT STATUS"]
    for code, text in EXIT_STATUS:
        out += [".TP", f".B {code}", escape(text)]
    out += [".SH ENVIRONMENT"]
    for variable, text in ENVIRONMENT:
        out += [".TP", f".B {variable}", escape(text)]
    shown = EXAMPLES.get(name, ())
    out += [".SH EXAMPLES", ".nf", *(escape(line) for line in shown)]
    for command_name in commands:
        out += [escape(line) for line in EXAMPLES[f"{name} {command_name}".strip()]]
    out += [".fi"]
    others = [f"nunet-{other}" for other in groups] if groups else ["nunet"]
    out += [".SH SEE ALSO", ",\n".join(f".BR {escape(other)} (1)" for other in others).replace(",\n.BR", " ,\n.BR")]
    return "\n".join(out) + "\n"


def _command(title: str, command: Any) -> list[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    usage = " ".join(f"\\fI{escape(argument.make_metavar(context_of(command)))}\\fR" for argument in arguments)
    out = [f".SS {escape(title)} {usage}".rstrip(), escape(" ".join((command.help or "").split()))]
    for argument in arguments:
        if getattr(argument, "help", None):
            out += [".TP", f"\\fI{escape(argument.make_metavar(context_of(command)))}\\fR", escape(argument.help)]
    return [*out, *_options(command)]


def _options(command: Any) -> list[str]:
    out = []
    for param in command.params:
        if param.param_type_name != "option" or param.hidden:
            continue
        names = ", ".join(f"\\fB{escape(name)}\\fR" for name in [*param.opts, *param.secondary_opts])
        value = "" if param.is_flag else f" \\fI{escape(metavar(param, command))}\\fR"
        out += [".TP", names + value, escape(param.help or "")]
    return out


def folder_of_documents() -> Path:
    """Return where the documents are in a checkout."""
    return Path(__file__).parents[2] / "docs"


def states_page() -> str:
    """Return the document of the machines, from the tables that the code follows."""
    from nunet_cli.records.allocations import ALLOCATION
    from nunet_cli.records.bids import BID
    from nunet_cli.records.contract_records import CONTRACT, REGISTERED
    from nunet_cli.records.jobs import GROUP, JOB
    from nunet_cli.records.machine import described

    text = (
        "# States\n\nWhat may happen to each kind of record, who may cause it, and what it leads to. These are the"
        " tables that the code follows (`nunet_cli/records`); this page is made from them.\n\n"
    )
    return text + "\n".join(described(machine) for machine in (JOB, GROUP, BID, CONTRACT, REGISTERED, ALLOCATION))


def write_all(folder: Path) -> list[Path]:
    """Write every page and script below a folder; return what was written."""
    from nunet_cli.api.openapi import description, output_schema
    from nunet_cli.cli.app import whole_tree
    from nunet_cli.jobs.schema import job_schema

    written = []
    for shell, name in SHELLS.items():
        written.append(folder / "completions" / name)
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        written[-1].write_text(completion_script(shell) + "\n", encoding="utf-8")
    for name, text in {**man_pages(), **document_pages(folder_of_documents())}.items():
        written.append(folder / "man" / name)
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        written[-1].write_text(text, encoding="utf-8")
    written.append(folder / "docs" / "commands.md")
    written[-1].parent.mkdir(parents=True, exist_ok=True)
    written[-1].write_text(command_list(whole_tree()), encoding="utf-8")
    written.append(folder / "docs" / "states.md")
    written[-1].write_text(states_page(), encoding="utf-8")
    schemas = {
        "job-specification.schema.json": job_schema(), "output.schema.json": output_schema(),
        "openapi.json": description(),
    }  # fmt: skip
    for name, document in schemas.items():
        written.append(folder / "docs" / name)
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        written[-1].write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return written


if __name__ == "__main__":
    write_all(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
