"""The bids for many units that stand, at the requester: how many of each are taken, and which items wait; in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import trio

from nunet_cli.errors import NoBidError
from nunet_cli.records.bids import BidRecord, CapabilityComparator, unit_id
from nunet_cli.records.capability import Resources

# the next contract is made while the job before runs unless such jobs take more seconds than that: it saves the time of
# a contract, and a place in a line is worth nothing if it takes long to come free. As long as none has ended they may
# be short; a provider lets go of what stays in its line for longer
SHORT = 60.0
# how many are taken for each place: one runs, and one lines up behind it; of items that take less than so many seconds,
# which is as long as a contract takes, two do
AHEAD, VERY_SHORT, FAR_AHEAD = 2, 0.5, 3
# a bidder that had no place for one more is asked again after so many seconds, if nothing happens before
LATER = 5.0
# one that has refused so many items in a row for reasons of its own gets no more of them
MANY_REFUSALS = 3
# one that has said so often in a row that it has room, and then had none, is not believed for a while, which doubles
BELIEVED, FIRST_DOUBT, LONGEST_DOUBT = 4, 1.0, 60.0


@dataclass(slots=True)
class _Bidder:
    """What a provider has made of the items of a batch: also once its bid is over.

    `said_room` is whether it has said that it has room since an item was to have some, `in_vain` how often in a row it
    then had none, `refused` how many items in a row it has refused for reasons of its own.
    """

    said_room: bool = False
    in_vain: int = 0
    refused: int = 0
    doubted_until: float = 0.0

    def note_vain(self, now: float) -> None:
        """Note that it did not take an item; those that it did not take together count once."""
        if not self.said_room:
            return
        self.said_room = False
        self.in_vain += 1
        if self.in_vain >= BELIEVED:
            pause = min(LONGEST_DOUBT, FIRST_DOUBT * 2.0 ** min(self.in_vain - BELIEVED, 10))
            self.doubted_until = now + pause


@dataclass(slots=True)
class StandingBid:
    """A bid that stands: for how many units at once, as far as is known here, and which jobs have one.

    `pending` are those of them whose contract is not made yet: where it last came to nothing, one at a time.
    """

    bid: BidRecord
    units: int
    bidder: _Bidder
    taken: dict[str, str] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    # how many contracts were made under it; how many are made for each place
    agreed: int = 0
    ahead: int = AHEAD
    full_until: float = 0.0

    def has_room(self) -> bool:
        """Say whether one unit more may be taken that is begun at once."""
        return self._may_ask() and len(self.taken) < self.units

    def may_line_up(self, now: float) -> bool:
        """Say whether one unit more may be taken that waits for what is given back next; first come those that run."""
        is_full = self.agreed >= self.units and now >= self.full_until
        return is_full and self._may_ask() and len(self.taken) < self.units * self.ahead

    def _may_ask(self) -> bool:
        return not self.pending or not self.bidder.in_vain

    def note_full(self, now: float) -> None:
        """Note that there was no room for one that was to have a unit."""
        self.units = min(self.units, len(self.taken))
        self.full_until = now + LATER


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
        # under which preferences the bids were taken
        self.preferences: CapabilityComparator | None = None
        self.bids: dict[str, StandingBid] = {}
        self.waiting: dict[str, _Waiter] = {}
        self.settling: set[str] = set()
        self.dropped = 0
        self.on_end: Callable[[], None] = lambda: None
        # how many units of each bid were ever taken: none has the name of another
        self._numbers: dict[str, int] = {}
        self._bidders: dict[str, _Bidder] = {}
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
        while True:
            waiter = self.waiting[job_id] = _Waiter(job_id)
            self.fill()
            try:
                await waiter.event.wait()
            except BaseException:
                if self.give_back(job_id) is not None:
                    self.fill()
                raise
            finally:
                self.waiting.pop(job_id, None)
            if waiter.error is not None:
                raise waiter.error
            assert waiter.taken is not None
            if any(job_id in standing.taken for standing in self.bids.values()):
                return waiter.taken
            # the bid was over before this one could take its unit: it waits for another

    def next(self) -> str:
        """Return which of those that wait comes first in the batch."""
        return min(self.waiting, key=lambda job_id: self._order.get(job_id, 0))

    def fill(self) -> None:
        """Give what is free to those who wait, the best bids and the first items first; nobody lines up before."""
        now = trio.current_time()
        for standing in self.bids.values():
            while self.waiting and standing.has_room():
                self._give(standing)
        lines = [standing for standing in self.bids.values() if standing.may_line_up(now)]
        while self.waiting and lines:
            # the shortest line, for its places
            shortest = min(lines, key=lambda standing: len(standing.taken) / max(1, standing.units))
            self._give(shortest)
            if not shortest.may_line_up(now):
                lines.remove(shortest)
        if self.waiting:
            self.wake()

    def _give(self, standing: StandingBid) -> None:
        waiter = self.waiting.pop(self.next())
        number = self._numbers[standing.bid.id] = self._numbers.get(standing.bid.id, 0) + 1
        waiter.taken = Taken(standing.bid, unit_id(standing.bid.id, number))
        standing.taken[waiter.job_id] = waiter.taken.name
        standing.pending.add(waiter.job_id)
        waiter.event.set()

    def hold_against(self, preferences: CapabilityComparator) -> bool:
        """Say whether the bids were taken under these preferences; where they were not, none stands any more."""
        if self.preferences == preferences:
            return True
        self.bids.clear()
        self.preferences = preferences
        self.wake()
        return False

    def fail(self, error: NoBidError) -> None:
        """Tell those who wait that nobody can run them."""
        for waiter in self.waiting.values():
            waiter.error = error
            waiter.event.set()
        self.waiting.clear()

    def bidder(self, did: str) -> _Bidder:
        """Return what a provider has made of the items so far."""
        return self._bidders.setdefault(did, _Bidder())

    def barred(self) -> set[str]:
        """Return the providers that get no items of this batch: they bid for them, and refuse them."""
        return {did for did, bidder in self._bidders.items() if bidder.refused >= MANY_REFUSALS}

    def stand(self, bid: BidRecord) -> None:
        """Let a bid stand; a newer one of the same provider takes the place of the one before."""
        before, bidder = self.bids.get(bid.did), self.bidder(bid.did)
        if trio.current_time() < bidder.doubted_until or (before is not None and before.bid.id == bid.id):
            return
        bidder.said_room = True
        if before is None:
            self.bids[bid.did] = StandingBid(bid, bid.offer.units, bidder)
        else:
            # what it has room for comes on top of what it runs already
            units = len(before.taken) + bid.offer.units
            self.bids[bid.did] = replace(before, bid=bid, units=units, full_until=0.0)

    def give_back(self, job_id: str) -> StandingBid | None:
        """Give back the unit that an item has; return its bid, or None where it has none."""
        for standing in self.bids.values():
            if standing.taken.pop(job_id, None) is not None:
                standing.pending.discard(job_id)
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
            standing.ahead = FAR_AHEAD if seconds < VERY_SHORT else AHEAD if seconds <= SHORT else 1
            group.dropped = 0
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

    def agreed(self, group_id: str, job_id: str) -> None:
        """Note that a provider has taken an item: it had the room that it said to have."""
        group = self._groups.get(group_id)
        if group is None:
            return
        for standing in group.bids.values():
            if job_id in standing.taken:
                was_slow, bidder = standing.bidder.in_vain > 0, standing.bidder
                bidder.said_room, bidder.in_vain = False, 0
                bidder.refused = 0 if bidder.refused < MANY_REFUSALS else bidder.refused
                standing.pending.discard(job_id)
                standing.agreed += 1
                if was_slow or standing.agreed == standing.units:
                    group.fill()

    def turned_down(self, group_id: str, job_id: str, *, stands: bool) -> None:
        """Note that a provider did not take an item: its bid `stands`, and has no room just now, or is over."""
        group = self._groups.get(group_id)
        standing = group.give_back(job_id) if group is not None else None
        if group is None or standing is None:
            return
        standing.bidder.note_vain(trio.current_time())
        if stands:
            standing.note_full(trio.current_time())
        elif group.bids.get(standing.bid.did) is standing:
            del group.bids[standing.bid.did]
            group.dropped += 1
        group.wake()

    def refused(self, group_id: str, did: str) -> bool:
        """Note that a provider has refused an item for a reason of its own; say whether it gets no more of them."""
        group = self._groups.get(group_id)
        if group is None:
            return False
        group.bidder(did).refused += 1
        return did in group.barred()

    def note_room(self, did: str, left: Resources) -> tuple[bool, Resources | None]:
        """Note that a provider whose bids stand has room for more; return whether there are items for it.

        Where there are only such as need more than it has left, the second is what these need.
        """
        has_work, larger = False, None
        for group in self._groups.values():
            standing = group.bids.get(did)
            if standing is None or group.needs is None or not group.waiting:
                continue
            if trio.current_time() < standing.bidder.doubted_until:
                # it would have those that others could run
                continue
            more = left.times(group.needs, len(group.waiting))
            if not more:
                larger = larger or group.needs
                continue
            has_work = True
            left = left.minus_times(group.needs, more)
            # what has lined up there has a place before it
            standing.units = max(standing.units, min(standing.units, len(standing.taken)) + more)
            standing.full_until, standing.bidder.said_room = 0.0, True
            group.fill()
        return has_work, None if has_work else larger

    def stands(self, group_id: str, did: str) -> bool:
        """Say whether a bid of a provider stands for a batch."""
        group = self._groups.get(group_id)
        return group is not None and did in group.bids
