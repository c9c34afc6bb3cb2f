"""Stage 7, what a receipt means here: the contract's end, the movement on this node's account, and the job's end."""

from __future__ import annotations

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import (
    DisputedError,
    JobFailedError,
    RejectedMessageError,
)
from nunet_cli.orchestrator.changes import advance, change_job, error_record, note_paid_late
from nunet_cli.orchestrator.contract_keeping import note_balance, set_contract
from nunet_cli.orchestrator.retry import MAX_IN_VAIN, look_again, may_retry, search_again, search_elsewhere
from nunet_cli.records.contract_records import CONTRACTS, STATEMENTS, ContractRecord, Statement
from nunet_cli.records.contracts import DATABASE, ORACLE, PROVIDER, REQUESTER, Receipt
from nunet_cli.records.documents import Document
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.messages import Message
from nunet_cli.records.results import REASONS, Result
from nunet_cli.tokenomics.receipt import NOT_DELIVERED, SECOND_RESULT, require_receipt

SEE_EVIDENCE = "both results are signed, and kept as evidence: nunet contract export {}"


def check_receipt(contract: ContractRecord, receipt: Document) -> Receipt:
    """Return a receipt that fits this node's contract.

    Raises:
        RejectedMessageError: it does not; the message says in what.
    """
    return require_receipt(receipt, contract.document, contract.proof, contract.result)


def other_result(contract: ContractRecord, receipt: Document) -> RejectedMessageError | None:
    """Return what is wrong where a receipt settles another result than the provider gave here, and is right otherwise.

    Raises:
        RejectedMessageError: it does not fit the contract; the message says in what.
    """
    try:
        check_receipt(contract, receipt)
    except RejectedMessageError as error:
        if error.code != SECOND_RESULT:
            raise
        return error
    return None


def note_dispute(t: Transaction, contract_id: str, error: DisputedError) -> None:
    """Put a contract and its job into dispute, as the contract database says that they are."""
    contract = t[CONTRACTS].one(contract_id)
    if contract.receipt is not None:
        # it was resolved while the answer was on its way
        return
    set_contract(t, contract_id, "dispute", by=DATABASE)
    job = t[JOBS].get(contract.job_id)
    if job is not None and job.contract_id == contract_id and job.state in ("completed", "verified"):
        said = {"message": error.message}
        advance(t, job.id, "dispute", by=DATABASE, about=contract_id, said=said, error=error_record(error))


def keep_receipt(t: Transaction, contract_id: str, settled: Message) -> None:
    """Keep a receipt, once: the contract's state, the movement on this node's own account, and the balance."""
    contract = t[CONTRACTS].one(contract_id)
    content = settled.receipt.read(Receipt)
    if contract.receipt is None:
        event = "settle" if content.outcome == "settled" else "refund"
        set_contract(t, contract_id, event, by=DATABASE, receipt=settled.receipt, message=content.reason)
        job = t[JOBS].get(contract.job_id)
        ended = job is not None and job.contract_id == contract_id and job.state in ("cancelled", "failed")
        if contract.role == REQUESTER and job is not None and ended and not job.paid:
            # it had ended before it was known what that costs
            change_job(t, job.id, paid=content.paid)
        elif contract.role == REQUESTER and job is not None and job.contract_id != contract_id:
            _note_paid_before(t, job, contract_id, content.paid)
        if contract.role == REQUESTER and job is not None and job.parent:
            note_paid_late(t, job, content.paid)
        mine = content.paid if contract.role == PROVIDER else f"-{content.paid}"
        t[STATEMENTS].put(
            Statement(
                id=settled.receipt.cid, contract_id=contract_id, job_id=contract.job_id, at=content.settled_at,
                kind=content.outcome, amount="0" if mine == "-0" else mine, message=content.reason,
            )
        )  # fmt: skip
    note_balance(t, content.contract_database, settled.balance)


def _note_paid_before(t: Transaction, job: Job, contract_id: str, paid: str) -> None:
    """Note with an earlier attempt of a job what it cost: that may be known only when the job runs again."""
    past = tuple(
        structs.replace(attempt, paid=paid) if attempt.contract_id == contract_id else attempt for attempt in job.past
    )
    if past != job.past:
        change_job(t, job.id, past=past)


def keep_message(t: Transaction, contract_id: str, message: Message) -> Document:
    """Keep the closing message of a contract, and the receipt that comes with it, once; return the one that counts.

    That is the first: a contract database that closes a contract in two ways has not moved the money twice.
    """
    keep_receipt(t, contract_id, message)
    contract = t[CONTRACTS].one(contract_id)
    if not contract.told:
        t[CONTRACTS].put(structs.replace(contract, message=message.text, told=True))
        t.save_event(contract.job_id, "message", contract_id=contract.id, text=message.text, role=contract.role)
    return contract.receipt or message.receipt


