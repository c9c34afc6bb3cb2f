"""The command: `python -m benchmarks [--only NAME,NAME] [--json] [--save FILE] [--compare FILE]`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from benchmarks.lines import Benchmark, Line, Options, SkippedError, document, header, load, report, row

BENCHMARKS = {
    "startup": "what a command costs before it does anything, over a bare Typer program and over Python itself",
    "lifecycle": "a job from post to settled among three nodes, over its cryptography, commits and round trips",
    "batch": "batches over their items alone, beside xargs, Dask and Slurm; one job behind another's five hundred",
    "store": "operations of the store over plain sqlite3 with the same bytes",
    "messages": "envelopes checked over raw Ed25519 verifications",
    "data": "a large file from one node to another over openssl and a socket",
    "ranking": "ranking 10,000 bids over reading them",
    "docker": "`nunet run` on a Docker Engine over `docker run`",
    "simulation": "messages and virtual time of a job in a large network over a small one",
    "idle": "a node that has done 20,000 jobs, and does nothing, over one that is new; what `nunet gc` gives back",
    "peers": "jobs per second beside Dask's and Ray's tasks",
}  # fmt: skip
EXPLANATION = """
RATIO is how many times what nunet does takes over what is named under OVER, both measured in this run; times differ
between machines and moments, ratios should not. Smaller is better, except where a goal says ≥. docs/performance.md
explains each line. Nothing here passes or fails.
"""


def main() -> int:
    """Run what is asked for; 1 when a benchmark broke."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--list", action="store_true", help="say what there is, and measure nothing")
    parser.add_argument("--only", metavar="NAME[,NAME]", help="measure these alone")
    parser.add_argument("--json", action="store_true", help="print the run as JSON")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the run in a file")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="say how each ratio has changed since a kept run")
    parser.add_argument("--large", action="store_true", help="also what takes minutes: a store of a million documents")
    parser.add_argument("--nodes", type=int, default=100, metavar="N", help="nodes of the simulated network (100)")
    parser.add_argument("--folder", type=Path, help="make the nodes' homes here, to measure this file system")
    asked = parser.parse_args()
    if asked.list:
        for name, text in BENCHMARKS.items():
            print(f"{name:<12} {text}")
        return 0
    names = asked.only.split(",") if asked.only else list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")
    if not 10 <= asked.nodes <= 10_000:
        parser.error("--nodes: from 10 to 10000")
    before = load(asked.compare) if asked.compare else None
    # without its compiled modules a command starts three times as slowly, and that is nobody's case
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    lines = []
    if not asked.json:
        print(EXPLANATION.strip() + "\n\n" + header(compared=before is not None), flush=True)
    with tempfile.TemporaryDirectory(prefix="nunet-bench-", dir=asked.folder) as folder:
        for line in measured(names, Options(Path(folder), large=asked.large, nodes=asked.nodes)):
            lines.append(line)
            if not asked.json:
                known = (before or {}).get((line.benchmark, line.name))
                print(row(line, known, compared=before is not None), flush=True)
    text = json.dumps(document(report(lines), before), indent=2, ensure_ascii=False) + "\n"
    if asked.save:
        asked.save.write_text(text, encoding="utf-8")
    if asked.json:
        sys.stdout.write(text)
    return 1 if any(line.failed for line in lines) else 0


def measured(names: list[str], options: Options) -> Iterator[Line]:
    """Yield the lines of some benchmarks; one that cannot be measured here, or that breaks, does not end the others."""
    for name in names:
        try:
            benchmark = cast(Benchmark, importlib.import_module(f"benchmarks.{name}"))
            yield from benchmark.measure(options)
        except SkippedError as error:
            yield Line(name, "skipped", note=str(error))
        except Exception as error:
            traceback.print_exc()
            yield Line(name, "failed", note=f"{type(error).__name__}: {error}", failed=True)


if __name__ == "__main__":
    sys.exit(main())
