"""The contract database's half of a dispute: escrow is held, both bring evidence, a quorum or the operator decides."""

from __future__ import annotations

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import ContractError, DisputedError, RejectedMessageError
from nunet_cli.records.contract_records import REGISTERED_CONTRACTS, RegisteredContract
from nunet_cli.records.contracts import PROVIDER, REQUESTER, Contract
from nunet_cli.records.disputes import Decision, Dispute, DisputeContract
from nunet_cli.records.documents import Document
from nunet_cli.records.machine import OPERATOR, ORACLE
from nunet_cli.records.results import Result
from nunet_cli.tokenomics import chain
from nunet_cli.tokenomics import dispute as disputes
from nunet_cli.tokenomics.closing import Closing, Tell, contract_of, seconds_seen


def held(contract_id: str) -> DisputedError:
    """Return the refusal to close a contract otherwise than its dispute is decided."""
    return DisputedError("the contract is in dispute: its escrow is held", details={"contract": contract_id})


def result_among(record: RegisteredContract, documents: tuple[Document, ...]) -> Document | None:
    """Return the provider's signed result for a contract among documents, or None."""
    for document in documents:
        try:
            result = document.read(Result)
        except RejectedMessageError:
            continue
        if result.contract_id == record.id and document.is_signed(record.provider, PROVIDER):
            return document
    return None


class Disputing:
    """How disputes go.

    Args:
        closing: how a contract is closed by a decision.
        tell: how both parties learn of a dispute.
    """

    def __init__(self, closing: Closing, tell: Tell) -> None:
        self._closing, self._tell = closing, tell

    def add(self, t: Transaction, request: DisputeContract, sender: str, result: Document | None) -> Document | None:
        """Open a dispute, or add evidence to one, as part of a change: escrow is held until it is resolved.

        Both parties are told of one that is opened, so that nobody works on under a contract that is in dispute without
        knowing it. How it ends is told by the receipt.

        Args:
            t: the change.
            request: which contract, and the evidence.
            sender: the party.
            result: what `result_among` found in the evidence.

        Returns:
            The receipt, where a verdict among the evidence that rests on a quorum resolves it at once; else None.

        Raises:
            NotFoundError: no such contract of the sender's.
            ContractError: it is settled, or the dispute resolved already, or the evidence is too much.
        """
        record = contract_of(t, request.contract_id, sender)
        if record.receipt is not None:
            raise ContractError(f"the contract is {record.state} already", code="already_settled")
        party = REQUESTER if sender == record.requester else PROVIDER
        known = disputes.find(t, record.id)
        is_new = known is None
        if known is None:
            known = Dispute(record.id, sender, quantities.utc_now(), request.text or "no reason given")
            record = transition(t, record, "dispute", by=party, about=record.id)
            chain.append(t, "disputed", contract_id=record.id, by=sender)
            t.save_event(record.job_id, "contract_disputed", contract_id=record.id, reason=known.reason)
        known = disputes.add_evidence(known, sender, request.text, request.documents)
        disputes.put(t, known)
        if result is not None and record.result is None:
            # the first result that the provider signed is the result, and it was here by now
            record = transition(
                t, record, "hand_in", by=party, about=record.id, result=result, result_at=quantities.utc_now()
            )  # fmt: skip
        if record.result is not None:
            documents = tuple(document for item in known.evidence for document in item.documents)
            decision = disputes.quorum_decision(record.document.read(Contract), documents, record.result.cid)
            if decision is not None:
                return self._decide(t, record, known, decision, ORACLE)
        if is_new:
            for did in (record.requester, record.provider):
                self._tell(t, did, "dispute_opened", disputes.summary(known))
        return None

    def resolve(self, t: Transaction, contract_id: str, decision: Decision, share: str) -> Document:
        """Decide a dispute for the operator, as part of a change; return the receipt.

        Raises:
            ContractError: the contract is not in dispute, or the share is none.
        """
        record = t[REGISTERED_CONTRACTS].one(contract_id)
        known = disputes.find(t, contract_id)
        if record.state != "disputed" or known is None:
            raise ContractError(f"the contract is {record.state}, not disputed", code="not_disputed")
        return self._decide(t, record, known, decision, OPERATOR, share)

    def _decide(
        self, t: Transaction, record: RegisteredContract, known: Dispute, decision: Decision, by: str,
        share: str = "0.5",
    ) -> Document:  # fmt: skip
        now = quantities.utc_now()
        result = record.result.read(Result) if record.result is not None else None
        seen = seconds_seen(record, record.result_at or now)
        due = disputes.amount_for(record.document.read(Contract), result, decision, share, seen)
        disputes.put(
            t,
            structs.replace(
                known,
                decision=decision,
                by="quorum" if by == ORACLE else "operator",
                paid=quantities.format_amount(due),
            ),
        )
        reason = f"dispute resolved by {'a quorum' if by == ORACLE else 'the operator'}: {decision}"
        return self._closing.close(t, record, due, reason, by=by, at=now)
