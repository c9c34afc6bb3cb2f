"""The store's SQLite file: opened, checked, and brought to the version of the schema that this program has.

WAL, synced on each commit. A file of a newer version is refused; one of an older version is brought up to date in one
transaction, or, where it is only read, in a copy in memory.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

from nunet_cli.database.migrate import from_first_version, has_first_version
from nunet_cli.database.records import quoted, statements
from nunet_cli.errors import NodeError
from nunet_cli.records.table import Table

VERSION = 1
INCREMENTAL = 2
# what SQLite keeps prepared: every statement of every table
STATEMENTS_KEPT = 1024
# what each connection keeps of the file, as far as it was read; SQLite's own two megabytes are some thousand rows
MOST_CACHED = 32 * 2**20


def open_file(path: Path, tables: Iterable[Table[Any]]) -> sqlite3.Connection:
    """Return a connection that writes; the file is made where there is none.

    Raises:
        NodeError: the file is of a newer version, or damaged.
    """
    unclean = _is_unclean(path)
    connection = _connect(str(path))
    # space that is given back goes back to the disk, where `nunet gc` says so; only a new file takes this
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    if unclean:
        # whoever had it last was killed, or the machine lost power
        check(connection, path)
    _bring_up_to_date(connection, path, tuple(tables))
    return connection


def open_reader(path: Path, tables: Iterable[Table[Any]]) -> sqlite3.Connection:
    """Return a connection that only reads; a file that is not there reads as an empty store.

    Raises:
        NodeError: the file is of a newer version.
    """
    tables = tuple(tables)
    if not path.exists():
        connection = _connect(":memory:")
        _bring_up_to_date(connection, path, tables)
        return connection
    connection = _connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    if _version(connection, path) < VERSION or not _has_all(connection, tables):
        copy = _connect(":memory:")
        connection.backup(copy)
        connection.close()
        _bring_up_to_date(copy, path, tables)
        return copy
    return connection


def _connect(path: str, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, uri=uri, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS_KEPT
    )
    connection.execute("PRAGMA busy_timeout=5000")
    connection.execute(f"PRAGMA cache_size=-{MOST_CACHED // 1024}")
    return connection


def check(connection: sqlite3.Connection, path: Path, *, thorough: bool = False) -> None:
    """Look through the whole file for damage.

    Args:
        connection: of the file.
        path: the file, for the message.
        thorough: compare the indexes with the rows as well.

    Raises:
        NodeError: there is some; the message has the first that was found.
    """
    found = connection.execute(f"PRAGMA {'integrity_check' if thorough else 'quick_check'}(1)").fetchone()[0]
    if found != "ok":
        raise NodeError(
            f"the store {path} is damaged: {found}", code="store_damaged",
            hint="put a backup in its place with: nunet node restore FILE",
        )  # fmt: skip


def _is_unclean(path: Path) -> bool:
    """Say whether the file was not closed: then its write-ahead log is still there."""
    log = path.with_name(path.name + "-wal")
    return path.exists() and log.exists() and log.stat().st_size > 0


def _version(connection: sqlite3.Connection, path: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise NodeError(
            f"the store {path} was written by a newer version of nunet: its schema is {version}, this one's {VERSION}",
            code="store_too_new", hint="install that version again, or another --home",
        )  # fmt: skip
    return version


def _bring_up_to_date(connection: sqlite3.Connection, path: Path, tables: tuple[Table[Any], ...]) -> None:
    if _version(connection, path) == VERSION and _has_all(connection, tables):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table in tables:
            make, *indexes = statements(table).schema(table)
            connection.execute(make)
            _add_fields(connection, table)
            for text in indexes:
                connection.execute(text)
        if has_first_version(connection):
            from_first_version(connection, tables)
        connection.execute(f"PRAGMA user_version={VERSION}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    if connection.execute("PRAGMA auto_vacuum").fetchone()[0] != INCREMENTAL:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        # it needs as much space again: where the disk has not, the store is as good, and gives none back
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("VACUUM")


def _has_all(connection: sqlite3.Connection, tables: tuple[Table[Any], ...]) -> bool:
    """Say whether every table and every field that a table is asked by are there."""
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'index')")}
    wanted = {table.name for table in tables} | {f"{table.name}_{field}" for table in tables for field in table.indexes}
    return wanted <= there


def _add_fields(connection: sqlite3.Connection, table: Table[Any]) -> None:
    """Add the columns of fields that an earlier program did not ask a table by, filled from the rows."""
    name = statements(table).name
    there = {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
    missing = [field for field in table.indexes if f"f_{field}" not in there]
    for field in missing:
        connection.execute(f"ALTER TABLE {name} ADD COLUMN {quoted(f'f_{field}')}")
    if missing:
        sets = ", ".join(f"{quoted(f'f_{field}')}=?" for field in missing)
        values = attrgetter(*missing)
        decode = statements(table).decode
        for seq, doc in connection.execute(f"SELECT seq, doc FROM {name}").fetchall():
            found = values(decode(doc))
            row = (found,) if len(missing) == 1 else found
            connection.execute(f"UPDATE {name} SET {sets} WHERE seq=?", (*row, seq))
