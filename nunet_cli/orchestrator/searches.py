"""Searches that are out, and jobs that wait for a provider with room, at the requester: in memory alone."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from nunet_cli.records.bids import MOST_OPEN, BidRequest
from nunet_cli.records.capability import Resources
from nunet_cli.records.jobs import Job

# the turns that are looked through at a time; seconds for which a bid request that was handed to one provider is not
# handed to others
LOOKED_THROUGH, HANDED = 1000, 2.0
# seconds for which nothing is kept for a provider that had bid requests to itself and did not bid; and those, for each
# turn that was looked through, after which one that found nothing, or did not bid for what it found, may have all
# looked through again: some 4 % of a core
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
        # the bid requests of those jobs
        self._open: dict[str, str] = {}
        # since when providers, by DID, have let bid requests lie, and until when those that found nothing may not ask
        self._idle: dict[str, float] = {}
        # with what the first job needs that needs more than they had
        self._in_vain: dict[str, tuple[float, Resources | None]] = {}
        # until when those that found something, and did not bid since, have no more than that, and what it was
        self._found: dict[str, tuple[float, list[Turn]]] = {}

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
        self._open[turn.job.id] = turn.request.id
        try:
            yield
        finally:
            self._turns.remove(turn)
            self._open.pop(turn.job.id, None)

    def hand_out(
        self, did: str, left: Resources, is_for: Callable[[Turn], bool]
    ) -> tuple[list[BidRequest], Resources | None]:
        """Return bid requests that wait and fit into what somebody has left, those that have waited longest first.

        One that another has had just now is left to that one, so many at a time; who asks only to keep the others from
        them has nothing to itself. Where there is none that fits, the second is what the first one needs that does not.
        """
        now = trio.current_time()
        self._forget_old(now)
        if did in self._in_vain:
            return [], self._in_vain[did][1]
        again = [turn for turn in self._found[did][1] if self._waits(turn)] if did in self._found else []
        found, larger = self._pick(did, left, again, is_for)
        if not found:
            turns = self._turns[:LOOKED_THROUGH]
            pause_ends = now + LOOK_AGAIN * len(turns)
            found, larger = self._pick(did, left, turns, is_for)
            if found:
                self._found[did] = pause_ends, found
            else:
                self._in_vain[did] = pause_ends, larger
        return [turn.request for turn in found], None if found else larger

    def _waits(self, turn: Turn) -> bool:
        return self._open.get(turn.job.id) == turn.request.id

    def _pick(
        self, did: str, left: Resources, turns: list[Turn], is_for: Callable[[Turn], bool]
    ) -> tuple[list[Turn], Resources | None]:
        """Return those of some turns that somebody may have now, and what the first one needs that does not fit."""
        now, found, larger = trio.current_time(), list[Turn](), None
        kept = sum(other == did for other, _ in self._handed.values())
        for turn in turns:
            needs = turn.request.required_capability.resources.as_run()
            fits = left.fits(needs)
            if turn.job.id in self._handed or not (fits or larger is None) or not is_for(turn):
                continue
            if not fits:
                larger = needs
                continue
            found.append(turn)
            # of many units there is some for others
            if turn.request.count == 1 and did not in self._idle and kept < MOST_OPEN:
                self._handed[turn.job.id] = did, now
                kept += 1
            left = left.minus(needs)
            if len(found) == MOST_OPEN:
                break
        return found, larger

    def _forget_old(self, now: float) -> None:
        for job_id in [job_id for job_id, (_, at) in self._handed.items() if now >= at + HANDED]:
            did, _ = self._handed.pop(job_id)
            if job_id in self._open:
                # it waits still: nobody has bid
                self._idle[did] = now
        self._idle = {did: since for did, since in self._idle.items() if now < since + IDLE}
        self._in_vain = {did: vain for did, vain in self._in_vain.items() if now < vain[0]}
        self._found = {did: found for did, found in self._found.items() if now < found[0]}

    def note_bid(self, did: str) -> None:
        """Note that a provider has bid, which may have all that waits looked through at its next question."""
        self._found.pop(did, None)

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
