"""What goes on just now, and is known in memory alone: after a restart it is found out anew."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

import trio

from nunet_cli.records.bids import BidRecord
from nunet_cli.records.results import Progress


class No(NamedTuple):
    """Why a bidder does not lock; whether its bid was over when it was asked, and whether it has no room just now."""

    reason: str
    lapsed: bool
    busy: bool = False


class JobLocks:
    """Lets one task at a time take a job through a stage."""

    def __init__(self) -> None:
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)
        self._walks: defaultdict[str, set[trio.CancelScope]] = defaultdict(set)

    @contextlib.asynccontextmanager
    async def hold(self, job_id: str) -> AsyncIterator[None]:
        """Keep every other task from taking a job further; wait for the one that does now."""
        lock = self._locks[job_id]
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(job_id, None)

    @contextlib.contextmanager
    def walk(self, job_id: str) -> Iterator[None]:
        """Let what takes a job from stage to stage be interrupted by who wants to do something else with it.

        After an interruption it goes on behind this, where whoever interrupted has the job.
        """
        with trio.CancelScope() as scope:
            self._walks[job_id].add(scope)
            try:
                yield
            finally:
                self._walks[job_id].discard(scope)
                if not self._walks[job_id]:
                    del self._walks[job_id]

    def interrupt(self, job_id: str) -> None:
        """Interrupt what takes a job from stage to stage; nothing where nobody does."""
        for scope in self._walks.get(job_id, ()):
            scope.cancel()


class Heard:
    """When the provider of each contract last gave a sign of life."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._at)

    def note(self, contract_id: str) -> None:
        """Note that a provider gave a sign of life just now."""
        self._at[contract_id] = trio.current_time()

    def begin(self, contract_id: str) -> float:
        """Count a provider's silence from now on, unless it is counted already; return since when, in trio's time."""
        return self._at.setdefault(contract_id, trio.current_time())

    def since(self, contract_id: str, began: float) -> float:
        """Return when a provider was last heard, in trio's time, but no earlier than somebody began to listen."""
        return max(began, self._at.get(contract_id, began))

    def forget(self, contract_id: str) -> None:
        """Let go of a contract that nobody listens for any more."""
        self._at.pop(contract_id, None)


class JobProgress:
    """What takes a job's time just now, of this node's jobs."""

    def __init__(self) -> None:
        self._now: dict[str, Progress] = {}

    def note(self, job_id: str, progress: Progress) -> None:
        """Note what a job does, and how far it is."""
        self._now[job_id] = progress

    def done(self, job_id: str) -> None:
        """Note that this is over."""
        self._now.pop(job_id, None)

    def all(self) -> dict[str, Progress]:
        """Return what each job does that does something worth saying."""
        return dict(self._now)


class Asked:
    """What a bidder answered that was asked to lock while it was kept here that its bid is the best.

    The stage whose turn is next takes it from here. Where it never comes to that, the lock lapses.
    """

    MOST = 1000

    def __init__(self) -> None:
        self._answers: dict[str, BidRecord | No] = {}

    def keep(self, bid_id: str, answer: BidRecord | No) -> None:
        """Keep an answer."""
        if len(self._answers) >= self.MOST:
            self._answers.clear()
        self._answers[bid_id] = answer

    def take(self, bid_id: str) -> BidRecord | No | None:
        """Return an answer, once; None where nobody was asked yet."""
        return self._answers.pop(bid_id, None)


class Verified:
    """Whom a contract database has just said to be verified.

    A party asks before it signs, to refuse early; what decides is the contract database's look when it records.
    """

    LIFETIME, MOST = 60.0, 10_000

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}

    def note(self, database: str, did: str) -> None:
        """Note that a node is verified."""
        if len(self._until) >= self.MOST:
            self._until.clear()
        self._until[database, did] = trio.current_time() + self.LIFETIME

    def forget(self, database: str, did: str) -> None:
        """Let go of what a contract database does not say any more."""
        self._until.pop((database, did), None)

    def knows(self, database: str, did: str) -> bool:
        """Say whether it was so within the last minute."""
        return self._until.get((database, did), 0.0) > trio.current_time()


class Closings:
    """The contracts that time has to close, each with a task of its own, which sleeps until there is something to do.

    `begin` gives a contract its task, if it needs one; the node says how. Nothing is kept of what is closed.
    """

    def __init__(self) -> None:
        self.begin: Callable[[str], None] = lambda _id: None
        self._woken: dict[str, trio.Event] = {}

    def __len__(self) -> int:
        return len(self._woken)

    def look(self, contract_id: str) -> None:
        """Have a contract looked at: it was changed so that time may have to close it, or has nothing more to do."""
        woken = self._woken.get(contract_id)
        if woken is None:
            self.begin(contract_id)
        else:
            woken.set()

    def watch(self, contract_id: str) -> None:
        """Note that a contract has its task, and that this has looked at it just now."""
        self._woken[contract_id] = trio.Event()

    async def sleep(self, contract_id: str, seconds: float) -> None:
        """Sleep so long, in the task of a contract, or until that is to be looked at."""
        with trio.move_on_after(seconds):
            await self._woken[contract_id].wait()
        self.watch(contract_id)

    def end(self, contract_id: str) -> None:
        """Note that a contract has no task any more."""
        self._woken.pop(contract_id, None)
