"""Allocations: the execution spaces on the provider's machine, what they and locks hold of it, and their machine."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from nunet_cli.records.capability import Resources
from nunet_cli.records.machine import PROVIDER, REQUESTER, Machine, Move
from nunet_cli.records.results import Usage
from nunet_cli.records.table import Table


class Allocation(Struct, frozen=True):
    """The execution space of one job on the provider's machine (seeds 1 and 5: `Allocation`).

    `handles` find its programs, by the names that they have in a pod; a job's only program has an empty name.
    """

    id: str
    job_id: str
    contract_id: str
    requester: str
    executor: str
    state: str = "created"
    handles: dict[str, str] = {}
    error: str = ""
    usage: Usage = Usage()
    created_at: str = ""
    started_at: str = ""
    ended_at: str = ""


def _with_handles(row: dict[str, Any]) -> dict[str, Any]:
    # before there were pods, an allocation had one program, and its handle no name
    handle = row.get("handle")
    return {"handles": {"": handle}, **row} if handle else row


ALLOCATIONS = Table(
    "allocations", Allocation, indexes=("state", "contract_id", "job_id", "created_at"), upgrade=_with_handles
)

_OPEN = ("created", "starting", "running")
ALLOCATION = Machine(
    "allocation",
    start=("created",),
    ends=frozenset({"completed", "failed", "cancelled"}),
    moves=(
        Move("begin", ("created",), "starting", (PROVIDER,)),
        Move("start", ("starting",), "running", (PROVIDER,)),
        # a second program of a pod, or one that was started again
        Move("start", ("running",), "", (PROVIDER,)),
        Move("complete", ("running",), "completed", (PROVIDER,)),
        Move("fail", _OPEN, "failed", (PROVIDER,)),
        Move("cancel", _OPEN, "cancelled", (PROVIDER, REQUESTER)),
    ),
)
ALLOCATION_ENDS = ALLOCATION.ends


class Holding(Struct, frozen=True):
    """What a lock (named by its bid) or an allocation holds of the machine, or waits for.

    A lock lapses at `expires_at`; `ends_at` is when the resources are free again at the latest. A `place` holds
    nothing: a unit of a bid (`expires_at` says until when), or its allocation, has what is given back next.
    """

    id: str
    kind: Literal["lock", "allocation", "place"]
    resources: Resources
    job_id: str = ""
    expires_at: str = ""
    ends_at: str = ""
    requester: str = ""
    duration: int = 0


def _upgrade(row: dict[str, Any]) -> dict[str, Any] | None:
    return row if row.get("kind") in ("lock", "allocation", "place") else None


HOLDINGS = Table("holdings", Holding, indexes=("kind",), first_name="capabilities", upgrade=_upgrade)
