"""What a command costs before it does anything: over a bare Typer program, and over Python that does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.lines import Line, Options
from benchmarks.market import environment, running
from benchmarks.timing import best_in_turns

BARE = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
TIMES = 15
SPEC = '{"name": "x", "executor": {"type": "null"}}'


def measure(options: Options) -> Iterator[Line]:
    """Measure `nunet version`, a list, and completion behind Tab: where a node runs, and where none does."""
    home, other = options.folder / "startup", options.folder / "startup-running"
    python = [sys.executable]
    nunet = [*python, "-m", "nunet_cli", "--home"]
    with running("the node", other, env=environment(options.folder)):
        runs = {
            "nunet version": command([*nunet, str(home), "version"]),
            "nunet bids list, a node runs": command([*nunet, str(other), "bids", "list"]),
            "nunet bids list, none runs": command([*nunet, str(home), "bids", "list"]),
            "completion of an id": completion(home),
            "bare Typer": command([*python, "-c", BARE]),
            "python -c pass": command([*python, "-c", "pass"]),
        }
        for run in runs.values():
            # once untimed: what is compiled or read from disk for the first time
            run()
        took = best_in_turns(runs, TIMES)
    bare, floor = took.pop("bare Typer"), took.pop("python -c pass")
    for name, seconds in took.items():
        yield Line(
            "startup", name, seconds / bare, "a bare Typer program", "≤ 1.15" if name.startswith("nunet") else "",
            f"{seconds * 1000:.0f} ms; bare Typer {bare * 1000:.0f} ms; {seconds / floor:.1f} × python -c pass",
            {"ms": seconds * 1000, "bare_ms": bare * 1000, "over_python": seconds / floor},
        )  # fmt: skip


def command(arguments: list[str], environment: dict[str, str] | None = None) -> Callable[[], object]:
    """Return a function that runs a program to its end."""
    return lambda: subprocess.run(arguments, env=environment, capture_output=True, check=True, timeout=60)


def completion(home: Path) -> Callable[[], object]:
    """Return what a shell does when Tab is pressed behind `nunet job show`, in a home with a job."""
    nunet = [sys.executable, "-m", "nunet_cli"]
    subprocess.run(
        [*nunet, "--home", str(home), "job", "post", "-"], input=SPEC, text=True, capture_output=True, check=True,
        timeout=60,
    )  # fmt: skip
    environment = {
        **os.environ, "NUNET_HOME": str(home), "_NUNET_COMPLETE": "complete_bash", "COMP_WORDS": "nunet job show ",
        "COMP_CWORD": "3",
    }  # fmt: skip
    return command(nunet, environment)
