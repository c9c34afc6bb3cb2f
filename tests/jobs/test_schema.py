"""The schema says of a specification what the reader says, as far as a schema can."""

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from nunet_cli.errors import UsageError
from nunet_cli.jobs.reader import read_spec
from nunet_cli.jobs.schema import job_schema
from tests.conftest import EXAMPLES, ROOT

SCHEMA = json.loads(json.dumps(job_schema()))
VALIDATOR = Draft202012Validator(SCHEMA)
BASE = {"name": "x", "executor": {"type": "process", "command": ["true"]}}


def test_it_is_a_schema_and_the_published_one_is_current() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    published = json.loads((ROOT / "docs" / "job-specification.schema.json").read_text())
    assert published == SCHEMA


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/job.yaml")), ids=lambda path: path.parent.name)
def test_the_examples_fit(path: Any) -> None:
    assert list(VALIDATOR.iter_errors(yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"resources": {"cpu": 0.5, "memory": "4GiB", "disk": 10, "gpus": [{"vram": "8GiB"}]}}, {"price": "2 NTX/h"},
        {"price": 0.5}, {"price": {"max": 1, "type": "per_result"}}, {"storage": [{"type": "ssd", "size": "1GiB"}]},
        {"time": {"max_duration": "90m", "deadline": "2h"}}, {"connectivity": {"bandwidth": "1Gbit", "ports": [80]}},
        {"type": "service", "service": {"delay": "5s", "health": {"command": ["a"], "interval": "10s"}}},
        {"type": "recurring", "schedule": {"every": "1h"}}, {"type": "batch", "batch": {"count": 3}},
        {"executor": {"type": "docker", "image": "a", "env": {"N": 5, "B": True}}},
        {"constraints": {"hard": ["price < 1.0"], "soft": [{"rank": "price < 0.5", "weight": 5}]}},
    ],
    ids=lambda fields: json.dumps(fields)[:50],
)  # fmt: skip
def test_what_the_reader_takes_fits(fields: dict[str, Any]) -> None:
    document = {**BASE, **fields}
    read_spec(json.dumps(document))
    assert list(VALIDATOR.iter_errors(document)) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"memroy": 5}, {"type": "daemon"}, {"executor": {"type": "process", "comand": ["a"]}}, {"name": "a b"},
        {"resources": {"memory": []}}, {"verify": {"n": 1}}, {"inputs": "x"}, {"links": [{"from": "a"}]},
    ],
    ids=lambda fields: json.dumps(fields)[:50],
)  # fmt: skip
def test_what_does_not_fit_the_reader_refuses_too(fields: dict[str, Any]) -> None:
    document = {**BASE, **fields}
    assert list(VALIDATOR.iter_errors(document))
    with pytest.raises(UsageError):
        read_spec(json.dumps(document))
