"""The store's operations over plain sqlite3 that keeps the same bytes, in processor time, in small and large tables.

Each operation is done many times within one transaction: what a commit waits for the disk is the same for both.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import trio
from tinydb import Query

from benchmarks.lines import Line, Options
from nunet_cli.database.store import Store, Transaction

SIZES, LARGE = (100, 10_000), 1_000_000
# bids of one job, how often an operation is done in a transaction, how often that is timed, and rows of a page
GROUP, COUNT, TIMES, PAGE = 5, 100, 9, 100
FILL = 20_000
Operation = Callable[[Any, list[int]], object]


def document(number: int) -> dict[str, Any]:
    """Return a bid as it is kept, of about a kilobyte; `GROUP` of them are for one job."""
    return {
        "id": f"bid-{number:08}", "job_id": f"job-{number // GROUP:08}",
        "bid_request_id": f"request-{number // GROUP:08}",
        "did": f"did:key:z6Mk{number % 100:044}", "state": "received", "score": 71.25, "rank": number % GROUP + 1,
        "bid": {"price": {"type": "per_result", "amount": "0.25"}, "text": "x" * 700},
    }  # fmt: skip


class Ours:
    """The product's store."""

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder)

    def fill(self, first: int, end: int) -> None:
        """Insert documents."""
        trio.run(self._store.change, lambda t: t.table("bids").insert_multiple(map(document, range(first, end))))

    def timed(self, operation: Operation, numbers: list[int]) -> float:
        """Return the processor's seconds of an operation on some documents, in one transaction."""

        async def main() -> float:
            begin = time.process_time()
            await self._store.change(lambda t: operation(t, numbers))
            return time.process_time() - begin

        return trio.run(main)

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    @staticmethod
    def put(t: Transaction, numbers: list[int]) -> None:
        """Replace documents."""
        for number in numbers:
            t.put("bids", document(number))

    @staticmethod
    def get(t: Transaction, numbers: list[int]) -> None:
        """Read documents by their key."""
        for number in numbers:
            assert t.find("bids", f"bid-{number:08}") is not None

    @staticmethod
    def get_by_field(t: Transaction, numbers: list[int]) -> None:
        """Read the documents of one job."""
        for number in numbers:
            assert t.table("bids").search(Query().job_id == f"job-{number // GROUP:08}")

    @staticmethod
    def after(t: Transaction, numbers: list[int]) -> None:
        """Read a page of documents in order."""
        for number in numbers[:: COUNT // 10]:
            t.table("bids").after(number, PAGE)


class Plain:
    """The same documents in sqlite3, with the key and the field in columns."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute(
            "CREATE TABLE bids (number INTEGER PRIMARY KEY, id TEXT UNIQUE, job_id TEXT, document TEXT)"
        )
        self._connection.execute("CREATE INDEX by_job ON bids (job_id)")

    def fill(self, first: int, end: int) -> None:
        """Insert documents."""
        self._connection.execute("BEGIN")
        rows = (_row(number) for number in range(first, end))
        self._connection.executemany("INSERT INTO bids (id, job_id, document) VALUES (?, ?, ?)", rows)
        self._connection.execute("COMMIT")

    def timed(self, operation: Operation, numbers: list[int]) -> float:
        """Return the processor's seconds of an operation on some documents, in one transaction."""
        begin = time.process_time()
        self._connection.execute("BEGIN IMMEDIATE")
        operation(self._connection, numbers)
        self._connection.execute("COMMIT")
        return time.process_time() - begin

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @staticmethod
    def put(connection: sqlite3.Connection, numbers: list[int]) -> None:
        """Replace documents."""
        for number in numbers:
            connection.execute("INSERT OR REPLACE INTO bids (id, job_id, document) VALUES (?, ?, ?)", _row(number))

    @staticmethod
    def get(connection: sqlite3.Connection, numbers: list[int]) -> None:
        """Read documents by their key."""
        for number in numbers:
            key = (f"bid-{number:08}",)
            assert connection.execute("SELECT document FROM bids WHERE id = ?", key).fetchone()

    @staticmethod
    def get_by_field(connection: sqlite3.Connection, numbers: list[int]) -> None:
        """Read the documents of one job."""
        for number in numbers:
            key = (f"job-{number // GROUP:08}",)
            assert connection.execute("SELECT document FROM bids WHERE job_id = ?", key).fetchall()

    @staticmethod
    def after(connection: sqlite3.Connection, numbers: list[int]) -> None:
        """Read a page of documents in order."""
        query = "SELECT number, document FROM bids WHERE number > ? ORDER BY number LIMIT ?"
        for number in numbers[:: COUNT // 10]:
            connection.execute(query, (number, PAGE)).fetchall()


def _row(number: int) -> tuple[str, str, str]:
    return f"bid-{number:08}", f"job-{number // GROUP:08}", json.dumps(document(number))


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
                took["ours"] = min(took["ours"], ours.timed(getattr(ours, name), numbers))
                took["plain"] = min(took["plain"], plain.timed(getattr(plain, name), numbers))
            each = {of: seconds / (10 if name == "after" else COUNT) * 1e6 for of, seconds in took.items()}
            what = {"get": "get by key", "get_by_field": "get by a field", "after": f"a page of {PAGE}"}.get(name, name)
            yield Line(
                "store", f"{what}, {size:,} documents", took["ours"] / took["plain"], "plain sqlite3", "≤ 2",
                f"{each['ours']:,.0f} µs; sqlite3 {each['plain']:,.0f} µs",
                {"us": each["ours"], "plain_us": each["plain"], "documents": size},
            )  # fmt: skip
        ours.close()
        plain.close()
