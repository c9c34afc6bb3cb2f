"""The contract database: which contracts are recorded, what is in escrow, and what was settled.

Every answer is signed (the envelope, and the documents in it), every change is appended to a hash-chained log, and each
contract is settled exactly once, however often it is asked for. Each message is handled in one change, on what is
recorded then: two that arrive together are decided one after the other.
"""

from __future__ import annotations

from functools import partial

from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.config import Config
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError, NotFoundError, NunetError
from nunet_cli.network.envelope import error_message
from nunet_cli.network.identity import Identity
from nunet_cli.network.messenger import Answer, Change, Incoming, Messenger
from nunet_cli.records.contract_records import REGISTERED_CONTRACTS, RegisteredContract
from nunet_cli.records.contracts import Contract, Receipt
from nunet_cli.records.disputes import AskDispute, Decision, Dispute, DisputeContract, EvidenceDocument
from nunet_cli.records.documents import Document
from nunet_cli.records.messages import (
    AccountStatement,
    AskStatement,
    CheckContract,
    CheckKyc,
    ContractStatus,
    Message,
    ProofOfContract,
    RegisterContract,
    SettleContract,
    StatementEntry,
)
from nunet_cli.tokenomics import dispute as disputes
from nunet_cli.tokenomics import ledger
from nunet_cli.tokenomics.closing import Closing, closing_text, contract_of
from nunet_cli.tokenomics.disputing import Disputing, result_among
from nunet_cli.tokenomics.refunding import Refunding
from nunet_cli.tokenomics.registering import Registering
from nunet_cli.tokenomics.registry import Registry
from nunet_cli.tokenomics.settling import Claim, Settling, read_claim

MESSAGE_LIFETIME = 14 * 86400


