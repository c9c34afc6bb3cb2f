"""Disputes: escrow is held, both parties add evidence, and a quorum or the operator decides to pay, split or refund."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError, NunetError
from nunet_cli.records.contracts import ORACLE, Contract, JobVerificationResult
from nunet_cli.records.disputes import (
    DISPUTES,
    Decision,
    Dispute,
    DisputeSummary,
    Evidence,
    EvidenceSummary,
)
from nunet_cli.records.documents import Document
from nunet_cli.records.results import Result
from nunet_cli.tokenomics.payment import amount_due

# what each of the parties may bring; what the one says takes nothing from the other
MAX_PIECES, MAX_DOCUMENTS = 32, 64
MAX_TEXT, MAX_BYTES = 32 * 2**10, 640 * 2**10


def summary(dispute: Dispute) -> DisputeSummary:
    """Return a dispute with its documents by content id."""
    said = tuple(
        EvidenceSummary(item.did, item.at, item.text, tuple(document.cid for document in item.documents))
        for item in dispute.evidence
    )
    return DisputeSummary(
        dispute.contract_id, dispute.opened_by, dispute.opened_at, dispute.reason, said, dispute.decision, dispute.by,
        dispute.paid,
    )  # fmt: skip


def whole(known: DisputeSummary, documents: dict[str, Document]) -> Dispute:
    """Return a dispute with those of its documents that are here."""
    said = tuple(
        Evidence(item.did, item.at, item.text, tuple(documents[cid] for cid in item.documents if cid in documents))
        for item in known.evidence
    )
    return Dispute(
        known.contract_id, known.opened_by, known.opened_at, known.reason, said, known.decision, known.by, known.paid
    )


def find(source: Store | Transaction, contract_id: str) -> Dispute | None:
    """Return the dispute about a contract, or None."""
    return source[DISPUTES].get(contract_id)


def put(t: Transaction, dispute: Dispute) -> None:
    """Keep a dispute, as part of a change; one that is kept already is not written again."""
    if find(t, dispute.contract_id) != dispute:
        t[DISPUTES].put(dispute)


def has_said(dispute: Dispute, did: str, text: str, documents: tuple[Document, ...]) -> bool:
    """Say whether a piece of evidence is among a dispute's already."""
    return any((item.did, item.text, item.documents) == (did, text, documents) for item in dispute.evidence)


def add_evidence(dispute: Dispute, did: str, text: str, documents: tuple[Document, ...]) -> Dispute:
    """Return a dispute with one more piece of evidence; the same one twice is one.

    Raises:
        ContractError: it is resolved, or this party has brought too much already.
    """
    if dispute.decision:
        raise ContractError(f"the dispute was resolved: {dispute.decision}", code="dispute_resolved")
    if has_said(dispute, did, text, documents):
        return dispute
    said = [
        *(item for item in dispute.evidence if item.did == did),
        Evidence(did, quantities.utc_now(), text, documents),
    ]
    for what, size, most in (
        ("pieces of evidence", len(said), MAX_PIECES),
        ("documents", sum(len(item.documents) for item in said), MAX_DOCUMENTS),
        ("bytes of text", len(msgspec.json.encode([item.text for item in said])), MAX_TEXT),
        ("bytes of evidence", len(msgspec.json.encode(said)), MAX_BYTES),
    ):
        if size > most:
            raise ContractError(
                f"a party may bring {most} {what} to a dispute, this would be {size}", code="too_much_evidence"
            )
    return msgspec.structs.replace(dispute, evidence=(*dispute.evidence, said[-1]))


def quorum_decision(contract: Contract, documents: tuple[Document, ...], result_cid: str) -> Decision | None:
    """Return what a verdict among the evidence decides: one that rests on running the job more than once.

    Under terms that say so it decides either way. Under others a second run can only confirm a result: that it came out
    differently is evidence for the operator, as a job may do that by its nature.

    Args:
        contract: the contract in dispute.
        documents: what a party gave as evidence.
        result_cid: the result in dispute; a verdict on another one decides nothing.
    """
    for document in documents:
        if not document.is_signed(contract.oracle, ORACLE):
            continue
        try:
            verdict = document.read(JobVerificationResult)
        except NunetError:
            continue
        if verdict.result_cid == result_cid and verdict.policy in ("replicate", "reexecute"):
            if verdict.verdict == "verified":
                return "pay"
            if verdict.verdict == "rejected" and verdict.policy == contract.terms.verification:
                return "refund"
    return None


def amount_for(
    contract: Contract, result: Result | None, decision: Decision, share: str = "0.5", seen: float | None = None
) -> int:
    """Return what a decision pays the provider, in micro-NTX.

    Args:
        contract: the contract.
        result: the provider's result, or None where there is none.
        decision: `pay` what the result has earned (all of the deposit where there is none), `refund` all, or `split`.
        share: for a split, the provider's share of the deposit, 0 to 1, as a decimal.
        seen: the seconds that the contract database saw pass between its proof and the result.

    Raises:
        ContractError: the share is none.
    """
    deposit = quantities.parse_amount(contract.terms.deposit)
    if decision == "refund":
        return 0
    if decision == "pay":
        return min(deposit, amount_due(contract.terms, result, seen)) if result is not None else deposit
    try:
        part = Decimal(share)
    except ArithmeticError:
        raise ContractError(
            f"not a share: {share!r}", code="bad_share", hint="between 0 and 1, for example 0.5"
        ) from None
    if not 0 <= part <= 1:
        raise ContractError(f"a share is between 0 and 1, not {share}", code="bad_share")
    return int(deposit * part)
