"""A table of the SQLite file as the mappings that TinyDB reads and its updaters change."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Protocol


class Holder(Protocol):
    """Who has the file open."""

    connection: sqlite3.Connection

    def exists(self, name: str) -> bool:
        """Say whether a table has been made."""


def sql_name(table: str) -> str:
    """Return the quoted name of the SQL table behind a TinyDB table."""
    return '"doc_' + table.replace('"', '""') + '"'


class RowMapping(Mapping[str, Any]):
    """A table as the mapping that TinyDB reads: document id as text → document, rows read when asked for."""

    def __init__(self, storage: Holder, name: str) -> None:
        self._storage, self._name = storage, name
        self._sql = sql_name(name)

    def __getitem__(self, key: str) -> Any:
        if not self._storage.exists(self._name):
            raise KeyError(key)
        row = self._storage.connection.execute(f"SELECT doc FROM {self._sql} WHERE id=?", (int(key),)).fetchone()
        if row is None:
            raise KeyError(key)
        return json.loads(row[0])

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self._rows())

    def __len__(self) -> int:
        if not self._storage.exists(self._name):
            return 0
        count: int = self._storage.connection.execute(f"SELECT count(*) FROM {self._sql}").fetchone()[0]
        return count

    def _rows(self) -> Iterator[tuple[str, str]]:
        if self._storage.exists(self._name):
            for key, text in self._storage.connection.execute(f"SELECT id, doc FROM {self._sql} ORDER BY id"):
                yield str(key), text

    def items(self) -> Any:
        """Return the pairs in order of their id."""
        return [(key, json.loads(text)) for key, text in self._rows()]


class WriteThrough(MutableMapping[int, Any]):
    """The mapping that TinyDB's updaters change: reads through, remembers what it handed out, and writes that back."""

    def __init__(self, rows: RowMapping) -> None:
        self._rows = rows
        self._handed: dict[int, Any] = {}
        self._before: dict[int, str] = {}
        self._gone: set[int] = set()
        self._cleared = False

    def __getitem__(self, key: int) -> Any:
        if key in self._gone or (self._cleared and key not in self._handed):
            raise KeyError(key)
        if key not in self._handed:
            doc = self._rows[str(key)]
            self._before[key] = json.dumps(doc)
            self._handed[key] = doc
        return self._handed[key]

    def __setitem__(self, key: int, value: Any) -> None:
        self._gone.discard(key)
        self._handed[key] = value
        self._before.pop(key, None)

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

    def flush(self, connection: sqlite3.Connection, table: str) -> None:
        """Write the changed rows and delete the removed ones."""
        if self._cleared:
            connection.execute(f"DELETE FROM {table}")
        connection.executemany(f"DELETE FROM {table} WHERE id=?", [(key,) for key in self._gone])
        texts = ((key, json.dumps(doc)) for key, doc in self._handed.items())
        changed = [(key, text) for key, text in texts if self._before.get(key) != text]
        connection.executemany(
            f"INSERT INTO {table} VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET doc=excluded.doc", changed
        )
