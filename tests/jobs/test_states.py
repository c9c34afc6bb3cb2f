import itertools
from collections import deque

import pytest

from nunet_cli.errors import StateError
from nunet_cli.records import states


@pytest.mark.parametrize("table", [states.JOB_TRANSITIONS, states.CONTRACT_TRANSITIONS, states.ALLOCATION_TRANSITIONS])
def test_every_state_is_in_the_table_and_can_end(table: dict[str, set[str]]) -> None:
    ends = {state for state, following in table.items() if not following}
    for start in table:
        seen, todo = {start}, deque([start])
        while todo:
            for following in table[todo.popleft()]:
                assert following in table
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
        assert seen & ends, f"{start} never ends"


def test_a_job_passes_through_every_stage() -> None:
    way = ["posted", "matching", "matched", "requested", "contracted", "invoked", "running", "completed", "verified",
           "settled"]  # fmt: skip
    for current, following in itertools.pairwise(way):
        states.check_transition(states.JOB_TRANSITIONS, current, following, "job")


def test_what_has_ended_stays() -> None:
    for state in states.JOB_ENDS - {"expired", "failed"}:
        with pytest.raises(StateError, match="has ended"):
            states.check_transition(states.JOB_TRANSITIONS, state, "posted", "job")


def test_a_job_that_failed_changes_by_nothing_but_a_late_result() -> None:
    assert states.JOB_TRANSITIONS["failed"] == {"completed"}
