"""What is past its age goes, what is open or needed stays, and the file gives its space back."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli.config import RetentionConfig
from nunet_cli.database.retention import AT_ONCE
from nunet_cli.database.store import Store, Transaction
from nunet_cli.network.blobs import Blobs
from nunet_cli.network.data import kept
from nunet_cli.network.data.kept import YOUNG
from nunet_cli.network.identity import new_identity
from nunet_cli.node.care import Care
from nunet_cli.records.allocations import ALLOCATIONS, Allocation
from nunet_cli.records.bids import BIDS, BidRecord, NodeID
from nunet_cli.records.contract_records import CONTRACTS, ContractRecord
from nunet_cli.records.documents import Document
from nunet_cli.records.events import EVENTS
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.messaging import GRANTS
from tests.conftest import add_bytes


async def test_what_goes_while_the_content_is_measured_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path) as store:
        blobs = Blobs(tmp_path, store)
        stays, size = await add_bytes(blobs, b"stays")
        goes, _ = await add_bytes(blobs, b"is renamed in the same moment")
        listed = kept._files

        def vanishing(folder: Path) -> list[Any]:
            found = list(listed(folder))
            blobs.path(goes).unlink(missing_ok=True)
            return found

        monkeypatch.setattr(kept, "_files", vanishing)
        assert blobs.size() == size
        os.utime(blobs.path(stays), (0, 0))
        assert blobs.unnamed(set()) == [(stays, size)]


LONG_AGO, NOW = "2020-01-01T00:00:00.000Z", "2999-01-01T00:00:00.000Z"
NOBODY = NodeID("", "", "", "did:key:z6Mk123456")


def job(name: str, state: str = "settled", at: str = LONG_AGO, spec: str = "{}", **fields: Any) -> Job:
    return Job(name, name, "did:r", spec, "b", at, at, state=state, **fields)


def contract(name: str, state: str, at: str, job_id: str, spec: str = "{}") -> ContractRecord:
    return ContractRecord(
        name, job_id, "provider", f"bid-{name}", "did:r", "did:p", "did:d", "did:o", "0", "volunteer", at, at,
        Document("{}"), state=state, spec=spec,
    )  # fmt: skip


def bid(name: str, job_id: str, direction: Any = "sent") -> BidRecord:
    return BidRecord(name, "bid", direction, "did:r", f"request-{name}", job_id, LONG_AGO, NOBODY)


def care(store: Store, home: Path) -> Care:
    return Care(store, Blobs(home, store), RetentionConfig())


async def test_what_ended_long_ago_goes_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    with Store(tmp_path) as store:

        def fill(t: Transaction) -> None:
            for row in (
                job("old"), job("young", at=NOW), job("open", "running"), job("disputed", "disputed"),
                job("group", children={"a": "child"}, kind="group"), job("child", parent="group"),
                job("held", children={"a": "busy"}, kind="group", state="failed"), job("busy", "running", parent="held"),
            ):  # fmt: skip
                t[JOBS].put(row)
                t[BIDS].put(bid(f"bid-of-{row.id}", row.id, "received"))
                t.save_event(row.id, "job_posted")
            t[CONTRACTS].put(contract("c-old", "settled", LONG_AGO, "old"))
            t[CONTRACTS].put(contract("c-open", "proved", LONG_AGO, "elsewhere"))
            t[CONTRACTS].put(contract("c-disputed", "disputed", LONG_AGO, "old"))
            t[ALLOCATIONS].put(
                Allocation("a-old", "elsewhere", "c-open", "did:r", "null", "completed", created_at=LONG_AGO)
            )
            t[ALLOCATIONS].put(Allocation("a-open", "j", "c-open", "did:r", "null", "running", created_at=LONG_AGO))
            t[BIDS].put(bid("bid-c-open", "elsewhere"))
            t[BIDS].put(bid("bid-nothing", "strange"))
            t.save_event("strange", "bid_sent")

        await store.change(fill)
        assert await care(store, tmp_path).preview() == 3
        done = await care(store, tmp_path).collect(tmp_path / "jobs.jsonl")
        assert {row.id for row in store[JOBS].all()} == {"young", "open", "disputed", "held", "busy"}
        assert {row.id for row in store[CONTRACTS].all()} == {"c-open", "c-disputed"}
        assert {row.id for row in store[ALLOCATIONS].all()} == {"a-open"}
        # what the contract rests on is kept with it
        assert store[BIDS].has("bid-c-open") == store[BIDS].has("bid-of-busy") == True  # noqa: E712
        assert not store[BIDS].has("bid-of-old")
        assert not store[BIDS].has("bid-nothing")
        assert {event.job_id for event in store[EVENTS].all()} == {"young", "open", "disputed", "held", "busy"}
        assert (done.rows.jobs, done.rows.contracts, done.rows.allocations) == (3, 1, 1)
        exported = (tmp_path / "jobs.jsonl").read_text().splitlines()
        assert len(exported) == 3
        assert '"c-old"' in next(line for line in exported if '"id":"old"' in line)
        # a second time there is nothing left to do
        assert (await care(store, tmp_path).collect()).rows == type(done.rows)()


async def test_what_has_to_stay_keeps_nothing_else(tmp_path: Path) -> None:
    """However much is old and still needed, what is not needed goes."""
    with Store(tmp_path) as store:

        def fill(t: Transaction) -> None:
            for n in range(AT_ONCE + 5):
                t[JOBS].put(job(f"held-{n}", children={"a": f"busy-{n}"}, kind="group", state="failed"))
                t[JOBS].put(job(f"busy-{n}", "disputed", parent=f"held-{n}"))
                t[CONTRACTS].put(contract(f"c-{n}", "settled", NOW, "elsewhere"))
                t[BIDS].put(bid(f"bid-c-{n}", "elsewhere"))
            t[JOBS].put(job("old"))
            t[BIDS].put(bid("bid-nothing", "strange"))

        await store.change(fill)
        done = await care(store, tmp_path).collect()
        assert (done.rows.jobs, done.rows.bids) == (1, 1)
        assert not store[JOBS].has("old")
        assert not store[BIDS].has("bid-nothing")
        assert store[BIDS].count() == AT_ONCE + 5


async def test_a_job_that_ran_for_long_is_as_old_as_its_end(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        blobs = Blobs(tmp_path, store)
        cid, _ = await add_bytes(blobs, b"what took a year")
        os.utime(blobs.path(cid), (0, 0))

        def fill(t: Transaction) -> None:
            made = contract("c", "settled", LONG_AGO, "elsewhere", cid)
            t[CONTRACTS].put(structs.replace(made, deadline=NOW))
            for n in range(AT_ONCE + 5):
                young = Allocation(f"a-{n}", "elsewhere", "c", "did:r", "null", "completed", created_at=LONG_AGO)
                t[ALLOCATIONS].put(structs.replace(young, ended_at=NOW))
            t[ALLOCATIONS].put(structs.replace(young, id="a-old", created_at="2020-01-02", ended_at="2020-01-03"))

        await store.change(fill)
        done = await Care(store, blobs, RetentionConfig()).collect()
        assert (done.rows.contracts, done.rows.allocations, done.blobs) == (0, 1, 0)
        assert not store[ALLOCATIONS].has("a-old")
        assert blobs.has(cid)


async def test_a_group_is_as_old_as_the_last_that_ended_in_it(tmp_path: Path) -> None:
    with Store(tmp_path) as store:

        def fill(t: Transaction) -> None:
            t[JOBS].put(job("group", children={"a": "child"}, kind="group", state="failed"))
            # its dispute was decided just now
            t[JOBS].put(job("child", "resolved", at=NOW, parent="group"))

        await store.change(fill)
        assert (await care(store, tmp_path).collect()).rows.jobs == 0
        assert store[JOBS].count() == 2


async def test_content_lives_as_long_as_something_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        blobs = Blobs(tmp_path, store)
        names = {}
        for what in ("young", "old", "open", "input", "nothing", "fresh"):
            names[what], _ = await add_bytes(blobs, what.encode())

        def fill(t: Transaction) -> None:
            t[JOBS].put(job("young", at=NOW, spec=f'{{"inputs":[{{"cid":"{names["young"]}"}}]}}'))
            t[JOBS].put(job("old", spec=f'{{"inputs":[{{"cid":"{names["old"]}"}}]}}'))
            t[CONTRACTS].put(contract("c1", "settled", LONG_AGO, "elsewhere", names["old"]))
            t[CONTRACTS].put(contract("c2", "proved", LONG_AGO, "elsewhere", names["open"]))
            t[CONTRACTS].put(contract("c3", "settled", NOW, "elsewhere", names["input"]))
            for name in names.values():
                blobs.grant(t, name, "did:r")

        await store.change(fill)
        housekeeper = Care(store, blobs, RetentionConfig(contracts=10**10))
        # what came just now may be named in a moment
        assert (await housekeeper.collect()).blobs == 0
        monkeypatch.setattr("nunet_cli.network.data.kept.YOUNG", -1.0)
        done = await housekeeper.collect()
        gone = {"old", "nothing", "fresh"}
        assert {what for what, cid in names.items() if not blobs.has(cid)} == gone
        assert done.blob_bytes == sum(map(len, gone))
        assert {row.cid for row in store[GRANTS].all()} == {names[what] for what in names.keys() - gone}
        assert blobs.total == sum(len(what) for what in names.keys() - gone)
        assert YOUNG > 600


async def test_content_that_is_used_again_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking for what nothing names and removing it, a new job may have begun to use some of it."""
    with Store(tmp_path) as store:
        blobs, long_ago, sender = Blobs(tmp_path, store), time.time() - 2 * YOUNG, new_identity().did
        names = {}
        for what in ("posted", "written", "fetched", "nothing"):
            names[what], _ = await add_bytes(blobs, what.encode())
            os.utime(blobs.path(names[what]), (long_ago, long_ago))
        find = blobs.unnamed
        (tmp_path / "posted").write_bytes(b"posted")

        def found_and_used(named: set[str]) -> list[tuple[str, int]]:
            found = find(named)
            assert {name for name, _ in found} == set(names.values())
            trio.from_thread.run(use)
            return found

        async def use() -> None:
            await blobs.add_file(tmp_path / "posted")
            await add_bytes(blobs, b"written")
            await blobs.fetch(sender, names["fetched"], 7)
            await store.change(lambda t: blobs.grant(t, names["posted"], "did:r"))

        # its sender has brought it before
        await store.change(lambda t: blobs.grant(t, names["fetched"], sender))
        monkeypatch.setattr(blobs, "unnamed", found_and_used)
        assert (await Care(store, blobs, RetentionConfig()).collect()).blobs == 1
        assert {what for what, cid in names.items() if blobs.has(cid)} == {"posted", "written", "fetched"}
        assert {row.cid for row in store[GRANTS].all()} == {names["posted"], names["fetched"]}


async def test_the_file_gives_its_space_back(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        await care(store, tmp_path).collect()
        few = (tmp_path / "store.db").stat().st_size

        def fill(t: Transaction) -> None:
            for n in range(2000):
                t[JOBS].put(structs.replace(job(f"job-{n}"), spec="x" * 2000, spec_cid=content_id(str(n).encode())))

        await store.change(fill)
        done = await care(store, tmp_path).collect()
        assert done.rows.jobs == 2000
        assert done.store_before > 4_000_000
        assert (tmp_path / "store.db").stat().st_size < few + 100_000
