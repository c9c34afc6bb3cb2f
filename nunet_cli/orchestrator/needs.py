"""What a function may need of the node, each with a name: its first argument is held to what its type names.

The node gives all stages the same object. What a function does not name here, or in its own module's `Protocol` made
of these, it cannot touch: mypy refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import trio

from nunet_cli.config import Config
from nunet_cli.database.store import Store
from nunet_cli.executor.base import Executor
from nunet_cli.network.blobs import Blobs
from nunet_cli.network.identity import Identity
from nunet_cli.network.messenger import Change, Incoming, Messenger
from nunet_cli.network.peers import Peers
from nunet_cli.network.relay import Relay
from nunet_cli.network.topics import Topics
from nunet_cli.network.transport import TcpTransport
from nunet_cli.orchestrator.accounting import Accounting
from nunet_cli.orchestrator.going_on import Asked, Closings, Heard, JobLocks, JobProgress, Verified
from nunet_cli.orchestrator.judging import Judging
from nunet_cli.orchestrator.roles import Roles
from nunet_cli.orchestrator.searches import Searches
from nunet_cli.orchestrator.standing import Standing
from nunet_cli.orchestrator.turns import Work
from nunet_cli.supervise import Supervisor
from nunet_cli.threads import Threads


class HasHome(Protocol):
    """The node's folder."""

    @property
    def home(self) -> Path: ...


class HasConfig(Protocol):
    """The settings that the node was started with."""

    @property
    def config(self) -> Config: ...


class HasIdentity(Protocol):
    """This node's key."""

    @property
    def identity(self) -> Identity: ...


class HasStore(Protocol):
    """What is kept."""

    @property
    def store(self) -> Store: ...


class HasThreads(Protocol):
    """Worker threads for what waits for the disk."""

    @property
    def threads(self) -> Threads: ...


class HasPeers(Protocol):
    """Whom this node knows."""

    @property
    def peers(self) -> Peers: ...


class HasTransport(Protocol):
    """The connections to peers."""

    @property
    def transport(self) -> TcpTransport: ...


class HasMessenger(Protocol):
    """What brings and takes messages."""

    @property
    def messenger(self) -> Messenger: ...


class HasTopics(Protocol):
    """Who subscribes to what."""

    @property
    def topics(self) -> Topics: ...


class HasRelay(Protocol):
    """What reaches nodes that are not connected."""

    @property
    def relay(self) -> Relay: ...


class HasBlobs(Protocol):
    """Content by its id."""

    @property
    def blobs(self) -> Blobs: ...


class HasRoles(Protocol):
    """Who acts as contract database and as oracle."""

    @property
    def roles(self) -> Roles: ...


class HasAccounting(Protocol):
    """What this machine has left."""

    @property
    def accounting(self) -> Accounting: ...


class HasExecutors(Protocol):
    """The executors that the configuration allows, by name."""

    @property
    def executors(self) -> dict[str, Executor]: ...


class HasAvailable(Protocol):
    """The executors that work here now, by name, each with what it says of itself."""

    @property
    def available_executors(self) -> dict[str, str]: ...


class HasJudging(Protocol):
    """What evaluates expressions."""

    @property
    def judging(self) -> Judging: ...


class HasJobLocks(Protocol):
    """Lets one task at a time take a job further."""

    @property
    def job_locks(self) -> JobLocks: ...


class HasSearches(Protocol):
    """The bid requests that are out."""

    @property
    def searches(self) -> Searches: ...


class HasStanding(Protocol):
    """The bids for many units that stand."""

    @property
    def standing(self) -> Standing: ...


class HasWork(Protocol):
    """Who waits for room on this machine."""

    @property
    def work(self) -> Work: ...


class HasAsked(Protocol):
    """What bidders answered before their turn."""

    @property
    def asked(self) -> Asked: ...


class HasVerified(Protocol):
    """Whom a contract database has just said to be verified."""

    @property
    def verified(self) -> Verified: ...


class HasHeard(Protocol):
    """When providers last gave a sign of life."""

    @property
    def heard(self) -> Heard: ...


class HasProgress(Protocol):
    """What takes this node's jobs their time just now."""

    @property
    def progress(self) -> JobProgress: ...


class HasClosings(Protocol):
    """The contracts that time has to close."""

    @property
    def closings(self) -> Closings: ...


class BeginsAllocations(Protocol):
    """Runs an allocation that was made, in a task of its own."""

    @property
    def begin_allocation(self) -> Callable[[str], None]: ...


class TakesCompletions(Protocol):
    """Takes, as an oracle, what providers tell of jobs that they completed."""

    @property
    def take_completion(self) -> Callable[[Incoming], Change]: ...


class HasTasks(Protocol):
    """Where tasks go on, and what starts and outlives them."""

    @property
    def nursery(self) -> trio.Nursery: ...

    @property
    def supervisor(self) -> Supervisor: ...


# -- what several stages need ------------------------------------------------------------------------------------------


class Asking(HasConfig, HasMessenger, Protocol):
    """Asks a node something, and waits for its answer as long as the configuration says."""


class Dealing(Asking, HasStore, Protocol):
    """Asks others about what is kept here."""
