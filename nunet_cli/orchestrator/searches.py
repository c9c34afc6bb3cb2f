"""Searches that are out, and jobs that wait, at the requester; who waits for room, at the provider: in memory alone."""

from __future__ import annotations

import bisect
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from nunet_cli.records.bids import MOST_OPEN, BidRequest
from nunet_cli.records.capability import Resources
from nunet_cli.records.jobs import Job

# who waits for a provider, at most; the turns that are looked through at a time; seconds for which a bid request that
# was handed to one provider is not handed to others
MOST_WAITING, LOOKED_THROUGH, HANDED = 500, 1000, 2.0


@dataclass(slots=True)
class _Out:
    """A bid request that is out: the bids that it has, the refusals that came by relay, and what wakes who waits."""

    answers: int = 0
    refusals: int = 0
    news: trio.Event = field(default_factory=trio.Event)


class Turn(NamedTuple):
    """A job that waits for a provider with room: since when it has, its bid request, and the job itself."""

    since: str
    request: BidRequest
    job: Job


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
        bisect.insort(self._turns, turn, key=_place)
        try:
            with self.out(turn.request.id):
                yield
        finally:
            self._turns.remove(turn)

    def hand_out(self, did: str, left: Resources, is_for: Callable[[Turn], bool]) -> list[BidRequest]:
        """Return bid requests that wait and fit into what somebody has left, those that have waited longest first.

        One that another has had just now is left to that one.
        """
        now, found = trio.current_time(), list[BidRequest]()
        self._handed = {job_id: known for job_id, known in self._handed.items() if now < known[1] + HANDED}
        for turn in self._turns[:LOOKED_THROUGH]:
            needs = turn.request.required_capability.resources.as_run()
            if turn.job.id in self._handed or not left.fits(needs) or not is_for(turn):
                continue
            found.append(turn.request)
            self._handed[turn.job.id] = did, now
            left = left.minus(needs)
            if len(found) == MOST_OPEN:
                break
        return found

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


class Work:
    """Who waits for room on this machine, and whether some was given back: for a provider that looks for work."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._freed = trio.Event()

    def note_waiting(self, did: str) -> None:
        """Note a requester that was declined because this machine is busy; of very many the first is forgotten."""
        self._waiting[did] = None
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)

    def turns(self) -> list[str]:
        """Return who waits, in the order of their turns."""
        return list(self._waiting)

    def served(self, did: str) -> None:
        """Let the others have their turn before one that has had it."""
        if did in self._waiting:
            self._waiting.move_to_end(did)

    def forget(self, did: str) -> None:
        """Note that a requester waits for nothing."""
        self._waiting.pop(did, None)

    def wake(self) -> None:
        """Note that there is room, or that there may be more than before."""
        self._freed.set()

    async def wait(self, timeout: float) -> bool:
        """Wait until something was given back, at most `timeout` seconds; say whether it was."""
        with trio.move_on_after(timeout):
            await self._freed.wait()
        freed, self._freed = self._freed.is_set(), trio.Event()
        return freed
