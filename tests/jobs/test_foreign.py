"""Compose files and Bacalhau jobs as job specifications."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nunet_cli.errors import UsageError
from nunet_cli.jobs.foreign.read import read_foreign
from nunet_cli.jobs.reader import read_spec
from tests.conftest import nunet

COMPOSE = """
name: shop
x-common: {anything: 1}
services:
  db:
    image: postgres:16
    environment: [POSTGRES_PASSWORD=x, EMPTY]
    restart: unless-stopped
    healthcheck: {test: [CMD-SHELL, pg_isready], interval: 10s, retries: 5, start_period: 1m30s}
    volumes: ["pgdata:/var/lib", "./init.sql:/init/init.sql:ro"]
    ports: ["5432:5432"]
    deploy: {resources: {limits: {cpus: '0.5', memory: 512M}, reservations: {memory: 256M}}}
  load:
    image: lab/loader:2
    entrypoint: [/load]
    command: load --all "two words"
    depends_on: {db: {condition: service_healthy}}
    mem_limit: 1.5g
  report:
    image: lab/report:1
    depends_on: [load]
    sysctls: {net.core: 1}
volumes: {pgdata: {}}
"""

BACALHAU = """
Name: count words
Type: batch
Count: 3
Constraints: [{Key: region, Operator: "=", Values: [eu]}, {Key: zone, Operator: exists}]
Tasks:
  - Name: main
    Engine:
      Type: docker
      Params: {Image: "ubuntu:24.04", Entrypoint: [/bin/bash], Parameters: [-c, wc], EnvironmentVariables: [A=B=C]}
    Env: {D: e}
    Resources: {CPU: 500m, Memory: 1gb, GPU: "1"}
    InputSources:
      - {Target: /inputs/a.txt, Source: {Type: localDirectory, Params: {SourcePath: ./a.txt}}}
      - {Target: /b, Source: {Type: s3, Params: {Bucket: x}}}
    ResultPaths: [{Name: outputs, Path: /outputs}, {Name: c, Path: /job/out.txt}]
    Timeouts: {ExecutionTimeout: 1800}
    Network: {Type: Full}
