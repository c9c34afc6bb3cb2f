"""The language-independent suite `shs1-test` (npm) against our handshake, in both roles; and the JavaScript peers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import forks

PEER = Path(__file__).with_name("shs1_peer.py")
MODULES = Path(os.environ.get("NUNET_NODE_MODULES", "node_modules"))

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(
        shutil.which("node") is None or not (MODULES / "shs1-test").exists(),
        reason="needs Node.js and the npm package shs1-test (NUNET_NODE_MODULES names the folder)",
    ),
]


@pytest.mark.parametrize("role", ["server", "client"])
def test_shs1_suite(role: str, tmp_path: Path) -> None:
    script = tmp_path / "peer"
    # the role comes first, then what the suite says; it starts the peer for each of its questions
    forks.write_tool(tmp_path / "fork", str(PEER))
    script.write_text(f'#!/bin/sh\nexec {tmp_path}/fork {role} "$@"\n')
    script.chmod(0o755)
    suite = MODULES / "shs1-test" / f"test-{role}.js"
    done = subprocess.run(["node", suite, script, "7"], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed" in done.stdout
