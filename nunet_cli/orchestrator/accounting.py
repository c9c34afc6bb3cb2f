"""Capability accounting, as the stages see it: what a machine has left, and who holds what of it."""

from __future__ import annotations

from typing import Any, Protocol

from nunet_cli.database.store import Store, Transaction
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.capability import Capability, PriceBid, Resources


class Accounting(Protocol):
    """What the node implements. Methods with a transaction join a change."""

    def is_onboarded(self, source: Store | Transaction | None = None) -> bool:
        """Say whether this node offers capability."""

    def available(self, source: Store | Transaction, at: str = "") -> Capability:
        """Return registered minus allocated minus locked capability, now or at a later time."""

    def earliest_start(self, source: Store | Transaction, resources: Resources, requester: str = "") -> str:
        """Return when resources are free at the latest, for a requester; empty when they never are."""

    def over_cap(self, source: Store | Transaction, requester: str, resources: Resources, at: str = "") -> str:
        """Return why a requester may not have one job more, now or at a later time; empty where it may."""

    def load(self, source: Store | Transaction) -> float:
        """Return the share that is taken, 0 to 1."""

    def machine(self, *, idle: bool = False) -> dict[str, Any]:
        """Return what the monitor sees, or would see if nobody used it: `cpu_load`, `memory_free`, `disk_free`."""

    def crowded(self, resources: Resources) -> str:
        """Return why others leave no room for a job on the machine; empty where they do."""

    def get_preferences(self, source: Store | Transaction | None = None) -> CapabilityComparator:
        """Return the node's preferences."""

    def price(self) -> PriceBid:
        """Return the provider's price."""

    def lock_capability(
        self,
        t: Transaction,
        bid_id: str,
        job_id: str,
        resources: Resources,
        until: str,
        duration: int = 0,
        requester: str = "",
    ) -> None:
        """Reserve resources for a bid until a time; a second lock of the same bid replaces the first."""

    def line_up(
        self, t: Transaction, bid_id: str, job_id: str, resources: Resources, until: str, duration: int, requester: str
    ) -> None:
        """Note that a unit of a bid is to have what is given back next."""

    def has(self, source: Store | Transaction, key: str) -> bool:
        """Say whether a bid, a unit or an allocation holds something here, or is in the line."""

    def holds(self, source: Store | Transaction, requester: str) -> bool:
        """Say whether jobs of a requester run here, or have something locked."""

    def lines_up(self, source: Store | Transaction, requester: str) -> bool:
        """Say whether jobs of a requester wait for what is given back next."""

    def hand_over(self, t: Transaction, requester: str) -> bool:
        """Give what is free to the first job of a requester that has lined up; return whether one has."""

    def is_in_line(self, source: Store | Transaction, key: str) -> bool:
        """Say whether a unit, or an allocation, waits for what is given back next."""

    async def wait_in_line(self, allocation_id: str, until: float) -> bool:
        """Wait until an allocation has what it has lined up for; False where it has not by a time."""

    def is_locked(self, source: Store | Transaction, bid_id: str) -> bool:
        """Say whether a bid's lock is there and has not expired."""

    def allocate(
        self, t: Transaction, bid_id: str, allocation_id: str, resources: Resources, duration: int = 0,
        requester: str = "",
    ) -> None:  # fmt: skip
        """Turn a bid's lock into an allocation."""

    def release(self, t: Transaction, key: str) -> None:
        """Give back what a bid locked, or what an allocation has."""
