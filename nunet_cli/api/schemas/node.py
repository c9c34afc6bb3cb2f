"""The node: capability, allocations, peers, and itself on one page."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct

from nunet_cli.api.schemas.base import Answer, Optional
from nunet_cli.api.schemas.jobs import Waiting
from nunet_cli.records.bids import Weights
from nunet_cli.records.capability import Capability, PriceBid, Resources
from nunet_cli.records.offers import Benchmark, OnboardOptions
from nunet_cli.records.results import Usage
from nunet_cli.records.shares import MostPerRequester, Share


class Allocation(Answer, kw_only=True):
    """An execution space on this machine. `handles` are what the executor finds its programs by."""

    id: str
    job_id: str
    contract_id: str
    requester: str
    executor: str
    state: Literal["created", "starting", "running", "completed", "failed", "cancelled"]
    handles: dict[str, str] | Optional = UNSET
    error: str
    usage: Usage | None
    created_at: str
    started_at: str
    ended_at: str


class Taken(Struct, forbid_unknown_fields=True, kw_only=True):
    """A lock or an allocation: what it holds, and how long at the most."""

    id: str
    kind: Literal["lock", "allocation"]
    job_id: str
    resources: Resources
    expires_at: str
    ends_at: str | Optional = UNSET


class CapabilityOverview(Answer, kw_only=True):
    """What this machine offers, what is left of it, who has the rest, and what the benchmark measured.

    `offer` is what onboarding was asked for last; onboarding again keeps it where it says nothing else.
    `strangers` says what anybody may run here, by executor.
    """

    onboarded: bool
    registered: Capability | None
    available: Capability | None
    taken: list[Taken]
    price: PriceBid
    offer: OnboardOptions | None
    benchmark: Benchmark | None
    executors: dict[str, str]
    strangers: dict[str, str]


class Measured(Answer, kw_only=True):
    """What the machine has, and what the benchmark measured."""

    machine: Resources
    benchmark: Benchmark


class Topic(Answer, kw_only=True):
    """A topic of bid requests: whether this node subscribes to it, and how many connected peers do."""

    topic: str
    subscribed: bool
    peers: int


class Preferences(Answer, kw_only=True):
    """What this node accepts, as a provider and as a requester."""

    rules: list[str]
    bid_rules: list[str]
    weights: Weights
    minimum_price: str
    allow: list[str]
    deny: list[str]
    shares: list[Share]
    most_per_requester: MostPerRequester
    price: PriceBid


class Peer(Answer, kw_only=True):
    """A node that is known; `rtt` is milliseconds, `clock` by how many seconds its clock is ahead of this machine's.

    `protocol` is the version that it speaks, `features` what it can beyond it; `problem` says what keeps the two nodes
    from dealing with each other.
    """

    peer_id: str
    did: str
    addresses: list[str]
    roles: list[str]
    source: str
    connected: bool
    rtt: float | None
    last_seen: str | None
    clock: float | None
    agent: str
    protocol: str
    features: list[str]
    problem: str


class Told(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a peer told of its capability, and when: in an answer or, where it gave none, with its last bid.

    `offered` is what it has left for this node, with its price, null where that is nothing; `load` how busy it is, 0 to
    1.
    """

    at: str
    by: Literal["answer", "bid"]
    offered: Capability | None
    load: float


class PeerDetail(Peer, kw_only=True):
    """A peer with what it offers; `told` is null where it does not say."""

    told: Told | None


class Ping(Answer, kw_only=True):
    """A round trip, in milliseconds."""

    peer_id: str
    rtt: float


class Indices(Answer, kw_only=True):
    """The indices of activity, and where the event log gives something else."""

    indices: dict[str, Any]
    sizes: dict[str, int]
    differences: list[dict[str, Any]]


class WhoAmI(Answer, kw_only=True):
    """This node's identifiers, and the addresses that `peer add` takes: `address` is the best, `addresses` has all."""

    uuid: str
    cid: str
    peer_id: str
    did: str
    address: str | None
    addresses: list[str]


class Role(Answer, kw_only=True):
    """Whom this node uses in a role from now on."""

    role: Literal["contract-database", "oracle"]
    did: str


class PeerCount(Struct, forbid_unknown_fields=True, kw_only=True):
    """How many peers."""

    known: int
    connected: int


class OpenJob(Struct, forbid_unknown_fields=True, kw_only=True):
    """A job that has not ended."""

    id: str
    name: str
    state: str
    waiting: Waiting | None


class JobCount(Struct, forbid_unknown_fields=True, kw_only=True):
    """How many jobs, also by each state, and those that have not ended, up to the 20 latest."""

    all: int
    open: int
    settled: int
    failed: int
    cancelled: int
    disputed: int
    states: dict[str, int]
    now: list[OpenJob]


class RunningAllocation(Struct, forbid_unknown_fields=True, kw_only=True):
    """An allocation that has not ended."""

    id: str
    job_id: str
    state: str
    usage: Usage | None


class AllocationCount(Struct, forbid_unknown_fields=True, kw_only=True):
    """How many allocations, and those that have not ended, up to the 20 latest."""

    all: int
    running: int
    now: list[RunningAllocation]


class KnownBalance(Struct, forbid_unknown_fields=True, kw_only=True):
    """A balance as a contract database last told it; `id` is its DID."""

    id: str
    balance: str
    at: str


class Machine(Struct, forbid_unknown_fields=True, kw_only=True):
    """What the monitor sees of the machine: the share of its processors that is busy, and bytes that are free.

    `others_cpu` is how many cores others have used of late, null where that is not known yet; as long as something is
    in `short_of`, no job is taken.
    """

    cpu_load: float
    memory_free: int
    disk_free: int
    others_cpu: float | None
    short_of: list[str]


class Status(Answer, kw_only=True):
    """The node on one page; the command line adds `running` and `next`, what to do.

    `undecided` names who is known in a role where several are, and none was chosen; `clocks` says by how many seconds
    the clocks of the peers that are connected are ahead of this machine's.
    """

    version: str
    pid: int
    home: str
    peer_id: str
    did: str
    listen: str
    address: str
    network: str
    started_at: str
    roles: list[str]
    onboarded: bool
    executors: dict[str, str]
    strangers: dict[str, str]
    clocks: dict[str, float]
    peers: PeerCount
    jobs: JobCount
    allocations: AllocationCount
    load: float
    balances: list[KnownBalance]
    earned: str
    spent: str
    known_roles: dict[str, str]
    undecided: dict[str, list[str]]
    rejections: dict[str, int]
    failures: dict[str, int]
    machine: Machine
    running: bool | Optional = UNSET
    next: list[str] | Optional = UNSET


class Configuration(Answer, kw_only=True):
    """What the node goes by, by dotted key."""

    settings: dict[str, Any]


class Setting(Answer, kw_only=True):
    """A setting as the file has it now; `reason` says why the running node does not go by it yet, where it does not."""

    key: str
    value: Any
    in_force: bool
    reason: str


class Stopping(Answer, kw_only=True):
    """The node is about to stop."""

    stopping: Literal[True]
