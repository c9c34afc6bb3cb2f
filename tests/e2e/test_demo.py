"""The demonstration: a market of five providers and ten jobs, in one command, that leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, nunet, wait_until


def test_the_demo_runs_ten_jobs_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    document = json.loads(nunet("demo", "--output", "json", home=tmp_path / "unused").stdout)
    states = {row["name"]: row["state"] for row in document["jobs"]}
    assert states.pop("too-cheap") == "expired"
    assert set(states.values()) == {"settled"}
    where = {row["name"]: row["provider"] for row in document["jobs"]}
    assert where["in-denmark"] == "cluster"
    assert where["large"] in ("server", "cluster")
    assert where["not-in-sweden"] not in ("laptop", "desktop")
    assert sum(float(row["earned"]) > 0 for row in document["providers"]) >= 3
    assert document["jobs"][-1]["suggestion"].startswith("price.max: 0.0")
    assert list(tmp_path.iterdir()) == []


def test_the_demo_is_live_on_a_terminal_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-m", "nunet_cli", "demo"], cwd=ROOT, stdout=slave, stderr=slave, stdin=slave, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    os.set_blocking(master, False)
    seen = bytearray()

    def shown(text: bytes) -> bool:
        try:
            seen.extend(os.read(master, 65536))
        except (BlockingIOError, OSError):
            pass
        return text in seen

    try:
        wait_until(lambda: shown(b"workstation"), what="the table of providers")
        wait_until(lambda: shown(b"running"), what="a job that runs")
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        os.close(master)
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not [child for child in children if child.is_running() and child.status() != "zombie"])
