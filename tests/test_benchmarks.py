"""The benchmarks' command: what it lists it can measure, and a run that was kept can be compared."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.lines import Line, change, report, row
from tests.conftest import ROOT


def benchmarks(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def test_the_list_names_every_benchmark_and_what_it_measures() -> None:
    listed = benchmarks("--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(BENCHMARKS)
    for name in BENCHMARKS:
        assert callable(importlib.import_module(f"benchmarks.{name}").measure)


def test_one_benchmark_as_json_is_kept_and_compared(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    run = json.loads(benchmarks("--only", "ranking", "--json", "--save", str(kept)).stdout)
    assert json.loads(kept.read_text()) == run
    assert {line["benchmark"] for line in run["lines"]} == {"ranking"}
    assert all(line["ratio"] > 0 and line["over"] for line in run["lines"])
    assert set(run["machine"]) == {"system", "python", "cpu", "memory"}
    # half as long as it was, so that the change is about a hundred per cent more
    half: dict[str, Any] = {**run, "lines": [{**line, "ratio": line["ratio"] / 2} for line in run["lines"]]}
    kept.write_text(json.dumps(half))
    again = json.loads(benchmarks("--only", "ranking", "--json", "--compare", str(kept)).stdout)
    assert all(
        line["change"] == pytest.approx(line["ratio"] / before["ratio"] - 1, abs=0.001)
        for line, before in zip(again["lines"], half["lines"], strict=True)
    )


def test_what_is_unknown_or_no_kept_run_is_refused(tmp_path: Path) -> None:
    assert "no benchmark 'rankings'" in benchmarks("--only", "rankings", code=2).stderr
    (tmp_path / "x.json").write_text("[]")
    assert "not a run that was kept" in benchmarks("--compare", str(tmp_path / "x.json"), code=1).stderr


def test_a_row_shows_what_it_was_and_the_change() -> None:
    now, before = Line("store", "put", 3.0, "sqlite3", "≤ 2"), Line("store", "put", 4.0, "sqlite3", "≤ 2")
    assert change(now, before) == pytest.approx(-0.25)
    assert "4.00    -25%" in row(now, before, compared=True)
    # what was not measured then or now has no change
    assert change(now, None) is change(Line("store", "put"), before) is None
    assert report([now]).lines == [now]
