"""How the store of an earlier version becomes one of this version."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from nunet_cli.database.records import Records, quoted
from nunet_cli.records.table import Table

log = logging.getLogger("nunet.store")

FIRST = "doc_"


def has_first_version(connection: sqlite3.Connection) -> bool:
    """Say whether there are tables of the first version: rows of JSON without declared columns."""
    return bool(_first_tables(connection))


def _first_tables(connection: sqlite3.Connection) -> list[str]:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
    return [name for (name,) in names if name.startswith(FIRST)]


def from_first_version(connection: sqlite3.Connection, tables: Iterable[Table[Any]]) -> None:
    """Take the rows of the first version's tables over, in their order, and drop those; part of a transaction.

    A row that cannot be read, such as an offer that an earlier version took without looking, is left out and said.
    """
    there = _first_tables(connection)
    for table in tables:
        name = FIRST + (table.first_name or table.name)
        if name not in there:
            continue
        records = Records(connection, table)
        for number, text in connection.execute(f"SELECT id, doc FROM {quoted(name)} ORDER BY id").fetchall():
            try:
                row = table.upgrade(json.loads(text))
                if row is None:
                    continue
                made = msgspec.convert(row, table.kind)
            except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
                log.warning("row %d of %s cannot be taken over: %s", number, table.name, error)
                continue
            if table.key:
                records.put(made)
            else:
                records.append(made)
    for name in there:
        connection.execute(f"DROP TABLE {quoted(name)}")
