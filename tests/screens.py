"""Captures of what people see: `python -m tests.screens` types commands in a real terminal and writes docs/screens/.

Needs tmux, and bubblewrap for a provider of commands. What differs from run to run (identifiers, times, folders) is
replaced, so that a capture changes only when the product does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT, nunet
from tests.terminal import Terminal

TARGET = ROOT / "docs" / "screens"
WIDTHS = (80, 140)
HEAD = """\
# Screens

What is seen in a terminal, captured by `python -m tests.screens`: real commands of real nodes, in tmux, 80 columns wide;
[the same in 140 columns](wide.md). A narrow terminal shows the beginning of an id and leaves columns out; a pipe and
`--output` have everything.

With colour, a terminal's own sixteen colours are used, and only for emphasis: bold headings, cyan bars, dim remarks. They
read the same on a light and on a dark ground, and nothing is said by colour alone. With `NO_COLOR`, with `--no-color` and
in a pipe there is none: see the end of this page.
"""
WIDE_HEAD = "---\norphan: true\n---\n\n# Screens, 140 columns wide\n"
SCREENS = (
    ("A first job", "nunet run --local -- python3 -c 'print(6 * 7)'"),
    ("Offering a machine", "nunet --home p onboard --cpu 1 --memory 1GiB --disk 2GiB --price 0.2 --process sandboxed"),
    ("A job, from post to settlement", "nunet job run job.yaml"),
    ("A job that nobody takes", "nunet job run big.yaml"),
    ("Why", "nunet job explain $(nunet job list --quiet --limit 1)"),
    ("A specification that is wrong", "nunet job validate wrong.yaml"),
    ("The bids", "nunet bids list"),
    ("The contracts", "nunet contract list"),
    ("The jobs", "nunet job list"),
    ("The peers", "nunet peer list"),
    ("The node on one screen", "nunet status"),
    ("The provider", "nunet --home p status"),
    ("Live", "nunet top --once"),
    ("What keeps it from working", "nunet doctor"),
    ("Help", "nunet job --help"),
    ("Help for one command", "nunet job logs --help"),
    ("A command that is not there", "nunet jbo"),
)  # fmt: skip
JOB = """
name: count
executor: {type: process, command: [sh, -c, 'for step in 1 2 3; do echo step $step; done; wc -w data > words']}
resources: {cpu: 0.5, memory: 64MiB, disk: 64MiB}
inputs: [{path: data}]
outputs: [{path: words}]
price: 1 NTX
"""
BIG = "name: big\nexecutor: {type: process, command: [make]}\nresources: {cpu: 1, memory: 64GiB}\nprice: 1 NTX\n"
WRONG = "name: wrong\nexecutor: {type: process, command: [make]}\nresources:\n  memroy: 4GiB\n"


def main() -> None:
    """Write every capture."""
    os.environ["NUNET_NETWORK_LISTEN"] = "127.0.0.1:0"
    os.environ["NUNET_NETWORK_NAME"] = f"screens-{os.getpid()}"
    TARGET.mkdir(exist_ok=True)
    for width in WIDTHS:
        with tempfile.TemporaryDirectory(prefix="nunet-screens-") as name:
            folder = Path(name)
            try:
                captures = capture(folder, width)
                pipes = piped(folder) if width == WIDTHS[0] else []
            finally:
                for home in ("p", "a", "r"):
                    nunet("node", "stop", home=folder / home, check=False)
        if width == WIDTHS[0]:
            write(TARGET / "README.md", HEAD, [*captures, *pipes])
        else:
            write(TARGET / "wide.md", WIDE_HEAD, captures)


def capture(folder: Path, width: int) -> list[tuple[str, str]]:
    """Return title and screen of every command."""
    prepare(folder)
    found = []
    for title, command in SCREENS:
        with Terminal(folder, columns=width, lines=60, environment={"NUNET_HOME": str(folder / "r")}) as terminal:
            terminal.type(command)
            screen = terminal.wait_until(is_back, what="the prompt")
            found.append((title, steady(screen.rstrip().removesuffix("$").rstrip() + "\n", folder)))
        if title == "Offering a machine":
            nunet("node", "start", home=folder / "p")
            nunet("node", "start", home=folder / "r")
    return found


def is_back(screen: str) -> bool:
    """Say whether the prompt is back: nothing more is printed."""
    return screen.rstrip().endswith("\n$")


def prepare(folder: Path) -> None:
    """Make the files, and start the authority."""
    for name, text in (("job.yaml", JOB), ("big.yaml", BIG), ("wrong.yaml", WRONG), ("data", "to be or not to be\n")):
        (folder / name).write_text(text)
    nunet("node", "start", "--role", "contract-database", "--role", "oracle", home=folder / "a")


def piped(folder: Path) -> list[tuple[str, str]]:
    """Return what goes through a pipe, and a terminal's colours with and without NO_COLOR."""
    found = []
    command = "nunet job list | cat"
    settings = {**os.environ, "NUNET_HOME": str(folder / "r"), "PATH": f"{folder}/tools:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, cwd=folder, env=settings)
    found.append(("In a pipe", steady(f"$ {command}\n{done.stdout}", folder)))
    for title, environment in (("With colour, its escapes written out", {}), ("With NO_COLOR", {"NO_COLOR": "1"})):
        with Terminal(folder, columns=80, environment={"NUNET_HOME": str(folder / "r"), **environment}) as terminal:
            terminal.type("nunet --home p capability show; nunet job list")
            terminal.wait_until(is_back, what="the prompt")
            screen = terminal.screen(colours=True).replace("\x1b", "\\e")
            found.append((title, steady("\n".join(screen.splitlines()[1:-1]) + "\n", folder)))
    return found


def steady(screen: str, folder: Path) -> str:
    """Return a screen with other folders, process and job ids, so that a capture changes only when the product does."""
    known: dict[str, int] = {}

    def other(found: re.Match[str]) -> str:
        kind, digits = found[1], found[2]
        number = known.setdefault(digits[:8], len(known) + 1)
        return f"{kind}-{f'{number:x}f2e3d4c5b6a79880123'[: len(digits)]}"

    screen = screen.replace(str(folder), "/home/you")
    screen = re.sub(r"\b(job|bid|decline|allocation)-([0-9a-f]{8,20})\b", other, screen)
    screen = re.sub(r"screens-\d+", "nunet", screen)
    return re.sub(r"\bpid \d+", "pid 4711", screen)


def write(path: Path, head: str, captures: list[tuple[str, str]]) -> None:
    """Write a page."""
    parts = [head, *(f"## {title}\n\n```text\n{screen}```\n" for title, screen in captures)]
    path.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
    sys.exit(0)
