"""Of a job with many children it is told how far it is, and which ones failed; not what happens to each."""

import base64
from typing import Any

from nunet_cli.cli.counted import MOST_FAILURES, MOST_REMARKS, Counted
from nunet_cli.cli.progress import describe


class Logs:
    """Gives what a child wrote."""

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        name = path.split("/")[2]
        if not path.endswith("/logs"):
            result = {"stdout_size": 4, "stderr_size": 12 if name == "id-7" else 0}
            return {"id": name, "error": {"message": "it exited with 3; no outputs"}, "result": result}
        text = b"first\nlast\n\n" if query["stream"] == "stderr" else b"out\n"
        return {"data": base64.b64encode(text[query["offset"] :]).decode()}


def counted(count: int, done: int = 0) -> Counted:
    rows = [{"name": f"p-{n}", "id": f"id-{n}", "state": "settled" if n < done else "posted"} for n in range(count)]
    return Counted(Logs(), {"children": rows})  # type: ignore[arg-type]  # all that it is asked for


def told(one: Counted, kind: str, child: str = "", **data: Any) -> list[str]:
    event = {"type": kind, "child": child, "job_id": "job-1", "data": data}
    return [f"{stage} {text}" for stage, text in one.tell(event, describe(event))]


def test_a_hundred_children_are_about_twenty_lines() -> None:
    one, lines = counted(100), []
    for number in range(100):
        name = f"p-{number}"
        lines += told(one, "job_matching", name)
        lines += told(one, "job_running", name, allocation_id="a")
        lines += told(one, "job_completed", name, usage={"wall_seconds": 1, "cpu_seconds": 1}, reason="")
        lines += told(one, "job_settled", name, paid="1")
    # with the last one the whole has ended, which is told then
    assert len(lines) == 19
    assert lines[0] == "execute 5 of 100 done"
    assert lines[-1] == "execute 95 of 100 done"
    assert one.counts == (100, 0, 100)


def test_a_failure_is_told_with_the_last_line_that_it_wrote_and_taken_back_when_it_runs_again() -> None:
    one = counted(100)
    assert told(one, "job_failed", "p-7", reason="exit_code") == ["execute p-7: it exited with 3: last"]
    assert told(one, "job_failed", "p-8", reason="exit_code") == ["execute p-8: it exited with 3: out"]
    assert told(one, "job_failed", "p-7", reason="exit_code") == []
    assert one.counts == (0, 2, 100)
    told(one, "job_posted", "p-7", attempt=2)
    assert one.text() == "0 of 100 done, 1 failed"


def test_what_had_settled_before_counts() -> None:
    one = counted(20, done=19)
    assert told(one, "job_settled", "p-3", paid="1") == []
    told(one, "job_running", "p-19", allocation_id="a")
    assert one.text() == "19 of 20 done, 1 running"


def test_one_reason_of_many_children_is_told_once_and_there_is_an_end_to_reasons_and_failures() -> None:
    one = counted(1000)
    waits = {"reason": "all are busy", "next_try": "2026-11-26T10:11:12.000Z"}
    assert told(one, "job_waiting", "p-1", **waits) == ["match p-1: waiting: all are busy; next try at 10:11:12 UTC"]
    assert told(one, "job_waiting", "p-2", **waits) == []
    more = [told(one, "job_waiting", "p-2", **waits | {"reason": f"reason {n}"}) for n in range(50)]
    assert sum(map(len, more)) == MOST_REMARKS - 1
    failed = [line for n in range(200) for line in told(one, "job_failed", f"p-{n}", reason="exit_code")]
    assert sum(line.endswith(": it exited with 3: out") for line in failed) == MOST_FAILURES - 1
    assert sum("not told of" in line for line in failed) == 1


def test_of_the_whole_it_is_told_what_it_waits_for_and_how_it_ends_but_not_each_bid() -> None:
    one = counted(20)
    assert told(one, "bid_received", price="1", bidder="12D3KooWMot5") == []
    assert told(one, "bids_ranked", bids=2, units=16) == ["match 2 bids, for 16 at once"]
    assert told(one, "bids_ranked", bids=1, units=8) == []
    assert told(one, "job_settled", children=20, paid="4") == ["settle all 20 children settled: 4 NTX paid"]


def test_that_nobody_can_run_them_is_told_once_and_not_of_each() -> None:
    one = counted(300)
    nobody = {"reason": "no_bid", "message": "no acceptable bid: 2 declined; cpu.cores: 3 short (2 of 2)",
              "why": "cpu.cores: 3 short (2 of 2)"}  # fmt: skip
    lines = []
    for first in (0, 100, 200):
        lines += told(one, "search_ended", **nobody)
        lines += [line for n in range(100) for line in told(one, "job_expired", f"p-{first + n}", **nobody)]
    assert lines == ["match nobody can run any of them: cpu.cores: 3 short (2 of 2)"]
    assert one.counts == (0, 300, 300)
    # an item whose own search found nobody is another matter
    other = counted(20, done=3)
    assert told(other, "search_ended", **nobody) == [
        "match nobody can run those that are left: cpu.cores: 3 short (2 of 2)"
    ]
    assert told(other, "job_expired", "p-7", reason="no_bid", message="no acceptable bid: 1 declined")[0] == (
        "execute p-7: it exited with 3: last"
    )


def test_where_there_is_a_bar_it_alone_says_how_far_it_is() -> None:
    rows = [{"name": f"p-{n}", "id": f"id-{n}", "state": "posted"} for n in range(20)]
    one = Counted(Logs(), {"children": rows}, steps=False)  # type: ignore[arg-type]  # all that it is asked for
    assert [line for n in range(19) for line in told(one, "job_settled", f"p-{n}", paid="1")] == []
    assert one.counts == (19, 0, 20)


def test_the_end_of_a_group_says_once_that_it_failed() -> None:
    one = counted(20)
    assert told(one, "job_failed", children=20, failed=1, message="1 of 20 failed: p-1: it exited", paid="2") == [
        "settle 1 of 20 failed: p-1: it exited; 2 NTX paid"
    ]
    assert told(one, "job_failed", children=20, message="2 of 20 cancelled: p-1, p-2", paid="2") == [
        "settle failed: 2 of 20 cancelled: p-1, p-2; 2 NTX paid"
    ]
