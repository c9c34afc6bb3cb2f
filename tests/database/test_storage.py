import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tinydb import Query, TinyDB
from tinydb.storages import MemoryStorage

from nunet_cli.database.storage import Database

KEYS = st.sampled_from(["a", "b", "c", "d"])
FIELDS = st.sampled_from(["id", "job_id", "colour"])
VALUES = st.sampled_from(["red", "green", "", "O'Brien", "ünï"]) | st.integers(-3, 3)
DOCUMENTS = st.dictionaries(FIELDS, VALUES, max_size=3)


class SameAsTinyDB(RuleBasedStateMachine):
    """Whatever is done to both, rows in SQLite and TinyDB's own storage hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = Database(":memory:"), TinyDB(storage=MemoryStorage)

    def both(self, act: Any) -> None:
        assert act(self.ours.table("t")) == act(self.theirs.table("t"))

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


def test_a_failed_change_leaves_nothing(tmp_path: Path) -> None:
    db = Database(tmp_path / "x.db")
    table = db.table("t")
    table.insert({"id": "one"})

    def spoil(row: Any) -> None:
        row["id"] = "two"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        table.update(spoil)
    assert table.all() == [{"id": "one"}]


def test_equality_on_an_id_uses_the_index(tmp_path: Path) -> None:
    db = Database(tmp_path / "x.db")
    db.table("t").insert_multiple({"id": f"job-{n}"} for n in range(50))
    plans: list[str] = []
    connection = db.storage.connection  # type: ignore[attr-defined]
    sql = "SELECT id, doc FROM \"doc_t\" WHERE json_extract(doc, '$.id') = ? ORDER BY id"
    plans = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", ("job-3",))]
    assert any("USING INDEX" in plan for plan in plans), plans
    assert db.table("t").get(Query().id == "job-3") == {"id": "job-3"}


@pytest.mark.parametrize("table", ["inbox", "outbox", "ledger", "registered_contracts", "contracts"])
def test_what_peers_make_a_node_ask_reads_only_the_rows_it_is_about(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's question must not make a node read a whole table, which grows with everybody's work."""
    database = Database(":memory:")
    rows = database.table(table)
    rows.insert_multiple(
        {"id": f"{n}", "state": f"s{n}", "requester": f"d{n}", "payer": f"d{n}", "payee": f"e{n}", "to": f"d{n}",
         "expires_at": f"2030-01-{n:02}"} for n in range(1, 29)
    )  # fmt: skip
    read: list[str] = []
    real = json.loads
    monkeypatch.setattr("nunet_cli.database.storage.json.loads", lambda text: read.append(text) or real(text))
    query = Query()
    if table == "inbox":
        assert [row["id"] for row in rows.before("expires_at", "2030-01-02")] == ["1"]
    elif table == "outbox":
        assert len(rows.distinct("to")) == 28
        assert [row["id"] for row in rows.search(query.to == "d3")] == ["3"]
        rows.remove_before("expires_at", "2030-01-15")
        assert len(rows) == 14
    elif table == "ledger":
        assert [row["id"] for row in rows.search((query.payer == "d3") | (query.payee == "e5"))] == ["3", "5"]
    elif table == "registered_contracts":
        held = (query.requester == "d3") & (query.receipt == None)  # noqa: E711  # a TinyDB query
        assert len(rows.search(held)) == 0
    else:
        assert rows.count_by("state") == {f"s{n}": 1 for n in range(1, 29)}
    assert len(read) <= 2
