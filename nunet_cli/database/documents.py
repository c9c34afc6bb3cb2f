"""The store's tables as TinyDB's, through its own extension points (`Storage`, `Table`): documents, and its `Query`.

Each document is a row, decoded when it is asked for; what is written must fit the struct that the table declares. A
query that asks for equality on a declared field is narrowed by SQL before TinyDB's condition is applied to what is
left.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import msgspec
from tinydb import TinyDB
from tinydb.queries import QueryLike
from tinydb.storages import Storage
from tinydb.table import Document, Table

from nunet_cli.database.records import statements
from nunet_cli.records.reading import convert
from nunet_cli.records.table import Table as Declaration

_encode = msgspec.json.Encoder().encode


class DocumentStorage(Storage):
    """A TinyDB storage whose documents are the rows of declared tables.

    Args:
        connection: where they are.
        tables: the declarations.
    """

    def __init__(self, connection: sqlite3.Connection, tables: Iterable[Declaration[Any]]) -> None:
        self.connection = connection
        self.tables = {table.name: table for table in tables}

    def read(self) -> dict[str, dict[str, Any]] | None:
        """Return every table whole, as TinyDB's own storages do."""
        return {name: dict(Rows(self, name).items()) for name in self.tables}

    def write(self, data: dict[str, dict[Any, Any]]) -> None:
        """Replace everything, as TinyDB's own storages do (used by `drop_tables`)."""
        with self.changing():
            for name in self.tables:
                rows = {int(key): doc for key, doc in data.get(name, {}).items()}
                changed = Changed(Rows(self, name))
                changed.clear()
                changed.update(rows)
                changed.flush()

    def changing(self) -> _Changing:
        """Return a context in which all changes are one commit; where a transaction is under way it is part of that."""
        return _Changing(self.connection)


class _Changing:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection, self._is_outer = connection, not connection.in_transaction

    def __enter__(self) -> None:
        if self._is_outer:
            self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._is_outer and self._connection.in_transaction:
            self._connection.execute("COMMIT" if kind is None else "ROLLBACK")


