import sqlite3
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from tinydb import Query

from nunet_cli.database.store import Store, Transaction, lock_owner, owned
from nunet_cli.errors import NodeError
from nunet_cli.records.books import ACCOUNTS, Account
from nunet_cli.records.contract_records import BALANCES, Balance
from nunet_cli.records.events import EVENTS
from nunet_cli.records.table import Table
from tests.together import held


def account(name: str, balance: int = 0) -> Account:
    return Account(name, balance)


async def test_a_change_is_whole_or_not_at_all(tmp_path: Path) -> None:
    with Store(tmp_path) as store:

        def half(t: Transaction) -> None:
            t[ACCOUNTS].put(account("a"))
            raise RuntimeError

        with pytest.raises(RuntimeError):
            await store.change(half)
        assert store[ACCOUNTS].count() == 0
        await store.change(lambda t: t[ACCOUNTS].put(account("a", 5)))
    with Store(tmp_path) as store:
        assert store[ACCOUNTS].get("a") == account("a", 5)


async def test_a_cancelled_change_is_done_or_not_begun(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for number in range(20):
            with trio.move_on_after(0.0005 * number):
                name = str(number)
                await store.change(lambda t, n=name: (t[ACCOUNTS].put(account(n)), t[BALANCES].put(Balance(n, "", ""))))  # type: ignore[misc]
        assert {row.id for row in store[ACCOUNTS].all()} == {row.id for row in store[BALANCES].all()}


async def test_changes_that_are_ready_together_share_a_commit(tmp_path: Path) -> None:
    """Each is whole or not at all for itself, sees what those before it wrote, and is on disk when it returns."""
    with Store(tmp_path) as store:
        done: list[str] = []

        async def add(name: str, *, fails: bool = False) -> None:
            def change(t: Transaction) -> int:
                t[ACCOUNTS].put(account(name))
                if fails:
                    raise RuntimeError(name)
                t.then(lambda: done.append(name))
                return t[ACCOUNTS].count()

            try:
                counts[name] = await store.change(change)
            except RuntimeError as error:
                assert str(error) == name
            assert store[ACCOUNTS].has(name) != fails

        counts: dict[str, int] = {}
        commits: list[str] = []
        store._writer.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
        async with held(store) as release, trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(partial(add, str(n), fails=n % 3 == 1))
                await trio.testing.wait_all_tasks_blocked()
            release()
        assert len(commits) <= 2
        assert done == ["0", "2", "3", "5", "6", "8", "9"]
        assert sorted(counts.values()) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("raised", [None, NodeError("in other words")])
@pytest.mark.parametrize("together", [1, 3])
async def test_what_was_undone_beneath_a_change_is_reported_to_all(
    tmp_path: Path, raised: NodeError | None, together: int
) -> None:
    """On some errors SQLite undoes the whole transaction; nobody hears that all is well, whatever the change says."""

    def undone(t: Transaction) -> None:
        t[ACCOUNTS].put(Account("undone", 1))
        t._connection.execute("ROLLBACK")
        if raised is not None:
            raise raised

    with Store(tmp_path) as store:
        failed: list[Exception] = []

        async def change(n: int) -> None:
            try:
                await store.change(undone if n == together // 2 else lambda t: t[ACCOUNTS].put(Account(f"{n}", n)))
            except (NodeError, sqlite3.OperationalError) as error:
                failed.append(error)

        async with held(store) as go_on, trio.open_nursery() as nursery:
            for n in range(together):
                nursery.start_soon(change, n)
            await trio.testing.wait_all_tasks_blocked()
            go_on()
        assert len(failed) == together
        assert store[ACCOUNTS].count() == 0
        await store.change(lambda t: t[ACCOUNTS].put(Account("after", 1)))
        assert store[ACCOUNTS].count() == 1


async def test_what_only_looks_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        await store.change(lambda t: t[ACCOUNTS].put(account("a")))
        monkeypatch.setattr("nunet_cli.database.store.alone_in_thread", None)
        assert await store.change(lambda t: t[ACCOUNTS].count()) == 1


async def test_many_changes_at_once_are_all_there(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            for n in range(300):
                nursery.start_soon(store.change, lambda t, n=n: t[ACCOUNTS].put(account(str(n))))
        assert store[ACCOUNTS].count() == 300


async def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(NodeError, match="written by a newer version"):
            Store(tmp_path, read_only=read_only)


async def test_damage_is_found_when_a_store_that_was_not_closed_is_opened(tmp_path: Path) -> None:
    script = """if True:
        import os, sys, trio
        from pathlib import Path
        from nunet_cli.database.store import Store
        from nunet_cli.records.books import ACCOUNTS, Account
        async def main():
            store = Store(Path(sys.argv[1]))
            for n in range(2000):
                await store.change(lambda t: t[ACCOUNTS].put(Account(str(n) * 50, n)))
            os._exit(0)
        trio.run(main)"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert (tmp_path / "store.db-wal").stat().st_size
    with (tmp_path / "store.db").open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * 4096 * 3)
    (tmp_path / "store.db-wal").write_bytes((tmp_path / "store.db-wal").read_bytes()[:100])
    with pytest.raises(NodeError, match=r"is damaged|cannot be opened") as caught:
        Store(tmp_path)
    assert "restore" in caught.value.hint


def test_one_process_owns_a_home_and_the_other_is_told_who(tmp_path: Path) -> None:
    with owned(tmp_path, "a node"):
        assert lock_owner(tmp_path)["what"] == "a node"
        with pytest.raises(NodeError, match=r"in use by a node \(pid \d+\)"), owned(tmp_path, "another"):
            pass
    with owned(tmp_path, "again"):
        pass


async def test_acknowledged_changes_survive_kill_9(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, trio
        from pathlib import Path
        from nunet_cli.database.store import Store
        from nunet_cli.records.books import ACCOUNTS, Account
        async def main():
            with Store(Path(sys.argv[1])) as store:
                for n in range(10_000):
                    await store.change(lambda t: (t[ACCOUNTS].put(Account(str(n), n)), t.save_event(str(n), "saved")))
                    print(n, flush=True)
        trio.run(main)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(40)]
    process.kill()
    acknowledged += [int(line) for line in process.stdout.read().split()]
    process.wait()
    with Store(tmp_path) as store:
        assert all(store[ACCOUNTS].has(str(n)) for n in acknowledged)
        # the event is in the same transaction: never one without the other
        assert len(store.log()) == store[ACCOUNTS].count()


async def test_a_follower_misses_nothing(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        seen: list[int] = []

        async def follow() -> None:
            after = 0
            while after < 30:
                changed = store.new_event
                for number, _ in store.log(after=after):
                    after = number
                    seen.append(after)
                if after < 30:
                    await changed.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for _ in range(30):
                await store.save_event("j", "tick")
        assert seen == list(range(1, 31))


async def test_a_search_sees_what_another_connection_has_committed(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        query = Query().balance > 3
        assert store.documents(ACCOUNTS).search(query) == []
        await store.change(lambda t: t[ACCOUNTS].put(account("a", 5)))
        assert store.documents(ACCOUNTS).search(query) == [{"id": "a", "balance": 5}]


async def test_the_event_log_is_read_to_its_end(tmp_path: Path) -> None:
    with Store(tmp_path) as store:

        def many(t: Transaction) -> None:
            for number in range(2500):
                t.save_event(f"job-{number % 2}", "job_posted", number=number)

        await store.change(many)
        events = store.log()
        assert [event.data["number"] for _, event in events] == list(range(2500))
        assert len(store.log(after=events[1999][0])) == 500
        assert len(store.log("job-1")) == 1250


async def test_a_table_that_is_asked_by_more_than_before_is_taken_over(tmp_path: Path) -> None:
    few, more = (Table("things", Balance, indexes=fields) for fields in ((), ("balance", "at")))
    with Store(tmp_path, tables=(EVENTS, few)) as store:
        for n in range(20):
            await store.change(lambda t, n=n: t[few].put(Balance(str(n), str(n % 3), "now")))
    with Store(tmp_path, tables=(EVENTS, more)) as store:
        assert [row.id for row in store[more].by("balance", "1")] == ["1", "4", "7", "10", "13", "16", "19"]
        assert store[more].count("at", "now") == 20
    with Store(tmp_path, tables=(EVENTS, more), read_only=True) as store:
        assert store[more].count() == 20
