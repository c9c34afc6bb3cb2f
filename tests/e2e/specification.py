"""Docs/specification.md held by a run: every function that it names is executed by nodes in processes of their own.

    python -m tests.e2e.specification
    python -m tests.e2e.specification --tests

An authority, two providers and a requester, by the command line alone, go through everything that the table names; each
chapter asserts what its part of the table says. At the end the run fails for what was never executed, and names it.
With `--tests` the tests that the table names are run instead, and each must execute the functions of its own rows.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nunet_cli import quantities
from nunet_cli.api.client import ApiClient, socket_path
from tests.conftest import ROOT, wait_until
from tests.executed.sitecustomize import FOLDER
from tests.specification import ROWS, named

NODES = ("authority", "provider-a", "provider-b", "requester")
PRICES = {"provider-a": "0.2", "provider-b": "0.3"}
ROLES = ("--role", "contract-database", "--role", "oracle")
DIAMOND = ROOT / "examples" / "diamond" / "job.yaml"
SMALL = {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}


class Market:
    """The nodes, their homes, and what was typed.

    Args:
        folder: where all of it is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "names").write_text("\n".join(named()))
        path = [str(ROOT / "tests" / "executed"), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NUNET_")},
            "PYTHONPATH": os.pathsep.join(filter(None, path)), FOLDER: str(folder),
            "NUNET_NETWORK_NAME": f"specification-{os.getpid()}", "NUNET_NETWORK_LISTEN": "127.0.0.1:0",
            "NUNET_NETWORK_DISCOVERY": "false", "NUNET_EXECUTOR_PROCESS_FOREIGN": "unsandboxed",
            "NUNET_LIMITS_HEARTBEAT": "1s", "NUNET_DEFAULT_SEARCH_TIMEOUT": "15s",
        }  # fmt: skip
        self.did: dict[str, str] = {}

    def type(
        self, who: str, *words: str | Path, ends: int = 0, timeout: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """Type a command at a node's machine; it must end with an exit code."""
        command = [sys.executable, "-m", "nunet_cli", "--home", str(self.folder / who), *map(str, words)]
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )
        said = f"{who}: nunet {' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == ends, said
        assert "Traceback" not in done.stderr, said
        return done

    def ask(self, who: str, *words: str | Path) -> Any:
        """Return the document that a command prints."""
        return json.loads(self.type(who, *words, "--output", "json").stdout)

    def post(self, spec: Path | dict[str, Any], *options: str) -> str:
        """Post a job of the requester's, and return its id."""
        if isinstance(spec, dict):
            path = self.folder / "job.json"
            path.write_text(json.dumps(spec))
            spec = path
        return self.type("requester", "job", "post", spec, *options, "--quiet").stdout.strip()

    def stages(self, job: str, *stages: str) -> None:
        """Take a job through stages, one by one."""
        for stage in stages:
            self.type("requester", "job", stage, job)

    def job(self, job: str) -> Any:
        """Return the requester's record of a job."""
        return self.ask("requester", "job", "show", job)

    def events(self, job: str) -> list[str]:
        """Return the types of a job's events, in their order."""
        return [event["type"] for event in self.ask("requester", "job", "events", job)]

    def run(self, job: str) -> Any:
        """Take a posted job to its end, which must be that it is settled; return it."""
        self.type("requester", "job", "run", "--job", job, "--output-dir", self.folder / job)
        done = self.job(job)
        assert done["state"] == "settled", done
        return done

    def holds(self, who: str, kind: str) -> int:
        """Return how many locks or allocations hold a provider's capability."""
        return [row["kind"] for row in self.ask(who, "capability", "show")["taken"]].count(kind)

    def metrics(self, who: str) -> str:
        """Return what Prometheus reads of a node."""
        return ApiClient(socket_path(self.folder / who)).get_bytes("/metrics").decode()

    def begin(self) -> None:
        """Onboard and start the nodes, and let all be connected to each other."""
        self.type("authority", "config", "set", "bid_timeout", "4s")
        self.type("authority", "node", "start", *ROLES)
        addresses = [self.ask("authority", "whoami")["address"]]
        self.environment["NUNET_NETWORK_PEERS"] = addresses[0]
        # these do not wait for each other
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._start, NODES[1:]))
        self.offer("authority", "1000")
        self.did = {name: self.ask(name, "whoami")["did"] for name in NODES}
        for name in NODES[1:3]:
            self.type("requester", "peer", "add", self.ask(name, "whoami")["address"])
        wait_until(self._meet, what="all connected")

    def _start(self, name: str) -> None:
        if name != "requester":
            self.offer(name, PRICES[name])
        self.type(name, "node", "start")

    def offer(self, name: str, price: str) -> None:
        """Let a node offer a core at a price; one of them measures its machine."""
        measured = [] if name == "provider-a" else ["--no-benchmark"]
        size = ["--cpu", "1", "--memory", "1GiB", "--disk", "1GiB"]
        self.type(name, "onboard", *size, "--price", price, *measured)

    def _meet(self) -> bool:
        peers = self.ask("requester", "peer", "list")
        return sum(peer["connected"] and bool(peer["roles"]) for peer in peers) == len(NODES) - 1

    def end(self) -> None:
        """Stop whatever runs."""
        for name in reversed(NODES):
            command = [sys.executable, "-m", "nunet_cli", "--home", str(self.folder / name), "node", "stop"]
            subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, timeout=60, check=False)

    def executed(self) -> set[str]:
        """Return the references of what was executed, by any process."""
        return set((self.folder / "executed").read_text().split())


