"""The event log: what happened, in order; rows are only added."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from nunet_cli.records.table import Table


class Event(Struct, frozen=True):
    """One event: when, about which job (empty for the node itself), of which type; `data` is JSON."""

    at: str
    job_id: str
    type: str
    data: dict[str, Any] = {}


EVENTS = Table("events", Event, key="", indexes=("job_id",))
