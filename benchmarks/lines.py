"""What a benchmark hands back, lines with a ratio: how they are printed, kept in a file, and compared with others."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import psutil
from msgspec import Struct

from nunet_cli import quantities


class Line(Struct, omit_defaults=True):
    """One measurement: how many times `over` something is; `goal` is empty where there is none.

    `numbers` holds what the ratio was made from, each with its unit in its name; `note` says it to people. A line
    without a ratio says in `note` what was measured, or why nothing was.
    """

    benchmark: str
    name: str
    ratio: float | None = None
    over: str = ""
    goal: str = ""
    note: str = ""
    numbers: dict[str, float] = {}
    failed: bool = False


class Report(Struct, omit_defaults=True):
    """A whole run: when, on what, and every line of it."""

    made_at: str
    machine: dict[str, str]
    lines: list[Line]


@dataclass(frozen=True)
class Options:
    """What is asked of a run: `folder` is where homes are made, `nodes` the size of the simulated network."""

    folder: Path
    large: bool = False
    nodes: int = 100


class Benchmark(Protocol):
    """A module of this package that measures something."""

    def measure(self, options: Options) -> Iterator[Line]:
        """Yield each line as soon as it is known."""


class SkippedError(Exception):
    """This machine lacks what a benchmark needs; the text says what, and how to get it."""


def report(lines: list[Line]) -> Report:
    """Return a run with what is worth knowing of the machine."""
    memory = psutil.virtual_memory().total / 2**30
    machine = {
        "system": f"{platform.system()} {platform.release()}", "python": platform.python_version(),
        "cpu": f"{psutil.cpu_count()} × {platform.machine()}", "memory": f"{memory:.0f} GiB",
    }  # fmt: skip
    return Report(quantities.utc_now(), machine, lines)


def load(path: Path) -> dict[tuple[str, str], Line]:
    """Return the lines of a run that was kept, by benchmark and name.

    Raises:
        SystemExit: the file cannot be read; the message says why.
    """
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise SystemExit(f"{path}: not a run that was kept with --save: {error}") from None
    return {(line.benchmark, line.name): line for line in kept.lines}


def change(line: Line, before: Line | None) -> float | None:
    """Return by which share a ratio has changed, 0.1 for ten per cent more; None where there is nothing to compare."""
    if line.ratio is None or before is None or not before.ratio:
        return None
    return line.ratio / before.ratio - 1


def header(*, compared: bool) -> str:
    """Return the line above the table."""
    was = f"{'WAS':>8} {'CHANGE':>7}  " if compared else ""
    return f"{'BENCHMARK':<11} {'WHAT':<34} {'RATIO':>8}  {was}{'OVER':<30} {'GOAL':<8} MEASURED"


def row(line: Line, before: Line | None, *, compared: bool) -> str:
    """Return a line as the table has it."""
    was = ""
    if compared:
        by = change(line, before)
        was = f"{_short(before.ratio if before else None):>8} {'' if by is None else f'{by:+.0%}':>7}  "
    text = (
        f"{line.benchmark:<11} {line.name:<34} {_short(line.ratio):>8}  {was}{line.over:<30} {line.goal:<8} {line.note}"
    )
    return text.rstrip()


def document(run: Report, before: dict[tuple[str, str], Line] | None) -> dict[str, Any]:
    """Return a run as JSON-ready values, each line with its `change` where another run is compared."""
    made: dict[str, Any] = msgspec.to_builtins(run)
    if before is not None:
        for line, item in zip(run.lines, made["lines"], strict=True):
            by = change(line, before.get((line.benchmark, line.name)))
            if by is not None:
                item["change"] = round(by, 4)
    return made


def _short(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}" if ratio < 0.1 else f"{ratio:.2f}"
