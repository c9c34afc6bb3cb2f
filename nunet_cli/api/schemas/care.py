"""What the routes for the care of a home answer with."""

from __future__ import annotations

from msgspec import Struct

from nunet_cli.api.schemas.base import Answer


class RemovedRows(Struct, forbid_unknown_fields=True, kw_only=True):
    """How many rows of each kind were removed."""

    jobs: int
    bids: int
    allocations: int
    contracts: int
    events: int


class Removed(Struct, forbid_unknown_fields=True, kw_only=True):
    """What was removed; sizes in bytes: of the blobs that are gone, and of the store before and after."""

    rows: RemovedRows
    blobs: int
    blob_bytes: int
    store_before: int
    store_after: int


class Collected(Answer, kw_only=True):
    """How many jobs are past their age, and what was removed; null where that was only asked."""

    jobs: int
    removed: Removed | None


class BackedUp(Answer, kw_only=True):
    """Where a backup is, its size in bytes, and how many blobs are in it."""

    path: str
    size: int
    blobs: int
