"""What `nunet map` tells of items while they end: what is printed is in the log, and nothing else, whatever interrupts."""

import io
import os
import signal
from collections.abc import Iterator

import pytest

from nunet_cli.cli.map.ending import advice
from nunet_cli.cli.map.interrupts import held
from nunet_cli.cli.map.orders import Orders, Work
from nunet_cli.cli.map.outcome import Outcome, Stream
from nunet_cli.cli.map.tally import Tally
from nunet_cli.jobs.halting import read_halt
from nunet_cli.jobs.replacements import Command
from nunet_cli.jobs.sources import Source, items_of


def works(count: int) -> list[Work]:
    items = items_of([Source([f"i{number}" for number in range(1, count + 1)])], columns="", link=False, together=1)
    return Orders(Command(["echo"]), [], []).work(items)


def tally_of(all_of_them: list[Work], log: io.StringIO, *, keep_order: bool = True) -> Tally:
    return Tally(
        all_of_them, keep_order=keep_order, tagged=False, results=None, log=log, halt=read_halt("never"), shows_bar=False,
        tells_commands=False,
    )  # fmt: skip


def outcome(work: Work, problem: str = "", *, interrupted: int = 0, exit_code: int = 1) -> Outcome:
    """Return how an item ended; so many Ctrl-C come while its output is read."""

    def read(stream: Stream) -> Iterator[bytes]:
        yield f"{stream[3]}{work.item.number}".encode()
        for _ in range(interrupted if stream == "stdout" else 0):
            os.kill(os.getpid(), signal.SIGINT)
        yield b"\n"

    return Outcome(work, 1 if problem else 0, problem, read, exit_code=exit_code)


def logged(log: io.StringIO) -> list[str]:
    return [line.split("\t")[0] for line in log.getvalue().splitlines()]


def test_a_ctrl_c_while_an_item_is_told_loses_none(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Those behind it had ended before, and waited for it; the next one is called off."""
    all_of_them, log = works(4), io.StringIO()
    tally = tally_of(all_of_them, log)
    tally.ended(outcome(all_of_them[2]))
    tally.ended(outcome(all_of_them[1], "the job exited with 3"))
    assert (capfdbinary.readouterr().out, logged(log)) == (b"", [])
    with pytest.raises(KeyboardInterrupt):
        tally.ended(outcome(all_of_them[0], interrupted=1))
    tally.will_not_run(all_of_them[3])
    assert (tally.succeeded, len(tally.failures), tally.called_off, tally.left) == (2, 1, 1, 0)
    told = capfdbinary.readouterr()
    assert told.out == b"o1\no2\no3\n"
    # what an item wrote comes before what is said of it
    assert told.err == b"e1\ne2\nnunet: item 2 (i2): the job exited with 3\ne3\n"
    assert logged(log) == ["1", "2", "3"]


def test_what_was_not_printed_is_not_in_the_log(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    all_of_them, log = works(3), io.StringIO()
    tally = tally_of(all_of_them, log)
    tally.ended(outcome(all_of_them[2]))
    with pytest.raises(KeyboardInterrupt):
        # the second one is not held back
        tally.ended(outcome(all_of_them[0], interrupted=2))
    # a part of it was: it is run again
    assert (capfdbinary.readouterr().out, logged(log)) == (b"o1", [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # what waits for its turn behind one that will not run is told all the same
    tally.will_not_run(all_of_them[1])
    assert logged(log) == ["3"]


def test_why_items_could_not_run_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    all_of_them = works(9)
    tally = tally_of(all_of_them, io.StringIO(), keep_order=False)
    for work in all_of_them[:5]:
        tally.ended(outcome(work, "no acceptable bid: price", exit_code=4))
    tally.ended(outcome(all_of_them[5], "no providers", exit_code=4))
    tally.ended(outcome(all_of_them[6], "the job exited with 1"))
    tally.ended(outcome(all_of_them[7], "no providers", exit_code=4))
    tally.ended(outcome(all_of_them[8], "the job exited with 1"))
    tally.close()
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nunet:")]
    assert said == [
        "nunet: item 1 (i1): no acceptable bid: price", "nunet: item 6 (i6): no providers",
        "nunet: item 7 (i7): the job exited with 1", "nunet: item 9 (i9): the job exited with 1",
        "nunet: 4 more items could not run: no acceptable bid: price", "nunet: one more item could not run: no providers",
    ]  # fmt: skip


def test_in_a_block_in_a_block_it_is_held_back_until_the_end_of_the_outer_one() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held():
        with held():
            os.kill(os.getpid(), signal.SIGINT)
        done.append(1)
    assert done == [1]
    with held():
        done.append(2)
    assert done == [1, 2]


def test_who_is_not_to_hear_of_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"price.max": "0.2"}, "--price 0.2 would have got a bid; see also: nunet job explain job-1"),
        (
            {"resources.memory": "1073741824", "resources.disk": "1000", "time.max_duration": "60", "resources.cpu.cores": "0.5"},
            "--memory 1GiB --disk 1000B --timeout 60s --cpu 0.5 would have got a bid; see also: nunet job explain job-1",
        ),
        ({"resources.memory": "1234567"}, "--memory 1234567 would have got a bid; see also: nunet job explain job-1"),
        ({"price.max": "0.2", "resources.gpu": "1"}, "see why: nunet job explain job-1"),
        ({"price.max": ""}, "see why: nunet job explain job-1"),
        ({"resources.cpu.cores": "0"}, "see why: nunet job explain job-1"), ({}, "see why: nunet job explain job-1"),
    ],
)  # fmt: skip
def test_what_would_have_got_a_bid_is_said_as_it_is_typed(changes: dict[str, str], expected: str) -> None:
    suggestion = {"changes": [{"path": path, "then": then} for path, then in changes.items()]}
    assert advice("job-1", suggestion if changes else None) == expected
