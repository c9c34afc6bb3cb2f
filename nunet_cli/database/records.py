"""The rows of one table as structs: each operation is one SQL statement, each row is decoded once.

A row is its JSON beside the columns by which it is found: its number, its key, and the fields that its table declares.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from nunet_cli.errors import NodeError, NotFoundError, UsageError
from nunet_cli.records.reading import plain_decoder
from nunet_cli.records.table import Table

R = TypeVar("R", bound=msgspec.Struct)
_encode = msgspec.json.Encoder().encode
HIGHEST = "\U0010ffff"
# of each table: some megabytes in all
MOST_REMEMBERED, LARGEST_REMEMBERED = 256, 16 * 1024


def quoted(name: str) -> str:
    """Return a name as SQL takes any."""
    return '"' + name.replace('"', '""') + '"'


class Remembered:
    """The rows of a table that are read again and again, such as those of a stage of a job, decoded once.

    A row is kept when it is read a second time: what is looked through once would only push others out. It counts for
    the very bytes that it was made of, so there is nothing that could be out of date.

    Args:
        name: of the table.
        decode: what makes a row of its JSON.
    """

    def __init__(self, name: str, decode: Callable[[Any], Any]) -> None:
        self._name, self._decode = name, decode
        self._seen: set[int] = set()
        self._kept: dict[int, tuple[Any, Any]] = {}

    def read(self, seq: int, doc: Any) -> Any:
        """Return a row.

        Args:
            seq: its number.
            doc: its JSON.

        Raises:
            NodeError: it does not fit the struct.
        """
        known = self._kept.get(seq)
        if known is not None and known[0] == doc:
            return known[1]
        try:
            row = self._decode(doc)
        except msgspec.MsgspecError as error:
            # whoever changes a row by hand leaves a text
            text = doc[:80] if isinstance(doc, str) else bytes(doc)[:80].decode(errors="replace")
            raise NodeError(
                f"a row of {self._name} in the store cannot be read: {error} ({text}…)", code="bad_row",
                hint="nunet doctor checks the store; nunet node restore puts a backup in its place",
            ) from None  # fmt: skip
        # all are forgotten at once, which is as good on the whole as one by one, and safe beside another thread
        if seq in self._seen:
            if len(doc) <= LARGEST_REMEMBERED:
                if len(self._kept) >= MOST_REMEMBERED:
                    self._kept = {}
                self._kept[seq] = (doc, row)
        else:
            if len(self._seen) >= MOST_REMEMBERED:
                self._seen = set()
            self._seen.add(seq)
        return row


class Statements:
    """The SQL of one table, made once."""

    def __init__(self, table: Table[Any]) -> None:
        name = self.name = quoted(table.name)
        columns = [*(["key"] if table.key else []), *(f"f_{field}" for field in table.indexes)]
        self.columns = {field: quoted(f"f_{field}") for field in table.indexes}
        if table.key:
            self.columns[table.key] = '"key"'
        listed = ", ".join(map(quoted, [*columns, "doc"]))
        places = ", ".join("?" * (len(columns) + 1))
        update = ", ".join(f"{quoted(c)}=excluded.{quoted(c)}" for c in [*columns[1:], "doc"])
        conflict = f' ON CONFLICT ("key") DO UPDATE SET {update}' if table.key else ""
        self.insert = f"INSERT INTO {name} ({listed}) VALUES ({places})"
        self.put = self.insert + conflict
        self.get = f'SELECT seq, doc FROM {name} WHERE "key"=?'
        self.after = f"SELECT seq, doc FROM {name} WHERE seq>? ORDER BY seq LIMIT ?"
        self.by = {
            field: f"SELECT seq, doc FROM {name} WHERE {column}=? ORDER BY seq LIMIT ?"
            for field, column in self.columns.items()
        }
        self.remove = f'DELETE FROM {name} WHERE "key"=?'
        fields = [*([table.key] if table.key else []), *table.indexes]
        values: Callable[[Any], Any] = attrgetter(*fields) if fields else lambda _row: ()
        self.values: Callable[[Any], tuple[Any, ...]] = (
            values if len(fields) != 1 else lambda row: (values(row),)  # attrgetter of one gives no tuple
        )
        self.decode = plain_decoder(table.kind)
        self.remembered = Remembered(table.name, self.decode)

    def schema(self, table: Table[Any]) -> list[str]:
        """Return what makes the table."""
        columns = ["seq INTEGER PRIMARY KEY", *(['"key" TEXT NOT NULL UNIQUE'] if table.key else [])]
        columns += [quoted(f"f_{field}") for field in table.indexes]
        made = [f"CREATE TABLE IF NOT EXISTS {self.name} ({', '.join(columns)}, doc BLOB NOT NULL)"]
        for fields in (*((field,) for field in table.indexes), *table.together):
            index, names = quoted(f"{table.name}_{'_'.join(fields)}"), ", ".join(quoted(f"f_{name}") for name in fields)
            made.append(f"CREATE INDEX IF NOT EXISTS {index} ON {self.name} ({names})")
        return made


@cache
def statements(table: Table[Any]) -> Statements:
    """Return the SQL of a table."""
    return Statements(table)


class Page(NamedTuple, Generic[R]):
    """Some rows of a list; `total` counts the whole list, `after` is the key to go on with, empty at its end."""

    rows: list[R]
    total: int
    after: str


class Records(Generic[R]):
    """One table, as a transaction or a reader sees it.

    Args:
        connection: where it is.
        table: its declaration.
    """

    __slots__ = ("_connection", "_sql", "table")

    def __init__(self, connection: sqlite3.Connection, table: Table[R]) -> None:
        self._connection, self.table = connection, table
        self._sql = statements(table)

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[R]:
        # one by one: the JSON of one is let go of before the next is read
        read = self._sql.remembered.read
        return [read(seq, doc) for seq, doc in self._connection.execute(query, values)]

    # -- one row -----------------------------------------------------------------------------------------------------

    def get(self, key: str) -> R | None:
        """Return the row with this key, or None."""
        found = self._connection.execute(self._sql.get, (key,)).fetchone()
        return None if found is None else self._sql.remembered.read(*found)

    def one(self, key: str) -> R:
        """Return the row with this key.

        Raises:
            NotFoundError: there is none.
        """
        found = self.get(key)
        if found is None:
            raise NotFoundError(f"there is no {key!r} among the {self.table.name.replace('_', ' ')} here")
        return found

    def has(self, key: str) -> bool:
        """Say whether there is a row with this key, without reading it."""
        return self._connection.execute(f"SELECT 1 FROM {self._sql.name} WHERE key=?", (key,)).fetchone() is not None

    def put(self, row: R) -> None:
        """Insert a row, or replace the one with the same key."""
        self._connection.execute(self._sql.put, (*self._sql.values(row), _encode(row)))

    def append(self, row: R) -> int:
        """Add a row; return its number."""
        done = self._connection.execute(self._sql.insert, (*self._sql.values(row), _encode(row)))
        assert done.lastrowid is not None
        return done.lastrowid

    def remove(self, key: str) -> bool:
        """Remove the row with this key; return whether there was one."""
        return self._connection.execute(self._sql.remove, (key,)).rowcount > 0

    def resolve(self, prefix: str, *, what: str, field: str = "") -> R:
        """Return the row whose key, or other text field, starts with an unambiguous prefix.

        Raises:
            NotFoundError: no row, or an empty prefix.
            UsageError: several rows; the message names them.
        """
        field = field or self.table.key
        rows = self.with_prefix(prefix, field=field) if prefix else []
        if not rows:
            raise NotFoundError(f"no {what} {prefix!r} here")
        exact = [row for row in rows if getattr(row, field) == prefix]
        if not exact and len(rows) > 1:
            names = ", ".join(getattr(row, field)[:16] for row in rows[:5])
            raise UsageError(f"{what} {prefix!r} is ambiguous: {names}{', …' if len(rows) > 5 else ''}")
        return (exact or rows)[0]

    # -- several -----------------------------------------------------------------------------------------------------

    def by(self, field: str, *values: Any, limit: int = -1) -> list[R]:
        """Return the rows whose indexed field has one of the values, in the order in which they were made."""
        if len(values) == 1:
            return self._rows(self._sql.by[field], (*values, limit))
        where = f"{self._sql.columns[field]} IN ({','.join('?' * len(values))})"
        return self._rows(f"SELECT seq, doc FROM {self._sql.name} WHERE {where} ORDER BY seq LIMIT ?", (*values, limit))

    def first(self, field: str, value: Any) -> R | None:
        """Return the first row whose indexed field has this value, or None."""
        return next(iter(self.by(field, value, limit=1)), None)

    def latest(self, field: str | tuple[str, ...], value: Any, limit: int = 1) -> list[R]:
        """Return the last rows whose indexed field, or one of several, has this value, the latest first."""
        if isinstance(field, str):
            query = (
                f"SELECT seq, doc FROM {self._sql.name} WHERE {self._sql.columns[field]}=? ORDER BY seq DESC LIMIT ?"
            )
            return self._rows(query, (value, limit))
        # each of them by its own index, and no further than is asked for
        parts = " UNION ".join(
            f"SELECT * FROM (SELECT seq, doc FROM {self._sql.name} WHERE {self._sql.columns[name]}=?"
            " ORDER BY seq DESC LIMIT ?)"
            for name in field
        )
        query = f"SELECT seq, doc FROM ({parts}) ORDER BY seq DESC LIMIT ?"
        return self._rows(query, (*(value, limit) * len(field), limit))

    def all(self) -> Iterator[R]:
        """Return every row, in the order in which they were made; read a thousand at a time."""
        last = 0
        while rows := self.after(last):
            yield from (row for _, row in rows)
            last = rows[-1][0]

    def after(self, seq: int, limit: int = 1000, **where: Any) -> list[tuple[int, R]]:
        """Return up to `limit` rows with a higher number, with their numbers: how a follower reads a log."""
        query = self._sql.after
        if where:
            tests = [f"{self._sql.columns[field]}=?" for field in where]
            query = f"SELECT seq, doc FROM {self._sql.name}{_where(['seq>?', *tests])} ORDER BY seq LIMIT ?"
        read = self._sql.remembered.read
        found = self._connection.execute(query, (seq, *where.values(), limit))
        return [(number, read(number, doc)) for number, doc in found]

    def below(self, field: str, value: str, limit: int = 1000, **where: Any) -> list[R]:
        """Return up to `limit` rows whose indexed text field is less than a value, the least first.

        Args:
            field: the field.
            value: what it is less than.
            limit: at most how many rows.
            where: what other indexed fields must be; a tuple for one of several.
        """
        column = self._sql.columns[field]
        tests, values = self._tests(where)
        query = f"SELECT seq, doc FROM {self._sql.name}{_where([f'{column}<?', *tests])} ORDER BY {column} LIMIT ?"
        return self._rows(query, (value, *values, limit))

    def _tests(self, where: dict[str, Any]) -> tuple[list[str], list[Any]]:
        """Return the conditions in SQL for what indexed fields must be, and their values."""
        tests: list[str] = []
        values: list[Any] = []
        for names, value in where.items():
            several = value if isinstance(value, tuple) else (value,)
            found = [f"{self._sql.columns[name]} IN ({','.join('?' * len(several))})" for name in names.split("|")]
            if len(found) > 1:
                # each of them by its own index
                rows = " UNION ALL ".join(f"SELECT seq FROM {self._sql.name} WHERE {test}" for test in found)
                tests.append(f"seq IN ({rows})")
            else:
                tests += found
            values += several * len(found)
        return tests, values

    def with_prefix(self, prefix: str, *, field: str = "", limit: int = 20) -> list[R]:
        """Return up to `limit` rows whose key, or another indexed text field, starts with a prefix."""
        column = self._sql.columns[field or self.table.key]
        query = f"SELECT seq, doc FROM {self._sql.name} WHERE {column}>=? AND {column}<? ORDER BY {column} LIMIT ?"
        return self._rows(query, (prefix, prefix + HIGHEST, limit))

    def page(self, limit: int, after: str = "", *, newest: bool = False, **where: Any) -> Page[R]:
        """Return one page of a list in the order in which its rows were made.

        Args:
            limit: at most how many rows.
            after: the key of the last row of the page before; empty for the first page.
            newest: begin with the latest.
            where: what indexed fields must be; a tuple for one of several; `a|b` for what one of two fields must be.

        Raises:
            NotFoundError: there is no row `after`.
        """
        tests, values = self._tests(where)
        total = self._connection.execute(
            f"SELECT count(*) FROM {self._sql.name}{_where(tests)}", tuple(values)
        ).fetchone()[0]
        if after:
            found = self._connection.execute(f'SELECT seq FROM {self._sql.name} WHERE "key"=?', (after,)).fetchone()
            if found is None:
                raise NotFoundError(f"there is no {after!r} to go on after")
            tests.append("seq<?" if newest else "seq>?")
            values.append(found[0])
        order = "DESC" if newest else "ASC"
        query = f"SELECT seq, doc FROM {self._sql.name}{_where(tests)} ORDER BY seq {order} LIMIT ?"
        rows = self._rows(query, (*values, limit + 1))
        more = len(rows) > limit
        rows = rows[:limit]
        return Page(rows, int(total), getattr(rows[-1], self.table.key) if more and rows else "")

    def count(self, field: str = "", *values: Any) -> int:
        """Return how many rows there are, or how many have one of the values in an indexed field."""
        where = f" WHERE {self._sql.columns[field]} IN ({','.join('?' * len(values))})" if field else ""
        return int(self._connection.execute(f"SELECT count(*) FROM {self._sql.name}{where}", values).fetchone()[0])

    def count_by(self, field: str, **where: Any) -> dict[str, int]:
        """Return how many rows have each value of an indexed field, without reading them; `where` as for a page."""
        column = self._sql.columns[field]
        tests, values = self._tests(where)
        chosen = _where([f"{column} IS NOT NULL", *tests])
        query = f"SELECT {column}, count(*) FROM {self._sql.name}{chosen} GROUP BY {column}"
        return {str(value): count for value, count in self._connection.execute(query, tuple(values))}

    def distinct(self, field: str) -> list[str]:
        """Return the different values of an indexed field, without reading the rows."""
        column = self._sql.columns[field]
        query = f"SELECT DISTINCT {column} FROM {self._sql.name} WHERE {column} IS NOT NULL"
        return [str(value) for (value,) in self._connection.execute(query)]

    def remove_below(self, field: str, value: str, limit: int = -1) -> int:
        """Remove the rows whose indexed text field is less than a value; return how many."""
        column = self._sql.columns[field]
        chosen = f"SELECT seq FROM {self._sql.name} WHERE {column}<? LIMIT ?"
        return self._connection.execute(
            f"DELETE FROM {self._sql.name} WHERE seq IN ({chosen})", (value, limit)
        ).rowcount

    def remove_numbers(self, numbers: Iterable[int]) -> None:
        """Remove rows by their numbers."""
        self._connection.executemany(f"DELETE FROM {self._sql.name} WHERE seq=?", ((number,) for number in numbers))

    def texts(self, **where: Any) -> Iterator[bytes]:
        """Return the JSON of rows, undecoded: to look for something in many."""
        tests, values = self._tests(where)
        for (doc,) in self._connection.execute(f"SELECT doc FROM {self._sql.name}{_where(tests)}", tuple(values)):
            yield doc if isinstance(doc, bytes) else doc.encode()

    def texts_from(self, field: str, value: str) -> Iterator[bytes]:
        """Return the JSON of the rows whose indexed text field is at least a value, undecoded."""
        query = f"SELECT doc FROM {self._sql.name} WHERE {self._sql.columns[field]}>=?"
        for (doc,) in self._connection.execute(query, (value,)):
            yield doc if isinstance(doc, bytes) else doc.encode()

    def remove_by(self, field: str, *values: Any) -> int:
        """Remove the rows whose indexed field has one of the values; return how many."""
        where = f"{self._sql.columns[field]} IN ({','.join('?' * len(values))})"
        return self._connection.execute(f"DELETE FROM {self._sql.name} WHERE {where}", values).rowcount


def _where(tests: list[str]) -> str:
    return f" WHERE {' AND '.join(tests)}" if tests else ""
