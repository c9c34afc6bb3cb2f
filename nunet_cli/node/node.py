"""The Node (second seed): the main actor. It owns the parts and the tasks, and wires them to each other."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.allocation import cancel as allocation_cancel
from nunet_cli.allocation import recover
from nunet_cli.allocation.reexecute import reexecute
from nunet_cli.allocation.run import run_allocation
from nunet_cli.config import MOST_TOPICS
from nunet_cli.errors import NunetError, StateError, UsageError
from nunet_cli.executor.base import Executor
from nunet_cli.groups import again, orchestrate
from nunet_cli.groups.mended import Mended
from nunet_cli.network.addresses import Address, parse_peer
from nunet_cli.network.discovery import Discovery
from nunet_cli.network.identity import Identity
from nunet_cli.network.messenger import Messenger
from nunet_cli.network.peers import Peer
from nunet_cli.network.topics import BIDS
from nunet_cli.node.benchmark import run_benchmark
from nunet_cli.node.capability import CapabilityAccounting
from nunet_cli.node.care import DAY, Care
from nunet_cli.node.onboarding import keep_offer, plan_onboarding, still_standing
from nunet_cli.node.parts import Parts
from nunet_cli.node.settings import Settings
from nunet_cli.node.watch import Watch
from nunet_cli.orchestrator import (
    agreement,
    bid,
    bid_answers,
    cancel,
    closing,
    contract_keeping,
    disputes,
    execute,
    invoke,
    request,
    select,
    settle,
    telling,
    work,
)
from nunet_cli.orchestrator.changes import find_job, resolve_replicas
from nunet_cli.orchestrator.patience import while_full
from nunet_cli.records.allocations import ALLOCATIONS, Allocation, Holding
from nunet_cli.records.bids import BidRecord, CapabilityComparator
from nunet_cli.records.capability import Capability, PriceBid
from nunet_cli.records.contracts import DATABASE
from nunet_cli.records.jobs import GROUP, JOB, JOB_ENDS, JOBS, Job
from nunet_cli.records.offers import Benchmark, OnboardOptions
from nunet_cli.supervise import Supervisor
from nunet_cli.tokenomics.contract_database import ContractDatabase
from nunet_cli.tokenomics.oracle import Oracle

log = logging.getLogger("nunet.node")

PROBE_INTERVAL = 30.0
CARE_AFTER = 600.0
FORGET_INTERVAL = 3600.0
ROLES = ("contract-database", "oracle")
# the program has ended, and nobody is paid yet
DONE_UNPAID = ("completed", "verified")
OPEN_STATES = sorted({*JOB.states, *GROUP.states} - JOB_ENDS - {"disputed"})


class Edge(msgspec.Struct, frozen=True):
    """An edge of the graph of nodes (second seed: `Vertex`): a peer, and the round-trip time to it in seconds."""

    did: str
    rtt: float | None


class Node:
    """One node in one home. Make it with `open_node`.

    Args:
        ctx: its parts.
        accounting: its capability.
        roles: the roles it takes beside requester and provider.
        announce: whether mDNS tells others of it.
        config_file: where its configuration is kept.
    """

    def __init__(
        self, ctx: Parts, accounting: CapabilityAccounting, roles: tuple[str, ...], *, announce: bool = True,
        config_file: Path | None = None,
    ) -> None:  # fmt: skip
        self._is_announced = announce
        self.settings = Settings(ctx.config, config_file, ctx.threads, self._on_setting)
        self.ctx, self.accounting = ctx, accounting
        self.started_at = quantities.utc_now()
        self.stop_requested = trio.Event()
        self.contract_database: ContractDatabase | None = None
        self.roles = roles
        self._topics = set(ctx.config.network.topics)
        self._orchestrating: dict[str, trio.CancelScope] = {}
        self._once_more: set[str] = set()
        self._discovery: Discovery | None = None
        ctx.begin_allocation = self._begin_allocation
        accounting.on_release, accounting.gives_way = ctx.work.wake, ctx.work.gives_way
        ctx.topics.on_introduced = ctx.work.meet
        ctx.work.weigh = partial(work.weigh, ctx)
        ctx.closings.begin = partial(closing.begin, ctx)
        rooms = bid_answers, bid, telling, work, request, contract_keeping, agreement, invoke, execute, settle, disputes
        for room in rooms:
            room.register(ctx)
        cancel.register(ctx)
        allocation_cancel.register(ctx)
        if "contract-database" in roles:
            self.contract_database = ContractDatabase(ctx.identity, ctx.store, ctx.config, self.mailbox)
        self.care = Care(ctx.store, ctx.blobs, ctx.config.retention)
        accounting.content = ctx.blobs
        if "oracle" in roles:
            knows = partial(ctx.roles.knows, DATABASE)
            self.oracle = Oracle(ctx.identity, ctx.store, self.mailbox, partial(reexecute, ctx), knows)
            ctx.take_completion = self.oracle.completions.take

    @property
    def identity(self) -> Identity:
        """This node's key."""
        return self.ctx.identity

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the network, announce, and take up what an earlier run left; returns once peers can connect."""
        ctx = self.ctx
        left = recover.left_open(ctx.store)
        for text in ctx.config.network.peers:
            key, address = parse_peer(text)
            ctx.peers.add(key, address, "static")
        for run in (self.mailbox.run, ctx.blobs.run, ctx.relay.run):
            await ctx.nursery.start(run)
        await self.supervisor.watch("probing the executors", self.probe_executors)
        await self._announce()
        await ctx.nursery.start(ctx.transport.run)
        if ctx.config.network.discovery:
            address = ctx.transport.advertised()
            self._discovery = Discovery(ctx.identity, ctx.transport.network_id, address, self._on_discovered)
            run_discovery = partial(self._discovery.run, ctx.topics.roles, self._is_announced)
            self._repeat(0, "discovery", run_discovery)
        await self.supervisor.watch("recovering allocations", recover.recover_allocations, ctx, left)
        await self.supervisor.watch("taking up contracts", closing.take_up_contracts, ctx)
        if self.contract_database is not None:
            self._repeat(0, "refunding expired contracts", self.contract_database.run)
        self.supervisor.start_soon(ctx.nursery, "care of the home", self._care)
        self._repeat(FORGET_INTERVAL, "forgetting peers", ctx.peers.forget_old)
        self._repeat(PROBE_INTERVAL, "probing the executors", self.probe_executors)
        if self.accounting.monitor.interval < math.inf:
            watch = Watch(ctx.store, self.accounting.monitor, ctx.running, ctx.work.wake)
            self._repeat(self.accounting.monitor.interval, "watching the machine", watch.look)
        self._repeat(0, "looking for work", partial(work.look_for_work, ctx))
        self._repeat(PROBE_INTERVAL, "removing what was left behind", partial(recover.remove_left, ctx))
        await self.supervisor.watch("taking up jobs", self._take_up_jobs)

    @property
    def supervisor(self) -> Supervisor:
        """What starts this node's tasks, and counts those that failed."""
        return self.ctx.supervisor

    def _repeat(self, seconds: float, name: str, function: Callable[[], Awaitable[Any]]) -> None:
        self.ctx.nursery.start_soon(self.supervisor.every, seconds, name, function, name=name)

    async def _care(self) -> None:
        """Measure the content at once; remove what is past its age once a day, and not while everything starts."""
        await self.supervisor.watch("measuring the content", self.care.measure)
        await trio.sleep(CARE_AFTER)
        await self.supervisor.every(DAY, "removing what is past its age", self.care.daily)

    async def _take_up_jobs(self) -> None:
        for job in self.ctx.store[JOBS].by("state", *OPEN_STATES):
            group = self.ctx.store[JOBS].get(job.parent) if job.parent and job.state in DONE_UNPAID else None
            # of a group that was called off what had been done by then is settled
            if job.orchestrate or (group is not None and group.state in JOB_ENDS):
                self.orchestrate(job.id)
        for job in self.ctx.store[JOBS].by("state", "disputed"):
            if job.kind == "replicas":
                # an earlier version left them so
                await self.ctx.store.change(partial(resolve_replicas, job_id=job.id))

    def _on_discovered(self, key: bytes, address: Address) -> None:
        if self.ctx.peers.add(key, address, "mdns") is not None:
            self.ctx.transport.dial_soon()

    async def probe_executors(self) -> None:
        """Ask each executor whether it works here now; only what works is advertised."""
        found: dict[str, str] = {}
        for name, executor in self.ctx.executors.items():

            async def probe(name: str = name, executor: Executor = executor) -> None:
                result = await executor.probe()
                if result.available:
                    found[name] = result.detail

            # one that cannot be asked does not hide the others
            await self.supervisor.watch(f"probing {name}", probe)
        self.ctx.available_executors = found
        await self.set_available_capability()

    async def _announce(self) -> None:
        roles, topics = self.roles, frozenset(self._topics)
        if self.accounting.is_onboarded():
            roles, topics = ("provider", *roles), topics | {BIDS}
        await self.ctx.topics.set(roles=roles, topics=topics)
        if self._discovery is not None:
            await self._discovery.update(roles)

    # -- jobs --------------------------------------------------------------------------------------------------------

    def orchestrate(self, job_id: str) -> None:
        """Take a job through all stages in the background, unless that is going on already."""
        if job_id not in self._orchestrating:
            self._orchestrating[job_id] = trio.CancelScope()
            self.supervisor.start_soon(self.ctx.nursery, "job", self._orchestrate, job_id)

    async def _orchestrate(self, job_id: str) -> None:
        try:
            with self._orchestrating[job_id]:
                await while_full(self.ctx, job_id, partial(orchestrate.orchestrate_job, self.ctx, job_id))
        except NunetError as error:
            log.info("job %s: %s", job_id, error)
            await self._note_stuck(job_id, error)
        except Exception:
            # the supervisor says why
            log.error("job %s could not be taken further", job_id)
            await self._note_stuck(job_id, NunetError("the node could not take the job further", code="internal"))
            raise
        finally:
            del self._orchestrating[job_id]
            if job_id in self._once_more:
                self._once_more.remove(job_id)
                self.orchestrate(job_id)

    async def _note_stuck(self, job_id: str, error: NunetError) -> None:
        """Where a stage failed but the job has not ended, say so: whoever follows the job must not wait for ever."""
        job = self.get_job(job_id)
        if job.state not in JOB_ENDS | {"disputed"}:
            fields = {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
            await self.ctx.store.save_event(job_id, "job_stuck", **fields)

    async def retry_job(self, job_id: str, mended: Mended | None = None) -> again.Again:
        """Run a job again that did not end well, or what failed in a group, in the background.

        Args:
            job_id: the job.
            mended: what jobs are from now on that are not to run as they did.

        Raises:
            StateError: it has not ended, is settled, or nothing failed in it.
        """
        done = await again.run_again(self.ctx, job_id, mended)
        if done.top.id in self._orchestrating:
            # it may have been at its end when this was kept
            self._once_more.add(done.top.id)
        self.orchestrate(done.top.id)
        return done

    async def cancel_job(self, job_id: str) -> Job:
        """Stop orchestrating a job and call it off; what cannot be called off any more goes on to its settlement."""
        scope = self._orchestrating.get(job_id)
        if scope is not None:
            scope.cancel()
        else:
            # what goes on with it is its group
            self.ctx.job_locks.interrupt(job_id)
        try:
            async with self.ctx.job_locks.hold(job_id):
                return await cancel.cancel(self.ctx, job_id)
        finally:
            if scope is not None:
                self._go_on(job_id)

    def _go_on(self, job_id: str) -> None:
        """Take what is left of a job that was called off to its end: what was done already is settled."""
        job = self.get_job(job_id)
        left = [child.id for child in self.ctx.store[JOBS].by("parent", job_id) if child.state in DONE_UNPAID]
        for open_id in (job_id, *left) if job.state not in JOB_ENDS else left:
            if open_id in self._orchestrating:
                # it is just being stopped
                self._once_more.add(open_id)
            self.orchestrate(open_id)

    def _begin_allocation(self, allocation_id: str) -> None:
        self.supervisor.start_soon(self.ctx.nursery, "allocation", run_allocation, self.ctx, allocation_id)

    # -- the provider's side -----------------------------------------------------------------------------------------

    async def onboard(self, options: OnboardOptions, benchmark: Benchmark | None) -> Capability:
        """Register capability, price and preferences, and begin to answer bid requests.

        What the options leave open stays as it was offered before.

        Raises:
            UsageError: more is asked for than the machine has.
            StateError: running allocations have more than what would be registered.
        """
        kept, _ = still_standing(self.accounting.offer(), self.identity.did)
        capability, price, _ = plan_onboarding(self.ctx.home, options, kept, self.identity.did)
        left = capability.resources
        for row in self.accounting.taken(self.ctx.store):
            try:
                left = left.minus(row.resources)
            except ValueError as error:
                raise StateError(f"running jobs have more {error} than that", hint="wait for them to end") from None
        if benchmark is None:
            # the machine is the same
            benchmark = self.accounting.benchmark()
        await self.set_registered_capability(capability, benchmark, keep_offer(options, kept), price)
        return capability

    async def offboard(self, *, force: bool = False) -> None:
        """Stop answering bid requests; wait for running allocations, or end them with `force`."""
        await self.accounting.offboard()
        await self._announce()
        while self.ctx.running:
            running = self.ctx.running.all()
            for actor in running if force else []:
                await allocation_cancel.route_to_allocation(self.ctx, actor.allocation_id, "end")
            for actor in running:
                await actor.ended.wait()

    async def _on_setting(self, key: str) -> None:
        if key.startswith("executor."):
            await self.probe_executors()
        # what it may run, and how long it waits before it looks for work, may be other than before
        self.ctx.work.wake()

    # -- the interface of the second seed ----------------------------------------------------------------------------

    def get_job(self, job_id: str) -> Job:
        """Return a job of this node's by id or unambiguous prefix."""
        return find_job(self.ctx.store, job_id)

    def get_allocation(self, allocation_id: str) -> Allocation:
        """Return an allocation of this node's by id or unambiguous prefix; every one that ever was is kept."""
        return self.ctx.store[ALLOCATIONS].resolve(allocation_id, what="allocation")

    async def check_allocation_status(self, allocation_id: str) -> Allocation:
        """Return an allocation as it is now, with what it has used: of one that runs, as it says itself."""
        allocation = self.get_allocation(allocation_id)
        usage = await self.route_to_allocation(allocation.id, "status")
        return allocation if usage is None else structs.replace(allocation, usage=usage)

    async def route_to_allocation(self, allocation_id: str, type_: str) -> Any:
        """Put a message into the mailbox of an allocation that runs here, and return its answer; None if none does."""
        actor = self.ctx.running.get(allocation_id)
        if actor is None:
            return None
        with trio.move_on_after(self.ctx.config.limits.answer_timeout), contextlib.suppress(trio.BrokenResourceError):
            return await actor.send_message(type_)
        return None

    async def benchmark_capability(self) -> Benchmark:
        """Measure this machine; takes about two seconds."""
        return await self.ctx.threads.run(run_benchmark, self.ctx.home)

    def get_registered_capability(self) -> Capability:
        """Return what was registered at onboarding."""
        return self.accounting.get_registered_capability()

    async def set_registered_capability(
        self,
        capability: Capability,
        benchmark: Benchmark | None = None,
        options: OnboardOptions | None = None,
        price: PriceBid | None = None,
    ) -> None:
        """Keep what this node offers, as the accounting does, and tell the peers.

        Raises:
            StateError: jobs have more of it, or have locked more.
        """
        await self.accounting.set_registered_capability(capability, benchmark, options, price)
        await self._announce()
        self.ctx.work.join()

    def get_available_capability(self) -> Capability:
        """Return registered minus allocated minus locked capability."""
        return self.accounting.get_available_capability()

    async def set_available_capability(self) -> Capability:
        """Work out again what is available: which executors work now, and what is still locked."""
        return await self.accounting.set_available_capability(self.ctx.available_executors)

    def get_locked_capabilities(self) -> list[Holding]:
        """Return the locks that hold."""
        return self.accounting.get_locked_capabilities()

    async def set_preferences(self, comparator: CapabilityComparator, price: PriceBid | None = None) -> None:
        """Keep this node's preferences, and the price that it asks where one is given.

        Raises:
            UsageError: they could not be read again.
        """
        await self.accounting.set_preferences(comparator, price)

    def get_preferences(self) -> CapabilityComparator:
        """Return this node's preferences."""
        return self.accounting.get_preferences()

    def get_registered_bids(self, bid_request_id: str) -> list[BidRecord]:
        """Return the bids received for a request, best first."""
        return select.get_registered_bids(self.ctx, bid_request_id)

    # -- the actor -----------------------------------------------------------------------------------------------------

    @property
    def mailbox(self) -> Messenger:
        """What brings this node's messages, checked, and triggers the behaviour for each."""
        return self.ctx.messenger

    async def subscribe(self, topic: str) -> None:
        """Take what is published on a topic from now on, and tell the peers.

        Raises:
            UsageError: there are as many as an introduction can name.
        """
        if len((self._topics | {topic}) - {BIDS}) > MOST_TOPICS:
            raise UsageError(
                f"{MOST_TOPICS} topics are subscribed to, and no more can be", code="too_many_topics",
                hint="see: nunet topic list, nunet topic unsubscribe /TOPIC",
            )  # fmt: skip
        self._topics.add(topic)
        await self._announce()

    async def unsubscribe(self, topic: str) -> None:
        """Take what is published on a topic no more, and tell the peers."""
        self._topics.discard(topic)
        await self._announce()

    def get_subscribed_topics(self) -> list[str]:
        """Return the topics that this node was told to subscribe to, beside that of all bid requests."""
        return sorted(self._topics)

    def get_known_topics(self) -> list[str]:
        """Return the topics that this node or a connected peer subscribes to."""
        return sorted({topic for peer in self.ctx.transport.connected() for topic in peer.topics} | self._topics)

    def get_edges(self) -> list[Edge]:
        """Return this node's edges in the graph of nodes: its connected peers with the measured round-trip time."""
        return [Edge(peer.did, peer.rtt) for peer in self.ctx.transport.connected()]

    # -- peers -------------------------------------------------------------------------------------------------------

    async def add_peer(self, text: str) -> Peer:
        """Add a static peer `PEER@HOST:PORT` and dial it."""
        key, address = parse_peer(text)
        peer = self.ctx.peers.add(key, address, "static")
        if peer is None:
            raise StateError("that is this node itself")
        await self.ctx.peers.save(peer)
        self.ctx.transport.dial_soon()
        return peer
