"""The node's indices of activity (second seed), and how they follow from the event log alone.

`jobIndex`, `bidRequestsSentIndex`, `bidRequestsReceivedIndex`, `bidsSentIndex`, `bidsReceivedIndex`: each maps an id to
what it belongs to; of the bid requests that were received, those that were bid for. They are read from the tables; that
the event log gives the same proves both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nunet_cli.database.store import Store
from nunet_cli.records.bids import BID_REQUESTS, BIDS
from nunet_cli.records.events import EVENTS
from nunet_cli.records.jobs import GROUP, JOB, JOBS

NAMES = ("jobs", "bid_requests_sent", "bid_requests_received", "bids_sent", "bids_received")
Indices = dict[str, dict[str, str]]


def from_tables(store: Store) -> Indices:
    """Return the indices as the tables have them: jobs with their states, the others with their jobs."""
    found: Indices = {name: {} for name in NAMES}
    for job in store[JOBS].all():
        found["jobs"][job.id] = job.state
    for request in store[BID_REQUESTS].all():
        found[f"bid_requests_{request.direction}"][request.id] = request.job_id
    for bid in store[BIDS].all():
        if bid.kind == "bid":
            found[f"bids_{bid.direction}"][bid.id] = bid.job_id
    return found


def from_events(store: Store) -> Indices:
    """Return the indices as they follow from the event log."""
    found: Indices = {name: {} for name in NAMES}
    for event in store[EVENTS].all():
        job_id, kind, data = event.job_id, event.type, event.data
        if kind == "job_posted":
            found["jobs"][job_id] = "posted"
        elif kind.startswith("job_") and job_id in found["jobs"] and kind.removeprefix("job_") in STATES:
            found["jobs"][job_id] = kind.removeprefix("job_")
        if kind == "bid_request_sent":
            found["bid_requests_sent"][data["bid_request_id"]] = job_id
        # an earlier version also kept the requests that it declined
        elif kind in ("bid_sent", "decline_sent") and "bid_request_id" in data:
            found["bid_requests_received"][data["bid_request_id"]] = job_id
        if kind == "bid_sent":
            found["bids_sent"][data["bid_id"]] = job_id
        elif kind == "bid_received":
            found["bids_received"][data["bid_id"]] = job_id
    return found


STATES = frozenset({*JOB.states, *GROUP.states})


def differences(store: Store) -> list[dict[str, Any]]:
    """Return where the tables and the event log differ; empty where they are equal."""
    tables, events = from_tables(store), from_events(store)
    found = []
    for name in NAMES:
        for key in sorted(tables[name].keys() | events[name].keys()):
            there, then = tables[name].get(key), events[name].get(key)
            if there != then:
                found.append({"index": name, "id": key, "tables": there, "events": then})
    return found


def audit(home: Path) -> dict[str, Any]:
    """Return the indices of a home's store, their sizes, and where the event log gives something else; takes long."""
    with Store(home, read_only=True) as store:
        found = from_tables(store)
        sizes = {name: len(entries) for name, entries in found.items()}
        return {"indices": found, "sizes": sizes, "differences": differences(store)}
