"""The scripts that ship with the product, in the shells that people have."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import forks
from tests.conftest import EXAMPLES, Processes, nunet

SHELLS = pytest.mark.parametrize("shell", ["sh", "bash"])


def script(shell: str, name: str, *arguments: str, home: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": forks.tools(folder / "tools"), "NUNET_HOME": str(home)}
    environment["PYTHONPATH"] = str(EXAMPLES.parent)
    return subprocess.run(
        [shell, str(EXAMPLES / name), *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=280,
    )  # fmt: skip


@SHELLS
def test_fan_out_collects_what_all_jobs_found(processes: Processes, tmp_path: Path, shell: str) -> None:
    processes.start(processes.requester)
    done = script(shell, "fan-out.sh", "5", "found", home=processes.requester, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    # there are 1229 primes below 10,000
    assert done.stdout.startswith("1229 primes below 10000, counted by 5 jobs")
    assert len(list((tmp_path / "found").glob("job-*.txt"))) == 5
    assert done.stderr.count("settled") == 5


@SHELLS
def test_a_price_survey_buys_nothing(processes: Processes, tmp_path: Path, shell: str) -> None:
    home = processes.requester
    processes.start(home)
    done = script(shell, "price-survey.sh", str(EXAMPLES / "primes" / "job.yaml"), home=home, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    price, currency, _, verdict = done.stdout.strip().split("\t")
    assert (price, currency, verdict) == ("0.2", "NTX", "best")
    (job,) = json.loads(nunet("job", "list", "--output", "json", home=home).stdout)
    assert job["state"] == "cancelled"
    assert json.loads(nunet("contract", "list", "--output", "json", home=home).stdout) == []


@SHELLS
def test_a_nightly_job_keeps_the_last_results_and_is_silent(processes: Processes, tmp_path: Path, shell: str) -> None:
    home = processes.requester
    processes.start(home)
    for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
        (tmp_path / "kept" / day).mkdir(parents=True)
    spec = str(EXAMPLES / "word-count" / "job.yaml")
    done = script(shell, "nightly.sh", spec, "kept", "2", home=home, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    left = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert left[0] == "2026-01-03"
    assert len(left) == 2
    assert (tmp_path / "kept" / left[1] / "counts.json").exists()
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\nexecutor: {type: process, command: ['false']}\nprice: 1\n")
    failed = script(shell, "nightly.sh", str(bad), "kept", home=home, folder=tmp_path)
    assert failed.returncode == 1
    assert "the job exited with 1" in failed.stdout


def fallen(point: int) -> str:
    """Return where the ball of a point is in the end."""
    mass, height, drag, speed = point % 5 + 1, float(point * 10), (point % 9 + 1) / 10, 0.0
    for _ in range((point % 4 + 1) * 100):
        speed += (9.81 - drag / mass * speed) / 100
        height -= speed / 100
    return f"{height:.3f}"


def test_a_sweep_whose_failures_are_looked_at_mended_and_run_again(processes: Processes, tmp_path: Path) -> None:
    home, count = processes.requester, 48
    processes.start(home)
    done = script("sh", "sweep/sweep.sh", str(count), home=home, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    # what was looked at
    assert "46 settled, 2 failed" in done.stdout
    assert "no mass in in.txt: the ball cannot fall" in done.stdout
    table = done.stdout.partition("point,drag,seconds,height\n")[2].splitlines()
    assert [line.split(",")[::3] for line in table] == [[str(n), fallen(n)] for n in range(1, count + 1)]
    # what was told: few lines for many jobs, each failure with its last line, and only what failed once more
    assert len(done.stderr.splitlines()) < 60, done.stderr
    assert done.stderr.count("the job exited with 3: no mass in in.txt") == 2
    assert "attempt 2" in done.stderr
    assert "settle    all 48 children settled" in done.stderr
    (sweep,) = json.loads(nunet("job", "list", "--output", "json", home=home).stdout)
    shown = json.loads(nunet("job", "show", sweep["id"], "--output", "json", home=home).stdout)
    assert (shown["state"], shown["attempt"]) == ("settled", 2)
    again = [child["name"] for child in shown["children"] if child["attempt"] == 2]
    assert again == ["point-7", "point-47"]