class ContractDatabase:
    """The role's behaviours and its operator's functions.

    Args:
        identity: the key that signs proofs and receipts.
        store: where registry, contracts, accounts and log are kept.
        config: admission and opening balance.
        messenger: carries the messages.
    """

    def __init__(self, identity: Identity, store: Store, config: Config, messenger: Messenger) -> None:
        self._store, self._config, self._messenger = store, config, messenger
        self.registry = Registry(store, config)
        self._registering = Registering(identity, self.registry, self._tell)
        closing = Closing(identity, self._tell)
        self._disputing = Disputing(closing, self._tell)
        self._settling = Settling(closing, self._disputing)
        self._refunding = Refunding(store, config.limits.settlement_window, closing)
        messenger.register("check_kyc", CheckKyc, self._on_check_kyc)
        messenger.register("check_contract", CheckContract, self._on_check_contract)
        messenger.register("register_contract", RegisterContract, self._on_register)
        messenger.register("settle_contract", SettleContract, self._on_settle)
        messenger.register("dispute_contract", DisputeContract, self._on_dispute)
        messenger.register("ask_dispute", AskDispute, self._on_ask_dispute)
        messenger.register("ask_statement", AskStatement, self._on_statement)

    def _tell(self, t: Transaction, did: str, type_: str, body: Struct) -> None:
        outbox = self._messenger.outbox
        # a provider gets the proof with its invocation, most often: it is told what is most often known by then
        soon = type_ != "contract_registered"
        outbox.enqueue(t, outbox.outgoing(did, type_, body, lifetime=MESSAGE_LIFETIME), soon=soon)

    # -- for the operator ----------------------------------------------------------------------------------------------

    async def resolve(self, contract_id: str, decision: Decision, share: str = "0.5") -> Document:
        """Decide a dispute (operator); return the receipt.

        Args:
            contract_id: the contract, or its beginning.
            decision: what is decided.
            share: for a split, the provider's share of the deposit, 0 to 1.

        Raises:
            NotFoundError: no such contract.
            ContractError: it is not in dispute.
        """
        found = self._store[REGISTERED_CONTRACTS].resolve(contract_id, what="recorded contract")
        return await self._store.change(lambda t: self._disputing.resolve(t, found.id, decision, share))

    async def run(self) -> None:
        """Give deposits back when their time has come, for ever; what it was away for is counted against nobody."""
        await self._refunding.run()

    def expect(self, window_from: str) -> None:
        """Note that a contract is there whose window begins at a time, which may be due before all others."""
        self._refunding.expect(window_from)

    async def refund_expired(self) -> list[str]:
        """Give deposits back whose contract's deadline, and the time to settle after it, have passed; return ids."""
        return await self._refunding.refund_expired()

    # -- messages that change something ------------------------------------------------------------------------------

    async def _on_register(self, message: Incoming) -> Answer | Change:
        document: Document = message.body.contract
        contract = document.read(Contract)
        if message.sender not in (contract.requester, contract.provider):
            raise ContractError("only a party can register a contract", code="not_a_party")
        known = self._store[REGISTERED_CONTRACTS].get(document.cid)
        if known is not None:
            # whoever registers it, a party is told of its own account alone
            balance = self.registry.balance(self._store, message.sender)
            return "proof_of_contract", ProofOfContract(known.proof, balance)
        self._registering.check(document, contract)
        return partial(self._register, document, contract, message.sender)

    def _record(self, t: Transaction, document: Document, contract: Contract, sender: str) -> Document:
        record = self._registering.record(t, document, contract, sender)
        t.then(partial(self.expect, record.window_from))
        return record.proof

    def _register(self, document: Document, contract: Contract, sender: str, t: Transaction) -> Answer:
        proof = self._record(t, document, contract, sender)
        if contract.payment != "volunteer":
            # free contracts cost nothing: who makes many identities could make many of those between them
            self._messenger.transport.peers.keep_useful(t, contract.requester, contract.provider)
        return "proof_of_contract", ProofOfContract(proof, self.registry.balance(t, sender))

    async def _on_settle(self, message: Incoming) -> Answer | Change:
        request: SettleContract = message.body
        record = contract_of(self._store, request.contract_id, message.sender)
        if record.receipt is not None:
            return "message", self._message(self._store, record.id, record.receipt, message.sender)
        return partial(self._settle, request, message.sender, read_claim(record, request))

    def _settle(self, request: SettleContract, sender: str, claim: Claim, t: Transaction) -> Answer:
        settled = self._settling.settle(t, request, sender, claim)
        if isinstance(settled, NunetError):
            return "error_message", error_message(settled)
        return "message", self._message(t, request.contract_id, settled, sender)

    def _message(self, source: Store | Transaction, contract_id: str, receipt: Document, did: str) -> Message:
        return Message(contract_id, closing_text(receipt.read(Receipt)), receipt, self.registry.balance(source, did))

    async def _on_dispute(self, message: Incoming) -> Answer | Change:
        request: DisputeContract = message.body
        record = contract_of(self._store, request.contract_id, message.sender)
        known = disputes.find(self._store, record.id)
        if known is not None and disputes.has_said(known, message.sender, request.text, request.documents):
            return "dispute", disputes.summary(known)
        return partial(self._dispute, request, message.sender, result_among(record, request.documents))

    def _dispute(self, request: DisputeContract, sender: str, result: Document | None, t: Transaction) -> Answer:
        self._disputing.add(t, request, sender, result)
        return "dispute", disputes.summary(_dispute_of(t, request.contract_id))

    # -- questions ---------------------------------------------------------------------------------------------------

    async def _on_check_kyc(self, message: Incoming) -> Answer:
        return "kyc_answer", self.registry.check_kyc(message.body.did)

    async def _on_check_contract(self, message: Incoming) -> Answer:
        record = contract_of(self._store, message.body.contract_id, message.sender)
        balance = self.registry.balance(self._store, message.sender)
        return "contract_status", ContractStatus(record.id, record.state, record.proof, record.receipt, balance)

    async def _on_ask_dispute(self, message: Incoming) -> Answer:
        body: AskDispute = message.body
        contract_of(self._store, body.contract_id, message.sender)
        known = _dispute_of(self._store, body.contract_id)
        if not body.document:
            return "dispute", disputes.summary(known)
        for document in (document for item in known.evidence for document in item.documents):
            if document.cid == body.document:
                return "dispute_document", EvidenceDocument(document)
        raise NotFoundError(f"there is no document {body.document} in this dispute", code="no_document")

    async def _on_statement(self, message: Incoming) -> Answer:
        did = message.sender
        in_escrow = sum(ledger.balance(self._store, ledger.escrow(record.id)) for record in self._open(did))
        found = tuple(
            StatementEntry(row.at, row.kind, quantities.format_amount(row.amount), row.contract_id)
            for row in ledger.entries(self._store, did, message.body.limit)
        )
        balance = self.registry.balance(self._store, did)
        return "account_statement", AccountStatement(did, balance, quantities.format_amount(in_escrow), found)

    def _open(self, did: str) -> list[RegisteredContract]:
        """Return the contracts of a requester whose deposit is in escrow."""
        rows: list[RegisteredContract] = []
        page = self._store[REGISTERED_CONTRACTS].page(1000, requester=did, state=("proved", "disputed"))
        while page.after:
            rows += page.rows
            page = self._store[REGISTERED_CONTRACTS].page(
                1000, page.after, requester=did, state=("proved", "disputed")
            )  # fmt: skip
        return rows + page.rows


def _dispute_of(source: Store | Transaction, contract_id: str) -> Dispute:
    known = disputes.find(source, contract_id)
    if known is None:
        raise NotFoundError(f"there is no dispute about {contract_id}", code="no_dispute")
    return known
