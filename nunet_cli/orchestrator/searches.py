"""Searches that are out, and jobs that wait, at the requester; who waits for room, at the provider: in memory alone."""

from __future__ import annotations

import bisect
import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from nunet_cli.orchestrator.idle_locks import IdleLocks
from nunet_cli.records.bids import MOST_OPEN, BidRequest, CapabilityComparator
from nunet_cli.records.capability import PriceBid, Resources
from nunet_cli.records.jobs import Job

# who waits for a provider, at most; the turns that are looked through at a time; seconds for which a bid request that
# was handed to one provider is not handed to others
MOST_WAITING, LOOKED_THROUGH, HANDED = 500, 1000, 2.0
# peers that are asked together as they came, and the seconds for which one that comes again is not
MOST_CAME, MEET_AGAIN = 4, 10.0
# seconds within which who was declined waits for its turn
SOON = 0.25
# seconds for which nothing is kept for a provider that had bid requests to itself and did not bid; and those, for each
# turn that was looked through, after which one that found nothing may have all looked through again: some 4 % of a core
IDLE, LOOK_AGAIN = 60.0, 1e-4


@dataclass(slots=True)
class _Out:
    """A bid request that is out: the bids that it has, the refusals that came by relay, and what wakes who waits."""

    answers: int = 0
    refusals: int = 0
    news: trio.Event = field(default_factory=trio.Event)


class Turn(NamedTuple):
    """A job that waits for a provider with room: since when it has, its bid request, and the job itself.

    While its search is out, it waits for those alone who said that they were busy (`is_out`).
    """

    since: str
    request: BidRequest
    job: Job
    is_out: bool = False


class Searches:
    """The bid requests that are out, and how many bids, and refusals by relay, each has.

    And for how long this node has looked around.
    """

    def __init__(self) -> None:
        self._began = trio.current_time()
        self._out: dict[str, _Out] = {}
        # in the order of their turns, and when each was last handed out
        self._turns: list[Turn] = []
        self._handed: dict[str, tuple[str, float]] = {}
        self._open: set[str] = set()
        # since when providers, by DID, have let bid requests lie, and until when those that found nothing may not ask
        self._idle: dict[str, float] = {}
        self._in_vain: dict[str, float] = {}

    @property
    def age(self) -> float:
        """For how many seconds others have had the time to be found."""
        return trio.current_time() - self._began

    @contextlib.contextmanager
    def out(self, request_id: str) -> Iterator[None]:
        """Count the answers to a bid request as long as it is out."""
        self._out[request_id] = _Out()
        try:
            yield
        finally:
            del self._out[request_id]

    def count(self, request_id: str) -> None:
        """Count a bid for a bid request, if that is still out."""
        if request_id in self._out:
            self._out[request_id].answers += 1

    def count_refusal(self, request_id: str) -> int:
        """Count a refusal that came by relay, if its bid request is still out; return how many came before it."""
        out = self._out.get(request_id)
        if out is None:
            return 0
        out.refusals += 1
        return out.refusals - 1

    def answers(self, request_id: str) -> int | None:
        """Return how many have bid for a bid request; None where it is not out."""
        out = self._out.get(request_id)
        return None if out is None else out.answers

    def wake(self, request_id: str) -> None:
        """Wake who waits for the answers to a bid request, if that is still out."""
        out = self._out.get(request_id)
        if out is not None:
            out.news.set()
            out.news = trio.Event()

    @contextlib.contextmanager
    def open(self, turn: Turn) -> Iterator[None]:
        """Let providers that look for work have a bid request, as long as its job waits."""
        with self.shown(turn), self.out(turn.request.id):
            yield

    @contextlib.contextmanager
    def shown(self, turn: Turn) -> Iterator[None]:
        """Let providers that look for work have a bid request that is out."""
        bisect.insort(self._turns, turn, key=_place)
        self._open.add(turn.job.id)
        try:
            yield
        finally:
            self._turns.remove(turn)
            self._open.discard(turn.job.id)

    def hand_out(self, did: str, left: Resources, is_for: Callable[[Turn], bool]) -> list[BidRequest]:
        """Return bid requests that wait and fit into what somebody has left, those that have waited longest first.

        One that another has had just now is left to that one, so many at a time; who asks only to keep the others from
        them has nothing to itself.
        """
        now, found = trio.current_time(), list[BidRequest]()
        self._forget_old(now)
        if now < self._in_vain.get(did, 0.0):
            return found
        kept = sum(other == did for other, _ in self._handed.values())
        for turn in self._turns[:LOOKED_THROUGH]:
            needs = turn.request.required_capability.resources.as_run()
            if turn.job.id in self._handed or not left.fits(needs) or not is_for(turn):
                continue
            found.append(turn.request)
            # of many units there is some for others
            if turn.request.count == 1 and did not in self._idle and kept < MOST_OPEN:
                self._handed[turn.job.id] = did, now
                kept += 1
            left = left.minus(needs)
            if len(found) == MOST_OPEN:
                break
        if not found:
            self._in_vain[did] = now + LOOK_AGAIN * min(len(self._turns), LOOKED_THROUGH)
        return found

    def _forget_old(self, now: float) -> None:
        for job_id in [job_id for job_id, (_, at) in self._handed.items() if now >= at + HANDED]:
            did, _ = self._handed.pop(job_id)
            if job_id in self._open:
                # it waits still: nobody has bid
                self._idle[did] = now
        self._idle = {did: since for did, since in self._idle.items() if now < since + IDLE}
        self._in_vain = {did: until for did, until in self._in_vain.items() if now < until}

    def take_handed(self, job_id: str, did: str) -> bool:
        """Say, once, whether a provider was just given the bid request of a job that waited."""
        if self._handed.get(job_id, ("", 0.0))[0] != did:
            return False
        del self._handed[job_id]
        return True

    async def wait(self, request_id: str, timeout: float) -> None:
        """Wait until there is news of a bid request that is out, at most `timeout` seconds."""
        news = self._out[request_id].news
        with trio.move_on_after(timeout):
            await news.wait()