"""


# each line nine times the one before
BOMB = "a: &a [x, x]\n" + "".join(
    f"b{at}: &{chr(98 + at)} [{', '.join(['*' + chr(97 + at)] * 9)}]\n" for at in range(12)
)


def imported(text: str, **options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    spec, notes = read_foreign(text, source="file", **options)
    return spec, {note.path: note.reason for note in notes}


def test_a_compose_file_becomes_a_group_with_links() -> None:
    spec, notes = imported(COMPOSE)
    db, load, report = spec["children"]
    assert db["executor"] == {"type": "docker", "image": "postgres:16", "env": {"POSTGRES_PASSWORD": "x", "EMPTY": ""}}
    assert db["resources"] == {"cpu": 0.5, "memory": "512MiB"}
    assert (db["type"], db["service"]["restart"]) == ("service", "always")
    assert db["service"]["health"] == {
        "command": ["sh", "-c", "pg_isready"], "interval": 10, "start_period": 90, "retries": 5,
    }  # fmt: skip
    assert db["inputs"] == [{"path": "./init.sql", "to": "init/init.sql"}]
    assert load["executor"]["entrypoint"] == ["/load"]
    assert load["executor"]["command"] == ["load", "--all", "two words"]
    assert load["resources"] == {"memory": "1.5GiB"}
    assert "type" not in report
    # what is kept up never ends, so nobody can wait for its end
    assert spec["links"] == [{"from": "load", "to": "report"}]
    assert notes["services.load.depends_on"] == "db is kept up, and cannot be waited for"
    assert notes["services.db.ports"] == "a job has no network"
    assert "only files and folders" in notes["services.db.volumes[0]"]
    assert "/job/init/init.sql" in notes["services.db.volumes[1]"]
    assert {"services.report.sysctls", "volumes"} <= notes.keys()
    assert not any("image" in path or "x-common" in path for path in notes)


def test_one_service_is_one_job() -> None:
    spec, notes = imported("services: {hello: {image: busybox, command: echo hi, restart: 'no'}}")
    assert spec == {
        "name": "hello", "executor": {"type": "docker", "image": "busybox", "command": ["echo", "hi"]}, "resources": {},
    }  # fmt: skip
    assert notes == {}


def test_a_bacalhau_job() -> None:
    spec, notes = imported(BACALHAU)
    assert spec["name"] == "count-words"
    assert spec["executor"] == {
        "type": "docker", "image": "ubuntu:24.04", "entrypoint": ["/bin/bash"], "command": ["-c", "wc"],
        "env": {"A": "B=C", "D": "e"},
    }  # fmt: skip
    assert spec["resources"] == {"cpu": 0.5, "memory": "1GiB", "gpus": [{}]}
    assert (spec["type"], spec["batch"]) == ("batch", {"count": 3})
    assert spec["localities"] == [{"kind": "region", "name": "eu"}]
    assert spec["time"] == {"max_duration": "1800s"}
    assert spec["inputs"] == [{"path": "./a.txt", "to": "inputs/a.txt"}]
    assert spec["outputs"] == [{"path": "out.txt", "name": "c"}]
    assert notes.keys() == {
        "Constraints[1]", "Tasks[0].InputSources[0]", "Tasks[0].InputSources[1].Source.Type", "Tasks[0].ResultPaths[0]",
        "Tasks[0].Network.Type",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "file:1:2: not YAML"), (BOMB, "too many fields"), ("a", "not a mapping"), ("{}", "neither a Compose file"),
        ("services: {}", "there are no services"), ("services: [a]", "services: not a mapping"),
        ("services: {a: {build: .}}", "services.a: it has no image"), ("Tasks: []", "there are no Tasks"),
        ("services: {a: {image: b, mem_limit: much}}", "services.a.mem_limit: not a size"),
        ("services: {a: {image: b, command: \"'\"}}", "services.a.command: No closing quotation"),
        ("services: {a b: {image: c}, a-b: {image: c}}", "two jobs would be called 'a-b'"),
        ("Tasks: [{Engine: {Type: wasm}}]", "Tasks[0].Engine.Type: 'wasm'"), ("Tasks: [1]", "not a bacalhau file"),
        ("{Type: other, Tasks: [{Engine: {Type: noop}}]}", "Type: 'other'"),
        ("Tasks: [{Engine: {Type: docker}}]", "executor.image"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        imported(text)
    assert message in caught.value.message


LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4)
KEYS = st.sampled_from([
    "image", "command", "deploy", "resources", "limits", "volumes", "restart", "healthcheck", "test", "depends_on", "ports",
    "Tasks", "Engine", "Type", "Params", "Image", "InputSources", "Source", "Resources", "CPU", "Timeouts", "Constraints",
])  # fmt: skip
TREES = st.recursive(
    LEAVES, lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=4), max_leaves=20
)


@given(st.dictionaries(KEYS, TREES, max_size=6), st.sampled_from(["compose", "bacalhau"]))
def test_whatever_is_in_the_file_it_is_a_job_or_an_error(tree: dict[str, Any], kind: Any) -> None:
    document = {"services": {"a": {"image": "b", **tree}}} if kind == "compose" else {
        "Tasks": [{"Engine": {"Type": "docker", "Params": {"Image": "b"}}}], **tree,
    }  # fmt: skip
    try:
        spec, _ = read_foreign(yaml.safe_dump(document), source="file", kind=kind)
    except UsageError:
        return
    read_spec(yaml.safe_dump(spec))


def test_the_command_writes_the_specification_and_lists_what_did_not_map(tmp_path: Any) -> None:
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    done = nunet("job", "import", str(tmp_path / "compose.yaml"), "-f", str(tmp_path / "job.yaml"), home=tmp_path)
    assert done.stdout.strip() == str(tmp_path / "job.yaml")
    assert "services.db.ports: a job has no network\n" in done.stderr
    assert read_spec((tmp_path / "job.yaml").read_text()).name == "shop"
    again = nunet("job", "import", "-", "--strict", home=tmp_path, stdin=COMPOSE, check=False)
    assert (again.returncode, "fields do not map: services.db" in again.stderr) == (2, True)
