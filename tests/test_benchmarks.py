"""The benchmarks' command: what it lists it can measure, and a run that was kept can be compared."""

import importlib
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.homes import make
from benchmarks.lines import Line, change, report, row
from nunet_cli.database.store import Store
from nunet_cli.records.bids import BIDS
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import Contract
from nunet_cli.records.jobs import JOBS
from nunet_cli.records.results import Result
from nunet_cli.records.tables import TABLES
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


def test_a_home_of_many_jobs_has_each_of_them_whole(tmp_path: Path) -> None:
    make(tmp_path, 12, ago=timedelta(days=1))
    counts = {}
    for name in ("requester", "provider"):
        blobs = {path.name for path in (tmp_path / name / "blobs").iterdir()}
        with Store(tmp_path / name, read_only=True) as store:
            counts[name] = {table.name: store[table].count() for table in TABLES}
            for contract in store[CONTRACTS].all():
                bid = store[BIDS].one(contract.bid_id)
                assert bid.job_id == contract.job_id == contract.document.read(Contract).job_id
                assert store.log(contract.job_id)
                assert contract.result is not None
                assert contract.result.read(Result).stdout_cid in blobs
            for job in store[JOBS].all():
                assert store[CONTRACTS].one(job.contract_id).job_id == job.id
                assert job.state == "settled"
            # the copies come before the job that was run, a minute apart
            times = [job.created_at for job in store[JOBS].page(12, newest=True).rows]
            assert len(set(times)) == len(times)
    ours, theirs = counts["requester"], counts["provider"]
    assert [ours[name] for name in ("jobs", "bid_requests", "bids", "contracts", "statements")] == [12] * 5
    assert [theirs[name] for name in ("bids", "contracts", "allocations", "statements")] == [12] * 4
    assert ours["events"] >= 12 * 10


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
