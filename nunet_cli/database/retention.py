"""What is past its age: jobs, bids, allocations, contracts and peers that nothing needs any more are removed.

What is open is never removed, and neither are the contract database's ledger and log. Each step is a change of its own,
small enough that nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.database.records import Records
from nunet_cli.database.store import Store, Transaction
from nunet_cli.records.allocations import ALLOCATION_ENDS, ALLOCATIONS, Allocation
from nunet_cli.records.bids import BID_REQUESTS, BIDS, bid_id_of, is_unit, unit_id
from nunet_cli.records.contract_records import (
    COMPLETIONS,
    CONTRACT,
    CONTRACTS,
    LATE_RESULTS,
    REGISTERED,
    REGISTERED_CONTRACTS,
    STATEMENTS,
    VERDICTS,
)
from nunet_cli.records.disputes import DISPUTES
from nunet_cli.records.events import EVENTS
from nunet_cli.records.jobs import JOB_ENDS, JOBS, Job
from nunet_cli.records.messaging import GRANTS

R = TypeVar("R", bound=Struct)
AT_ONCE = 20
ENDED_JOBS = tuple(sorted(JOB_ENDS))
ENDED_CONTRACTS = tuple(sorted(CONTRACT.ends | {"refused", "expired"}))
ENDED_REGISTERED = tuple(sorted(REGISTERED.ends))


class Removed(Struct):
    """How many rows of each kind were removed, or would be."""

    jobs: int = 0
    bids: int = 0
    allocations: int = 0
    contracts: int = 0
    events: int = 0


class Cutoffs(Struct, frozen=True):
    """The times before which things are old, RFC 3339."""

    jobs: str
    bids: str
    contracts: str


def old_jobs(source: Store | Transaction, before: str, limit: int = AT_ONCE) -> list[Job]:
    """Return jobs that ended before a time, and with them all that is below them; children go with their group."""

    def ended(most: int) -> list[Job]:
        return source[JOBS].below("changed_at", before, most, state=ENDED_JOBS, parent="")

    return _chosen(ended, lambda job: all(_is_old(child, before) for child in family(source, job)), limit)


def _chosen(read: Callable[[int], list[R]], is_due: Callable[[R], bool], limit: int) -> list[R]:
    """Return the first rows that are due of those that `read` gives; however many are not, they keep no other."""
    most = limit
    while True:
        rows = read(most)
        due = [row for row in rows if is_due(row)]
        if len(due) >= limit or len(rows) < most:
            return due[:limit]
        most *= 2


def _is_old(job: Job, before: str) -> bool:
    return job.state in JOB_ENDS and job.changed_at < before


def family(source: Store | Transaction, job: Job) -> list[Job]:
    """Return a job and everything below it."""
    rows = [job]
    for child_id in (*job.children.values(), *job.members):
        child = source[JOBS].get(child_id)
        if child is not None:
            rows += family(source, child)
    return rows


async def remove_old(store: Store, cutoffs: Cutoffs) -> Removed:
    """Remove what is older than its cutoff; return how much that was."""
    removed = Removed()
    for step in (_some_jobs, _some_allocations, _some_contracts, _some_registered, _some_completions, _some_events):
        while await store.change(lambda t, step=step: step(t, cutoffs, removed)):  # type: ignore[misc]  # bound now
            pass
    # after the contracts, as a bid stays as long as its contract; those that stay are passed over
    last = 0
    while rows := store[BIDS].after(last, AT_ONCE, direction="sent"):
        last = rows[-1][0]
        ids = [bid.id for _, bid in rows if bid.at < cutoffs.bids]
        if ids:
            await store.change(lambda t, ids=ids: _remove_bids(t, ids, removed))  # type: ignore[misc]  # bound now
    return removed


def _some_jobs(t: Transaction, cutoffs: Cutoffs, removed: Removed) -> bool:
    jobs = [row for job in old_jobs(t, cutoffs.jobs) for row in family(t, job)]
    for job in jobs:
        t[JOBS].remove(job.id)
        _forget_job(t, job.id, removed)
    removed.jobs += len(jobs)
    return bool(jobs)


def has_contract(t: Transaction, bid_id: str) -> bool:
    """Say whether a contract rests on a bid, or on a unit of it."""
    contracts = t[CONTRACTS]
    return contracts.first("bid_id", bid_id) is not None or bool(
        contracts.with_prefix(unit_id(bid_id, 0)[:-1], field="bid_id", limit=1)
    )


def _forget_job(t: Transaction, job_id: str, removed: Removed) -> None:
    """Remove what belongs to a job beside its contracts, which have an age of their own, and the bids they rest on."""
    requests = set()
    for bid in t[BIDS].by("job_id", job_id):
        if has_contract(t, bid.id):
            requests.add(bid.bid_request_id)
        else:
            t[BIDS].remove(bid.id)
            removed.bids += 1
    for request in t[BID_REQUESTS].by("job_id", job_id):
        if request.id not in requests:
            t[BID_REQUESTS].remove(request.id)
    removed.events += t[EVENTS].remove_by("job_id", job_id)


def _some_allocations(t: Transaction, cutoffs: Cutoffs, removed: Removed) -> bool:
    def ended(most: int) -> list[Allocation]:
        return t[ALLOCATIONS].below("created_at", cutoffs.jobs, most, state=tuple(ALLOCATION_ENDS))

    rows = _chosen(ended, lambda row: row.ended_at < cutoffs.jobs, AT_ONCE)
    for row in rows:
        t[ALLOCATIONS].remove(row.id)
        if not t[JOBS].has(row.job_id):
            _forget_job(t, row.job_id, removed)
    removed.allocations += len(rows)
    return bool(rows)


def _remove_bids(t: Transaction, ids: list[str], removed: Removed) -> None:
    """Remove those of some old bids of this node's that came to nothing; those for its own jobs go with them."""
    for bid_id in ids:
        bid = t[BIDS].get(bid_id)
        if bid is None or has_contract(t, bid_id):
            continue
        t[BIDS].remove(bid_id)
        removed.bids += 1
        if not t[BIDS].by("job_id", bid.job_id, limit=1) and not t[JOBS].has(bid.job_id):
            t[BID_REQUESTS].remove_by("job_id", bid.job_id)
            removed.events += t[EVENTS].remove_by("job_id", bid.job_id)


