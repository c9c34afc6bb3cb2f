"""The contract database's log: every change appended, each entry hashed with the one before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import ContractError

GENESIS = "0" * 64


def entry_hash(previous: str, entry: str) -> str:
    """Return the hash of an entry that follows a hash: SHA-256, hexadecimal."""
    return hashlib.sha256(previous.encode() + b"\n" + entry.encode()).hexdigest()


def append(t: Transaction, kind: str, **data: Any) -> str:
    """Append an entry as part of a change; return the new head."""
    last = t.find("log_head", "head")
    previous = last["hash"] if last else GENESIS
    entry = json.dumps({"at": units.utc_now(), "kind": kind, **data}, sort_keys=True)
    head = entry_hash(previous, entry)
    t.table("log").insert({"previous": previous, "hash": head, "entry": entry})
    t.put("log_head", {"id": "head", "hash": head})
    return head


def check(rows: Iterable[dict[str, Any]], previous: str = GENESIS) -> int:
    """Check a chain from a hash on; return how many entries it has.

    Raises:
        ContractError: naming the first entry that does not fit.
    """
    number = 0
    for row in rows:
        number += 1
        if row["previous"] != previous or row["hash"] != entry_hash(previous, row["entry"]):
            raise ContractError(f"the log was changed at entry {number}", code="log_broken")
        previous = row["hash"]
    return number
