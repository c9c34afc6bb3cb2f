"""What commands print that is no answer of the API: it is made by the command itself."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from nunet_cli.api.schemas.jobs import Job
from nunet_cli.api.schemas.node import Allocation, CapabilityOverview, Peer, Status
from nunet_cli.jobs.foreign.mapping import Note
from nunet_cli.records.contracts import Check


class Version(Struct, forbid_unknown_fields=True, kw_only=True):
    """The version of the program, and of these schemas."""

    version: str
    schema: Literal[1]


class NotRunning(Struct, forbid_unknown_fields=True, kw_only=True):
    """What `node status` prints where no node runs."""

    running: Literal[False]


class VerifiedBundle(Struct, forbid_unknown_fields=True, kw_only=True):
    """What an evidence bundle shows; `valid` where every check passed."""

    contract_id: str
    job_id: str
    requester: str
    provider: str
    outcome: str
    paid: str
    checks: list[Check]
    valid: bool


class Imported(Struct, forbid_unknown_fields=True, kw_only=True):
    """Another tool's job as a job specification, as a person would write it, and what did not map."""

    spec: dict[str, Any]
    notes: list[Note]


class Look(Struct, forbid_unknown_fields=True, kw_only=True):
    """What `top` shows."""

    status: Status
    peers: list[Peer]
    capability: CapabilityOverview
    allocations: list[Allocation]
    jobs: list[Job]


class DemoJob(Struct, forbid_unknown_fields=True, kw_only=True):
    """A job of the demonstration."""

    id: str
    name: str
    state: str
    paid: str
    provider: str
    error: str
    suggestion: str = ""


class DemoProvider(Struct, forbid_unknown_fields=True, kw_only=True):
    """A provider of the demonstration."""

    name: str
    country: str
    price: str
    cores: float
    memory: str
    load: float
    earned: str


class DemoReport(Struct, forbid_unknown_fields=True, kw_only=True):
    """How the demonstration ended."""

    jobs: list[DemoJob]
    providers: list[DemoProvider]
