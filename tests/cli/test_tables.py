"""Tables: in a pipe everything, at a terminal one line a row, however narrow."""

import json
import os
import pty
import subprocess
import sys

import pytest
from rich.cells import cell_len

from tests.conftest import ROOT

CODE = "import json, sys; from nunet_cli.cli.output import table; table(*json.loads(sys.argv[1]))"
PEER = "12D3KooWMot5M8NfiKTecanq4xvPUjqtxyLxU7QyV3cK7JxfmDEZ"
HEADERS = ["id", "job", "price", "why"]
ROWS = [
    [PEER, "job-0123456789abcdef0123", "0.5 NTX", "too little memory: 1GiB for 8GiB, and no GPU at all"],
    ["short", "日本語テキスト", "", "two\nlines\tand a tab"],
]


def command() -> list[str]:
    return [sys.executable, "-c", CODE, json.dumps([ROWS, HEADERS])]


def at_terminal(columns: int, **environment: str) -> str:
    """Return what a terminal of so many columns gets."""
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), **environment}
    env = {name: value for name, value in env.items() if value}
    try:
        subprocess.run(command(), cwd=ROOT, env=env, stdout=follower, check=True, timeout=60)
    finally:
        os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 65536):
            shown += piece
    except OSError:
        # Linux says so at the end
        pass
    finally:
        os.close(leader)
    return shown.decode().replace("\r\n", "\n")


def test_a_pipe_has_everything() -> None:
    done = subprocess.run(command(), cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [
        f"{'ID':<52}  JOB                       PRICE    WHY",
        f"{PEER}  {ROWS[0][1]}  0.5 NTX  {ROWS[0][3]}",
        f"{'short':<52}  日本語テキスト                     two lines and a tab",
    ]


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_a_terminal_has_one_line_a_row(columns: int) -> None:
    lines = at_terminal(columns, NO_COLOR="1").splitlines()
    assert len(lines) == 3
    assert max(map(cell_len, lines)) <= columns
    assert lines[0].split() == (["ID", "JOB", "PRICE", "WHY"] if columns >= 80 else ["ID", "PRICE", "WHY"])
    assert ("…" in lines[1]) == (columns < 200)
    assert PEER not in lines[1]


def test_the_heading_is_bold_where_that_can_be_shown() -> None:
    assert at_terminal(200, NO_COLOR="").startswith("\x1b[1mID")
    for plain in ({"NO_COLOR": "1"}, {"NO_COLOR": "", "TERM": "dumb"}):
        assert "\x1b" not in at_terminal(200, **plain)
