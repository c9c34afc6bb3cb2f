"""What a command imports: its own module and what that needs, and nothing of the others', nor of the node's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nunet_cli.cli.table import COMMANDS
from tests.conftest import ROOT, nunet

CODE = """
import sys
from nunet_cli.__main__ import main

try:
    main()
finally:
    print("IMPORTED", *sys.modules)
"""
MODULES = {f"nunet_cli.cli.{place.partition(':')[0]}" for place, _ in COMMANDS.values()}
# of the node's own, and what brings much along
HEAVY = {
    "trio", "starlette", "hypercorn", "tinydb", "msgspec", "yaml", "nacl", "psutil", "docker", "zeroconf",
    "rich.console", "rich.table", "http.client", "email", "ssl", "asyncio",
}  # fmt: skip


def imported(home: Path, *words: str) -> set[str]:
    """Return the modules that are there at the end of a command."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, "--home", home, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (("version",), {"about"}), (("--help",), set()), (("job", "--help"), set()), (("bids", "--help"), set()),
        (("bids", "list", "--help"), {"records"}), (("job", "list", "--help"), {"job_views", "job"}),
        (("config", "path"), {"configuration"}),
    ],
)  # fmt: skip
def test_a_command_imports_no_other_commands(words: tuple[str, ...], own: set[str], tmp_path: Path) -> None:
    there = imported(tmp_path, *words)
    assert there & MODULES == {f"nunet_cli.cli.{name}" for name in own}


def test_a_list_of_a_running_node_imports_nothing_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUNET_NETWORK_NAME", f"start-{os.getpid()}")
    monkeypatch.setenv("NUNET_NETWORK_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("NUNET_NETWORK_DISCOVERY", "false")
    nunet("job", "post", "-", home=tmp_path, stdin='{"name": "first", "executor": {"type": "null"}}')
    nunet("node", "start", home=tmp_path)
    try:
        for words in (("job", "list"), ("bids", "list"), ("job", "list", "--output", "json"), ("peer", "list")):
            assert imported(tmp_path, *words) & HEAVY == set(), words
    finally:
        nunet("node", "stop", home=tmp_path)
