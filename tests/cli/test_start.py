"""What a command imports: its own module and what that needs, and nothing of the others'."""

import subprocess
import sys
from pathlib import Path

import pytest

from nunet_cli.cli.table import COMMANDS
from tests.conftest import ROOT

CODE = """
import sys
from nunet_cli.__main__ import main

try:
    main()
finally:
    print("IMPORTED", *sys.modules)
"""
MODULES = {f"nunet_cli.cli.{place.partition(':')[0]}" for place, _ in COMMANDS.values()}


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
