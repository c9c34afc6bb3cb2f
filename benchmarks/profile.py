"""What the processor does in each of the three nodes while jobs settle: `python -m benchmarks.profile` (needs py-spy).

py-spy looks at each process from outside, two hundred times a second, at all of its threads that are at work: the nodes
are the ones of the lifecycle's benchmark, as they are. Waiting for the disk inside of a commit counts as work.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.market import PATIENCE, open_market

RATE = 200
# a frame is written `function (path:line)`
FRAME = re.compile(r"^(?P<function>.+) \((?P<path>[^:)]+)(:\d+)?\)$")
# threads that wait for something to do, which py-spy at times takes for work
WAITING = ("WorkerThread._work ", "EpollIOManager.get_events ", "KqueueIOManager.get_events ")
# what everything is called by says nothing
OUTERMOST = {f"nunet_cli/{name}.py" for name in ("__main__", "cli/node", "supervise", "threads")}


def main() -> None:
    """Record all three nodes while jobs settle one after the other, and print what they did."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--jobs", type=int, default=60, help="jobs to settle (60)")
    parser.add_argument("--top", type=int, default=12, help="lines of each list (12)")
    asked = parser.parse_args()
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if spy is None:
        raise SystemExit("py-spy is not installed: pip install nunet-cli[bench]")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="nunet-bench-") as folder, open_market(Path(folder)) as market:
        for _ in range(5):
            market.run_job()
        paths = {node.name: Path(folder) / f"{node.name}.raw" for node in market.nodes}
        recordings = [(node.name, record(spy, node.process.pid, paths[node.name])) for node in market.nodes]
        for _ in range(asked.jobs):
            market.run_job()
        for name, recording in recordings:
            recording.send_signal(signal.SIGINT)
            recording.wait(PATIENCE)
            print(summary(name, stacks(paths[name].read_text()), asked.top))


def record(spy: str, pid: int, path: Path) -> subprocess.Popen[bytes]:
    """Begin to record a process, into a file."""
    return subprocess.Popen(
        [spy, "record", "--pid", str(pid), "--format", "raw", "--rate", str(RATE), "--output", str(path), "--duration",
         "3600"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def stacks(text: str) -> Counter[tuple[str, ...]]:
    """Return what was recorded: how often the processor was in each stack of frames, without their lines."""
    found: Counter[tuple[str, ...]] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = tuple(_frame(frame) for frame in stack.split(";"))
        if not frames[-1].startswith(WAITING):
            found[frames] += int(count)
    return found


def summary(name: str, found: Counter[tuple[str, ...]], top: int) -> str:
    """Return what a node did, as text: by the product's modules with all that they call, and by what ran itself."""
    total = sum(found.values()) or 1
    within: Counter[str] = Counter()
    packages: Counter[str] = Counter()
    itself: Counter[str] = Counter()
    for stack, count in found.items():
        for module in {frame.split(" ")[-1] for frame in stack if " nunet_cli/" in frame} - OUTERMOST:
            within[module] += count
        packages[_package(stack[-1])] += count
        itself[stack[-1]] += count
    lines = [f"\n{name}, {total:,} samples"]
    for title, counter in (
        ("modules with all that they call", within), ("packages by themselves", packages),
        ("functions by themselves", itself),
    ):  # fmt: skip
        lines += [f"  {title}", *(f"    {count / total:4.0%}  {what}" for what, count in counter.most_common(top))]
    return "\n".join(lines)


def _package(frame: str) -> str:
    """Return which package a frame is of; the product's rooms are told apart."""
    parts = frame.split(" ")[-1].split("/")
    return "/".join(parts[:2]) if parts[0] == "nunet_cli" else parts[0].removesuffix(".py")


def _frame(text: str) -> str:
    match = FRAME.match(text)
    if match is None:
        return text
    path = match["path"]
    return f"{match['function']} {path[path.find('nunet_cli/') :] if 'nunet_cli/' in path else path}"


if __name__ == "__main__":
    main()
