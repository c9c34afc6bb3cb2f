"""Taking the children of a group through their stages: in their order, so many at once, and after what they wait for.

A failure is the child's own: what is linked to it does not run, and the others go on, unless the group says `stop`.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Protocol

import trio

from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError
from nunet_cli.groups.ending import NOT_RUN, Failures, conclude, end_failed, failure_of
from nunet_cli.groups.group import release
from nunet_cli.groups.recurring import run_recurring
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import Arrangement, arrange
from nunet_cli.orchestrator import cancel
from nunet_cli.orchestrator.batch import Finding, find_units
from nunet_cli.orchestrator.cancel import Cancelling
from nunet_cli.orchestrator.changes import advance, error_record, find_job
from nunet_cli.orchestrator.needs import HasStore
from nunet_cli.orchestrator.patience import while_full
from nunet_cli.orchestrator.standing import GroupBids
from nunet_cli.records.jobs import JOB_ENDS, JOBS, Job
from nunet_cli.records.machine import REQUESTER

log = logging.getLogger("nunet.group")

Run = Callable[[str], Awaitable[Job]]
# a child that `colocate` names has a provider then
PLACED = frozenset({"contracted", "invoked", "running", "completed", "verified", "settled"})
DONE = JOB_ENDS | {"disputed"}
# items of a batch that are looked after at once where it does not say: each asks for bids, and is a task of this node
PARALLEL = 100
FIND_AGAIN = 1.0


class Walking(Cancelling, Finding, Protocol):
    """Takes the children of a group further."""


async def run_group(ctx: Walking, job_id: str, run: Run) -> Job:
    """Take every child of a group through its stages, in the order of their links; return the group.

    What has ended is left as it is: after a restart, or when children are to run again, the group goes on from there.

    Args:
        ctx: the node's parts.
        job_id: the group.
        run: takes one job through all stages.

    Raises:
        JobFailedError: children failed; the message counts and names them, the others have settled or were called off.
    """
    job = await _begin(ctx, job_id)
    spec = decode_spec(job.spec)
    if spec.type == "recurring":
        return await run_recurring(ctx, job_id, spec, run)
    while True:
        walk = _Walk(ctx, job, spec, run)
        await walk.to_the_end()
        if walk.stopped_by:
            await cancel.cancel_children(ctx, job, f"{walk.stopped_by} failed")
        ended = await conclude(ctx, job_id, walk.failures, walk.stuck)
        if ended is not None:
            return end_failed(ended)


async def _begin(ctx: HasStore, job_id: str) -> Job:
    def change(t: Transaction) -> Job:
        job = t[JOBS].one(job_id)
        if job.state != "posted":
            return job
        return advance(t, job_id, "begin", by=REQUESTER, said={"children": len(job.children)})

    job = find_job(ctx.store, job_id)
    return job if job.state != "posted" else await ctx.store.change(change)


class _Walk:
    """One walk through a group's children, until each has ended, or one failed that stops them all.

    `failures` says, by name, why those failed that did; `stuck` are those among them that could not be ended.
    """

    def __init__(self, ctx: Walking, job: Job, spec: JobSpec, run: Run) -> None:
        self._ctx, self._job, self._run = ctx, job, run
        self._stops = spec.on_failure == "stop"
        self._arranged = Arrangement({}, (), {}) if spec.type == "batch" else arrange(spec)
        self._at_once, self._is_batch = len(job.children), spec.batch is not None
        if spec.batch is not None:
            self._at_once = min(self._at_once, spec.batch.parallel or PARALLEL)
        # what each child waits for
        self._before: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for link in self._arranged.links:
            self._before[self._arranged.child_of[link.to]].append((self._arranged.child_of[link.from_], link.kind))
        self._watched = {source for links in self._before.values() for source, kind in links if kind == "colocate"}
        self._waiting: dict[str, str] = {}
        self._running: set[str] = set()
        self._placed: set[str] = set()
        self._settled: set[str] = set()
        self._wake = trio.Event()
        self.failures: Failures = {}
        self.stuck: set[str] = set()
        # of a batch: the bids for many units of which its items take one each
        self._bids: GroupBids | None = None

    @property
    def stopped_by(self) -> str:
        """The child whose failure stops all others; empty where none does."""
        return next(iter(self.failures), "") if self._stops else ""

    async def to_the_end(self) -> None:
        """Walk."""
        async with trio.open_nursery() as nursery:
            with contextlib.ExitStack() as stack:
                if self._is_batch:
                    self._bids = stack.enter_context(self._ctx.standing.open(self._job.id, self._job.children.values()))
                    self._bids.on_end = lambda: self._wake.set()
                    finding = partial(while_full, self._ctx, self._job.id, partial(find_units, self._ctx, self._bids))
                    # the items wait for it: should it break, it is begun again
                    nursery.start_soon(self._ctx.supervisor.every, FIND_AGAIN, "finding units", finding)
                await self._walk(nursery)

    async def _walk(self, nursery: trio.Nursery) -> None:
        store = self._ctx.store
        changed, told = store.news(self._job.id), store.log(self._job.id)
        nursery.start_soon(self._hear_of_others, changed, told[-1][0] if told else 0)
        self._look()
        while not self.stopped_by:
            self._wake = trio.Event()
            await self._pass_over()
            for name in list(self._startable()):
                child_id = self._waiting.pop(name)
                self._running.add(name)
                if name in self._watched:
                    nursery.start_soon(self._hear_of_place, name, child_id)
                nursery.start_soon(self._take, name, child_id)
            if not self._running and not self._waiting:
                break
            await self._wake.wait()
        nursery.cancel_scope.cancel()

    def _look(self, names: set[str] | None = None) -> None:
        """Find out how children stand that are not being taken further just now; all of them, or those that are named.

        To read thousands takes half a second in which the node does nothing else.
        """
        jobs = self._ctx.store[JOBS]
        if names is None:
            found = {child.id: child for child in jobs.by("parent", self._job.id)}
        else:
            found = {child_id: jobs.one(child_id) for name, child_id in self._job.children.items() if name in names}
        for name, child_id in self._job.children.items():
            child = found.get(child_id)
            if child is None or name in self._running:
                continue
            if child.state in DONE:
                self._note_end(name, child)
            elif name not in self.stuck:
                self.failures.pop(name, None)
                self._waiting[name] = child_id
        # in their order, also where some are to run again
        self._waiting = {name: self._waiting[name] for name in self._job.children if name in self._waiting}

    def _note_end(self, name: str, child: Job) -> None:
        if child.state == "settled":
            self._settled.add(name)
        else:
            self.failures[name] = failure_of(child)

    def _startable(self) -> Iterator[str]:
        """Yield the children for which there is a place, and nothing to wait for."""
        # whose program has ended, and is being settled, needs no place; but not any number of them
        settling = len(self._bids.settling) if self._bids is not None else 0
        places = self._at_once - len(self._running) + min(settling, PARALLEL)
        for name in self._waiting:
            if places <= 0:
                return
            if all(self._is_met(source, kind) for source, kind in self._before.get(name, ())):
                places -= 1
                yield name

    def _is_met(self, source: str, kind: str) -> bool:
        return source in self._settled or (kind == "colocate" and source in self._placed and source in self._running)

    async def _pass_over(self) -> None:
        """End what waits for a child that failed: it does not run, and what waits for it does not, either."""
        if self._stops or not self._before:
            return
        while lost := {
            name: source
            for name in self._waiting
            for source, _ in self._before.get(name, ())
            if source in self.failures
        }:
            for name, source in lost.items():
                child_id = self._waiting.pop(name)
                why = f"{source}, which it is linked to, {_said(self.failures[source])}"
                self._note_end(name, await cancel.call_off(self._ctx, child_id, why))

    async def _take(self, name: str, child_id: str) -> None:
        async def go_through() -> Job:
            await release(self._ctx, self._job, self._arranged, name)
            return await self._run(child_id)

        try:
            self._note_end(name, await while_full(self._ctx, child_id, go_through))
        except NunetError as error:
            log.info("child %s of %s: %s", name, self._job.id, error)
            await self._give_up(name, child_id, error)
        except Exception as error:
            # this node's own fault: as much as any failure it is that of one child, and the others go on
            self._ctx.supervisor.note("child", error)
            found = NunetError("the node could not take it further", code="internal", hint="see: nunet node logs")
            self.stuck.add(name)
            if await self._ctx.supervisor.watch("child", self._give_up, name, child_id, found):
                self.stuck -= {name} if find_job(self._ctx.store, child_id).state in DONE else set()
        finally:
            self._running.discard(name)
            self._ctx.standing.leave(self._job.id, child_id)
            self._wake.set()

    async def _give_up(self, name: str, child_id: str, error: NunetError) -> None:
        self.failures[name] = error
        if find_job(self._ctx.store, child_id).state not in DONE:
            # it has not ended by itself, and nobody would take it further
            left = await cancel.call_off(self._ctx, child_id, error.message, error_record(error))
            self.stuck |= set() if left.state in DONE else {name}

    async def _hear_of_place(self, name: str, child_id: str) -> None:
        """Find out when a child has got a provider: others are to run there."""
        while name in self._running:
            changed = self._ctx.store.news(child_id)
            if find_job(self._ctx.store, child_id).state in PLACED:
                self._placed.add(name)
                self._wake.set()
                return
            await changed.wait()

    async def _hear_of_others(self, changed: trio.Event, seen: int) -> None:
        """Hear of children that a person has run again: that is said in the group's log."""
        store = self._ctx.store
        while True:
            await changed.wait()
            changed, told = store.news(self._job.id), store.log(self._job.id, after=seen)
            seen = told[-1][0] if told else seen
            # most of what is said of a group is of its search
            again = [event.data.get("children") for _, event in told if event.type == "job_retried"]
            if again:
                named = [names for names in again if names]
                self._look(set().union(*named) if len(named) == len(again) else None)
                self._wake.set()


def _said(error: NunetError) -> str:
    """Return what became of a child, as the end of a sentence."""
    return "did not run" if error.code == NOT_RUN else "failed"
