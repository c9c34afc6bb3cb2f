"""CEL expressions: refused when they are set, with the column; bounded in size and time."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nunet_cli.errors import UsageError
from nunet_cli.jobs import expressions
from nunet_cli.jobs.capability import Capability, Cpu, Gpu, Locality, Resources
from nunet_cli.jobs.reader import read_spec

GIB = 2**30
NODE = Capability(resources=Resources(Cpu(4, 3000), 8 * GIB, gpus=(Gpu("NVIDIA", "A100", 80 * GIB),)),
                  localities=(Locality("country", "SE"),))  # fmt: skip
NAMES = expressions.variables(node=NODE, job=Capability(), price=1_500_000, rtt=0.02, load=0.5)


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("", 1, "empty"),
        ("node.cpu.cores >= ", 19, "Syntax error|mismatched input"),
        ("a +* b", 4, "extraneous input"),
        ("nodes.memory > 1", 1, "unknown name 'nodes'"),
        ("price < 1.0 && cost > 2.0", 16, "unknown name 'cost'"),
        ("node.cpu.corez > 1.0", 10, "no field 'corez'"),
        ("node.memory", 1, "gives a number, not true or false"),
        ("node.memory > 'much'", 1, "No such overload"),
        ("1 + 2.5 > 3.0", 1, "No such overload"),
        ("true " + "&& true " * 200, 1000, "at most 1000"),
        ("[1].all(a, [1].all(b, [1].all(c, a+b+c > 0)))", 1, "at most 2"),
    ],
)
def test_a_wrong_expression_is_refused_with_its_column(text: str, column: int, what: str) -> None:
    with pytest.raises(expressions.ExpressionError, match=what) as caught:
        expressions.check(text)
    assert caught.value.message.startswith(f"column {column}: ")
    assert caught.value.details["column"] == column


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("node.cpu.cores >= 4.0 && node.memory >= quantity('8GiB')", True),
        ("node.gpus.exists(g, g.vram > quantity('40GiB') && g.vendor == 'NVIDIA')", True),
        ("node.localities.exists(l, l.kind == 'country' && l.name in ['NO', 'DK'])", False),
        ("price < 1.5", False),
        ("peer.rtt_ms < 50.0 && bid.load <= 0.5", True),
        ("!(node.connectivity.vpn)", True),
    ],
)
def test_what_expressions_say(text: str, holds: bool) -> None:
    expressions.check(text)
    assert expressions.holds(text, NAMES) is holds


def test_a_rank_is_a_number_between_0_and_1() -> None:
    for text, value in (("0.25", 0.25), ("node.cpu.cores / 8.0", 0.5), ("true", 1.0), ("5", 1.0), ("-1.0", 0.0)):
        expressions.check(text, kind="number")
        assert expressions.number(text, NAMES) == value
    with pytest.raises(expressions.ExpressionError, match="not a number"):
        expressions.check("'high'", kind="number")


def test_a_hostile_expression_ends_soon_or_is_refused() -> None:
    numbers = "[" + ",".join("1" for _ in range(230)) + "]"
    worst = f"{numbers}.all(x, {numbers}.all(y, x+y>0))"
    assert len(worst) <= expressions.MAX_LENGTH
    begun = time.process_time()
    assert expressions.holds(worst, NAMES)
    assert time.process_time() - begun < 2
    for text in ("(" * 500 + "1" + ")" * 500, "1/0 == 1", "int('x') > 0", "quantity('lots') > 0", "{}[0] == 1"):
        with pytest.raises(expressions.ExpressionError):
            expressions.holds(text, NAMES)


TOKENS = st.sampled_from(
    ["node", ".", "memory", "cpu", "cores", "price", "(", ")", "[", "]", "{", "}", "1", "0", "-1", "2.5", "'x'", "+", "-",
     "/", "%", "*", "&&", "||", "!", "?", ":", "==", "<", ",", "exists", "map", "size", "int", "string", "duration",
     "timestamp", "matches", "in", "true", "null", "9223372036854775807", "1u", "b'x'", "x", " "]
)  # fmt: skip


@given(st.lists(TOKENS, max_size=14))
@settings(max_examples=300, deadline=None)
def test_whatever_is_written_holds_or_not_or_is_refused(parts: list[str]) -> None:
    text = "".join(parts)
    for judge in (expressions.check, lambda text: expressions.holds(text, NAMES)):
        try:
            judge(text)
        except expressions.ExpressionError as error:
            assert error.details["column"] >= 1


def test_a_specification_names_line_and_field_of_a_wrong_expression() -> None:
    text = "name: x\nexecutor: {type: 'null'}\nconstraints:\n  hard:\n    - 'price < 1.0'\n    - 'node.cores > 1'\n"
    with pytest.raises(UsageError, match=r"job.yaml:6:7: constraints.hard\[1\]: column 6: there is no field 'cores'"):
        read_spec(text)
    soft = "name: x\nexecutor: {type: 'null'}\nconstraints:\n  soft:\n    - {rank: 'node.gpus', weight: 3}\n"
    with pytest.raises(UsageError, match=r"job.yaml:5:8: constraints.soft\[0\].rank: .*not a number"):
        read_spec(soft)


def test_values_are_shown_for_people() -> None:
    shown = expressions.values_in("node.memory > 1 && price < 1.0 && node.cpu.cores > 2.0", NAMES)
    assert shown == "node.memory = 8 GiB, price = 1.5, node.cpu.cores = 4.0"
