import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
from tinydb import Query

from nunet_cli.database.store import Store, Transaction, lock_owner, owned
from nunet_cli.errors import NodeError, NotFoundError, UsageError


async def test_a_change_is_whole_or_not_at_all(tmp_path: Path) -> None:
    with Store(tmp_path) as store:

        def half(t: object) -> None:
            t.put("jobs", {"id": "a"})  # type: ignore[attr-defined]
            raise RuntimeError

        with pytest.raises(RuntimeError):
            await store.change(half)
        assert store.table("jobs").all() == []
        await store.change(lambda t: t.put("jobs", {"id": "a"}))
    with Store(tmp_path) as store:
        assert store.find("jobs", "a") == {"id": "a"}


async def test_a_cancelled_change_is_done_or_not_begun(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for number in range(20):
            with trio.move_on_after(0.0005 * number):
                await store.change(lambda t, n=number: (t.put("a", {"id": str(n)}), t.put("b", {"id": str(n)})))
        assert {row["id"] for row in store.table("a")} == {row["id"] for row in store.table("b")}


async def test_prefixes_must_be_unambiguous(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for name in ("job-aa1", "job-aa2", "job-b"):
            await store.change(lambda t, name=name: t.put("jobs", {"id": name}))
        assert store.resolve("jobs", "job-b", what="job")["id"] == "job-b"
        with pytest.raises(UsageError, match="ambiguous: job-aa1, job-aa2"):
            store.resolve("jobs", "job-a", what="job")
        with pytest.raises(NotFoundError, match="no job 'job-x' here"):
            store.resolve("jobs", "job-x", what="job")


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
        async def main():
            with Store(Path(sys.argv[1])) as store:
                for n in range(10_000):
                    await store.change(lambda t: (t.put("jobs", {"id": str(n)}), t.save_event(str(n), "saved")))
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
        assert all(store.find("jobs", str(n)) for n in acknowledged)
        # the event is in the same transaction: never one without the other
        assert len(store.events()) == len(store.table("jobs"))


async def test_a_follower_misses_nothing(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        seen: list[int] = []

        async def follow() -> None:
            after = 0
            while after < 30:
                changed = store.new_event
                for event in store.events(after=after):
                    after = event["seq"]
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
        kind = Query().kind.one_of(["lock"])
        assert store.table("capabilities").search(kind) == []
        await store.change(lambda t: t.put("capabilities", {"id": "a", "kind": "lock"}))
        assert len(store.table("capabilities").search(kind)) == 1


async def test_the_event_log_is_read_to_its_end(tmp_path: Path) -> None:
    with Store(tmp_path) as store:

        def many(t: Transaction) -> None:
            for number in range(2500):
                t.save_event(f"job-{number % 2}", "job_posted", number=number)

        await store.change(many)
        events = store.events()
        assert [event["data"]["number"] for event in events] == list(range(2500))
        assert len(store.events(after=events[1999]["seq"])) == 500
        assert len(store.events("job-1")) == 1250
