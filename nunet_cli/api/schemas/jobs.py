"""Jobs: their state, their results, what happened to them and why."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct

from nunet_cli.api.schemas.base import Answer, Error, Optional
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.records.bids import Comparison
from nunet_cli.records.documents import Document
from nunet_cli.records.results import Result as SignedResult
from nunet_cli.records.results import Usage


class Waiting(Struct, forbid_unknown_fields=True, kw_only=True, rename={"for_": "for"}):
    """What a job waits for, and when it is tried again."""

    for_: str
    next_try: str
    since: str


class Job(Answer, kw_only=True):
    """A job. `next` is the stage that comes now, `run` for a job without stages of its own, or null at its end.

    `attempts` counts the providers that it has got beside the first, by itself, and `attempt` is how often it was run.
    `called_off` says why its group did not let it run to its end, `item` has the values that an item of a batch was
    made with. `path`, which lists have, is its name behind those of the groups that it belongs to.
    """

    id: str
    name: str
    state: str
    kind: Literal["job", "group", "replicas", "member"]
    requester: str
    parent: str | None
    created_at: str
    changed_at: str
    push: tuple[str, ...]
    limit: str
    paid: str | None
    bid_id: str | None
    contract_id: str | None
    allocation_id: str | None
    attempts: int
    usage: Usage | None
    result: SignedResult | None
    message: str | None
    note: str | None
    error: Error | None
    spec_cid: str
    waiting: Waiting | None
    next_run: str | None
    next: str | None
    attempt: int
    called_off: str | None
    item: dict[str, str] | None
    remark: str | None
    path: str | Optional = UNSET


class JobAgain(Job, kw_only=True):
    """A job that runs again, and how many jobs do so with it: of a group, those that failed or did not run."""

    again: int


class Attempt(Struct, forbid_unknown_fields=True, kw_only=True):
    """How a job ran before it was run again: its end, who had it, what was paid, and what came of it."""

    number: int
    state: str
    ended_at: str
    bid_id: str | None
    contract_id: str | None
    allocation_id: str | None
    provider: str | None
    paid: str | None
    result: SignedResult | None
    error: Error | None
    called_off: str | None


class Failure(Struct, forbid_unknown_fields=True, kw_only=True):
    """A child of a group that failed, why, and the last lines that it wrote."""

    name: str
    id: str
    message: str
    lines: list[str]


class JobDetail(Job, kw_only=True):
    """A job with its children, its earlier attempts, its specification, and after `job run` its files.

    Of a group, `counts` says how many of its children are in which state, and `failures` are the first that failed.
    """

    children: list[Job]
    counts: dict[str, int] | None
    failures: list[Failure]
    past: list[Attempt]
    spec: JobSpec
    outputs: Outputs | Optional = UNSET


class Outputs(Struct, forbid_unknown_fields=True, kw_only=True):
    """Where the files of a job were written."""

    schema: Literal[1] | Optional = UNSET
    folder: str | None
    files: list[str]


class JobResult(SignedResult, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A job's result, with the provider's signature, and for `job result` its files."""

    schema: Literal[1]
    document: Document | None
    folder: str | Optional = UNSET
    files: list[str] | Optional = UNSET


class Event(Answer, kw_only=True):
    """Something that happened to a job; `child` names the job below the one that was asked for."""

    seq: int
    at: str
    job_id: str
    type: str
    data: dict[str, Any]
    child: str


class Logs(Answer, kw_only=True):
    """A piece of a job's output, base64, and where the next one begins."""

    data: str
    next_offset: int
    ended: bool


class MissedAnswer(Struct, forbid_unknown_fields=True, kw_only=True):
    """What one provider answered, and what it missed; `bid` is the id of its bid."""

    peer: str
    bid: str | None
    verdict: str
    reasons: list[str]
    missed: list[Comparison]
    why: str | None


class ConstraintRow(Struct, forbid_unknown_fields=True, kw_only=True):
    """One cell of provider × constraint: what was asked, what was there, and by how much it missed."""

    peer: str
    constraint: str
    required: str
    available: str
    margin: str
    result: Literal["equal", "better", "worse", "error"]
    reason: str


class Refusal(Struct, forbid_unknown_fields=True, kw_only=True):
    """A provider that declined after its bid."""

    bid: str
    peer: str
    reason: str


class SuggestedChange(Struct, forbid_unknown_fields=True, kw_only=True):
    """A field of the job, what it says, and what it would have to say; empty to drop it."""

    path: str
    now: str
    then: str
    distance: float


class SmallestChange(Struct, forbid_unknown_fields=True, kw_only=True):
    """The smallest change to the job that would have got a bid."""

    peer: str
    changes: list[SuggestedChange]
    text: str


class ChildrenPart(Struct, forbid_unknown_fields=True, kw_only=True):
    """The children of a group that are in one state for one reason: how many, and the names of the first ones."""

    state: str
    reason: str
    count: int
    examples: list[str]


class ChildrenSummary(Struct, forbid_unknown_fields=True, kw_only=True):
    """How the children of a group stand: how many are in which state, and why."""

    counts: dict[str, int]
    parts: list[ChildrenPart]


class Explanation(Answer, kw_only=True):
    """Why a job was taken or not; of a group, how its children stand."""

    job_id: str
    state: str
    error: Error | None
    answers: list[MissedAnswer]
    table: list[ConstraintRow]
    refusals: list[Refusal]
    waiting: Waiting | None
    suggestion: SmallestChange | None
    children: ChildrenSummary | None
