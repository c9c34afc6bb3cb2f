"""Caring for a home: removing what is past its age, with the blobs that nothing names any more; what blobs take up."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from datetime import timedelta
from pathlib import Path

import trio
from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.config import RetentionConfig
from nunet_cli.database import retention
from nunet_cli.database.records import Records
from nunet_cli.database.retention import Cutoffs, Removed
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import UsageError
from nunet_cli.network.blobs import Blobs
from nunet_cli.records.contract_records import CONTRACT, CONTRACTS
from nunet_cli.records.jobs import JOBS
from nunet_cli.threads import in_thread

log = logging.getLogger("nunet.care")

DAY = 86400.0
# a content id of ours, wherever it stands in the JSON of a row
CID = re.compile(rb"\bbafkrei[a-z2-7]{52}\b")
OPEN_CONTRACTS = tuple(sorted(set(CONTRACT.states) - CONTRACT.ends - {"refused", "expired"}))


class Collected(Struct):
    """What was removed: rows by kind, blobs, and the bytes that store and blobs had before and have now."""

    rows: Removed
    blobs: int
    blob_bytes: int
    store_before: int
    store_after: int


class Care:
    """The home's housekeeper.

    Args:
        store: the records.
        blobs: the blobs.
        ages: how long what is over is kept.
    """

    def __init__(self, store: Store, blobs: Blobs, ages: RetentionConfig) -> None:
        self._store, self._blobs, self._ages = store, blobs, ages
        self._limiter = trio.CapacityLimiter(1)
        self._one_at_a_time = trio.Lock()

    def _cutoffs(self) -> Cutoffs:
        now = quantities.now()
        return Cutoffs(
            **{
                name: quantities.format_time(now - timedelta(seconds=getattr(self._ages, name)))
                for name in Cutoffs.__struct_fields__
            }
        )

    async def measure(self) -> None:
        """Look again how much the blobs take up; it counts against the disk that is offered."""
        self._blobs.total = await in_thread(self._blobs.size, limiter=self._limiter)

    async def collect(self, export: Path | None = None) -> Collected:
        """Remove what is past its age, and the blobs that nothing names.

        Args:
            export: a file to which the jobs are added before they go, one line of JSON each.

        Raises:
            UsageError: the file cannot be written; nothing is removed then.
        """
        async with self._one_at_a_time:
            cutoffs, before = self._cutoffs(), _size(self._store.path)
            if export is not None:
                await self._export(export, cutoffs)
            rows = await retention.remove_old(self._store, cutoffs)
            gone = await self._sweep(cutoffs)
            await self._store.apart(_give_back)
            await self.measure()
            after = _size(self._store.path)
            return Collected(rows, len(gone), sum(size for _, size in gone), before, after)

    async def preview(self) -> int:
        """Return how many jobs would go."""
        found, cutoff = 0, self._cutoffs().jobs
        for job in retention.old_jobs(self._store, cutoff, limit=10**6):
            found += len(retention.family(self._store, job))
        return found

    async def daily(self) -> None:
        """Collect, and say so where there was something."""
        done = await self.collect()
        if any((done.rows.jobs, done.rows.bids, done.rows.allocations, done.rows.contracts, done.blobs)):
            log.info(
                "removed what is past its age: %d jobs, %d bids, %d allocations, %d contracts, %d blobs (%s)",
                done.rows.jobs, done.rows.bids, done.rows.allocations, done.rows.contracts, done.blobs,
                quantities.format_size(done.blob_bytes),
            )  # fmt: skip

    async def _export(self, path: Path, cutoffs: Cutoffs) -> None:
        jobs = [
            row for job in retention.old_jobs(self._store, cutoffs.jobs, limit=10**6)
            for row in retention.family(self._store, job)
        ]  # fmt: skip

        def write() -> None:
            # with a connection of its own: two threads that run one statement at a time would mix up what they ask for
            with path.open("ab") as file, Store(self._store.home, read_only=True) as reader:
                for job in jobs:
                    file.write(retention.exported(reader, job))
                file.flush()
                os.fsync(file.fileno())

        try:
            await in_thread(write, limiter=self._limiter)
        except OSError as error:
            raise UsageError(f"--export: {path} cannot be written: {error.strerror}") from None

    async def _sweep(self, cutoffs: Cutoffs) -> list[tuple[str, int]]:
        """Remove the blobs that no job, no open contract and no contract whose deadline is within a job's age names."""

        def find() -> list[tuple[str, int]]:
            reader = sqlite3.connect(f"{self._store.path.resolve().as_uri()}?mode=ro", uri=True)
            try:
                contracts, jobs = Records(reader, CONTRACTS), Records(reader, JOBS)
                named = retention.named_in(jobs.texts(), CID)
                named |= retention.named_in(contracts.texts(state=OPEN_CONTRACTS), CID)
                named |= retention.named_in(contracts.texts_from("deadline", cutoffs.jobs), CID)
            finally:
                reader.close()
            return self._blobs.unnamed(named)

        def ungrant(t: Transaction) -> list[str]:
            # what a job has begun to use since they were looked for stays, with the permissions for it
            names = self._blobs.still_old(name for name, _ in found)
            retention.ungranted(t, names)
            return names

        found = await in_thread(find, limiter=self._limiter)
        if not found:
            return []
        # first nobody may ask for them any more
        gone = set(await self._store.change(ungrant))
        await in_thread(self._blobs.remove, gone, limiter=self._limiter)
        return [blob for blob in found if blob[0] in gone]


def _give_back(connection: sqlite3.Connection) -> None:
    """Give the free pages of the file back to the disk."""
    # as a script: a statement that gives no rows is only begun otherwise, and frees one page
    connection.executescript("PRAGMA incremental_vacuum;")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _size(path: Path) -> int:
    log_file = path.with_name(path.name + "-wal")
    return sum(file.stat().st_size for file in (path, log_file) if file.exists())
