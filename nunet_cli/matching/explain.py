"""Why nobody took a job: provider × constraint, and the smallest change to the job that would have got a bid.

Of a group: how many of its children are in which state, and why.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.records.bids import Comparison

# so many different reasons are said, and so many names with each
MOST_REASONS, EXAMPLES = 20, 5
# in one line about all that declined: so many of their reasons, and the characters of each
MOST_COMMON, LONGEST = 3, 120
# how far it is to drop a condition altogether, in doublings of a number
REMOVAL = 3.0


class Change(Struct, frozen=True):
    """A field of the job, what it says, and what it would have to say; empty to drop it."""

    path: str
    now: str
    then: str
    distance: float


class Suggestion(Struct, frozen=True):
    """The changes that would have got a bid of one provider."""

    peer: str
    changes: list[Change]

    @property
    def distance(self) -> float:
        """How large the changes are together, in doublings."""
        return sum(change.distance for change in self.changes)


_PATHS = {
    "cpu.cores": "resources.cpu.cores", "cpu.mhz": "resources.cpu.mhz", "memory": "resources.memory",
    "disk": "resources.disk", "price": "price.max", "time": "time.max_duration",
    "connectivity.bandwidth": "connectivity.bandwidth", "benchmark.cpu_hash": "benchmark.cpu_hash",
    "benchmark.memory_copy": "benchmark.memory_copy", "benchmark.disk_write": "benchmark.disk_write",
}  # fmt: skip

# of a provider's own, or what a job is: without its executor or its image it would be another job
_FIXED = ("machine", "executors", "job_types")


def suggest(answers: list[tuple[str, list[Comparison], list[str]]]) -> Suggestion | None:
    """Return the smallest change, or None where no change of the job's helps.

    Args:
        answers: for each provider that declined, its peer id, its comparisons, and its reasons.
    """
    found = []
    for peer, fields, reasons in answers:
        missed = [field for field in fields if field.result in ("worse", "error")]
        # a reason that is no comparison is the provider's will, and no change of the job's helps
        if not missed or len(reasons) > len(missed):
            continue
        changes = [_change(field) for field in missed]
        if all(change is not None for change in changes):
            found.append(Suggestion(peer, [change for change in changes if change is not None]))
    return min(found, key=lambda item: (item.distance, item.peer), default=None)


def _change(field: Comparison) -> Change | None:
    path = _PATHS.get(field.field)
    if path is not None and field.would_do:
        return Change(path, field.required, field.would_do, _distance(field))
    if field.field in _FIXED or field.field.startswith(("preferences", "executor.")):
        return None
    if field.field.startswith("storage.") and field.would_do:
        return Change(field.field, field.required, field.would_do, _distance(field))
    return Change(field.field, field.required, "", REMOVAL)


def _distance(field: Comparison) -> float:
    wanted, there = _number(field.needed), _number(field.would_do)
    if wanted <= 0 or there <= 0:
        return REMOVAL * 2
    return abs(math.log2(wanted / there))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def sentence(suggestion: Suggestion) -> str:
    """Return a suggestion for people."""
    parts = []
    for change in suggestion.changes:
        if not change.then:
            parts.append(f"drop {change.path} ({change.now})")
        else:
            parts.append(f"{change.path}: {_shown(change)} instead of {change.now}")
    return "; ".join(parts)


def _shown(change: Change) -> str:
    if change.path.startswith(("resources.memory", "resources.disk", "storage.")):
        return f"{quantities.format_size(int(float(change.then)))} ({change.then})"
    if change.path.startswith("benchmark."):
        return f"{quantities.format_speed(float(change.then))} ({change.then})"
    return f"{change.then}s" if change.path == "time.max_duration" else change.then


def table(answers: list[tuple[str, list[Comparison], list[str]]]) -> list[dict[str, Any]]:
    """Return the table provider × constraint: what was asked, what was there, the margin, and the outcome."""
    rows = []
    for peer, fields, reasons in answers:
        rows += [
            {
                "peer": peer, "constraint": field.field, "required": field.required, "available": field.available,
                "margin": field.margin, "result": field.result, "reason": field.reason,
            }
            for field in fields
        ]  # fmt: skip
        named = {field.field for field in fields}
        rows += [
            {"peer": peer, "constraint": name, "required": "", "available": "", "margin": "", "result": "worse",
             "reason": why or text}
            for text in reasons
            for name, _, why in [text.partition(": ")]
            if name not in named
        ]  # fmt: skip
    return rows


def common(reasons: Sequence[Sequence[str]]) -> str:
    """Return in one line why providers declined, the most frequent reasons first: `cpu.cores: 3 short (2 of 2)`.

    Args:
        reasons: those of each that declined.
    """
    found = Counter(text[:LONGEST] for each in reasons for text in dict.fromkeys(each))
    whole = len(reasons)
    said = [text if whole == 1 else f"{text} ({count} of {whole})" for text, count in found.most_common(MOST_COMMON)]
    more = len(found) - len(said)
    return ", ".join([*said, *([f"and {more} more"] if more else [])])


class Part(Struct, frozen=True):
    """The children of a group that are in one state for one reason: how many, and the names of the first ones."""

    state: str
    reason: str
    count: int
    examples: list[str]


def counts(states: Iterable[str]) -> dict[str, int]:
    """Return how many are in each state, most of all first."""
    found: defaultdict[str, int] = defaultdict(int)
    for state in states:
        found[state] += 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def parts(children: Iterable[tuple[str, str, str]]) -> list[Part]:
    """Return the children of a group by state and reason, the largest part of a state first; what is rare as one.

    Args:
        children: the name, the state, and why it is in it, empty where there is nothing to say, of each.
    """
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name, state, reason in children:
        found[state, reason].append(name)
    ordered = sorted(found.items(), key=lambda item: (item[0][0], -len(item[1])))
    rare: defaultdict[str, list[str]] = defaultdict(list)
    made = []
    for place, ((state, reason), names) in enumerate(ordered):
        if place < MOST_REASONS:
            made.append(Part(state, reason, len(names), names[:EXAMPLES]))
        else:
            rare[state] += names
    return [*made, *(Part(state, "other reasons", len(names), names[:EXAMPLES]) for state, names in rare.items())]
