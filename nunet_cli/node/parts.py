"""The node's parts together: only the node makes this, and every function says by its type which of them it touches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from nunet_cli.allocation.actor import Running
from nunet_cli.allocation.reexecute import SecondRuns
from nunet_cli.config import Config
from nunet_cli.database.store import Store
from nunet_cli.errors import ContractError
from nunet_cli.executor.base import Executor
from nunet_cli.network.blobs import Blobs
from nunet_cli.network.identity import Identity
from nunet_cli.network.messenger import Change, Incoming, Messenger
from nunet_cli.network.peers import Peers
from nunet_cli.network.relay import Relay
from nunet_cli.network.topics import Topics
from nunet_cli.network.transport import TcpTransport
from nunet_cli.node.capability import CapabilityAccounting
from nunet_cli.orchestrator.going_on import Asked, Closings, Heard, JobLocks, JobProgress, Verified
from nunet_cli.orchestrator.judging import Judging
from nunet_cli.orchestrator.roles import Roles
from nunet_cli.orchestrator.searches import Searches
from nunet_cli.orchestrator.standing import Standing
from nunet_cli.orchestrator.turns import Work
from nunet_cli.supervise import Supervisor
from nunet_cli.threads import Threads

DISK_THREADS = 8


def _no_oracle(_message: Incoming) -> Change:
    raise ContractError("this node is no oracle", code="wrong_oracle")


@dataclass
class Parts:
    """What a node consists of."""

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
    roles: Roles
    accounting: CapabilityAccounting
    executors: dict[str, Executor]
    nursery: trio.Nursery
    supervisor: Supervisor
    # runs one that was made; the node says how
    begin_allocation: Callable[[str], None] = lambda _id: None
    take_completion: Callable[[Incoming], Change] = _no_oracle
    available_executors: dict[str, str] = field(default_factory=dict)
    threads: Threads = field(default_factory=lambda: Threads(DISK_THREADS))
    judging: Judging = field(default_factory=Judging)
    job_locks: JobLocks = field(default_factory=JobLocks)
    searches: Searches = field(default_factory=Searches)
    standing: Standing = field(default_factory=Standing)
    work: Work = field(default_factory=Work)
    heard: Heard = field(default_factory=Heard)
    progress: JobProgress = field(default_factory=JobProgress)
    asked: Asked = field(default_factory=Asked)
    verified: Verified = field(default_factory=Verified)
    closings: Closings = field(default_factory=Closings)
    running: Running = field(default_factory=Running)
    second_runs: SecondRuns = field(default_factory=SecondRuns)
