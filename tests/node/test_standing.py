"""A node stands: a full disk, an engine that raises, a row that cannot be read and a lost port end nothing but a task."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli.config import DockerConfig, ExecutorConfig
from nunet_cli.database.store import Store
from nunet_cli.errors import FatalError, NoSpaceError
from nunet_cli.executor.base import Probe
from nunet_cli.network.envelope import ErrorMessage
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator.changes import advance
from nunet_cli.records.allocations import ALLOCATIONS, Allocation
from nunet_cli.records.contract_records import STATEMENTS, Statement
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.machine import REQUESTER
from nunet_cli.records.messages import JobSync
from nunet_cli.records.messaging import OUTBOX, PEERS, PeerRecord
from tests.conftest import config, open_market, post

JOB = "name: x\nexecutor: {type: process, command: ['true']}\nprice: 1\nresources: {cpu: 0.1, memory: 16MiB, disk: 16MiB}\n"


@contextlib.asynccontextmanager
async def full_disk(node: Node) -> AsyncIterator[None]:
    """Let SQLite find no room for another page, as on a disk that is full."""
    connection = node.ctx.store._writer
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages}")
    try:
        yield
    finally:
        connection.execute("PRAGMA max_page_count=1073741823")


def filling(key: str, size: int = 2000) -> Statement:
    return Statement(key, "", "", "", "", "0", "x" * size)


async def fill(store: Store) -> None:
    """Use up the room that is left in the pages that there are."""
    with pytest.raises(NoSpaceError):
        for number in range(1000):
            await store.change(lambda t, n=number: t[STATEMENTS].put(filling(str(n))))  # type: ignore[misc]
    # and the last page of the log, to which each step of a job adds
    with pytest.raises(NoSpaceError):
        for _ in range(1000):
            await store.save_event("", "filling")


async def test_a_full_disk_is_one_error_and_nothing_is_half_written(tmp_path: Path) -> None:
    async with open_node(tmp_path, config()) as node, full_disk(node):
        await fill(node.ctx.store)
        before = node.ctx.store[STATEMENTS].count()
        with pytest.raises(NoSpaceError, match="cannot be written") as caught:
            await node.ctx.store.change(lambda t: [t[STATEMENTS].put(filling(f"more-{n}")) for n in range(50)])
        assert "free some space" in caught.value.hint
        assert node.ctx.store[STATEMENTS].count() == before


@pytest.mark.parametrize("several", ["", "type: batch\nbatch: {count: 2}\n"])
async def test_a_job_waits_while_the_requesters_disk_is_full_and_goes_on_afterwards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, several: str
) -> None:
    async with open_market(tmp_path) as m:
        job_id = await m.post(JOB + several)
        if several:
            # the disk is full when the group runs already, and its children are about to
            await m.requester.ctx.store.change(lambda t: advance(t, job_id, "begin", by=REQUESTER))
        with trio.fail_after(60):
            async with full_disk(m.requester):
                await fill(m.requester.ctx.store)
                m.requester.orchestrate(job_id)
                # a batch asks for all its items, and so it is what waits
                while job_id not in m.requester.ctx.progress.all():
                    await trio.sleep(0.01)
                assert m.requester.ctx.progress.all()[job_id].what == "waiting: the disk is full"
            while m.job(job_id).state != "settled":
                assert m.job(job_id).state != "failed", m.job(job_id).error
                await trio.sleep(0.05)
        assert f"job {job_id} waits" in caplog.text
        assert "free some space" in caplog.text


async def test_a_message_to_a_node_whose_disk_is_full_is_sent_again(tmp_path: Path) -> None:
    async with open_market(tmp_path) as m:

        async def note(message: Any) -> tuple[str, ErrorMessage]:
            await m.authority.ctx.store.change(lambda t: t[STATEMENTS].put(filling(message.body.contract_id, 5000)))
            return "error_message", ErrorMessage("done", "")

        m.authority.ctx.messenger.register("note", JobSync, note)
        m.requester.ctx.messenger.register("note", JobSync)
        outbox = m.requester.ctx.store[OUTBOX]
        with trio.fail_after(60):
            async with full_disk(m.authority):
                await fill(m.authority.ctx.store)
                await post(m.requester, m.authority.identity.did, "note", JobSync("n1"), lifetime=300)
                while not m.requester.ctx.messenger.outbox._pauses:
                    await trio.sleep(0.01)
                assert outbox.count() == 1
            while outbox.count():
                await trio.sleep(0.05)
        assert m.authority.ctx.store[STATEMENTS].has("n1")


async def test_of_a_message_that_was_never_taken_nothing_stays_when_it_expires(tmp_path: Path) -> None:
    async with open_market(tmp_path) as m:

        async def refuse(message: Any) -> None:
            raise NoSpaceError("the disk is full")

        m.authority.ctx.messenger.register("note", JobSync, refuse)
        m.requester.ctx.messenger.register("note", JobSync)
        outbox = m.requester.ctx.messenger.outbox
        await post(m.requester, m.authority.identity.did, "note", JobSync("n1"), lifetime=4)
        with trio.fail_after(60):
            while not outbox._pauses:
                await trio.sleep(0.01)
            while m.requester.ctx.store[OUTBOX].count() or outbox._pauses:
                await trio.sleep(0.05)


def damaged(_: Any) -> None:
    """Find out, in a change, that the file is damaged."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    raise error


