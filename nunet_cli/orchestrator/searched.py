"""Searches that came to nothing: a job may wait for days, and its earlier searches are not kept for ever."""

from __future__ import annotations

from nunet_cli.database.retention import has_contract
from nunet_cli.database.store import Transaction
from nunet_cli.records.bids import BID_REQUESTS, BIDS, BidRequestRecord
from nunet_cli.records.events import EVENTS

# of a job's searches that came to nothing the first and the last are kept: bids may still come for those; the others go
# once they are so many
FIRST, LAST, MANY = 2, 6, 16
# what an event of a search is
_TOLD = frozenset({
    "bid_request_sent", "job_matching", "bid_received", "bid_declined", "bid_silent", "job_waiting", "job_matched",
    "job_request_declined",
})  # fmt: skip


def forget_searches(t: Transaction, job_id: str) -> None:
    """Let searches of a job go that came to nothing, with their answers and their events, as part of a change."""
    if t[BID_REQUESTS].count("job_id", job_id) < MANY:
        return
    sent = [row for row in t[BID_REQUESTS].by("job_id", job_id) if row.direction == "sent"]
    gone = {row.id for row in sent[FIRST:-LAST] if _came_to_nothing(t, row)}
    if not gone:
        return
    numbers, is_gone = [], False
    for number, event in t[EVENTS].after(0, -1, job_id=job_id):
        if event.type == "bid_request_sent":
            is_gone = event.data.get("bid_request_id") in gone
        if is_gone and event.type in _TOLD:
            numbers.append(number)
    t[EVENTS].remove_numbers(numbers)
    t[BIDS].remove_by("bid_request_id", *gone)
    t[BID_REQUESTS].remove_by("id", *gone)


def _came_to_nothing(t: Transaction, request: BidRequestRecord) -> bool:
    answers = t[BIDS].by("bid_request_id", request.id)
    return all(row.direction == "received" and not has_contract(t, row.id) for row in answers)
