"""TinyDB on SQLite, through TinyDB's own extension points (`Storage`, `Table`).

TinyDB's stock storage rewrites one JSON file on each insert. Here each document is a row: a change is one transaction
that writes only the rows it touched, and a query that asks for equality on an indexed field is narrowed by SQL before
TinyDB's own condition is applied to what is left.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from tinydb import TinyDB
from tinydb.queries import QueryLike
from tinydb.storages import Storage
from tinydb.table import Document, Table

from nunet_cli.database.rows import RowMapping, WriteThrough, sql_name

INDEXED_FIELDS = ("id", "bid_request_id", "job_id", "contract_id", "did", "state")
# what only some tables are asked by
MORE_INDEXES = {
    "inbox": ("expires_at",), "outbox": ("expires_at", "to"),
    "ledger": ("payer", "payee"), "registered_contracts": ("requester",),
}  # fmt: skip


class SqliteStorage(Storage):
    """A TinyDB storage whose documents are rows of a SQLite file in WAL mode, synced on each commit."""

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = str(path)
        if read_only and self.path != ":memory:":
            uri = f"{Path(self.path).resolve().as_uri()}?mode=ro"
            self.connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        else:
            self.connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA busy_timeout=5000")
        if not read_only:
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=FULL")
        self._known: set[str] = set()
        self._made: set[str] = set()

    def table_names(self) -> list[str]:
        """Return the names of the tables that exist."""
        rows = self.connection.execute(
            "SELECT name FROM sqlite_master WHERE type='table' AND name LIKE 'doc\\_%' ESCAPE '\\'"
        )
        return [name.removeprefix("doc_") for (name,) in rows]

    def exists(self, name: str) -> bool:
        """Say whether a table has been made."""
        if name not in self._known:
            query = "SELECT 1 FROM sqlite_master WHERE type='table' AND name=?"
            if self.connection.execute(query, (f"doc_{name}",)).fetchone() is None:
                return False
            self._known.add(name)
        return True

    def create(self, name: str) -> None:
        """Make a table with its indexes, if they are not there."""
        if name in self._made:
            return
        self.connection.execute(
            f"CREATE TABLE IF NOT EXISTS {sql_name(name)} (id INTEGER PRIMARY KEY, doc TEXT NOT NULL)"
        )
        for field in indexed_fields(name):
            index = '"idx_' + name.replace('"', '""') + f'_{field}"'
            self.connection.execute(
                f"CREATE INDEX IF NOT EXISTS {index} ON {sql_name(name)} (json_extract(doc, '$.{field}'))"
            )
        self._made.add(name)

    def read(self) -> dict[str, dict[str, Any]] | None:
        """Return every table whole, as TinyDB's own storages do."""
        tables = {name: dict(RowMapping(self, name).items()) for name in self.table_names()}
        return tables or None

    def write(self, data: dict[str, dict[Any, Any]]) -> None:
        """Replace everything, as TinyDB's own storages do (used by `drop_tables`)."""
        with self.transaction():
            for name in self.table_names():
                if name not in data:
                    self.connection.execute(f"DROP TABLE {sql_name(name)}")
                    self._known.discard(name)
                    self._made.discard(name)
            for name, rows in data.items():
                self.create(name)
                self.connection.execute(f"DELETE FROM {sql_name(name)}")
                self.connection.executemany(
                    f"INSERT INTO {sql_name(name)} VALUES (?, ?)",
                    [(int(key), json.dumps(doc)) for key, doc in rows.items()],
                )

    def forget_tables(self) -> None:
        """Look again which tables exist."""
        self._known.clear()
        self._made.clear()

    def transaction(self) -> _Transaction:
        """Return a context in which all changes are one durable commit; a nested one joins the outer one."""
        return _Transaction(self)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class _Transaction:
    def __init__(self, storage: SqliteStorage) -> None:
        self._storage, self._connection = storage, storage.connection
        self._outer = storage.connection.in_transaction

    def __enter__(self) -> None:
        if not self._outer:
            self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._outer:
            return
        is_committed = False
        try:
            if kind is None:
                self._connection.execute("COMMIT")
                is_committed = True
        finally:
            # where the disk is full SQLite rolls back itself, at times already in the middle of the transaction
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if not is_committed:
                # tables that were made in it are gone
                self._storage.forget_tables()


