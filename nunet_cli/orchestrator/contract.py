"""Stage 4, contract closure: both parties make the same text from the bid, and the contract database proves it.

The provider signs first, until a time after which its signature binds no more; the requester signs last, and has it
registered. So a contract that anybody refused, or never answered, lacks a signature, and binds nobody. What both keep
of it is in `contract_keeping`, the provider's half in `agreement`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Literal, Protocol, TypeVar

import trio

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import ContractError, NoSpaceError, NunetError, RejectedMessageError, StateError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.tree import required_capability
from nunet_cli.orchestrator.changes import advance, find_job
from nunet_cli.orchestrator.contract_keeping import check_proof, contract_record, keep_proof, note_balance, set_contract
from nunet_cli.orchestrator.needs import (
    Asking,
    Dealing,
    HasClosings,
    HasIdentity,
    HasPeers,
    HasRoles,
    HasStore,
    HasVerified,
)
from nunet_cli.orchestrator.retry import has_next_bid
from nunet_cli.orchestrator.select import missing_kycs
from nunet_cli.orchestrator.units import as_unit, bid_of
from nunet_cli.records.bids import BidRecord, is_unit
from nunet_cli.records.contract_records import CONTRACTS, ContractRecord
from nunet_cli.records.contracts import (
    DATABASE,
    LAPSED,
    ORACLE,
    PROVIDER,
    REQUESTER,
    SIGN_WITHIN,
    UNVERIFIED,
    Contract,
    Terms,
    deadline_of,
    sign_by_of,
)
from nunet_cli.records.documents import Document, make_document, require_signature
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.messages import (
    CheckContract,
    CheckKyc,
    ContractAgreement,
    ContractProposal,
    ContractStatus,
    KycAnswer,
    ProofOfContract,
    RegisterContract,
)
from nunet_cli.tokenomics.payment import check_payment_info, deposit_for

T = TypeVar("T")
PROVIDER_REFUSED = "provider_refused"
SILENT_CODES = frozenset({"peer_silent", "peer_unreachable"})
TRANSIENT = SILENT_CODES | frozenset({"clock_differs", "internal", NoSpaceError.default_code})
RETRY_PAUSE = 2.0
MAX_SKEW = timedelta(seconds=60)


class Validating(HasVerified, Asking, Protocol):
    """Asks who is verified."""


class Contracting(HasClosings, HasPeers, HasRoles, HasIdentity, Validating, Dealing, Protocol):
    """Closes a contract as its requester."""


# -- requester ---------------------------------------------------------------------------------------------------------


async def close_contract(ctx: Contracting, job_id: str) -> Job:
    """Agree on a contract with the provider, and have it proved; a job that has one already is left as it is.

    Raises:
        StateError: the job is not at this stage.
        ContractError: refused; code `provider_refused` when another provider may do better.
    """
    job = find_job(ctx.store, job_id)
    if job.state == "contracted":
        return job
    if job.state != "requested":
        raise StateError(f"job {job.id} is {job.state}, not requested", hint=f"run: nunet job request {job.id}")
    contract = ctx.store[CONTRACTS].get(job.contract_id) if job.contract_id else None
    if contract is None or contract.bid_id != job.bid_id or contract.state in ("refused", "expired"):
        contract = await _propose(ctx, job)
    if contract.state == "proposed":
        contract = await _agree(ctx, contract)
    return await _prove(ctx, job.id, contract)


def is_transient(error: NunetError) -> bool:
    """Say whether what failed may go well a moment later: a node that restarts, or whose disk is full for now."""
    return error.code in TRANSIENT or error.details.get("cause") in TRANSIENT


async def _ask_until(
    ctx: HasStore, job_id: str, until: str, ask: Callable[[], Awaitable[T]], *, who: str = DATABASE
) -> T:
    """Ask the contract database something, and again while it is only away, up to a time.

    A provider (`who`) that does not answer at all is not asked again: it has had its time.

    Raises:
        NunetError: what it answered, or that it did not.
    """
    said = False
    while True:
        try:
            return await ask()
        except NunetError as error:
            is_silent = who == PROVIDER and error.code in SILENT_CODES
            if is_silent or not is_transient(error) or until <= quantities.utc_now():
                raise
            if not said:
                said = True
                event = {"message": error.message, "until": until}
                await ctx.store.save_event(job_id, f"{who.replace('-', '_')}_unanswered", **event)
            await trio.sleep(RETRY_PAUSE)


async def _propose(ctx: Contracting, job: Job) -> ContractRecord:
    made = bid_of(ctx.store, job.bid_id)
    if made is None:
        raise ContractError(f"the bid {job.bid_id} is gone", code=PROVIDER_REFUSED)
    bid = as_unit(made, job.bid_id, job.id, job.spec_cid)
    # a statement may have run out since the bid was chosen
    missing = missing_kycs(required_capability(decode_spec(job.spec), ctx.config.kyc.verifiers), bid.offer)
    if missing:
        raise ContractError("; ".join(missing), code=PROVIDER_REFUSED)
    paid = check_payment_info(bid.offer.price, bid.offer.time.duration)
    database = await ctx.roles.wait(DATABASE, paid=paid)
    oracle = await ctx.roles.wait(ORACLE, paid=paid)
    # a contract database that is away is asked again, for as long as the provider's lock holds; nothing is locked for a
    # unit of a bid that stands before it has its contract
    until = bid.offer.timeout
    if is_unit(bid.id):
        until = max(until, quantities.format_time(quantities.now() + SIGN_WITHIN))
    if not await _ask_until(ctx, job.id, until, partial(validate_provider, ctx, bid.did, database)):
        raise ContractError(f"the provider {bid.did} is not verified", code=PROVIDER_REFUSED)
    document = generate_job_contract(ctx, job, bid, database, oracle)
    return await ctx.store.change(lambda t: _keep_proposal(t, t[JOBS].one(job.id), bid, document))


def propose_at_once(ctx: Contracting, t: Transaction, job: Job, bid: BidRecord) -> None:
    """Propose the contract in the change that keeps the lock, where all that takes is known; else the stage does it."""
    needs = required_capability(decode_spec(job.spec), ctx.config.kyc.verifiers)
    try:
        paid = check_payment_info(bid.offer.price, bid.offer.time.duration)
        database, oracle = ctx.roles.find(DATABASE, paid=paid), ctx.roles.find(ORACLE, paid=paid)
    except NunetError:
        return
    if not needs.kycs and ctx.verified.knows(database, bid.did):
        _keep_proposal(t, job, bid, generate_job_contract(ctx, job, bid, database, oracle))


def _keep_proposal(t: Transaction, job: Job, bid: BidRecord, document: Document) -> ContractRecord:
    contract = contract_record(document, "requester", job.spec)
    transition(t, job, "propose", by=REQUESTER, about=bid.id, contract_id=contract.id)
    t[CONTRACTS].put(contract)
    t.save_event(job.id, "contract_proposed", contract_id=contract.id, deposit=contract.deposit)
    return contract


async def validate_provider(ctx: Validating, did: str, database: str) -> bool:
    """Ask the contract database whether a node is verified (seed 4: `network.validateProvider`).

    What it said within the last minute is not asked again: it looks itself when it records a contract.

    Raises:
        ContractError: the contract database does not answer.
    """
    if ctx.verified.knows(database, did):
        return True
    try:
        answer = await ctx.messenger.request(
            database, "check_kyc", CheckKyc(did), timeout=ctx.config.limits.answer_timeout
        )
    except NunetError as error:
        raise ContractError(
            f"the contract database does not answer: {error.message}",
            code="no_contract_database",
            details={"cause": error.code},
        ) from None
    verified = isinstance(answer.body, KycAnswer) and answer.body.did == did and answer.body.verified
    if verified:
        ctx.verified.note(database, did)
    return verified


def generate_job_contract(ctx: HasIdentity, job: Job, bid: BidRecord, database: str, oracle: str) -> Document:
    """Return the unsigned contract for a bid (seed 4: `generateJobContract`)."""
    verify = decode_spec(job.spec).verify
    return make_document(
        contract_text(
            bid, requester=ctx.identity.did, provider=bid.did, database=database, oracle=oracle,
            verification=verify.policy, replicas=verify.n if verify.policy == "replicate" else 1,
            created_at=quantities.utc_now(),
        )
    )  # fmt: skip


def contract_text(
    bid: BidRecord, *, requester: str, provider: str, database: str, oracle: str,
    verification: Literal["attested", "replicate", "reexecute"], created_at: str, replicas: int,
) -> Contract:  # fmt: skip
    """Return the contract that follows from a bid; both parties make it, and it must come out the same."""
    price, duration = bid.offer.price, bid.offer.time.duration
    return Contract(
        v=1, job_id=bid.job_id, bid_id=bid.id, requester=requester, provider=provider,
        contract_database=database, oracle=oracle,
        terms=Terms(
            spec_cid=bid.offer.spec_cid, price=price, max_duration=duration,
            deposit=quantities.format_amount(deposit_for(price, duration)), verification=verification,
            deadline=deadline_of(created_at, duration), replicas=replicas,
        ),
        payment="escrow" if check_payment_info(price, duration) else "volunteer", created_at=created_at,
        sign_by=sign_by_of(created_at),
    )  # fmt: skip


async def _agree(ctx: Contracting, contract: ContractRecord) -> ContractRecord:
    """Get the provider's signature under the very same text, and put this node's own under it, which comes last."""
    # trouble that passes costs a provider the job only where another one is next, as for an item of a batch
    job = find_job(ctx.store, contract.job_id)
    goes_on = has_next_bid(job) or is_unit(contract.bid_id)
    until = "" if goes_on else contract.document.read(Contract).sign_by
    try:
        agreed = await _ask_until(ctx, contract.job_id, until, partial(_ask_to_sign, ctx, contract), who=PROVIDER)
    except NunetError as error:
        reason = error.message
        await ctx.store.change(lambda t: set_contract(t, contract.id, "refuse", by=PROVIDER, reason=reason))
        raise ContractError(
            f"the provider refused the contract: {reason}", code=PROVIDER_REFUSED, details={"cause": error.code}
        ) from None
    mine = Document(agreed.content, tuple(entry for entry in agreed.signatures if entry.role == PROVIDER)[:1])
    signed = mine.sign(ctx.identity, REQUESTER)

    def change(t: Transaction) -> ContractRecord:
        t.then(partial(ctx.closings.look, contract.id))
        return set_contract(t, contract.id, "agree", by=PROVIDER, document=signed)

    return await ctx.store.change(change)


async def _ask_to_sign(ctx: Asking, contract: ContractRecord) -> Document:
    """Return the contract with the provider's signature.

    Raises:
        NunetError: it refuses, answers something else, or not at all.
    """
    proposal = Document(contract.document.content)
    answer = await ctx.messenger.request(
        contract.provider, "contract_proposal", ContractProposal(proposal), timeout=ctx.config.limits.answer_timeout * 2
    )
    agreed: Document | None = answer.body.contract if isinstance(answer.body, ContractAgreement) else None
    if agreed is None or agreed.content != proposal.content:
        raise RejectedMessageError("the provider answered with another contract", code="wrong_contract")
    require_signature(agreed, contract.provider, PROVIDER, "contract")
    return agreed


async def _prove(ctx: Contracting, job_id: str, record: ContractRecord) -> Job:
    document = record.document
    contract = document.read(Contract)
    try:
        # whether it is recorded only the contract database can say, also when the signatures bind no more
        deadline = contract.terms.deadline
        body = await _ask_until(ctx, job_id, deadline, partial(register_contract, ctx, document, contract))
        check_proof(body.proof, document)
    except NunetError as error:
        said = {"reason": error.message, "code": error.code}
        # another provider may be verified
        others = error.code == UNVERIFIED and error.details.get("did") == contract.provider
        if others:
            ctx.verified.forget(contract.contract_database, contract.provider)

        def refused(t: Transaction) -> None:
            t.save_event(job_id, "contract_refused", **said)
            if said["code"] == LAPSED:
                late = f"not registered by {contract.sign_by}"
                set_contract(t, record.id, "expire", by=DATABASE, message=late)
            elif others:
                set_contract(t, record.id, "refuse", by=REQUESTER, reason=said["reason"])

        await ctx.store.change(refused)
        message = f"the contract database refused the contract: {error.message}"
        code = PROVIDER_REFUSED if others else error.code
        raise ContractError(message, code=code, hint=error.hint, details=error.details) from None
    await ctx.peers.note_useful(contract.provider, contract.contract_database, contract.oracle)

    def change(t: Transaction) -> Job:
        if contract.payment != "volunteer":
            # whom a volunteer's contract names costs nobody anything, and says nothing about whom to trust with money
            ctx.roles.pin(t, DATABASE, contract.contract_database, job_id=job_id)
            ctx.roles.pin(t, ORACLE, contract.oracle, job_id=job_id)
        keep_proof(ctx, t, record.id, body.proof)
        note_balance(t, contract.contract_database, body.balance)
        said = {"contract_id": record.id, "deposit": record.deposit, "payment": contract.payment}
        return advance(t, job_id, "prove", by=DATABASE, about=record.id, said=said)

    return await ctx.store.change(change)


async def register_contract(ctx: Asking, document: Document, contract: Contract) -> ProofOfContract:
    """Have the contract database record a contract that both have signed; one that is recorded is left as it is.

    Raises:
        NunetError: it refuses, or does not answer.
    """
    answer = await ctx.messenger.request(
        contract.contract_database, "register_contract", RegisterContract(document),
        timeout=ctx.config.limits.answer_timeout,
    )  # fmt: skip
    if not isinstance(answer.body, ProofOfContract):
        raise RejectedMessageError("the contract database did not answer with a proof", code="bad_answer")
    return answer.body


async def check_contract(ctx: Dealing, contract_id: str) -> ContractStatus:
    """Ask the contract database for the state of a contract of this node's (seed 4: `checkContract`).

    Raises:
        NunetError: it does not answer, or not properly.
    """
    contract = ctx.store[CONTRACTS].resolve(contract_id, what="contract")
    answer = await ctx.messenger.request(
        contract.contract_database, "check_contract", CheckContract(contract.id),
        timeout=ctx.config.limits.answer_timeout,
    )  # fmt: skip
    if not isinstance(answer.body, ContractStatus) or answer.body.contract_id != contract.id:
        raise RejectedMessageError("the contract database did not answer with the contract's state", code="bad_answer")
    return answer.body
