"""A node whose home has many finished jobs, over one whose home is empty: start, lists, memory; and what `gc` leaves.

Nothing runs and nothing is asked beside what is measured. The homes are those of `benchmarks.homes`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

from benchmarks import homes
from benchmarks.lines import Line, Options
from benchmarks.market import environment, nunet, running
from benchmarks.timing import best_in_turns

JOBS, OLD_JOBS = 20_000, 2_000
STARTS, TIMES = 5, 7
# past `retention.contracts`, which is kept longest
OLD = timedelta(days=3 * 365)
LISTS = ("job list", "bids list", "contract list")


def measure(options: Options) -> Iterator[Line]:
    """Measure the start, then both nodes while they run, then a home whose jobs are all past their age."""
    env = environment(options.folder)
    empty = options.folder / "empty"
    homes.make(options.folder / "full", JOBS, nodes=("requester",))
    full = options.folder / "full" / "requester"
    # once untimed, so that each has its identity, and the disk's pages are in memory
    for home in (empty, full):
        _start(home, env)
    took = {"full": float("inf"), "empty": float("inf")}
    for _ in range(STARTS):
        for name, home in (("full", full), ("empty", empty)):
            took[name] = min(took[name], _start(home, env))
    yield _line("start", took)
    with running("empty", empty, env=env) as few, running("full", full, env=env) as many:
        for name in LISTS:
            command = (*name.split(), "--limit", "5")
            runs = {of: partial(nunet, home, *command, env=env) for of, home in (("full", full), ("empty", empty))}
            yield _line(f"{name} --limit 5", best_in_turns(runs, TIMES))
        held = {"full": many.memory(), "empty": few.memory()}
        yield Line(
            "idle", "memory", held["full"] / held["empty"], "an empty home", "≤ 1.5",
            f"{held['full'] / 2**20:.1f} MiB; empty {held['empty'] / 2**20:.1f} MiB",
            {"bytes": held["full"], "empty_bytes": held["empty"]},
        )  # fmt: skip
    yield _collected(options.folder / "old", env)


def _start(home: Path, env: dict[str, str]) -> float:
    """Start a node, and stop it once it answers; return the seconds until it did."""
    begin = time.perf_counter()
    with running(home.name, home, env=env):
        return time.perf_counter() - begin


def _line(name: str, took: dict[str, float]) -> Line:
    full, empty = took["full"] * 1000, took["empty"] * 1000
    return Line(
        "idle", name, full / empty, "an empty home", "≤ 1.5", f"{full:.0f} ms with {JOBS:,} jobs; empty {empty:.0f} ms",
        {"ms": full, "empty_ms": empty, "jobs": JOBS},
    )  # fmt: skip


def _collected(folder: Path, env: dict[str, str]) -> Line:
    """Return what `nunet gc` leaves of a home whose jobs are all past their age but one, while its node runs."""
    homes.make(folder, OLD_JOBS, ago=OLD, nodes=("requester",))
    home = folder / "requester"
    before = _size(home)
    with running("old", home, env=env):
        begin = time.perf_counter()
        nunet(home, "gc", env=env)
        took = time.perf_counter() - begin
    after = _size(home)
    return Line(
        "idle", f"gc of {OLD_JOBS:,} old jobs", sum(after.values()) / sum(before.values()), "the home before", "",
        f"{took:.1f} s; store {_mib(before['store'])} to {_mib(after['store'])},"
        f" blobs {_mib(before['blobs'])} to {_mib(after['blobs'])}",
        {"s": took, **{f"{name}_bytes_before": size for name, size in before.items()},
         **{f"{name}_bytes_after": size for name, size in after.items()}},
    )  # fmt: skip


def _size(home: Path) -> dict[str, int]:
    """Return what a home takes of the disk, in bytes: the store with its log, and the blobs."""
    return {
        "store": sum(path.stat().st_blocks * 512 for path in home.glob("store.db*")),
        "blobs": sum(path.stat().st_blocks * 512 for path in (home / "blobs").rglob("*") if path.is_file()),
    }


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
