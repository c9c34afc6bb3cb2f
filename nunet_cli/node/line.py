"""Who has lined up at this machine: jobs that have their contract, and have what is given back next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta

import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import StateError
from nunet_cli.records.allocations import HOLDINGS, Holding
from nunet_cli.records.capability import Capability, Resources

Source = Store | Transaction
# what lapses by itself
LEASES = ("lock", "place")
# jobs of a requester in the line, at most, for each that it has running
LINED_UP = 2
# seconds between looks at the machine, for those who have lined up
LINE_PAUSE = 5.0


class Line(ABC):
    """The line at a machine: its places are holdings of their own kind, which hold nothing until they are handed over.

    `gives_way` says whether a requester's jobs in the line let others have their turn first.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._handed = trio.Event()
        self.gives_way: Callable[[str], bool] = lambda _requester: False

    @abstractmethod
    def is_onboarded(self, source: Source | None = None) -> bool:
        """Say whether this node offers capability."""

    @abstractmethod
    def available(self, source: Source, at: str = "") -> Capability:
        """Return what is left."""

    @abstractmethod
    def crowded(self, resources: Resources, source: Source | None = None) -> str:
        """Return why others leave no room for a job on the machine; empty where they do."""

    @abstractmethod
    def over_cap(self, source: Source, requester: str, resources: Resources, at: str = "") -> str:
        """Return why a requester may not have one job more here; empty where it may."""

    def line_up(
        self, t: Transaction, bid_id: str, job_id: str, resources: Resources, until: str, duration: int, requester: str
    ) -> None:
        """Note that a unit of a bid is to have what is given back next; until a time, unless it is invoked.

        Args:
            t: the change that this is part of.
            bid_id: the unit.
            job_id: its job.
            resources: what it will need.
            until: how long it waits to be invoked, RFC 3339.
            duration: the seconds that the job may run.
            requester: whose job it is, by DID.

        Raises:
            StateError: of those that wait there are enough for what the requester has running here; code `no_place`.
        """
        t[HOLDINGS].remove(bid_id)
        sweep(t)
        waiting = sum(row.requester == requester for row in t[HOLDINGS].by("kind", "place"))
        running = sum(row.requester == requester for row in t[HOLDINGS].by("kind", "lock", "allocation"))
        # those that began together may end together, and of very short ones another comes before there is a contract
        if waiting >= running * LINED_UP:
            raise StateError("enough of your jobs wait for a place here", code="no_place")
        t[HOLDINGS].put(Holding(bid_id, "place", resources.as_run(), job_id, until, "", requester, duration))

    def is_in_line(self, source: Source, key: str) -> bool:
        """Say whether a unit, or an allocation, waits for what is given back next."""
        row = source[HOLDINGS].get(key)
        return row is not None and row.kind == "place"

    async def wait_in_line(self, allocation_id: str, until: float) -> bool:
        """Wait until an allocation has what it has lined up for; False where it has not by a time, in trio's time.

        Where the machine is offered no more, nobody has anything from now on.
        """
        while self.is_in_line(self._store, allocation_id):
            left = until - trio.current_time()
            if left <= 0 or not self.is_onboarded():
                return False
            handed = self._handed
            with trio.move_on_after(min(left, LINE_PAUSE)) as patience:
                await handed.wait()
            if patience.cancelled_caught:
                # others may use the machine less by now
                await self._store.change(self._hand_over)
        return True

    def lines_up(self, source: Source, requester: str) -> bool:
        """Say whether jobs of a requester wait for what is given back next."""
        return any(row.requester == requester for row in source[HOLDINGS].by("kind", "place"))

    def hand_over(self, t: Transaction, requester: str) -> bool:
        """Give what is free to the first job of a requester that has lined up; return whether one has."""
        before = len(t[HOLDINGS].by("kind", "place"))
        self._hand_over(t, requester)
        return len(t[HOLDINGS].by("kind", "place")) < before

    def _hand_over(self, t: Transaction, only: str = "") -> None:
        """Give what is free to those who have lined up, in their order; a unit that is not invoked yet has its lock.

        One that needs more than there is keeps its requester's others waiting behind it, and nobody else's: what one
        has given back is not kept for another's larger job.
        """
        waits: set[str] = set()
        for row in t[HOLDINGS].by("kind", "place"):
            if row.expires_at and row.expires_at <= quantities.utc_now():
                continue
            if row.requester in waits:
                continue
            if row.requester != only if only else self.gives_way(row.requester):
                continue
            if row.requester and self.over_cap(t, row.requester, row.resources):
                # it waits for one of its requester's own
                continue
            # an allocation's has no end
            now_has = as_lock(row) if row.expires_at else as_allocation(row)
            if not self.available(t).resources.fits(row.resources) or self.crowded(row.resources, t):
                waits.add(row.requester)
                continue
            # it goes to the end of the table, which has no meaning for those that hold something
            t[HOLDINGS].remove(row.id)
            t[HOLDINGS].put(now_has)
            t.then(self._wake_line)
            if only:
                return

    def disband(self, t: Transaction) -> None:
        """Have all who have lined up look again, as part of a change that offers the machine no more."""
        t.then(self._wake_line)

    def _wake_line(self) -> None:
        self._handed.set()
        self._handed = trio.Event()


def sweep(t: Transaction) -> None:
    """Forget what has lapsed: it is looked through no more, and a peer may have made many."""
    now = quantities.utc_now()
    for row in t[HOLDINGS].by("kind", *LEASES):
        if row.expires_at and row.expires_at <= now:
            t[HOLDINGS].remove(row.id)


def as_lock(place: Holding) -> Holding:
    """Return the lock that a unit in the line becomes."""
    ends = quantities.parse_time(place.expires_at) + timedelta(seconds=place.duration)
    return structs.replace(place, kind="lock", ends_at=quantities.format_time(ends))


def as_allocation(place: Holding) -> Holding:
    """Return what an allocation in the line becomes."""
    ends = quantities.format_time(quantities.now() + timedelta(seconds=place.duration))
    return structs.replace(place, kind="allocation", expires_at="", ends_at=ends)
