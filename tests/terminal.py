"""A real terminal for the tests: tmux, with what is typed into it and what its screen shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pytest

from tests.conftest import ROOT, wait_until

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


class Terminal:
    """A context with a shell in a terminal of its own.

    Args:
        folder: for the terminal's socket, and where the shell starts.
        columns: the width.
        lines: the height.
        environment: beside this process's own.
    """

    def __init__(
        self, folder: Path, *, columns: int = 100, lines: int = 50, environment: dict[str, str] | None = None
    ) -> None:
        self._folder, self._size = folder, (columns, lines)
        # a socket's path must be short
        self._name = f"nunet-{os.getpid()}-{abs(hash(folder)) % 10**6}"
        self._environment = {"TERM": "xterm-256color", **(environment or {})}

    def __enter__(self) -> Terminal:
        tools = self._folder / "tools"
        tools.mkdir(exist_ok=True)
        (tools / "nunet").write_text(f'#!/bin/sh\nexec {sys.executable} -m nunet_cli "$@"\n')
        (tools / "nunet").chmod(0o755)
        settings = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(self._folder)}
        (tools / "bashrc").write_text("PS1='$ '\n")
        columns, lines = self._size
        self._tmux("new-session", "-d", "-x", str(columns), "-y", str(lines), "-c", str(self._folder),
                   f"bash --noprofile --rcfile {tools}/bashrc", env={**os.environ, **settings, **self._environment})  # fmt: skip
        self.wait_for("$")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tmux("kill-server")

    def _tmux(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        command = ["tmux", "-f", "/dev/null", "-L", self._name, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env, timeout=20).stdout

    def type(self, text: str) -> None:
        """Type a line, and Enter."""
        self._tmux("send-keys", "-l", text)
        self._tmux("send-keys", "Enter")

    def press(self, key: str) -> None:
        """Press a key, by tmux's name of it, such as `C-c`."""
        self._tmux("send-keys", key)

    def screen(self, *, colours: bool = False) -> str:
        """Return what the terminal shows and what has scrolled off it, without trailing blank lines."""
        text = self._tmux("capture-pane", "-p", "-S", "-2000", *(["-e"] if colours else []))
        return text.rstrip() + "\n"

    def wait_for(self, text: str, timeout: float = 90) -> str:
        """Return the screen once it has a text on it."""
        return self.wait_until(lambda screen: text in screen, timeout, what=repr(text))

    def wait_until(self, condition: Callable[[str], bool], timeout: float = 90, what: str = "the condition") -> str:
        """Return the screen once a condition of it is true."""
        try:
            return str(wait_until(lambda: condition(now := self.screen()) and now, timeout, what=what))
        except AssertionError as error:
            raise AssertionError(f"{error}; the screen:\n{self.screen()}") from None
