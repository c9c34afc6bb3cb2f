"""How the store of an earlier version becomes one of this version."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from nunet_cli.database.records import Records, quoted, statements
from nunet_cli.errors import NodeError
from nunet_cli.records.reading import decode
from nunet_cli.records.table import Table

log = logging.getLogger("nunet.store")

FIRST = "doc_"
# results: each is in the record of its contract as well, and only there it was ever read
KEPT_TWICE = ("results",)
BOOKS = frozenset({"accounts", "ledger", "log", "log_head"})


def has_first_version(connection: sqlite3.Connection) -> bool:
    """Say whether there are tables of the first version: rows of JSON without declared columns."""
    return bool(_first_tables(connection))


def _first_tables(connection: sqlite3.Connection) -> list[str]:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
    return [name for (name,) in names if name.startswith(FIRST)]


def from_first_version(connection: sqlite3.Connection, tables: Iterable[Table[Any]]) -> None:
    """Take the rows of the first version's tables over, in their order, and drop those; part of a transaction.

    The rows of a log keep their numbers, since who follows it goes on after one. A row that cannot be read, such as an
    offer that an earlier version took without looking, is left out and said.
    """
    # it takes a while where there is much
    log.info("taking over the store of version 0.1")
    heirs: dict[str, list[Records[Any]]] = {}
    for table in tables:
        heirs.setdefault(FIRST + (table.first_name or table.name), []).append(Records(connection, table))
    for name in _first_tables(connection):
        if name in heirs:
            _take_over(connection, name, heirs[name])
        elif name.removeprefix(FIRST) not in KEPT_TWICE:
            log.warning("the table %s is not one of this version, and is left out", name.removeprefix(FIRST))
        connection.execute(f"DROP TABLE {quoted(name)}")


def _take_over(connection: sqlite3.Connection, name: str, heirs: list[Records[Any]]) -> None:
    # as bytes: SQLite itself would stop at a text that is not UTF-8
    for number, text in connection.execute(f"SELECT id, CAST(doc AS BLOB) FROM {quoted(name)} ORDER BY id"):
        try:
            records, made = _converted(json.loads(text), heirs)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            what = name.removeprefix(FIRST)
            if what in BOOKS:
                raise NodeError(
                    f"row {number} of {what} cannot be read: {error}; the books would not balance without it",
                    code="store_damaged", hint="restore a copy of this home; it is left as it was",
                ) from None  # fmt: skip
            log.warning("row %d of %s cannot be taken over: %s", number, what, error)
            continue
        if records.table.key:
            records.put(made)
        elif (given := records.append(made)) != number:
            own = statements(records.table).name
            connection.execute(f"UPDATE {own} SET seq=? WHERE seq=?", (number, given))


def _converted(row: Any, heirs: list[Records[Any]]) -> tuple[Records[Any], Any]:
    """Return the table that a row of the first version belongs to, and the row as its struct."""
    if not isinstance(row, dict):
        raise TypeError("it is not an object")
    for records in heirs:
        fields = records.table.upgrade(row)
        if fields is not None:
            # by way of JSON: what a struct keeps undecoded is made from nothing else
            return records, decode(msgspec.json.encode(fields), records.table.kind)
    raise ValueError("it is of no table of this version")