def _place(turn: Turn) -> tuple[str, str]:
    return turn.since, turn.request.id


class Look(NamedTuple):
    """Why a provider looks for work: something was given back, peers came, or it is time to ask everybody."""

    freed: bool
    around: bool
    came: list[str]


class Work:
    """Who waits for room on this machine, and whether some was given back: for a provider that looks for work.

    And what came of the locks that it gave (`idle_locks`).
    """

    def __init__(self) -> None:
        self.idle_locks = IdleLocks()
        # whether each takes what its own jobs give back without being asked
        self._waiting: OrderedDict[str, bool] = OrderedDict()
        # how many turns a requester has for one of another
        self.weigh: Callable[[str], float] = lambda _did: 1.0
        # by requester: the turns that it has had, in those of one of weight 1
        self._had: dict[str, float] = {}
        # and when it had the last one
        self._last: dict[str, float] = {}
        self._news = trio.Event()
        self._freed = self._around = False
        self._soon = math.inf
        # who came and was not asked yet, and when those that came were last asked
        self._came: dict[str, None] = {}
        self._met: OrderedDict[str, float] = OrderedDict()
        # who was told of room while others waited too
        self._turns: set[str] = set()
        self._taken = trio.Event()
        # bids for many units, each with the preferences and the price against which it was held last
        self._decided: OrderedDict[str, tuple[CapabilityComparator, PriceBid]] = OrderedDict()

    def note_waiting(self, did: str, *, refills: bool = False) -> None:
        """Note a requester that was declined because this machine is busy; of very many the first is forgotten.

        Args:
            did: the requester.
            refills: it has a bid for many units, and takes the next one itself when one of its own ends.
        """
        if did not in self._waiting:
            # who was away has saved nothing up, and who comes has not had less than the others
            self._had[did] = max(self._had.get(did, 0.0), min(map(self._had.__getitem__, self._waiting), default=0.0))
        self._waiting[did] = refills and self._waiting.get(did, True)
        while len(self._waiting) > MOST_WAITING:
            gone, _ = self._waiting.popitem(last=False)
            self._had.pop(gone, None)
            self._last.pop(gone, None)

    def others(self, did: str) -> bool:
        """Say whether another requester waits."""
        return any(waiting != did for waiting in self._waiting)

    def gives_way(self, did: str) -> bool:
        """Say whether a requester lets others have their turn first, and note that it has its own after them."""
        if did in self._turns or not self.others(did):
            return False
        self.note_waiting(did, refills=True)
        return True

    def give_turn(self, did: str) -> None:
        """Let a requester have one job more while others wait as well."""
        self._turns.add(did)

    def may_take(self, did: str) -> bool:
        """Say whether a requester may have one job more: nobody else waits, or it is its turn."""
        return did in self._turns or not self.others(did)

    def took_turn(self, did: str) -> None:
        """Note that a requester has had its turn."""
        self._turns.discard(did)
        self._taken.set()
        self._taken = trio.Event()

    async def turn_taken(self, did: str, patience: float) -> bool:
        """Wait until a requester has had its turn, and say whether it has; after so many seconds it is another's."""
        with trio.move_on_after(patience):
            while did in self._turns:
                await self._taken.wait()
        is_taken = did not in self._turns
        self._turns.discard(did)
        return is_taken

    def pass_over(self, did: str) -> None:
        """Note that a requester could not take its turn: those that had as many are asked before it."""
        if did in self._waiting:
            self._waiting.move_to_end(did)

    def decide(self, bid_id: str, comparator: CapabilityComparator, price: PriceBid) -> None:
        """Note under which preferences, and at which price, a bid for many units was found to hold still."""
        self._decided[bid_id] = comparator, price
        self._decided.move_to_end(bid_id)
        while len(self._decided) > MOST_WAITING:
            self._decided.popitem(last=False)

    def is_decided(self, bid_id: str, comparator: CapabilityComparator, price: PriceBid) -> bool:
        """Say whether these are the preferences and the price that a bid for many units was last held against."""
        return self._decided.get(bid_id) == (comparator, price)

    def turns(self) -> list[str]:
        """Return who waits, in the order of their turns; of those that had as many, who had none for longest first."""
        return sorted(self._waiting, key=lambda did: (self._had[did], self._last.get(did, 0.0)))

    def is_turn(self, did: str) -> bool:
        """Say whether a requester may have what is free: nobody waits, or it is the one whose turn is next."""
        return did in self._turns or next(iter(self.turns()), did) == did

    def served(self, did: str) -> None:
        """Let the others have their turns before one that has had it; of weight 3 it has three for one of theirs.

        Each has a count of what it has had, and the one with the least is next ("stride scheduling": Waldspurger,
        1995).
        """
        if did in self._waiting:
            self._had[did] += 1 / self.weigh(did)
            self._last[did] = trio.current_time()
            self._waiting.move_to_end(did)

    def forget(self, did: str) -> None:
        """Note that a requester waits for nothing."""
        self._waiting.pop(did, None)
        self._turns.discard(did)
        if not self._waiting:
            self._had.clear()
            self._last.clear()
        while len(self._had) > 2 * MOST_WAITING:
            gone = next(other for other in self._had if other not in self._waiting)
            del self._had[gone]
            self._last.pop(gone, None)

    def wake(self, by: str = "") -> None:
        """Note that there is room, or that there may be more than before; `by` is whose job gave it back."""
        if by and all(did == by and refills for did, refills in self._waiting.items()):
            # who could have it takes it
            return
        self._freed = True
        self._news.set()

    def wake_soon(self) -> None:
        """Note that there is room which one could not have whose turn it is not: whose it is may not want it.

        In a moment: who was declined just now waits only once it knows that.
        """
        self._soon = min(self._soon, trio.current_time() + SOON)
        self._news.set()

    def look_again(self, look: Look) -> None:
        """Note that what made a provider look for work is a reason still."""
        self._around |= look.around
        self._came = dict.fromkeys([*look.came, *self._came])
        self._freed = True
        self._news.set()

    def meet(self, did: str) -> None:
        """Note that a peer has come: it may have work; one that comes again and again is not asked each time."""
        now = trio.current_time()
        if now < self._met.get(did, -MEET_AGAIN) + MEET_AGAIN or len(self._came) >= MOST_WAITING:
            return
        self._met[did] = now
        self._met.move_to_end(did)
        while len(self._met) > MOST_WAITING:
            self._met.popitem(last=False)
        self._came[did] = None
        self._news.set()

    def join(self) -> None:
        """Note that this machine is offered from now on: everybody may have work."""
        self._around = True
        self._news.set()

    async def wait(self, timeout: float) -> Look:
        """Wait until there is a reason to look for work; after `timeout` seconds everybody is asked."""
        with trio.move_on_after(timeout) as patience:
            await self._news.wait()
        if not (self._freed or self._around or self._came):
            await trio.sleep_until(min(self._soon, trio.current_time() + SOON))
        self._freed |= self._soon <= trio.current_time()
        self._soon = math.inf
        came = list(self._came)[:MOST_CAME]
        look = Look(self._freed, self._around or patience.cancelled_caught, came)
        self._freed = self._around = False
        for did in came:
            del self._came[did]
        # who is silent takes a second: what is given back meanwhile comes before the rest of those that came
        self._news = trio.Event()
        if self._came:
            self._news.set()
        return look
