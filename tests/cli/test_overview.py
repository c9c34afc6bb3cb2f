"""One screen that says how the node is and what to do next, and what keeps it from working."""

import json
from pathlib import Path
from typing import Any

import pytest

from nunet_cli.cli.overview import advice
from nunet_cli.executor import process
from nunet_cli.node.doctor import diagnose
from tests.conftest import Processes, nunet, wait_until


def doctor(home: Path, code: int = 0) -> dict[str, Any]:
    done = nunet("doctor", "--output", "json", home=home, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return {finding["check"]: finding for finding in json.loads(done.stdout)}


def status(home: Path) -> Any:
    return json.loads(nunet("status", "--output", "json", home=home).stdout)


def test_status_of_a_new_home_says_how_to_begin(tmp_path: Path) -> None:
    text = nunet("status", home=tmp_path / "new").stdout
    assert "not running" in text
    assert "next: nunet node start" in text
    assert "next: nunet run --local -- echo hello" in text
    done = nunet("top", home=tmp_path / "new", check=False)
    assert (done.returncode, "no node runs" in done.stderr) == (3, True)


def test_status_says_what_goes_on_and_what_it_earned(processes: Processes, tmp_path: Path) -> None:
    home = processes.requester
    processes.start(home)
    wait_until(lambda: status(home)["peers"]["connected"] == 2, what="two peers")
    spec = {"name": "nap", "executor": {"type": "process", "command": ["sleep", "30"]}, "price": "1",
            "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}}  # fmt: skip
    job = nunet("job", "run", "-", "--detach", "--quiet", home=home, stdin=json.dumps(spec)).stdout.strip()
    big = {**spec, "name": "big", "resources": {"memory": "900GiB"}, "time": {"deadline": "1h"}}
    nunet("job", "run", "-", "--detach", home=home, stdin=json.dumps(big))

    def both() -> Any:
        states = {row["name"]: row["state"] for row in json.loads(nunet("job", "list", "-o", "json", home=home).stdout)}
        assert states["nap"] not in ("failed", "expired"), nunet("job", "events", job, home=home).stdout
        return states == {"nap": "running", "big": "matching"}

    wait_until(both, what="a job that runs and one that waits")
    text = nunet("status", home=home).stdout
    assert f"job {job}  nap  running" in text
    assert "big  matching, waiting: " in text
    assert "next: nunet job explain job-" in text
    theirs = nunet("status", home=processes.provider).stdout
    assert "1 running, 1 in all" in theirs
    assert "% taken" in theirs
    looked = nunet("top", "--once", home=home).stdout
    assert "provider" in looked
    assert job[:12] in looked
    theirs = nunet("top", "--once", home=processes.provider).stdout
    assert "0.2 cores of 1 core" in theirs
    assert json.loads(nunet("top", "--once", "-o", "json", home=home).stdout)["status"]["peers"]["connected"] == 2
    nunet("job", "cancel", job, home=home)
    nunet("run", "--price", "1", "--", "true", home=home, cwd=tmp_path)
    wait_until(lambda: status(processes.provider)["earned"] == "0.2")
    assert status(home)["spent"] == "0.2"
    assert "earned 0.2 NTX, spent 0 NTX" in nunet("status", home=processes.provider).stdout
    found = doctor(home)
    assert {found[name]["state"] for name in ("peers", "contract-database", "oracle", "listening", "node")} == {"ok"}


def test_doctor_says_how_to_get_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find_bubblewrap", lambda: None)
    (tmp_path / "config.toml").write_text('[executor.process]\nforeign = "sandboxed"\n')
    found = {finding.check: finding for finding in diagnose(tmp_path, tmp_path / "config.toml", None, None)}
    assert found["sandbox"].state == "problem"
    assert "bubblewrap" in found["sandbox"].hint


def test_doctor_names_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    home = tmp_path / "h"
    found = doctor(home)
    assert (found["key"]["state"], found["node"]["state"]) == ("ok", "warning")
    assert found["node"]["hint"] == "start it with: nunet node start"
    nunet("job", "list", home=home)
    nunet("whoami", home=home)
    nunet("config", "set", "executor.process.foreign", "sandboxed", home=home)
    (home / "identity.json").chmod(0o644)
    home.chmod(0o755)
    (home / "store.db").write_bytes(b"not a database at all" * 100)
    found = doctor(home, code=3)
    assert found["home"]["hint"] == f"run: chmod 700 {home}"
    assert found["key"]["hint"] == f"run: chmod 600 {home / 'identity.json'}"
    assert found["store"]["state"] == "problem"
    (home / "config.toml").write_text("network = 5\n")
    assert doctor(home, code=3)["configuration"]["state"] == "problem"
    text = nunet("doctor", home=home, check=False)
    assert "PROBLEM  configuration" in text.stdout
    assert "problems: " in text.stderr


def test_doctor_sees_a_port_in_use(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    port = json.loads(nunet("whoami", "--output", "json", home=processes.provider).stdout)["address"].rpartition(":")[2]
    monkeypatch.setenv("NUNET_NETWORK_LISTEN", f"127.0.0.1:{port}")
    found = doctor(processes.requester, code=3)
    assert found["listening"]["state"] == "problem"
    assert "in use" in found["listening"]["message"]
    assert found["firewall"]["message"] == "it listens on this machine only"


def test_the_books_of_an_authority_are_checked_where_it_is_stopped_too(tmp_path: Path) -> None:
    home = tmp_path / "authority"
    nunet("node", "start", "--role", "contract-database", home=home)
    did = json.loads(nunet("whoami", "--output", "json", home=home).stdout)["did"]
    nunet("account", "deposit", "5", "--to", did, home=home)
    nunet("node", "stop", home=home)
    audit = json.loads(nunet("registry", "audit", "--output", "json", home=home).stdout)
    assert (audit["accounts"][did], audit["total"], audit["log_intact"]) == ("105", "0", True)
    done = nunet("registry", "audit", home=tmp_path / "requester", check=False)
    assert (done.returncode, "not a contract database" in done.stderr) == (2, True)


def test_what_to_do_next_names_a_choice_that_paid_work_waits_for(tmp_path: Path) -> None:
    nunet("node", "start", home=tmp_path)
    try:
        document = {**status(tmp_path), "running": True}
    finally:
        nunet("node", "stop", home=tmp_path)
    assert not [text for text in advice(document) if "choose" in text]
    found = advice({**document, "undecided": {"contract-database": ["did:a", "did:b"]}})
    assert [text for text in found if "nunet config set contract_database DID" in text]


def test_settings_that_wait_for_a_restart_are_named_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nunet("onboard", "--no-benchmark", "--memory", "64MiB", home=tmp_path)
    nunet("node", "start", home=tmp_path)
    try:
        assert doctor(tmp_path)["configuration"]["state"] == "ok"
        # what a running node takes up waits for nothing
        shown = nunet("onboard", "--no-benchmark", "--docker-image", "lab/*", home=tmp_path).stdout
        assert "restarted" not in shown
        assert doctor(tmp_path)["configuration"]["state"] == "ok"
        nunet("config", "set", "network.rate", "300", home=tmp_path)
        found = doctor(tmp_path)["configuration"]
        assert (found["state"], "network.rate" in found["message"]) == ("warning", True)
        assert "nunet node stop && nunet node start" in found["hint"]
        assert [text for text in status(tmp_path)["next"] if "network.rate" in text]
        nunet("node", "stop", home=tmp_path)
        nunet("node", "start", home=tmp_path)
        assert doctor(tmp_path)["configuration"]["state"] == "ok"
        assert not [text for text in status(tmp_path)["next"] if "restart" in text]
    finally:
        nunet("node", "stop", home=tmp_path, check=False)
    monkeypatch.setenv("NUNET_LIMITS_SILENCE", "40s")
    assert "this environment sets" in doctor(tmp_path)["configuration"]["message"]
    assert "NUNET_LIMITS_SILENCE" in doctor(tmp_path)["configuration"]["message"]
