"""Backup and restore of a home: one file with the key, the configuration, the store and the blobs.

The store is copied as of one moment while the node goes on; blobs never change, so they are copied after it. A backup
holds the node's private key: it is readable by its owner alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from nunet_cli.config_file import load
from nunet_cli.database.file import check, open_file
from nunet_cli.database.records import Records
from nunet_cli.database.store import STORE_FILE, owned
from nunet_cli.errors import NodeError, NunetError, UsageError
from nunet_cli.network.identity import KEY_FILE, load_or_create
from nunet_cli.node.scratch import scratch
from nunet_cli.records.identifiers import cid_from_digest, is_content_id
from nunet_cli.records.reading import decode
from nunet_cli.records.tables import TABLES

CONFIG_FILE = "config.toml"
BLOBS = "blobs"
UNFINISHED = "restore.unfinished"
SUMS = "sums.json"
_KINDS = (KEY_FILE, CONFIG_FILE, STORE_FILE, SUMS)
# a key, a configuration: nobody's are larger
MOST_SMALL = 2**20


class Sums(Struct, forbid_unknown_fields=True):
    """What a backup has in it: the SHA-256 of key, configuration and store, in hexadecimal, and the blobs by id."""

    files: dict[str, str]
    blobs: list[str]


class BackedUp(Struct, frozen=True):
    """A backup: where it is, its size in bytes, and how many blobs are in it."""

    path: str
    size: int
    blobs: int


def make_backup(home: Path, config_file: Path, target: Path, *, blobs: bool = True) -> BackedUp:
    """Write a backup of a home, whether or not its node runs; it takes a while, so call it from a thread.

    Args:
        home: the node's folder.
        config_file: where its configuration is.
        target: the file; one that is there is replaced once the new one is whole.
        blobs: also what jobs read and wrote.

    Raises:
        UsageError: there is nothing to back up, or the file cannot be written.
    """
    if not (home / STORE_FILE).exists() or not (home / KEY_FILE).exists():
        raise UsageError(f"there is no node in {home}", hint="it is made at the first start: nunet node run")
    try:
        with scratch(target.parent) as folder:
            part = folder / "backup.tar"
            _copy_store(home / STORE_FILE, folder / STORE_FILE)
            shutil.copyfile(home / KEY_FILE, folder / KEY_FILE)
            if config_file.exists():
                shutil.copyfile(config_file, folder / CONFIG_FILE)
            kept = [name for name in (KEY_FILE, CONFIG_FILE, STORE_FILE) if (folder / name).exists()]
            sums = Sums({name: _sum(folder / name) for name in kept}, [])
            descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    for name in kept:
                        archive.add(folder / name, name)
                    for blob in _blobs_of(home) if blobs else ():
                        # one that nothing names any more may go meanwhile
                        with suppress(FileNotFoundError):
                            archive.add(blob, f"{BLOBS}/{blob.name}")
                            sums.blobs.append(blob.name)
                    # the last: a backup that was cut off has none
                    (folder / SUMS).write_bytes(msgspec.json.encode(sums))
                    archive.add(folder / SUMS, SUMS)
                file.flush()
                os.fsync(file.fileno())
            part.rename(target)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror or error}") from None
    return BackedUp(str(target), target.stat().st_size, len(sums.blobs))


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_store(source: Path, target: Path) -> None:
    reading = sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
    writing = sqlite3.connect(target)
    try:
        # one moment is held on to: SQLite begins anew after each change otherwise, and where many come it never ends
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
        # in steps, so that the node's own changes are not held up
        reading.backup(writing, pages=1000, sleep=0.001)
    finally:
        writing.close()
        reading.close()


def _blobs_of(home: Path) -> Iterator[Path]:
    folder = home / BLOBS
    if folder.exists():
        yield from sorted(path for path in folder.iterdir() if path.is_file() and is_content_id(path.name))


def restore_backup(
    source: Path, home: Path, config_file: Path, *, force: bool = False, before: Callable[[], None] = lambda: None
) -> Path | None:
    """Put a backup in the place of a home whose node does not run; return where what was there has gone.

    Everything is checked in a folder beside it first: nothing is changed by a backup that is damaged.

    Args:
        source: the backup.
        home: the node's folder.
        config_file: where its configuration is to be.
        force: also where another node's key is in the home.
        before: called once the backup is known to be good: stops the node, if it runs.

    Raises:
        UsageError: it is no backup, or damaged, or of another node.
        NodeError: the node runs.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    with scratch(home.parent) as fresh:
        _unpack(source, fresh)
        _check_parts(source, fresh)
        key = home / KEY_FILE
        if key.exists() and key.read_bytes() != (fresh / KEY_FILE).read_bytes() and not force:
            raise UsageError(
                f"{home} belongs to another node than the backup", code="another_node",
                hint="restore it to another --home; or, to give this one up: --force",
            )  # fmt: skip
        before()
        home.mkdir(exist_ok=True, mode=0o700)
        with owned(home, "a restore"):
            return _swap(fresh, home, config_file)


