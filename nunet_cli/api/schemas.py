"""What the API answers with: the JSON documents, which the command line prints as well, by name and version.

A document only gains fields within a version; a field that goes or changes its meaning makes a new one.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from nunet_cli.jobs.capability import Capability, PriceBid, Resources
from nunet_cli.jobs.job import CapabilityComparison, Comparison, TimeBid, Usage, Weights
from nunet_cli.jobs.job import Result as SignedResult
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.network.documents import Document
from nunet_cli.node.benchmark import Benchmark
from nunet_cli.tokenomics.contract import StatementEntry
from nunet_cli.tokenomics.dispute import Dispute, Evidence

Optional = UnsetType


class Answer(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every document has: the version of its schema."""

    schema: Literal[1]


class Error(Struct, forbid_unknown_fields=True, kw_only=True):
    """Why a job ended as it did."""

    code: str
    message: str
    hint: str
    details: dict[str, Any]
    exit_code: int


class Waiting(Struct, forbid_unknown_fields=True, kw_only=True, rename={"for_": "for"}):
    """What a job waits for, and when it is tried again."""

    for_: str
    next_try: str
    since: str


class Job(Answer, kw_only=True):
    """A job. `next` is the stage that comes now, `run` for a job without stages of its own, or null at its end."""

    id: str
    name: str
    state: str
    kind: Literal["job", "group", "replicas", "member"]
    requester: str
    parent: str | None
    created_at: str
    changed_at: str
    push: str | None
    limit: str
    paid: str | None
    bid_id: str | None
    contract_id: str | None
    allocation_id: str | None
    attempts: int
    usage: Usage | None
    result: SignedResult | None
    message: str | None
    note: str | None
    error: Error | None
    spec_cid: str
    waiting: Waiting | None
    next_run: str | None
    next: str | None


class JobDetail(Job, kw_only=True):
    """A job with its children, its specification, and after `job run` its files."""

    children: list[Job]
    spec: JobSpec
    outputs: Outputs | Optional = UNSET


class Outputs(Struct, forbid_unknown_fields=True, kw_only=True):
    """Where the files of a job were written."""

    schema: Literal[1] | Optional = UNSET
    folder: str | None
    files: list[str]


