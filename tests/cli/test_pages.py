"""Completions and man pages: as the command tree has them, and good in the real shells and `man`."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import typer

from nunet_cli.cli import manual, pages
from nunet_cli.cli.app import whole_tree
from nunet_cli.cli.examples import EXAMPLES
from nunet_cli.cli.table import COMMANDS
from nunet_cli.config_file import keys
from nunet_cli.database.store import Store
from nunet_cli.records.jobs import JOBS, Job
from tests.conftest import ROOT, nunet


def test_the_committed_pages_and_scripts_are_current(tmp_path: Path) -> None:
    for path in pages.write_all(tmp_path):
        committed = ROOT / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), f"stale; run: python -m nunet_cli.cli.pages  ({committed})"
    names = {path.name for path in (ROOT / "man").iterdir()}
    assert names == {*pages.man_pages(), *manual.DOCUMENTS}


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="needs mandoc")
def test_man_pages_are_clean() -> None:
    for page in (ROOT / "man").iterdir():
        done = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True, check=False
        )
        assert done.stdout == "", page


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man")
def test_man_shows_the_pages() -> None:
    for page, texts in {
        "nunet-job-spec.5": ("time.deadline", "depends_on", "NUNET_BATCH_INDEX"),
        "nunet-config.5": ("network.topics", "default: nunet"), "nunet-protocol.7": ("nunet-envelope-v1", "bid_request"),
        "nunet-job.1": ("nunet job wait", "--detach"),
    }.items():  # fmt: skip
        done = subprocess.run(
            ["man", "-l", ROOT / "man" / page],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MANWIDTH": "100"},
        )
        for text in texts:
            assert text in done.stdout, page
        assert done.stderr == ""


def test_every_configuration_key_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert [key for key in keys() if f"`{key}`" not in text and f"`{key.rsplit('.')[-1]}`" not in text] == []


def test_every_command_and_flag_is_in_its_page() -> None:
    for name, command in whole_tree().commands.items():
        page = (ROOT / "man" / (f"nunet-{name}.1" if hasattr(command, "commands") else "nunet.1")).read_text()
        for inner in getattr(command, "commands", {name: command}).values():
            assert inner.name.replace("-", "\\-") in page
            for param in inner.params:
                for flag in [*param.opts, *param.secondary_opts] if param.param_type_name == "option" else []:
                    assert flag.replace("-", "\\-") in page, (name, inner.name, flag)


def commands() -> dict[str, typer.core.TyperCommand]:
    return {
        f"{name} {inner_name}".strip() if inner is not command else name: inner
        for name, command in whole_tree().commands.items()
        for inner_name, inner in getattr(command, "commands", {name: command}).items()
    }


def test_every_command_has_two_examples_that_it_understands() -> None:
    known = commands()
    assert set(known) == set(EXAMPLES) - {""}
    for name, lines in EXAMPLES.items():
        assert len(set(lines)) == 2
        for line in lines:
            # the last of a pipe, without what the shell does
            words = shlex.split(re.sub(r"\$\([^)]*\)", "job-1f2e", line))
            while "|" in words:
                words = words[words.index("|") + 1 :]
            for mark in ("<", ">"):
                words = words[: words.index(mark)] if mark in words else words
            assert words.pop(0) == "nunet"
            while words and words[0].startswith("--") and words[0] in ("--home", "--node"):
                del words[:2]
            if name:
                assert " ".join(words).startswith(name), line
                arguments = words[len(name.split()) :]
                known[name].make_context(name, arguments, resilient_parsing=False).close()


def test_the_line_of_a_command_in_lists_is_the_beginning_of_its_help() -> None:
    known = commands()
    assert known.keys() == COMMANDS.keys()
    for name, (_, line) in COMMANDS.items():
        told = " ".join((known[name].help or "").split())
        assert line.endswith(".") and told.startswith(line.removesuffix(".")), name
        assert told[len(line) - 1] in ".,;: ", name


def test_every_command_of_a_module_is_in_the_table() -> None:
    known = {command.callback.__wrapped__ for command in commands().values()}  # type: ignore[union-attr]
    registered = {
        info.callback
        for name, module in list(sys.modules.items())
        if name.startswith("nunet_cli.cli.")
        for registrar in vars(module).values()
        if isinstance(registrar, typer.Typer)
        for info in registrar.registered_commands
    }
    assert len(registered) > 40
    assert registered <= known


def test_the_examples_are_in_the_help_and_short_lines_are_whole() -> None:
    text = nunet("job", "wait", "--help").stdout
    assert "Examples:\n    nunet job wait job-1f2e job-77aa --timeout 1h\n" in text
    for group in ("", "job", "contract", "node"):
        assert "..." not in nunet(*group.split(), "--help").stdout.partition("Commands:")[2]


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


@pytest.fixture
def home_with_jobs(tmp_path: Path) -> Path:
    async def fill() -> None:
        with Store(tmp_path / "home") as store:
            for number, state in enumerate(("settled", "running")):
                job = Job(f"job-{number}abc", f"count-{number}", "did:key:z", "{}", "b", "", "", state)
                await store.change(lambda t, job=job: t[JOBS].put(job))  # type: ignore[misc]

    trio.run(fill)
    return tmp_path / "home"


def test_bash_completes_ids(home_with_jobs: Path, tmp_path: Path) -> None:
    script = f"""source {ROOT}/completions/nunet; export NUNET_HOME={home_with_jobs}
COMP_WORDS=(nunet job show job-); COMP_CWORD=3; _nunet_completion nunet; echo "${{COMPREPLY[@]}}"
COMP_WORDS=(nunet job show job-0); COMP_CWORD=3; _nunet_completion nunet; echo "${{COMPREPLY[@]}}"
COMP_WORDS=(nunet contract show x); COMP_CWORD=3; _nunet_completion nunet; echo "${{COMPREPLY[@]}}" """
    assert completions("bash", script, tmp_path).split() == ["job-1abc", "job-0abc", "job-0abc"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_ids_with_what_they_are(home_with_jobs: Path, tmp_path: Path) -> None:
    script = (
        f"set -x NUNET_HOME {home_with_jobs}; source {ROOT}/completions/nunet.fish; complete -C 'nunet job show job-'"
    )
    lines = sorted(completions("fish", script, tmp_path).splitlines())
    assert lines == ["job-0abc\tcount-0, settled", "job-1abc\tcount-1, running"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes_ids(home_with_jobs: Path, tmp_path: Path) -> None:
    # the completion system wants a terminal; what the script asks of the command is asked here as it asks it
    script = f"export NUNET_HOME={home_with_jobs}; _TYPER_COMPLETE_ARGS='nunet job show job-' _NUNET_COMPLETE=complete_zsh nunet"
    out = completions("zsh", script, tmp_path)
    assert '"job-0abc":"count-0, settled"' in out
    assert '"job-1abc":"count-1, running"' in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_installed_where_the_shell_looks(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = Path(nunet("completion", shell, "--install").stdout.strip())
    assert tmp_path in path.parents
    assert path.read_text() == nunet("completion", shell).stdout
