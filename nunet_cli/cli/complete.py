"""Live completion of ids: read straight from the store, so that a TAB does not wait for a node."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

MOST = 60
Completions = list[tuple[str, str]]


def _home(ctx: Any) -> Path:
    given = ctx.find_root().params.get("home") or os.environ.get("NUNET_HOME")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("nunet"))


def _rows(ctx: Any, table: str, field: str, incomplete: str) -> list[dict[str, Any]]:
    """Return the newest rows whose field begins with what was typed; nothing where there is no store."""
    import sqlite3

    path = _home(ctx) / "store.db"
    if not path.exists():
        return []
    column = '"key"' if field == "id" else f"f_{field}"
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            found = connection.execute(
                f"SELECT doc FROM {table} WHERE {column} >= ? AND {column} < ? ORDER BY seq DESC LIMIT ?",
                (incomplete, incomplete + "\U0010ffff", MOST),
            ).fetchall()
        finally:
            connection.close()
    except sqlite3.Error:
        # no such table yet, or a store that is being made: there is nothing to complete
        return []
    return [json.loads(text) for (text,) in found]


def jobs(ctx: Any, incomplete: str) -> Completions:
    """Return jobs, newest first, with name and state."""
    return [(row["id"], f"{row['name']}, {row['state']}") for row in _rows(ctx, "jobs", "id", incomplete)]


def bids(ctx: Any, incomplete: str) -> Completions:
    """Return bids with their job and verdict."""
    rows = _rows(ctx, "bids", "id", incomplete)
    return [(row["id"], f"{row['job_id']}, {row['verdict']}") for row in rows]


def contracts(ctx: Any, incomplete: str) -> Completions:
    """Return contracts with their job and state; by their job where a job's id was begun."""
    field = "job_id" if incomplete.startswith("j") else "id"
    rows = _rows(ctx, "contracts", field, incomplete)
    return [(row[field], f"{row['job_id']}, {row['state']}") for row in rows]


def allocations(ctx: Any, incomplete: str) -> Completions:
    """Return allocations with their job and state."""
    rows = _rows(ctx, "allocations", "id", incomplete)
    return [(row["id"], f"{row['job_id']}, {row['state']}") for row in rows]


def peers(ctx: Any, incomplete: str) -> Completions:
    """Return known peers with their roles."""
    field = "did" if incomplete.startswith("did:") else "id"
    return [(row[field], ", ".join(row["roles"]) or "node") for row in _rows(ctx, "peers", field, incomplete)]


def config_keys(incomplete: str) -> list[str]:
    """Return the configuration's keys."""
    from nunet_cli.config_file import keys

    return [key for key in keys() if key.startswith(incomplete)]


def shells(incomplete: str) -> list[str]:
    """Return the shells that there are scripts for."""
    return [shell for shell in ("bash", "zsh", "fish") if shell.startswith(incomplete)]