class JobResult(SignedResult, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A job's result, with the provider's signature, and for `job result` its files."""

    schema: Literal[1]
    document: Document | None
    folder: str | Optional = UNSET
    files: list[str] | Optional = UNSET


class Event(Answer, kw_only=True):
    """Something that happened to a job; `child` names the job below the one that was asked for."""

    seq: int
    at: str
    job_id: str
    type: str
    data: dict[str, Any]
    child: str


class Logs(Answer, kw_only=True):
    """A piece of a job's output, base64, and where the next one begins."""

    data: str
    next_offset: int
    ended: bool


class MissedAnswer(Struct, forbid_unknown_fields=True, kw_only=True):
    """What one provider answered, and what it missed."""

    peer: str
    verdict: str
    reasons: list[str]
    missed: list[Comparison]
    why: str | None


class ConstraintRow(Struct, forbid_unknown_fields=True, kw_only=True):
    """One cell of provider × constraint: what was asked, what was there, and by how much it missed."""

    peer: str
    constraint: str
    required: str
    available: str
    margin: str
    result: Literal["equal", "better", "worse", "error"]
    reason: str


class Refusal(Struct, forbid_unknown_fields=True, kw_only=True):
    """A provider that declined after its bid."""

    bid: str
    peer: str
    reason: str


class SuggestedChange(Struct, forbid_unknown_fields=True, kw_only=True):
    """A field of the job, what it says, and what it would have to say; empty to drop it."""

    path: str
    now: str
    then: str
    distance: float


class SmallestChange(Struct, forbid_unknown_fields=True, kw_only=True):
    """The smallest change to the job that would have got a bid."""

    peer: str
    changes: list[SuggestedChange]
    text: str


class Explanation(Answer, kw_only=True):
    """Why a job was taken or not."""

    job_id: str
    state: str
    error: Error | None
    answers: list[MissedAnswer]
    table: list[ConstraintRow]
    refusals: list[Refusal]
    waiting: Waiting | None
    suggestion: SmallestChange | None


class Bid(Answer, kw_only=True):
    """A bid, a decline or a silence; `bidder` is the provider's peer id, `peer` the DID of the other party."""

    id: str
    kind: Literal["bid", "decline", "silent"]
    direction: Literal["sent", "received"]
    job_id: str
    bid_request_id: str
    bidder: str
    peer: str
    price: PriceBid | None
    time: TimeBid | None
    score: float | None
    rank: int | None
    why: str | None
    verdict: str
    reasons: list[str]
    timeout: str | None
    locked: bool | None
    comparison: CapabilityComparison | None
    at: str


class Contract(Answer, kw_only=True):
    """A contract as this node has it."""

    id: str
    job_id: str
    role: Literal["requester", "provider"]
    state: str
    requester: str
    provider: str
    contract_database: str
    oracle: str
    payment: Literal["volunteer", "escrow", "direct"]
    deposit: str
    deadline: str
    created_at: str
    message: str
    requester_peer: str
    provider_peer: str


class ContractDocuments(Struct, forbid_unknown_fields=True, kw_only=True):
    """Everything that was signed, as far as it is here."""

    document: Document | None
    proof: Document | None
    result: Document | None
    verdict: Document | None
    receipt: Document | None


class ContractDetail(Contract, kw_only=True):
    """A contract with its documents; with `check` also what the contract database says of it."""

    documents: ContractDocuments
    recorded_state: str | Optional = UNSET
    dispute: Dispute | Optional = UNSET


class DisputeDocument(Answer, kw_only=True):
    """A dispute; `decision` is empty until `by` (quorum or operator) resolved it."""

    id: str | Optional = UNSET
    contract_id: str
    opened_by: str
    opened_at: str
    reason: str
    evidence: list[Evidence]
    decision: Literal["", "pay", "split", "refund"]
    by: Literal["", "quorum", "operator"]
    paid: str


class ReceiptDocument(Answer, kw_only=True):
    """The settlement record: what was paid to the provider and what went back to the requester."""

    v: int
    contract_id: str
    contract_database: str
    outcome: Literal["settled", "refunded"]
    requester: str
    provider: str
    paid: str
    refunded: str
    reason: str
    settled_at: str
    log_head: str


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
    """What this machine offers, what is left of it, who has the rest, and what the benchmark measured."""

    onboarded: bool
    registered: Capability | None
    available: Capability | None
    taken: list[Taken]
    price: PriceBid
    benchmark: Benchmark | None
    executors: dict[str, str]


class Preferences(Answer, kw_only=True):
    """What this node accepts, as a provider and as a requester."""

    rules: list[str]
    bid_rules: list[str]
    weights: Weights
    minimum_price: str
    allow: list[str]
    deny: list[str]
    price: PriceBid


class Peer(Answer, kw_only=True):
    """A node that is known; `rtt` is milliseconds."""

    peer_id: str
    did: str
    addresses: list[str]
    roles: list[str]
    source: str
    connected: bool
    rtt: float | None
    last_seen: str | None


class Ping(Answer, kw_only=True):
    """A round trip, in milliseconds."""

    peer_id: str
    rtt: float


class Account(Answer, kw_only=True):
    """This node's account; where `live` is false as it was last told, `as_of` then, for the `reason`."""

    did: str
    balance: str
    in_escrow: str | None
    entries: list[StatementEntry]
    contract_database: str
    live: bool
    as_of: str | Optional = UNSET
    reason: str | Optional = UNSET


class Statement(Answer, kw_only=True):
    """A movement on this node's account, from the receipt that it was sent."""

    id: str
    contract_id: str
    job_id: str
    at: str
    kind: str
    amount: str
    message: str


class Balance(Answer, kw_only=True):
    """An account after a deposit."""

    did: str
    balance: str


class RegistryEntry(Answer, kw_only=True):
    """Somebody whom the contract database has admitted or revoked; `id` is a DID."""

    id: str
    status: Literal["approved", "revoked"]
    at: str
    note: str


class Books(Answer, kw_only=True):
    """All accounts of a contract database, their sum, and whether its log is whole."""

    accounts: dict[str, str]
    total: str
    log_entries: int
    log_intact: bool
    log_problem: str


class Indices(Answer, kw_only=True):
    """The indices of activity, and where the event log gives something else."""

    indices: dict[str, Any]
    sizes: dict[str, int]
    differences: list[dict[str, Any]]


class WhoAmI(Answer, kw_only=True):
    """This node's identifiers, and the address that `peer add` takes."""

    uuid: str
    cid: str
    peer_id: str
    did: str
    address: str | None


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
    """How many jobs, and those that have not ended."""

    all: int
    open: int
    settled: int
    failed: int
    disputed: int
    now: list[OpenJob]


class RunningAllocation(Struct, forbid_unknown_fields=True, kw_only=True):
    """An allocation that has not ended."""

    id: str
    job_id: str
    state: str
    usage: Usage | None


class AllocationCount(Struct, forbid_unknown_fields=True, kw_only=True):
    """How many allocations, and those that have not ended."""

    all: int
    running: int
    now: list[RunningAllocation]


class KnownBalance(Struct, forbid_unknown_fields=True, kw_only=True):
    """A balance as a contract database last told it; `id` is its DID."""

    id: str
    balance: str
    at: str


class Machine(Struct, forbid_unknown_fields=True, kw_only=True):
    """What the monitor sees of the machine: the share of its processors that is busy, and bytes that are free."""

    cpu_load: float
    memory_free: int
    disk_free: int


class Status(Answer, kw_only=True):
    """The node on one page; the command line adds `running` and `next`, what to do."""

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
    peers: PeerCount
    jobs: JobCount
    allocations: AllocationCount
    load: float
    balances: list[KnownBalance]
    earned: str
    spent: str
    known_roles: dict[str, str]
    rejections: dict[str, int]
    machine: Machine
    running: bool | Optional = UNSET
    next: list[str] | Optional = UNSET


class Stopping(Answer, kw_only=True):
    """The node is about to stop."""

    stopping: Literal[True]


class Problem(Struct, forbid_unknown_fields=True, kw_only=True):
    """An error (RFC 9457), with the exit code that the command line ends with."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    details: dict[str, Any]
    exit_code: int
