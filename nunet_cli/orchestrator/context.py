"""What the stages work with: the node's parts, as the node hands them down, and the one way to change a job's state."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio
from msgspec import structs

from nunet_cli import units
from nunet_cli.config import Config
from nunet_cli.database.store import Store, Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import ContractError, NunetError
from nunet_cli.executor.base import Executor
from nunet_cli.network.blobs import Blobs
from nunet_cli.network.identity import Identity
from nunet_cli.network.messenger import Messenger
from nunet_cli.network.peers import Peers
from nunet_cli.network.relay import Relay
from nunet_cli.network.topics import Topics
from nunet_cli.network.transport import TcpTransport
from nunet_cli.orchestrator.judging import Judging
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.capability import Capability, PriceBid, Resources
from nunet_cli.records.contract_records import PINNED_ROLES, PinnedRole
from nunet_cli.records.jobs import JOBS, ErrorRecord, Job
from nunet_cli.records.results import Progress
from nunet_cli.supervise import Supervisor
from nunet_cli.threads import in_thread

T = TypeVar("T")
MOST_NAMED = 8


def several(role: str) -> str:
    """Return the code of the error that says that several are known in a role, and none was chosen."""
    return {"contract-database": "several_contract_databases", "oracle": "several_oracles"}[role]


class Accounting(Protocol):
    """Capability accounting as the stages see it; the node implements it. Methods with a transaction join a change."""

    def is_onboarded(self) -> bool:
        """Say whether this node offers capability."""

    def available(self, source: Store | Transaction, at: str = "") -> Capability:
        """Return registered minus allocated minus locked capability, now or at a later time."""

    def earliest_start(self, source: Store | Transaction, resources: Resources) -> str:
        """Return when resources are free at the latest; empty when they never are."""

    def load(self, source: Store | Transaction) -> float:
        """Return the share that is taken, 0 to 1."""

    def machine(self) -> dict[str, Any]:
        """Return what the monitor sees: `cpu_load`, `memory_free`, `disk_free`."""

    def crowded(self, resources: Resources) -> str:
        """Return why others leave no room for a job on the machine; empty where they do."""

    def get_preferences(self) -> CapabilityComparator:
        """Return the node's preferences."""

    def price(self) -> PriceBid:
        """Return the provider's price."""

    def lock(
        self, t: Transaction, bid_id: str, job_id: str, resources: Resources, until: str, duration: int = 0
    ) -> None:
        """Reserve resources for a bid until a time; a second lock of the same bid replaces the first."""

    def is_locked(self, source: Store | Transaction, bid_id: str) -> bool:
        """Say whether a bid's lock is there and has not expired."""

    def allocate(
        self, t: Transaction, bid_id: str, allocation_id: str, resources: Resources, duration: int = 0
    ) -> None:
        """Turn a bid's lock into an allocation."""

    def release(self, t: Transaction, key: str) -> None:
        """Give back what a bid locked, or what an allocation has."""


