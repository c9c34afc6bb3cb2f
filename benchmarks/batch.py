"""Batches: how near they come to the time of their items alone, beside xargs, Dask and Slurm with the same work.

A hundred items of a second with a file each, of which one fails, on eight slots; a thousand that do nothing on sixteen;
and one job of another requester behind a batch of five hundred.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.at_hand import ways
from benchmarks.lines import Line, Options
from benchmarks.market import JOB_ENDS, Market, NodeProcess, open_market, wait_until
from nunet_cli.database.store import Store
from nunet_cli.records.allocations import ALLOCATIONS
from nunet_cli.records.events import EVENTS

ITEMS, SECONDS, SLOTS, BAD = 100, 1.0, 8, 57
NULLS, NULL_SLOTS = 1000, 16
MANY, SHORT, TURNS = 500, 0.5, 5
PATIENCE = 120.0
# eight slots at each provider; the bound on a peer's messages stays as it is: a batch has to come through with it
OFFER = ("--cpu", "1.6", "--memory", "512MiB", "--disk", "512MiB", "--price", "0.001", "--process", "sandboxed")
SETTINGS = {"NUNET_EXECUTOR_PROCESS_ENABLED": "true", "NUNET_NETWORK_RATE": "600"}
SLOT = {"cpu": 0.2, "memory": "32MiB", "disk": "4MiB"}
SPEC = """
name: bench
type: batch
batch: {{items: {items}, name: "item-{{index}}"}}
executor: {{type: process, command: [sh, -c, "{command}"]}}
inputs: [{{path: "in/{{index}}.txt", to: in.txt}}]
outputs: [{{path: out.txt}}]
resources: {{cpu: 0.2, memory: 32MiB, disk: 4MiB}}
price: 1 NTX
"""
ASKED, ANSWERED = "bid_request_sent", frozenset({"bid_received", "bid_declined"})


@dataclass
class Stretch:
    """A time in which something was held."""

    begin: float
    end: float


def measure(options: Options) -> Iterator[Line]:
    """Measure batches, and then the same work without a market."""
    folder = options.folder / "batch"
    with open_market(folder / "one", offer=OFFER, settings=SETTINGS, also=("requester-b",)) as market:
        yield from files(market, folder)
        yield turn(market)
    yield from beside(folder)
    with open_market(folder / "two", offer=OFFER, settings=SETTINGS, also=("provider-b",)) as market:
        yield from nulls(market)


# -- a hundred items with a file each ----------------------------------------------------------------------------------


def command(seconds: float) -> str:
    """Return what each item does: it takes its time, and copies its file, if that is right."""
    return f"sleep {seconds:g}; grep -q bad in.txt && exit 3; cp in.txt out.txt"


def prepare(folder: Path, items: int) -> None:
    """Make the files of the items, one of which is wrong."""
    (folder / "in").mkdir(parents=True)
    for number in range(items):
        (folder / "in" / f"{number}.txt").write_text("bad\n" if number == BAD else f"{number}\n")


def files(market: Market, folder: Path) -> Iterator[Line]:
    """Measure the batch as a command off a terminal, and what is left of it to run again."""
    for name, count in (("warm-up", 2 * SLOTS), ("work", ITEMS)):
        prepare(folder / name, count)
        (folder / name / "batch.yaml").write_text(
            SPEC.format(items=count, command=command(0.01 if name == "warm-up" else SECONDS))
        )
    run(market, folder / "warm-up")
    before = {node.name: node.cpu_seconds() for node in market.nodes}
    seen = marks(market.requester)
    begin = time.perf_counter()
    done = run(market, folder / "work")
    took = time.perf_counter() - begin
    spent = {node.name: node.cpu_seconds() - before[node.name] for node in market.nodes}
    written = {path.parent.name: path.read_text() for path in (folder / "work" / "results").glob("*/out.txt")}
    right = {f"item-{number}": f"{number}\n" for number in range(ITEMS) if number != BAD}
    if written != right or done.returncode != 1:
        raise RuntimeError(f"{len(written)} outputs, exit code {done.returncode}: {done.stderr[-2000:]}")
    ideal = ITEMS * SECONDS / SLOTS
    printed = len((done.stdout + done.stderr).splitlines())
    yield Line(
        "batch", f"{ITEMS} items of {SECONDS:g} s on {SLOTS} slots", took / ideal, "the items alone", "≤ 1.25",
        f"{took:.1f} s with a file in and out for each; {ideal:g} s alone; {len(right)} right, one failed; "
        f"{printed} lines printed",
        {"s": took, "ideal_s": ideal, "lines": printed},
    )  # fmt: skip
    with Store(market.provider.home, read_only=True) as store:
        runs = [
            Stretch(_seconds(row.started_at), _seconds(row.ended_at))
            for row in store[ALLOCATIONS].all()
            if row.started_at and row.ended_at
        ][-ITEMS:]
    yield Line(
        "batch", "slots with a program in them", busy(runs, SLOTS), "all slots, first to last", "≥ 0.95",
        f"between a program and the next on its slot: {gap(runs) * 1000:.0f} ms (median)",
        {"gap_ms": gap(runs) * 1000},
    )  # fmt: skip
    each = {name: seconds / ITEMS * 1000 for name, seconds in spent.items()}
    yield Line(
        "batch", "processor for an item", sum(each.values()) / 1000 / SECONDS, "its second", "",
        ", ".join(f"{name} {ms:.0f} ms" for name, ms in each.items() if ms >= 1),
        {f"{name}_cpu_ms": ms for name, ms in each.items()},
    )  # fmt: skip
    asked, answered = bids_since(market.requester, seen)
    yield Line(
        "batch", f"bid messages of {ITEMS} items", (asked + answered) / 1, "providers", "≤ 20",
        f"{asked} bid requests, {answered} answers", {"messages": asked + answered, "providers": 1},
    )  # fmt: skip


def run(market: Market, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a batch as somebody's script does; return how that ended."""
    return subprocess.run(
        [sys.executable, "-m", "nunet_cli", "--home", str(market.requester.home), "job", "run", "batch.yaml",
         "--output-dir", "results"],
        cwd=folder, env=market.env, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip


def busy(runs: list[Stretch], slots: int) -> float:
    """Return the share of the slots' time, from the first beginning to the last end, in which they are held."""
    changes = sorted([*((run.begin, 1) for run in runs), *((run.end, -1) for run in runs)])
    held = at_once = 0.0
    for (moment, change), (following, _) in pairwise(changes):
        at_once += change
        # who stands in line for a slot holds none beside
        held += min(at_once, slots) * (following - moment)
    return held / (slots * (changes[-1][0] - changes[0][0]))


def gap(runs: list[Stretch]) -> float:
    """Return the middle of the seconds between an end and the next beginning on the slot that it left."""
    ends = sorted(run.end for run in runs)
    begins = sorted(run.begin for run in runs)[SLOTS:]
    between = sorted(begin - end for begin, end in zip(begins, ends, strict=False))
    return between[len(between) // 2]


# -- the same without a market -----------------------------------------------------------------------------------------


def beside(folder: Path) -> Iterator[Line]:
    """Measure the same work with what is on this machine."""
    ideal = ITEMS * SECONDS / SLOTS
    for name, way in ways().items():
        if isinstance(way, str):
            yield Line("batch", f"the same by {name}", note=f"skipped: {way}")
            continue
        prepare(folder / name, ITEMS)
        (folder / name / "out").mkdir()
        took = way(folder / name, ITEMS, SLOTS, command(SECONDS))
        written = {int(path.stem): path.read_text() for path in (folder / name / "out").iterdir()}
        if written != {number: f"{number}\n" for number in range(ITEMS) if number != BAD}:
            raise RuntimeError(f"{name} wrote {len(written)} outputs")
        yield Line(
            "batch", f"the same by {name}", took / ideal, "the items alone", "", f"{took:.1f} s",
            {"s": took, "ideal_s": ideal},
        )  # fmt: skip


# -- items that do nothing, and another's job behind many --------------------------------------------------------------


def batch(items: int, executor: dict[str, Any], cpu: float = 0.2) -> dict[str, Any]:
    """Return a batch of items without files."""
    return {
        "name": "bench", "type": "batch", "batch": {"items": items}, "executor": executor, "price": "1",
        "resources": {**SLOT, "cpu": cpu},
    }  # fmt: skip


def nulls(market: Market) -> Iterator[Line]:
    """Measure many items that do nothing: the slots are kept busy by what is signed for them, or they are not."""
    client = market.requester.client
    providers = [node for node in market.nodes if node.name.startswith("provider")]
    follow(market, batch(2 * NULL_SLOTS, {"type": "null"}))
    seen, before = marks(market.requester), {node.name: node.cpu_seconds() for node in market.nodes}
    begin = time.perf_counter()
    job = follow(market, batch(NULLS, {"type": "null"}))
    took = time.perf_counter() - begin
    spent = {node.name: (node.cpu_seconds() - before[node.name]) / NULLS * 1000 for node in market.nodes}
    states = Counter(child["state"] for child in client.get(f"/jobs/{job}")["children"])
    if states != {"settled": NULLS}:
        raise RuntimeError(f"the items are {dict(states)}")
    held = [stretch for node in providers for stretch in stretches(node)[-NULLS:]]
    held.sort(key=lambda stretch: stretch.end)
    yield Line(
        "batch", f"slots of {NULLS:,} items that do nothing", busy(held[-NULLS:], NULL_SLOTS), "all slots, first to last",
        "≥ 0.95", f"held from the signature to the end; {NULLS / took:.1f} items a second, "
        + ", ".join(f"{name} {ms:.0f} ms" for name, ms in spent.items()) + " of the processor each",
        {"items_per_s": NULLS / took, "s": took, **{f"{name}_cpu_ms": ms for name, ms in spent.items()}},
    )  # fmt: skip
    asked, answered = bids_since(market.requester, seen)
    messages = asked * len(providers) + answered
    yield Line(
        "batch", f"bid messages of {NULLS:,} items", messages / len(providers), "providers", "≤ 20",
        f"{asked} bid requests to {len(providers)}, {answered} answers",
        {"messages": messages, "providers": len(providers)},
    )  # fmt: skip


def turn(market: Market) -> Line:
    """Measure how long one job takes behind another requester's batch of five hundred."""
    client, (other,) = market.requester.client, market.others
    work = {"type": "process", "command": ["sleep", str(SHORT)]}
    spec = {"name": "one", "executor": work, "price": "1", "resources": SLOT}
    ended(other, other.client.post("/orchestrator/postJob", {"spec": spec})["id"])
    many = client.post("/orchestrator/postJob", {"spec": batch(MANY, work)})["id"]
    wait_until(
        lambda: client.page("/jobs", parent=many, state="settled", limit=1).total >= SLOTS, "the batch's first items"
    )
    took = statistics.median(_one(other, spec) for _ in range(TURNS))
    left = MANY - client.page("/jobs", parent=many, state="settled", limit=1).total
    client.post(f"/jobs/{many}/cancel", timeout=PATIENCE)
    if left < MANY / 2:
        raise RuntimeError(f"{MANY - left} of {MANY} had ended before the one had")
    return Line(
        "batch", f"one job behind another's {MANY}", took / SHORT, "an item's length", "≤ 2",
        f"the median of {TURNS}: {took:.2f} s from post to settled, of which it runs {SHORT:g} s; {left} of the {MANY}"
        " still waited",
        {"s": took, "item_s": SHORT, "left": left},
    )  # fmt: skip


def _one(node: NodeProcess, spec: dict[str, Any]) -> float:
    begin = time.perf_counter()
    return ended(node, node.client.post("/orchestrator/postJob", {"spec": spec})["id"]) - begin


def ended(node: NodeProcess, job_id: str) -> float:
    """Follow a job until it has settled; return when that was.

    Raises:
        RuntimeError: it ended otherwise, or was silent for too long.
    """
    for event in node.client.events(f"/jobs/{job_id}/events", silence=PATIENCE, follow=1):
        state = event["type"].removeprefix("job_")
        if event.get("child") or state not in JOB_ENDS:
            continue
        if state == "settled":
            return time.perf_counter()
        raise RuntimeError(f"a job ended {state}: {event['data']}")
    raise RuntimeError(f"the events of job {job_id} ended before it did")


def follow(market: Market, spec: dict[str, Any]) -> str:
    """Post a job and wait for its end by its own events alone: following each of a thousand costs its node something."""
    client = market.requester.client
    job_id: str = client.post("/orchestrator/postJob", {"spec": spec}, timeout=PATIENCE)["id"]
    wait_until(
        lambda: client.page("/jobs", parent="", limit=1, newest=True).rows[0]["state"] in JOB_ENDS,
        "the batch",
        PATIENCE,
    )
    return job_id


# -- what the nodes have kept ------------------------------------------------------------------------------------------


def marks(node: NodeProcess) -> int:
    """Return the number of a node's last event."""
    with Store(node.home, read_only=True) as store:
        return max((seq for seq, _ in store[EVENTS].after(0, 10**9)), default=0)


def bids_since(node: NodeProcess, seen: int) -> tuple[int, int]:
    """Return how many bid requests a requester has sent since an event, and how many answers it has had."""
    with Store(node.home, read_only=True) as store:
        kinds = Counter(event.type for _, event in store[EVENTS].after(seen, 10**9))
    return kinds[ASKED], sum(kinds[kind] for kind in ANSWERED)


def stretches(node: NodeProcess) -> list[Stretch]:
    """Return for each job of a provider from when to when it held a place: from its signature to the program's end."""
    with Store(node.home, read_only=True) as store:
        ends = {row.job_id: _seconds(row.ended_at) for row in store[ALLOCATIONS].all() if row.ended_at}
        begins = {e.job_id: _seconds(e.at) for _, e in store[EVENTS].after(0, 10**9) if e.type == "contract_agreed"}
    found = [Stretch(begins[job_id], end) for job_id, end in ends.items() if job_id in begins]
    return sorted(found, key=lambda stretch: stretch.end)


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
