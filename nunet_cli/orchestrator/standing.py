"""The bids for many units that stand, at the requester: how many of each are taken, and which items wait; in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from nunet_cli.errors import NoBidError
from nunet_cli.records.bids import BidRecord, unit_id
from nunet_cli.records.capability import Resources

# the next contract is made while the job before runs where such jobs take no more seconds than that: it saves the time
# of a contract, and a place in a line is worth nothing if it takes long to come free
SHORT = 60.0
# a bidder that had no place for one more is asked again after so many seconds, if nothing happens before
LATER, MOST_DOUBLED = 5.0, 6
# how often in a row one that says that it has room may have none after all
BELIEVED = 3


@dataclass(slots=True)
class StandingBid:
    """A bid that stands: for how many units at once, as far as is known here, and which jobs have one."""

    bid: BidRecord
    units: int
    taken: dict[str, str] = field(default_factory=dict)
    number: int = 0
    ahead: bool = False
    full_until: float = 0.0
    # how often in a row it had no place after all
    turned_down: int = 0

    def has_room(self, now: float) -> bool:
        """Say whether one unit more may be taken."""
        count = len(self.taken)
        if count < self.units:
            return True
        return self.ahead and now >= self.full_until and count < self.units * 2

    def take(self, job_id: str) -> str:
        """Take a unit for a job; return its name."""
        self.number += 1
        name = self.taken[job_id] = unit_id(self.bid.id, self.number)
        return name


class Taken(NamedTuple):
    """A unit that an item has: the bid, and the name of the unit."""

    bid: BidRecord
    name: str


class _Waiter:
    """An item that waits for a unit."""

    def __init__(self, job_id: str) -> None:
        self.job_id, self.event = job_id, trio.Event()
        self.taken: Taken | None = None
        self.error: NoBidError | None = None


class GroupBids:
    """The bids that stand for the items of one batch, the best first, and the items that wait, in their order.

    `settling` are those whose program has ended, and which have given their units back; `on_end` is called with each.
    `dropped` counts the bids that were over when an item was to be taken, since the last item ended.
    """

    def __init__(self, group_id: str, order: Iterable[str]) -> None:
        self.group_id = group_id
        self._order = {job_id: place for place, job_id in enumerate(order)}
        self.needs: Resources | None = None
        self.bids: dict[str, StandingBid] = {}
        self.waiting: dict[str, _Waiter] = {}
        self.settling: set[str] = set()
        self.dropped = 0
        self.on_end: Callable[[], None] = lambda: None
        self.news = trio.Event()

    def wake(self) -> None:
        """Wake who looks after these bids."""
        self.news.set()
        self.news = trio.Event()

    async def take(self, job_id: str) -> Taken:
        """Wait until there is a unit for an item, and take it.

        Raises:
            NoBidError: nobody can run it.
        """
        waiter = self.waiting[job_id] = _Waiter(job_id)
        self.fill()
        try:
            await waiter.event.wait()
        except BaseException:
            self.give_back(job_id)
            raise
        finally:
            self.waiting.pop(job_id, None)
        if waiter.error is not None:
            raise waiter.error
        assert waiter.taken is not None
        return waiter.taken

    def next(self) -> str:
        """Return which of those that wait comes first in the batch."""
        return min(self.waiting, key=lambda job_id: self._order.get(job_id, 0))

    def fill(self) -> None:
        """Give what is free to those who wait, the best bids and the first items first."""
        now = trio.current_time()
        for standing in self.bids.values():
            while self.waiting and standing.has_room(now):
                waiter = self.waiting.pop(self.next())
                waiter.taken = Taken(standing.bid, standing.take(waiter.job_id))
                waiter.event.set()
        if self.waiting:
            self.wake()

    def fail(self, error: NoBidError) -> None:
        """Tell those who wait that nobody can run them."""
        for waiter in self.waiting.values():
            waiter.error = error
            waiter.event.set()
        self.waiting.clear()

    def stand(self, bid: BidRecord) -> None:
        """Let a bid stand; a newer one of the same provider takes the place of the one before."""
        before = self.bids.get(bid.did)
        if before is None:
            self.bids[bid.did] = StandingBid(bid, bid.offer.units, ahead=bid.offer.time.duration <= SHORT)
        elif before.bid.id != bid.id:
            # what it has room for comes on top of what it runs already
            units = len(before.taken) + bid.offer.units
            self.bids[bid.did] = StandingBid(bid, units, before.taken, ahead=before.ahead)

    def give_back(self, job_id: str) -> StandingBid | None:
        """Give back the unit that an item has; return its bid, or None where it has none."""
        for standing in self.bids.values():
            if standing.taken.pop(job_id, None) is not None:
                return standing
        return None


class Standing:
    """The bids for many units that stand, by batch."""

    def __init__(self) -> None:
        self._groups: dict[str, GroupBids] = {}

    @contextlib.contextmanager
    def open(self, group_id: str, order: Iterable[str]) -> Iterator[GroupBids]:
        """Let the items of a batch, which have an order, take units of bids for many."""
        group = self._groups[group_id] = GroupBids(group_id, order)
        try:
            yield group
        finally:
            del self._groups[group_id]

    def of(self, group_id: str) -> GroupBids | None:
        """Return the bids of a batch; None where nobody looks after them."""
        return self._groups.get(group_id)

    def ended(self, group_id: str, job_id: str, seconds: float) -> None:
        """Note that the program of an item has ended, after so many seconds: its unit is another's."""
        group = self._groups.get(group_id)
        if group is None:
            return
        standing = group.give_back(job_id)
        if standing is not None:
            standing.ahead, standing.turned_down, group.dropped = seconds <= SHORT, 0, 0
        group.settling.add(job_id)
        group.fill()
        group.on_end()

    def leave(self, group_id: str, job_id: str) -> None:
        """Note that an item needs no unit any more, or another one."""
        group = self._groups.get(group_id)
        if group is None:
            return
        group.settling.discard(job_id)
        if group.give_back(job_id) is not None:
            group.fill()

    def turned_down(self, group_id: str, job_id: str, *, stands: bool) -> None:
        """Note that a provider did not take an item: its bid `stands`, and has no room just now, or is over."""
        group = self._groups.get(group_id)
        standing = group.give_back(job_id) if group is not None else None
        if group is None or standing is None:
            return
        if stands:
            standing.units = min(standing.units, len(standing.taken))
            standing.full_until = trio.current_time() + LATER * 2 ** min(standing.turned_down, MOST_DOUBLED)
            standing.turned_down += 1
        elif group.bids.get(standing.bid.did) is standing:
            del group.bids[standing.bid.did]
            group.dropped += 1
        group.wake()

    def note_room(self, did: str, left: Resources) -> bool:
        """Note that a provider whose bids stand has room for more; return whether there are items for it."""
        has_work = False
        for group in self._groups.values():
            standing = group.bids.get(did)
            if standing is None or group.needs is None or not group.waiting:
                continue
            if standing.turned_down > BELIEVED and trio.current_time() < standing.full_until:
                # it has said so before, and had none
                continue
            has_work = True
            more = left.times(group.needs, len(group.waiting))
            for _ in range(more):
                left = left.minus(group.needs)
            # what has lined up there has a place before it
            standing.units = max(standing.units, min(standing.units, len(standing.taken)) + more)
            standing.full_until = 0.0
            group.fill()
        return has_work

    def stands(self, group_id: str, did: str) -> bool:
        """Say whether a bid of a provider stands for a batch."""
        group = self._groups.get(group_id)
        return group is not None and did in group.bids
