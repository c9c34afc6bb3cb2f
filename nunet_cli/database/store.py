"""The node's store: who owns it, how it is changed, and the event log.

All changes go through `Store.change`, one transaction each; those that are ready at the same time share a commit, which
waits for the disk in a worker thread. Reads use a second connection, and see the last commit. A change that was
acknowledged survives `kill -9` and power loss.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, cast
from weakref import WeakValueDictionary

import trio
from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.database.documents import Database, DocumentStorage, DocumentTable
from nunet_cli.database.file import open_file, open_reader
from nunet_cli.database.records import Records
from nunet_cli.errors import FatalError, NodeError, NoSpaceError
from nunet_cli.records.events import EVENTS, Event
from nunet_cli.records.table import Table
from nunet_cli.records.tables import TABLES
from nunet_cli.threads import alone_in_thread

log = logging.getLogger("nunet.store")

T = TypeVar("T")
R = TypeVar("R", bound=Struct)
STORE_FILE = "store.db"
LOCK_FILE = "node.lock"
# more than that in one commit would keep the first one waiting
MOST_TOGETHER = 64
UNDONE = "what was changed together was undone"


class _Tables:
    """The tables of one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._records: dict[Table[Any], Records[Any]] = {}

    def __getitem__(self, table: Table[R]) -> Records[R]:
        """Return a table."""
        found = self._records.get(table)
        if found is None:
            found = self._records[table] = Records(self._connection, table)
        return found


