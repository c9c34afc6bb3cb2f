"""The contract database settles: what a party's documents claim, and what is paid for it."""

from __future__ import annotations

from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import ContractError, DisputedError
from nunet_cli.records.contract_records import RegisteredContract
from nunet_cli.records.contracts import FULFILLED, ORACLE, PROVIDER, REQUESTER, Contract, JobVerificationResult
from nunet_cli.records.disputes import DisputeContract
from nunet_cli.records.documents import Document, require_signature
from nunet_cli.records.messages import SettleContract
from nunet_cli.records.results import Result
from nunet_cli.tokenomics.closing import Closing, contract_of, seconds_seen
from nunet_cli.tokenomics.disputing import Disputing, held
from nunet_cli.tokenomics.payment import amount_due


class Claim(Struct, frozen=True):
    """What a party brings to have a contract settled, with the signatures checked; `verdict` where it brought one."""

    contract: Contract
    result: Result
    verdict: JobVerificationResult | None

    @property
    def needs_verdict(self) -> bool:
        """Whether something may be due, or is settled for nothing: what earned nothing needs nobody's word."""
        return self.result.state == "completed" or bool(amount_due(self.contract.terms, self.result))


def read_claim(record: RegisteredContract, request: SettleContract) -> Claim:
    """Return what a request to settle claims; the contract is what it is, so this needs no look at the books.

    Raises:
        RejectedMessageError: a signature is missing or bad.
        ContractError: the result or the verdict belongs to something else.
    """
    contract = record.document.read(Contract)
    require_signature(request.result, contract.provider, PROVIDER, "result")
    result = request.result.read(Result)
    if result.contract_id != record.id:
        raise ContractError("the result belongs to another contract", code="wrong_result")
    claim = Claim(contract, result, None)
    if request.verdict is None or not claim.needs_verdict:
        return claim
    require_signature(request.verdict, contract.oracle, ORACLE, "verdict")
    verdict = request.verdict.read(JobVerificationResult)
    if verdict.contract_id != record.id or verdict.result_cid != request.result.cid:
        raise ContractError("the verdict belongs to another result", code="wrong_verdict")
    return Claim(contract, result, verdict)


class Settling:
    """How contracts are settled.

    Args:
        closing: how a contract is closed.
        disputing: what becomes of a result that the oracle did not verify.
    """

    def __init__(self, closing: Closing, disputing: Disputing) -> None:
        self._closing, self._disputing = closing, disputing

    def settle(self, t: Transaction, request: SettleContract, sender: str, claim: Claim) -> Document | DisputedError:
        """Settle a contract, as part of a change.

        Returns:
            The signed receipt, the same one however often it is asked for; or why it is in dispute now, with its escrow
            held: what the oracle does not verify is not lost, so this change is to be kept.

        Raises:
            NotFoundError: no such contract of the sender's.
            DisputedError: it was in dispute before.
            ContractError: it is too early, or a verdict is needed.
        """
        record = contract_of(t, request.contract_id, sender)
        if record.receipt is not None:
            return record.receipt
        if record.state == "disputed":
            raise held(record.id)
        now = quantities.utc_now()
        if claim.needs_verdict:
            if sender != record.requester and now < record.deadline:
                # until then it is the requester's to say that it has what it pays for
                raise ContractError(
                    f"the provider can have it settled from {record.deadline} on, if the requester does not",
                    code="too_early",
                )
            if claim.verdict is None:
                raise ContractError("a verdict of the oracle is needed", code="verdict_needed")
            if claim.verdict.verdict != "verified":
                return self._dispute(t, request, sender, claim.verdict)
        completed = claim.result.state == "completed"
        reason = FULFILLED if completed else (claim.result.reason or claim.result.state)
        # what is due counts no more time than this node saw pass since it proved the contract
        due = amount_due(claim.contract.terms, claim.result, seconds_seen(record, now))
        party = REQUESTER if sender == record.requester else PROVIDER
        return self._closing.close(
            t, record, due, reason, by=party, at=now, completed=completed, result_cid=request.result.cid,
            result=request.result, result_at=now, asker=sender,
        )  # fmt: skip

    def _dispute(
        self, t: Transaction, request: SettleContract, sender: str, verdict: JobVerificationResult
    ) -> Document | DisputedError:
        failed = ", ".join(f"{check.name}: {check.detail}" for check in verdict.checks if not check.passed)
        says = "rejected" if verdict.verdict == "rejected" else "cannot verify"
        reason = f"the oracle {says} the result: {failed}"
        evidence = tuple(document for document in (request.result, request.verdict) if document is not None)
        body = DisputeContract(request.contract_id, reason[:4000], evidence)
        receipt = self._disputing.add(t, body, sender, request.result)
        return receipt or DisputedError(reason, details={"contract": request.contract_id})
