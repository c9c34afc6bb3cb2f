"""`nunet job run` at a real terminal: what a person sees while a job goes on, and what Ctrl-C does."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import Processes, nunet, wait_until
from tests.terminal import Terminal, needs_tmux

pytestmark = needs_tmux

JOB = """
name: seen
executor: {type: process, command: [sh, -c, 'echo first; while ! test -e go; do sleep 0.1; done']}
resources: {cpu: 0.5, memory: 64MiB, disk: 64MiB}
inputs: [{path: data}]
outputs: [{path: data}]
price: 1 NTX
time: {max_duration: 2m}
"""


@pytest.fixture
def job(processes: Processes, tmp_path: Path) -> str:
    """A job that ends when a file `go` is in its folder; the requester runs."""
    processes.start(processes.requester)
    (tmp_path / "data").write_bytes(bytes(4 * 2**20))
    (tmp_path / "job.yaml").write_text(JOB)
    return f"nunet --home {processes.requester} job run job.yaml"


def jobs(home: Path) -> list[str]:
    return [row["state"] for row in json.loads(nunet("job", "list", "--output", "json", home=home).stdout)]


def test_bids_output_and_receipt(processes: Processes, job: str, tmp_path: Path) -> None:
    with Terminal(tmp_path, columns=180) as terminal:
        terminal.type(job)
        terminal.wait_for("| first")
        bids = r"PROVIDER +PRICE +STARTS +BUSY +ANSWER\n +…\w{8} +0\.2 NTX +\d\d:\d\d:\d\d +0% +bids\n"
        # the region below is drawn again all the time
        terminal.wait_until(lambda screen: bool(re.search(bids, screen)) and "the job runs" in screen)
        (work,) = (processes.provider / "allocations").glob("*/work")
        (work / "go").touch()
        screen = terminal.wait_for("stderr")
        assert "1 output file fetched and checked (4.0 MiB with the logs)" in screen
        for line in (r"job +seen  job-\w+", r"provider +12D3KooW\w+", r"contract +bafk\w+\n", r"state +settled",
                     r"paid +0\.2 NTX of at most 1 NTX", r"balance +99\.8 NTX at …\w{8}"):  # fmt: skip
            assert re.search(line, screen), line
        # the region that changed is gone
        assert "the job runs" not in screen
    assert jobs(processes.requester) == ["settled"]
    environment = {"NUNET_HOME": str(processes.requester)}
    with Terminal(tmp_path, columns=80, environment=environment) as terminal:
        for number, command in enumerate(("bids list", "contract list", "job list", "peer list", "account history")):
            # the screen of the command before is not taken for this one's
            end = f"\nend {number}\n"
            terminal.type(f"clear; nunet {command}; echo {end.strip()}")
            text = terminal.wait_for(end)
            # one line a row: nothing is broken to the next line
            rows = text[: text.index(end)].splitlines()
            assert len(rows) > 1, text
            ends = [0, *(match.start() for match in re.finditer(r"(?<=\s\s)\S", rows[0]))]
            assert all(row[at - 1] == " " for row in rows[1:] for at in ends[1:] if at < len(row)), rows
    assert "job-" in nunet("job", "list", home=processes.requester).stdout.split()[-6]


def test_ctrl_c_leaves_the_job_and_a_second_one_stops_it(processes: Processes, job: str, tmp_path: Path) -> None:
    with Terminal(tmp_path, columns=180) as terminal:
        terminal.type(job)
        terminal.wait_for("| first")
        terminal.press("C-c")
        screen = terminal.wait_for("Ctrl-C again")
        assert "(running) goes on in the running node" in screen
        assert "stop it with: nunet job cancel job-" in screen
        assert jobs(processes.requester) == ["running"]
        terminal.press("C-c")
        terminal.wait_for("is cancelled")
        terminal.type("echo code=$?")
        terminal.wait_for("code=130")
    assert jobs(processes.requester) == ["cancelled"]


def test_a_job_that_is_not_waited_for_longer_goes_on(processes: Processes, job: str, tmp_path: Path) -> None:
    done = nunet("job", "run", str(tmp_path / "job.yaml"), "--timeout", "2s", home=processes.requester, check=False)
    assert done.returncode == 5
    assert "goes on in the running node" in done.stderr
    assert "has not ended in the time that --timeout gives it" in done.stderr
    # on a busy machine the two seconds may be over at any stage
    assert len(jobs(processes.requester)) == 1
    wait_until(lambda: jobs(processes.requester) == ["running"], what="the job to go on")