async def test_a_damaged_store_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_node(tmp_path, config()) as node:
            await node.ctx.store.change(lambda t: t[STATEMENTS].put(filling("x")))
            node.supervisor.start_soon(node.ctx.nursery, "reading", node.ctx.store.change, damaged)
            await trio.sleep_forever()
    assert caught.group_contains(FatalError)


async def test_a_store_that_a_message_finds_damaged_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught, trio.fail_after(20):
        async with open_node(tmp_path, config()) as node:

            async def behaviour(_: Any) -> Any:
                return damaged

            node.ctx.messenger.register("job_sync", JobSync, behaviour)
            await post(node, node.identity.did, "job_sync", JobSync("c"), lifetime=60)
            await trio.sleep_forever()
    assert caught.group_contains(FatalError)


async def test_a_start_survives_what_an_earlier_run_left(tmp_path: Path) -> None:
    """One row that cannot be read stops neither the start nor the jobs of other rows."""
    async with open_node(tmp_path, config()) as node:

        def spoil(t: Any) -> None:
            t[ALLOCATIONS].put(Allocation("allocation-1", "j", "gone", "did", "null", state="running"))
            t[JOBS].put(Job("job-1", "x", "did", "not a specification", "b", "", "", state="running"))
            t[PEERS].put(PeerRecord("nobody", "did", ("a..b:80",)))
            t[PEERS].put(PeerRecord("somebody", "did", ("host:80",), source="mdns"))

        await node.ctx.store.change(spoil)
    async with open_node(tmp_path, config()) as node:
        assert node.ctx.transport.port


class Moody:
    """An executor whose engine raises what nobody foresaw."""

    async def probe(self) -> Probe:
        raise ZeroDivisionError


async def test_an_engine_that_cannot_be_asked_hides_no_other(tmp_path: Path) -> None:
    # a busy machine's Docker Engine answers once, and then not in time
    without = ExecutorConfig(docker=DockerConfig(enabled=False))
    async with open_node(tmp_path, config(executor=without)) as node:
        before = dict(node.ctx.available_executors)
        node.ctx.executors["moody"] = Moody()  # type: ignore[assignment]
        await node.probe_executors()
        assert node.ctx.available_executors == before
        assert node.supervisor.failures["probing moody: ZeroDivisionError"] == 1


async def test_an_allocation_that_raises_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nunet_cli.node import node as node_module

    async def breaks(*_: Any, **__: Any) -> None:
        raise PermissionError("cannot stop container: permission denied")

    monkeypatch.setattr(node_module, "run_allocation", breaks)
    async with open_market(tmp_path) as m:
        job_id = await m.post(JOB)
        m.requester.orchestrate(job_id)
        with trio.fail_after(60):
            while not m.provider.supervisor.failures:
                await trio.sleep(0.02)
        assert "allocation: PermissionError" in m.provider.supervisor.failures
        # the provider still answers
        assert await m.requester.ctx.transport.ping(m.provider.identity.public_key) >= 0


async def test_a_job_that_raises_ends_alone_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nunet_cli.groups import orchestrate

    async def breaks(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(orchestrate, "orchestrate_job", breaks)
    async with open_market(tmp_path) as m:
        job_id = await m.post(JOB)
        m.requester.orchestrate(job_id)
        with trio.fail_after(20):
            # counted after it was told
            while not m.requester.supervisor.failures:
                await trio.sleep(0.01)
        assert "job_stuck" in m.event_types(job_id)
        assert m.requester.supervisor.failures["job: ZeroDivisionError"] == 1