@dataclass
class Context:
    """The node's parts."""

    home: Path
    config: Config
    identity: Identity
    store: Store
    peers: Peers
    transport: TcpTransport
    messenger: Messenger
    topics: Topics
    relay: Relay
    blobs: Blobs
    accounting: Accounting
    executors: dict[str, Executor]
    nursery: trio.Nursery
    supervisor: Supervisor
    started_at: float
    begin_allocation: Callable[[str], None] = lambda _id: None  # runs one that was made; the node says how
    available_executors: dict[str, str] = field(default_factory=dict)
    running: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)  # of the bid requests that are out: how many came
    progress: dict[str, Progress] = field(default_factory=dict)  # of this node's jobs: what takes its time just now
    heard: dict[str, float] = field(default_factory=dict)  # when a provider last gave a sign of life, by contract
    closing: set[str] = field(default_factory=set)  # contracts and jobs that a task of their own is closing
    again: set[str] = field(default_factory=set)  # second runs of jobs that go on here
    judging: Judging = field(default_factory=Judging)
    limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(8))
    _job_locks: defaultdict[str, trio.Lock] = field(default_factory=lambda: defaultdict(trio.Lock))

    @contextlib.asynccontextmanager
    async def one_at_a_time(self, job_id: str) -> AsyncIterator[None]:
        """Let one task at a time take a job through a stage."""
        lock = self._job_locks[job_id]
        async with lock:
            yield
        if not lock.locked() and not lock.statistics().tasks_waiting:
            self._job_locks.pop(job_id, None)

    async def blocking(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function that waits for the disk, in a worker thread."""
        return await in_thread(function, *arguments, limiter=self.limiter)

    def job(self, job_id: str) -> Job:
        """Return a job by its id or an unambiguous prefix."""
        return self.store[JOBS].get(job_id) or self.store[JOBS].resolve(job_id, what="job")

    def trusts(self, executor: str, requester: str) -> bool:
        """Say whether an executor's owner trusts a requester: this node itself, and whom the configuration names."""
        executors = self.config.executor
        named = {"docker": executors.docker.trusted, "process": executors.process.trusted}.get(executor, ())
        return requester == self.identity.did or requester in named

    def find_role(self, role: str, configured: str, *, paid: bool = True) -> str:
        """Return the DID of the node to use in a role: the configured one, the one used before, or the only one known.

        The first one ever used is kept: a stranger who later announces the role is not taken instead. Where money is at
        stake nobody is picked among several: whoever holds the escrow is its owner's choice.

        Args:
            role: the role.
            configured: what the configuration names; empty where it names nobody.
            paid: False for volunteer work, which may take any.

        Raises:
            ContractError: nobody is known in the role, or several are and none was chosen.
        """
        if configured:
            return configured
        pinned = self.store[PINNED_ROLES].get(role)
        if pinned is not None:
            return pinned.did
        if role in self.topics.roles:
            return self.identity.did
        known = self.peers.with_role(role)
        key = role.replace("-", "_")
        if not known:
            raise ContractError(
                f"no {role} is known",
                code="no_" + key,
                hint=f"start one with: nunet node run --role {role}; or name one with: nunet config set {key} DID",
            )
        if paid and len(known) > 1:
            dids = [peer.did for peer in known]
            raise ContractError(
                f"several nodes act as {role}, and none was chosen: {', '.join(dids[:MOST_NAMED])}",
                code=several(role),
                hint=f"ask whose you trust, and choose: nunet config set {key} DID",
                details={"role": role, "known": dids},
            )
        return known[0].did

    def undecided(self) -> dict[str, list[str]]:
        """Return who is known in each role in which several are, and none was chosen."""
        found = {}
        for role, configured in (("contract-database", self.config.contract_database), ("oracle", self.config.oracle)):
            try:
                self.find_role(role, configured)
            except ContractError as error:
                if error.code == several(role):
                    found[role] = list(error.details["known"])
        return found

    async def wait_role(self, role: str, configured: str, *, paid: bool = True) -> str:
        """Return the DID of the node to use in a role, giving it `default_search_timeout` to be found.

        Raises:
            ContractError: nobody is known in the role, or, where money is at stake, several are and none was chosen.
        """
        end = trio.current_time() + self.config.default_search_timeout
        while True:
            try:
                return self.find_role(role, configured, paid=paid)
            except ContractError as error:
                if error.code == several(role) or trio.current_time() >= end:
                    raise
                await self.transport.wait_change(0.25)

    async def choose_role(self, role: str, did: str) -> None:
        """Use a node in a role from now on, as this node's owner says."""
        await self.store.change(lambda t: t[PINNED_ROLES].put(PinnedRole(role, did, units.utc_now())))

    def pin_role(self, t: Transaction, role: str, did: str, *, job_id: str = "") -> None:
        """Remember who was used in a role, the first time, and say so; whom the configuration names is not remembered.

        Args:
            t: the change that this is part of.
            role: the role.
            did: who was used.
            job_id: the job of this node's for which it was; its followers are told.
        """
        if did == (self.config.oracle if role == "oracle" else self.config.contract_database):
            return
        if not t[PINNED_ROLES].has(role):
            t[PINNED_ROLES].put(PinnedRole(role, did, units.utc_now()))
            if did != self.identity.did:
                t.save_event(job_id, "role_taken", role=role, did=did)


def advance(
    t: Transaction, job_id: str, event: str, *, by: str, about: str | None = None, said: dict[str, Any] | None = None,
    **changes: Any,
) -> Job:  # fmt: skip
    """Let an event happen to a job, and save it in the event log, as part of a change; return the job.

    Args:
        t: the change.
        job_id: the job.
        event: what happens, as in `records.jobs.JOB` or `GROUP`.
        by: which party causes it.
        about: what it is about: the contract that the job has now, for example.
        said: what else the log says of it; JSON.
        changes: fields of the job.

    Raises:
        StateError: the job's machine does not allow it.
    """
    job = transition(
        t, t[JOBS].one(job_id), event, by=by, about=about, changed_at=units.utc_now(), **changes
    )  # fmt: skip
    t.save_event(job_id, f"job_{job.state}", **(said or {}))
    for member_id in job.members:
        # a job inside a pod has the pod's state, and no machine of its own
        member = t[JOBS].one(member_id)
        shared = {name: getattr(job, name) for name in _SHARED}
        t[JOBS].put(structs.replace(member, **shared))
        t.save_event(member_id, f"job_{job.state}", pod=job.id)
    return job


_SHARED = ("state", "changed_at", "contract_id", "allocation_id", "bid_id", "error", "usage")


def change_job(t: Transaction, job_id: str, **changes: Any) -> Job:
    """Change what a job says beside its state, as part of a change; return it."""
    job = structs.replace(t[JOBS].one(job_id), **changes)
    t[JOBS].put(job)
    return job


def error_record(error: NunetError) -> ErrorRecord:
    """Return an error as it is kept with a job."""
    return ErrorRecord(error.code, error.message, error.hint, error.details, error.exit_code)
