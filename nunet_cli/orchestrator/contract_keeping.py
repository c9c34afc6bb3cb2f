"""Stage 4, what both parties keep of a contract: its record, what happens to it, its proof, and their balance."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Protocol

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import PeerError, RejectedMessageError, StateError
from nunet_cli.network.messenger import Change, Incoming
from nunet_cli.orchestrator.needs import Dealing, HasClosings
from nunet_cli.records.contract_records import BALANCES, CONTRACT, CONTRACTS, Balance, ContractRecord
from nunet_cli.records.contracts import DATABASE, Contract, Proof
from nunet_cli.records.documents import Document, require_signature
from nunet_cli.records.messages import ContractAgreement, ContractRegistered, ContractStatus, KycAnswer, ProofOfContract

_LEADS_TO = {move.event: move.to for move in CONTRACT.moves}


class Proving(HasClosings, Dealing, Protocol):
    """Takes proofs."""


def check_proof(proof: Document, contract: Document) -> None:
    """Refuse a proof that is not the contract database's word on this very contract.

    Raises:
        RejectedMessageError: what does not fit.
    """
    text = contract.read(Contract)
    require_signature(proof, text.contract_database, DATABASE, "proof")
    problem = proof.read(Proof).problem(contract.cid, text)
    if problem:
        raise RejectedMessageError(problem, code="wrong_proof")


def contract_record(document: Document, role: Literal["requester", "provider"], spec: str) -> ContractRecord:
    """Return the record of a new contract."""
    contract = document.read(Contract)
    return ContractRecord(
        id=document.cid, job_id=contract.job_id, role=role, bid_id=contract.bid_id, requester=contract.requester,
        provider=contract.provider, contract_database=contract.contract_database, oracle=contract.oracle,
        deposit=contract.terms.deposit, payment=contract.payment, deadline=contract.terms.deadline,
        created_at=contract.created_at, document=document, spec=spec,
    )  # fmt: skip


def set_contract(t: Transaction, contract_id: str, event: str, *, by: str, **changes: Any) -> ContractRecord:
    """Let an event happen to a contract, and save it in the event log; return the contract.

    Where it has led to its state already, that is no event: only the changes are made.

    Args:
        t: the change that this is part of.
        contract_id: the contract.
        event: what happens, as in `records.contract_records.CONTRACT`; it is about this contract.
        by: which party causes it.
        changes: fields of the contract.

    Raises:
        StateError: the contract's machine does not allow it, or there is no such contract.
    """
    contract = t[CONTRACTS].get(contract_id)
    if contract is None:
        raise StateError(f"contract {contract_id} is gone", code="gone")
    if contract.state == _LEADS_TO[event]:
        contract = structs.replace(contract, **changes)
        t[CONTRACTS].put(contract)
        return contract
    contract = transition(t, contract, event, by=by, about=contract_id, **changes)
    t.save_event(contract.job_id, f"contract_{contract.state}", contract_id=contract_id)
    return contract


def keep_proof(ctx: HasClosings, t: Transaction, contract_id: str, proof: Document, **changes: Any) -> None:
    """Keep the proof of a contract, as part of a change; of one that comes again, the time of the first stands.

    Args:
        ctx: the node's parts.
        t: the change.
        contract_id: the contract.
        proof: the contract database's word, checked.
        changes: what else is new in the contract.

    Raises:
        StateError: it is closed or in dispute.
    """
    known = t[CONTRACTS].get(contract_id)
    at = (known.proved_at if known is not None else "") or quantities.utc_now()
    set_contract(t, contract_id, "prove", by=DATABASE, proof=proof, proved_at=at, **changes)
    # with a result, from here on time has to close it
    t.then(partial(ctx.closings.look, contract_id))


def recorded_with(ctx: Dealing, contract_id: str, database: str) -> ContractRecord:
    """Return a contract of this node's, for the contract database that it names.

    Raises:
        PeerError: there is none.
    """
    contract = ctx.store[CONTRACTS].get(contract_id)
    if contract is None or contract.contract_database != database:
        raise PeerError("no such contract recorded with you here", code="no_contract")
    return contract


def _on_registered(ctx: Proving, message: Incoming) -> Change | None:
    """Keep the proof that the contract database sends to the party that did not register the contract itself."""
    body: ContractRegistered = message.body
    known = recorded_with(ctx, body.contract_id, message.sender)
    check_proof(body.proof, known.document)
    if known.proof is not None:
        # it came with the invocation
        return None

    def change(t: Transaction) -> None:
        contract = t[CONTRACTS].one(body.contract_id)
        if contract.proof is None and CONTRACT.may(contract.state, "prove"):
            keep_proof(ctx, t, contract.id, body.proof)
        elif contract.proof is None:
            # closed, or in dispute, before the proof was here
            t[CONTRACTS].put(structs.replace(contract, proof=body.proof))
        note_balance(t, message.sender, body.balance)

    return change


def note_balance(t: Transaction, database: str, balance: str) -> None:
    """Remember what the contract database last said of this node's balance."""
    t[BALANCES].put(Balance(database, balance, quantities.utc_now()))


def register(ctx: Proving) -> None:
    """Take the proof of what the other party has registered; know the answers of provider and contract database."""

    async def on_registered(message: Incoming) -> Change | None:
        return _on_registered(ctx, message)

    ctx.messenger.register("contract_registered", ContractRegistered, on_registered)
    ctx.messenger.register("contract_agreement", ContractAgreement)
    ctx.messenger.register("kyc_answer", KycAnswer)
    ctx.messenger.register("proof_of_contract", ProofOfContract)
    ctx.messenger.register("contract_status", ContractStatus)
