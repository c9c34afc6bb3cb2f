"""Taking the time of things that are compared: in turns, so that what disturbs one disturbs the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def best_in_turns(
    runs: Mapping[str, Callable[[], object]], times: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the shortest of several runs of each, in seconds: the one that was disturbed least.

    Args:
        runs: what to run, by name; one after the other, again and again.
        times: how often.
        clock: what counts the seconds, such as `time.process_time` for what the processor does.
    """
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(times):
        for name, run in runs.items():
            begin = clock()
            run()
            found[name] = min(found[name], clock() - begin)
    return found
