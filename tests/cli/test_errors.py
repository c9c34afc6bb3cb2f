"""Wrong input: one clear message with file and field, the documented exit code, no traceback."""

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from nunet_cli.config_file import parse_value, put
from nunet_cli.network.identity import new_identity
from tests.conftest import nunet

PEER = "12D3KooWGRUGm1sLPx6bqBbuqGSuWZ5yEEvPHQhn3vZaCFTQ4Zf7"


def refused(*arguments: str, home: Path, code: int, stdin: str | None = None) -> str:
    done = nunet(*arguments, home=home, check=False, stdin=stdin)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "job.yaml:1:8: not YAML"),
        (
            "name: x\nexecutor: {type: process, command: [a]}\nmemroy: 5\n",
            "job.yaml:3:1: memroy: unknown field `memroy`",
        ),
        ("name: x\nexecutor: {type: process, command: [a]}\nresources: {memory: -1}\n", "resources.memory: a size"),
        ("", "the file is empty"),
        (
            "name: x\nexecutor: {type: process, command: [a]}\ninputs: [{path: nothing.txt}]\n",
            "job.yaml:3:11: inputs[0].path: there is no file",
        ),
    ],
)
def test_a_bad_specification(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert message in refused("job", "post", str(path), home=tmp_path / "h", code=2)


def test_a_specification_from_standard_input_and_one_that_is_not_there(tmp_path: Path) -> None:
    text = "name: x\nexecutor: {type: process, command: ['true']}\n"
    assert nunet("job", "validate", "-", stdin=text, home=tmp_path).stdout == "stdin: valid\n"
    assert "stdin:1:1: name: a character that is not allowed here" in refused(
        "job", "validate", "-", stdin="name: '-'\n", home=tmp_path, code=2
    )
    assert "none.yaml: No such file" in refused("job", "run", "none.yaml", home=tmp_path, code=2)


def test_unknown_ids_and_peers(tmp_path: Path) -> None:
    assert "no job 'job-0' here" in refused("job", "show", "job-0", home=tmp_path, code=2)
    assert "no contract 'bafk' here" in refused("contract", "show", "bafk", home=tmp_path, code=2)
    assert "unknown peer '12D3'" in refused("peer", "show", "12D3", home=tmp_path, code=2)
    assert "not a peer" in refused("peer", "add", "somewhere:80", home=tmp_path, code=2)
    assert "not a peer id: 'me'" in refused("peer", "add", "me@somewhere:80", home=tmp_path, code=2)
    path = tmp_path / "job.yaml"
    path.write_text("name: x\nexecutor: {type: process, command: [a]}\n")
    assert "unknown peer 'nobody'" in refused("job", "post", str(path), "--push", "nobody", home=tmp_path, code=2)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("job show", "job"), ("job wait", "job"), ("job cancel", "job"), ("job explain", "job"), ("job logs", "job"),
        ("job request", "job"), ("job run --job", "job"), ("job post job.yaml --push", "peer"), ("bids list", "job"),
        ("bids show", "bid"), ("contract show", "contract"), ("contract export", "contract"),
        ("contract dispute", "contract"), ("peer show", "peer"), ("peer ping", "peer"), ("peer remove", "peer"),
        ("allocation show", "allocation"),
    ],
)  # fmt: skip
def test_an_empty_id_names_nothing(command: str, what: str, tmp_path: Path) -> None:
    for empty in ("", " "):
        text = refused(*command.split(), empty, home=tmp_path, code=2)
        assert f"no {what} id given, only an empty text" in text
        assert len(text.splitlines()) == 2
    assert not (tmp_path / "store.db").exists()


def test_an_id_with_letters_that_no_id_has_is_of_nothing(tmp_path: Path) -> None:
    for text in ("a/b", "a?b=1", "a b", "a%20b", "a\nb", ".."):
        assert "no job '" in refused("job", "show", text, home=tmp_path, code=2)
    for text in ("é", "…é"):
        assert f"unknown peer '{text}'" in refused("peer", "show", text, home=tmp_path, code=2)


def test_two_nodes_in_one_home(tmp_path: Path) -> None:
    nunet("node", "start", home=tmp_path)
    try:
        assert "a node runs already" in refused("node", "start", home=tmp_path, code=3)
        text = refused("node", "run", home=tmp_path, code=3)
        assert "is in use by a node (pid " in text
        assert "--local" in refused("job", "run", "examples/primes/job.yaml", "--local", home=tmp_path, code=3)
    finally:
        nunet("node", "stop", home=tmp_path)
    assert "no node runs" in refused("node", "stop", home=tmp_path, code=3)
    assert "no node runs" in refused("node", "status", home=tmp_path, code=3)


def test_a_port_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("NUNET_NETWORK_LISTEN", address)
        text = refused("node", "run", home=tmp_path, code=3)
    assert f"cannot listen on {address}: the port is in use" in text


