"""What a provider offers: its registered capability, the options it was asked for with, its preferences and price."""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct, field

from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.capability import MOST_SPEED, PriceBid, Speeds
from nunet_cli.records.kyc import Kyc
from nunet_cli.records.table import Table


class Benchmark(Struct, frozen=True):
    """Measured speeds: SHA-256 of one core, copying of memory, and synced writing to disk, all in bytes a second."""

    cpu_hash: float
    memory_copy: float
    disk_write: float
    at: str

    @property
    def speeds(self) -> Speeds:
        """What of it is part of a capability."""
        return Speeds(*(min(MOST_SPEED, int(value)) for value in (self.cpu_hash, self.memory_copy, self.disk_write)))


class OnboardOptions(Struct, forbid_unknown_fields=True, frozen=True):
    """What a person asks for at onboarding.

    None leaves a value as it was offered before; and where nothing was, at the most that the headroom rule allows, for
    nothing. `reset` forgets what was offered before. A bare name in `kycs` is from version 0.1, and is not taken.
    """

    cpu: float | None = None
    memory: str | None = None
    disk: str | None = None
    gpu: int | None = None
    price: str | None = None
    max_share: float | None = None
    max_duration: str | None = None
    localities: tuple[str, ...] | None = None
    storage: tuple[str, ...] | None = None
    ports: tuple[int, ...] | None = None
    bandwidth: str | None = None
    vpn: bool | None = None
    kycs: tuple[Kyc | str, ...] | None = None
    reset: bool = False


class Registered(Struct, frozen=True):
    """What was registered at onboarding; the only row's `id` is `registered`.

    The capability is kept as JSON and read where it is used: an earlier version took what it could not read again.
    """

    id: str
    capability: Raw
    at: str
    benchmark: Benchmark | None = None


class Offer(Struct, frozen=True):
    """The options of the last onboarding, which outlive offboarding; the only row's `id` is `offer`."""

    id: str
    options: OnboardOptions


class Preferences(Struct, frozen=True):
    """The node's preferences and its price; the only row's `id` is `comparator`."""

    id: str
    comparator: CapabilityComparator = field(default_factory=CapabilityComparator)
    price: PriceBid = field(default_factory=PriceBid)


class ActsAs(Struct, frozen=True):
    """The roles beside requester and provider in which the node runs; the only row's `id` is `roles`."""

    id: str
    roles: tuple[str, ...] = ()


def _only(name: str) -> Any:
    def upgrade(row: dict[str, Any]) -> dict[str, Any] | None:
        return row if row.get("id") == name else None

    return upgrade


REGISTERED_CAPABILITY = Table("registered", Registered, first_name="capabilities", upgrade=_only("registered"))
OFFERS = Table("offers", Offer, first_name="capabilities", upgrade=_only("offer"))
PREFERENCES = Table("preferences", Preferences)
ACTS_AS = Table("acts_as", ActsAs)
