"""Completions and man pages: as the command tree has them, and good in the real shells and `man`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nunet_cli.cli import pages
from tests.conftest import ROOT


def test_the_committed_pages_and_scripts_are_current(tmp_path: Path) -> None:
    for path in pages.write_all(tmp_path):
        committed = ROOT / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), f"stale; run: python -m nunet_cli.cli.pages  ({committed})"
    names = {path.name for path in (ROOT / "man").iterdir()}
    assert names == set(pages.man_pages())


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="needs mandoc")
def test_man_pages_are_clean() -> None:
    for page in (ROOT / "man").glob("*.1"):
        done = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True, check=False
        )
        assert done.stdout == "", page


def completions(shell: str, script: str, tmp_path: Path) -> str:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "nunet").write_text(f'#!/bin/sh\nexec {sys.executable} -m nunet_cli "$@"\n')
    (bin_folder / "nunet").chmod(0o755)
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [shell, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bash_completes(tmp_path: Path) -> None:
    script = f"""source {ROOT}/completions/nunet
COMP_WORDS=(nunet job se); COMP_CWORD=2; _nunet_completion nunet; echo "${{COMPREPLY[@]}}"
COMP_WORDS=(nunet job run --pu); COMP_CWORD=3; _nunet_completion nunet; echo "${{COMPREPLY[@]}}" """
    assert completions("bash", script, tmp_path).split() == ["settle", "--push", "--pull"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes(tmp_path: Path) -> None:
    out = completions("fish", f"source {ROOT}/completions/nunet.fish; complete -C 'nunet contract '", tmp_path)
    assert [line.split("\t")[0] for line in out.splitlines()] == [
        "dispute", "export", "list", "resolve", "show", "verify"
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_script(tmp_path: Path) -> None:
    script = f"fpath=({ROOT}/completions $fpath); autoload -Uz compinit; compinit -D; echo $_comps[nunet]"
    assert completions("zsh", script, tmp_path).strip() == "_nunet"
