"""Stage 7, settlement: the oracle verifies, the contract database moves the funds, both parties are told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Protocol

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import (
    ContractError,
    DisputedError,
    NunetError,
    PeerError,
    RejectedMessageError,
    StateError,
)
from nunet_cli.network.messenger import Change, Incoming
from nunet_cli.orchestrator import disputes, execute
from nunet_cli.orchestrator.changes import advance, find_job
from nunet_cli.orchestrator.execute import Following
from nunet_cli.orchestrator.needs import Dealing, HasClosings, HasConfig, HasMessenger, HasStore
from nunet_cli.orchestrator.outputs import Collecting, collect_outputs, is_empty, note_collected
from nunet_cli.orchestrator.receipts import (
    SEE_EVIDENCE,
    finish_job,
    finish_unattended,
    keep_message,
    keep_second_result,
    note_dispute,
    other_result,
)
from nunet_cli.orchestrator.siblings import other_replicas
from nunet_cli.records.contract_records import CONTRACTS, ContractRecord
from nunet_cli.records.contracts import ORACLE, REQUESTER, Contract, JobVerificationResult, Receipt
from nunet_cli.records.documents import Document, require_signature
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.messages import AccountStatement, JobVerification, Message, SettleContract, Verdict
from nunet_cli.records.results import Result
from nunet_cli.tokenomics.payment import amount_due, seconds_between

log = logging.getLogger("nunet.settle")

REEXECUTION_SLACK = 120
# what two machines' clocks may come apart by within one job: a correction by a second or two, and a drift
CLOCK_TOLERANCE, CLOCK_DRIFT = 2.0, 0.001


class Settling(Following, Collecting, Protocol):
    """Settles a job as its requester."""


class Receipts(HasClosings, HasStore, Protocol):
    """Takes receipts."""


class Receiving(HasMessenger, Receipts, Protocol):
    """Takes the closing message."""


# -- requester ---------------------------------------------------------------------------------------------------------


async def settle(ctx: Settling, job_id: str) -> Job:
    """Wait for the job's end if it still runs, fetch its outputs, have it verified and settled; return the job.

    Raises:
        StateError: the job was not started.
        JobFailedError: the job ran and failed; its contract is settled or refunded all the same.
        DisputedError: the oracle rejected the result.
        ContractError: the contract database or the oracle refused, or does not answer.
    """
    job = find_job(ctx.store, job_id)
    if job.state in ("invoked", "running"):
        job = await execute.follow(ctx, job.id)
    if job.state == "settled":
        return job
    if job.state == "disputed":
        raise DisputedError("the job is disputed: escrow is held until that is resolved")
    if job.state not in ("completed", "verified") or job.result is None:
        raise StateError(f"job {job.id} is {job.state}: there is nothing to settle")
    result = job.result
    contract = ctx.store[CONTRACTS].one(job.contract_id)
    await require_honest_time(ctx, contract, result)
    try:
        job = await collect_outputs(ctx, job.id)
    except NunetError as error:
        # a failed job is refunded even when its logs are lost; a completed one is not paid without its outputs
        if result.state == "completed" and not _is_paid_long_ago(ctx, contract):
            raise ContractError(
                f"the outputs cannot be fetched: {error.message}", code=error.code,
                hint=f"try again: nunet job settle {job.id}; the provider is paid after the contract's deadline"
                f" unless you dispute it: nunet contract dispute {job.contract_id}",
            ) from None  # fmt: skip
        log.info("the logs of %s cannot be fetched: %s", job.id, error)
    contract = ctx.store[CONTRACTS].one(contract.id)
    verdict = await verify_job(ctx, contract) if contract.receipt is None else None

    def note(t: Transaction) -> None:
        if is_empty(result):
            note_collected(t, job, 0)
        if verdict is not None:
            _note_verdict(t, job.id, contract, verdict)

    def finish(t: Transaction, receipt: Document) -> Job:
        note(t)
        return finish_job(t, job.id, receipt, result)

    if contract.receipt is not None:
        return await ctx.store.change(partial(finish, receipt=contract.receipt))
    is_well = verdict is None or verdict.read(JobVerificationResult).verdict == "verified"
    if not is_well:
        await ctx.store.change(note)
    try:
        settled = await _ask_to_settle(ctx, contract, verdict)
    except NunetError:
        await ctx.store.change(note)
        raise
    # what is kept here together, the verdict among it, would be asked and answered in the same way again until then

    def change(t: Transaction) -> Job:
        receipt = keep_message(t, contract.id, settled)
        t.then(partial(ctx.closings.look, contract.id))
        return finish(t, receipt)

    return await ctx.store.change(change)


def _is_paid_long_ago(ctx: HasConfig, contract: ContractRecord) -> bool:
    """Say whether a contract was closed so long ago that a job does not wait for its outputs any more."""
    if contract.receipt is None:
        return False
    closed = contract.receipt.read(Receipt).settled_at
    return seconds_between(closed, quantities.utc_now()) > ctx.config.limits.settlement_window


async def require_honest_time(ctx: Dealing, contract: ContractRecord, result: Result) -> None:
    """Dispute a result that sells more time than passed here.

    That is the time between the contract's proof and the result's arrival. Of a job that was called off, it ends
    `answer_timeout` after that at the latest, in which a program can be stopped: silence does not lengthen it.

    Raises:
        DisputedError: it does; the contract is in dispute then.
        ContractError: the contract database does not take the dispute.
    """
    if contract.receipt is not None or not contract.proved_at or not contract.result_at:
        return
    end = contract.result_at
    if contract.called_off_at and (result.state != "completed" or contract.called_off_by == "cancel"):
        patience = timedelta(seconds=ctx.config.limits.answer_timeout)
        end = min(end, quantities.format_time(quantities.parse_time(contract.called_off_at) + patience))
    terms = contract.document.read(Contract).terms
    seen = max(0.0, seconds_between(contract.proved_at, end))
    if amount_due(terms, result) <= amount_due(terms, result, seen * (1 + CLOCK_DRIFT) + CLOCK_TOLERANCE):
        return
    text = f"{result.usage.wall_seconds:.1f} s are to be paid; {seen:.1f} s passed here from the proof to the end"
    await disputes.add(ctx, contract.id, text, with_result=True)
    raise DisputedError(
        text, hint=f"escrow is held until the dispute is resolved; see: nunet contract show {contract.id}"
    )


async def verify_job(ctx: Dealing, contract: ContractRecord, *, reexecute: bool = False) -> Document | None:
    """Ask the oracle for its verdict (seed 7: `oracle.verifyJob`); None for a failed job that earns nothing.

    Args:
        ctx: the node's parts.
        contract: this node's record of it.
        reexecute: ask the oracle to run the job itself, whatever the contract says: evidence for a dispute.

    Raises:
        StateError: there is no proof or no result here that it could verify.
        ContractError: the oracle does not answer, or not properly.
    """
    if contract.proof is None or contract.result is None:
        raise StateError(f"contract {contract.id} has no proof or no result here: there is nothing to verify")
    text, result = contract.document.read(Contract), contract.result.read(Result)
    if result.state != "completed" and not amount_due(text.terms, result):
        return None
    job = ctx.store[JOBS].get(contract.job_id) if contract.role == REQUESTER else None
    replicas = other_replicas(ctx, job) if job is not None else ()
    again = reexecute or text.terms.verification == "reexecute"
    body = JobVerification(
        contract.spec, contract.document, contract.proof, contract.result, replicas, reexecute=reexecute
    )
    timeout = ctx.config.limits.answer_timeout + (2 * text.terms.max_duration + REEXECUTION_SLACK if again else 0)
    try:
        answer = await ctx.messenger.request(text.oracle, "job_verification", body, timeout=timeout)
        if not isinstance(answer.body, Verdict):
            raise RejectedMessageError("the oracle did not answer with a verdict", code="bad_answer")
        verdict = answer.body.verdict
        require_signature(verdict, text.oracle, ORACLE, "verdict")
        content = verdict.read(JobVerificationResult)
        if content.contract_id != contract.id or content.result_cid != contract.result.cid:
            raise RejectedMessageError("the verdict belongs to another result", code="wrong_verdict")
    except NunetError as error:
        raise ContractError(f"the oracle did not verify: {error.message}", code=error.code, hint=error.hint) from None
    return verdict


def _note_verdict(t: Transaction, job_id: str, contract: ContractRecord, verdict: Document) -> None:
    content = verdict.read(JobVerificationResult)
    failed = [f"{check.name}: {check.detail}" for check in content.checks if not check.passed]
    known = t[CONTRACTS].one(contract.id)
    if known.verdict == verdict:
        return
    t[CONTRACTS].put(structs.replace(known, verdict=verdict))
    job = t[JOBS].one(job_id)
    if job.contract_id != contract.id:
        return
    said = {"verdict": content.verdict, "checks": len(content.checks), "failed": failed}
    # a failed job is never verified: its verdict only says that the time used is right
    did_well = job.result is not None and job.result.state == "completed"
    if job.state == "completed" and content.verdict == "verified" and did_well:
        advance(t, job_id, "verify", by=ORACLE, about=contract.id, said=said)
    else:
        t.save_event(job_id, f"result_{content.verdict}", **said)


async def close(ctx: Dealing, contract: ContractRecord, verdict: Document | None) -> Document:
    """Have the contract database settle, keep the signed receipt, and return it.

    Raises:
        DisputedError: the oracle rejected the result: the job and the contract are disputed now.
        ContractError: refused, or no answer.
    """
    settled = await _ask_to_settle(ctx, contract, verdict)
    return await ctx.store.change(lambda t: keep_message(t, contract.id, settled))


async def _ask_to_settle(ctx: Dealing, contract: ContractRecord, verdict: Document | None) -> Message:
    """Have the contract database settle, and return what it answers; what it refused is kept here."""
    assert contract.result is not None
    body = SettleContract(contract.id, contract.result, verdict)
    try:
        answer = await ctx.messenger.request(
            contract.contract_database, "settle_contract", body, timeout=ctx.config.limits.answer_timeout
        )
        if not isinstance(answer.body, Message) or answer.body.contract_id != contract.id:
            raise RejectedMessageError("the contract database did not answer with a receipt", code="bad_answer")
        settled: Message = answer.body
        other = other_result(contract, settled.receipt)
    except NunetError as error:
        if error.code == DisputedError.default_code:
            disputed = DisputedError(error.message, hint="escrow is held until the dispute is resolved")
            await ctx.store.change(lambda t: note_dispute(t, contract.id, disputed))
            raise disputed from None
        message = f"the contract was not settled: {error.message}"
        raise ContractError(message, code=error.code, hint=error.hint) from None
    if other is not None:
        await ctx.store.change(lambda t: keep_second_result(t, contract.id, settled))
        raise ContractError(other.message, code=other.code, hint=SEE_EVIDENCE.format(contract.id))
    return settled


# -- both --------------------------------------------------------------------------------------------------------------


def register(ctx: Receiving) -> None:
    """Take the closing message, and know the answers of oracle and contract database."""

    async def on_message(message: Incoming) -> Change:
        return _on_message(ctx, message)

    ctx.messenger.register("message", Message, on_message)
    ctx.messenger.register("job_verification_result", Verdict)
    ctx.messenger.register("account_statement", AccountStatement)


def _on_message(ctx: Receipts, message: Incoming) -> Change:
    body: Message = message.body
    known = ctx.store[CONTRACTS].get(body.contract_id)
    if known is None or known.contract_database != message.sender:
        raise PeerError("no such contract recorded with you here", code="no_contract")
    return closing_change(ctx, known, body)


def closing_change(ctx: Receipts, known: ContractRecord, body: Message) -> Callable[[Transaction], None]:
    """Check the closing message of a contract, and return the change that keeps it, and ends the job where it can.

    Else what was paid is fetched first: see `closing`.

    Raises:
        RejectedMessageError: the receipt does not fit the contract.
    """
    other = other_result(known, body.receipt)

    def change(t: Transaction) -> None:
        contract = t[CONTRACTS].one(body.contract_id)
        t.then(partial(ctx.closings.look, contract.id))
        # the result, or the proof, may have come together with it
        same = (contract.result, contract.proof) == (known.result, known.proof)
        if (other if same else other_result(contract, body.receipt)) is not None:
            keep_second_result(t, contract.id, body)
            return
        receipt = keep_message(t, contract.id, body)
        if contract.role == REQUESTER and contract.result is not None:
            finish_unattended(t, contract.job_id, receipt, contract.result.read(Result))

    return change
