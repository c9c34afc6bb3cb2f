"""A specification may come from a stranger: what it may cost to check one, however it is made."""

import json
import time
from typing import Any

import pytest

from nunet_cli.errors import UsageError
from nunet_cli.jobs import expressions
from nunet_cli.jobs.check import decode_spec

CHILD = {"executor": {"type": "null"}}
SECONDS = 3.0


def children(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{**CHILD, "name": f"c{index}", **fields} for index in range(count)]


def chain(count: int, *, closed: bool) -> dict[str, Any]:
    links = [{"from": f"c{index}", "to": f"c{index + 1}"} for index in range(count - 1)]
    links += [{"from": f"c{index % (count - 1)}", "to": f"c{count - 1}"} for index in range(3000)]
    if closed:
        links.append({"from": f"c{count - 1}", "to": "c0"})
    return {"name": "x", "children": children(count), "links": links}


def test_many_expressions_are_refused_before_they_are_compiled() -> None:
    """Each takes a millisecond and more; a stranger's document may be long enough for ten thousand."""
    parts = children(200)
    for index, part in enumerate(parts):
        part["constraints"] = {"hard": [f"1 < 2 && {index} < {number}" for number in range(32)]}
    begin = time.monotonic()
    with pytest.raises(UsageError, match="256 different expressions"):
        decode_spec(json.dumps({"name": "x", "children": parts}))
    assert time.monotonic() - begin < SECONDS


def test_what_many_children_have_in_common_is_one_expression() -> None:
    parts = children(200, constraints={"hard": ["price < 2.0"], "soft": [{"rank": "node.cpu.cores"}]})
    assert len(decode_spec(json.dumps({"name": "x", "children": parts})).children) == 200


def test_expressions_that_are_dear_together_are_refused() -> None:
    dear = "node.kycs.all(x, node.kycs.all(y, x != y && " + "x == y || " * 30 + "true))"
    parts = children(8)
    for index, part in enumerate(parts):
        part["constraints"] = {"hard": [f"{dear} || {index} < {number}" for number in range(30)]}
    with pytest.raises(UsageError, match="steps in all"):
        decode_spec(json.dumps({"name": "x", "children": parts}))


def test_many_links_are_put_in_order_in_no_time() -> None:
    begin = time.monotonic()
    assert len(decode_spec(json.dumps(chain(500, closed=False))).links) == 3499
    with pytest.raises(UsageError, match="in a circle: c0 → c1 → "):
        decode_spec(json.dumps(chain(500, closed=True)))
    assert time.monotonic() - begin < SECONDS


def test_links_are_counted_in_the_whole_document() -> None:
    inner = {"name": "x", "children": children(2), "links": [{"from": "c0", "to": "c1"}] * 2001}
    parts = [{**inner, "name": name} for name in ("a", "b")]
    with pytest.raises(UsageError, match="4000 links in all"):
        decode_spec(json.dumps({"name": "x", "children": parts}))


@pytest.mark.parametrize("rule", ["1 < 2", "1 <"])
def test_the_same_text_is_checked_once(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    calls: list[str] = []
    real = expressions.check

    def count(text: str, **kind: Any) -> int:
        calls.append(text)
        return real(text, **kind)

    monkeypatch.setattr(expressions, "check", count)
    text = json.dumps({**CHILD, "name": f"once-{len(rule)}", "constraints": {"hard": [rule]}})
    outcomes = []
    for _ in range(3):
        try:
            outcomes.append(decode_spec(text).name)
        except UsageError as error:
            outcomes.append(error.message)
    assert len(set(outcomes)) == len(calls) == 1


@pytest.mark.parametrize("name", ["o\x7f", "o\u202ex", "o\u2028", "o" * 201])
def test_an_output_has_a_name_that_a_result_can_list(name: str) -> None:
    """A provider would run such a job, and sign a result that nobody can read or pay for."""
    for output in ({"path": name}, {"path": "out", "name": name[:200]}):
        if len(name) > 200 and "name" in output:
            continue
        with pytest.raises(UsageError, match="not a name for an output"):
            decode_spec(json.dumps({**CHILD, "name": "x", "outputs": [output]}))


@pytest.mark.parametrize("pods", [{"pod": True}, {"pods": [{"id": "p", "jobs": ["c0", "c1"]}]}])
def test_the_outputs_of_a_pod_can_be_listed_together(pods: dict[str, Any]) -> None:
    long = children(2, outputs=[{"path": "o" * 198}])
    many = children(2, outputs=[{"path": f"o{index}"} for index in range(600)])
    for parts, what in ((long, "not a name for an output"), (many, "may have 1000 outputs")):
        with pytest.raises(UsageError, match=what):
            decode_spec(json.dumps({"name": "x", "children": parts, **pods}))
    assert decode_spec(json.dumps({"name": "x", "children": long})).children
