"""Typed rows: what the operations give, against a dict that does the same; pages; what they read."""

import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nunet_cli.database.file import open_file
from nunet_cli.database.records import MOST_REMEMBERED, Records, statements
from nunet_cli.errors import NodeError, NotFoundError, UsageError
from nunet_cli.records.table import Table

KEYS = st.sampled_from(["a", "b", "c", "ab", "ünï", "O'Brien"])
STATES = st.sampled_from(["open", "done", ""])


class Row(msgspec.Struct, frozen=True):
    id: str
    state: str = "open"
    at: str = ""
    number: int = 0
    other: str = ""


class Line(msgspec.Struct, frozen=True):
    text: str


ROWS = Table("rows", Row, indexes=("state", "at", "other"), together=(("state", "at"),))
LINES = Table("lines", Line, key="")


def opened() -> sqlite3.Connection:
    return open_file(Path(":memory:"), (ROWS, LINES))


class SameAsADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.rows: Records[Row] = Records(opened(), ROWS)
        self.model: dict[str, Row] = {}

    @rule(key=KEYS, state=STATES, other=STATES, number=st.integers(-(2**60), 2**60))
    def put(self, key: str, state: str, other: str, number: int) -> None:
        row = Row(key, state, f"2026-01-{abs(number) % 28 + 1:02}", number, other)
        self.rows.put(row)
        self.model[key] = row

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        assert self.rows.remove(key) == (self.model.pop(key, None) is not None)

    @rule(state=STATES)
    def remove_by(self, state: str) -> None:
        gone = [key for key, row in self.model.items() if row.state == state]
        assert self.rows.remove_by("state", state) == len(gone)
        for key in gone:
            del self.model[key]

    @rule(key=KEYS, state=STATES)
    def ask(self, key: str, state: str) -> None:
        assert self.rows.get(key) == self.model.get(key)
        assert self.rows.has(key) == (key in self.model)
        there = [row for row in self.model.values() if row.state == state]
        assert self.rows.by("state", state) == there
        assert self.rows.latest("state", state, 2) == there[::-1][:2]
        assert self.rows.count("state", state) == len(there)
        assert self.rows.with_prefix("a") == [self.model[k] for k in sorted(self.model) if k.startswith("a")]
        below = sorted((row for row in self.model.values() if row.at < "2026-01-10"), key=lambda row: row.at)
        assert sorted(self.rows.below("at", "2026-01-10"), key=lambda row: (row.at, row.id)) == sorted(
            below, key=lambda row: (row.at, row.id)
        )

    @rule(state=STATES, other=STATES)
    def ask_by_two(self, state: str, other: str) -> None:
        either = [row for row in self.model.values() if state in (row.state, row.other)]
        assert self.rows.latest(("state", "other"), state, 2) == either[::-1][:2]
        page = self.rows.page(2, **{"state|other": state})
        assert (page.rows, page.total) == (either[:2], len(either))
        both = [row for row in either if row.other == other]
        assert self.rows.page(9, newest=True, **{"state|other": state, "other": other}).rows == both[::-1]
        below = [row for row in self.model.values() if row.state == state and row.at < "2026-01-10"]
        assert {row.id for row in self.rows.below("at", "2026-01-10", state=state)} == {row.id for row in below}

    @rule(limit=st.integers(1, 4), newest=st.booleans(), state=STATES | st.none())
    def pages(self, limit: int, newest: bool, state: str | None) -> None:
        expected = [row for row in self.model.values() if state is None or row.state == state]
        where: dict[str, Any] = {} if state is None else {"state": state}
        found: list[Row] = []
        after = ""
        while True:
            page = self.rows.page(limit, after, newest=newest, **where)
            assert len(page.rows) <= limit
            assert page.total == len(expected)
            found += page.rows
            after = page.after
            if not after:
                break
        assert found == (expected[::-1] if newest else expected)

    @invariant()
    def same(self) -> None:
        assert list(self.rows.all()) == list(self.model.values())
        counts: dict[str, int] = {}
        for row in self.model.values():
            counts[row.state] = counts.get(row.state, 0) + 1
        assert self.rows.count_by("state") == counts
        assert sorted(self.rows.distinct("state")) == sorted(counts)


