"""The contract database's log: every change appended, each entry hashed with the one before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import trio

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError
from nunet_cli.records.books import LOG, LOG_HEAD, LogEntry, LogHead

GENESIS = "0" * 64


def entry_hash(previous: str, entry: str) -> str:
    """Return the hash of an entry that follows a hash: SHA-256, hexadecimal."""
    return hashlib.sha256(previous.encode() + b"\n" + entry.encode()).hexdigest()


def append(t: Transaction, kind: str, **data: Any) -> str:
    """Append an entry as part of a change; return the new head."""
    last = t[LOG_HEAD].get("head")
    previous = last.hash if last is not None else GENESIS
    entry = json.dumps({"at": quantities.utc_now(), "kind": kind, **data}, sort_keys=True)
    head = entry_hash(previous, entry)
    t[LOG].append(LogEntry(previous, head, entry))
    t[LOG_HEAD].put(LogHead("head", head))
    return head


def check(rows: Iterable[LogEntry], previous: str = GENESIS, number: int = 0) -> int:
    """Check a chain, or a piece of one; return the number of its last entry.

    Args:
        rows: the entries.
        previous: the hash before them.
        number: how many entries there are before them.

    Raises:
        ContractError: naming the first entry that does not fit.
    """
    for row in rows:
        number += 1
        if row.previous != previous or row.hash != entry_hash(previous, row.entry):
            raise ContractError(f"the log was changed at entry {number}", code="log_broken")
        previous = row.hash
    return number


async def check_whole(store: Store) -> int:
    """Check the whole log of a store, leaving others their turn; return how many entries it has.

    Raises:
        ContractError: naming the first entry that does not fit.
    """
    seq, number, previous = 0, 0, GENESIS
    while page := store[LOG].after(seq):
        number = check((entry for _, entry in page), previous, number)
        seq, previous = page[-1][0], page[-1][1].hash
        await trio.lowlevel.checkpoint()
    return number
