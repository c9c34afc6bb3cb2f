"""What the nodes of a market have on disk, and what must hold of it: at any moment, and once all is over.

Every look at a store goes through `rows`, `find` and `events`; nothing else here knows how it is kept.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from nunet_cli import quantities
from nunet_cli.config import Config
from nunet_cli.database.store import Store
from nunet_cli.errors import NunetError
from nunet_cli.node.capability import CapabilityAccounting
from nunet_cli.node.monitor import Monitor
from nunet_cli.records.allocations import ALLOCATION_ENDS
from nunet_cli.records.books import LOG
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import FULFILLED, Receipt
from nunet_cli.records.documents import Document
from nunet_cli.records.tables import TABLES
from nunet_cli.tokenomics import chain, ledger
from nunet_cli.tokenomics.evidence import read_bundle, report
from tests.endurance.market import DATABASE, PROVIDERS, REQUESTER, Market

CLOSED = ("settled", "refunded")
# a contract that nobody recorded binds nobody, whatever its parties call it
UNRECORDED = ("proposed", "agreed", "refused", "expired")
BY_NAME = {table.name: table for table in TABLES}
LOCK_LEASE = timedelta(seconds=Config().lock_lease)


def looking(home: Path) -> Store:
    """Open a store to read it, whether its node runs or not."""
    return Store(home, read_only=True)


def rows(home: Path, table: str) -> list[dict[str, Any]]:
    """Return all rows of a table of a home's, as of one moment."""
    with looking(home) as store:
        return [dict(row) for row in store.documents(BY_NAME[table]).all()]


def find(home: Path, table: str, key: str) -> dict[str, Any] | None:
    """Return one row of a table by its id."""
    with looking(home) as store:
        found = store[BY_NAME[table]].get(key)
        return None if found is None else msgspec.to_builtins(found)


def events(store: Store, job_id: str) -> list[str]:
    """Return the types of the events of a job in an open store, in order."""
    return [event.type for _, event in store.log(job_id)]


# -- at any moment -----------------------------------------------------------------------------------------------------


def at_any_moment(market: Market, name: str) -> list[str]:
    """Return what is wrong in the store of one node: also while it runs, and right after it was killed."""
    home = market.home(name)
    wrong = []
    allocated = Counter(row["contract_id"] for row in rows(home, "allocations"))
    wrong += [f"contract {key} has {count} allocations" for key, count in allocated.items() if count > 1]
    if name in PROVIDERS:
        with looking(home) as store:
            try:
                CapabilityAccounting(store, Monitor(home)).available(store)
            except NunetError as error:
                wrong.append(f"over-committed: {error}")
            for key in allocated:
                contract = store[CONTRACTS].get(key)
                if contract is None or contract.proof is None:
                    wrong.append(f"an allocation without a proved contract: {key}")
    if name == DATABASE:
        wrong += _books(home)
    return [f"{name}: {text}" for text in wrong]


def _books(home: Path) -> list[str]:
    """Return what is wrong with the ledger, the escrow and the log of a contract database."""
    wrong = []
    accounts = {row["id"]: int(row["balance"]) for row in rows(home, "accounts")}
    if total := sum(accounts.values()):
        wrong.append(f"the accounts sum to {total} micro-NTX")
    negative = [key for key, balance in accounts.items() if balance < 0 and key != ledger.ISSUANCE]
    wrong += [f"the account {key} has {accounts[key]} micro-NTX" for key in negative]
    try:
        with looking(home) as store:
            chain.check(store[LOG].all())
    except NunetError as error:
        wrong.append(str(error))
    return wrong


# -- once all is over --------------------------------------------------------------------------------------------------


def in_the_end(market: Market) -> list[str]:
    """Return in what the books of the nodes differ, and what is held still; it takes a moment until all were told."""
    database = market.home(DATABASE)
    recorded = {row["id"]: row for row in rows(database, "registered_contracts")}
    accounts = {row["id"]: int(row["balance"]) for row in rows(database, "accounts")}
    wrong = _movements(rows(database, "ledger"), accounts)
    for key, row in recorded.items():
        if row["state"] not in CLOSED or not row["receipt"]:
            wrong.append(f"contract {key} is {row['state']} at the contract database")
        if held := accounts.get(ledger.escrow(key), 0):
            wrong.append(f"{held} micro-NTX are in the escrow of contract {key}, which is {row['state']}")
    closed = {key: row for key, row in recorded.items() if row["receipt"]}
    fulfilled = Counter(row["job_id"] for row in closed.values() if _receipt(row).reason == FULFILLED)
    wrong += [f"{count} contracts of job {key} were fulfilled" for key, count in fulfilled.items() if count > 1]
    wrong += _party(market, REQUESTER, "requester", recorded, closed)
    for name in PROVIDERS:
        wrong += _party(market, name, "provider", recorded, closed) + _held(market.home(name), name)
    return wrong