TestSameAsADict = SameAsADict.TestCase
TestSameAsADict.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_log_is_read_from_a_number_on() -> None:
    lines = Records(opened(), LINES)
    numbers = [lines.append(Line(str(n))) for n in range(5)]
    assert [row.text for _, row in lines.after(numbers[2])] == ["3", "4"]
    assert [row.text for row in lines.all()] == list("01234")


def test_prefixes_must_be_unambiguous() -> None:
    rows: Records[Row] = Records(opened(), ROWS)
    for name in ("job-aa1", "job-aa2", "job-b", "job-b2"):
        rows.put(Row(name))
    assert rows.resolve("job-b", what="job").id == "job-b"
    with pytest.raises(UsageError, match="ambiguous: job-aa1, job-aa2"):
        rows.resolve("job-a", what="job")
    for nothing in ("job-x", ""):
        with pytest.raises(NotFoundError, match=f"no job '{nothing}' here"):
            rows.resolve(nothing, what="job")


def test_a_page_after_what_is_not_there_is_refused() -> None:
    with pytest.raises(NotFoundError, match="'gone'"):
        Records(opened(), ROWS).page(3, "gone")


def test_every_question_reads_only_the_rows_it_is_about() -> None:
    """A stranger's question must not make a node read a whole table, which grows with everybody's work."""
    connection = opened()
    rows: Records[Row] = Records(connection, ROWS)
    for n in range(50):
        rows.put(Row(f"k{n}", f"s{n}", f"2026-01-{n:02}"))
    asked: list[str] = []
    connection.set_trace_callback(asked.append)
    rows.get("k3"), rows.by("state", "s3"), rows.latest("state", "s3"), rows.below("at", "2026-01-02")
    rows.with_prefix("k3"), rows.count_by("state"), rows.remove("k4"), rows.remove_by("state", "s5")
    rows.put(Row("k3")), rows.remove_below("at", "2026-01-02"), rows.page(3, "k9", state="s9")
    rows.latest(("state", "other"), "s3", 5), rows.page(3, **{"state|other": "s9"}), rows.below("at", "x", state="s3")
    connection.set_trace_callback(None)
    for text in asked:
        if not text.startswith('SELECT count(*) FROM "rows" WHERE'):
            plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}"))
            assert "SCAN rows" not in plan or "USING COVERING INDEX" in plan, f"{text}: {plan}"


@pytest.mark.parametrize("kind", [bytes, str])
def test_a_row_that_cannot_be_read_says_which_and_what_to_do(kind: type) -> None:
    connection = opened()
    rows: Records[Row] = Records(connection, ROWS)
    rows.put(Row("a"))
    connection.execute("UPDATE rows SET doc=?", (b'{"id": 3}' if kind is bytes else '{"id": 3}',))
    with pytest.raises(NodeError, match=r"a row of rows in the store cannot be read: .*\$\.id") as caught:
        rows.get("a")
    assert "restore" in caught.value.hint


def test_a_row_that_is_read_again_and_again_is_decoded_once_and_never_out_of_date() -> None:
    declared = Table("rows", Row)
    first, second = (Records(open_file(Path(":memory:"), (declared,)), declared) for _ in range(2))
    for records, state in ((first, "one"), (second, "two")):
        records.put(Row("a", state))
    read = [first.one("a") for _ in range(3)]
    assert read[0] is not read[1]
    assert read[1] is read[2]
    assert next(row for _, row in first.after(0)) is read[1]
    # the same number in another store, and in this one after a change
    assert [second.one("a").state for _ in range(3)] == ["two"] * 3
    first.put(Row("a", "changed"))
    assert [first.one("a").state for _ in range(3)] == ["changed"] * 3


def test_what_is_looked_through_once_pushes_nothing_out_and_what_is_kept_is_bounded() -> None:
    declared = Table("rows", Row)
    records = Records(open_file(Path(":memory:"), (declared,)), declared)
    for number in range(10 * MOST_REMEMBERED):
        records.put(Row(f"{number:06}"))
    remembered = statements(declared).remembered
    known = [records.one("000000") for _ in range(2)][1]
    for _ in records.all():
        assert len(remembered._seen) <= MOST_REMEMBERED
    assert records.one("000000") is known
    for number in range(10 * MOST_REMEMBERED):
        for _ in range(2):
            records.one(f"{number:06}")
        assert len(remembered._kept) <= MOST_REMEMBERED