def _unpack(source: Path, folder: Path) -> None:
    """Take out what a backup may hold, by name; whatever else is in the file is a reason to refuse it."""
    (folder / BLOBS).mkdir(mode=0o700)
    seen: set[str] = set()
    try:
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                place, _, name = member.name.rpartition("/")
                is_blob = place == BLOBS and is_content_id(name)
                data = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                if data is None or not (is_blob or member.name in _KINDS):
                    raise UsageError(f"{source}: {member.name!r} does not belong into a backup", code="bad_backup")
                if member.name in (KEY_FILE, CONFIG_FILE) and member.size > MOST_SMALL:
                    raise UsageError(f"{source}: {member.name} in it has {member.size} bytes", code="bad_backup")
                target = folder / member.name
                with os.fdopen(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                    shutil.copyfileobj(data, file, 2**20)
                    # what was there goes aside once this is in its place
                    file.flush()
                    os.fsync(file.fileno())
                if is_blob and cid_from_digest(bytes.fromhex(_sum(target))) != name:
                    raise UsageError(f"{source}: the content {name} is damaged", code="bad_backup")
                seen.add(member.name)
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror or error}", code="bad_backup") from None
    except tarfile.TarError as error:
        raise UsageError(f"{source}: not a backup of a node: {error}", code="bad_backup") from None
    if missing := {KEY_FILE, STORE_FILE} - seen:
        raise UsageError(f"{source}: not a backup of a node: it has no {sorted(missing)[0]}", code="bad_backup")
    if SUMS not in seen:
        raise UsageError(f"{source}: the backup is cut off: it has no {SUMS}", code="bad_backup")
    try:
        sums = decode((folder / SUMS).read_bytes(), Sums)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{source}: {SUMS}: {error}", code="bad_backup") from None
    for name in _KINDS[:-1]:
        if name in seen and sums.files.get(name) != _sum(folder / name):
            raise UsageError(f"{source}: {name} in it is damaged", code="bad_backup")
    if missing := {f"{BLOBS}/{name}" for name in sums.blobs} - seen:
        raise UsageError(f"{source}: {len(missing)} blobs in it are missing", code="bad_backup")


def _check_parts(source: Path, folder: Path) -> None:
    """Refuse a key, a configuration and a store with which no node could start."""
    try:
        if (folder / CONFIG_FILE).exists():
            load(folder / CONFIG_FILE, environment={})
        load_or_create(folder)
    except NunetError as error:
        # a sealed key is known to be good once somebody opens it
        if error.code != "sealed_identity":
            raise UsageError(f"{source}: {error.message}", code="bad_backup", hint=error.hint) from None
    try:
        connection = open_file(folder / STORE_FILE, TABLES)
        try:
            check(connection, folder / STORE_FILE, thorough=True)
            for table in TABLES:
                for _ in Records(connection, table).all():
                    pass
        finally:
            connection.close()
    except (NodeError, sqlite3.Error, msgspec.MsgspecError) as error:
        raise UsageError(f"{source}: the store in it cannot be used: {error}", code="bad_backup") from None


def _swap(fresh: Path, home: Path, config_file: Path) -> Path | None:
    """Move what is there aside, and what was restored to its place; the store comes last, as it makes a home of it."""
    # whoever is killed in between leaves a home that no node makes a new key in
    (home / UNFINISHED).touch(mode=0o600)
    _sync(home)
    stamp = time.strftime("%Y%m%dT%H%M%S")
    aside = home / f"before-restore-{stamp}"
    names = (STORE_FILE, f"{STORE_FILE}-wal", f"{STORE_FILE}-shm", KEY_FILE)
    there = [home / name for name in names if (home / name).exists()]
    if there:
        aside.mkdir(mode=0o700)
        for path in there:
            path.rename(aside / path.name)
    (home / BLOBS).mkdir(exist_ok=True, mode=0o700)
    for blob in (fresh / BLOBS).iterdir():
        blob.replace(home / BLOBS / blob.name)
    if (fresh / CONFIG_FILE).exists():
        config_file.parent.mkdir(parents=True, exist_ok=True)
        if config_file.exists():
            aside.mkdir(mode=0o700, exist_ok=True)
            shutil.copy2(config_file, aside / CONFIG_FILE)
        shutil.move(fresh / CONFIG_FILE, config_file)
    (fresh / KEY_FILE).replace(home / KEY_FILE)
    (fresh / STORE_FILE).replace(home / STORE_FILE)
    _sync(home)
    (home / UNFINISHED).unlink()
    return aside if aside.exists() else None


def check_restored(home: Path) -> None:
    """Refuse a home in which a restore was interrupted.

    Raises:
        NodeError: saying what to do.
    """
    if (home / UNFINISHED).exists():
        raise NodeError(
            f"a restore of {home} was interrupted", code="restore_unfinished",
            hint="restore it again: nunet node restore FILE; what was there before is in its before-restore-… folder",
        )  # fmt: skip


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