def _receipt(row: dict[str, Any]) -> Receipt:
    return msgspec.convert(row["receipt"], Document).read(Receipt)


def paid_beside(market: Market) -> list[str]:
    """Return what was paid for contracts that were not fulfilled: time that was sold before they were called off, in NTX."""
    closed = [_receipt(row) for row in rows(market.home(DATABASE), "registered_contracts") if row["receipt"]]
    return [found.paid for found in closed if found.reason != FULFILLED and found.paid != "0"]


def _movements(entries: list[dict[str, Any]], accounts: dict[str, int]) -> list[str]:
    """Return the accounts whose balance is not the sum of their movements."""
    sums: Counter[str] = Counter()
    for entry in entries:
        sums[entry["payer"]] -= int(entry["amount"])
        sums[entry["payee"]] += int(entry["amount"])
    return [
        f"the movements of {key} sum to {sums[key]} micro-NTX, it has {accounts.get(key, 0)}"
        for key in accounts.keys() | sums.keys() if sums[key] != accounts.get(key, 0)
    ]  # fmt: skip


def _party(
    market: Market, name: str, role: str, recorded: dict[str, dict[str, Any]], closed: dict[str, dict[str, Any]]
) -> list[str]:
    """Return in what a party's contracts and statements differ from what the contract database has."""
    home, wrong = market.home(name), []
    mine = {row["id"]: row for row in rows(home, "contracts") if row["role"] == role}
    noted: dict[str, list[str]] = defaultdict(list)
    for row in rows(home, "statements"):
        noted[row["contract_id"]].append(row["amount"])
    for key, row in closed.items():
        if row[role] != market.dids[name]:
            continue
        known = mine.get(key)
        if known is None:
            wrong.append(f"{name} does not know contract {key}, which is {row['state']}")
        elif (known["state"], known["receipt"]) != (row["state"], row["receipt"]):
            wrong.append(f"contract {key} is {row['state']}, and {known['state']} at {name}")
        else:
            paid = _receipt(row).paid
            expected = paid if role == "provider" or paid == "0" else f"-{paid}"
            if noted[key] != [expected]:
                wrong.append(f"{name} has noted {noted[key]} NTX for contract {key}, which moved {expected}")
    wrong += [
        f"contract {key} is {row['state']} at {name}, and nobody recorded it"
        for key, row in mine.items() if key not in recorded and row["state"] not in UNRECORDED
    ]  # fmt: skip
    return wrong


def _held(home: Path, name: str) -> list[str]:
    """Return what a provider holds still; what became no contract lapses by itself, when its lease is over."""
    lease = quantities.format_time(quantities.now() + LOCK_LEASE)
    wrong = [
        f"{name} holds the {row['kind']} {row['id']} for job {row['job_id']}" for row in rows(home, "holdings")
        if row.get("kind") and (not row["expires_at"] or row["expires_at"] > lease)
    ]  # fmt: skip
    running = [row for row in rows(home, "allocations") if row["state"] not in ALLOCATION_ENDS]
    return wrong + [f"{name}: the allocation {row['id']} is {row['state']}" for row in running]


def lapsing(market: Market) -> int:
    """Return how many locks of the providers hold, and will lapse."""
    now = quantities.utc_now()
    held = [row for name in PROVIDERS for row in rows(market.home(name), "holdings") if row.get("kind") == "lock"]
    return sum(row["expires_at"] > now for row in held)


def evidence(market: Market, job_id: str) -> list[str]:
    """Return what `nunet contract verify` finds wrong with the documents that both parties have of a job's contracts."""
    wrong = []
    for row in rows(market.home(REQUESTER), "contracts"):
        if row["job_id"] != job_id or row["state"] not in CLOSED:
            continue
        for name in (REQUESTER, market.name_of(row["provider"])):
            known = find(market.home(name), "contracts", row["id"])
            if known is None or not known["spec"]:
                # it was called off before the provider was given the job: there is no bundle without one
                continue
            found = report(read_bundle(market.api(name).get_bytes(f"/contracts/{row['id']}/evidence"), name))
            names = ", ".join(check.name for check in found.checks if not check.passed)
            if names or found.outcome != row["state"]:
                wrong.append(f"the evidence of contract {row['id']} at {name} is {found.outcome}: {names or 'good'}")
    return wrong
