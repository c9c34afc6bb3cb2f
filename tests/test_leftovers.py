"""A run of the tests leaves nothing on the machine, and fails where it does."""

import os
import subprocess
import sys
from pathlib import Path

from tests import leftovers
from tests.conftest import ROOT


def test_what_lives_on_is_named_and_ended(tmp_path: Path) -> None:
    environment = {**os.environ, leftovers.MARK: f"another-{os.getpid()}"}
    with subprocess.Popen(["sleep", "100"], env=environment) as process:
        found = leftovers.left_behind(f"another-{os.getpid()}", tmp_path, "no-such-tag", patience=0.1)
        assert found == [f"process {process.pid}: sleep 100"]
        assert process.wait(10) == -9
    assert leftovers.left_behind(f"another-{os.getpid()}", tmp_path, "no-such-tag") == []


def test_a_run_that_leaves_something_fails_and_says_what(tmp_path: Path) -> None:
    place = tmp_path / "test_that_leaves_a_process.py"
    place.write_text("import subprocess\n\ndef test():\n    subprocess.Popen(['sleep', '101'])\n")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", leftovers.MARK))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "1", "-c", "pyproject.toml", "-p", "tests.conftest", "-p", "no:cacheprovider",
         "--basetemp", str(tmp_path / "t"), str(place)],
        env={**environment, "TESTS_PATIENCE": "0.5"}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "1 passed" in done.stdout
    assert "left behind: process" in done.stdout
    assert "sleep 101" in done.stdout
    assert done.returncode == 1