def keep_second_result(t: Transaction, contract_id: str, settled: Message) -> None:
    """Keep the receipt of a contract that was closed by another result than the provider gave here; the job fails."""
    contract = t[CONTRACTS].one(contract_id)
    if contract.receipt is not None:
        return
    keep_receipt(t, contract_id, settled)
    content = settled.receipt.read(Receipt)
    job = t[JOBS].get(contract.job_id)
    if job is None or job.contract_id != contract_id or job.state not in ("completed", "verified"):
        return
    error = JobFailedError(
        "the provider had another result settled than the one that it gave here", code=SECOND_RESULT,
        hint=SEE_EVIDENCE.format(contract_id), details={"settled": content.result_cid},
    )  # fmt: skip
    said = {"paid": content.paid, "refunded": content.refunded, "reason": error.code, "message": error.message}
    advance(t, job.id, "fail", by=DATABASE, said=said, error=error_record(error), paid=content.paid)


def finish_job(t: Transaction, job_id: str, receipt: Document, result: Result) -> Job:
    """End a job by the receipt of the contract that it has; one that has ended is left as it is."""
    job = t[JOBS].one(job_id)
    content = receipt.read(Receipt)
    about = content.contract_id
    if job.contract_id != about or job.state not in ("completed", "verified", "disputed"):
        # an earlier attempt's contract may be closed when the job goes on with another one
        return job
    money = {"paid": content.paid, "refunded": content.refunded, "message": content.reason}
    fields = {"paid": content.paid, "message": content.reason}
    if job.state == "disputed":
        return advance(t, job_id, "resolve", by=DATABASE, about=about, said=money, **fields)
    if result.state == "completed" and content.outcome == "settled":
        if job.state == "completed":
            advance(t, job_id, "verify", by=ORACLE, about=about, said={"verdict": "verified"})
        return advance(t, job_id, "settle", by=DATABASE, about=about, said=money, **fields)
    if result.state == "cancelled" and (job.called_off or t[CONTRACTS].one(about).called_off_at):
        return advance(t, job_id, "cancel", by=DATABASE, about=about, said=money, paid=content.paid)
    return _fail_or_retry(t, job, result, money)


def _fail_or_retry(t: Transaction, job: Job, result: Result, money: dict[str, str]) -> Job:
    """Fail a job, or where the failure was the provider's and the job allows it, look for another provider."""
    # what it says to have done, and nobody could fetch or verify in time, is its failure as well
    not_delivered = result.state == "completed" and money["message"].startswith(NOT_DELIVERED)
    contract = t[CONTRACTS].one(job.contract_id)
    # it waited for its turn there, and this never came: for that nobody is paid
    never_begun = (
        result.fault == "provider" and result.reason == "no_place" and not quantities.parse_amount(money["paid"])
    )
    waits = never_begun and job.state == "completed"
    # nobody here called it off
    gave_up = result.state == "cancelled"
    tries = (result.fault == "provider" or not_delivered or gave_up) and job.state == "completed" and may_retry(job)
    if (waits or tries) and (job.called_off or contract.called_off_by == "cancel"):
        # nobody would take it further
        return advance(t, job.id, "cancel", by=DATABASE, about=contract.id, said=money, paid=money["paid"])
    if waits:
        said = {"reason": result.reason}
        had = sum(row.provider == contract.provider for row in t[CONTRACTS].by("job_id", job.id))
        if had >= MAX_IN_VAIN:
            # one that says so for ever would keep it for ever
            return search_elsewhere(t, job, contract.provider, said)
        look_again(t, job, said, counts=False)
        return t[JOBS].one(job.id)
    if tries:
        return search_again(t, job, contract.provider, {"reason": result.reason or "not_delivered", **money})
    message = result.message or result.reason or "the contract was refunded"
    code = result.reason if result.reason in REASONS else "job_failed"
    if result.state == "completed":
        message, code = money["message"], "rejected"
    # programs say on standard error what went wrong; where that is empty, it is no place to look
    stream = "--stderr " if result.stderr_size else ""
    error = JobFailedError(
        message, code=code, hint=f"see: nunet job logs {stream}{job.id}",
        details={"exit_code": result.exit_code, "fault": result.fault},
    )  # fmt: skip
    said = {**money, "reason": result.reason}
    return advance(t, job.id, "fail", by=DATABASE, said=said, error=error_record(error), paid=money["paid"])


def finish_unattended(t: Transaction, job_id: str, receipt: Document, result: Result) -> None:
    """End a job whose requester was gone, so that the provider had the contract settled."""
    job = t[JOBS].get(job_id)
    is_paid = result.state == "completed" and receipt.read(Receipt).outcome == "settled"
    if job is not None and (job.collected or job.state == "disputed" or not is_paid):
        finish_job(t, job_id, receipt, result)