def program(command: str, **fields: Any) -> dict[str, Any]:
    """Return a job that runs a line of shell."""
    run = {"type": "process", "command": ["sh", "-c", command]}
    return {"name": "test", "executor": run, "price": "1", "resources": SMALL, **fields}


# -- chapters ------------------------------------------------------------------------------------------------------------


def stage_by_stage(m: Market) -> None:
    """A job goes through every stage, and each document of it is there in the end."""
    job = m.post(program("echo begun; sleep 2; echo 7 > out", outputs=[{"path": "out"}]))
    m.stages(job, "match")
    bids = [bid for bid in m.ask("requester", "bids", "list", job) if bid["kind"] == "bid"]
    assert [bid["verdict"] for bid in sorted(bids, key=lambda bid: bid["rank"])] == ["best", "shortlisted"], bids
    m.stages(job, "request", "contract")
    assert m.holds("provider-a", "lock") == 1
    assert f'nunet_capability{{part="locked",resource="cpu_cores"}} {SMALL["cpu"]}' in m.metrics("provider-a")
    m.stages(job, "invoke")
    assert (m.holds("provider-a", "lock"), m.holds("provider-a", "allocation")) == (0, 1)
    (allocation,) = m.ask("provider-a", "allocation", "list")
    assert m.ask("provider-a", "allocation", "show", allocation["id"])["job_id"] == job
    assert "begun" in m.type("requester", "job", "logs", "-f", job).stdout
    m.stages(job, "settle")
    m.type("requester", "job", "result", job, "--output-dir", m.folder / "out")
    assert (m.folder / "out" / "out").read_text() == "7\n"
    done = m.job(job)
    assert (done["state"], done["paid"]) == ("settled", "0.2"), done
    contract = m.ask("requester", "contract", "show", job, "--check")
    assert (contract["state"], contract["recorded_state"]) == ("settled", "settled"), contract
    bundle = m.folder / "evidence.json"
    m.type("requester", "contract", "export", job, "--file", bundle)
    m.type("requester", "contract", "verify", bundle)
    assert m.ask("requester", "account", "balance")["balance"] == "99.8"
    assert m.ask("provider-a", "account", "balance")["balance"] == "100.2"
    seen = m.events(job)
    stages = ["job_posted", "bid_request_sent", "job_matched", "job_requested", "job_contracted", "job_invoked",
              "job_completed", "job_verified", "job_settled"]  # fmt: skip
    assert [event for event in seen if event in stages] == stages, seen


def preferences(m: Market) -> None:
    """Each node's own rules decide: which jobs a provider takes, which bids a requester."""
    m.type("provider-a", "preferences", "set", "--rule", "job.memory <= quantity('512MiB')")
    m.type("requester", "preferences", "set", "--bid-rule", "price > 0.25")
    assert m.ask("requester", "preferences", "show")["bid_rules"] == ["price > 0.25"]
    job = m.post(program("true"))
    assert m.run(job)["paid"] == "0.3"
    refused = [bid for bid in m.ask("requester", "bids", "list", job) if bid["verdict"] == "unwanted"]
    assert [bid["peer"] for bid in refused] == [m.did["provider-a"]], refused
    m.type("requester", "preferences", "set", "--clear")
    m.type("provider-a", "preferences", "set", "--clear")


