"""Homes that version 0.1 left behind, as their nodes would find them: see tests/fixtures/home-0.1."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).parent / "fixtures" / "home-0.1"
NODES = ("requester", "provider", "authority")


def unpack(folder: Path) -> dict[str, Path]:
    """Make the three homes in a folder, each with its store as that version had it; return them by name."""
    return {name: unpack_one(name, folder / name) for name in NODES}


def unpack_one(name: str, home: Path) -> Path:
    """Make one of the homes."""
    shutil.copytree(FIXTURE / name, home)
    (home / "identity.json").chmod(0o600)
    connection = sqlite3.connect(home / "store.db")
    connection.executescript((home / "store.sql").read_text(encoding="utf-8"))
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    (home / "store.sql").unlink()
    return home


def rows(home: Path) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Return the tables of a store of that version: the rows of each with their numbers, in order."""
    connection = sqlite3.connect(f"file:{home / 'store.db'}?mode=ro", uri=True)
    try:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        return {
            name.removeprefix("doc_"): [
                (number, json.loads(text))
                for number, text in connection.execute(f'SELECT id, doc FROM "{name}" ORDER BY id')
            ]
            for name in names
        }
    finally:
        connection.close()
