"""The items of a batch: read from text, and filled into the specification of each."""

import csv
import io
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nunet_cli.errors import UsageError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.items import MAX_ITEMS, Row, expand_batch, fill, measures, read_items, rows_of_paths
from nunet_cli.jobs.reader import read_spec
from nunet_cli.jobs.spec import encode_spec
from nunet_cli.jobs.tree import price_limit
from nunet_cli.orchestrator.inputs import check_inputs

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name != "index")
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def batch(items: Any, load: Callable[[str], list[Row]] | None = None, **fields: Any) -> Any:
    document = {
        "name": "sweep", "type": "batch", "batch": {"items": items, **fields.pop("batch", {})},
        "executor": {"type": "process", "command": ["echo", "{index}"]}, **fields,
    }  # fmt: skip
    return read_spec(json.dumps(document), **({"load": load} if load is not None else {}))


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=5), st.data())
def test_each_value_is_where_its_name_was_and_nothing_else_changes(values: dict[str, str], data: st.DataObject) -> None:
    plain = st.text(st.characters(codec="utf-8", exclude_characters="{}$"), max_size=10)
    names = st.sampled_from(sorted(values))
    pieces = data.draw(st.lists(st.one_of(plain.map(lambda text: ("text", text)), names.map(lambda n: ("name", n)))))
    template = "".join(text if kind == "text" else f"{{{text}}}" for kind, text in pieces)
    assert fill(template, values) == "".join(text if kind == "text" else values[text] for kind, text in pieces)


@given(st.text(st.sampled_from("{}$ab_0 ,'\"."), max_size=30))
def test_doubled_braces_are_the_text_itself_and_what_is_no_name_stays(text: str) -> None:
    filled = fill(text, {})
    # without values nothing but doubled braces changes
    assert filled.replace("{", "").replace("}", "") == text.replace("{", "").replace("}", "")
    assert fill(f"{{{{{'a'}}}}}", {"a": "x"}) == "{a}"


@pytest.mark.parametrize(("text", "filled"), [
    ("awk '{print $1}'", "awk '{print $1}'"), ("${city} $city {city}", "${city} $city Oslo"), ("{{city}}", "{city}"),
    ("find . -exec rm {} ;", "find . -exec rm {} ;"), ("{a,b} {1..3}", "{a,b} {1..3}"), ('{"city":1}', '{"city":1}'),
    ("{{.State}} {{ city }}", "{{.State}} {{ city }}"), ("{city}{city}", "OsloOslo"), ("{other}", "{other}"),
    ("${{city}}", "${city}"), ("{value}", "{city}"),
])  # fmt: skip
def test_braces_of_shells_and_templates_are_left_alone(text: str, filled: str) -> None:
    assert fill(text, {"city": "Oslo", "value": "{city}"}) == filled


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), st.data())
def test_what_a_csv_writer_writes_is_read_back(names: list[str], data: st.DataObject) -> None:
    cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)
    rows = data.draw(st.lists(st.lists(cells, min_size=len(names), max_size=len(names)), min_size=1, max_size=5))
    # a row that is one empty cell is an empty line
    rows = [row for row in rows if row != [""]] or [["x"] * len(names)]
    out = io.StringIO(newline="")
    csv.writer(out).writerows([names, *rows])
    found = read_items(out.getvalue(), "x.csv")
    assert [list(row.values.values()) for row in found] == rows
    assert found[0].line == 2


def test_the_line_of_an_item_is_that_in_its_file() -> None:
    text = 'city,note\n"Oslo","two\nlines"\n\nBergen,x\n'
    assert [row.line for row in read_items(text, "p.csv")] == [2, 5]
    assert [row.line for row in read_items('{"a": 1}\n\n{"a": true}\n', "p.jsonl")] == [1, 3]
    assert read_items('{"a": 1.5}\n{"a": true}\n', "p.jsonl")[1].values == {"a": "true"}
    assert read_items("a\tb\n1\t2,3\n", "p.tsv")[0].values == {"a": "1", "b": "2,3"}


