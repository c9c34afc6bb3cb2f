"""The published schemas, held against what commands print and the API answers."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nunet_cli import SCHEMA_VERSION
from nunet_cli.api.openapi import COMMANDS, description, output_schema
from nunet_cli.cli.app import whole_tree
from tests.conftest import EXAMPLES, Processes, nunet


def test_the_schemas_are_schemas() -> None:
    schema = output_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for definition in description()["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(definition)
    for path, methods in description()["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"].endswith("."), (method, path)


# made by the command itself, or in a form that is somebody else's
WITHOUT_VERSION = {
    "account history", "doctor", "contract verify", "job validate", "job import", "demo", "top", "config get",
    "config list",
}  # fmt: skip


def test_every_command_with_a_format_has_a_schema() -> None:
    found = set()

    def walk(command: Any, path: tuple[str, ...]) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*path, name))
        if any("--output" in param.opts for param in command.params):
            found.add(" ".join(path))

    walk(whole_tree(), ())
    # `run` prints the job that it runs
    assert found - {"run"} == COMMANDS.keys()


class Printed:
    """Runs commands, and holds each against its schema."""

    def __init__(self) -> None:
        self._schema, self.seen = output_schema(), set[str]()

    def __call__(self, command: str, *arguments: str, home: Path) -> Any:
        document = json.loads(nunet(*command.split(), *arguments, "--output", "json", home=home).stdout)
        self.check(command, document)
        return document

    def check(self, command: str, document: Any) -> None:
        schema = {"$defs": self._schema["$defs"], **self._schema["commands"][command]}
        # that the schemas are schemas is another test's, and takes a third of a second for each
        jsonschema.Draft202012Validator(schema).validate(document)
        rows = document if isinstance(document, list) else [document]
        assert rows, f"{command}: nothing to look at"
        if command not in WITHOUT_VERSION:
            assert all(row["schema"] == SCHEMA_VERSION for row in rows)
        self.seen.add(command)


def test_commands_print_what_is_published(processes: Processes, tmp_path: Path) -> None:
    processes.start(processes.requester)
    r, p, a, printed = processes.requester, processes.provider, processes.authority, Printed()
    word_count = str(EXAMPLES / "word-count" / "job.yaml")
    big = tmp_path / "big.yaml"
    big.write_text("name: big\nexecutor: {type: process, command: [ls]}\nresources: {memory: 1TiB}\nprice: 1 NTX\n")
    job = printed("job post", word_count, home=r)["id"]
    for stage in ("match", "request", "contract", "invoke"):
        printed(f"job {stage}", job, home=r)
    printed("job settle", job, home=r)
    for command in ("show", "events", "result", "explain"):
        printed(f"job {command}", job, home=r)
    ran = printed("job run", word_count, "--output-dir", str(tmp_path / "out"), home=r)
    printed("job wait", ran["id"], home=r)
    printed("job cancel", printed("job post", word_count, home=r)["id"], home=r)
    declined = nunet("job", "run", str(big), "--output", "json", home=r, check=False)
    assert declined.returncode == 4
    printed.check("job run", json.loads(declined.stdout))
    assert printed("job explain", json.loads(declined.stdout)["id"], home=r)["suggestion"]
    printed("job retry", json.loads(declined.stdout)["id"], "--detach", home=r)
    printed("job list", home=r)
    bids = printed("bids list", home=r)
    printed("bids show", next(row["id"] for row in bids if row["kind"] == "bid"), home=r)

    held = printed("job post", word_count, home=r)["id"]
    for stage in ("match", "request", "contract", "invoke"):
        printed(f"job {stage}", held, home=r)
    nunet("job", "logs", "-f", held, home=r)
    printed("contract dispute", held, "--reason", "why not", home=r)
    printed("contract show", held, "--check", home=r)
    printed("contract resolve", held, "--split", "0.5", "--yes", home=a)
    printed("contract list", home=r)

    printed("allocation show", printed("allocation list", home=p)[0]["id"], home=p)
    printed("capability show", home=p)
    printed("preferences set", "--rule", "price >= 0.0", home=p)
    printed("preferences show", home=p)
    peer = printed("peer list", home=r)[0]["peer_id"]
    for command in ("show", "ping"):
        printed(f"peer {command}", peer, home=r)
    printed("peer add", printed("whoami", home=p)["address"], home=r)
    printed("account balance", home=r)
    printed("account history", home=r)
    entry = printed("registry list", home=a)[0]
    printed("account deposit", "5", "--to", entry["id"], home=a)
    printed("registry revoke", entry["id"], "--yes", home=a)
    printed("registry approve", entry["id"], home=a)
    printed("registry attest", entry["id"], "--as", "acme-bank", home=a)
    printed("registry contracts", "--party", entry["id"], home=a)
    assert printed("registry completions", home=a)
    printed("registry audit", home=a)
    printed("node indices", home=r)
    printed("status", home=r)
    printed("node status", home=r)
    printed("top", "--once", home=r)
    printed("doctor", home=r)
    printed("capability benchmark", home=p)
    printed("topic subscribe", "/lab/gpu", home=p)
    assert [row["subscribed"] for row in printed("topic list", home=p) if row["topic"] == "/lab/gpu"] == [True]
    printed("topic unsubscribe", "/lab/gpu", home=p)
    nunet("contract", "export", job, "--file", str(tmp_path / "evidence.json"), home=r)
    printed("contract verify", str(tmp_path / "evidence.json"), home=r)
    printed("offboard", "--yes", home=p)
    printed("onboard", "--cpu", "1", "--no-benchmark", home=p)
    printed("peer remove", peer, home=r)
    for command in ("version", "config list", "demo"):
        printed(command, home=tmp_path / "none")
    printed("config get", "network.name", home=r)
    printed("job validate", word_count, home=r)
    (tmp_path / "compose.yaml").write_text("services: {a: {image: b, ports: [80]}}")
    printed("job import", str(tmp_path / "compose.yaml"), home=r)
    printed("gc", "--dry-run", home=r)
    printed("gc", "--export", str(tmp_path / "jobs.jsonl"), home=r)
    printed("node backup", str(tmp_path / "node.tar"), home=r)
    assert printed.seen == COMMANDS.keys()


@pytest.mark.parametrize("command", ["whoami", "status", "capability show", "preferences show"])
def test_a_home_without_a_node_prints_the_same(command: str, tmp_path: Path) -> None:
    printed = Printed()
    printed("whoami", home=tmp_path)
    printed(command, home=tmp_path)
