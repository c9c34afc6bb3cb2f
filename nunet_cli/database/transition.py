"""The one way in which a job, bid, contract, registered contract or allocation changes its state.

The record is read here, inside the transaction; what was read before decides nothing. Two messages may have arrived
together.
"""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec import Struct, structs

from nunet_cli.database.store import Transaction
from nunet_cli.errors import StateError
from nunet_cli.records.allocations import ALLOCATION, ALLOCATIONS, Allocation
from nunet_cli.records.bids import BID, BIDS, BidRecord
from nunet_cli.records.contract_records import (
    CONTRACT,
    CONTRACTS,
    REGISTERED,
    REGISTERED_CONTRACTS,
    ContractRecord,
    RegisteredContract,
)
from nunet_cli.records.jobs import JOBS, Job, machine_of
from nunet_cli.records.machine import Machine
from nunet_cli.records.table import Table

R = TypeVar("R", bound=Struct)
_TABLES: dict[type[Any], tuple[Table[Any], Machine | None]] = {
    Job: (JOBS, None), BidRecord: (BIDS, BID), ContractRecord: (CONTRACTS, CONTRACT),
    RegisteredContract: (REGISTERED_CONTRACTS, REGISTERED), Allocation: (ALLOCATIONS, ALLOCATION),
}  # fmt: skip


def transition(t: Transaction, record: R, event: str, *, by: str, about: str | None = None, **changes: Any) -> R:
    """Let an event happen to a record, as part of a change; return the record as it is then.

    Args:
        t: the change.
        record: which record; how it is now is read here.
        event: what happens to it.
        by: which party causes it.
        about: the document that it is about: the contract that a job has now, for example.
        changes: what else is new in the record.

    Raises:
        StateError: its machine does not allow it.
    """
    table, machine = _TABLES[type(record)]
    key = getattr(record, table.key)
    current = t[table].get(key)
    if current is None:
        raise StateError(f"{table.name} {key} is gone", code="gone")
    machine = machine_of(current) if machine is None else machine
    move = machine.move(current, event, by, about)
    if move.to:
        changes[machine.state] = move.to
    changed: R = structs.replace(current, **changes)
    t[table].put(changed)
    return changed