class Transaction(_Tables):
    """The tables as a change sees them; what it writes is committed together, or not at all."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        # the jobs to whose story this adds
        self.told: set[str] = set()
        # the jobs that come to their end with it
        self.ended: set[str] = set()
        self._then: list[Callable[[], None]] = []

    def save_event(self, job_id: str, type_: str, **data: Any) -> int:
        """Append to the event log (seed 3: `database.saveEvent`) and return its number; `data` must be JSON-ready."""
        self.told.add(job_id)
        return self[EVENTS].append(Event(quantities.utc_now(), job_id, type_, data))

    def then(self, call: Callable[[], None]) -> None:
        """Do something once this change is on disk: start what follows from it, wake who waits for it."""
        self._then.append(call)

    def follow(self) -> None:
        """Do what was to be done once the change is on disk."""
        for call in self._then:
            try:
                call()
            except Exception:
                # the change is made: who asked for it is not told otherwise, and the rest is done all the same
                log.exception("what was to follow a change failed")


class _Change(Generic[T]):
    """A change that waits for its turn, and then for the disk; or work on the file itself, which is done `apart`."""

    def __init__(self, function: Callable[[Transaction], T], apart: Callable[[sqlite3.Connection], T] | None = None):
        self.function, self.apart = function, apart
        # who made it and waits for its turn
        self.waits: trio.lowlevel.Task | None = None
        self.transaction: Transaction | None = None
        self.value: T | None = None
        self.error: BaseException | None = None
        self.is_done = False

    def wake(self) -> None:
        """Let who made it go on, if it waits."""
        if self.waits is not None:
            trio.lowlevel.reschedule(self.waits)
            self.waits = None


class Store(_Tables):
    """The tables of one node, in one folder; as a mapping it reads the last commit: `store[JOBS].get(id)`.

    Args:
        home: the node's folder.
        read_only: no changes, no lock; an absent store reads as an empty one.
        tables: their declarations.
    """

    def __init__(self, home: Path, *, read_only: bool = False, tables: tuple[Table[Any], ...] = TABLES) -> None:
        self.home = home
        self.read_only = read_only
        self.path = home / STORE_FILE
        self._new_event = trio.Event()
        # who waits holds them
        self._news: WeakValueDictionary[str, trio.Event] = WeakValueDictionary()
        self._ends: WeakValueDictionary[str, trio.Event] = WeakValueDictionary()
        self._waiting: list[_Change[Any]] = []
        self._is_led = False
        try:
            if read_only:
                self._writer = self._reader = open_reader(self.path, tables)
            else:
                home.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
                self._writer = open_file(self.path, tables)
                self._reader = open_reader(self.path, tables)
        except (sqlite3.Error, OSError) as error:
            raise NodeError(
                f"the store {self.path} cannot be opened: {error}",
                hint="if the file is damaged, put a backup in its place: nunet node restore FILE",
            ) from None
        super().__init__(self._reader)
        self._documents = Database(self._reader, tables, storage=DocumentStorage)

    def documents(self, table: Table[Any]) -> DocumentTable:
        """Return a table as TinyDB's, to be searched with its `Query`; it reads the last commit."""
        return cast(DocumentTable, self._documents.table(table.name))

    @property
    def connection(self) -> sqlite3.Connection:
        """What reads the last commit."""
        return self._reader

    # -- changes -----------------------------------------------------------------------------------------------------

    async def change(self, function: Callable[[Transaction], T]) -> T:
        """Run `function` in one transaction, and return once it is on disk.

        It runs in the event loop, so it must be quick; the commit does not. A cancellation waits for the transaction to
        end, so the store is never left half-way.

        Raises:
            NoSpaceError: the disk is full; nothing was changed.
            FatalError: the file is damaged.
        """
        return await self._take_turn(_Change(function))

    async def apart(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run work on the file itself in a worker thread, outside of any transaction and while nobody changes it."""
        return await self._take_turn(_Change(_nothing, function))

    async def _take_turn(self, mine: _Change[T]) -> T:
        if self.read_only:
            raise NodeError("this command only reads the store")
        self._waiting.append(mine)
        # nothing below can be cancelled
        if self._is_led:
            mine.waits = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        if not mine.is_done:
            # nobody commits just now: this one does, for all that are ready with it
            self._is_led = True
            await trio.lowlevel.cancel_shielded_checkpoint()
            await self._lead()
        if mine.error is not None:
            raise mine.error
        return cast(T, mine.value)

    async def _lead(self) -> None:
        count = next((n for n, change in enumerate(self._waiting[:MOST_TOGETHER]) if change.apart), MOST_TOGETHER) or 1
        together, self._waiting = self._waiting[:count], self._waiting[count:]
        try:
            if together[0].apart is not None:
                await self._work(together[0])
            else:
                await self._commit(together)
        finally:
            for change in together:
                change.is_done = True
                change.wake()
            self._is_led = bool(self._waiting)
            if self._waiting:
                # the first of those that came in the meantime leads the next commit
                self._waiting[0].wake()

    async def _work(self, change: _Change[Any]) -> None:
        assert change.apart is not None
        try:
            change.value = await alone_in_thread(change.apart, self._writer)
        except Exception as error:
            change.error = explained(error, self.path)

    async def _commit(self, together: list[_Change[Any]]) -> None:
        connection = self._writer
        try:
            connection.execute("BEGIN IMMEDIATE")
            before = connection.total_changes
            for change in together:
                self._run(change, alone=len(together) == 1)
            if connection.in_transaction:
                if connection.total_changes == before:
                    connection.execute("COMMIT")
                else:
                    await alone_in_thread(connection.execute, "COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._fail(together, explained(error, self.path))
        finally:
            # where the disk is full SQLite rolls back itself, at times already in the middle of the transaction
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        told, ended = set[str](), set[str]()
        for change in together:
            if change.error is None and change.transaction is not None:
                told |= change.transaction.told
                ended |= change.transaction.ended
                change.transaction.follow()
        if told:
            self._new_event.set()
            self._new_event = trio.Event()
        for waited, jobs in ((self._news, told), (self._ends, ended)):
            for job_id in jobs:
                event = waited.pop(job_id, None)
                if event is not None:
                    event.set()

    def _run(self, change: _Change[Any], *, alone: bool) -> None:
        """Run one of the changes that share a transaction; what it wrote is undone where it raises."""
        connection = self._writer
        if not alone:
            connection.execute("SAVEPOINT one")
        change.transaction = Transaction(connection)
        try:
            change.value = change.function(change.transaction)
        except BaseException as error:
            change.error = explained(error, self.path) if isinstance(error, sqlite3.Error | OSError) else error
            if not connection.in_transaction:
                if isinstance(error, sqlite3.Error | OSError):
                    raise
                raise sqlite3.OperationalError(UNDONE) from error
            connection.execute("ROLLBACK" if alone else "ROLLBACK TO one")
        else:
            if not connection.in_transaction:
                # SQLite has undone everything, the others with it, whatever the function made of that
                raise sqlite3.OperationalError(UNDONE)
        if not alone:
            connection.execute("RELEASE one")

    @staticmethod
    def _fail(together: list[_Change[Any]], error: BaseException) -> None:
        for change in together:
            change.error = change.error or error

    async def save_event(self, job_id: str, type_: str, **data: Any) -> None:
        """Append one event on its own."""
        await self.change(lambda t: t.save_event(job_id, type_, **data))

    # -- events ------------------------------------------------------------------------------------------------------

    def log(self, job_id: str | None = None, after: int = 0) -> list[tuple[int, Event]]:
        """Return events in order, each with its number; for one job or for all."""
        where: dict[str, Any] = {} if job_id is None else {"job_id": job_id}
        rows = self[EVENTS].after(after, **where)
        while page := self[EVENTS].after(rows[-1][0], **where) if rows else []:
            rows += page
        return rows

    @property
    def new_event(self) -> trio.Event:
        """The event that is set by the next commit that adds to the log; take it before reading."""
        return self._new_event

    def news(self, job_id: str) -> trio.Event:
        """Return the event that is set by the next commit that adds to the log of a job; take it before reading."""
        return _event(self._news, job_id)

    def end(self, job_id: str) -> trio.Event:
        """Return the event that is set by the next commit with which a job comes to its end; take it before reading."""
        return _event(self._ends, job_id)

    # -- the file ----------------------------------------------------------------------------------------------------

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


def _event(waited: WeakValueDictionary[str, trio.Event], job_id: str) -> trio.Event:
    found = waited.get(job_id)
    if found is None:
        found = waited[job_id] = trio.Event()
    return found


def _nothing(_: Transaction) -> Any:
    return None


def explained(error: BaseException, path: Path) -> BaseException:
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
        return FatalError(f"the store {path} is damaged: {error}", hint="put a backup in its place: nunet node restore")
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
        json.dump({"pid": os.getpid(), "what": description, "since": quantities.utc_now()}, file)
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
