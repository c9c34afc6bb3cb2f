"""What users do, with a process for each node: mDNS on loopback, the command line, signals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.conftest import EXAMPLES, ROOT, Processes, needs_docker, nunet, wait_until
from tests.images import import_image


def output(*arguments: str, home: Path) -> Any:
    return json.loads(nunet(*arguments, "--output", "json", home=home).stdout)


def job_file(folder: Path, command: str, **fields: Any) -> Path:
    path = folder / "job.yaml"
    body = {"name": "test", "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": 1, **fields}
    path.write_text(json.dumps(body))
    return path


def nothing_is_left(nodes: Processes) -> None:
    def clean() -> bool:
        taken = output("capability", "show", home=nodes.provider)["taken"]
        running = [row for row in output("allocation", "list", home=nodes.provider) if not row["ended_at"]]
        return not taken and not running

    wait_until(clean, what="no lock and no allocation")


def job_run(spec: Path, home: Path) -> forks.Process:
    """Start `nunet job run`, as from a terminal."""
    return forks.Process(
        ["--home", str(home), "job", "run", str(spec)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def interpreter(*arguments: str, home: Path) -> list[str]:
    """Return what runs `nunet` with an interpreter of its own: of most kinds of processes, one test starts one so."""
    return [sys.executable, "-m", "nunet_cli", "--home", str(home), *arguments]


def test_the_readmes_first_command(tmp_path: Path) -> None:
    home, target = tmp_path / "home", tmp_path / "out"
    done = nunet("job", "run", "examples/word-count/job.yaml", "--local", "--output-dir", str(target), home=home)
    counts = json.loads((target / "counts.json").read_text())
    text = (EXAMPLES / "word-count" / "text.txt").read_text().lower()
    assert counts["market"] == text.split().count("market") + text.count("market works") * 0
    assert counts["the"] == 32
    assert str(target / "counts.json") in done.stdout
    for stage in ("post", "match", "request", "contract", "invoke", "execute", "settle"):
        assert f"\n{stage} " in "\n" + done.stderr
    assert "Contract fulfilled, thank you for your business" in done.stderr
    (contract,) = output("contract", "list", home=home)
    assert contract["state"] == "settled"
    (job,) = output("job", "list", home=home)
    assert (job["state"], job["paid"]) == ("settled", "0.1")
    # the homes of the other two are nodes as any other: their books can be looked at
    (mirror,) = output("contract", "list", home=home / "local" / "provider")
    assert (mirror["id"], mirror["state"]) == (contract["id"], "settled")
    balances = [output("status", home=node)["balances"][0]["balance"] for node in (home, home / "local" / "provider")]
    assert balances == ["99.9", "100.1"]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("primes", lambda folder: (folder / "primes.txt").read_text().split()[-1] == "999983"),
        ("mandelbrot", lambda folder: (folder / "mandelbrot.png").read_bytes().startswith(b"\x89PNG")),
    ],
)
def test_examples_run(name: str, check: Any, tmp_path: Path) -> None:
    nunet(
        "job", "run", f"examples/{name}/job.yaml", "--local", "--output-dir", str(tmp_path / "out"), home=tmp_path / "h"
    )
    assert check(tmp_path / "out")


@pytest.mark.docker
@needs_docker
def test_the_docker_example_runs_in_a_real_engine(tmp_path: Path) -> None:
    import_image("busybox:latest")
    nunet(
        "job", "run", "examples/docker/job.yaml", "--local", "--output-dir", str(tmp_path / "out"), home=tmp_path / "h"
    )
    assert (tmp_path / "out" / "sorted.txt").read_text().split() == ["apple", "fig", "medlar", "pear", "quince"]


def test_three_nodes_find_each_other_and_settle_pull_and_push(processes: Processes, tmp_path: Path) -> None:
    home = processes.requester
    subprocess.run(interpreter("node", "start", home=home), check=True, cwd=ROOT, timeout=60, stdout=subprocess.DEVNULL)
    processes.running.append(home)

    def both_there() -> Any:
        roles = {role for peer in output("peer", "list", home=home) if peer["connected"] for role in peer["roles"]}
        return roles == {"provider", "contract-database", "oracle"}

    wait_until(both_there, what="both peers in the list")
    provider = output("whoami", home=processes.provider)["peer_id"]
    spec = job_file(tmp_path, "echo hello > out.txt", outputs=[{"path": "out.txt"}])
    for options in ([], ["--push", provider]):
        posted = output("job", "post", str(spec), *options, home=home)
        done = nunet("job", "run", "--job", posted["id"], "--output-dir", str(tmp_path / posted["id"]), home=home)
        assert "settled: 0.2 NTX paid" in done.stderr
        assert (tmp_path / posted["id"] / "out.txt").read_text() == "hello\n"
        assert output("job", "show", posted["id"], home=home)["state"] == "settled"
    assert output("account", "balance", home=home)["balance"] == "99.6"
    assert output("account", "balance", home=processes.provider)["balance"] == "100.4"
    bids = output("bids", "list", home=home)
    assert [bid["verdict"] for bid in bids] == ["best", "best"]
    ping = output("peer", "ping", provider[:20], home=home)
    assert 0 < ping["rtt"] < 5000


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_stages_script_drives_a_job_with_an_embedded_node(processes: Processes, tmp_path: Path, shell: str) -> None:
    target = tmp_path / "out"
    environment = {**os.environ, "NUNET_HOME": str(processes.requester), "PATH": forks.tools(tmp_path / "tools")}
    done = subprocess.run(
        [shell, ROOT / "examples" / "stages.sh", ROOT / "examples" / "word-count" / "job.yaml", target],
        env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((target / "counts.json").read_text())["the"] == 32
    assert "Contract fulfilled, thank you for your business" in done.stderr
    assert output("job", "show", done.stdout.strip(), home=processes.requester)["state"] == "settled"
    nothing_is_left(processes)


def test_kill_9_after_any_stage_loses_nothing(processes: Processes, tmp_path: Path) -> None:
    home = processes.requester
    stages = ["match", "request", "contract", "invoke", "settle"]
    states = ["matched", "requested", "contracted", ("invoked", "running", "completed"), "settled"]
    job = ""
    for stage, state in zip(["post", *stages], ["posted", *states], strict=True):
        # in a process of its own kind where the most is at stake: work that runs, and nothing is paid
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
        process = (
            subprocess.Popen(interpreter("node", "run", home=home), **quiet)
            if stage == "invoke"
            else forks.Process(["--home", str(home), "node", "run"], **quiet)
        )
        try:
            wait_until(lambda: nunet("node", "status", home=home, check=False).returncode == 0, what="the node's start")
            if stage == "post":
                job = nunet("job", "post", str(job_file(tmp_path, "echo hi")), "--quiet", home=home).stdout.strip()
            else:
                nunet("job", stage, job, home=home)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        stored = output("job", "show", job, home=home)["state"]
        assert stored == state or stored in state, stage
    nothing_is_left(processes)


@pytest.mark.parametrize("when", ["match", "request", "contract", "invoke", "execute"])
def test_ctrl_c_leaves_nothing_behind(processes: Processes, tmp_path: Path, when: str) -> None:
    spec = job_file(tmp_path, "sleep 60")
    process = job_run(spec, processes.requester) if when != "execute" else subprocess.Popen(
        interpreter("job", "run", str(spec), home=processes.requester), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(when):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == 130
    assert "Traceback" not in rest
    assert "is cancelled" in rest
    nothing_is_left(processes)
    for contract in output("contract", "list", home=processes.requester):
        assert contract["state"] in ("refunded", "refused")


def test_ctrl_c_when_the_work_is_done_pays_for_it(processes: Processes, tmp_path: Path) -> None:
    spec = job_file(tmp_path, "true")
    process = job_run(spec, processes.requester)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("execute   completed"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    # the settlement takes milliseconds: the signal may find the job settled, or the command gone
    assert process.wait(60) in (0, 130)
    assert "Traceback" not in rest
    assert output("job", "list", home=processes.requester)[0]["state"] == "settled"
    nothing_is_left(processes)


def test_ctrl_c_with_a_running_node_says_what_goes_on(processes: Processes, tmp_path: Path) -> None:
    processes.start(processes.requester)
    spec = job_file(tmp_path, "sleep 60")
    process = job_run(spec, processes.requester)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("execute"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(30) == 130
    assert "goes on in the running node" in rest
    assert "nunet job cancel job-" in rest
    (job,) = output("job", "list", home=processes.requester)
    assert job["state"] == "running"
    nunet("job", "cancel", job["id"], home=processes.requester)
    nothing_is_left(processes)


def test_a_machine_too_small_declines_and_explain_says_by_how_much(processes: Processes, tmp_path: Path) -> None:
    home = processes.requester
    spec = job_file(tmp_path, "true", resources={"cpu": 64, "memory": "3GiB"})
    done = nunet("job", "run", str(spec), home=home, check=False)
    assert done.returncode == 4
    assert "memory: 2 GiB short" in done.stderr
    (job,) = output("job", "list", home=home)
    text = nunet("job", "explain", job["id"][:10], home=home).stdout
    assert "cpu.cores" in text
    assert "-63" in text
    assert "-2 GiB" in text


def test_a_job_that_fails_exits_with_1_and_its_logs_are_there(processes: Processes, tmp_path: Path) -> None:
    spec = job_file(tmp_path, "echo reason >&2; exit 9")
    target = tmp_path / "out"
    done = nunet("job", "run", str(spec), "--output-dir", str(target), home=processes.requester, check=False)
    assert done.returncode == 1
    assert "the job exited with 9" in done.stderr
    assert (target / "stderr").read_text() == "reason\n"
    (job,) = output("job", "list", home=processes.requester)
    assert nunet("job", "logs", "--stderr", job["id"], home=processes.requester).stdout == "reason\n"
    assert output("account", "balance", home=processes.requester)["balance"] == "100"


def test_offboarding_stops_the_bids(processes: Processes, tmp_path: Path) -> None:
    nunet("offboard", home=processes.provider)
    processes.start(processes.requester)
    spec = job_file(tmp_path, "true")
    job = nunet("job", "post", str(spec), "--quiet", home=processes.requester).stdout.strip()
    done = nunet("job", "match", job, "--timeout", "2s", home=processes.requester, check=False)
    assert done.returncode == 4
    assert "nobody to ask" in done.stderr


def test_after_a_local_job_the_same_home_joins_a_network(processes: Processes, tmp_path: Path) -> None:
    job, home = str(EXAMPLES / "primes" / "job.yaml"), processes.requester
    nunet("job", "run", job, "--local", "--output-dir", str(tmp_path / "local"), home=home)
    # the authority of the local job is not who this home trusts from now on
    processes.start(home)
    nunet("job", "run", job, "--output-dir", str(tmp_path / "out"), home=home)
    contracts = json.loads(nunet("contract", "list", "--output", "json", home=home).stdout)
    assert [row["state"] for row in contracts] == ["settled", "settled"]
    assert len({row["contract_database"] for row in contracts}) == 2
    assert json.loads(nunet("account", "balance", "--output", "json", home=home).stdout)["balance"] == "99.8"
