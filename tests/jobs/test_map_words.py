"""The items of `nunet map`, when it stops, and its log: what GNU parallel says of the same."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nunet_cli.errors import UsageError
from nunet_cli.jobs.halting import Halt, read_halt
from nunet_cli.jobs.items import MAX_ITEMS, escape, fill
from nunet_cli.jobs.joblog import HEADER, Entry, is_failed, read_log
from nunet_cli.jobs.sources import Source, items_of


def rows(*sources: Source, columns: str = "", link: bool = False, together: int = 1) -> list[tuple[str, ...]]:
    found = items_of(sources, columns=columns, link=link, together=together)
    assert [item.number for item in found] == list(range(1, len(found) + 1))
    return [item.arguments for item in found]


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), min_size=1, max_size=3))
def test_several_sources_make_every_combination(values: list[list[str]]) -> None:
    assert rows(*map(Source, values)) == list(itertools.product(*values))


def test_linked_sources_go_side_by_side() -> None:
    three, two, one = Source(["a", "b", "c"]), Source(["1", "2"], is_linked=True), Source(["x"])
    assert rows(three, two, one) == [("a", "1", "x"), ("b", "2", "x")]
    # --link begins the short ones again
    assert rows(three, Source(["1", "2"]), link=True) == [("a", "1"), ("b", "2"), ("c", "1")]
    assert rows(three, Source([]), link=True) == rows(three, Source([])) == rows(Source([]), three) == []


def test_columns_are_taken_apart() -> None:
    assert rows(Source(["a  b", " c\td "]), columns=r"[ \t]") == [("a", "", "b"), ("", "c", "d", "")]
    assert rows(Source(["a-b"]), Source(["c"]), columns="-") == [("a", "b", "c")]
    with pytest.raises(UsageError, match="--colsep"):
        rows(Source(["a"]), columns="(")


def test_several_are_one_item() -> None:
    assert rows(Source("abcde"), together=2) == [("a", "b"), ("c", "d"), ("e",)]
    assert rows(Source(["a,b", "c,d", "e,f"]), columns=",", together=2) == [("a", "b", "c", "d"), ("e", "f")]
    assert rows(Source("ab"), Source("xy"), together=3) == [("a", "x", "a", "y", "b", "x"), ("b", "y")]
    assert len(rows(Source(map(str, range(3 * MAX_ITEMS))), together=3)) == MAX_ITEMS


def test_no_more_items_are_read_than_there_may_be() -> None:
    read = itertools.count()
    assert len(rows(Source(map(str, range(MAX_ITEMS))))) == MAX_ITEMS
    with pytest.raises(UsageError, match="over 10000 items"):
        rows(Source(str(next(read)) for _ in itertools.count()))
    assert next(read) <= MAX_ITEMS + 2
    with pytest.raises(UsageError, match="over 10000 items"):
        rows(Source(map(str, itertools.count())), Source(map(str, itertools.count())))


@pytest.mark.parametrize(
    ("text", "met", "not_met"),
    [
        ("soon,fail=1", (1, 0), (0, 9)), ("now,success=2", (0, 2), (8, 1)), ("now,done=3", (2, 1), (1, 1)),
        ("soon,fail=20%", (2, 0), (1, 8)), ("now,success=100%", (0, 10), (1, 9)), ("1", (1, 0), (0, 1)),
        ("-2", (0, 1), (1, 0)), ("30%", (3, 0), (2, 0)),
    ],
)  # fmt: skip
def test_it_halts_when_it_was_told(text: str, met: tuple[int, int], not_met: tuple[int, int]) -> None:
    halt = read_halt(text)
    assert halt.is_met(failed=met[0], succeeded=met[1], total=10)
    assert not halt.is_met(failed=not_met[0], succeeded=not_met[1], total=10)


def test_it_does_not_halt_when_it_was_not_told() -> None:
    assert read_halt("never") == read_halt("0") == read_halt("") == Halt()
    assert not Halt().is_met(failed=10, succeeded=0, total=10)
    for text in ("soon", "now,fail=0", "later,fail=1", "soon,fail=101%", "soon,fail=x", "soon,fail=1 "):
        with pytest.raises(UsageError, match="--halt"):
            read_halt(text)


COMMANDS = st.text(alphabet="ab \t\n'é\r", max_size=10)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-1, 255), COMMANDS), max_size=5))
def test_what_is_written_to_a_log_is_read_of_it(made: list[tuple[int, int, str]]) -> None:
    entries = [Entry(number, ":", 1.5, 0.25, 3, 4, value, 0, command) for number, value, command in made]
    text = f"{HEADER}\n{''.join(entry.line() for entry in entries)}"
    assert read_log(text, "log") == {entry.number: entry for entry in entries}
    # killed while it wrote: that item has not ended
    assert read_log(text[:-1], "log") == {entry.number: entry for entry in entries[:-1]}


def test_a_log_of_parallel_is_read() -> None:
    text = (
        "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"
        "2\t:\t1795687620.905\t     0.003\t0\t6\t3\t0\texit 3\n1\t:\t1795687621.063\t     0.000\t0\t0\t0\t9\tkill -9 $$ 0\n"
        '3\t:\t1795687621.243\t     0.000\t0\t6\t0\t0\techo "a\0b" x\n'
    )
    found = read_log(text, "log")
    assert [is_failed(found[number]) for number in (1, 2, 3)] == [True, True, False]
    assert found[3].command == 'echo "a\nb" x'
    assert text == f"{HEADER}\n{found[2].line()}{found[1].line()}{found[3].line()}"
    with pytest.raises(UsageError, match="log:2: not a line of a job log"):
        read_log("Seq\tHost\na\tb\n".replace("Seq\tHost", HEADER), "log")


@given(st.text(alphabet="{}$a1_ b"))
def test_nothing_is_filled_into_what_is_escaped(text: str) -> None:
    assert fill(escape(text), {"a": "filled", "b": "filled", "a1_": "filled"}) == text
