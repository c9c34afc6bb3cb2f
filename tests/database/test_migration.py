"""A store that version 0.1 wrote, opened by this version: every row is there, or the old store is as it was."""

import hashlib
import json
import logging
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nunet_cli.database.file import VERSION
from nunet_cli.database.store import Store
from nunet_cli.records.bids import BIDS
from nunet_cli.records.books import ACCOUNTS, LEDGER
from nunet_cli.records.capability import Capability
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.events import EVENTS
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.jobs import JOBS
from nunet_cli.records.offers import PREFERENCES, REGISTERED_CAPABILITY
from nunet_cli.records.tables import TABLES
from tests import old_homes

# what a store of each node must have had for these tests to say anything
LEAST = {
    "requester": {"jobs": 14, "bid_requests": 10, "bids": 10, "contracts": 8, "events": 100, "outbox": 1, "grants": 1,
                  "statements": 6, "balances": 1, "pinned_roles": 2, "preferences": 1, "peers": 2, "inbox": 10},
    "provider": {"capabilities": 3, "allocations": 7, "contracts": 8, "bids": 10, "inbox": 30, "preferences": 1},
    "authority": {"registered_contracts": 8, "disputes": 2, "accounts": 8, "ledger": 12, "log": 12, "log_head": 1,
                  "registry": 2, "verdicts": 3},
}  # fmt: skip