class Rows(Mapping[str, Any]):
    """A table as the mapping that TinyDB reads: its number as text → document; rows are read when asked for."""

    def __init__(self, storage: DocumentStorage, name: str) -> None:
        self.storage, self.table = storage, storage.tables[name]
        self.sql = statements(self.table)

    def __getitem__(self, key: str) -> Any:
        found = self.run(f"SELECT doc FROM {self.sql.name} WHERE seq=?", (int(key),)).fetchone()
        if found is None:
            raise KeyError(key)
        return json.loads(found[0])

    def __iter__(self) -> Iterator[str]:
        return (str(key) for (key,) in self.run(f"SELECT seq FROM {self.sql.name} ORDER BY seq"))

    def __len__(self) -> int:
        return int(self.run(f"SELECT count(*) FROM {self.sql.name}").fetchone()[0])

    def items(self) -> Any:
        """Return the pairs in order."""
        return [(str(key), json.loads(doc)) for key, doc in self.find("", ())]

    def find(self, where: str, values: tuple[Any, ...]) -> list[tuple[int, Any]]:
        """Return number and JSON of the rows that a condition in SQL holds for."""
        return self.run(f"SELECT seq, doc FROM {self.sql.name}{where} ORDER BY seq", values).fetchall()

    def run(self, query: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.storage.connection.execute(query, values)


class Changed(MutableMapping[int, Any]):
    """The mapping that TinyDB's updaters change: reads through, remembers what it handed out, and writes that back."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._handed: dict[int, Any] = {}
        self._gone: set[int] = set()
        self._cleared = False

    def __getitem__(self, key: int) -> Any:
        if key in self._gone or (self._cleared and key not in self._handed):
            raise KeyError(key)
        if key not in self._handed:
            self._handed[key] = self._rows[str(key)]
        return self._handed[key]

    def __setitem__(self, key: int, value: Any) -> None:
        self._gone.discard(key)
        self._handed[key] = value

    def __delitem__(self, key: int) -> None:
        self[key]
        self._handed.pop(key, None)
        self._gone.add(key)

    def __iter__(self) -> Iterator[int]:
        stored = [] if self._cleared else [int(key) for key in self._rows if int(key) not in self._gone]
        return iter(list(dict.fromkeys([*stored, *self._handed])))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def clear(self) -> None:
        """Forget every row, without reading them."""
        self._handed.clear()
        self._gone.clear()
        self._cleared = True

    def flush(self) -> None:
        """Write what was handed out or set, each as the struct that the table declares, and delete what was removed."""
        rows, sql = self._rows, self._rows.sql
        if self._cleared:
            rows.run(f"DELETE FROM {sql.name}")
        for key in self._gone:
            rows.run(f"DELETE FROM {sql.name} WHERE seq=?", (key,))
        names = sql.insert[sql.insert.index("(") + 1 : sql.insert.index(")")]
        marks = ", ".join("?" * (names.count(",") + 2))
        for key, document in self._handed.items():
            row = convert(document, rows.table.kind)
            rows.run(
                f"INSERT OR REPLACE INTO {sql.name} (seq, {names}) VALUES ({marks})",
                (key, *sql.values(row), _encode(row)),
            )


class DocumentTable(Table):
    """A TinyDB table whose cost of insert, get and update does not grow with the table."""

    _storage: DocumentStorage
    _fresh_id: int | None = None

    def _read_table(self) -> dict[str, Mapping[str, Any]]:
        return Rows(self._storage, self._name)  # type: ignore[return-value]  # a read-only mapping is enough

    def _update_table(self, updater: Callable[[dict[int, Mapping[str, Any]]], None]) -> None:
        with self._storage.changing():
            changed = Changed(Rows(self._storage, self._name))
            updater(changed)  # type: ignore[arg-type]  # TinyDB's updaters use the mapping interface only
            changed.flush()
        self.clear_cache()

    def _get_next_id(self) -> int:
        if self._fresh_id is None or not self._storage.connection.in_transaction:
            rows = Rows(self._storage, self._name)
            self._fresh_id = (rows.run(f"SELECT max(seq) FROM {rows.sql.name}").fetchone()[0] or 0) + 1
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
        if doc_ids is None and cond is not None and self._alternatives(cond):
            return super().update(fields, doc_ids=[doc.doc_id for doc in self.search(cond)])
        return super().update(fields, cond, doc_ids)

    def remove(self, cond: QueryLike | None = None, doc_ids: Iterable[int] | None = None) -> list[int]:
        """Remove the matching documents, found through an index where the condition allows it."""
        if doc_ids is None and cond is not None and self._alternatives(cond):
            return super().remove(doc_ids=[doc.doc_id for doc in self.search(cond)])
        return super().remove(cond, doc_ids)

    def _narrow(self, cond: Any) -> list[Document] | None:
        alternatives = self._alternatives(cond)
        if not alternatives:
            return None
        rows = Rows(self._storage, self._name)
        where = " OR ".join(f"{rows.sql.columns[field]} = ?" for field, _ in alternatives)
        found = rows.find(f" WHERE {where}", tuple(value for _, value in alternatives))
        return [Document(json.loads(doc), number) for number, doc in found]

    def _alternatives(self, cond: Any) -> list[tuple[str, Any]]:
        """Return equalities on declared fields of which every match of a TinyDB query fulfils at least one."""
        whole = getattr(cond, "_hash", None)
        if isinstance(whole, tuple) and whole and whole[0] == "or":
            parts = [self._equality(part) for part in whole[1]]
            return [] if None in parts else [part for part in parts if part is not None]
        todo, found = [whole], []
        while todo:
            part = todo.pop()
            equality = self._equality(part)
            if equality is not None:
                found.append(equality)
            elif isinstance(part, tuple) and part and part[0] == "and":
                todo.extend(part[1])
        # one index serves; the key first, then in the order of the declaration
        fields = list(statements(self._storage.tables[self._name]).columns)
        key = self._storage.tables[self._name].key
        return [min(found, key=lambda pair: (pair[0] != key, fields.index(pair[0])))] if found else []

    def _equality(self, part: Any) -> tuple[str, Any] | None:
        """Return `(field, value)` where a part of a TinyDB query is an equality on a declared text field."""
        if not isinstance(part, tuple) or len(part) != 3 or part[0] != "==" or not isinstance(part[2], str):
            return None
        path = part[1]
        known = statements(self._storage.tables[self._name]).columns
        return (path[0], part[2]) if len(path) == 1 and path[0] in known else None


class Database(TinyDB):
    """TinyDB over declared tables."""

    table_class = DocumentTable
    default_storage_class = DocumentStorage  # type: ignore[assignment]  # TinyDB declares its own JSON storage

    def tables(self) -> set[str]:
        """Return the names of all tables, without reading their documents."""
        storage = self.storage
        assert isinstance(storage, DocumentStorage)
        return set(storage.tables)