@pytest.mark.parametrize(("name", "text", "said"), [
    ("p.csv", "a,b\n1\n", "p.csv:2: 1 value, and the first line names 2"), ("p.csv", "a,a\n", "p.csv:1: two values are called 'a'"),
    ("p.csv", "wind speed\n1\n", "p.csv:1: not a name for a value: 'wind speed'"), ("p.csv", "index\n1\n", "is the item's number"),
    ("p.csv", 'a\n"x\n', "p.csv:2: not CSV"), ("p.csv", "a\n", "there are no items in it"), ("p.txt", "a\n", "not a file of items"),
    ("p.jsonl", '{"a": 1}\n{"a": }\n', "p.jsonl:2: not JSON"), ("p.jsonl", "[1]\n", "p.jsonl:1: an item is a mapping"),
    ("p.jsonl", '{"a": null}\n', "p.jsonl:1: `a` is neither a text"), ("p.csv", f"a\n{'x' * 5000}\n", "p.csv:2: `a` has over 4000"),
])  # fmt: skip
def test_a_bad_file_of_items_is_refused_with_its_line(name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_items(text, name)
    assert said in caught.value.message


def test_items_are_a_number_a_list_a_file_or_a_pattern() -> None:
    assert batch(10) == read_spec(json.dumps({
        "name": "sweep", "type": "batch", "batch": {"count": 10},
        "executor": {"type": "process", "command": ["echo", "{index}"]},
    }))  # fmt: skip
    listed = batch([{"city": "Oslo", "year": 2001}, {"city": "Bergen", "year": 2002}], price="0.5")
    assert listed.batch.items[1] == {"city": "Bergen", "year": "2002"}
    assert price_limit(listed) == 1_000_000
    found = batch("in/*.png", lambda name: rows_of_paths(["in/a.png", "in/b.c.png"]) if name == "in/*.png" else [])
    assert found.batch.items[1] == {"path": "in/b.c.png", "name": "b.c.png", "stem": "b.c"}


def test_all_that_an_item_says_is_filled_in() -> None:
    spec = batch(
        [{"city": "Oslo", "n": 1}, {"city": "San José", "n": 2}], batch={"name": "{city}-{n}"},
        executor={"type": "docker", "image": "x", "entrypoint": ["{city}"], "command": ["{n}"],
                  "env": {"CITY": "{city}"}, "workdir": "w/{n}"},
        inputs=[{"path": "in/{n}.txt"}, {"path": "in/{city}", "to": "city"}],
        outputs=[{"path": "out/{n}", "name": "{n}.out"}], description="for {city}",
    )  # fmt: skip
    first, second = expand_batch(spec)
    assert (first.name, second.name) == ("Oslo-1", "San-Jos--2")
    assert first.executor is not None
    assert (first.executor.entrypoint, first.executor.command, first.executor.workdir) == (("Oslo",), ("1",), "w/1")
    assert first.executor.env == {"CITY": "Oslo", "NUNET_BATCH_INDEX": "0", "NUNET_BATCH_COUNT": "2"}
    assert [(item.path, item.to) for item in second.inputs] == [("in/2.txt", "2.txt"), ("in/San José", "city")]
    assert [(item.path, item.name) for item in first.outputs] == [("out/1", "1.out")]
    assert (first.type, first.batch, second.description) == ("task", None, "for San José")
    # each is a specification of its own, as it goes to a provider
    assert decode_spec(encode_spec(second)) == second


@pytest.mark.parametrize(("items", "fields", "said"), [
    ([{"a": 1}], {"executor": {"type": "process", "command": ["x", "{b}"]}}, "job.yaml:1:117: executor.command[1]: the items have no `b` they have: a, index; for the text itself write {{b}}"),
    ([{"a": 1}, {"b": 1}], {}, "batch.items[1]: item 1: `a` is missing, which the first item has"), ([], {}, "there are no items"),
    ([{"a": [1]}], {}, "batch.items[0]: item 0: `a` is neither"), ([1], {}, "an item is a mapping"), (0, {}, "batch.items: a batch has 1 to 10000 items, not 0"),
    (True, {}, "expected a number, a list or the name of a file"), ("p.csv", {}, "the items of p.csv were not given"),
    (10, {"batch": {"count": 3}}, "give either `items` or `count`"), (MAX_ITEMS + 1, {}, "batch.items: a batch has 1 to 10000 items, not 10001"), (-3, {}, "not -3"),
    ([{"a": "../x"}], {"inputs": [{"path": "f", "to": "{a}"}]}, "inputs[0].to: item 0: an input must stay inside"),
    ([{"a": "x"}, {"a": "x"}], {"batch": {"name": "{a}"}}, "batch.name: item 1: the items 0 and 1 are both called 'x' add {index}, for example name: \"{a}-{index}\""),
    ([{"a": "."}], {"batch": {"name": "{a}"}}, "batch.name: item 0: not a name: ''"),
    ([{"a": "x" * 500}], {"outputs": [{"path": "{a}"}]}, "outputs[0].path: item 0: over 400 characters"),
    (9000, {"executor": {"type": "process", "command": ["x" * 60_000]}}, "put what is long into an input"),
])  # fmt: skip
def test_bad_items_are_refused_with_the_place(items: Any, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        batch(items, **fields)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_the_line_of_a_file_of_items_is_said_where_an_item_is_wrong() -> None:
    rows = read_items("a\nfine\n/etc/x\n", "points.csv")
    with pytest.raises(UsageError, match=r"points\.csv:3: inputs\[0\]\.to: item 1: an input must stay inside"):
        batch("points.csv", lambda _: rows, inputs=[{"path": "f", "to": "{a}"}])


def test_all_problems_of_the_items_are_said_together_up_to_some() -> None:
    def refused(text: str, name: str = "p.csv", **fields: Any) -> list[str]:
        with pytest.raises(UsageError) as caught:
            batch(name, lambda name: read_items(text, name), **fields)
        return caught.value.message.split("\n")

    assert refused("a,b\n1\n1,2\n1,2,3\n") == [
        "job.yaml:1:46: batch.items: p.csv:2: 1 value, and the first line names 2",
        "p.csv:4: 3 values, and the first line names 2",
    ]
    rows = '{"a": 1, "b": 2}\n{"b": 1}\n{"a": 1, "b": 2, "c": 3}\n'
    assert [line.partition("items: ")[2] for line in refused(rows, "p.jsonl")] == [
        "p.jsonl:2: `a` is missing, which the first item has", "p.jsonl:3: the first item has no `c`, as this one has"
    ]  # fmt: skip
    lines = "".join(f"/etc/{number}\n" for number in range(41))
    said = refused(f"a\nfine\n{lines}", inputs=[{"path": "f", "to": "{a}"}])
    assert said[0] == "p.csv:3: inputs[0].to: item 1: an input must stay inside the job's folder: '/etc/0'"
    assert said[9] == "p.csv:12: inputs[0].to: item 10: an input must stay inside the job's folder: '/etc/9'"
    assert said[10:] == ["and 31 more"]
    # what comes to too much is not looked at to the end
    with pytest.raises(UsageError, match=r"batch\.items: a batch may have 10000 items, p\.csv has 10001"):
        batch("p.csv", lambda name: read_items("a\n" + "1\n" * (MAX_ITEMS + 1), name))


def test_all_inputs_that_are_missing_are_said_together_and_one_of_all_items_once(tmp_path: Path) -> None:
    spec = batch(
        [{"a": str(number)} for number in range(50)],
        inputs=[{"path": "{a}.txt", "to": "in"}, {"path": "model.py", "to": "model"}],
    )
    for number in range(3, 50):
        (tmp_path / f"{number}.txt").write_text("")
    with pytest.raises(UsageError) as caught:
        check_inputs(spec, tmp_path)
    told = [(caught.value.details["path"], caught.value.message)]
    told += [(other["path"], other["message"]) for other in caught.value.details["also"]]
    assert told == [
        (f"children[{n}].inputs[{i}].path", f"there is no file {tmp_path / name}")
        for n, i, name in ((0, 0, "0.txt"), (0, 1, "model.py"), (1, 0, "1.txt"), (2, 0, "2.txt"))
    ]
    for name in ("0.txt", "1.txt", "2.txt", "model.py"):
        (tmp_path / name).write_text("")
    check_inputs(spec, tmp_path)


def test_between_nodes_a_specification_has_no_items() -> None:
    with pytest.raises(UsageError, match="between nodes has no items"):
        decode_spec(encode_spec(batch([{"a": 1}])))


def test_values_that_are_filled_in_again_and_again_do_not_fill_the_memory() -> None:
    # 2 MB of values, and a line that names them 500 times; together it would be a gigabyte
    lines = "\n".join(json.dumps({"a": f"{number:04}" + "x" * 196}) for number in range(MAX_ITEMS))
    command = ["true", "{a}" * 500]
    began = time.process_time()
    with pytest.raises(UsageError, match="the specifications of all items come to over"):
        batch("rows.jsonl", lambda name: read_items(lines, name), executor={"type": "process", "command": command})
    assert time.process_time() - began < 10


@pytest.mark.parametrize("field", ["command", "env", "entrypoint"])
def test_what_would_be_too_long_is_counted_before_it_is_made(field: str) -> None:
    # 100 KB of specification and one value of 4000 characters; filled in it would be over a hundred megabytes
    many = "{x}" * 33_000
    executor = {"type": "docker", "image": "x", field: {"A": many} if field == "env" else [many]}
    rows = [Row({"x": "A" * 4000})]
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="over 100000 characters"):
            batch("rows.csv", lambda _: rows, executor=executor)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@given(st.lists(st.tuples(st.sampled_from(["{", "}", "{{", "}}", "$", "", "x"]), NAMES), max_size=8),
       st.dictionaries(NAMES, VALUES, max_size=3))  # fmt: skip
def test_the_length_that_is_counted_is_that_of_the_text(pieces: list[tuple[str, str]], values: dict[str, str]) -> None:
    names = [*values, "other"]
    text = "".join(
        sign + names[len(name) % len(names)] + "}" * (number % 3) for number, (sign, name) in enumerate(pieces)
    )
    spec = batch(3, executor={"type": "process", "command": [text]})
    (measure,) = [one for one in measures(spec) if one.path == "executor.command[0]"]
    assert measure.length(values) == len(fill(text, values))
