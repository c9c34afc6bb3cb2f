"""The bodies of the messages of the lifecycle, beside those that are records themselves (bid request, bid, decline)."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Struct

from nunet_cli.records.bids import BidRequest
from nunet_cli.records.capability import Capability
from nunet_cli.records.contracts import Amount, Movement
from nunet_cli.records.documents import Document
from nunet_cli.records.fields import Did, Id, MaybeId, Text, Time
from nunet_cli.records.limits import Limits
from nunet_cli.records.results import Progress, Usage


class AskCapability(Struct, forbid_unknown_fields=True, frozen=True):
    """Ask what a provider has left for the sender, and its price."""


class CapabilityTold(Struct, forbid_unknown_fields=True, frozen=True):
    """What a provider has left for who asked, its price, and how busy it is, 0 to 1; nothing without `offered`."""

    offered: Capability | None = None
    load: Annotated[float, Limits(ge=0, le=1)] = 0.0


class JobRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """Ask the chosen provider to lock what its bid offers (seed 3)."""

    bid_id: Id
    bid_request: BidRequest


class DeclineJobRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """The provider has thought better of its bid (seed 3: `declineJobRequest`); `busy` where others were faster."""

    bid_id: Id
    reason: Text
    busy: bool = False


class TimeoutJobRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """The bid is no longer valid (seed 3: `timeoutJobRequest`)."""

    bid_id: Id
    timeout: Time


class ContractProposal(Struct, forbid_unknown_fields=True, frozen=True):
    """The contract, signed by the requester."""

    contract: Document


class ContractAgreement(Struct, forbid_unknown_fields=True, frozen=True):
    """The contract, signed by both."""

    contract: Document


class Invocation(Struct, forbid_unknown_fields=True, frozen=True):
    """The order to start (seed 5): the job, the contract and its proof."""

    spec: Annotated[str, Limits(max_length=256 * 1024)]
    contract: Document
    proof: Document


class AllocationStartSuccess(Struct, forbid_unknown_fields=True, frozen=True):
    """The allocation is made (seed 5: `allocationStartSuccess`)."""

    contract_id: Id
    allocation_id: Id
    state: Id


class JobStatusUpdate(Struct, forbid_unknown_fields=True, frozen=True):
    """A sign of life while the job runs, or how far its start has come (seed 6: `jobStatusUpdate`).

    `remark` says what is not well with it: that it does nothing, or comes near to a limit.
    """

    contract_id: Id
    allocation_id: Id
    state: Id
    usage: Usage
    at: Time
    progress: Progress | None = None
    remark: Text = ""


class JobCompleted(Struct, forbid_unknown_fields=True, frozen=True):
    """The job has ended: the signed result, whatever it is (seed 6: `jobCompleted`).

    The oracle, which is told of what was completed, has neither the contract nor its proof yet: they go with it.
    """

    contract_id: Id
    result: Document
    contract: Document | None = None
    proof: Document | None = None


class JobCancel(Struct, forbid_unknown_fields=True, frozen=True):
    """Stop: release the lock of a bid, or end the allocation of a contract."""

    bid_id: MaybeId = ""
    contract_id: MaybeId = ""


class JobCancelled(Struct, forbid_unknown_fields=True, frozen=True):
    """It is stopped; where there was a contract, with the signed result."""

    result: Document | None = None


class JobSync(Struct, forbid_unknown_fields=True, frozen=True):
    """Ask what has been missed about a contract."""

    contract_id: Id


class JobState(Struct, forbid_unknown_fields=True, frozen=True):
    """Where an allocation stands, with its result once there is one."""

    contract_id: Id
    allocation_id: MaybeId
    state: Id
    usage: Usage
    result: Document | None = None


class JobLogs(Struct, forbid_unknown_fields=True, frozen=True):
    """Ask for output from a byte offset on; the answer waits up to `wait` seconds for something new."""

    contract_id: Id
    stream: Literal["stdout", "stderr"]
    offset: Annotated[int, Limits(ge=0, le=2**40)]
    wait: Annotated[float, Limits(ge=0, le=10)] = 0


class LogChunk(Struct, forbid_unknown_fields=True, frozen=True):
    """A piece of output; `ended` when there will be no more after it."""

    data: bytes
    ended: bool


class CheckKyc(Struct, forbid_unknown_fields=True, frozen=True):
    """Ask whether a node is a verified entity (seed 4: `contract-database.checkKYC`)."""

    did: Did


class KycAnswer(Struct, forbid_unknown_fields=True, frozen=True):
    """Whether it is, and if not, why."""

    did: Did
    verified: bool
    reason: Text = ""


class CheckContract(Struct, forbid_unknown_fields=True, frozen=True):
    """Ask for the state of a contract (seed 4: `contract-database.checkContract`); only its parties are told."""

    contract_id: Id


class ContractStatus(Struct, forbid_unknown_fields=True, frozen=True):
    """The state of a contract at the contract database, with its proof and, at the end, its receipt."""

    contract_id: Id
    state: Id
    proof: Document
    receipt: Document | None = None
    balance: Amount = "0"


class RegisterContract(Struct, forbid_unknown_fields=True, frozen=True):
    """Ask to record a contract that both parties signed, and to hold its deposit."""

    contract: Document


class ProofOfContract(Struct, forbid_unknown_fields=True, frozen=True):
    """The signed proof, and the requester's balance after the deposit."""

    proof: Document
    balance: Amount


class ContractRegistered(Struct, forbid_unknown_fields=True, frozen=True):
    """The proof, for the party that did not register the contract itself, with its own balance."""

    contract_id: Id
    proof: Document
    balance: Amount


class SettleContract(Struct, forbid_unknown_fields=True, frozen=True):
    """Ask to settle: with the provider's result, and the oracle's verdict where money is due."""

    contract_id: Id
    result: Document
    verdict: Document | None = None


class Message(Struct, forbid_unknown_fields=True, frozen=True):
    """What both parties are told at the end of business (seed 7: `orchestrator.message`), with their own balance.

    Who has it settled gets it as the answer.
    """

    contract_id: Id
    text: Text
    receipt: Document
    balance: Amount


class AskStatement(Struct, forbid_unknown_fields=True, frozen=True):
    """Ask for one's own balance and latest entries."""

    limit: Annotated[int, Limits(ge=0, le=1000)] = 100


class StatementEntry(Struct, forbid_unknown_fields=True, frozen=True):
    """One movement on an account, in NTX."""

    at: Time
    kind: Id
    amount: Movement
    contract_id: Annotated[str, Limits(max_length=120)] = ""


class AccountStatement(Struct, forbid_unknown_fields=True, frozen=True):
    """An account as the contract database has it."""

    did: Did
    balance: Amount
    in_escrow: Amount
    entries: Annotated[tuple[StatementEntry, ...], Limits(max_length=1000)] = ()


class Replica(Struct, forbid_unknown_fields=True, frozen=True):
    """Another provider's run of the same job."""

    contract: Document
    proof: Document
    result: Document


class JobVerification(Struct, forbid_unknown_fields=True, frozen=True):
    """What the oracle gets to see (seed 7: `jobVerification`): the job, the contract with its proof, and the result.

    `replicas` are the other providers' runs; `reexecute` asks the oracle to run the job itself, for a dispute.
    """

    spec: Annotated[str, Limits(max_length=256 * 1024)]
    contract: Document
    proof: Document
    result: Document
    replicas: Annotated[tuple[Replica, ...], Limits(max_length=15)] = ()
    reexecute: bool = False


class Verdict(Struct, forbid_unknown_fields=True, frozen=True):
    """The oracle's signed verdict."""

    verdict: Document
