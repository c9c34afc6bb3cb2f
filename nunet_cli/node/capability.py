"""Capability accounting (second seed): registered, available = registered − allocated − locked, never negative.

Lock → allocate → release are parts of the transaction that makes them true. Locks are leases and lapse by themselves.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import msgspec
from msgspec import structs
from tinydb import Query

from nunet_cli import units
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import StateError
from nunet_cli.node.benchmark import Benchmark
from nunet_cli.node.monitor import Monitor
from nunet_cli.node.onboarding import OnboardOptions, checked, offer_of, price_option
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.capability import Capability, PriceBid, Resources

log = logging.getLogger("nunet.capability")

TABLE = "capabilities"


class CapabilityAccounting:
    """The node's capability, as rows of the table `capabilities`.

    `registered`, one per lock, one per allocation; and `offer`, the options of the last onboarding, which outlives it.
    """

    def __init__(self, store: Store, monitor: Monitor) -> None:
        self._store, self.monitor = store, monitor
        self.executors: dict[str, str] = {}

    def is_onboarded(self) -> bool:
        """Say whether this node offers capability."""
        return self._store.find(TABLE, "registered") is not None

    def get_registered_capability(self, source: Store | Transaction | None = None) -> Capability:
        """Return what was registered at onboarding; nothing on a node that is not onboarded."""
        row = (source or self._store).find(TABLE, "registered")
        try:
            return msgspec.convert(row["capability"], Capability) if row else Capability()
        except msgspec.ValidationError as error:
            # an earlier version took what it could not read again
            raise StateError(
                f"what this machine offers cannot be read: {error}", code="bad_offer",
                hint="offer it anew: nunet onboard --reset",
            ) from None  # fmt: skip

    async def set_registered_capability(
        self, capability: Capability, benchmark: Benchmark | None, options: OnboardOptions | None = None
    ) -> None:
        """Keep what the node offers, what its benchmark measured, and the options that it was asked for with."""
        row = {"id": "registered", "capability": msgspec.to_builtins(capability), "at": units.utc_now()}
        row["benchmark"] = msgspec.to_builtins(benchmark)

        def change(t: Transaction) -> None:
            t.put(TABLE, row)
            if options is not None:
                t.put(TABLE, {"id": "offer", "options": msgspec.to_builtins(options)})
            t.save_event("", "onboarded", **msgspec.to_builtins(capability.resources))

        await self._store.change(change)

    def offer(self) -> OnboardOptions | None:
        """Return what was offered last, complete with the price of today; None where nothing ever was."""
        row = self._store.find(TABLE, "offer")
        price = self.price()
        if row is not None:
            return structs.replace(msgspec.convert(row["options"], OnboardOptions), price=price_option(price))
        if self.is_onboarded():
            return offer_of(self.get_registered_capability(), price)
        return OnboardOptions(price=price_option(price)) if price != PriceBid() else None

    async def offboard(self) -> None:
        """Offer nothing any more; what was offered is remembered."""

        def change(t: Transaction) -> None:
            t.table(TABLE).remove(Query().id == "registered")
            t.save_event("", "offboarded")

        await self._store.change(change)

    def benchmark(self) -> dict[str, Any] | None:
        """Return the last benchmark, or None."""
        row = self._store.find(TABLE, "registered")
        return row["benchmark"] if row else None

    def taken(self, source: Store | Transaction) -> list[dict[str, Any]]:
        """Return the locks that hold and the allocations, each `{id, kind, job_id, resources, expires_at}`."""
        now = units.utc_now()
        rows = source.table(TABLE).search(Query().kind.one_of(["lock", "allocation"]))
        return [dict(row) for row in rows if row["kind"] == "allocation" or row["expires_at"] > now]

    def available(self, source: Store | Transaction, at: str = "") -> Capability:
        """Return what is left (second seed: `getAvailableCapability`), now or at a later time.

        Args:
            source: where to read.
            at: a time, RFC 3339, for which only what is taken beyond it counts; empty for now.

        Raises:
            StateError: more is taken than there is, which never happens as long as every change goes through here.
        """
        registered = self.get_registered_capability(source)
        left = registered.resources
        for row in self.taken(source):
            if at and row.get("ends_at", "") and row["ends_at"] <= at:
                continue
            try:
                left = left.minus(msgspec.convert(row["resources"], Resources))
            except ValueError as error:
                raise StateError(f"more {error} is taken than there is", code="over_committed") from None
        return structs.replace(registered, resources=left, executors=tuple(self.executors))

    def earliest_start(self, source: Store | Transaction, resources: Resources) -> str:
        """Return when resources are free at the latest, by what runs and is locked; empty when they never are."""
        now = units.utc_now()
        ends = sorted({str(row["ends_at"]) for row in self.taken(source) if row.get("ends_at")})
        for at in [now, *(end for end in ends if end > now)]:
            if self.available(source, at).resources.fits(resources):
                return at
        return ""

    def load(self, source: Store | Transaction) -> float:
        """Return the larger share of the registered processor or memory that is taken, 0 to 1."""
        registered = self.get_registered_capability(source).resources
        left = self.available(source).resources
        shares = [0.0]
        for there, free in ((registered.cpu.cores, left.cpu.cores), (registered.memory, left.memory)):
            shares += [1 - free / there] if there else []
        return round(min(1.0, max(shares)), 3)

    def machine(self) -> dict[str, Any]:
        """Return what the monitor sees on the machine, whoever uses it."""
        load = self.monitor.load()
        return {"cpu_load": load.cpu, "memory_free": load.memory_free, "disk_free": load.disk_free}

    def crowded(self, resources: Resources) -> str:
        """Return why others leave no room for a job on the machine; empty where they do."""
        return self.monitor.missing(resources)

    async def set_available_capability(self) -> Capability:
        """Forget locks that have lapsed, and return what is available then (second seed: `setAvailableCapability`)."""
        await self._store.change(self._sweep)
        return self.get_available_capability()

    @staticmethod
    def _sweep(t: Transaction) -> None:
        t.table(TABLE).remove((Query().kind == "lock") & (Query().expires_at < units.utc_now()))

    def get_available_capability(self) -> Capability:
        """Return what is left now."""
        return self.available(self._store)

    def get_locked_capabilities(self) -> list[dict[str, Any]]:
        """Return the locks that hold."""
        return [row for row in self.taken(self._store) if row["kind"] == "lock"]

    def lock(
        self, t: Transaction, bid_id: str, job_id: str, resources: Resources, until: str, duration: int = 0
    ) -> None:
        """Reserve resources for a bid until a time; a second lock of the same bid replaces the first.

        Args:
            t: the change that this is part of.
            bid_id: the bid.
            job_id: its job.
            resources: what to reserve.
            until: when the lease ends, RFC 3339.
            duration: the seconds that the job may run after that, for when the resources are free again.

        Raises:
            StateError: what is left does not suffice.
        """
        t.table(TABLE).remove(Query().id == bid_id)
        # what has lapsed is looked through no more: a peer may have made many
        now = units.utc_now()
        locks = t.table(TABLE).search(Query().kind == "lock")
        t.table(TABLE).remove(doc_ids=[row.doc_id for row in locks if row["expires_at"] <= now])
        ends = units.format_time(units.parse_time(until) + timedelta(seconds=duration))
        row = {"id": bid_id, "kind": "lock", "job_id": job_id, "expires_at": until, "ends_at": ends}
        self._take(t, row, resources)

    async def lock_capability(self, job_id: str, resources: Resources, seconds: int) -> str:
        """Reserve resources for a job of the owner's choice (second seed: `lockCapability`); return the lock's id.

        Raises:
            StateError: what is left does not suffice.
        """
        key, until = f"lock-{job_id}", units.format_time(units.now() + timedelta(seconds=seconds))
        await self._store.change(lambda t: self.lock(t, key, job_id, resources, until))
        return key

    def is_locked(self, source: Store | Transaction, bid_id: str) -> bool:
        """Say whether a bid's lock is there and has not expired."""
        row = source.find(TABLE, bid_id)
        return row is not None and bool(row["expires_at"] > units.utc_now())

    def allocate(
        self, t: Transaction, bid_id: str, allocation_id: str, resources: Resources, duration: int = 0
    ) -> None:
        """Turn a bid's lock into an allocation; a lock that lapsed is made good if there is still room.

        Raises:
            StateError: there is none, or others use the machine so much that the job has no room.
        """
        t.table(TABLE).remove(Query().id == bid_id)
        ends = units.format_time(units.now() + timedelta(seconds=duration))
        row = {"id": allocation_id, "kind": "allocation", "job_id": "", "expires_at": "", "ends_at": ends}
        self._take(t, row, resources)
        crowded = self.crowded(resources)
        if crowded:
            raise StateError(crowded, code="machine_busy")

    def _take(self, t: Transaction, row: dict[str, Any], resources: Resources) -> None:
        left, taken = self.available(t).resources, resources.as_run()
        try:
            left.minus(taken)
        except ValueError as error:
            raise StateError(f"not enough {error} is left", code="not_available") from None
        t.put(TABLE, {**row, "resources": msgspec.to_builtins(taken)})

    def release(self, t: Transaction, key: str) -> None:
        """Give back what a bid locked, or what an allocation has; and sweep locks that have lapsed."""
        t.table(TABLE).remove(Query().id == key)
        self._sweep(t)

    def get_preferences(self) -> CapabilityComparator:
        """Return this node's preferences, as a provider and as a requester (second seed: `getPreferences`)."""
        row = self._store.find("preferences", "comparator")
        return msgspec.convert(row["comparator"], CapabilityComparator) if row else CapabilityComparator()

    async def set_preferences(self, comparator: CapabilityComparator, price: PriceBid | None = None) -> None:
        """Keep the preferences, and the provider's price where one is given (second seed: `setPreferences`).

        Raises:
            UsageError: they could not be read again.
        """
        comparator = checked(comparator)

        def change(t: Transaction) -> None:
            known = t.find("preferences", "comparator") or {"price": msgspec.to_builtins(PriceBid())}
            row = {"id": "comparator", "comparator": msgspec.to_builtins(comparator), "price": known["price"]}
            t.put("preferences", row | ({"price": msgspec.to_builtins(price)} if price is not None else {}))
            t.save_event("", "preferences_set", rules=len(comparator.rules), bid_rules=len(comparator.bid_rules))

        await self._store.change(change)

    def price(self) -> PriceBid:
        """Return the provider's price; nothing, for volunteer compute."""
        row = self._store.find("preferences", "comparator")
        return msgspec.convert(row["price"], PriceBid) if row else PriceBid()
