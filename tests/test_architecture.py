"""Who may import whom, and how big a room may grow."""

import subprocess
import sys

from tests.conftest import ROOT


def test_imports_go_one_way() -> None:
    lint = ROOT / "pyproject.toml"
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    done = subprocess.run([*command, "--config", lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_the_command_line_starts_without_the_heavy_imports() -> None:
    code = "import sys, nunet_cli.cli.app; print([m for m in sys.modules if m in sys.argv[1:]])"
    heavy = [
        "trio",
        "docker",
        "zeroconf",
        "nacl",
        "starlette",
        "hypercorn",
        "tinydb",
        "rich",
        "msgspec",
        "psutil",
        "yaml",
    ]
    done = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
