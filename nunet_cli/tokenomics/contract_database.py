"""The contract database: which contracts are recorded, what is in escrow, and what was settled.

Every answer is signed (the envelope, and the documents in it), every change is appended to a hash-chained log, and each
contract is settled exactly once, however often it is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
from tinydb import Query

from nunet_cli import units
from nunet_cli.config import Config
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import (
    ContractError,
    DisputedError,
    NotFoundError,
    NunetError,
    RejectedMessageError,
    StateError,
)
from nunet_cli.network.identity import Identity
from nunet_cli.network.messenger import Answer, Incoming, Messenger
from nunet_cli.records.contracts import (
    DATABASE,
    FULFILLED,
    LAPSED,
    ORACLE,
    PROVIDER,
    REQUESTER,
    AccountStatement,
    AskStatement,
    CheckContract,
    CheckKyc,
    Contract,
    ContractStatus,
    JobVerificationResult,
    Message,
    Proof,
    ProofOfContract,
    Receipt,
    RegisterContract,
    SettleContract,
    Settled,
    StatementEntry,
    deadline_of,
    sign_by_of,
)
from nunet_cli.records.disputes import AskDispute, Decision, Dispute, DisputeContract, EvidenceDocument
from nunet_cli.records.documents import Document, make_document, require_signature
from nunet_cli.records.results import Result
from nunet_cli.records.states import CONTRACT_TRANSITIONS, check_transition
from nunet_cli.tokenomics import chain, ledger
from nunet_cli.tokenomics import dispute as disputes
from nunet_cli.tokenomics.payment import amount_due, deposit_for, seconds_between
from nunet_cli.tokenomics.receipt import NOT_DELIVERED
from nunet_cli.tokenomics.registry import Registry

log = logging.getLogger("nunet.contract-database")

MESSAGE_LIFETIME = 14 * 86400
MAX_DEADLINE = timedelta(days=366)
# how far the clocks of two machines may be apart
MAX_SKEW = timedelta(seconds=60)


class ContractDatabase:
    """The role's behaviours and its operator's functions.

    Args:
        identity: the key that signs proofs and receipts.
        store: where registry, contracts, accounts and log are kept.
        config: admission and opening balance.
        messenger: carries the messages.
    """

    def __init__(self, identity: Identity, store: Store, config: Config, messenger: Messenger) -> None:
        self._identity, self._store, self._config, self._messenger = identity, store, config, messenger
        self.registry = Registry(store, config)
        messenger.register("check_kyc", CheckKyc, self._on_check_kyc, ephemeral=True)
        messenger.register("check_contract", CheckContract, self._on_check_contract, ephemeral=True)
        messenger.register("register_contract", RegisterContract, self._on_register)
        messenger.register("settle_contract", SettleContract, self._on_settle)
        messenger.register("dispute_contract", DisputeContract, self._on_dispute, ephemeral=True)
        messenger.register("ask_dispute", AskDispute, self._on_ask_dispute, ephemeral=True)
        messenger.register("ask_statement", AskStatement, self._on_statement, ephemeral=True)

    # -- contracts ---------------------------------------------------------------------------------------------------

    async def register(self, document: Document) -> Document:
        """Record a contract and hold its deposit; return the signed proof, the same one however often it is asked for.

        Raises:
            ContractError: what is wrong with it, or with the requester's funds.
        """
        contract = document.read(Contract)
        contract_id = document.cid
        known = self._store.find("registered_contracts", contract_id)
        if known is not None:
            return msgspec.convert(known["proof"], Document)
        if document.content != make_document(contract).content:
            # spaces between, for example: each open contract is read again and again
            raise ContractError("the contract is not written as contracts are", code="bad_document")
        require_signature(document, contract.requester, REQUESTER, "contract")
        require_signature(document, contract.provider, PROVIDER, "contract")
        self._check_terms(contract)
        deposit = units.parse_amount(contract.terms.deposit)

        def change(t: Transaction) -> Document:
            again = t.find("registered_contracts", contract_id)
            if again is not None:
                return msgspec.convert(again["proof"], Document)
            for did, role in ((contract.requester, REQUESTER), (contract.provider, PROVIDER)):
                self.registry.admit_party(t, did, role)
            if deposit:
                ledger.transfer(t, contract.requester, ledger.escrow(contract_id), deposit, "escrow", contract_id)
            head = chain.append(t, "register", contract_id=contract_id, deposit=contract.terms.deposit)
            proof = make_document(
                Proof(1, contract_id, self._identity.did, contract.terms.deposit, units.utc_now(), head)
            ).sign(self._identity, DATABASE)
            t.put(
                "registered_contracts",
                {
                    "id": contract_id, "job_id": contract.job_id, "state": "proved", "requester": contract.requester,
                    "provider": contract.provider, "deadline": contract.terms.deadline,
                    "document": msgspec.to_builtins(document), "proof": msgspec.to_builtins(proof), "receipt": None,
                    "result": None,
                },
            )  # fmt: skip
            t.save_event(contract.job_id, "contract_registered", contract_id=contract_id)
            return proof

        return await self._store.change(change)

    def _check_terms(self, contract: Contract) -> None:
        terms = contract.terms
        if contract.contract_database != self._identity.did:
            raise ContractError("the contract names another contract database", code="wrong_database")
        if contract.requester == contract.provider:
            raise ContractError("requester and provider are the same node", code="self_contract")
        due = deposit_for(terms.price, terms.max_duration)
        if units.parse_amount(terms.deposit) != due:
            raise ContractError(
                f"the deposit is {terms.deposit} NTX, the price asks for {units.format_amount(due)}", code="bad_deposit"
            )
        if (contract.payment == "volunteer") != (due == 0):
            raise ContractError(
                f"payment {contract.payment} does not fit a price of {terms.deposit}", code="bad_payment"
            )
        now = units.now()
        if units.parse_time(contract.created_at) > now + MAX_SKEW:
            raise ContractError(f"the contract was made in the future ({contract.created_at})", code="bad_times")
        deadline, sign_by = deadline_of(contract.created_at, terms.max_duration), sign_by_of(contract.created_at)
        if (terms.deadline, contract.sign_by) != (deadline, sign_by):
            raise ContractError(
                f"the deadline {terms.deadline} does not follow from the duration: it would be {deadline}",
                code="bad_deadline",
            )
        if units.parse_time(deadline) > now + MAX_DEADLINE:
            raise ContractError(f"the deadline {deadline} is too far away", code="bad_deadline")
        if units.parse_time(sign_by) + MAX_SKEW <= now:
            raise ContractError(f"the contract was to be registered by {sign_by}", code=LAPSED)

    async def settle(self, request: SettleContract, sender: str) -> Document:
        """Settle a contract exactly once; return the signed receipt.

        Raises:
            NotFoundError: no such contract of the sender's.
            ContractError: the documents do not allow it.
            DisputedError: the oracle rejected the result; escrow stays held.
        """
        row = self._contract_of(request.contract_id, sender)
        if row["receipt"] is not None:
            return msgspec.convert(row["receipt"], Document)
        contract = msgspec.convert(row["document"], Document).read(Contract)
        require_signature(request.result, contract.provider, PROVIDER, "result")
        result = request.result.read(Result)
        if result.contract_id != request.contract_id:
            raise ContractError("the result belongs to another contract", code="wrong_result")
        if row["state"] == "disputed":
            raise self._held(row["id"])
        # what is due counts no more time than this node saw pass since it proved the contract
        if result.state == "completed" or amount_due(contract.terms, result):
            if sender != contract.requester and units.utc_now() < row["deadline"]:
                # until then it is the requester's to say that it has what it pays for
                raise ContractError(
                    f"the provider can have it settled from {row['deadline']} on, if the requester does not",
                    code="too_early",
                )
            verdict = self._verdict(contract, request)
            if verdict.verdict != "verified":
                failed = ", ".join(f"{check.name}: {check.detail}" for check in verdict.checks if not check.passed)
                reason = f"the oracle {'rejected' if verdict.verdict == 'rejected' else 'cannot verify'} the result"
                evidence = (request.result, request.verdict) if request.verdict is not None else (request.result,)
                body = DisputeContract(row["id"], f"{reason}: {failed}"[:4000], evidence)
                receipt = await self.dispute(body, sender)
                if receipt is not None:
                    return receipt
                raise DisputedError(f"{reason}: {failed}", details={"contract": row["id"]})
        reason = FULFILLED if result.state == "completed" else (result.reason or result.state)

        def due(seen: float) -> int:
            return amount_due(contract.terms, result, seen)

        completed = result.state == "completed"
        return await self._close(row["id"], "proved", due, reason, completed=completed, result_cid=request.result.cid)

    @staticmethod
    def _held(contract_id: str) -> DisputedError:
        return DisputedError("the contract is in dispute: its escrow is held", details={"contract": contract_id})

    def _verdict(self, contract: Contract, request: SettleContract) -> JobVerificationResult:
        if request.verdict is None:
            raise ContractError("a verdict of the oracle is needed", code="verdict_needed")
        require_signature(request.verdict, contract.oracle, ORACLE, "verdict")
        verdict = request.verdict.read(JobVerificationResult)
        if verdict.contract_id != request.contract_id or verdict.result_cid != request.result.cid:
            raise ContractError("the verdict belongs to another result", code="wrong_verdict")
        return verdict

    # -- disputes ----------------------------------------------------------------------------------------------------

    async def dispute(self, request: DisputeContract, sender: str) -> Document | None:
        """Open a dispute, or add evidence to one: escrow is held until it is resolved.

        Returns:
            The receipt, where a verdict among the evidence that rests on a quorum resolves it at once; else None.

        Raises:
            NotFoundError: no such contract of the sender's.
            ContractError: it is settled, or the dispute resolved already.
        """
        row = self._contract_of(request.contract_id, sender)
        contract = msgspec.convert(row["document"], Document).read(Contract)
        result = self._result_among(contract, row["id"], request.documents)

        def change(t: Transaction) -> Dispute:
            current = t.find("registered_contracts", row["id"])
            assert current is not None
            if current["receipt"] is not None:
                raise ContractError(f"the contract is {current['state']} already", code="already_settled")
            known = disputes.find(t, row["id"])
            if known is None:
                known = Dispute(row["id"], sender, units.utc_now(), request.text or "no reason given")
                current["state"] = "disputed"
                chain.append(t, "disputed", contract_id=row["id"], by=sender)
                t.save_event(contract.job_id, "contract_disputed", contract_id=row["id"], reason=known.reason)
            known = disputes.add_evidence(known, sender, request.text, request.documents)
            disputes.put(t, known)
            if result is not None and not current.get("result"):
                # the first result that the provider signed is the result, and it was here by now
                current |= {"result": msgspec.to_builtins(result), "result_at": units.utc_now()}
            t.put("registered_contracts", current)
            return known

        known = await self._store.change(change)
        documents = tuple(document for item in known.evidence for document in item.documents)
        held = self._store.find("registered_contracts", row["id"])
        assert held is not None
        if held.get("result"):
            disputed = msgspec.convert(held["result"], Document)
            decision = disputes.quorum_decision(contract, documents, disputed.cid)
            if decision is not None:
                return await self._resolve(row["id"], decision, "quorum")
        return None

    @staticmethod
    def _result_among(contract: Contract, contract_id: str, documents: tuple[Document, ...]) -> Document | None:
        for document in documents:
            try:
                result = document.read(Result)
            except RejectedMessageError:
                continue
            if result.contract_id == contract_id and document.is_signed(contract.provider, PROVIDER):
                return document
        return None

    async def resolve(self, contract_id: str, decision: Decision, share: str = "0.5") -> Document:
        """Decide a dispute (operator); return the receipt.

        Raises:
            NotFoundError: no such contract.
            ContractError: it is not in dispute.
        """
        row = self._store.resolve("registered_contracts", contract_id, what="recorded contract")
        if row["state"] != "disputed":
            raise ContractError(f"the contract is {row['state']}, not disputed", code="not_disputed")
        return await self._resolve(row["id"], decision, "operator", share)

    async def _resolve(self, contract_id: str, decision: Decision, by: Any, share: str = "0.5") -> Document:
        row = self._store.find("registered_contracts", contract_id)
        assert row is not None
        contract = msgspec.convert(row["document"], Document).read(Contract)
        result = msgspec.convert(row["result"], Document).read(Result) if row.get("result") else None
        proved_at = msgspec.convert(row["proof"], Document).read(Proof).registered_at
        seen = seconds_between(proved_at, row.get("result_at") or units.utc_now())
        due = disputes.amount_for(contract, result, decision, share, seen)

        def note(t: Transaction) -> None:
            known = disputes.find(t, contract_id)
            assert known is not None
            decided = msgspec.structs.replace(known, decision=decision, by=by, paid=units.format_amount(due))
            disputes.put(t, decided)

        reason = f"dispute resolved by {'a quorum' if by == 'quorum' else 'the operator'}: {decision}"
        return await self._close(contract_id, "disputed", lambda _seen: due, reason, also=note)

    async def _on_dispute(self, message: Incoming) -> Answer:
        await self.dispute(message.body, message.sender)
        return "dispute", disputes.summary(self._dispute_of(message.body.contract_id))

    async def _on_ask_dispute(self, message: Incoming) -> Answer:
        body: AskDispute = message.body
        self._contract_of(body.contract_id, message.sender)
        known = self._dispute_of(body.contract_id)
        if not body.document:
            return "dispute", disputes.summary(known)
        for document in (document for item in known.evidence for document in item.documents):
            if document.cid == body.document:
                return "dispute_document", EvidenceDocument(document)
        raise NotFoundError(f"there is no document {body.document} in this dispute", code="no_document")

    def _dispute_of(self, contract_id: str) -> Dispute:
        known = disputes.find(self._store, contract_id)
        if known is None:
            raise NotFoundError(f"there is no dispute about {contract_id}", code="no_dispute")
        return known

    async def refund_expired(self) -> list[str]:
        """Give deposits back whose contract's deadline, and the time to settle after it, have passed; return their ids.

        A contract in dispute is left as it is: its escrow is held.
        """
        window = timedelta(seconds=self._config.limits.settlement_window)
        proved = self._store.table("registered_contracts").search(Query().state == "proved")
        past = [row for row in proved if units.parse_time(row["deadline"]) + window < units.now()]
        overdue = [
            row["id"] for row in past if units.parse_time(row["deadline"]) + window + _second_run(row) < units.now()
        ]
        refunded = []
        for contract_id in overdue:
            try:
                await self._close(contract_id, "proved", lambda _seen: 0, NOT_DELIVERED)
            except NunetError as error:
                # it was disputed just now, for example: the others' money does not wait for it
                log.info("contract %s is not refunded: %s", contract_id, error)
            else:
                refunded.append(contract_id)
        return refunded

    async def _close(
        self, contract_id: str, state: str, due_for: Callable[[float], int], reason: str, *,
        completed: bool = False, result_cid: str = "", also: Callable[[Transaction], None] | None = None,
    ) -> Document:  # fmt: skip
        """Close a contract once, out of the one state in which that may be: whatever else came in between wins.

        Args:
            contract_id: the contract.
            state: what it must be in now: `proved`, or `disputed` for a dispute's decision.
            due_for: what is due to the provider, given the seconds since the proof by this node's clock.
            reason: for the receipt.
            completed: it is settled even where nothing is due.
            result_cid: the result that it is closed by, where it is by one.
            also: what else belongs to the change.

        Raises:
            DisputedError: it is in dispute by now.
            StateError: it is in another state.
        """

        def change(t: Transaction) -> Document:
            row = t.find("registered_contracts", contract_id)
            assert row is not None
            if row["receipt"] is not None:
                return msgspec.convert(row["receipt"], Document)
            if row["state"] != state:
                raise (
                    self._held(contract_id)
                    if row["state"] == "disputed"
                    else StateError(f"contract {contract_id} is {row['state']}, not {state}")
                )
            contract = msgspec.convert(row["document"], Document).read(Contract)
            now = units.utc_now()
            proof = msgspec.convert(row["proof"], Document).read(Proof)
            due = due_for(seconds_between(proof.registered_at, now))
            outcome = "settled" if completed or due else "refunded"
            check_transition(CONTRACT_TRANSITIONS, row["state"], outcome, f"contract {contract_id}")
            deposit = units.parse_amount(contract.terms.deposit)
            account = ledger.escrow(contract_id)
            if due:
                ledger.transfer(t, account, contract.provider, due, "payment", contract_id)
            if deposit - due:
                ledger.transfer(t, account, contract.requester, deposit - due, "refund", contract_id)
            head = chain.append(t, outcome, contract_id=contract_id, paid=units.format_amount(due))
            receipt = make_document(
                Receipt(
                    1, contract_id, self._identity.did, outcome,  # type: ignore[arg-type]  # one of the two, as above
                    contract.requester, contract.provider, units.format_amount(due),
                    units.format_amount(deposit - due), reason, now, head, result_cid,
                )
            ).sign(self._identity, DATABASE)  # fmt: skip
            row.update(state=outcome, receipt=msgspec.to_builtins(receipt))
            t.put("registered_contracts", row)
            if also is not None:
                also(t)
            t.save_event(contract.job_id, f"contract_{outcome}", contract_id=contract_id, paid=units.format_amount(due))
            for did in (contract.requester, contract.provider):
                text = reason if reason == FULFILLED else f"Contract {outcome}: {reason}"
                told = Message(contract_id, text, receipt, units.format_amount(ledger.balance(t, did)))
                self._messenger.outbox.enqueue(
                    t, self._messenger.outbox.outgoing(did, "message", told, lifetime=MESSAGE_LIFETIME)
                )
            return receipt

        receipt = await self._store.change(change)
        self._messenger.outbox.wake()
        return receipt

    def _contract_of(self, contract_id: str, did: str) -> dict[str, Any]:
        row = self._store.find("registered_contracts", contract_id)
        if row is None or did not in (row["requester"], row["provider"]):
            raise NotFoundError(f"no contract {contract_id} of yours is recorded here", code="no_contract")
        return row

    def check_log(self) -> int:
        """Check the whole log; return its length.

        Raises:
            ContractError: naming the first entry that does not fit.
        """
        return chain.check(self._store.table("log").all())

    # -- messages ----------------------------------------------------------------------------------------------------

    def _balance(self, did: str) -> str:
        return units.format_amount(ledger.balance(self._store, did) + self.registry.opening_balance(self._store, did))

    async def _on_check_kyc(self, message: Incoming) -> Answer:
        return "kyc_answer", self.registry.check_kyc(message.body.did)

    async def _on_check_contract(self, message: Incoming) -> Answer:
        row = self._contract_of(message.body.contract_id, message.sender)
        receipt = msgspec.convert(row["receipt"], Document) if row["receipt"] else None
        proof = msgspec.convert(row["proof"], Document)
        return "contract_status", ContractStatus(row["id"], row["state"], proof, receipt, self._balance(message.sender))

    async def _on_register(self, message: Incoming) -> Answer:
        contract = message.body.contract.read(Contract)
        if message.sender not in (contract.requester, contract.provider):
            raise ContractError("only a party can register a contract", code="not_a_party")
        proof = await self.register(message.body.contract)
        if contract.payment != "volunteer":
            # free contracts cost nothing: who makes many identities could make many of those between them
            await self._messenger.transport.peers.note_useful(contract.requester, contract.provider)
        return "proof_of_contract", ProofOfContract(proof, self._balance(contract.requester))

    async def _on_settle(self, message: Incoming) -> Answer:
        receipt = await self.settle(message.body, message.sender)
        return "settled", Settled(receipt, self._balance(message.sender))

    async def _on_statement(self, message: Incoming) -> Answer:
        did = message.sender
        held = Query()
        deposits = self._store.table("registered_contracts").search((held.requester == did) & (held.receipt == None))  # noqa: E711  # a TinyDB query
        in_escrow = sum(ledger.balance(self._store, ledger.escrow(row["id"])) for row in deposits)
        rows = ledger.entries(self._store, did, message.body.limit)
        found = tuple(
            StatementEntry(row["at"], row["kind"], units.format_amount(row["amount"]), row["contract_id"])
            for row in rows
        )
        return "account_statement", AccountStatement(did, self._balance(did), units.format_amount(in_escrow), found)


def _second_run(row: dict[str, Any]) -> timedelta:
    """Return how long the oracle's own run of a job may take, where its contract asks for one."""
    terms = msgspec.convert(row["document"], Document).read(Contract).terms
    return timedelta(seconds=2 * terms.max_duration) if terms.verification == "reexecute" else timedelta()
