"""A forked command is as one with an interpreter of its own: what it prints, how it ends, and whose child it is."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks
from tests.conftest import ROOT, nunet, wait_until


@pytest.mark.parametrize(
    "words", ["version", "job show job-0", "config set network.rate many", "--nonsense", "job list -o csv"]
)
def test_it_says_the_same_and_ends_alike(words: str, tmp_path: Path) -> None:
    command = ["--home", str(tmp_path / "home"), *words.split()]
    real = subprocess.run(
        [sys.executable, "-m", "nunet_cli", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    done = forks.run(command, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (real.returncode, real.stdout, real.stderr)


def test_it_gets_signals_and_tells_how_it_ended(tmp_path: Path) -> None:
    for number, code in ((signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)):
        process = forks.Process(
            ["--home", str(tmp_path), "node", "run"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        wait_until(lambda pid=process.pid: os.getsid(pid) == pid, what="a session of its own")  # type: ignore[misc]
        wait_until(lambda: nunet("node", "status", home=tmp_path, check=False).returncode == 0, what="the node's start")
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(30) == process.poll() == code


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_the_node_that_it_leaves_behind_is_a_session_of_its_own(tmp_path: Path) -> None:
    nunet("node", "start", home=tmp_path)
    pid = json.loads((tmp_path / "node.lock").read_text())["pid"]
    process = Path(f"/proc/{pid}")
    try:
        assert os.getsid(pid) == pid
        assert (process / "cwd").readlink() == Path("/")
        assert (process / "fd" / "1").readlink() == tmp_path / "node.log"
    finally:
        nunet("node", "stop", home=tmp_path)
    wait_until(lambda: not process.exists(), what="the end of the process")
