"""A day's work: a sweep over the points of a file, two of which fail, are looked at, mended, and run again."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Processes, nunet

SWEEP = """
name: sweep
type: batch
batch: {{items: points.csv, name: "point-{{number}}"}}
executor:
  type: process
  command: [sh, -c, 'test $(cat in.txt) -lt 100 || test -e {mended} || {{ echo "too large: {{number}}" >&2; exit 3; }};
    echo $(( $(cat in.txt) * {{factor}} )) > out']
inputs: [{{path: "in/{{number}}.txt", to: in.txt}}]
outputs: [{{path: out}}]
resources: {{cpu: 0.1, memory: 32MiB, disk: 16MiB}}
price: 1 NTX
"""


def test_a_sweep_of_twenty_of_which_two_fail(processes: Processes, tmp_path: Path, shared: Path) -> None:
    home, mended = processes.requester, shared / "mended"
    processes.start(home)
    (tmp_path / "in").mkdir()
    for number in range(20):
        # two are beyond what the program can do as it is
        (tmp_path / "in" / f"{number}.txt").write_text(f"{number + (100 if number in (7, 13) else 0)}\n")
    lines = ["number,factor", *(f"{number},{number % 3 + 1}" for number in range(20))]
    (tmp_path / "points.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(mended=mended))

    def typed(*words: str, ends: int = 0) -> tuple[str, str]:
        done = nunet(*words, home=home, cwd=tmp_path, check=False)
        assert done.returncode == ends, done.stderr
        return done.stdout, done.stderr

    assert typed("job", "validate", "sweep.yaml")[0] == "sweep.yaml: valid: 20 items, at most 20 NTX\n"
    (tmp_path / "latin.csv").write_bytes("city\nOslo\nMalmö\n".encode("latin1"))
    (tmp_path / "latin.yaml").write_text((tmp_path / "sweep.yaml").read_text().replace("points", "latin"))
    assert "latin.csv:3: not text in UTF-8" in typed("job", "validate", "latin.yaml", ends=2)[1]
    _, told = typed("job", "run", "sweep.yaml", "--output-dir", "results", ends=1)
    assert "settle    2 of 20 failed: point-7, point-13 (point-7: the job exited with 3" in told
    assert re.search(r"^hint: .*; with what you have mended: nunet job retry job-\S+ --spec sweep.yaml$", told, re.M)
    written = {path.parent.name: int(path.read_text()) for path in (tmp_path / "results").glob("*/out")}
    assert written == {f"point-{n}": n * (n % 3 + 1) for n in range(20) if n not in (7, 13)}
    assert (tmp_path / "results" / "point-7" / "stderr").read_text() == "too large: 7\n"
    (tmp_path / "results" / "point-7" / "notes").write_text("look at this one")

    # looked at
    sweep = typed("job", "list", "-q")[0].strip()
    assert len(typed("job", "list", "--in", sweep, "-q")[0].split()) == 20
    failed = typed("job", "list", "--in", sweep, "--filter", "state=failed", "-q")[0].split()
    assert len(failed) == 2
    assert typed("job", "logs", "--stderr", failed[0])[0] == "too large: 7\n"
    both = "==> point-7 <==\ntoo large: 7\n==> point-13 <==\ntoo large: 13\n"
    assert typed("job", "logs", "--stderr", *failed)[0] == both
    assert typed("job", "logs", "--stderr", sweep)[0] == both
    followed = typed("job", "logs", "-f", "--stderr", *failed)[0].splitlines()
    assert sorted(followed) == ["point-13 | too large: 13", "point-7  | too large: 7"]
    shown = typed("job", "show", failed[0])[0]
    assert "number=7, factor=2" in shown
    # an item has a part of the bid for all of them, and what is printed of it can be pasted
    bid = json.loads(typed("job", "show", failed[0], "-o", "json")[0])["bid_id"]
    assert bid.partition(".")[0] in typed("bids", "list", failed[0])[0]
    assert bid.partition(".")[0] in typed("bids", "show", bid)[0]
    # it has been matched long since
    _, refused = typed("job", "request", failed[0], "--bid", bid.partition(".")[0], ends=2)
    assert "is failed, not matched" in refused
    assert "nunet job match" not in refused
    provider = json.loads(typed("bids", "show", bid, "-o", "json")[0])["bidder"]
    assert re.search(r"rtt +\S+ ms\n.*has left +1 core, 1 GiB of memory", typed("peer", "show", provider)[0], re.S)
    why = typed("job", "explain", sweep)[0]
    assert "18 settled, 2 failed" in why
    assert "point-7, point-13" in why
    summary = typed("job", "show", sweep)[0]
    assert "18 settled, 2 failed" in summary
    assert "too large: 7" in summary

    # mended, and run again
    mended.touch()
    (tmp_path / "points.csv").write_text("\n".join([*lines, "20,1"]) + "\n")
    (tmp_path / "in" / "20.txt").write_text("20\n")
    _, told = typed("job", "retry", sweep, "--spec", "sweep.yaml", "--output-dir", "results")
    assert "new, and so no part of this batch: point-20; run them as another one" in told
    assert "19 of 20 done" in told
    assert "point-8" not in told
    written = {path.parent.name: int(path.read_text()) for path in (tmp_path / "results").glob("*/out")}
    assert [written[f"point-{n}"] for n in (7, 13)] == [107 * 2, 113 * 2]
    assert len(written) == 20
    # of the attempt before nothing is left, and what is the user's stays
    assert sorted(path.name for path in (tmp_path / "results" / "point-7").iterdir()) == ["notes", "out"]
    assert [path.name for path in (tmp_path / "results" / "point-13").iterdir()] == ["out"]
    job = json.loads(typed("job", "show", sweep, "-o", "json")[0])
    assert (job["state"], job["attempt"], [past["state"] for past in job["past"]]) == ("settled", 2, ["failed"])
    assert [child["attempt"] for child in job["children"]].count(2) == 2
    assert float(job["paid"]) == 20 * 0.2


PLAIN = """
name: {name}
executor: {{type: process, command: {command}}}
resources: {{cpu: {cpu}, memory: 32MiB, disk: 16MiB}}
price: 1 NTX
"""


def test_a_batch_that_nobody_can_run_and_a_job_that_waits_for_a_busy_machine_say_so(
    processes: Processes, tmp_path: Path
) -> None:
    home = processes.requester
    processes.start(home)
    text = PLAIN.format(name="nb", command="['true']", cpu=4) + "type: batch\nbatch: {count: 30}\n"
    (tmp_path / "nobody.yaml").write_text(text)
    done = nunet("job", "run", str(tmp_path / "nobody.yaml"), home=home, check=False)
    assert done.returncode == 4
    told = done.stderr.splitlines()
    assert [line for line in told if "short" in line and line.startswith(("match", "execute"))] == [
        "match     nobody can run any of them: cpu.cores: 3 short"
    ]
    # how it began and how it ended, and nothing of each
    assert len(told) < 8, done.stderr
    (group,) = nunet("job", "list", "-q", home=home).stdout.split()
    why = nunet("job", "explain", group, home=home).stdout
    assert "cpu.cores: 3 short" in why
    assert "the smallest change that would have got a bid" in why
    one = nunet("job", "list", "--in", group, "-q", home=home).stdout.split()[0]
    assert "cpu.cores" in nunet("job", "explain", one, home=home).stdout

    for name, command in (("holds", "[sleep, '60']"), ("waits", "['true']")):
        (tmp_path / f"{name}.yaml").write_text(PLAIN.format(name=name, command=command, cpu=1))
    holds = nunet("job", "run", str(tmp_path / "holds.yaml"), "-d", home=home).stdout.strip()
    until(lambda: "running" in nunet("job", "show", holds, home=home).stdout)
    waits = nunet("job", "run", str(tmp_path / "waits.yaml"), "-d", home=home).stdout.strip()
    until(lambda: "next try at" in nunet("job", "show", waits, home=home).stdout)
    assert "nunet job match" not in nunet("job", "show", waits, home=home).stdout
    why = nunet("job", "explain", waits, home=home).stdout
    assert "waiting: no provider has room: 1 is busy" in why
    assert "smallest change" not in why
    nunet("job", "cancel", holds, home=home)
    # it goes on by itself, and who follows it from its beginning hears that the provider was busy then
    assert " is busy, just now: cpu.cores: 1 short" in nunet("job", "run", "--job", waits, home=home).stderr


def test_a_batch_that_is_called_off_while_its_provider_is_away_says_what_becomes_of_the_deposits(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUNET_LIMITS_ANSWER_TIMEOUT", "2s")
    monkeypatch.setenv("NUNET_LIMITS_SILENCE", "2s")
    home = processes.requester
    processes.start(home)
    text = PLAIN.format(name="away", command="[sleep, '60']", cpu=0.25) + "type: batch\nbatch: {count: 3}\n"
    (tmp_path / "away.yaml").write_text(text)
    batch = nunet("job", "run", str(tmp_path / "away.yaml"), "-d", home=home).stdout.strip()
    until(lambda: "3 running" in nunet("job", "show", batch, home=home).stdout)
    document = json.loads(nunet("node", "status", "-o", "json", home=processes.provider).stdout)
    peer, pid = document["peer_id"][-8:], document["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: f"3 of 3 for its provider …{peer}, silent since" in nunet("job", "show", batch, home=home).stdout)
    assert f"its provider …{peer}, silent since" in nunet("job", "explain", batch, home=home).stdout
    told = nunet("job", "cancel", batch, home=home).stdout
    assert re.search(rf"\(3 of 3: …{peer} .*; it is told when it is back, and an unused deposit returns after 20", told)


def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)