def _some_contracts(t: Transaction, cutoffs: Cutoffs, removed: Removed) -> bool:
    rows = t[CONTRACTS].below("deadline", cutoffs.contracts, AT_ONCE, state=ENDED_CONTRACTS)
    for row in rows:
        t[CONTRACTS].remove(row.id)
        t[LATE_RESULTS].remove(row.id)
        t[STATEMENTS].remove_by("contract_id", row.id)
        if not t[JOBS].has(row.job_id) and not t[ALLOCATIONS].by("job_id", row.job_id, limit=1):
            _forget_job(t, row.job_id, removed)
        bid = t[BIDS].get(bid_id_of(row.bid_id)) if is_unit(row.bid_id) else None
        if bid is not None and bid.direction == "received" and not t[JOBS].has(bid.job_id):
            # the bid for many was kept for its units
            _forget_job(t, bid.job_id, removed)
    removed.contracts += len(rows)
    return bool(rows)


def _some_registered(t: Transaction, cutoffs: Cutoffs, removed: Removed) -> bool:
    """Remove what a contract database and an oracle keep of contracts that were closed; ledger and log stay whole."""
    rows = t[REGISTERED_CONTRACTS].below("deadline", cutoffs.contracts, AT_ONCE, state=ENDED_REGISTERED)
    for row in rows:
        t[REGISTERED_CONTRACTS].remove(row.id)
        t[DISPUTES].remove(row.id)
        t[VERDICTS].remove_by("job_id", row.job_id)
        if not t[JOBS].has(row.job_id):
            removed.events += t[EVENTS].remove_by("job_id", row.job_id)
    removed.contracts += len(rows)
    return bool(rows)


def _some_completions(t: Transaction, _cutoffs: Cutoffs, _removed: Removed) -> bool:
    """Remove what providers told this oracle of contracts that nobody can bring to it any more."""
    gone = t[COMPLETIONS].remove_below("until", quantities.utc_now(), limit=AT_ONCE)
    return bool(gone)


def _some_events(t: Transaction, cutoffs: Cutoffs, removed: Removed) -> bool:
    """Remove old events of the node itself."""
    numbers = [number for number, event in t[EVENTS].after(0, AT_ONCE, job_id="") if event.at < cutoffs.jobs]
    t[EVENTS].remove_numbers(numbers)
    removed.events += len(numbers)
    return bool(numbers)


def named_in(texts: Iterable[bytes], pattern: Any) -> set[str]:
    """Return what a pattern finds in the JSON of rows."""
    return {found.decode() for text in texts for found in pattern.findall(text)}


def exported(store: Store, job: Job) -> bytes:
    """Return a job as one line of JSON: itself, its events, its bids and its contracts with their documents."""
    events = [{"seq": seq, **msgspec.to_builtins(event)} for seq, event in store.log(job.id)]
    rows: dict[str, Any] = {"job": job, "events": events}
    tables: tuple[tuple[str, Records[Any]], ...] = (("bids", store[BIDS]), ("contracts", store[CONTRACTS]))
    rows |= {name: records.by("job_id", job.id) for name, records in tables}
    return msgspec.json.encode(rows) + b"\n"


def ungranted(t: Transaction, cids: Iterable[str]) -> None:
    """Remove the permissions to fetch blobs that are gone, as part of a change."""
    for cid in cids:
        t[GRANTS].remove_by("cid", cid)
