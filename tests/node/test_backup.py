"""Backup and restore of a home."""

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli.database.store import Store, Transaction, owned
from nunet_cli.errors import NodeError, UsageError
from nunet_cli.network.blobs import Blobs
from nunet_cli.network.identity import load_or_create
from nunet_cli.node.backup import make_backup, restore_backup
from nunet_cli.node.opening import open_node
from nunet_cli.records.books import ACCOUNTS, Account
from tests.conftest import add_bytes, config


async def filled(home: Path, balance: int) -> str:
    load_or_create(home)
    with Store(home) as store:
        await store.change(lambda t: t[ACCOUNTS].put(Account("a", balance)))
        cid, _ = await add_bytes(Blobs(home, store), b"content")
    (home / "config.toml").write_text('default_orchestration_type = "pull"\n')
    return cid


def balance_in(home: Path) -> int:
    with Store(home) as store:
        return store[ACCOUNTS].one("a").balance


async def test_a_home_comes_back_as_it_was(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "b.tar"
    cid = await filled(home, 5)
    made = make_backup(home, home / "config.toml", file)
    assert (made.blobs, file.stat().st_mode & 0o777) == (1, 0o600)
    await filled(home, 9)
    (home / "blobs" / cid).unlink()
    aside = restore_backup(file, home, home / "config.toml")
    assert balance_in(home) == 5
    assert (home / "blobs" / cid).read_bytes() == b"content"
    assert aside is not None
    assert balance_in(aside) == 9
    # on a machine that has nothing yet
    other = tmp_path / "other"
    assert restore_backup(file, other, other / "config.toml") is None
    assert load_or_create(other).did == load_or_create(home).did
    assert (other / "config.toml").exists()


STUCK = """
import sys, time
from pathlib import Path
from nunet_cli.node import backup

copy = backup._copy_store

def stuck(source, target):
    copy(source, target)
    print("there", flush=True)
    time.sleep(600)

backup._copy_store = stuck
home, file = map(Path, sys.argv[1:])
backup.make_backup(home, home / "config.toml", file)
"""


@contextlib.contextmanager
def stuck_backup(home: Path, file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A backup in a process of its own that has copied the store, and goes no further."""
    with subprocess.Popen([sys.executable, "-c", STUCK, home, file], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("by", ["backup", "start"])
async def test_what_a_killed_backup_leaves_is_removed_and_what_is_in_use_is_not(tmp_path: Path, by: str) -> None:
    """It has the node's key in it."""
    home = tmp_path / "home"
    await filled(home, 5)

    def unfinished() -> list[Path]:
        found = sorted(home.glob(".nunet-unfinished-*"))
        for path in found:
            # a minute has passed
            os.utime(path, (0, 0))
        return found

    with stuck_backup(home, home / "slow.tar"):
        used = unfinished()
        with stuck_backup(home, home / "killed.tar"):
            assert len(unfinished()) == 2
        assert len(unfinished()) == 2
        if by == "backup":
            make_backup(home, home / "config.toml", home / "b.tar")
        else:
            async with open_node(home, config()):
                pass
        assert unfinished() == used
        assert len(used) == 1


async def test_a_backup_is_of_one_moment_while_the_node_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    await filled(home, 0)
    with Store(home) as store:
        stop = False

        async def work() -> None:
            n = 0
            while not stop:
                n += 1
                # two rows that are always alike
                await store.change(lambda t, n=n: (t[ACCOUNTS].put(Account("a", n)), t[ACCOUNTS].put(Account("b", n))))  # type: ignore[misc]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            with trio.fail_after(20):
                while not store[ACCOUNTS].has("b"):
                    await trio.sleep(0.01)
            for n in range(5):
                await trio.sleep(0.02)
                await trio.to_thread.run_sync(make_backup, home, home / "config.toml", tmp_path / f"{n}.tar")
            stop = True
    for n in range(5):
        there = tmp_path / f"restored-{n}"
        restore_backup(tmp_path / f"{n}.tar", there, there / "config.toml")
        with Store(there) as store:
            assert store[ACCOUNTS].one("a").balance == store[ACCOUNTS].one("b").balance > 0


async def test_a_backup_ends_however_much_is_changed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, file = tmp_path / "home", tmp_path / "b.tar"
    await filled(home, 0)
    with Store(home) as store:

        def fill(t: Transaction) -> None:
            for n in range(2500):
                t[ACCOUNTS].put(Account(f"{n}-{'x' * 2000}", n))

        await store.change(fill)
        real, steps = sqlite3.connect, 0

        class Busy(sqlite3.Connection):
            """A connection between whose steps somebody else always commits."""

            def backup(self, target: sqlite3.Connection, **how: Any) -> None:
                def between(_status: int, _left: int, _total: int) -> None:
                    nonlocal steps
                    steps += 1
                    assert steps < 100, "it begins anew after each change"
                    with contextlib.closing(real(home / "store.db", isolation_level=None)) as other:
                        other.execute("UPDATE accounts SET doc=doc || ' ' WHERE seq=1")

                super().backup(target, progress=between, **how)

        monkeypatch.setattr(sqlite3, "connect", partial(real, factory=Busy))
        make_backup(home, home / "config.toml", file)
    assert 1 < steps < 100
    monkeypatch.undo()
    restore_backup(file, tmp_path / "other", tmp_path / "other" / "config.toml")


async def test_a_restore_that_was_interrupted_is_not_taken_for_a_new_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, file = tmp_path / "home", tmp_path / "b.tar"
    await filled(home, 5)
    make_backup(home, home / "config.toml", file)
    monkeypatch.setattr("nunet_cli.node.backup.shutil.move", None)
    with pytest.raises(TypeError):
        restore_backup(file, home, home / "config.toml")
    with pytest.raises(NodeError, match="was interrupted") as caught:
        async with open_node(home, config()):
            pass
    assert "restore it again" in caught.value.hint
    assert not (home / "identity.json").exists()
    monkeypatch.undo()
    restore_backup(file, home, home / "config.toml")
    assert balance_in(home) == 5
    async with open_node(home, config()):
        pass


def altered(file: Path, name: str, data: bytes | None, **fields: object) -> Path:
    """Return a backup with one member changed, added, or, for None, left out."""
    target = file.with_name(f"{secrets.token_hex(4)}.tar")
    with tarfile.open(file) as old, tarfile.open(target, "w") as new:
        for member in old:
            if member.name != name:
                new.addfile(member, old.extractfile(member))
        if data is not None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            new.addfile(info, BytesIO(data))
    return target


def sums_of(store: bytes, home: Path) -> bytes:
    """Return the sums that go with another store, as somebody would make them who means to deceive."""
    files = {name: (home / name).read_bytes() for name in ("identity.json", "config.toml") if (home / name).exists()}
    files["store.db"] = store
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return json.dumps({"files": sums, "blobs": []}).encode()


async def test_a_damaged_or_foreign_backup_changes_nothing(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "b.tar"
    cid = await filled(home, 5)
    make_backup(home, home / "config.toml", file)
    store = (home / "store.db").read_bytes()
    for broken, said in (
        (altered(file, "store.db", b"no database"), "store.db in it is damaged"),
        (altered(file, "store.db", store[:-9] + bytes([store[-9] ^ 1]) + store[-8:]), "store.db in it is damaged"),
        (altered(file, "identity.json", b"{}"), "identity.json in it is damaged"),
        (altered(file, "sums.json", None), "cut off: it has no sums.json"),
        (altered(file, f"blobs/{cid}", None), "1 blobs in it are missing"),
        (altered(file, "config.toml", bytes(2**20 + 1)), "config.toml in it has 1048577 bytes"),
        (altered(file, "sums.json", b"[1]"), "sums.json: Expected"),
        (
            altered(altered(file, "store.db", b"no database"), "sums.json", sums_of(b"no database", home)),
            "the store in it cannot be used",
        ),
        (tmp_path / "nowhere.tar", "No such file"),
        (altered(file, "store.db", None), "it has no store.db"),
        (altered(file, "identity.json", None), "it has no identity.json"),
        (altered(file, f"blobs/{cid}", b"else"), "is damaged"),
        (altered(file, "../evil", b"x"), "does not belong"),
        (altered(file, "/etc/evil", b"x"), "does not belong"),
        (altered(file, "blobs/../evil", b"x"), "does not belong"),
        (altered(file, "blobs/link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "does not belong"),
        (tmp_path / "home" / "store.db", "not a backup"),
    ):
        with pytest.raises(UsageError, match=said):
            restore_backup(broken, home, home / "config.toml")
        assert (home / "store.db").read_bytes() == store
    other = tmp_path / "other"
    await filled(other, 1)
    with pytest.raises(UsageError, match="another node"):
        restore_backup(file, other, other / "config.toml", before=lambda: pytest.fail("the node was stopped"))
    restore_backup(file, other, other / "config.toml", force=True)
    assert balance_in(other) == 5
    with owned(home, "a node"), pytest.raises(NodeError, match="in use by a node"):
        restore_backup(file, home, home / "config.toml")
    with pytest.raises(UsageError, match="there is no node"):
        make_backup(tmp_path / "nobody", tmp_path / "x", file)
    with pytest.raises(UsageError, match="cannot be written"):
        make_backup(home, home / "config.toml", tmp_path / "no" / "where.tar")