def test_a_damaged_key_file(tmp_path: Path) -> None:
    nunet("whoami", home=tmp_path)
    key = tmp_path / "identity.json"
    key.write_text(key.read_text()[:20])
    assert f"{key} is damaged" in refused("node", "run", home=tmp_path, code=3)
    assert f"{key} is damaged" in refused("whoami", home=tmp_path, code=3)


def test_a_damaged_store(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"not a database, but long enough to look at" * 100)
    assert "store.db cannot be opened" in refused("node", "run", home=tmp_path, code=3)


def test_configuration_is_checked_and_keeps_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("# ours\n[network]\nname = 'lab' # the lab\n")
    nunet("config", "set", "network.rate", "50", home=tmp_path)
    assert "# the lab" in path.read_text()
    assert nunet("config", "get", "network.rate", home=tmp_path).stdout == "50\n"
    assert "did you mean network.rate?" in refused("config", "get", "network.rat", home=tmp_path, code=2)
    assert "expected a whole number" in refused("config", "set", "network.rate", "much", home=tmp_path, code=2)
    assert "network.rate" in refused("config", "set", "network.rate", "0", home=tmp_path, code=2)
    path.write_text("[network]\nnane = 'lab'\n")
    text = refused("node", "run", home=tmp_path, code=2)
    assert str(path) in text
    assert "did you mean name?" in text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("network.peers", f"{PEER}@0.0.0.0:9000", "nobody can be reached at 0.0.0.0:9000"),
        ("network.peers", "foo", "not a peer: 'foo'"),
        ("network.listen", "1.2.3.4:99999", "expected HOST:PORT"),
        ("network.listen", "0.0.0.0", "expected HOST:PORT"),
        ("network.listen", "-.:80", "expected HOST:PORT"),
        ("network.listen", "no.such.host.invalid:80", "this machine knows no host 'no.such.host.invalid'"),
        ("network.topics", "gpu", "expected names such as /gpu"),
        ("network.topics", ",".join(f"/{number}" for number in range(64)), "of length <= 63"),
        ("api.listen", "127.0.0.1:99999", "expected 127.0.0.1:PORT"),
        ("contract_database", "foo", "not a did:key"),
        ("oracle", PEER, "its DID is did:key:z6Mk"),
        ("executor.docker.trusted", "foo", "not a did:key"),
        ("kyc.verifiers.acme-bank", "foo", "not a did:key"),
        ("executor.process.foreign", "maybe", "expected off, sandboxed or unsandboxed"),
        ("registry.opening_balance", "much", "not an amount of money: 'much'"),
    ],
)
def test_a_setting_with_which_no_node_starts_is_refused_and_where_it_is_found_it_is_named(
    key: str, value: str, message: str, tmp_path: Path
) -> None:
    text = refused("config", "set", "--", key, value, home=tmp_path, code=2)
    assert text.startswith(f"nunet: {key}: ")
    assert message in text
    path = tmp_path / "config.toml"
    assert not path.exists()
    if "knows no host" in message:
        # a name is looked up where it is set, not each time that it is read
        return
    document: dict[str, Any] = {}
    put(document, key, parse_value(key, value))
    path.write_text(tomlkit.dumps(document))
    text = refused("whoami", home=tmp_path, code=2)
    assert f"{path}: {key}: " in text
    assert message in text


def test_a_table_in_the_configuration_has_a_key_for_each_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, shop = new_identity().did, new_identity().did
    path = tmp_path / "config.toml"
    path.write_text("# whom we trust\n[kyc.verifiers]\nacme-bank = '" + bank + "' # by letter\n")
    nunet("config", "set", "kyc.verifiers.shop.example 1", shop, home=tmp_path)
    assert "# by letter" in path.read_text()
    assert nunet("config", "get", "kyc.verifiers.shop.example 1", home=tmp_path).stdout == f"{shop}\n"
    both = json.loads(nunet("config", "list", "--output", "json", home=tmp_path).stdout)["kyc.verifiers"]
    assert both == {"acme-bank": bank, "shop.example 1": shop}
    nunet("config", "set", "kyc.verifiers.acme-bank", "", home=tmp_path)
    assert nunet("config", "get", "kyc.verifiers", home=tmp_path).stdout == f"shop.example 1={shop}\n"
    assert nunet("config", "get", "kyc.verifiers.acme-bank", home=tmp_path).stdout == "\n"
    monkeypatch.setenv("NUNET_KYC_VERIFIERS", f"acme-bank={bank}, other={shop}")
    assert nunet("config", "get", "kyc.verifiers", home=tmp_path).stdout == f"acme-bank={bank},other={shop}\n"
    monkeypatch.setenv("NUNET_KYC_VERIFIERS", bank)
    assert "kyc.verifiers: expected NAME=VALUE" in refused("config", "list", home=tmp_path, code=2)
    assert "unknown key 'kyc.verifiers.'" in refused("config", "get", "kyc.verifiers.", home=tmp_path, code=2)


def test_a_job_that_names_a_verifier_whose_key_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: a\nexecutor: {type: process, command: ['true']}\nkycs: [acme bank]\n")
    text = refused("job", "post", str(path), home=tmp_path, code=2)
    assert f"{path}:3:1: kycs: this node does not know the key of acme bank" in text
    assert "nunet config set 'kyc.verifiers.acme bank' DID" in text


