"""The contract database records a contract: what must hold of it, and the one change that takes the deposit."""

from __future__ import annotations

from datetime import timedelta

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import ContractError
from nunet_cli.network.identity import Identity
from nunet_cli.records.contract_records import REGISTERED_CONTRACTS, RegisteredContract
from nunet_cli.records.contracts import DATABASE, LAPSED, PROVIDER, REQUESTER, Contract, Proof, deadline_of, sign_by_of
from nunet_cli.records.documents import Document, make_document, require_signature
from nunet_cli.records.messages import ContractRegistered
from nunet_cli.tokenomics import chain, ledger
from nunet_cli.tokenomics.closing import Tell
from nunet_cli.tokenomics.payment import deposit_for
from nunet_cli.tokenomics.refunding import window_from
from nunet_cli.tokenomics.registry import Registry

MAX_DEADLINE = timedelta(days=366)
# how far the clocks of two machines may be apart
MAX_SKEW = timedelta(seconds=60)


class Registering:
    """How contracts are recorded.

    Args:
        identity: the key that signs proofs.
        registry: who is verified.
        tell: how the other party gets the proof.
    """

    def __init__(self, identity: Identity, registry: Registry, tell: Tell) -> None:
        self._identity, self._registry, self._tell = identity, registry, tell

    def check(self, document: Document, contract: Contract) -> None:
        """Refuse a contract that is not as contracts are, or not signed by both; needs no look at the books.

        Raises:
            ContractError: what is wrong with it.
            RejectedMessageError: a signature is missing or bad.
        """
        if document.content != make_document(contract).content:
            # spaces between, for example: each open contract is read again and again
            raise ContractError("the contract is not written as contracts are", code="bad_document")
        require_signature(document, contract.requester, REQUESTER, "contract")
        require_signature(document, contract.provider, PROVIDER, "contract")
        check_terms(contract, self._identity.did)

    def record(self, t: Transaction, document: Document, contract: Contract, sender: str) -> RegisteredContract:
        """Record a contract that was checked and hold its deposit, as part of a change.

        Whether both parties are verified is decided here, and nowhere else. One that is recorded already is left as it
        is, however often that is asked for. The proof is sent to the other party as well: a provider then knows what it
        is invoked under, and what is owed to it, whatever becomes of the requester.

        Args:
            t: the change.
            document: the contract, with both signatures.
            contract: what it says.
            sender: the party that has it registered, and gets the proof by the answer.

        Raises:
            ContractError: a party is not verified, or the requester lacks the funds.
        """
        contract_id = document.cid
        known = t[REGISTERED_CONTRACTS].get(contract_id)
        if known is not None:
            return known
        self._registry.admit_party(t, contract.requester, REQUESTER)
        self._registry.admit_party(t, contract.provider, PROVIDER)
        terms = contract.terms
        deposit = quantities.parse_amount(terms.deposit)
        if deposit:
            ledger.transfer(t, contract.requester, ledger.escrow(contract_id), deposit, "escrow", contract_id)
        head = chain.append(t, "register", contract_id=contract_id, deposit=terms.deposit)
        proof = make_document(
            Proof(1, contract_id, self._identity.did, terms.deposit, quantities.utc_now(), head)
        ).sign(self._identity, DATABASE)  # fmt: skip
        record = RegisteredContract(
            contract_id, contract.job_id, contract.requester, contract.provider, terms.deadline, document, proof,
            window_from(contract, quantities.now()),
        )  # fmt: skip
        t[REGISTERED_CONTRACTS].put(record)
        t.save_event(contract.job_id, "contract_registered", contract_id=contract_id)
        other = contract.provider if sender == contract.requester else contract.requester
        balance = self._registry.balance(t, other)
        self._tell(t, other, "contract_registered", ContractRegistered(contract_id, proof, balance))
        return record


def check_terms(contract: Contract, database: str) -> None:
    """Refuse terms that do not follow from each other, or times that have passed.

    Args:
        contract: the contract.
        database: the DID of the contract database that is to record it.

    Raises:
        ContractError: what is wrong.
    """
    terms = contract.terms
    if contract.contract_database != database:
        raise ContractError("the contract names another contract database", code="wrong_database")
    if contract.requester == contract.provider:
        raise ContractError("requester and provider are the same node", code="self_contract")
    due = deposit_for(terms.price, terms.max_duration)
    if quantities.parse_amount(terms.deposit) != due:
        raise ContractError(
            f"the deposit is {terms.deposit} NTX, the price asks for {quantities.format_amount(due)}",
            code="bad_deposit",
        )
    if (contract.payment == "volunteer") != (due == 0):
        raise ContractError(f"payment {contract.payment} does not fit a price of {terms.deposit}", code="bad_payment")
    now = quantities.now()
    if quantities.parse_time(contract.created_at) > now + MAX_SKEW:
        raise ContractError(f"the contract was made in the future ({contract.created_at})", code="bad_times")
    deadline, sign_by = deadline_of(contract.created_at, terms.max_duration), sign_by_of(contract.created_at)
    if (terms.deadline, contract.sign_by) != (deadline, sign_by):
        raise ContractError(
            f"the deadline {terms.deadline} does not follow from the duration: it would be {deadline}",
            code="bad_deadline",
        )
    if quantities.parse_time(deadline) > now + MAX_DEADLINE:
        raise ContractError(f"the deadline {deadline} is too far away", code="bad_deadline")
    if quantities.parse_time(sign_by) + MAX_SKEW <= now:
        raise ContractError(f"the contract was to be registered by {sign_by}", code=LAPSED)
