"""A job as its requester's node keeps it, and the machines of a job and of a group of jobs."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from nunet_cli.records.machine import CLOCK, DATABASE, ORACLE, PROVIDER, REQUESTER, Machine, Move
from nunet_cli.records.results import Result, Usage
from nunet_cli.records.table import Table

# why a job failed whose provider fell silent; such a provider may still come back with the result
SILENT = "provider_silent"


class ErrorRecord(Struct, frozen=True):
    """An error as it is kept with a job: what the command says that follows it, with its exit code."""

    code: str
    message: str
    hint: str = ""
    details: dict[str, Any] = {}
    exit_code: int = 1


class Waiting(Struct, frozen=True, rename={"for_": "for"}):
    """What a job waits for, since when, and when it is tried again; times."""

    for_: str
    next_try: str
    since: str


class Refusal(Struct, frozen=True):
    """A bidder that did not take a job after all, and why; `busy` where it has no room just now."""

    bid: str
    peer: str
    reason: str
    busy: bool = False


class Attempt(Struct, frozen=True):
    """How a job ran before it was run again: what came of it stays with it, with the contract that it had then."""

    number: int
    state: str
    ended_at: str
    bid_id: str = ""
    contract_id: str = ""
    allocation_id: str = ""
    paid: str | None = None
    result: Result | None = None
    error: ErrorRecord | None = None
    called_off: str = ""


class LinkRule(Struct, frozen=True, rename={"from_": "from"}):
    """A constraint (CEL) of a link to a job: its bids are held against what the provider of the linked job has."""

    constraint: str
    bid_id: str
    from_: str


# in the rows the children are `units`, as they were from the beginning: homes open as they are
class Job(Struct, frozen=True, rename={"children": "units"}):
    """A job, a group, the replicas of a job, or a member of a pod (`kind`).

    `spec` is the whole specification as JSON, `limit` the most it may cost in micro-NTX. `children` are those of a
    group by name, `members` those of a pod. `push` are the DIDs of the only providers that are asked. `shortlist` are
    bids, the best first, and `place` is the one whose turn it is. `excluded` are the DIDs of providers that may not
    have it any more. `late` says that its result came after it had been given up. `attempt` is how often it has run, by
    `retry` of the job or of a person, and `past` has how it ran before; `attempts` counts those of the job's own
    `retry` since a person ran it last, at `run_at`. `called_off` says why its group did not let it run to its end;
    `calling_off` that a group's children are just being called off. `item` has the values that an item of a batch was
    made with.
    """

    id: str
    name: str
    requester: str
    spec: str
    spec_cid: str
    created_at: str
    changed_at: str
    state: str = "posted"
    kind: str = "job"
    parent: str = ""
    children: dict[str, str] = {}
    members: tuple[str, ...] = ()
    push: tuple[str, ...] = ()
    topic: str = ""
    orchestrate: bool = False
    limit: int = 0
    bid_request_id: str = ""
    shortlist: tuple[str, ...] = ()
    place: int = 0
    tries: int = 0
    attempts: int = 0
    lapses: int = 0
    excluded: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    given_up: bool = False
    waiting: Waiting | None = None
    next_run: str = ""
    link_rules: tuple[LinkRule, ...] = ()
    released: bool = False
    bid_id: str = ""
    contract_id: str = ""
    allocation_id: str = ""
    heard_at: str = ""
    usage: Usage | None = None
    result: Result | None = None
    late: bool = False
    collected: bool = False
    paid: str | None = None
    error: ErrorRecord | None = None
    message: str | None = None
    note: str | None = None
    attempt: int = 1
    run_at: str = ""
    past: tuple[Attempt, ...] = ()
    called_off: str = ""
    calling_off: bool = False
    item: dict[str, str] = {}
    remark: str = ""
    remarks: int = 0


def _upgrade(row: dict[str, Any]) -> dict[str, Any]:
    # an earlier version left out or set to null what did not apply, and asked one provider or all
    kept = {name: value for name, value in row.items() if value is not None}
    if isinstance(kept.get("push"), str):
        kept["push"] = [kept["push"]] if kept["push"] else []
    return kept


JOBS = Table("jobs", Job, indexes=("state", "parent", "contract_id", "created_at", "changed_at"), upgrade=_upgrade)

_BEFORE = ("posted", "matching", "matched", "requested")
_UNDER_CONTRACT = ("contracted", "invoked", "running")
_ENDED_BY_HAND = (*_BEFORE, *_UNDER_CONTRACT, "completed", "verified")


def _was_silent(job: Job) -> bool:
    return job.error is not None and job.error.code == SILENT


JOB = Machine(
    "job",
    start=("posted",),
    ends=frozenset({"settled", "failed", "cancelled", "expired", "resolved"}),
    moves=(
        Move("search", ("posted", "matching", "matched", "expired"), "matching", (REQUESTER,)),
        Move("expire", ("posted", "matching", "matched"), "expired", (CLOCK,)),
        Move("match", ("matching",), "matched", (REQUESTER,), about="bid_request_id"),
        # the next on the shortlist: the present one declined, or refused the contract or its invocation
        Move("decline", ("requested", "contracted"), "matched", (PROVIDER,), about="bid_id"),
        Move("lock", ("matched",), "requested", (PROVIDER,), about="bid_request_id"),
        # a unit of a bid for many, which is locked with its contract
        Move("take", ("posted", "matching", "matched", "expired"), "requested", (REQUESTER,)),
        Move("propose", ("requested",), "", (REQUESTER,), about="bid_id"),
        Move("prove", ("requested",), "contracted", (DATABASE,), about="contract_id"),
        Move("invoke", ("contracted",), "invoked", (PROVIDER,), about="contract_id"),
        Move("start", ("contracted", "invoked"), "running", (PROVIDER,), about="contract_id"),
        Move("complete", (*_UNDER_CONTRACT[1:], "contracted"), "completed", (PROVIDER,), about="contract_id"),
        # a provider that was given up, and is paid all the same, has delivered: its result may come late
        Move(
            "complete", ("failed",), "completed", (PROVIDER,), about="contract_id", when=_was_silent,
            why="its provider was silent",
        ),
        Move("verify", ("completed",), "verified", (ORACLE,), about="contract_id"),
        Move("settle", ("verified",), "settled", (DATABASE,), about="contract_id"),
        Move("dispute", ("completed", "verified"), "disputed", (REQUESTER, PROVIDER, DATABASE), about="contract_id"),
        Move("resolve", ("disputed",), "resolved", (DATABASE,), about="contract_id"),
        # without a contract, or giving up the present one: another search, which excludes who failed
        Move("search_again", ("matched", "requested", *_UNDER_CONTRACT, "completed"), "matching", (REQUESTER,)),
        Move("fail", _ENDED_BY_HAND, "failed", (REQUESTER, DATABASE)),
        # a contract database may refund what was verified all the same: the job ends by what was done
        Move("cancel", (*_ENDED_BY_HAND, "expired"), "cancelled", (REQUESTER, DATABASE)),
        # as a new attempt, with another contract; the one that it had is closed by itself
        Move("retry", ("failed", "cancelled", "expired", "resolved"), "posted", (REQUESTER,)),
    ),
)  # fmt: skip

# a group, the replicas of a job, and a member of a pod have no contract of their own
GROUP = Machine(
    "group",
    start=("posted",),
    ends=frozenset({"settled", "failed", "cancelled", "resolved"}),
    moves=(
        Move("begin", ("posted",), "running", (REQUESTER,)),
        Move("settle", ("posted", "running"), "settled", (REQUESTER,)),
        Move("dispute", ("running",), "disputed", (REQUESTER,)),
        Move("resolve", ("disputed",), "resolved", (REQUESTER,)),
        Move("fail", ("posted", "running"), "failed", (REQUESTER,)),
        Move("cancel", ("posted", "running"), "cancelled", (REQUESTER,)),
        # what failed below it runs again, and it goes on
        Move("retry", ("failed", "cancelled", "resolved"), "posted", (REQUESTER,)),
    ),
)

JOB_ENDS = JOB.ends


def machine_of(job: Job) -> Machine:
    """Return the machine that a job follows."""
    return JOB if job.kind == "job" else GROUP


def is_lost(child: Job) -> bool:
    """Say whether a child of a group failed, or did not run because others had; not whether a person called it off."""
    return child.state in ("failed", "expired") or (child.state == "cancelled" and bool(child.called_off))