def expected(table: str, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the table that has a row of version 0.1 now, and the row as it must be there at least."""
    if table == "capabilities":
        return {"lock": "holdings", "allocation": "holdings"}.get(row.get("kind", ""), row["id"]), row
    if table == "bid_requests":
        beside = ("id", "job_id", "direction", "at")
        # until when a job may begin is asked no more: who is busy says so
        request = {name: value for name, value in row.items() if name not in ("direction", "at", "start_by")}
        return table, {**{name: row[name] for name in beside}, "request": request}
    if table == "bids" and row["kind"] == "bid":
        of_bid = ("bidder", "price", "time", "timeout", "spec_cid", "valid_offer", "resources_locked_until_timeout",
                  "comparison", "offer", "load")  # fmt: skip
        both = ("id", "bid_request_id", "job_id", "bidder")
        bid = {name: row[name] for name in {*of_bid, *both} if name in row}
        return table, {**{name: row[name] for name in row if name not in of_bid or name == "bidder"}, "bid": bid}
    if table == "jobs":
        # one provider was asked, or all
        return table, {**row, "push": [row["push"]] if row["push"] else []}
    if table == "disputes":
        return table, {name: value for name, value in row.items() if name != "id"}
    if table == "contracts" and row.get("dispute"):
        evidence = [
            {**part, "documents": [content_id(document["content"].encode()) for document in part["documents"]]}
            for part in row["dispute"]["evidence"]
        ]
        return table, {**row, "dispute": {**row["dispute"], "evidence": evidence}}
    return table, row


def missing(old: Any, new: Any, at: str = "") -> list[str]:
    """Return what of an old value is not, or is different, in the new one; null is as good as absent."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [text for name, value in old.items() for text in missing(value, new.get(name), f"{at}.{name}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [text for number, value in enumerate(old) for text in missing(value, new[number], f"{at}[{number}]")]
    return [] if old is None or (old == new and type(old) is type(new)) else [f"{at}: {old!r} is {new!r}"]


def stored(home: Path, table: str) -> list[tuple[int, dict[str, Any]]]:
    connection = sqlite3.connect(f"file:{home / 'store.db'}?mode=ro", uri=True)
    try:
        return [
            (seq, json.loads(doc)) for seq, doc in connection.execute(f'SELECT seq, doc FROM "{table}" ORDER BY seq')
        ]
    finally:
        connection.close()


def dump(home: Path) -> list[str]:
    """Return the whole content of a store, as SQL."""
    connection = sqlite3.connect(home / "store.db")
    try:
        return [f"version {connection.execute('PRAGMA user_version').fetchone()[0]}", *connection.iterdump()]
    finally:
        connection.close()


def change_old(home: Path, statement: str, *values: Any) -> None:
    connection = sqlite3.connect(home / "store.db")
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


@pytest.mark.parametrize("name", old_homes.NODES)
def test_every_row_is_there_with_the_same_content(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = old_homes.unpack_one(name, tmp_path / name)
    before = old_homes.rows(home)
    for table, least in LEAST[name].items():
        assert len(before[table]) >= least, table
    with Store(home):
        pass
    assert not caplog.records
    wanted: dict[str, list[dict[str, Any]]] = {}
    for old_table, rows in before.items():
        for _, row in rows if old_table != "results" else []:
            table, fields = expected(old_table, row)
            wanted.setdefault(table, []).append(fields)
    for table, fields_of in wanted.items():
        now = [row for _, row in stored(home, table)]
        assert len(now) == len(fields_of), table
        for old, new in zip(fields_of, now, strict=True):
            assert missing(old, new, table) == []
    # a result is kept with its contract, and was only there ever read
    results = {row["document"]["content"] for _, row in before.get("results", [])}
    assert results <= {(row.get("result") or {}).get("content") for _, row in before.get("contracts", [])}


@pytest.mark.parametrize("name", old_homes.NODES)
def test_the_old_tables_are_gone_and_a_second_opening_changes_nothing(name: str, tmp_path: Path) -> None:
    home = old_homes.unpack_one(name, tmp_path / name)
    with Store(home):
        pass
    once = dump(home)
    assert once[0] == f"version {VERSION}"
    assert not [line for line in once if "doc_" in line.split(" VALUES")[0]]
    with Store(home):
        pass
    assert dump(home) == once


def test_the_rows_of_a_log_keep_their_numbers(tmp_path: Path) -> None:
    """Who follows the events goes on after the number that it saw last."""
    home = old_homes.unpack_one("requester", tmp_path / "r")
    change_old(home, "DELETE FROM doc_events WHERE id=3")
    numbers = [number for number, _ in old_homes.rows(home)["events"]]
    with Store(home) as store:
        assert [seq for seq, _ in store.log()] == numbers
        last = numbers[-1]
        seen = stored(home, "events")[-1][1]
        assert store[EVENTS].after(last - 1)[0][0] == last
        assert store.log(seen["job_id"])[-1][1].type == seen["type"]


async def test_the_next_event_comes_after_the_old_ones(tmp_path: Path) -> None:
    home = old_homes.unpack_one("requester", tmp_path / "r")
    last = old_homes.rows(home)["events"][-1][0]
    with Store(home) as store:
        await store.save_event("job", "later")
        assert [seq for seq, event in store.log() if event.type == "later"] == [last + 1]


def test_what_was_there_is_found_by_its_indexes(tmp_path: Path) -> None:
    home = old_homes.unpack_one("requester", tmp_path / "r")
    jobs = [row for _, row in old_homes.rows(home)["jobs"]]
    with Store(home) as store:
        for job in jobs:
            found = store[JOBS].one(job["id"])
            assert found in store[JOBS].by("state", job["state"])
            requests = {bid.bid_request_id for bid in store[BIDS].by("job_id", job["id"])}
            assert not requests or found.bid_request_id in requests
            if job.get("contract_id"):
                assert store[CONTRACTS].one(job["contract_id"]).job_id == job["id"]
        group = next(job for job in store[JOBS].all() if job.kind == "group")
        assert {job.id for job in store[JOBS].by("parent", group.id)} == set(group.children.values())
        wanted = {"posted", "matched", "requested", "settled", "failed", "cancelled", "expired", "disputed", "resolved"}
        assert set(store[JOBS].distinct("state")) == wanted


def test_an_offer_with_a_bare_name_of_a_verifier_is_kept(tmp_path: Path) -> None:
    home = old_homes.unpack_one("provider", tmp_path / "p")
    with Store(home) as store:
        registered = store[REGISTERED_CAPABILITY].one("registered")
        preferences = store[PREFERENCES].one("comparator")
    assert msgspec.json.decode(registered.capability, type=Capability).kycs == ("civic",)
    assert preferences.comparator.rules
    assert preferences.price.amount == "0.25"


def test_money_is_conserved(tmp_path: Path) -> None:
    home = old_homes.unpack_one("authority", tmp_path / "a")
    with Store(home) as store:
        balances = {account.id: account.balance for account in store[ACCOUNTS].all()}
        assert sum(balances.values()) == 0
        moved = dict.fromkeys(balances, 0)
        for transfer in store[LEDGER].all():
            moved[transfer.payer] -= transfer.amount
            moved[transfer.payee] += transfer.amount
        assert moved == balances


@pytest.mark.parametrize("name", old_homes.NODES)
def test_reading_an_old_store_leaves_the_file_as_it_is(name: str, tmp_path: Path) -> None:
    home = old_homes.unpack_one(name, tmp_path / name)
    path = home / "store.db"
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    events = [number for number, _ in old_homes.rows(home)["events"]]
    with Store(home, read_only=True) as store:
        assert [seq for seq, _ in store.log()] == events
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    "text",
    ["[]", "5", "null", '{"id": "job-x"}', '{"id": 5}', b'{"id": "\xff"}', '{"id": "\\ud800"}'],
    ids=lambda text: repr(text)[:12],
)
@pytest.mark.parametrize("table", ["jobs", "contracts", "bids", "capabilities", "events"])
def test_a_row_that_cannot_be_read_is_left_out_and_said(
    table: str, text: str | bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "provider" if table == "capabilities" else "requester"
    home = old_homes.unpack_one(name, tmp_path / name)
    count = len(old_homes.rows(home)[table])
    change_old(home, f"INSERT INTO doc_{table} (id, doc) VALUES (999, CAST(? AS TEXT))", text)
    with caplog.at_level(logging.WARNING, "nunet.store"), Store(home) as store:
        declared = [each for each in TABLES if (each.first_name or each.name) == table]
        assert sum(store[each].count() for each in declared) == count
        assert store.log()
    assert [record.getMessage() for record in caplog.records if "row 999 of" in record.getMessage()]


def test_a_table_of_nobodys_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = old_homes.unpack_one("provider", tmp_path / "p")
    connection = sqlite3.connect(home / "store.db")
    connection.execute("CREATE TABLE doc_wishes (id INTEGER PRIMARY KEY, doc TEXT)")
    connection.close()
    with Store(home):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        "the table wishes is not one of this version, and is left out"
    ]


def test_a_migration_that_fails_leaves_the_old_store(tmp_path: Path) -> None:
    home = old_homes.unpack_one("requester", tmp_path / "r")
    before, contracts = dump(home), len(old_homes.rows(home)["contracts"])

    def interrupted(row: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    tables = tuple(replace(table, upgrade=interrupted) if table is CONTRACTS else table for table in TABLES)
    with pytest.raises(KeyboardInterrupt):
        Store(home, tables=tables)
    assert dump(home) == before
    with Store(home) as store:
        assert store[CONTRACTS].count() == contracts


def test_a_migration_that_is_killed_leaves_the_old_store(tmp_path: Path) -> None:
    home = old_homes.unpack_one("requester", tmp_path / "r")
    before, events = dump(home), len(old_homes.rows(home)["events"])
    script = """
        import os, signal, sys
        from dataclasses import replace
        from pathlib import Path
        from nunet_cli.database.store import Store
        from nunet_cli.records.events import EVENTS
        from nunet_cli.records.tables import TABLES
        def killed(row):
            os.kill(os.getpid(), signal.SIGKILL)
        # the events are the last: all other rows have been taken over by then
        Store(Path(sys.argv[1]), tables=tuple(replace(t, upgrade=killed) if t is EVENTS else t for t in TABLES))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(home)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert dump(home) == before
    with Store(home) as store:
        assert len(store.log()) == events
