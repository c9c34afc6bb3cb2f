"""Lists of the API are read page by page, and nothing that is shown reads a whole table."""

import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from nunet_cli.api import dashboard
from nunet_cli.api.client import ApiClient
from nunet_cli.api.embedded import EmbeddedNode
from nunet_cli.api.openapi import ENDPOINTS
from nunet_cli.cli import top
from nunet_cli.database.records import Remembered
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import NotFoundError, NunetError
from nunet_cli.records.allocations import ALLOCATIONS, Allocation
from nunet_cli.records.bids import BIDS, BidRecord, NodeID
from nunet_cli.records.capability import PriceBid
from nunet_cli.records.contract_records import (
    COMPLETIONS,
    CONTRACTS,
    REGISTERED_CONTRACTS,
    STATEMENTS,
    Completion,
    ContractRecord,
    RegisteredContract,
    Statement,
)
from nunet_cli.records.contracts import Contract, Proof, Receipt, Terms
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.jobs import JOBS, Job
from tests.conftest import config

DID = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"
COUNT = 250
OTHER = "did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH"
RECORDED = 30
STATES = ("settled", "failed", "running", "cancelled", "settled")


def fill(t: Transaction) -> None:
    """A group, jobs below it and beside it, and beside each a bid, an allocation, a contract and what was paid."""
    t[JOBS].put(Job("job-group", "sweep", DID, "{}", "cid", "", "", state="running", kind="group"))
    for n in range(COUNT - 1):
        job_id, state, parent = f"job-{n:04}", STATES[n % 5], "job-group" if n < 3 else ""
        t[JOBS].put(Job(job_id, f"name-{n}", DID, "{}", "cid", "", "", state=state, parent=parent))
        t[BIDS].put(BidRecord(f"bid-{n:04}", "silent", "received", DID, "request", job_id, "", NodeID("", "", "", DID)))
        done = "completed" if n % 100 else "running"
        t[ALLOCATIONS].put(Allocation(f"allocation-{n:04}", job_id, "contract", DID, "null", state=done))
        amount = "0.5" if n % 2 else "-0.25"
        t[STATEMENTS].put(Statement(f"statement-{n:04}", "contract", job_id, "", "settled", amount))
        t[CONTRACTS].put(
            ContractRecord(
                f"contract-{n:04}", job_id, "requester", "bid", DID, DID, DID, DID, "0.5", "escrow", "", "",
                Document("", ()), state="settled",
            )
        )  # fmt: skip


def record(t: Transaction) -> None:
    """Contracts of a contract database: every third one has another provider, and every fifth another requester."""
    for n in range(RECORDED):
        requester, provider = OTHER if n % 5 == 0 else DID, OTHER if n % 3 == 0 else DID
        terms = Terms("cid", PriceBid(amount="1"), 60, "1", "attested", "2030-01-01T00:00:00.000Z")
        text = Contract(1, f"job-{n}", "bid", requester, provider, DID, DID, terms, "escrow", terms.deadline)
        proof = make_document(Proof(1, f"recorded-{n:04}", DID, "1", f"2029-01-01T00:00:{n:02}.000Z", "head"))
        receipt = make_document(
            Receipt(
                1, f"recorded-{n:04}", DID, "settled", requester, provider, "0.75", "0.25", "done", terms.deadline, "head"
            )
        )  # fmt: skip
        t[COMPLETIONS].put(
            Completion(
                f"recorded-{n:04}", f"job-{n}", requester, provider, proof, terms.deadline, terms.deadline,
                terms.deadline, verdict="verified" if n % 3 else "",
            )
        )  # fmt: skip
        t[REGISTERED_CONTRACTS].put(
            RegisteredContract(
                f"recorded-{n:04}", f"job-{n}", requester, provider, terms.deadline, make_document(text), proof,
                terms.deadline, state=("proved", "disputed", "settled")[n % 3], receipt=receipt if n % 3 == 2 else None,
            )
        )  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    """A node that only looks at a home in which much has happened."""
    home = tmp_path_factory.mktemp("home")

    async def prepare() -> None:
        with Store(home) as store:
            await store.change(fill)
            await store.change(record)

    trio.run(prepare)
    with EmbeddedNode(home, config(), read_only=True) as node:
        yield ApiClient(node.socket)


