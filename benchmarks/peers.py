"""Tasks that do nothing, through Dask and through Ray on this machine, beside jobs that do nothing.

They are schedulers of one owner's machines: no strangers, no signatures, no contract, nothing kept on disk. What a job
costs beside their task is what the market costs.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.lifecycle import AT_ONCE, rate_in_flight
from benchmarks.lines import Line, Options, SkippedError
from benchmarks.market import open_market

TASKS, WORKERS, TIMES = 200, 2, 3


def measure(options: Options) -> Iterator[Line]:
    """Measure each that is installed, and then as many jobs at a time as the lifecycle's benchmark."""
    known: dict[str, tuple[str, Callable[[Path], float]]] = {"Dask": ("distributed", dask), "Ray": ("ray", ray)}
    rates = {
        name: run(options.folder / "peers") for name, (module, run) in known.items() if importlib.util.find_spec(module)
    }
    if not rates:
        raise SkippedError("neither Dask nor Ray is installed: pip install nunet-cli[bench]")
    with open_market(options.folder / "peers-market") as market:
        ours = rate_in_flight(market)
    for name, rate in rates.items():
        yield Line(
            "peers", f"a job beside a task of {name}", rate / ours, f"a task of {name}", "",
            f"{ours:.1f} jobs a second; {rate:,.0f} tasks",
            {"jobs_per_s": ours, "tasks_per_s": rate},
        )  # fmt: skip
    for name in known.keys() - rates.keys():
        yield Line(
            "peers", f"a job beside a task of {name}", note=f"{name} is not installed: pip install nunet-cli[bench]"
        )


def nothing(number: int) -> int:
    """Do what a job of the null executor does."""
    return number


def dask(folder: Path) -> float:
    """Return the tasks a second of Dask's scheduler with workers in processes of their own."""
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=AT_ONCE // WORKERS, dashboard_address=None, host="127.0.0.1",
            local_directory=str(folder),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        return rate(lambda: client.gather(client.map(nothing, range(TASKS), pure=False)))


def ray(_: Path) -> float:
    """Return the tasks a second of Ray on this machine."""
    # without it, it would tell its makers of this run
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray as library

    # its sockets are in its folder, and a socket's path is short
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        library.init(
            num_cpus=AT_ONCE, include_dashboard=False, log_to_driver=False, logging_level="error",
            _node_ip_address="127.0.0.1", _temp_dir=folder,
        )  # fmt: skip
        try:
            task: Any = library.remote(nothing)
            return rate(lambda: library.get([task.remote(number) for number in range(TASKS)]))
        finally:
            library.shutdown()


def rate(run: Callable[[], object]) -> float:
    """Return the tasks a second of the best of several runs, after one that warms up."""
    found = []
    for _ in range(TIMES + 1):
        begin = time.perf_counter()
        run()
        found.append(TASKS / (time.perf_counter() - begin))
    return max(found[1:])
