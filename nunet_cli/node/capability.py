"""Capability accounting (second seed): registered, available = registered − allocated − locked, never negative.

Lock → allocate → release are parts of the transaction that makes them true. Locks are leases and lapse by themselves.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import psutil
from msgspec import structs
from tinydb import Query

from nunet_cli import units
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import StateError, UsageError
from nunet_cli.jobs.capability import Capability, Gpu, Locality, PriceBid, Resources, TimeCapability
from nunet_cli.jobs.job import CapabilityComparator
from nunet_cli.node.benchmark import Benchmark, probe_libraries, probe_machine

log = logging.getLogger("nunet.capability")

HEADROOM = 0.9
JOB_TYPES = ("task",)
TABLE = "capabilities"


class CapabilityAccounting:
    """The node's capability, as rows of the table `capabilities`: `registered`, one per lock, one per allocation."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.executors: dict[str, str] = {}

    def is_onboarded(self) -> bool:
        """Say whether this node offers capability."""
        return self._store.find(TABLE, "registered") is not None

    def get_registered_capability(self, source: Store | Transaction | None = None) -> Capability:
        """Return what was registered at onboarding; nothing on a node that is not onboarded."""
        row = (source or self._store).find(TABLE, "registered")
        return msgspec.convert(row["capability"], Capability) if row else Capability()

    async def set_registered_capability(self, capability: Capability, benchmark: Benchmark | None) -> None:
        """Keep what the node offers, and what its benchmark measured."""
        row = {"id": "registered", "capability": msgspec.to_builtins(capability), "at": units.utc_now()}
        row["benchmark"] = msgspec.to_builtins(benchmark)

        def change(t: Transaction) -> None:
            t.put(TABLE, row)
            t.save_event("", "onboarded", **msgspec.to_builtins(capability.resources))

        await self._store.change(change)

    async def offboard(self) -> None:
        """Offer nothing any more."""

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

    def available(self, source: Store | Transaction) -> Capability:
        """Return what is left (seed: `getAvailableCapability`).

        Raises:
            StateError: more is taken than there is, which never happens as long as every change goes through here.
        """
        registered = self.get_registered_capability(source)
        left = registered.resources
        for row in self.taken(source):
            try:
                left = left.minus(msgspec.convert(row["resources"], Resources))
            except ValueError as error:
                raise StateError(f"more {error} is taken than there is", code="over_committed") from None
        return structs.replace(registered, resources=left, executors=tuple(self.executors))

    def get_available_capability(self) -> Capability:
        """Return what is left now."""
        return self.available(self._store)

    def get_locked_capabilities(self) -> list[dict[str, Any]]:
        """Return the locks that hold."""
        return [row for row in self.taken(self._store) if row["kind"] == "lock"]

    def lock(self, t: Transaction, bid_id: str, job_id: str, resources: Resources, until: str) -> None:
        """Reserve resources for a bid until a time; a second lock of the same bid replaces the first.

        Raises:
            StateError: what is left does not suffice.
        """
        t.table(TABLE).remove(Query().id == bid_id)
        self._take(t, {"id": bid_id, "kind": "lock", "job_id": job_id, "expires_at": until}, resources)

    def is_locked(self, source: Store | Transaction, bid_id: str) -> bool:
        """Say whether a bid's lock is there and has not expired."""
        row = source.find(TABLE, bid_id)
        return row is not None and bool(row["expires_at"] > units.utc_now())

    def allocate(self, t: Transaction, bid_id: str, allocation_id: str, resources: Resources) -> None:
        """Turn a bid's lock into an allocation; a lock that lapsed is made good if there is still room.

        Raises:
            StateError: there is none, or others use the machine so much that the job has no room.
        """
        t.table(TABLE).remove(Query().id == bid_id)
        self._take(t, {"id": allocation_id, "kind": "allocation", "job_id": "", "expires_at": ""}, resources)
        free = psutil.virtual_memory().available
        if resources.memory > free:
            raise StateError(
                f"the machine has {units.format_size(free)} of memory free, the job needs"
                f" {units.format_size(resources.memory)}",
                code="machine_busy",
            )

    def _take(self, t: Transaction, row: dict[str, Any], resources: Resources) -> None:
        left = self.available(t).resources
        try:
            left.minus(resources)
        except ValueError as error:
            raise StateError(f"not enough {error} is left", code="not_available") from None
        t.put(TABLE, {**row, "resources": msgspec.to_builtins(resources)})

    def release(self, t: Transaction, key: str) -> None:
        """Give back what a bid locked, or what an allocation has; and sweep locks that have lapsed."""
        t.table(TABLE).remove(Query().id == key)
        now = units.utc_now()
        t.table(TABLE).remove((Query().kind == "lock") & (Query().expires_at < now))

    def preferences(self) -> CapabilityComparator:
        """Return the provider's preferences (seed: `getPreferences`)."""
        row = self._store.find("preferences", "comparator")
        return msgspec.convert(row["comparator"], CapabilityComparator) if row else CapabilityComparator()

    async def set_preferences(self, comparator: CapabilityComparator, price: PriceBid) -> None:
        """Keep the provider's preferences and price (seed: `setPreferences`)."""
        row = {"id": "comparator", "comparator": msgspec.to_builtins(comparator), "price": msgspec.to_builtins(price)}
        await self._store.change(lambda t: t.put("preferences", row))

    def price(self) -> PriceBid:
        """Return the provider's price; nothing, for volunteer compute."""
        row = self._store.find("preferences", "comparator")
        return msgspec.convert(row["price"], PriceBid) if row else PriceBid()


class OnboardOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a person asks for at onboarding; None takes the most that the headroom rule allows."""

    cpu: float | None = None
    memory: str | None = None
    disk: str | None = None
    gpu: int | None = None
    price: str = "0"
    max_share: float = HEADROOM
    max_duration: str | None = None
    localities: tuple[str, ...] = ()


def plan_onboarding(home: Path, options: OnboardOptions) -> tuple[Capability, PriceBid, Resources]:
    """Return the capability to register, the price, and what the machine has in all.

    Raises:
        UsageError: more is asked for than the machine, or the share of it, has; the message names the flag.
    """
    machine = probe_machine(home)
    share = options.max_share
    if not 0 < share <= HEADROOM:
        raise UsageError(
            f"--max-share: {share:g} is not between 0 and {HEADROOM:g}",
            hint=f"at least {1 - HEADROOM:.0%} of the machine stays with its owner",
        )
    micro, unit = units.parse_price(options.price)
    kind: Any = "per_time_unit" if unit else "per_result"
    price = PriceBid(type=kind, time_unit=unit, amount=units.format_amount(micro))  # type: ignore[arg-type]  # checked by parse_price
    cores = _share("--cpu", options.cpu, machine.cpu.cores, share, lambda value: f"{value:g} cores")
    memory = _share("--memory", _size(options.memory), machine.memory, share, _written)
    disk = _share("--disk", _size(options.disk), machine.disk, share, _written)
    resources = Resources(
        cpu=structs.replace(machine.cpu, cores=round(cores, 3)), memory=int(memory), disk=int(disk),
        gpus=_gpus(options.gpu, machine.gpus),
    )  # fmt: skip
    longest = units.parse_duration(options.max_duration) if options.max_duration else 0
    capability = Capability(
        job_types=JOB_TYPES, resources=resources, libraries=probe_libraries(),
        localities=tuple(_locality(text) for text in options.localities), price=price, time=TimeCapability(max=longest),
    )  # fmt: skip
    return capability, price, machine


def _size(text: str | None) -> float | None:
    return None if text is None else float(units.parse_size(text))


def _written(value: float) -> str:
    return units.format_size(int(value))


def _share(flag: str, wanted: float | None, there: float, share: float, write: Any) -> float:
    most = there * share
    if wanted is None:
        return most
    if wanted < 0:
        raise UsageError(f"{flag}: {wanted:g} is negative")
    if wanted > most:
        raise UsageError(
            f"{flag}: {write(wanted)} is more than {share:.0%} of the {write(there)} that this machine has",
            hint=f"at most {write(most)}",
        )
    return wanted


def _gpus(count: int | None, there: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    if count is None:
        return there
    if count < 0 or count > len(there):
        raise UsageError(f"--gpu: {count} asked for, this machine has {len(there)}")
    return there[:count]


def _locality(text: str) -> Locality:
    kind, equals, name = text.partition("=")
    if not (kind and equals and name):
        raise UsageError(f"--locality: {text!r}", hint="write KIND=NAME, for example country=SE")
    return Locality(kind, name)
