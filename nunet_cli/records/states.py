"""The states of a job, a contract and an allocation. Everything that decides on a transition lives in this file."""

from __future__ import annotations

from nunet_cli.errors import StateError

JOB_ENDS = frozenset({"settled", "failed", "cancelled", "expired", "resolved"})

_OPEN_ENDS = {"failed", "cancelled"}
JOB_TRANSITIONS: dict[str, set[str]] = {
    "posted": {"matching", *_OPEN_ENDS},
    # a search may be repeated, and a failure before the invocation tries the next bid
    "matching": {"matching", "matched", "expired", *_OPEN_ENDS},
    "matched": {"matching", "requested", "expired", *_OPEN_ENDS},
    "requested": {"matching", "matched", "requested", "contracted", *_OPEN_ENDS},
    "contracted": {"matched", "matching", "invoked", "running", *_OPEN_ENDS},
    "invoked": {"running", "completed", "matching", *_OPEN_ENDS},
    "running": {"completed", "matching", *_OPEN_ENDS},
    # a completed job whose result says that it failed is settled by a refund, or by the time used, and then failed
    "completed": {"verified", "disputed", "matching", *_OPEN_ENDS},
    # a contract database may refund what was verified all the same: the job ends by what was done
    "verified": {"settled", "disputed", *_OPEN_ENDS},
    "disputed": {"resolved"},
    # what ended without a contract may be tried again
    "expired": {"matching", "cancelled"},
    "settled": set(),
    # a provider that was given up, and is paid all the same, has delivered: its result may come late
    "failed": {"completed"},
    "cancelled": set(),
    "resolved": set(),
}

# a group, and a job inside a pod, has no contract of its own
GROUP_TRANSITIONS: dict[str, set[str]] = {
    "posted": {"running", "settled", *_OPEN_ENDS},
    "running": {"running", "settled", "disputed", *_OPEN_ENDS},
    "disputed": {"resolved"},
    "settled": set(),
    "failed": set(),
    "cancelled": set(),
    "resolved": set(),
}

CONTRACT_TRANSITIONS: dict[str, set[str]] = {
    "proposed": {"agreed", "refused", "expired"},
    # a party that never saw the proof learns of it by the receipt
    "agreed": {"proved", "refused", "expired", "settled", "refunded", "disputed"},
    "proved": {"settled", "refunded", "disputed"},
    "disputed": {"settled", "refunded"},
    # withdrawn or given up by one side after it had signed: how it was closed all the same is told by the receipt
    "refused": {"settled", "refunded", "disputed"},
    "expired": {"settled", "refunded", "disputed"},
    "settled": set(),
    "refunded": set(),
}

ALLOCATION_TRANSITIONS: dict[str, set[str]] = {
    "created": {"starting", "failed", "cancelled"},
    "starting": {"running", "failed", "cancelled"},
    "running": {"completed", "failed", "cancelled"},
    "completed": set(),
    "failed": set(),
    "cancelled": set(),
}
ALLOCATION_ENDS = frozenset({"completed", "failed", "cancelled"})


def check_transition(table: dict[str, set[str]], current: str, wanted: str, what: str) -> None:
    """Refuse a transition that the table does not have.

    Raises:
        StateError: naming the state and what it may become.
    """
    if wanted not in table[current]:
        allowed = ", ".join(sorted(table[current])) or "nothing: it has ended"
        raise StateError(f"{what} is {current} and cannot become {wanted} (it may become {allowed})")
