"""How `nunet map` ends: what it cost, how many failed, and what to do next."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from nunet_cli.cli.map.outcome import Outcome
from nunet_cli.cli.map.tally import Tally
from nunet_cli.cli.output import note
from nunet_cli.errors import EXIT_JOB_FAILED, JobFailedError
from nunet_cli.quantities import format_size, parse_size

_UNSENT = "items are files here, and nothing is sent unasked: --transfer"
# what is said of an item here, by what it is in a specification
_OPTIONS = {
    "price.max": "--price", "resources.cpu.cores": "--cpu", "resources.memory": "--memory",
    "resources.disk": "--disk", "time.max_duration": "--timeout",
}  # fmt: skip


class Cost(NamedTuple):
    """What the items cost, in NTX, empty where that is nothing; and what would have got those a bid that had none."""

    paid: str = ""
    advice: str = ""


def conclude(tally: Tally, cost: Cost, log: str, *, asked_for_success: bool) -> None:
    """End as the items did.

    Args:
        tally: has heard of them.
        cost: what they cost.
        log: the job log's name; empty where there is none.
        asked_for_success: once enough of them have succeeded, the others do not count.

    Raises:
        NunetError: some failed.
    """
    if not tally.failures or (asked_for_success and tally.stopped_by is not None):
        if cost.paid:
            note(f"nunet: {cost.paid} NTX paid")
        return
    codes = {outcome.exit_code for outcome in tally.failures}
    total = tally.succeeded + len(tally.failures) + tally.called_off
    not_run = f", {tally.called_off} did not run" if tally.called_off else ""
    paid = f"; {cost.paid} NTX paid" if cost.paid else ""
    hints = [cost.advice] if cost.advice else []
    if any(map(_was_not_sent, tally.failures)):
        hints.append(_UNSENT)
    if log:
        hints.append(f"run them again: add --resume-failed, with the same items and --joblog {log}")
    error = JobFailedError(
        f"{len(tally.failures)} of {total} items failed{not_run}{paid}", code="items_failed", hint="; ".join(hints)
    )
    error.exit_code = EXIT_JOB_FAILED if EXIT_JOB_FAILED in codes else min(codes)
    raise error


def advice(batch_id: str, suggestion: dict[str, Any] | None) -> str:
    """Return what to do where nobody took some items: the options that would have got a bid, or where to read why.

    Args:
        batch_id: the batch.
        suggestion: the smallest change of a job that would have helped, as the node explains it.
    """
    changes = suggestion["changes"] if suggestion is not None else []
    # nothing at all is no change that somebody wants: who is only busy takes the items as they are, later
    if not changes or any(change["path"] not in _OPTIONS or change["then"] in ("", "0") for change in changes):
        return f"see why: nunet job explain {batch_id}"
    options = [f"{_OPTIONS[change['path']]} {_typed(change['path'], change['then'])}" for change in changes]
    return f"{' '.join(options)} would have got a bid; see also: nunet job explain {batch_id}"


def _typed(path: str, value: str) -> str:
    """Return a value as it is typed: bytes and seconds with their unit."""
    if not value.isdecimal():
        return value
    if path in ("resources.memory", "resources.disk"):
        size = format_size(int(value)).replace(" ", "")
        return size if parse_size(size) == int(value) else value
    return f"{value}s" if path == "time.max_duration" else value


def _was_not_sent(outcome: Outcome) -> bool:
    """Say whether an item failed that names a file here, of which nobody said that it is to be sent."""
    work = outcome.work
    names = [Path(text) for text in work.item.arguments if text and not work.sent and outcome.could_run]
    with suppress(OSError, ValueError):
        return any(not path.is_absolute() and ".." not in path.parts and path.is_file() for path in names)
    return False
