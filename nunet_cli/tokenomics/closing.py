"""The contract database closes a contract: once, in one change: the money, the log, the receipt, both parties told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import NotFoundError
from nunet_cli.network.identity import Identity
from nunet_cli.records.contract_records import REGISTERED_CONTRACTS, RegisteredContract
from nunet_cli.records.contracts import DATABASE, FULFILLED, Contract, Proof, Receipt
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.messages import Message
from nunet_cli.tokenomics import chain, ledger
from nunet_cli.tokenomics.payment import seconds_between

# puts a message to somebody into the outbox: whom, its type, its body
Tell = Callable[[Transaction, str, str, Struct], None]


def contract_of(source: Store | Transaction, contract_id: str, did: str) -> RegisteredContract:
    """Return a contract that is recorded here, for one of its parties.

    Raises:
        NotFoundError: there is none, or it is between others.
    """
    record = source[REGISTERED_CONTRACTS].get(contract_id)
    if record is None or did not in (record.requester, record.provider):
        raise NotFoundError(f"no contract {contract_id} of yours is recorded here", code="no_contract")
    return record


def seconds_seen(record: RegisteredContract, until: str) -> float:
    """Return the seconds that passed since a contract was proved, by the contract database's own clock."""
    return seconds_between(record.proof.read(Proof).registered_at, until)


class Closing:
    """How contracts are closed, whatever the reason.

    Args:
        identity: the key that signs receipts.
        tell: how both parties are told.
    """

    def __init__(self, identity: Identity, tell: Tell) -> None:
        self._identity, self._tell = identity, tell

    def close(
        self, t: Transaction, record: RegisteredContract, due: int, reason: str, *, by: str, at: str,
        completed: bool = False, result_cid: str = "", asker: str = "", **changes: Any,
    ) -> Document:  # fmt: skip
        """Close a contract, as part of a change; return the signed receipt.

        Args:
            t: the change.
            record: the contract.
            due: what the provider is paid, in micro-NTX; the rest of the deposit goes back.
            reason: for the receipt.
            by: which party, or what else, closes it.
            at: the present time.
            completed: it is settled even where nothing is due.
            result_cid: the result that it is closed by, where it is by one.
            asker: the party that is told by the answer to what it asks, and not once more.
            changes: what else is new in the record.

        Raises:
            StateError: that is not possible in the state that it is in now.
        """
        contract = record.document.read(Contract)
        outcome: Literal["settled", "refunded"] = "settled" if completed or due else "refunded"
        back = quantities.parse_amount(contract.terms.deposit) - due
        account = ledger.escrow(record.id)
        if due:
            ledger.transfer(t, account, contract.provider, due, "payment", record.id)
        if back:
            ledger.transfer(t, account, contract.requester, back, "refund", record.id)
        paid, refunded = quantities.format_amount(due), quantities.format_amount(back)
        head = chain.append(t, outcome, contract_id=record.id, paid=paid)
        receipt = make_document(
            Receipt(
                1, record.id, self._identity.did, outcome, contract.requester, contract.provider, paid, refunded,
                reason, at, head, result_cid,
            )
        ).sign(self._identity, DATABASE)  # fmt: skip
        event = "settle" if outcome == "settled" else "refund"
        transition(t, record, event, by=by, about=record.id, receipt=receipt, **changes)
        t.save_event(contract.job_id, f"contract_{outcome}", contract_id=record.id, paid=paid)
        text = closing_text(receipt.read(Receipt))
        for did in (did for did in (contract.requester, contract.provider) if did != asker):
            balance = quantities.format_amount(ledger.balance(t, did))
            self._tell(t, did, "message", Message(record.id, text, receipt, balance))
        return receipt


def closing_text(receipt: Receipt) -> str:
    """Return what a party is told at the end of business."""
    return receipt.reason if receipt.reason == FULFILLED else f"Contract {receipt.outcome}: {receipt.reason}"
