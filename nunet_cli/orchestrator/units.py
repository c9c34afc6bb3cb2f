"""A bid for many units, such as the items of a batch: each unit is a bid of its own, for one of them.

A unit has no row: it is named by the bid and a number, and has the bid's price and time, and the item's job.
"""

from __future__ import annotations

from msgspec import structs

from nunet_cli.database.store import Store, Transaction
from nunet_cli.records.bids import BIDS, BidRecord, bid_id_of


def bid_of(source: Store | Transaction, bid_id: str) -> BidRecord | None:
    """Return the bid that an id names, or that one of its units does; None where there is none."""
    return source[BIDS].get(bid_id_of(bid_id))


def as_unit(bid: BidRecord, name: str, job_id: str, spec_cid: str) -> BidRecord:
    """Return a bid as it is for one job; itself, where the name is its own.

    Args:
        bid: the bid.
        name: its id, or that of one of its units.
        job_id: the job that takes the unit.
        spec_cid: the content id of its specification.
    """
    if name == bid.id:
        return bid
    unit = structs.replace(bid.offer, id=name, job_id=job_id, spec_cid=spec_cid, units=1)
    return structs.replace(bid, id=name, job_id=job_id, bid=unit)