LISTS = {
    "/jobs": COUNT, "/bids": COUNT - 1, "/allocations": COUNT - 1, "/contracts": COUNT - 1,
    "/accounts/statements": COUNT - 1, "/registry/contracts": RECORDED,
    "/registry/completions": RECORDED,
}  # fmt: skip


@pytest.mark.parametrize("path", LISTS)
def test_pages_follow_each_other_and_together_are_the_list(client: ApiClient, path: str) -> None:
    whole = client.page(path, limit=0)
    ids = [row["id"] for row in whole.rows]
    assert (len(ids), len(set(ids)), whole.total, whole.more) == (LISTS[path], LISTS[path], LISTS[path], False)
    walked: list[str] = []
    more = True
    while more:
        page = client.page(path, limit=70, after=walked[-1] if walked else "")
        walked += [row["id"] for row in page.rows]
        more = page.more
        assert page.total == LISTS[path]
    assert walked == ids
    assert [row["id"] for row in client.page(path, limit=70, newest=True).rows] == ids[:-71:-1]
    assert [row["id"] for row in client.page(path, limit=3, after=ids[-3], newest=True).rows] == ids[-4:-7:-1]
    assert client.page(path, limit=1, after=ids[-1]) == ([], LISTS[path], False)


def test_a_page_says_how_much_there_is_and_where_the_next_one_is(client: ApiClient) -> None:
    headers, _ = client._exchange("GET", "/jobs?limit=2&state=open&newest=1", None, 20)
    assert headers["x-total-count"] == str(len(client.page("/jobs", limit=0, state="open").rows))
    target, _, relation = headers["link"].partition(">; ")
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(target.removeprefix("<")).query)
    last = client.page("/jobs", limit=2, state="open", newest=True).rows[-1]["id"]
    assert (relation, query) == (
        'rel="next"', {"limit": ["2"], "state": ["open"], "newest": ["1"], "after": [last]},
    )  # fmt: skip
    assert "link" not in client._exchange("GET", "/jobs?limit=1000", None, 20)[0]
    # without a word about it, a page has a hundred
    assert len(client.get("/jobs")) == 100


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=0", "`limit` must be 1 to 1000, not '0'"), ("limit=1001", "`limit` must be 1 to 1000"),
        ("limit=-1", "`limit` must be 1 to 1000"), ("limit=%C2%B2", "`limit` must be 1 to 1000"),
        ("limit=" + "9" * 5000, "`limit` must be 1 to 1000"), ("newest=yes", "`newest` must be 1 or 0, not 'yes'"),
        ("state=done", "`state`: there is no state 'done'"), ("state=", "`state`: there is no state ''"),
        ("sort=name", "GET /jobs knows no query parameter 'sort'"), ("parent=job-none", "no job 'job-none' here"),
        ("after=job-none", "there is no 'job-none' to go on after"),
        ("after=job-0", "there is no 'job-0' to go on after"),
    ],
)  # fmt: skip
def test_what_a_list_does_not_take_is_refused(client: ApiClient, query: str, message: str) -> None:
    with pytest.raises(NunetError) as caught:
        client.get(f"/jobs?{query}")
    assert caught.value.message.startswith(message)
    assert caught.value.exit_code == NotFoundError.exit_code


def test_no_resource_takes_a_parameter_that_it_does_not_know(client: ApiClient) -> None:
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{", "").replace("}", "")
        with pytest.raises(NunetError) as caught:
            client._call(endpoint.method, f"{path}?lmiit=5", None, 20)
        assert caught.value.code == "unknown_parameter", endpoint.path


