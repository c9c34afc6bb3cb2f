"""Bids, contracts, disputes and money."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct

from nunet_cli.api.schemas.base import Answer, Optional
from nunet_cli.records.bids import CapabilityComparison, TimeBid
from nunet_cli.records.capability import PriceBid
from nunet_cli.records.disputes import Dispute, Evidence
from nunet_cli.records.documents import Document, Signature
from nunet_cli.records.messages import StatementEntry


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


class RecordedContract(Answer, kw_only=True):
    """A contract that this contract database has recorded, whoever its parties are.

    What a receipt says is null until there is one: what was paid, what went back, why, and when. From `window_from` on
    it can be settled for `limits.settlement_window`; then the deposit goes back.
    """

    id: str
    job_id: str
    state: Literal["proved", "disputed", "settled", "refunded"]
    requester: str
    provider: str
    requester_peer: str
    provider_peer: str
    payment: Literal["volunteer", "escrow"]
    deposit: str
    verification: Literal["attested", "replicate", "reexecute"]
    recorded_at: str
    deadline: str
    window_from: str
    paid: str | None
    refunded: str | None
    reason: str | None
    closed_at: str | None


class Completion(Answer, kw_only=True):
    """A job that its provider told this oracle it completed, and with which result; `id` is the contract's.

    `verdict` is null as long as nobody has brought that result to verification; `shown_instead` is another result of
    the same contract that somebody brought.
    """

    id: str
    job_id: str
    requester: str
    provider: str
    requester_peer: str
    provider_peer: str
    told_at: str
    deadline: str
    result_cid: str
    verdict: Literal["verified", "rejected", "inconclusive"] | None
    shown_instead: str | None


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
    """The settlement record: what was paid to the provider and what went back to the requester.

    `result_cid` is the result by which the contract was closed; empty where it was by none.
    """

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
    result_cid: str


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


class KycDocument(Answer, kw_only=True):
    """What a verifier signed about a node: `content` is the exact JSON text of a `KycStatement`."""

    content: str
    signatures: list[Signature]


class Books(Answer, kw_only=True):
    """All accounts of a contract database, their sum, and whether its log is whole."""

    accounts: dict[str, str]
    total: str
    log_entries: int
    log_intact: bool
    log_problem: str
