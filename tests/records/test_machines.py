"""The machines: that each state can be reached and can end, and that what they refuse is refused with the reason."""

import itertools
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from nunet_cli.database.store import Store
from nunet_cli.database.transition import transition
from nunet_cli.errors import StateError
from nunet_cli.records.allocations import ALLOCATION, ALLOCATION_ENDS
from nunet_cli.records.bids import BID
from nunet_cli.records.contract_records import CONTRACT, REGISTERED
from nunet_cli.records.jobs import GROUP, JOB, JOB_ENDS, JOBS, SILENT, ErrorRecord, Job
from nunet_cli.records.machine import CLOCK, DATABASE, ORACLE, PROVIDER, REQUESTER, Machine

MACHINES = [JOB, GROUP, BID, CONTRACT, REGISTERED, ALLOCATION]
EVENTS = {
    JOB: [
        ("search", REQUESTER, None), ("match", REQUESTER, "q"), ("lock", PROVIDER, "q"), ("prove", DATABASE, "c"),
        ("invoke", PROVIDER, "c"), ("start", PROVIDER, "c"), ("complete", PROVIDER, "c"), ("verify", ORACLE, "c"),
        ("settle", DATABASE, "c"),
    ],
}  # fmt: skip


def job(**fields: Any) -> Job:
    return structs.replace(
        Job("job-1", "x", "did:r", "{}", "b", "", "", contract_id="c", bid_request_id="q", bid_id="b"), **fields
    )


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_every_state_is_reached_from_the_start_and_can_end(machine: Machine) -> None:
    reached, todo = set(machine.start), deque(machine.start)
    while todo:
        for following in machine.leads_to(todo.popleft()) - reached:
            reached.add(following)
            todo.append(following)
    assert reached == set(machine.states)
    for start in machine.states:
        seen, todo = {start}, deque([start])
        while todo:
            for following in machine.leads_to(todo.popleft()) - seen:
                seen.add(following)
                todo.append(following)
        assert seen & machine.ends, f"{start} never ends"


def test_a_job_passes_through_every_stage() -> None:
    now = job()
    for event, by, about in EVENTS[JOB]:
        move = JOB.move(now, event, by, about)
        now = structs.replace(now, state=move.to or now.state)
    assert now.state == "settled"


@pytest.mark.parametrize("machine", [JOB, GROUP, CONTRACT, REGISTERED, ALLOCATION], ids=lambda machine: machine.name)
def test_what_has_ended_stays(machine: Machine) -> None:
    # an expired search may be repeated, and a silent provider may come back with the result
    for state in machine.ends - {"expired", "failed"}:
        # a person may have it begin anew, as another attempt
        again = {move.to for move in machine.moves if move.event == "retry" and state in move.states}
        assert machine.leads_to(state) <= {state} | again
        assert state != "settled" or not again


def test_a_job_that_failed_changes_by_the_late_result_of_a_silent_provider_or_to_begin_anew() -> None:
    assert JOB.leads_to("failed") == {"completed", "posted"}
    failed = job(state="failed", error=ErrorRecord("job_failed", "exit 1"))
    with pytest.raises(StateError, match="needs that its provider was silent"):
        JOB.move(failed, "complete", PROVIDER, "c")
    assert JOB.move(job(state="failed", error=ErrorRecord(SILENT, "")), "complete", PROVIDER, "c").to == "completed"


def test_what_is_refused_says_why() -> None:
    for now, event, by, about, code, said in (
        (job(state="running"), "settle", DATABASE, "c", "wrong_state", "running: settle is not possible"),
        (job(state="settled"), "fail", REQUESTER, None, "wrong_state", "it has ended"),
        (job(state="invoked"), "complete", REQUESTER, "c", "wrong_party", "not for the requester to say"),
        (job(state="invoked"), "complete", PROVIDER, "other", "wrong_document", "is about other"),
        (job(state="invoked"), "complete", PROVIDER, None, "wrong_document", "is about nothing"),
        (job(state="completed"), "expire", CLOCK, None, "wrong_state", "disputed"),
    ):
        with pytest.raises(StateError, match=said) as caught:
            JOB.move(now, event, by, about)
        assert caught.value.code == code


async def test_a_transition_decides_on_the_record_that_is_there(tmp_path: Path) -> None:
    """Two who have both read a job that may end: the second finds how it is now."""
    with Store(tmp_path) as store:
        read = job(state="verified")
        await store.change(lambda t: t[JOBS].put(read))
        await store.change(lambda t: transition(t, read, "settle", by=DATABASE, about="c", paid="1"))
        with pytest.raises(StateError, match="job-1 is settled"):
            await store.change(lambda t: transition(t, read, "cancel", by=REQUESTER))
        assert store[JOBS].one("job-1").paid == "1"
        with pytest.raises(StateError, match="is gone"):
            await store.change(lambda t: transition(t, job(id="job-2"), "search", by=REQUESTER))


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_whatever_happens_in_whatever_order_a_job_stays_in_its_table(data: st.DataObject) -> None:
    now = job()
    ended = 0
    names = sorted({move.event for move in JOB.moves})
    parties = (REQUESTER, PROVIDER, DATABASE, ORACLE, CLOCK)
    for _ in range(30):
        event, by = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(parties))
        about = data.draw(st.sampled_from(["c", "q", "b", "x", None]))
        before = now.state
        try:
            move = JOB.move(now, event, by, about)
        except StateError:
            continue
        assert by in move.by
        assert not move.about or getattr(now, move.about) == about
        now = structs.replace(now, state=move.to or now.state)
        assert now.state in JOB.leads_to(before) | {before}
        ended += now.state in JOB_ENDS
    assert now.state in JOB.states


def test_the_ends_are_named_once() -> None:
    assert JOB_ENDS is JOB.ends
    assert ALLOCATION_ENDS is ALLOCATION.ends
    for machine in MACHINES:
        for one, other in itertools.combinations(machine.moves, 2):
            assert one.event != other.event or not set(one.states) & set(other.states)