def asked_alone(m: Market) -> None:
    """Push asks one provider; a topic asks its subscribers."""
    m.type("provider-b", "topic", "subscribe", "/lab/gpu")
    wait_until(lambda: {"/lab/gpu"} & {row["topic"] for row in m.ask("requester", "topic", "list")}, what="a topic")
    for options in (["--push", m.did["provider-b"]], ["--topic", "/lab/gpu"]):
        job = m.post(program("true"), *options)
        m.run(job)
        asked = {bid["peer"] for bid in m.ask("requester", "bids", "list", job)}
        assert asked == {m.did["provider-b"]}, asked
    m.type("provider-b", "topic", "unsubscribe", "/lab/gpu")


def chosen_by_hand(m: Market) -> None:
    """The user selects the target: the dearer one of two bids is taken, and both providers by name."""
    named = [option for name in ("provider-a", "provider-b") for option in ("--push", m.did[name])]
    job = m.post(program("true"), *named)
    m.stages(job, "match")
    bids = {bid["peer"]: bid for bid in m.ask("requester", "bids", "list", job)}
    assert bids.keys() == {m.did["provider-a"], m.did["provider-b"]}, bids
    m.type("requester", "job", "request", job, "--bid", bids[m.did["provider-b"]]["id"])
    assert m.run(job)["paid"] == "0.3"


def set_while_it_runs(m: Market) -> None:
    """The orchestration type and the search timeout are changed at the running node, by the command line and its API."""
    m.type("requester", "config", "set", "default_orchestration_type", "push")
    refused = m.type("requester", "job", "post", DIAMOND, ends=2)
    assert "default_orchestration_type is push" in refused.stderr, refused.stderr
    client = ApiClient(socket_path(m.folder / "requester"))
    assert client.put("/configuration/default_orchestration_type", {"value": "pull"})["in_force"]
    # what the environment says counts, and is said
    assert not client.put("/configuration/default_search_timeout", {"value": "9s"})["in_force"]
    assert client.get("/configuration")["settings"]["default_search_timeout"] == 15


def nobody_takes_it(m: Market) -> None:
    """Too much is asked for: the refusals say by how much, and what would help."""
    job = m.post(program("true", resources={**SMALL, "memory": "64GiB"}))
    m.type("requester", "job", "match", job, ends=4)
    said = m.ask("requester", "job", "explain", job)
    assert said["suggestion"] is not None, said
    assert all("memory" in [field["field"] for field in answer["missed"]] for answer in said["answers"]), said


def second_thoughts(m: Market) -> None:
    """A provider may still decline, its bid may time out, and the next one on the list is asked."""
    declined, late = m.post(program("true"), "--push", m.did["provider-a"]), m.post(program("true"))
    m.stages(declined, "match")
    m.stages(late, "match", "request")
    m.type("provider-a", "preferences", "set", "--deny", m.did["requester"])
    m.type("requester", "job", "request", declined, ends=5)
    assert "job_request_declined" in m.events(declined)
    # it locked for a bid, and signs nothing: the next one does
    assert m.run(late)["paid"] == "0.3"
    m.type("provider-a", "preferences", "set", "--clear")
    job = m.post(program("true", price="2000"), "--push", m.did["authority"])
    m.stages(job, "match")
    (bid,) = m.ask("requester", "bids", "list", job)
    wait_until(lambda: quantities.utc_now() > bid["timeout"], what="the end of a bid")
    m.stages(job, "request")
    (bid,) = m.ask("requester", "bids", "list", job)
    assert bid["verdict"] == "lapsed", bid
    assert m.job(job)["state"] == "matching"


def called_off(m: Market) -> None:
    """What runs is ended, its lock and escrow given back."""
    job = m.post(program("sleep 60"))
    m.stages(job, "match", "request", "contract", "invoke", "cancel")
    assert m.job(job)["state"] == "cancelled"
    wait_until(lambda: not m.holds("provider-a", "allocation"), what="no allocation")
    broken = m.post({**program(""), "executor": {"type": "process", "command": ["no-such-program"]}})
    m.type("requester", "job", "run", "--job", broken, ends=1)
    assert m.job(broken)["error"]["code"] == "no_program", m.job(broken)


def many_as_one(m: Market) -> None:
    """A group with links and a pod, a batch, a schedule, a service."""
    m.run(m.post(DIAMOND))
    together = {"name": "together", "children": [program("true", name="one"), program("true", name="two")],
                "links": [{"from": "one", "to": "two", "kind": "colocate"}]}  # fmt: skip
    group = m.run(m.post(together))
    assert len({child["contract_id"] for child in group["children"]}) == 2, group
    batch = program("echo {index} > out", type="batch", batch={"count": 2}, outputs=[{"path": "out"}])
    assert len(m.run(m.post(batch))["children"]) == 2
    assert len(m.run(m.post(program("true", type="recurring", schedule={"every": "1s", "count": 2})))["children"]) == 2
    service = m.post(program("sleep 60", type="service", time={"max_duration": 60}))
    m.stages(service, "match", "request", "contract", "invoke")
    wait_until(lambda: m.job(service)["state"] == "running", what="a service that runs")
    m.stages(service, "cancel")