def test_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nunet("config", "set", "network.name", "lab", home=tmp_path)
    monkeypatch.setenv("NUNET_NETWORK_NAME", "other")
    assert nunet("config", "get", "network.name", home=tmp_path).stdout == "other\n"
    monkeypatch.setenv("NUNET_LIMITS_HEARTBEAT", "soon")
    assert "NUNET_LIMITS_HEARTBEAT" in refused("config", "list", home=tmp_path, code=2)


def test_onboarding_refuses_what_the_machine_does_not_have(tmp_path: Path) -> None:
    assert "--cpu: 5000 cores is more than 90%" in refused("onboard", "--cpu", "5000", home=tmp_path, code=2)


def test_formats(tmp_path: Path) -> None:
    nunet("onboard", "--no-benchmark", "--memory", "1GiB", home=tmp_path)
    document = json.loads(nunet("capability", "show", "--output", "json", home=tmp_path).stdout)
    assert document["registered"]["resources"]["memory"] == 2**30
    assert "memory: 1073741824" in nunet("capability", "show", "-o", "yaml", home=tmp_path).stdout
    assert nunet("job", "list", "--output", "json", home=tmp_path).stdout == "[]\n"
    assert nunet("job", "list", "--output", "jsonl", home=tmp_path).stdout == ""
    nunet("offboard", home=tmp_path)
    assert not json.loads(nunet("capability", "show", "-o", "json", home=tmp_path).stdout)["onboarded"]


def test_a_wrong_preference_is_refused_with_its_position_and_nothing_changes(tmp_path: Path) -> None:
    nunet("preferences", "set", "--rule", "price >= 0.1", home=tmp_path)
    text = refused("preferences", "set", "--rule", "job.memroy > 1.0", home=tmp_path, code=2)
    assert "column 5" in text
    assert "memroy" in text
    assert "--weight: no weight 'speed'" in refused("preferences", "set", "--weight", "speed=1", home=tmp_path, code=2)
    for points in ("nan", "-1", "inf"):
        assert f"--weight: 'price={points}': points are 0 or more" in refused(
            "preferences", "set", "--weight", f"price={points}", home=tmp_path, code=2
        )
    assert "--price: not an amount" in refused("preferences", "set", "--price", "", home=tmp_path, code=2)
    assert "--price: '1e12' is too" in refused("preferences", "set", "--price", "1e12", home=tmp_path, code=2)
    assert "minimum_price: not an" in refused("preferences", "set", "--minimum-price", "", home=tmp_path, code=2)
    assert "say what to change" in refused("preferences", "set", home=tmp_path, code=2)
    assert "not a peer id: 'somebody'" in refused("preferences", "set", "--deny", "somebody", home=tmp_path, code=2)
    kept = json.loads(nunet("preferences", "show", "--output", "json", home=tmp_path).stdout)
    assert (kept["rules"], kept["deny"]) == (["price >= 0.1"], [])


def test_indices_are_proved_against_the_event_log(tmp_path: Path) -> None:
    nunet("job", "run", "examples/primes/job.yaml", "--local", "--output-dir", str(tmp_path / "o"), home=tmp_path)
    done = nunet("node", "indices", home=tmp_path)
    assert "the event log gives the same" in done.stderr
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("UPDATE jobs SET doc = json_set(CAST(doc AS TEXT), '$.state', 'failed'), f_state='failed'")
    connection.commit()
    connection.close()
    done = nunet("node", "indices", home=tmp_path, check=False)
    assert done.returncode == 3
    assert "failed in the tables, settled by the events" in done.stderr


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    path.write_text("{}")
    assert f"{path}: not an evidence bundle" in refused("contract", "verify", str(path), home=tmp_path, code=2)
    assert "No such file" in refused("contract", "verify", str(tmp_path / "none"), home=tmp_path, code=2)
    assert "no contract 'job-0' here" in refused("contract", "export", "job-0", home=tmp_path, code=2)
    assert "say one of --pay" in refused("contract", "resolve", "bafk", home=tmp_path, code=2)
    assert "not a contract database" in refused("contract", "resolve", "bafk", "--pay", home=tmp_path, code=2)


def test_what_a_peer_wrote_forges_no_line_of_the_log_and_commands_no_terminal() -> None:
    import logging

    from nunet_cli.cli.logs import JournalFormatter, PlainFormatter

    said = "no contract x\n2026-01-01 INFO nunet.node: all is well\r\x1b[2J\u202e\u2028\ud800"
    record = logging.LogRecord("nunet.messages", logging.INFO, "", 0, "refused: %s", (said,), None)
    for formatter in (PlainFormatter("%(name)s: %(message)s"), JournalFormatter("%(name)s: %(message)s")):
        line = formatter.format(record)
        assert len(line.splitlines()) == 1
        assert line.isprintable()
        assert r"x\n2026" in line
