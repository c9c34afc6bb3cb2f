# ruff: noqa: D102
"""Rows as dicts, for the rooms that have not been converted to structs yet; this file goes when the last one is."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec
from tinydb.table import Document

from nunet_cli.database.records import Records, statements
from nunet_cli.records.tables import TABLES

_BY_NAME = {table.name: table for table in TABLES}


def outward(name: str, row: Any, seq: int = 0) -> Document:
    """Return a struct as the dict that it used to be."""
    found = msgspec.to_builtins(row)
    if name == "bid_requests":
        found = {**found.pop("request"), **found}
    if name == "bids":
        bid = found.pop("bid")
        comparison = found.pop("comparison")
        found = {**(bid or {}), **found}
        if not bid:
            found["comparison"] = comparison
    return Document(found, seq)


def inward(name: str, row: dict[str, Any]) -> Any:
    """Return a dict as its struct."""
    table = _BY_NAME[name]
    plain = table.upgrade(dict(row)) if name in ("bids", "bid_requests", "jobs", "grants") else dict(row)
    assert plain is not None
    unknown = set(plain) - {field.encode_name for field in msgspec.structs.fields(table.kind)}
    assert not unknown or name in ("bids", "disputes"), f"{name}: {unknown}"
    return msgspec.convert({k: v for k, v in plain.items() if v is not None}, table.kind)


class OldTable:
    """A table as TinyDB's, with dicts."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self.name = name
        self._connection = connection
        self._records: Records[Any] = Records(connection, _BY_NAME[name])
        self._sql = statements(_BY_NAME[name])

    def _find(self, where: str = "", values: tuple[Any, ...] = (), order: str = "seq") -> list[Document]:
        query = f"SELECT seq, doc FROM {self._sql.name}{where} ORDER BY {order}"
        return [outward(self.name, self._sql.decode(doc), seq) for seq, doc in self._connection.execute(query, values)]

    def all(self) -> list[Document]:
        return self._find()

    def __iter__(self) -> Any:
        return iter(self._find())

    def __len__(self) -> int:
        return self._records.count()

    def search(self, cond: Any) -> list[Document]:
        whole = getattr(cond, "_hash", None)
        if isinstance(whole, tuple) and len(whole) == 3 and whole[0] == "==" and isinstance(whole[2], str):
            column = self._sql.columns.get(whole[1][0]) if len(whole[1]) == 1 else None
            if column:
                return [row for row in self._find(f" WHERE {column}=?", (whole[2],)) if cond(row)]
        return [row for row in self._find() if cond(row)]

    def get(self, cond: Any = None, **_: Any) -> Document | None:
        return next(iter(self.search(cond)), None)

    def insert(self, row: dict[str, Any]) -> int:
        made = inward(self.name, row)
        if self._records.table.key:
            self._records.put(made)
            return 0
        return self._records.append(made)

    def remove(self, cond: Any = None, doc_ids: Any = None) -> list[int]:
        ids = [row.doc_id for row in self.search(cond)] if doc_ids is None else list(doc_ids)
        for seq in ids:
            self._connection.execute(f"DELETE FROM {self._sql.name} WHERE seq=?", (seq,))
        return ids

    def after(self, seq: int, limit: int = 1000) -> list[Document]:
        return [outward(self.name, row, number) for number, row in self._records.after(seq, limit)]

    def before(self, field: str, value: str, limit: int = 1000) -> list[Document]:
        return [outward(self.name, row) for row in self._records.below(field, value, limit)]

    def remove_before(self, field: str, value: str) -> None:
        self._records.remove_below(field, value)

    def distinct(self, field: str) -> list[str]:
        return self._records.distinct(field)

    def count_by(self, field: str) -> dict[str, int]:
        return self._records.count_by(field)

    def with_prefix(self, field: str, prefix: str, limit: int = 20) -> list[Document]:
        column = self._sql.columns[field]
        return self._find(f" WHERE {column}>=? AND {column}<?", (prefix, prefix + "\U0010ffff"), f"{column}")[:limit]


class Legacy:
    """What a store and a transaction used to offer."""

    _connection: sqlite3.Connection

    def table(self, name: str) -> OldTable:
        return OldTable(self._connection, name)

    def find(self, table: str, key: str, field: str = "") -> dict[str, Any] | None:
        declared = _BY_NAME[table]
        records: Records[Any] = Records(self._connection, declared)
        row = records.get(key) if field in ("", declared.key) else records.first(field, key)
        return None if row is None else outward(table, row)

    def put(self, table: str, row: dict[str, Any]) -> None:
        Records(self._connection, _BY_NAME[table]).put(inward(table, row))

    def resolve(self, table: str, prefix: str, *, what: str, field: str = "") -> dict[str, Any]:
        records: Records[Any] = Records(self._connection, _BY_NAME[table])
        return outward(table, records.resolve(prefix, what=what, field=field))
