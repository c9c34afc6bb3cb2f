"""The store's operations over plain sqlite3 that keeps the same bytes, in processor time, in small and large tables.

Each operation is done many times within one transaction: what a commit waits for the disk is the same for both. Ours
makes and reads structs, plain sqlite3 is given the bytes, and hands them back as they are.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import trio

from benchmarks.lines import Line, Options
from nunet_cli.database.store import Store, Transaction
from nunet_cli.records.bids import BIDS, Bid, BidRecord, NodeID, TimeBid
from nunet_cli.records.capability import PriceBid

SIZES, LARGE = (100, 10_000), 1_000_000
# bids of one job, how often an operation is done in a transaction, how often that is timed, and rows of a page
GROUP, COUNT, TIMES, PAGE = 5, 100, 9, 100
FILL = 20_000
Operation = Callable[[Any, list[int], list[Any]], object]


def bid(number: int) -> BidRecord:
    """Return a bid as it is kept, of about one and a half kilobytes; `GROUP` of them are for one job."""
    job, request, at = f"job-{number // GROUP:08}", f"request-{number // GROUP:08}", "2026-01-01T00:00:00.000Z"
    did = f"did:key:z6Mk{number % 100 + 1:044}".replace("0", "1")
    node = NodeID("", "", "", did)
    name = f"bid-{number:08}"
    offer = Bid(name, request, job, node, PriceBid(amount="0.25"), TimeBid(at, 3600), at, f"spec-{number // GROUP:08}")
    return BidRecord(
        name, "bid", "received", did, request, job, at, node, offer, score=71.25, rank=number % GROUP + 1,
        evidence="x" * 700,
    )  # fmt: skip


class Ours:
    """The product's store."""

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder)

    def fill(self, first: int, end: int) -> None:
        """Insert rows."""

        def change(t: Transaction) -> None:
            for number in range(first, end):
                t[BIDS].put(bid(number))

        trio.run(self._store.change, change)

    def timed(self, operation: Operation, numbers: list[int]) -> float:
        """Return the processor's seconds of an operation on some rows, in one transaction."""
        rows = [bid(number) for number in numbers]

        async def main() -> float:
            begin = time.process_time()
            await self._store.change(lambda t: operation(t, numbers, rows))
            return time.process_time() - begin

        return trio.run(main)

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    @staticmethod
    def put(t: Transaction, _numbers: list[int], rows: list[BidRecord]) -> None:
        """Replace rows."""
        for row in rows:
            t[BIDS].put(row)

    @staticmethod
    def get(t: Transaction, numbers: list[int], _rows: list[BidRecord]) -> None:
        """Read rows by their key."""
        for number in numbers:
            assert t[BIDS].get(f"bid-{number:08}") is not None

    @staticmethod
    def get_by_field(t: Transaction, numbers: list[int], _rows: list[BidRecord]) -> None:
        """Read the rows of one job."""
        for number in numbers:
            assert t[BIDS].by("job_id", f"job-{number // GROUP:08}")

    @staticmethod
    def after(t: Transaction, numbers: list[int], _rows: list[BidRecord]) -> None:
        """Read a page of rows in order."""
        for number in numbers[:: COUNT // 10]:
            t[BIDS].after(number, PAGE)


class Plain:
    """The same bytes in sqlite3: the key and the fields that are asked for in columns, the rest read as it is."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        columns = "".join(f", {field} TEXT" for field in BIDS.indexes)
        self._connection.execute(
            f"CREATE TABLE bids (number INTEGER PRIMARY KEY, id TEXT UNIQUE{columns}, document BLOB)"
        )
        for field in BIDS.indexes:
            self._connection.execute(f"CREATE INDEX by_{field} ON bids ({field})")
        self._insert = f"INSERT INTO bids (id, {', '.join(BIDS.indexes)}, document) VALUES (?{', ?' * len(_FIELDS)})"
        update = ", ".join(f"{field}=excluded.{field}" for field in (*BIDS.indexes, "document"))
        self._put = f"{self._insert} ON CONFLICT (id) DO UPDATE SET {update}"

    def fill(self, first: int, end: int) -> None:
        """Insert rows."""
        self._connection.execute("BEGIN")
        self._connection.executemany(self._insert, (_row(number) for number in range(first, end)))
        self._connection.execute("COMMIT")

    def timed(self, operation: Operation, numbers: list[int]) -> float:
        """Return the processor's seconds of an operation on some rows, in one transaction."""
        rows = [_row(number) for number in numbers]
        begin = time.process_time()
        self._connection.execute("BEGIN IMMEDIATE")
        operation(self, numbers, rows)
        self._connection.execute("COMMIT")
        return time.process_time() - begin

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def put(self, _numbers: list[int], rows: list[tuple[Any, ...]]) -> None:
        """Replace rows."""
        for row in rows:
            self._connection.execute(self._put, row)

    def get(self, numbers: list[int], _rows: list[tuple[Any, ...]]) -> None:
        """Read rows by their key."""
        for number in numbers:
            key = (f"bid-{number:08}",)
            assert self._connection.execute("SELECT document FROM bids WHERE id = ?", key).fetchone()

    def get_by_field(self, numbers: list[int], _rows: list[tuple[Any, ...]]) -> None:
        """Read the rows of one job."""
        for number in numbers:
            key = (f"job-{number // GROUP:08}",)
            query = "SELECT document FROM bids WHERE job_id = ? ORDER BY number"
            assert self._connection.execute(query, key).fetchall()

    def after(self, numbers: list[int], _rows: list[tuple[Any, ...]]) -> None:
        """Read a page of rows in order."""
        query = "SELECT number, document FROM bids WHERE number > ? ORDER BY number LIMIT ?"
        for number in numbers[:: COUNT // 10]:
            self._connection.execute(query, (number, PAGE)).fetchall()


_FIELDS = (*BIDS.indexes, "document")
_values = attrgetter("id", *BIDS.indexes)


def _row(number: int) -> tuple[Any, ...]:
    made = bid(number)
    return (*_values(made), msgspec.json.encode(made))


def measure(options: Options) -> Iterator[Line]:
    """Measure each operation at each size, in turns."""
    for size in (*SIZES, *((LARGE,) if options.large else ())):
        ours, plain = Ours(options.folder / f"store-{size}"), Plain(options.folder / f"plain-{size}")
        for first in range(0, size, FILL):
            ours.fill(first, min(size, first + FILL))
            plain.fill(first, min(size, first + FILL))
        random = Random(size)
        for name in ("put", "get", "get_by_field", "after"):
            took = {"ours": float("inf"), "plain": float("inf")}
            for _ in range(TIMES):
                numbers = [random.randrange(size) for _ in range(COUNT)]
                took["ours"] = min(took["ours"], ours.timed(getattr(Ours, name), numbers))
                took["plain"] = min(took["plain"], plain.timed(getattr(Plain, name), numbers))
            each = {of: seconds / (10 if name == "after" else COUNT) * 1e6 for of, seconds in took.items()}
            what = {"get": "get by key", "get_by_field": "get by a field", "after": f"a page of {PAGE}"}.get(name, name)
            yield Line(
                "store", f"{what}, {size:,} rows", took["ours"] / took["plain"], "plain sqlite3", "≤ 2",
                f"{each['ours']:,.0f} µs; sqlite3 {each['plain']:,.0f} µs",
                {"us": each["ours"], "plain_us": each["plain"], "rows": size},
            )  # fmt: skip
        ours.close()
        plain.close()
