"""What a person at a terminal is asked, and that nobody else is asked anything."""

import functools
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests import forks
from tests.conftest import ROOT, nunet, wait_until


def at_a_terminal(
    *arguments: str, home: Path, answers: Sequence[tuple[str, str | Callable[[str], str]]], forked: bool = True
) -> tuple[int, str]:
    """Run a command at a terminal, type each answer when its question is there; return exit code and screen.

    An answer may depend on what is on the screen. What is not forked has an interpreter of its own.
    """
    master, slave = pty.openpty()
    command = ["--home", str(home), *arguments]
    options: dict[str, Any] = {
        "stdin": slave, "stdout": slave, "stderr": slave, "start_new_session": True, "cwd": ROOT,
        "env": {**os.environ, "TERM": "dumb"},
    }  # fmt: skip
    process: Any = (
        forks.Process(command, **options)
        if forked
        else subprocess.Popen([sys.executable, "-m", "nunet_cli", *command], **options)
    )
    os.close(slave)
    os.set_blocking(master, False)
    screen = ""

    def read() -> str:
        nonlocal screen
        try:
            screen += os.read(master, 65536).decode(errors="replace")
        except (BlockingIOError, OSError):
            pass
        return screen

    try:
        seen = 0
        for question, answer in answers:
            at = wait_until(lambda q=question, s=seen: read().find(q, s) + 1, what=f"{question!r} on the screen")
            seen = at + len(question)
            os.write(master, (answer if isinstance(answer, str) else answer(screen)).encode() + b"\n")
        wait_until(lambda: (read(), process.poll())[1] is not None, timeout=30, what="the end of the command")
    finally:
        process.kill()
        read()
        os.close(master)
    return process.wait(), screen


def test_onboarding_asks_a_person_and_offers_what_they_said(tmp_path: Path) -> None:
    # what is asked about executors depends on the machine
    code, screen = at_a_terminal(
        "onboard", home=tmp_path,
        answers=[("in percent [50]", "0"), ("in percent [50]", "40"), ("Price in NTX", "a lot"), ("Price in NTX", "1.5/h"),
                 ("Longest job", ""), ("Country code", "SE"),
                 *([("Images that strangers may run", "lab/*")] if works("docker") else []), ("[Y/n]", "n"),
                 *([("[Y/n]", "n")] if works("sandbox") else [])],
        forked=False,
    )  # fmt: skip
    assert code == 0, screen
    assert "between 1 and 90" in screen
    assert "█" in screen
    shown = json.loads(nunet("capability", "show", "--output", "json", home=tmp_path).stdout)
    assert shown["price"]["amount"] == "1.5"
    assert shown["registered"]["localities"][0]["name"] == "SE"
    assert shown["registered"]["time"]["max"] == 4 * 3600
    machine = json.loads(nunet("capability", "benchmark", "--output", "json", home=tmp_path).stdout)["machine"]
    assert abs(shown["registered"]["resources"]["cpu"]["cores"] - 0.4 * machine["cpu"]["cores"]) < 0.01
    images = nunet("config", "get", "executor.docker.images", home=tmp_path).stdout
    assert ("lab/*" in images) == works("docker")
    assert nunet("node", "status", home=tmp_path, check=False).returncode == 3


@functools.cache
def works(executor: str) -> bool:
    found = json.loads(nunet("doctor", "--output", "json", home=Path("/nonexistent/home"), check=False).stdout)
    return any(item["check"] == executor and item["state"] == "ok" for item in found)


def test_without_a_terminal_or_with_options_nothing_is_asked(tmp_path: Path) -> None:
    nunet("onboard", "--no-benchmark", home=tmp_path / "a", stdin="")
    code, screen = at_a_terminal("onboard", "--cpu", "0.5", "--no-benchmark", home=tmp_path / "b", answers=[])
    assert (code, "in percent" in screen) == (0, False)


def test_what_cannot_be_undone_is_asked_of_a_person_only(tmp_path: Path) -> None:
    code, screen = at_a_terminal("offboard", "--force", home=tmp_path, answers=[("[y/N]", "n")])
    assert (code, "nothing was done" in screen) == (2, True)
    code, screen = at_a_terminal("offboard", "--force", "--yes", home=tmp_path, answers=[])
    assert (code, "offboarded" in screen) == (0, True)
    assert "offboarded" in nunet("offboard", "--force", home=tmp_path, stdin="").stdout


def test_no_colour_where_it_is_not_wanted(tmp_path: Path) -> None:
    nunet("job", "post", "-", home=tmp_path, stdin='{"name": "x", "executor": {"type": "null"}}')
    os.environ.pop("NO_COLOR", None)
    code, plain = at_a_terminal("--no-color", "job", "list", home=tmp_path, answers=[])
    assert (code, "\x1b[" in plain) == (0, False)
    assert "\x1b[" not in nunet("job", "list", home=tmp_path).stdout
