"""Stage 7, when it goes wrong: a party's half of a dispute; the contract database's is `tokenomics.dispute`."""

from __future__ import annotations

import logging
from functools import partial
from typing import Protocol, TypeVar

from msgspec import Struct, structs

from nunet_cli.database.store import Transaction
from nunet_cli.errors import ContractError, DisputedError, NunetError
from nunet_cli.network.messenger import Change, Incoming
from nunet_cli.orchestrator.changes import advance, error_record
from nunet_cli.orchestrator.contract_keeping import recorded_with, set_contract
from nunet_cli.orchestrator.needs import Asking, Dealing, HasClosings, HasIdentity
from nunet_cli.records.contract_records import CONTRACT, CONTRACTS
from nunet_cli.records.contracts import PROVIDER, REQUESTER
from nunet_cli.records.disputes import AskDispute, Dispute, DisputeContract, DisputeSummary, EvidenceDocument
from nunet_cli.records.documents import Document
from nunet_cli.records.jobs import JOBS
from nunet_cli.tokenomics.dispute import whole

log = logging.getLogger("nunet.disputes")

T = TypeVar("T", bound=Struct)
_TOLD = "contract %s is in dispute: %s; to say this node's side: nunet contract dispute %s --reason TEXT"


class Disputing(HasClosings, Dealing, HasIdentity, Protocol):
    """What a party's half of a dispute needs."""


def register(ctx: Disputing) -> None:
    """Take word of disputes, and know the answers of the contract database."""

    async def on_opened(message: Incoming) -> Change:
        return _on_opened(ctx, message)

    ctx.messenger.register("dispute_opened", DisputeSummary, on_opened)
    ctx.messenger.register("dispute", DisputeSummary)
    ctx.messenger.register("dispute_document", EvidenceDocument)


async def add(
    ctx: Dealing, contract_id: str, text: str, *, documents: tuple[Document, ...] = (), with_result: bool = False
) -> Dispute:
    """Open a dispute about one of this node's contracts, or add evidence to it; return it as it stands.

    Of the documents among its evidence, those that were brought now are in it; `ask` fetches the others.

    Args:
        ctx: the node's parts.
        contract_id: the contract, or its beginning.
        text: what is to be said.
        documents: signed documents that show it.
        with_result: put the provider's result among them, so that a verdict on it can end the dispute.

    Raises:
        NotFoundError: no such contract here.
        ContractError: it is settled, or the contract database does not answer.
    """
    contract = ctx.store[CONTRACTS].resolve(contract_id, what="contract")
    if contract.receipt is not None:
        raise ContractError(f"the contract is {contract.state} already", code="already_settled")
    if with_result and contract.result is not None:
        documents = (contract.result, *documents)
    dispute = await send(ctx, contract.contract_database, contract.id, text, documents)
    await ctx.store.change(lambda t: _note(t, contract.id, dispute))
    return whole(dispute, {document.cid: document for document in documents})


def _on_opened(ctx: Disputing, message: Incoming) -> Change:
    """Note a dispute that the contract database tells of, whoever opened it."""
    dispute: DisputeSummary = message.body
    contract = recorded_with(ctx, dispute.contract_id, message.sender)

    def change(t: Transaction) -> None:
        _note(t, contract.id, dispute)
        t.then(partial(ctx.closings.look, contract.id))
        if dispute.opened_by != ctx.identity.did:
            t.then(partial(log.warning, _TOLD, contract.id, dispute.reason, contract.id))

    return change


def _note(t: Transaction, contract_id: str, dispute: DisputeSummary) -> None:
    contract = t[CONTRACTS].one(contract_id)
    if contract.dispute is None or len(contract.dispute.evidence) <= len(dispute.evidence):
        # else it is an older word of it
        t[CONTRACTS].put(structs.replace(contract, dispute=dispute))
    if contract.role == REQUESTER and contract.state != "proved":
        # never proved here, or closed while the answer was on its way
        return
    if not CONTRACT.may(contract.state, "dispute"):
        return
    by = REQUESTER if dispute.opened_by == contract.requester else PROVIDER
    set_contract(t, contract_id, "dispute", by=by)
    job = t[JOBS].get(contract.job_id) if contract.role == REQUESTER else None
    if job is not None and job.contract_id == contract_id and job.state in ("completed", "verified"):
        error = error_record(DisputedError(f"in dispute: {dispute.reason}"))
        advance(t, job.id, "dispute", by=by, about=contract_id, said={"reason": dispute.reason}, error=error)


async def send(
    ctx: Asking, database: str, contract_id: str, text: str, documents: tuple[Document, ...]
) -> DisputeSummary:
    """Send evidence to a contract database.

    Raises:
        ContractError: what it answered, or that it did not.
    """
    body = DisputeContract(contract_id, text, documents)
    return await _request(ctx, database, "dispute_contract", body, DisputeSummary)


async def ask(ctx: Dealing, contract_id: str) -> Dispute:
    """Ask the contract database for the dispute about one of this node's contracts, with its documents.

    Raises:
        NotFoundError: no such contract here.
        ContractError: there is none, or the contract database does not answer.
    """
    contract = ctx.store[CONTRACTS].resolve(contract_id, what="contract")
    database = contract.contract_database
    known = await _request(ctx, database, "ask_dispute", AskDispute(contract.id), DisputeSummary)
    documents: dict[str, Document] = {}
    for cid in dict.fromkeys(cid for item in known.evidence for cid in item.documents):
        answer = await _request(ctx, database, "ask_dispute", AskDispute(contract.id, cid), EvidenceDocument)
        documents[answer.document.cid] = answer.document
    return whole(known, documents)


async def _request(ctx: Asking, database: str, type_: str, body: Struct, kind: type[T]) -> T:
    try:
        answer = await ctx.messenger.request(database, type_, body, timeout=ctx.config.limits.answer_timeout)
    except NunetError as error:
        raise ContractError(error.message, code=error.code, hint=error.hint, details=error.details) from None
    if not isinstance(answer.body, kind):
        raise ContractError("the contract database answered something else", code="bad_answer")
    return answer.body
