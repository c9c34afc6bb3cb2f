"""The documents of a contract, from terms to receipt; `messages` has what carries them to the authority."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.records.capability import PriceBid
from nunet_cli.records.documents import Document
from nunet_cli.records.fields import Did, Id, MaybeId, Name, Text, Time, TimeOrNone
from nunet_cli.records.limits import Limits

FULFILLED = "Contract fulfilled, thank you for your business"
Amount = Annotated[str, Limits(pattern=r"^[0-9]{1,13}(\.[0-9]{1,6})?$(?!\n)")]
Movement = Annotated[str, Limits(pattern=r"^-?[0-9]{1,13}(\.[0-9]{1,6})?$(?!\n)")]
# what a contract's deadline has beyond the job's longest duration: for its inputs, its start and its outputs
SLACK = timedelta(minutes=10)
# how long the provider's signature, which comes first, waits for the requester's and for the contract database
# what two clocks may differ by
CLOCK_SKEW = timedelta(seconds=60)
SIGN_WITHIN = timedelta(seconds=60)
LAPSED, UNVERIFIED = "signature_lapsed", "not_verified_entity"
REQUESTER, PROVIDER, DATABASE, ORACLE = "requester", "provider", "contract-database", "oracle"


class Terms(Struct, forbid_unknown_fields=True, frozen=True):
    """What is agreed: the job by content id, the price, the deposit in NTX, the duration in seconds, the deadline.

    `replicas` says how many providers run the job, where their results are compared.
    """

    spec_cid: Id
    price: PriceBid
    max_duration: Annotated[int, Limits(ge=1, le=10**9)]
    deposit: Amount
    verification: Literal["attested", "replicate", "reexecute"]
    deadline: Time
    replicas: Annotated[int, Limits(ge=1, le=15)] = 1


class Contract(Struct, forbid_unknown_fields=True, frozen=True):
    """The text that both parties sign (seed 4: `tokenomics.contract`); its id is its content id.

    The provider signs first, the requester last; what is not registered by `sign_by` binds nobody.
    """

    v: Literal[1]
    job_id: Id
    bid_id: Id
    requester: Did
    provider: Did
    contract_database: Did
    oracle: Did
    terms: Terms
    payment: Literal["volunteer", "escrow"]
    created_at: Time
    sign_by: TimeOrNone = ""


def deadline_of(created_at: str, max_duration: int) -> str:
    """Return a contract's deadline: it follows from when it was made and how long the job may run, in seconds."""
    return quantities.format_time(quantities.parse_time(created_at) + timedelta(seconds=max_duration) + SLACK)


def sign_by_of(created_at: str) -> str:
    """Return until when a contract must be registered: it follows from when it was made."""
    return quantities.format_time(quantities.parse_time(created_at) + SIGN_WITHIN)


class Proof(Struct, forbid_unknown_fields=True, frozen=True):
    """Proof of contract: the contract database's word that the contract is recorded and its deposit held in escrow."""

    v: Literal[1]
    contract_id: Id
    contract_database: Did
    deposit: Amount
    registered_at: Time
    log_head: Id

    def problem(self, contract_id: str, contract: Contract) -> str:
        """Return why this proves nothing about a contract; empty where it does.

        A party's signature binds until `sign_by`, give or take what clocks may differ: what was recorded later, whoever
        did that, binds nobody.
        """
        if (self.contract_id, self.deposit) != (contract_id, contract.terms.deposit):
            return "the proof is for another contract"
        if self.contract_database != contract.contract_database:
            return "the proof is another contract database's"
        at = quantities.parse_time(self.registered_at)
        late = contract.sign_by and at > quantities.parse_time(contract.sign_by) + CLOCK_SKEW
        if late or at < quantities.parse_time(contract.created_at) - CLOCK_SKEW:
            until = contract.sign_by or "its end"
            return f"recorded at {self.registered_at}: it was to be between {contract.created_at} and {until}"
        return ""


class Check(Struct, forbid_unknown_fields=True, frozen=True):
    """One thing that the oracle looked at."""

    name: Name
    passed: bool
    detail: Text = ""


class JobVerificationResult(Struct, forbid_unknown_fields=True, frozen=True):
    """The oracle's verdict on a result (seed 7: `jobVerificationResult`).

    `completed` is the other result that the provider told the oracle of, where that is why this one was rejected.
    """

    v: Literal[1]
    contract_id: Id
    result_cid: Id
    oracle: Did
    verdict: Literal["verified", "rejected", "inconclusive"]
    checks: Annotated[tuple[Check, ...], Limits(max_length=100)]
    verified_at: Time
    policy: Literal["attested", "replicate", "reexecute"] = "attested"
    completed: Document | None = None


class Receipt(Struct, forbid_unknown_fields=True, frozen=True):
    """The settlement record: what was paid to the provider and what went back to the requester, in NTX.

    `result_cid` is the result by which the contract was closed; empty where it was by none.
    """

    v: Literal[1]
    contract_id: Id
    contract_database: Did
    outcome: Literal["settled", "refunded"]
    requester: Did
    provider: Did
    paid: Amount
    refunded: Amount
    reason: Text
    settled_at: Time
    log_head: Id
    result_cid: MaybeId = ""
