"""The store's tables as TinyDB's: they do what TinyDB's own do."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tinydb import Query, TinyDB
from tinydb.storages import MemoryStorage

from nunet_cli.database.documents import Database, DocumentStorage
from nunet_cli.database.file import open_file
from nunet_cli.database.records import statements
from nunet_cli.records.table import Table

FIELDS = st.sampled_from(["id", "job_id", "colour"])
VALUES = st.sampled_from(["red", "green", "", "O'Brien", "ünï"]) | st.integers(-3, 3)
DOCUMENTS = st.dictionaries(FIELDS, VALUES, max_size=3)


class Row(msgspec.Struct, frozen=True):
    id: str | int | msgspec.UnsetType = msgspec.UNSET
    job_id: str | int | msgspec.UnsetType = msgspec.UNSET
    colour: str | int | msgspec.UnsetType = msgspec.UNSET


class Keyed(msgspec.Struct, frozen=True):
    id: str
    state: str = ""


ROWS = Table("t", Row, key="")
KEYED = Table("keyed", Keyed, indexes=("state",))


def database(path: Path | str = ":memory:") -> Database:
    return Database(open_file(Path(path), (ROWS, KEYED)), (ROWS, KEYED), storage=DocumentStorage)


class SameAsTinyDB(RuleBasedStateMachine):
    """Whatever is done to both, rows in SQLite and TinyDB's own storage hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = database(), TinyDB(storage=MemoryStorage)

    def both(self, act: Any) -> None:
        ours, theirs = act(self.ours.table("t")), act(self.theirs.table("t"))
        assert ours == theirs

    @rule(document=DOCUMENTS)
    def insert(self, document: dict[str, Any]) -> None:
        self.both(lambda table: table.insert(document))

    @rule(documents=st.lists(DOCUMENTS, max_size=4))
    def insert_multiple(self, documents: list[dict[str, Any]]) -> None:
        self.both(lambda table: table.insert_multiple(documents))

    @rule(field=FIELDS, value=VALUES, change=DOCUMENTS)
    def update(self, field: str, value: Any, change: dict[str, Any]) -> None:
        self.both(lambda table: table.update(change, Query()[field] == value))

    @rule(field=FIELDS, value=VALUES)
    def search(self, field: str, value: Any) -> None:
        self.both(lambda table: table.search(Query()[field] == value))
        self.both(lambda table: table.search((Query()[field] == value) & (Query().colour.exists())))
        self.both(lambda table: table.search((Query()[field] == value) | (Query().id == "red")))
        self.both(lambda table: table.search(~(Query()[field] == value)))
        self.both(lambda table: table.get(Query()[field] == value))

    @rule(field=FIELDS, value=VALUES)
    def remove(self, field: str, value: Any) -> None:
        # the highest id is kept, as TinyDB remembers the next id and a restarted store cannot
        keep = max((doc.doc_id for doc in self.theirs.table("t")), default=0)
        ids = [doc.doc_id for doc in self.theirs.table("t").search(Query()[field] == value) if doc.doc_id != keep]
        self.both(lambda table: table.remove(doc_ids=ids))

    @rule(document=DOCUMENTS, value=VALUES)
    def upsert(self, document: dict[str, Any], value: Any) -> None:
        self.both(lambda table: table.upsert(document, Query().id == value))

    @invariant()
    def same(self) -> None:
        self.both(lambda table: table.all())
        self.both(len)


TestSameAsTinyDB = SameAsTinyDB.TestCase
TestSameAsTinyDB.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_a_failed_change_leaves_nothing() -> None:
    table = database().table("t")
    table.insert({"id": "one"})

    def spoil(row: Any) -> None:
        row["id"] = "two"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        table.update(spoil)
    assert table.all() == [{"id": "one"}]


def test_what_does_not_fit_the_declared_struct_is_refused() -> None:
    table = database().table("keyed")
    with pytest.raises(msgspec.ValidationError, match="Expected `str`"):
        table.insert({"id": 3})
    assert table.all() == []


def test_a_query_on_a_declared_field_uses_its_index() -> None:
    ours = database()
    table = ours.table("keyed")
    table.insert_multiple({"id": f"job-{n}", "state": f"s{n}"} for n in range(50))
    connection = ours.storage.connection  # type: ignore[attr-defined]
    for field, query in (("id", Query().id == "job-3"), ("state", Query().state == "s3")):
        column = statements(KEYED).columns[field]
        sql = f"SELECT seq, doc FROM keyed WHERE {column} = ? ORDER BY seq"
        plans = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", ("x",))]
        assert any("USING INDEX" in plan for plan in plans), plans
        seen: list[str] = []
        connection.set_trace_callback(seen.append)
        assert table.search(query) == [{"id": "job-3", "state": "s3"}]
        connection.set_trace_callback(None)
        assert any(column in text for text in seen), seen
