"""Capability accounting (second seed): registered, available = registered − allocated − locked, never negative.

Lock → allocate → release are parts of the transaction that makes them true. Locks are leases and lapse by themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import msgspec
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import StateError
from nunet_cli.matching.shares import over_cap
from nunet_cli.node.line import LEASES, Line, as_allocation, as_lock, sweep
from nunet_cli.node.monitor import Monitor
from nunet_cli.node.onboarding import checked, offer_of, price_option
from nunet_cli.records.allocations import HOLDINGS, Holding
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.capability import Capability, PriceBid, Resources
from nunet_cli.records.offers import (
    OFFERS,
    PREFERENCES,
    REGISTERED_CAPABILITY,
    Benchmark,
    Offer,
    OnboardOptions,
    Preferences,
    Registered,
)
from nunet_cli.records.reading import decode_again
from nunet_cli.records.shares import MostPerRequester

log = logging.getLogger("nunet.capability")

Source = Store | Transaction


class Content(Protocol):
    """What is kept of what jobs read and wrote: `total` bytes."""

    total: int


class CapabilityAccounting(Line):
    """The node's capability: what is registered, and what each lock and each allocation holds of it."""

    def __init__(self, store: Store, monitor: Monitor) -> None:
        super().__init__(store)
        self.monitor = monitor
        self.content: Content | None = None
        self.executors: dict[str, str] = {}
        # what follows once something was given back: it is told by whom
        self.on_release: Callable[[str], None] = lambda _requester: None

    def is_onboarded(self, source: Source | None = None) -> bool:
        """Say whether this node offers capability."""
        return (source or self._store)[REGISTERED_CAPABILITY].has("registered")

    def get_registered_capability(self, source: Source | None = None) -> Capability:
        """Return what was registered at onboarding; nothing on a node that is not onboarded."""
        row = (source or self._store)[REGISTERED_CAPABILITY].get("registered")
        try:
            if row is None:
                return Capability()
            known = decode_again(row.capability, Capability, exactly=True)
        except msgspec.ValidationError as error:
            # an earlier version took what it could not read again
            raise StateError(
                f"what this machine offers cannot be read: {error}", code="bad_offer",
                hint="offer it anew: nunet onboard --reset",
            ) from None  # fmt: skip
        # what was measured is part of what is offered, also where an earlier version registered it
        return known if row.benchmark is None else structs.replace(known, benchmark=row.benchmark.speeds)

    async def set_registered_capability(
        self,
        capability: Capability,
        benchmark: Benchmark | None,
        options: OnboardOptions | None = None,
        price: PriceBid | None = None,
    ) -> None:
        """Keep what the node offers, what its benchmark measured, the options that it was asked for with, the price.

        Raises:
            StateError: jobs have more of it, or have locked more.
        """
        kept = msgspec.Raw(msgspec.json.encode(capability))
        row = Registered("registered", kept, quantities.utc_now(), benchmark)

        def change(t: Transaction) -> None:
            t[REGISTERED_CAPABILITY].put(row)
            # a lock may have been taken since whoever asks for this looked
            self.available(t)
            if options is not None:
                t[OFFERS].put(Offer("offer", options))
            if price is not None:
                known = t[PREFERENCES].get("comparator") or Preferences("comparator")
                t[PREFERENCES].put(structs.replace(known, price=price))
            t.save_event("", "onboarded", **msgspec.to_builtins(capability.resources))

        await self._store.change(change)

    def offer(self) -> OnboardOptions | None:
        """Return what was offered last, complete with the price of today; None where nothing ever was."""
        row, price = self._store[OFFERS].get("offer"), self.price()
        if row is not None:
            return structs.replace(row.options, price=price_option(price))
        if self.is_onboarded():
            return offer_of(self.get_registered_capability(), price)
        return OnboardOptions(price=price_option(price)) if price != PriceBid() else None

    async def offboard(self) -> None:
        """Offer nothing any more; what was offered is remembered."""

        def change(t: Transaction) -> None:
            t[REGISTERED_CAPABILITY].remove("registered")
            self.disband(t)
            t.save_event("", "offboarded")

        await self._store.change(change)

    def benchmark(self) -> Benchmark | None:
        """Return the last benchmark, or None."""
        row = self._store[REGISTERED_CAPABILITY].get("registered")
        return row.benchmark if row is not None else None

    def taken(self, source: Source) -> list[Holding]:
        """Return the locks that hold and the allocations."""
        now = quantities.utc_now()
        return [
            row
            for row in source[HOLDINGS].all()
            if row.kind == "allocation" or (row.kind == "lock" and row.expires_at > now)
        ]

    def available(self, source: Source, at: str = "") -> Capability:
        """Return what is left (second seed: `getAvailableCapability`), now or at a later time.

        Args:
            source: where to read.
            at: a time, RFC 3339, for which only what is taken beyond it counts; empty for now.

        Raises:
            StateError: more is taken than there is, which never happens as long as every change goes through here.
        """
        registered = self.get_registered_capability(source)
        left = registered.resources
        if not source[REGISTERED_CAPABILITY].has("registered"):
            # offered no more, while some of it is still in use
            return registered
        for row in self.taken(source):
            if _is_free_at(row, at):
                continue
            try:
                left = left.minus(row.resources)
            except ValueError as error:
                raise StateError(f"more {error} is taken than there is", code="over_committed") from None
        if self.content is not None:
            # what jobs read and wrote, and is kept, is on the disk that is offered
            left = structs.replace(left, disk=max(0, left.disk - self.content.total))
        return structs.replace(registered, resources=left, executors=tuple(self.executors))

    def over_cap(self, source: Source, requester: str, resources: Resources, at: str = "") -> str:
        """Return why a requester may not have one job more here, now or at a later time; empty where it may."""
        most = self.get_preferences(source).most_per_requester
        if most == MostPerRequester():
            return ""
        mine = [row for row in self.taken(source) if row.requester == requester and not _is_free_at(row, at)]
        machine = self.get_registered_capability(source).resources
        return over_cap(most, machine, [row.resources for row in mine], resources.as_run())

    def earliest_start(self, source: Source, resources: Resources, requester: str = "") -> str:
        """Return when resources are free at the latest for a requester, by what runs and is locked; empty for never."""
        now = quantities.utc_now()
        ends = sorted({row.ends_at for row in self.taken(source) if row.ends_at})
        for at in [now, *(end for end in ends if end > now)]:
            if not self.available(source, at).resources.fits(resources):
                continue
            if not requester or not self.over_cap(source, requester, resources, at):
                return at
        return ""

    def load(self, source: Source) -> float:
        """Return the larger share of the registered processor or memory that is taken, 0 to 1."""
        registered = self.get_registered_capability(source).resources
        left = self.available(source).resources
        shares = [0.0]
        for there, free in ((registered.cpu.cores, left.cpu.cores), (registered.memory, left.memory)):
            shares += [1 - free / there] if there else []
        return round(min(1.0, max(shares)), 3)

    def machine(self, *, idle: bool = False) -> dict[str, Any]:
        """Return what the monitor sees on the machine, whoever uses it, or would see if nobody did."""
        load = self.monitor.idle() if idle else self.monitor.load()
        return {"cpu_load": load.cpu, "memory_free": load.memory_free, "disk_free": load.disk_free}

    def crowded(self, resources: Resources, source: Source | None = None) -> str:
        """Return why others leave no room for a job on the machine; empty where they do."""
        return self.monitor.missing(resources, self._held(source or self._store))

    def _held(self, source: Source) -> float:
        return sum(row.resources.cpu.cores for row in self.taken(source))

    async def set_available_capability(self, executors: dict[str, str]) -> Capability:
        """Let the executors that work now be what is available, and forget locks that have lapsed.

        Returns:
            What is available then (second seed: `setAvailableCapability`).
        """
        self.executors, now = executors, quantities.utc_now()
        if any(len(row.expires_at) > 0 and row.expires_at <= now for row in self._store[HOLDINGS].by("kind", *LEASES)):
            await self._store.change(sweep)
        return self.get_available_capability()

    def get_available_capability(self) -> Capability:
        """Return what is left now, and what others leave of it: what they use of the machine is not to be had."""
        left, room = self.available(self._store), self.monitor.room(self._held(self._store))
        cpu = structs.replace(left.resources.cpu, cores=min(left.resources.cpu.cores, room.cpu.cores))
        resources = structs.replace(
            left.resources, cpu=cpu, memory=min(left.resources.memory, room.memory),
            disk=min(left.resources.disk, room.disk),
        )  # fmt: skip
        return structs.replace(left, resources=resources)

    def get_locked_capabilities(self) -> list[Holding]:
        """Return the locks that hold."""
        return [row for row in self.taken(self._store) if row.kind == "lock"]

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
        """Reserve resources for a bid until a time (second seed: `lockCapability`).

        A second lock of the same bid replaces the first.

        Args:
            t: the change that this is part of.
            bid_id: the bid.
            job_id: its job.
            resources: what to reserve.
            until: when the lease ends, RFC 3339.
            duration: the seconds that the job may run after that, for when the resources are free again.
            requester: whose job it is, by DID.

        Raises:
            StateError: what is left does not suffice, or the requester has as much as one may; code `over_cap`.
        """
        t[HOLDINGS].remove(bid_id)
        sweep(t)
        self._check_cap(t, requester, resources)
        self._take(t, as_lock(Holding(bid_id, "place", resources, job_id, until, "", requester, duration)))

    def _check_cap(self, t: Transaction, requester: str, resources: Resources) -> None:
        why = self.over_cap(t, requester, resources) if requester else ""
        if why:
            raise StateError(why, code="over_cap")

    def is_locked(self, source: Source, bid_id: str) -> bool:
        """Say whether a bid's lock is there and has not expired."""
        row = source[HOLDINGS].get(bid_id)
        return row is not None and row.kind == "lock" and row.expires_at > quantities.utc_now()

    def allocate(
        self, t: Transaction, bid_id: str, allocation_id: str, resources: Resources, duration: int = 0,
        requester: str = "",
    ) -> None:  # fmt: skip
        """Turn a bid's lock into an allocation; a lock that lapsed is made good if there is still room.

        One that has lined up stays in its line, with the allocation's name.

        Raises:
            StateError: there is none, or others use the machine so much that the job has no room.
        """
        held = t[HOLDINGS].get(bid_id)
        t[HOLDINGS].remove(bid_id)
        job_id, requester = (held.job_id, held.requester) if held is not None else ("", requester)
        mine = Holding(allocation_id, "place", resources, job_id, "", "", requester, duration)
        if held is not None and held.kind == "place":
            t[HOLDINGS].put(structs.replace(mine, resources=resources.as_run()))
            self._hand_over(t)
            return
        if held is None or held.expires_at <= quantities.utc_now():
            self._check_cap(t, requester, resources)
        crowded = self.crowded(resources, t)
        self._take(t, as_allocation(mine))
        if crowded:
            raise StateError(crowded, code="machine_busy")

    def has(self, source: Source, key: str) -> bool:
        """Say whether a bid, a unit or an allocation holds something here, or is in the line."""
        return source[HOLDINGS].has(key)

    def holds(self, source: Source, requester: str) -> bool:
        """Say whether jobs of a requester run here, or have something locked."""
        return any(row.requester == requester for row in self.taken(source))

    def _take(self, t: Transaction, holding: Holding) -> None:
        left, taken = self.available(t).resources, holding.resources.as_run()
        try:
            left.minus(taken)
        except ValueError as error:
            raise StateError(f"not enough {error} is left", code="not_available") from None
        t[HOLDINGS].put(structs.replace(holding, resources=taken))

    def release(self, t: Transaction, key: str) -> None:
        """Give back what a bid locked, or what an allocation has, to who is next in line; and sweep what has lapsed."""
        held = t[HOLDINGS].get(key)
        t[HOLDINGS].remove(key)
        sweep(t)
        self._hand_over(t)
        t.then(partial(self.on_release, held.requester if held is not None else ""))

    def get_preferences(self, source: Source | None = None) -> CapabilityComparator:
        """Return this node's preferences, as a provider and as a requester (second seed: `getPreferences`)."""
        row = (source or self._store)[PREFERENCES].get("comparator")
        return row.comparator if row is not None else CapabilityComparator()

    async def set_preferences(self, comparator: CapabilityComparator, price: PriceBid | None = None) -> None:
        """Keep the preferences, and the provider's price where one is given (second seed: `setPreferences`).

        Raises:
            UsageError: they could not be read again.
        """
        comparator = checked(comparator)

        def change(t: Transaction) -> None:
            known = t[PREFERENCES].get("comparator") or Preferences("comparator")
            kept = known.price if price is None else price
            t[PREFERENCES].put(structs.replace(known, comparator=comparator, price=kept))
            t.save_event("", "preferences_set", rules=len(comparator.rules), bid_rules=len(comparator.bid_rules))

        await self._store.change(change)

    def price(self) -> PriceBid:
        """Return the provider's price; nothing, for volunteer compute."""
        row = self._store[PREFERENCES].get("comparator")
        return row.price if row is not None else PriceBid()


def _is_free_at(row: Holding, at: str) -> bool:
    """Say whether what somebody has is free again at a time; nothing is where no time is named."""
    return bool(at and row.ends_at and row.ends_at <= at)
