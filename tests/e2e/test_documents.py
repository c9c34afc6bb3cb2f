"""What the documents tell people to type is typed here, block by block, in a real shell."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, nunet

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(document: str) -> list[str]:
    return BLOCK.findall((ROOT / "docs" / document).read_text(encoding="utf-8"))


def shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in `sh`, with `nunet` on the path, and everything below `folder`."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "nunet").write_text(f'#!/bin/sh\nexec {sys.executable} -m nunet_cli "$@"\n')
    (tools / "nunet").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return subprocess.run(
        ["sh", "-e", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110,
        env={**kept, "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(folder), "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUNET_NETWORK_NAME", f"tutorial-{os.getpid()}")
    script = "\n".join(f"echo '== {number}'\n{text}" for number, text in enumerate(blocks("tutorial.md"), 1))
    script = script.replace("pip install .\n", "mkdir -p /tmp/market\n").replace(
        "/tmp/market", str(tmp_path / "market")
    )
    script = script.replace("--local", f"--local --output-dir {tmp_path}/first")
    if shutil.which("bwrap") is None:
        script = script.replace("--process sandboxed", "--process unsandboxed")
    try:
        done = shell(script, tmp_path)
    finally:
        for name in ("requester", "provider", "authority"):
            nunet("node", "stop", home=tmp_path / "market" / name, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    said = [part.partition("\n")[2] for part in done.stdout.split("== ")]
    assert "Contract fulfilled, thank you for your business" in done.stderr
    assert "contract-database" in said[2]
    assert "settled" in said[3]
    assert "100.2 NTX" in said[3]
    assert "all 284 words are counted" in said[5]
    assert len([line for line in said[5].splitlines() if "diamond" in line and "settled" in line]) == 7
    assert "exit code 4" in said[6]
    assert "short" in said[6]
    assert "the smallest change that would have got a bid" in said[6]
    assert "not resolved yet: escrow is held" in said[8]
    assert "0.1 NTX paid, 0.1 NTX returned" in said[9]
    assert "sum" in said[9]
    assert "exit code 6" in said[10]
    assert "FAIL" in said[10]
