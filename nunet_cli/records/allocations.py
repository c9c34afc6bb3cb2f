"""Allocations: the execution spaces on the provider's machine."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Allocation(Struct):
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
    usage: dict[str, Any] = {}
    created_at: str = ""
    started_at: str = ""
    ended_at: str = ""
