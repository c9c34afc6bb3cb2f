"""Who waits for room on this machine, and whose turn is next: for a provider that looks for work; in memory alone."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import trio

from nunet_cli.orchestrator.idle_locks import IdleLocks
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.capability import PriceBid

# who waits, at most
MOST_WAITING = 500
# peers that are asked together as they came, and the seconds for which one that comes again is not
MOST_CAME, MEET_AGAIN = 4, 10.0
# seconds within which who was declined waits for its turn
SOON = 0.25
# seconds for which what is free is saved until it is enough for the one whose turn it is; and for how many times as
# long as it was saved in vain nothing is: whoever says what it needs, and never takes it, costs a tenth of the machine
LONGEST_SAVING, SAVED_IN_VAIN = 60.0, 9.0
# seconds for which one is not waited for that said it would take what is free, and let it lie; they double each time
FIRST_DOUBT, LONGEST_DOUBT = 2.0, 60.0
# units that were given back before they were taken, of which it is remembered, and for how many seconds
MOST_GIVEN_BACK, REMEMBERED = 10_000, 120.0


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
        # for whom what is free is saved, and since when; until when it is saved for nobody
        self._saving: tuple[str, float] | None = None
        self._no_saving = 0.0
        # by requester: how often in a row it let its turn lie, and until when it has none
        self._doubts: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._given_back: OrderedDict[str, float] = OrderedDict()
        # bids for many units, each with the preferences and the price against which it was held last
        self._decided: OrderedDict[str, tuple[CapabilityComparator, PriceBid]] = OrderedDict()

    def note_waiting(self, did: str, *, refills: bool = False) -> None:
        """Note a requester that was declined because this machine is busy; of very many the first is forgotten.

        Args:
            did: the requester.
            refills: it has a bid for many units, and takes the next one itself when one of its own ends.
        """
        if trio.current_time() < self._doubts.get(did, (0, 0.0))[1]:
            return
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

    def end_turn(self, did: str) -> None:
        """Note that the turn of a requester is over, whatever it has made of it."""
        self._turns.discard(did)

    def may_take(self, did: str) -> bool:
        """Say whether a requester may have one job more: nobody else waits, or it is its turn."""
        return did in self._turns or not self.others(did)

    def took_turn(self, did: str) -> None:
        """Note that a requester has had its turn."""
        self._turns.discard(did)
        self._doubts.pop(did, None)
        if self._saving is not None and self._saving[0] == did:
            self._saving = None
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

    def let_lie(self, did: str) -> None:
        """Note that a requester let its turn lie: from the second time on others do not wait for it, for a while."""
        times, _ = self._doubts.get(did, (0, 0.0))
        # it may be far away, and slow
        pause = min(LONGEST_DOUBT, FIRST_DOUBT * 2.0 ** min(times - 1, 10)) if times else 0.0
        self._doubts[did] = times + 1, trio.current_time() + pause
        self._doubts.move_to_end(did)
        while len(self._doubts) > MOST_WAITING:
            self._doubts.popitem(last=False)
        self.served(did)
        if pause:
            self.forget(did)

    @property
    def is_saving(self) -> bool:
        """Whether what is free is saved for somebody."""
        return self._saving is not None

    def save_for(self, did: str) -> bool:
        """Say whether what is free is saved for a requester whose turn it is, until there is enough for its job."""
        now = trio.current_time()
        if now < self._no_saving:
            return False
        if self._saving is None or self._saving[0] != did:
            self._end_saving(now)
            self._saving = did, now
        if now < self._saving[1] + LONGEST_SAVING and now >= self._no_saving:
            return True
        self._end_saving(now)
        return False

    def _end_saving(self, now: float) -> None:
        """Note that what was saved was not taken: where others waited, that was at their cost."""
        if self._saving is not None:
            did, since = self._saving
            self._turns.discard(did)
            if self.others(did):
                self._no_saving = now + (now - since) * SAVED_IN_VAIN
            self._saving = None

    def give_back_first(self, bid_id: str) -> None:
        """Note that a unit was given back that was not taken yet: the order has overtaken the proposal."""
        self._given_back[bid_id] = trio.current_time()
        while len(self._given_back) > MOST_GIVEN_BACK:
            self._given_back.popitem(last=False)

    def was_given_back(self, bid_id: str) -> bool:
        """Say whether a unit was given back a while ago, and is not to be taken any more."""
        return trio.current_time() < self._given_back.get(bid_id, -REMEMBERED) + REMEMBERED

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
        if self._saving is not None and self._saving[0] == did:
            self._end_saving(trio.current_time())
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
        now = trio.current_time()
        if self._saving is not None and now >= self._saving[1] + LONGEST_SAVING:
            self._end_saving(now)
        if self._saving is not None:
            timeout = min(timeout, self._saving[1] + LONGEST_SAVING - now)
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
