"""The node's store: who owns it, how it is changed, and the event log.

All changes go through `Store.change`, one transaction each, in a worker thread (a commit waits for the disk). Reads use
a second connection, and see the last commit. A change that was acknowledged survives `kill -9` and power loss.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import trio
from tinydb import Query

from nunet_cli import units
from nunet_cli.database.storage import Database, SqliteStorage, SqliteTable
from nunet_cli.errors import FatalError, NodeError, NoSpaceError, NotFoundError, UsageError
from nunet_cli.threads import in_thread

T = TypeVar("T")
STORE_FILE = "store.db"
LOCK_FILE = "node.lock"


class Transaction:
    """The tables as a change sees them; what it writes is committed together, or not at all."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.saved_events = 0

    def table(self, name: str) -> SqliteTable:
        """Return a table for reading and writing."""
        return cast(SqliteTable, self._database.table(name))

    def put(self, table: str, row: dict[str, Any], key: str = "id") -> None:
        """Insert a row, or replace the one with the same key whole."""
        rows = self.table(table)
        rows.remove(Query()[key] == row[key])
        rows.insert(row)

    def find(self, table: str, key: str, field: str = "id") -> dict[str, Any] | None:
        """Return the row with this key, or None."""
        return cast("dict[str, Any] | None", self.table(table).get(Query()[field] == key))

    def save_event(self, job_id: str, type_: str, **data: Any) -> None:
        """Append to the event log (seed 3: `database.saveEvent`); `data` must be JSON-ready."""
        self.table("events").insert({"at": units.utc_now(), "job_id": job_id, "type": type_, "data": data})
        self.saved_events += 1


class Store:
    """TinyDB tables in one folder.

    Args:
        home: the node's folder.
        read_only: no changes, no lock; an absent store reads as an empty one.
    """

    def __init__(self, home: Path, *, read_only: bool = False) -> None:
        self.home = home
        self.read_only = read_only
        self._limiter = trio.CapacityLimiter(1)
        self._new_event = trio.Event()
        path: str | Path = home / STORE_FILE
        try:
            if read_only:
                if not Path(path).exists():
                    path = ":memory:"
                self._writer = self._reader = Database(path, read_only=path != ":memory:")
            else:
                home.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
                self._writer = Database(path)
                self._reader = Database(path, read_only=True)
                self._reader.tables()
        except Exception as error:
            # sqlite3 raises several kinds; a user needs to know which file it is
            raise NodeError(
                f"the store {path} cannot be opened: {error}",
                hint="if the file is damaged, move it away or restore a copy",
            ) from None

    def table(self, name: str) -> SqliteTable:
        """Return a table for reading."""
        return cast(SqliteTable, self._reader.table(name))

    def find(self, table: str, key: str, field: str = "id") -> dict[str, Any] | None:
        """Return the row with this key, or None."""
        return cast("dict[str, Any] | None", self.table(table).get(Query()[field] == key))

    def resolve(self, table: str, prefix: str, *, what: str, field: str = "id") -> dict[str, Any]:
        """Return the row whose key starts with an unambiguous prefix.

        Raises:
            NotFoundError: no row, or an empty prefix.
            UsageError: several rows; the message names them.
        """
        rows = self.table(table).with_prefix(field, prefix) if prefix else []
        exact = [row for row in rows if row[field] == prefix]
        if not (exact or rows):
            raise NotFoundError(f"no {what} {prefix!r} here")
        if not exact and len(rows) > 1:
            names = ", ".join(row[field][:16] for row in rows[:5])
            raise UsageError(f"{what} {prefix!r} is ambiguous: {names}{', …' if len(rows) > 5 else ''}")
        return cast(dict[str, Any], (exact or rows)[0])

    async def change(self, function: Callable[[Transaction], T]) -> T:
        """Run `function` in one transaction, and return once it is on disk.

        A cancellation waits for the transaction to end, so the store is never left half-way.

        Raises:
            NoSpaceError: the disk is full; nothing was changed.
            FatalError: the file is damaged.
        """
        if self.read_only:
            raise NodeError("this command only reads the store")
        run = partial(self._run, function)
        try:
            value, events = await in_thread(run, limiter=self._limiter)
        except (sqlite3.Error, OSError) as error:
            raise explained(error, self.home / STORE_FILE) from error
        if events:
            self._new_event.set()
            self._new_event = trio.Event()
        return value

    def _run(self, function: Callable[[Transaction], T]) -> tuple[T, int]:
        transaction = Transaction(self._writer)
        with cast(SqliteStorage, self._writer.storage).transaction():
            value = function(transaction)
        return value, transaction.saved_events

    async def save_event(self, job_id: str, type_: str, **data: Any) -> None:
        """Append one event on its own."""
        await self.change(lambda t: t.save_event(job_id, type_, **data))

    def events(self, job_id: str | None = None, after: int = 0) -> list[dict[str, Any]]:
        """Return events in order, each with its sequence number `seq`; for one job or for all."""
        table = self.table("events")
        if job_id is not None:
            rows = [row for row in table.search(Query().job_id == job_id) if row.doc_id > after]
        else:
            rows = table.after(after)
            while page := table.after(rows[-1].doc_id if rows else after):
                rows += page
        return [{"seq": row.doc_id, **row} for row in rows]

    @property
    def new_event(self) -> trio.Event:
        """The event that is set by the next commit that adds to the log; take it before reading."""
        return self._new_event

    def close(self) -> None:
        """Close both connections."""
        self._reader.close()
        if self._writer is not self._reader:
            self._writer.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def explained(error: Exception, path: Path) -> Exception:
    """Return an error of writing a file of the node's as one of the product's, where it is clear what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    number = getattr(error, "errno", None)
    # on a full disk, the write-ahead log's own files may also fail with an error of input and output
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) or number in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(
            f"{path} cannot be written: {error}",
            hint="free some space on its disk; what waits for it goes on by itself then",
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return FatalError(f"the store {path} is damaged: {error}", hint="restore a copy of the node's home")
    return error


@contextlib.contextmanager
def owned(home: Path, description: str) -> Iterator[None]:
    """Hold the home's lock file: one process owns a store.

    Raises:
        NodeError: another process has it; the message says which.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = lock_owner(home)
            who = f"{owner.get('what', 'a node')} (pid {owner['pid']})" if owner else "another process"
            raise NodeError(
                f"{home} is in use by {who}",
                code="home_in_use",
                hint="choose another folder with --home, or stop that one with: nunet node stop",
            ) from None
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "what": description, "since": units.utc_now()}, file)
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()


def lock_owner(home: Path) -> dict[str, Any]:
    """Return `{pid, what, since}` of the process that owns a home, or an empty dict."""
    try:
        return cast(dict[str, Any], json.loads((home / LOCK_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