def judged(m: Market) -> None:
    """What is not verified is disputed, and ends: by the operator, by a second run, by a quorum."""
    job, again = (m.post(program("echo 5 > out", outputs=[{"path": "out"}])) for _ in range(2))
    for each in (job, again):
        m.stages(each, "match", "request", "contract", "invoke")
        m.type("requester", "job", "logs", "-f", each)
    m.type("requester", "contract", "dispute", job, "--reason", "it looks wrong")
    m.type("provider-a", "contract", "dispute", job, "--reason", "it is right")
    (dispute,) = m.ask("authority", "contract", "dispute")
    assert len(dispute["evidence"]) == 2, dispute
    m.type("authority", "contract", "resolve", job, "--split", "0.5")
    m.type("requester", "contract", "dispute", again, "--reexecute")
    wait_until(lambda: m.job(again)["state"] in ("resolved", "settled"), what="the end of a dispute")
    assert m.ask("requester", "contract", "show", again)["state"] == "settled"
    replicas = program("echo 5 > out", outputs=[{"path": "out"}], verify={"policy": "replicate", "n": 2})
    assert m.run(m.post(replicas))["paid"] == "0.5"


def the_books(m: Market) -> None:
    """All that happened is recorded: by the contract database, by the node, and to be rebuilt from its events."""
    books = m.ask("authority", "registry", "audit")
    assert (books["total"], books["log_problem"]) == ("0", ""), books
    assert m.ask("authority", "registry", "contracts")
    assert m.ask("authority", "registry", "list")
    for name in NODES:
        indices = m.ask(name, "node", "indices")
        assert not indices["differences"], indices
    assert m.ask("provider-a", "capability", "benchmark")["benchmark"]["cpu_hash"] > 0
    assert m.ask("requester", "peer", "ping", m.did["provider-a"])["rtt"] > 0
    m.type("requester", "status")
    m.type("provider-b", "offboard")
    assert not m.ask("provider-b", "capability", "show")["onboarded"]


CHAPTERS: tuple[Callable[[Market], None], ...] = (
    stage_by_stage, preferences, asked_alone, chosen_by_hand, set_while_it_runs, nobody_takes_it, second_thoughts, called_off, many_as_one, judged, the_books,
)  # fmt: skip


def run_tests(folder: Path) -> None:
    """Run the tests that the table names; end with 1 where one fails, or does not execute what its row names."""
    (folder / "names").write_text("\n".join(named()))
    (folder / "by-test").touch()
    tests = dict.fromkeys(row[2].strip("`") for row in ROWS)
    path = os.pathsep.join([str(ROOT / "tests" / "executed"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    places = [f"tests/{test.replace(':', '::')}" for test in tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.executed.plugin", "-n", "2", *places], cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": path, FOLDER: str(folder)},
    )  # fmt: skip
    executed = set((folder / "by-test").read_text().splitlines())
    pairs = [f"{row[2].strip('`')} {row[1].strip('`')}" for row in ROWS]
    if missed := [pair for pair in pairs if pair not in executed]:
        sys.exit("tests that do not execute what their row of docs/specification.md names:\n" + "\n".join(missed))
    sys.exit(done.returncode)


def main() -> None:
    """Go through all chapters; end with 1 where something named was not executed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep homes and logs here")
    parser.add_argument("--tests", action="store_true", help="run the tests that the table names, instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nunet-specification-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.tests:
            run_tests(folder)
            return
        market = Market(folder)
        try:
            steps: list[tuple[str, Callable[[], None]]] = [("the nodes start", market.begin)]
            steps += [(chapter.__name__.replace("_", " "), functools.partial(chapter, market)) for chapter in CHAPTERS]
            for name, step in steps:
                begun = time.monotonic()
                step()
                print(f"{name}: {time.monotonic() - begun:.1f} s", flush=True)
        finally:
            market.end()
        missed = [reference for reference in named() if reference not in market.executed()]
    if missed:
        sys.exit("docs/specification.md names what no node executed:\n" + "\n".join(missed))
    print(f"docs/specification.md: all {len(named())} functions and types that it names were executed")


if __name__ == "__main__":
    main()
