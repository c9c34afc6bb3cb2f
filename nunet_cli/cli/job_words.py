"""What is said of a job beside its state: what was paid for it, what is left to do, what to type next."""

from __future__ import annotations

from typing import Any


def outcome(job: dict[str, Any]) -> list[str]:
    """Return what a person wants to know of a job that was called off: what was paid for it, and what is left."""
    paid = [f"{job['paid']} NTX were paid of at most {job['limit']}"] if job.get("paid") is not None else []
    return [*paid, *notes(job)]


def notes(job: dict[str, Any]) -> list[str]:
    """Return what is noted of a job, and of a group's children the first: the others' differ in their times alone."""
    held = [child["note"] for child in job.get("children", ()) if child["note"]]
    of_children = [f"{len(held)} of {len(job['children'])}: {held[0]}"] if held else []
    return [*([job["note"]] if job["note"] else []), *of_children]


def next_command(row: dict[str, Any]) -> str | None:
    """Return what to type next for a job, or None at its end."""
    if row["next"] is None:
        return None
    return f"nunet job run --job {row['id']}" if row["next"] == "run" else f"nunet job {row['next']} {row['id']}"
