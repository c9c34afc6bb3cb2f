"""A job's whole way among three nodes, each a process, over its floor; alone, and sixteen at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.floor import Floor
from benchmarks.lines import Line, Options
from benchmarks.market import Market, open_market

WARM_UP, TIMES = 5, 30
AT_ONCE, TOGETHER = 16, 96


def measure(options: Options) -> Iterator[Line]:
    """Measure jobs one after the other, in turns with the floor, and then many at a time."""
    folder = options.folder / "lifecycle"
    with open_market(folder) as market, Floor(folder / "floor") as floor:
        yield from alone(market, floor)
        yield from in_flight(market, floor)


def alone(market: Market, floor: Floor) -> Iterator[Line]:
    """Measure one job at a time, and what it costs each node's processor."""
    for _ in range(WARM_UP):
        market.run_job()
        floor.measure()
    jobs, floors, spent = [], [], dict.fromkeys((node.name for node in market.nodes), 0.0)
    for _ in range(TIMES):
        before = {node.name: node.cpu_seconds() for node in market.nodes}
        jobs.append(market.run_job())
        for node in market.nodes:
            spent[node.name] += node.cpu_seconds() - before[node.name]
        floors.append(floor.measure())
    took, least = statistics.median(jobs), statistics.median(sum(parts.values()) for parts in floors)
    parts = {name: statistics.median(item[name] for item in floors) * 1000 for name in floors[0]}
    yield Line(
        "lifecycle", "post to settled", took / least, "the floor", "≤ 2",
        f"{took * 1000:.0f} ms; the floor {least * 1000:.1f} ms: "
        + ", ".join(f"{name.replace('_', ' ')} {ms:.1f}" for name, ms in parts.items()),
        {"ms": took * 1000, "floor_ms": least * 1000, **{f"floor_{name}_ms": ms for name, ms in parts.items()}},
    )  # fmt: skip
    each = {name: seconds / TIMES * 1000 for name, seconds in spent.items()}
    # what the floor costs the processor, without waiting for the disk and the other side
    counted = (parts["signatures"] + parts["verifications"]) / 1000
    yield Line(
        "lifecycle", "processor, all three nodes", sum(each.values()) / 1000 / counted, "its cryptography alone", "",
        f"{sum(each.values()):.0f} ms: " + ", ".join(f"{name} {ms:.0f}" for name, ms in each.items()),
        {"cpu_ms": sum(each.values()), **{f"{name}_cpu_ms": ms for name, ms in each.items()}},
    )  # fmt: skip


def in_flight(market: Market, floor: Floor, together: int = TOGETHER) -> Iterator[Line]:
    """Measure how many jobs settle in a second when many are on their way."""
    rate = rate_in_flight(market, together)
    least = statistics.median(sum(floor.measure().values()) for _ in range(10))
    yield Line(
        "lifecycle", f"{AT_ONCE} in flight", rate * least, "1 / floor", "≥ 0.6",
        f"{rate:.1f} jobs a second; 1 / floor is {1 / least:.1f}",
        {"jobs_per_s": rate, "floor_ms": least * 1000, "at_once": AT_ONCE},
    )  # fmt: skip


def rate_in_flight(market: Market, together: int = TOGETHER) -> float:
    """Return how many jobs settle in a second when `AT_ONCE` are always on their way, of `together` in all."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # once untimed, so that every part of the nodes has been used
        list(pool.map(lambda _: market.run_job(), range(AT_ONCE)))
        begin = time.perf_counter()
        list(pool.map(lambda _: market.run_job(), range(together)))
        return together / (time.perf_counter() - begin)