def indexed_fields(table: str) -> tuple[str, ...]:
    """Return the fields that a table can be asked by without reading every row, the most telling first."""
    return (*INDEXED_FIELDS, *MORE_INDEXES.get(table, ()))


class SqliteTable(Table):
    """A TinyDB table whose cost of insert, get and update does not grow with the table."""

    _fresh_id: int | None = None
    _storage: SqliteStorage

    def _read_table(self) -> dict[str, Mapping[str, Any]]:
        return RowMapping(self._storage, self._name)  # type: ignore[return-value]  # a read-only mapping is enough

    def _update_table(self, updater: Callable[[dict[int, Mapping[str, Any]]], None]) -> None:
        with self._storage.transaction():
            self._storage.create(self._name)
            rows = WriteThrough(RowMapping(self._storage, self._name))
            updater(rows)  # type: ignore[arg-type]  # TinyDB's updaters use the mapping interface only
            rows.flush(self._storage.connection, sql_name(self._name))
        self.clear_cache()

    def _get_next_id(self) -> int:
        if self._fresh_id is None or not self._storage.connection.in_transaction:
            highest = None
            if self._storage.exists(self._name):
                query = f"SELECT max(id) FROM {sql_name(self._name)}"
                highest = self._storage.connection.execute(query).fetchone()[0]
            self._fresh_id = (highest or 0) + 1
        next_id = self._fresh_id
        self._fresh_id += 1
        return next_id

    def search(self, cond: QueryLike) -> list[Document]:
        """Search for all documents matching a condition, through an index where the condition allows it.

        TinyDB's query cache is left out: another connection's commit, or a rollback, would make it lie.
        """
        narrowed = self._narrow(cond)
        return [doc for doc in (self if narrowed is None else narrowed) if cond(doc)]

    def get(self, cond: Any = None, doc_id: int | None = None, doc_ids: list[int] | None = None) -> Any:
        """Get one document by condition (through an index where it can be) or id, or several by ids."""
        if doc_id is None and doc_ids is None and cond is not None:
            narrowed = self._narrow(cond)
            if narrowed is not None:
                return next((doc for doc in narrowed if cond(doc)), None)
        return super().get(cond, doc_id=doc_id, doc_ids=doc_ids)

    def update(
        self,
        fields: Mapping[str, Any] | Callable[[MutableMapping[str, Any]], None],
        cond: QueryLike | None = None,
        doc_ids: Iterable[int] | None = None,
    ) -> list[int]:
        """Update the matching documents, found through an index where the condition allows it."""
        if doc_ids is None and cond is not None and self._equalities(cond):
            return super().update(fields, doc_ids=[doc.doc_id for doc in self.search(cond)])
        return super().update(fields, cond, doc_ids)

    def remove(self, cond: QueryLike | None = None, doc_ids: Iterable[int] | None = None) -> list[int]:
        """Remove the matching documents, found through an index where the condition allows it."""
        if doc_ids is None and cond is not None and self._equalities(cond):
            return super().remove(doc_ids=[doc.doc_id for doc in self.search(cond)])
        return super().remove(cond, doc_ids)

    def after(self, doc_id: int, limit: int = 1000) -> list[Document]:
        """Return up to `limit` documents with a higher id, in order: how a follower reads a log."""
        if not self._storage.exists(self._name):
            return []
        rows = self._storage.connection.execute(
            f"SELECT id, doc FROM {sql_name(self._name)} WHERE id > ? ORDER BY id LIMIT ?", (doc_id, limit)
        )
        return [Document(json.loads(text), key) for key, text in rows]

    def before(self, field: str, value: str, limit: int = 1000) -> list[Document]:
        """Return up to `limit` documents whose indexed text field is less than `value`, the least first."""
        if not self._storage.exists(self._name):
            return []
        column = self._column(field)
        rows = self._storage.connection.execute(
            f"SELECT id, doc FROM {sql_name(self._name)} WHERE {column} < ? ORDER BY {column} LIMIT ?", (value, limit)
        )
        return [Document(json.loads(text), key) for key, text in rows]

    def remove_before(self, field: str, value: str) -> None:
        """Remove the documents whose indexed text field is less than `value`."""
        if self._storage.exists(self._name):
            query = f"DELETE FROM {sql_name(self._name)} WHERE {self._column(field)} < ?"
            self._storage.connection.execute(query, (value,))
            self.clear_cache()

    def distinct(self, field: str) -> list[str]:
        """Return the different values of an indexed text field, without reading the documents."""
        if not self._storage.exists(self._name):
            return []
        column = self._column(field)
        rows = self._storage.connection.execute(
            f"SELECT DISTINCT {column} FROM {sql_name(self._name)} WHERE {column} IS NOT NULL"
        )
        return [str(value) for (value,) in rows]

    def count_by(self, field: str) -> dict[str, int]:
        """Return how many documents have each value of an indexed text field, without reading the documents."""
        if not self._storage.exists(self._name):
            return {}
        column = self._column(field)
        rows = self._storage.connection.execute(
            f"SELECT {column}, count(*) FROM {sql_name(self._name)} WHERE {column} IS NOT NULL GROUP BY {column}"
        )
        return {str(value): count for value, count in rows}

    def _column(self, field: str) -> str:
        assert field in indexed_fields(self._name), f"{self._name} has no index of {field}"
        return f"json_extract(doc, '$.{field}')"

    def with_prefix(self, field: str, prefix: str, limit: int = 20) -> list[Document]:
        """Return up to `limit` documents whose indexed text field starts with `prefix`."""
        if field not in INDEXED_FIELDS or not self._storage.exists(self._name):
            return []
        column = f"json_extract(doc, '$.{field}')"
        rows = self._storage.connection.execute(
            f"SELECT id, doc FROM {sql_name(self._name)} WHERE {column} >= ? AND {column} < ?"
            f" ORDER BY {column} LIMIT ?",
            (prefix, prefix + "\U0010ffff", limit),
        )
        return [Document(json.loads(text), key) for key, text in rows]

    def _equalities(self, cond: Any) -> list[tuple[str, Any]]:
        """Return the `(field, value)` equalities on indexed fields that every match of a TinyDB query fulfils."""
        found = []
        todo = [getattr(cond, "_hash", None)]
        while todo:
            part = todo.pop()
            equality = self._equality(part)
            if equality is not None:
                found.append(equality)
            elif isinstance(part, tuple) and part and part[0] == "and":
                todo.extend(part[1])
        return found

    def _alternatives(self, cond: Any) -> list[tuple[str, Any]]:
        """Return equalities on indexed fields of which every match of a TinyDB query fulfils at least one."""
        whole = getattr(cond, "_hash", None)
        if isinstance(whole, tuple) and whole and whole[0] == "or":
            parts = [self._equality(part) for part in whole[1]]
            return [] if None in parts else [part for part in parts if part is not None]
        equalities, fields = self._equalities(cond), indexed_fields(self._name)
        # one index serves; the most telling field first
        return [min(equalities, key=lambda pair: fields.index(pair[0]))] if equalities else []

    def _equality(self, part: Any) -> tuple[str, Any] | None:
        """Return `(field, value)` where a part of a TinyDB query is an equality on an indexed text field."""
        if not isinstance(part, tuple) or len(part) != 3 or part[0] != "==" or not isinstance(part[2], str):
            return None
        path = part[1]
        return (path[0], part[2]) if len(path) == 1 and path[0] in indexed_fields(self._name) else None

    def _narrow(self, cond: Any) -> list[Document] | None:
        alternatives = self._alternatives(cond)
        if not alternatives:
            return None
        if not self._storage.exists(self._name):
            return []
        where = " OR ".join(f"json_extract(doc, '$.{field}') = ?" for field, _ in alternatives)
        rows = self._storage.connection.execute(
            f"SELECT id, doc FROM {sql_name(self._name)} WHERE {where} ORDER BY id",
            [value for _, value in alternatives],
        )
        return [Document(json.loads(text), key) for key, text in rows.fetchall()]


class Database(TinyDB):
    """TinyDB with row storage."""

    table_class = SqliteTable
    default_storage_class = SqliteStorage  # type: ignore[assignment]  # TinyDB declares its own JSON storage

    def tables(self) -> set[str]:
        """Return the names of all tables, without reading their documents."""
        storage = self.storage
        assert isinstance(storage, SqliteStorage)
        return set(storage.table_names())