def test_lists_are_narrowed_by_state_and_by_group(client: ApiClient) -> None:
    def found(**query: Any) -> list[dict[str, Any]]:
        return client.page("/jobs", limit=0, **query).rows

    assert {row["state"] for row in found(state="open")} == {"running"}
    assert {row["state"] for row in found(state="ended")} == {"settled", "failed", "cancelled"}
    assert {row["state"] for row in found(state="failed,cancelled")} == {"failed", "cancelled"}
    assert len(found(state="open")) + len(found(state="ended")) == COUNT
    assert [row["path"] for row in found(parent="job-group")] == ["sweep/name-0", "sweep/name-1", "sweep/name-2"]
    assert [row["path"] for row in found(parent="job-group", state="failed")] == ["sweep/name-1"]
    assert len(found(parent="")) == COUNT - 3
    assert {row["state"] for row in client.page("/allocations", limit=0, state="open").rows} == {"running"}
    assert len(client.page("/bids", limit=0, job="job-0007").rows) == 1


def test_the_operator_of_a_contract_database_sees_every_contract_by_party_and_state(client: ApiClient) -> None:
    def found(**query: Any) -> list[int]:
        return [int(row["id"].removeprefix("recorded-")) for row in client.page("/registry/contracts", **query).rows]

    theirs = [n for n in range(RECORDED) if n % 5 == 0 or n % 3 == 0]
    assert found(limit=0, party=OTHER) == theirs
    assert found(limit=4, party=OTHER, newest=True) == theirs[:-5:-1]
    assert found(limit=4, party=OTHER, after=f"recorded-{theirs[3]:04}") == theirs[4:8]
    assert found(limit=0, party=OTHER, state="open") == [n for n in theirs if n % 3 < 2]
    assert found(limit=0, state="disputed") == list(range(1, RECORDED, 3))
    open_ones = client.page("/registry/completions", limit=0, unverified=1).rows
    assert [row["id"] for row in open_ones] == [f"recorded-{n:04}" for n in range(0, RECORDED, 3)]
    assert {row["verdict"] for row in open_ones} == {None}
    proved, closed = client.get("/registry/contracts?state=proved&limit=1")[0], client.get("/registry/contracts")[2]
    assert (proved["recorded_at"], proved["paid"], proved["closed_at"]) == ("2029-01-01T00:00:00.000Z", None, None)
    assert (closed["paid"], closed["refunded"], closed["reason"], closed["deposit"]) == ("0.75", "0.25", "done", "1")
    with pytest.raises(NunetError):
        client.get("/registry/contracts?party=nobody")


def test_the_beginning_of_an_id_is_enough_to_go_on_after(client: ApiClient) -> None:
    assert client.page("/jobs", limit=1, after="job-gr").rows[0]["id"] == "job-0000"


def test_what_is_shown_is_read_and_what_has_ended_is_counted(
    client: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    decode = Remembered.read

    def counted(self: Any, seq: int, doc: Any) -> Any:
        read.append(self._name)
        return decode(self, seq, doc)

    monkeypatch.setattr(Remembered, "read", counted)
    status = client.get("/status")
    jobs = status["jobs"]
    assert (jobs["all"], jobs["open"], jobs["settled"], jobs["failed"]) == (COUNT, 51, 99, 50)
    assert jobs["states"] == {"running": 51, "settled": 99, "failed": 50, "cancelled": 50}
    assert (status["earned"], status["spent"]) == ("62", "31.25")
    assert (len(jobs["now"]), jobs["now"][-1]["id"]) == (20, "job-0247")
    assert read.count("jobs") <= 21
    assert "statements" not in read
    read.clear()
    shown = dashboard.look(client)
    assert [len(shown[name]) for name in ("jobs", "bids", "allocations", "contracts", "ledger")] == [40] * 5
    assert shown["jobs"][0]["id"] == "job-0248"
    assert shown["stages"] == jobs["states"]
    assert max(read.count(name) for name in set(read)) <= 2 * 41 + 21
    read.clear()
    shown = top.look(client)
    assert [row["state"] for row in shown["jobs"]].count("running") == 8
    assert [row["id"] for row in shown["allocations"]] == ["allocation-0000", "allocation-0100", "allocation-0200"]
    assert max(read.count(name) for name in set(read)) <= 9 + 9 + 21
    read.clear()
    client.get_bytes("/metrics")
    assert read.count("jobs") <= 21
