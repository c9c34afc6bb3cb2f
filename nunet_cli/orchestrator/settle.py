"""Stage 7, settlement: the oracle verifies, the contract database moves the funds, both parties are told."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import msgspec

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import (
    ContractError,
    DisputedError,
    JobFailedError,
    NunetError,
    PeerError,
    RejectedMessageError,
    StateError,
)
from nunet_cli.network.messenger import Incoming
from nunet_cli.orchestrator import disputes, execute
from nunet_cli.orchestrator.context import Context, advance, error_fields, plain, read
from nunet_cli.orchestrator.contract import note_balance, set_contract
from nunet_cli.orchestrator.retry import may_retry, search_again
from nunet_cli.orchestrator.siblings import other_replicas
from nunet_cli.records.contracts import (
    ORACLE,
    REQUESTER,
    AccountStatement,
    Contract,
    JobVerification,
    JobVerificationResult,
    Message,
    Receipt,
    SettleContract,
    Settled,
    Verdict,
)
from nunet_cli.records.documents import Document, require_signature
from nunet_cli.records.results import Result
from nunet_cli.tokenomics.payment import amount_due, seconds_between
from nunet_cli.tokenomics.receipt import NOT_DELIVERED, SECOND_RESULT, require_receipt

log = logging.getLogger("nunet.settle")

REEXECUTION_SLACK = 120
# what two machines' clocks may come apart by within one job: a correction by a second or two, and a drift
CLOCK_TOLERANCE, CLOCK_DRIFT = 2.0, 0.001

# -- requester ---------------------------------------------------------------------------------------------------------


async def settle(ctx: Context, job_id: str) -> dict[str, Any]:
    """Wait for the job's end if it still runs, fetch its outputs, have it verified and settled; return the job.

    Raises:
        StateError: the job was not started.
        JobFailedError: the job ran and failed; its contract is settled or refunded all the same.
        DisputedError: the oracle rejected the result.
        ContractError: the contract database or the oracle refused, or does not answer.
    """
    job = ctx.job(job_id)
    if job["state"] in ("invoked", "running"):
        job = await execute.follow(ctx, job["id"])
    if job["state"] == "settled":
        return job
    if job["state"] == "disputed":
        raise DisputedError("the job is disputed: escrow is held until that is resolved")
    if job["state"] not in ("completed", "verified"):
        raise StateError(f"job {job['id']} is {job['state']}: there is nothing to settle")
    result = msgspec.convert(job["result"], Result)
    contract = ctx.store.find("contracts", job["contract_id"])
    assert contract is not None
    await require_honest_time(ctx, contract, result)
    try:
        job = await execute.collect_outputs(ctx, job["id"])
    except NunetError as error:
        # a failed job is refunded even when its logs are lost; a completed one is not paid without its outputs
        if result.state == "completed" and not _is_paid_long_ago(ctx, contract):
            raise ContractError(
                f"the outputs cannot be fetched: {error.message}", code=error.code,
                hint=f"try again: nunet job settle {job['id']}; the provider is paid after the contract's deadline"
                f" unless you dispute it: nunet contract dispute {job['contract_id']}",
            ) from None  # fmt: skip
        log.info("the logs of %s cannot be fetched: %s", job["id"], error)
    if contract["receipt"] is not None:
        receipt = read(contract, "receipt", Document)
    else:
        verdict = await verify_job(ctx, contract)
        if verdict is not None:
            await _note_verdict(ctx, job["id"], contract, verdict)
        receipt = await close(ctx, contract, verdict)
    await ctx.store.change(lambda t: _finish_job(t, job["id"], receipt, result))
    return ctx.job(job["id"])


def _is_paid_long_ago(ctx: Context, contract: dict[str, Any]) -> bool:
    """Say whether a contract was closed so long ago that a job does not wait for its outputs any more."""
    if contract["receipt"] is None:
        return False
    closed = read(contract, "receipt", Document).read(Receipt).settled_at
    return seconds_between(closed, units.utc_now()) > ctx.config.limits.settlement_window


async def require_honest_time(ctx: Context, contract: dict[str, Any], result: Result) -> None:
    """Dispute a result that sells more time than passed here.

    That is the time between the contract's proof and the result's arrival. Of a job that was called off, it ends
    `answer_timeout` after that at the latest, in which a program can be stopped: silence does not lengthen it.

    Raises:
        DisputedError: it does; the contract is in dispute then.
        ContractError: the contract database does not take the dispute.
    """
    if contract["receipt"] is not None or not contract.get("proved_at") or not contract.get("result_at"):
        return
    end, called_off = contract["result_at"], contract.get("called_off_at", "")
    if called_off and (result.state != "completed" or contract.get("called_off_by") == "cancel"):
        patience = timedelta(seconds=ctx.config.limits.answer_timeout)
        end = min(end, units.format_time(units.parse_time(called_off) + patience))
    terms = read(contract, "document", Document).read(Contract).terms
    seen = max(0.0, seconds_between(contract["proved_at"], end))
    if amount_due(terms, result) <= amount_due(terms, result, seen * (1 + CLOCK_DRIFT) + CLOCK_TOLERANCE):
        return
    text = f"{result.usage.wall_seconds:.1f} s are to be paid; {seen:.1f} s passed here from the proof to the end"
    await disputes.add(ctx, contract["id"], text, with_result=True)
    raise DisputedError(
        text, hint=f"escrow is held until the dispute is resolved; see: nunet contract show {contract['id']}"
    )


async def verify_job(ctx: Context, contract: dict[str, Any], *, reexecute: bool = False) -> Document | None:
    """Ask the oracle for its verdict (seed 7: `oracle.verifyJob`); None for a failed job that earns nothing.

    Args:
        ctx: the node's parts.
        contract: this node's row of it.
        reexecute: ask the oracle to run the job itself, whatever the contract says: evidence for a dispute.

    Raises:
        ContractError: the oracle does not answer, or not properly.
    """
    document = read(contract, "document", Document)
    result_document = read(contract, "result", Document)
    text, result = document.read(Contract), result_document.read(Result)
    if result.state != "completed" and not amount_due(text.terms, result):
        return None
    job = ctx.store.find("jobs", contract["job_id"])
    replicas = other_replicas(ctx, job) if job is not None and contract["role"] == REQUESTER else ()
    again = reexecute or text.terms.verification == "reexecute"
    proof = read(contract, "proof", Document)
    body = JobVerification(contract["spec"], document, proof, result_document, replicas, reexecute=reexecute)
    timeout = ctx.config.limits.answer_timeout + (2 * text.terms.max_duration + REEXECUTION_SLACK if again else 0)
    try:
        answer = await ctx.messenger.request(text.oracle, "job_verification", body, timeout=timeout)
        if not isinstance(answer.body, Verdict):
            raise RejectedMessageError("the oracle did not answer with a verdict", code="bad_answer")
        verdict = answer.body.verdict
        require_signature(verdict, text.oracle, ORACLE, "verdict")
        content = verdict.read(JobVerificationResult)
        if content.contract_id != contract["id"] or content.result_cid != result_document.cid:
            raise RejectedMessageError("the verdict belongs to another result", code="wrong_verdict")
    except NunetError as error:
        raise ContractError(f"the oracle did not verify: {error.message}", code=error.code, hint=error.hint) from None
    return verdict


async def _note_verdict(ctx: Context, job_id: str, contract: dict[str, Any], verdict: Document) -> None:
    content = verdict.read(JobVerificationResult)
    failed = [f"{check.name}: {check.detail}" for check in content.checks if not check.passed]

    def change(t: Transaction) -> None:
        row = t.find("contracts", contract["id"])
        job = t.find("jobs", job_id)
        assert row is not None
        assert job is not None
        t.put("contracts", {**row, "verdict": plain(verdict)})
        if job["contract_id"] != contract["id"]:
            return
        event = {"verdict": content.verdict, "checks": len(content.checks), "failed": failed}
        # a failed job is never verified: its verdict only says that the time used is right
        if job["state"] == "completed" and content.verdict == "verified" and job["result"]["state"] == "completed":
            advance(t, job_id, "verified", event)
        else:
            t.save_event(job_id, f"result_{content.verdict}", **event)

    await ctx.store.change(change)


async def close(ctx: Context, contract: dict[str, Any], verdict: Document | None) -> Document:
    """Have the contract database settle, and return the signed receipt.

    Raises:
        DisputedError: the oracle rejected the result: the job and the contract are disputed now.
        ContractError: refused, or no answer.
    """
    body = SettleContract(contract["id"], read(contract, "result", Document), verdict)
    try:
        answer = await ctx.messenger.request(
            contract["contract_database"], "settle_contract", body, timeout=ctx.config.limits.answer_timeout
        )
        if not isinstance(answer.body, Settled):
            raise RejectedMessageError("the contract database did not answer with a receipt", code="bad_answer")
        receipt, balance = answer.body.receipt, answer.body.balance
        check_receipt(contract, receipt)
    except NunetError as error:
        if error.code == SECOND_RESULT:
            await ctx.store.change(lambda t: _keep_second_result(t, contract["id"], receipt, balance))
            raise ContractError(error.message, code=error.code, hint=_see_evidence(contract["id"])) from None
        if error.code == DisputedError.default_code:
            disputed = DisputedError(error.message, hint="escrow is held until the dispute is resolved")
            await ctx.store.change(lambda t: _dispute(t, contract, disputed))
            raise disputed from None
        message = f"the contract was not settled: {error.message}"
        raise ContractError(message, code=error.code, hint=error.hint) from None
    await ctx.store.change(lambda t: _keep_receipt(t, contract["id"], receipt, balance))
    return receipt


def check_receipt(contract: dict[str, Any], receipt: Document) -> Receipt:
    """Return a receipt that fits this node's contract.

    Raises:
        RejectedMessageError: it does not; the message says in what.
    """
    proof = read(contract, "proof", Document) if contract["proof"] else None
    result = read(contract, "result", Document) if contract["result"] else None
    return require_receipt(receipt, read(contract, "document", Document), proof, result)


def _dispute(t: Transaction, contract: dict[str, Any], error: DisputedError) -> None:
    set_contract(t, contract["id"], "disputed")
    job = t.find("jobs", contract["job_id"])
    if job is not None and job["contract_id"] == contract["id"] and job["state"] in ("completed", "verified"):
        advance(t, job["id"], "disputed", {"message": error.message}, error=error_fields(error))


def _keep_receipt(t: Transaction, contract_id: str, receipt: Document, balance: str) -> None:
    """Keep a receipt, once: the contract's state, the movement on this node's own account, and the balance."""
    row = t.find("contracts", contract_id)
    assert row is not None
    content = receipt.read(Receipt)
    if row["receipt"] is None:
        set_contract(t, contract_id, content.outcome, receipt=plain(receipt), message=content.reason)
        job = t.find("jobs", row["job_id"])
        ended = job is not None and job["contract_id"] == contract_id and job["state"] in ("cancelled", "failed")
        if row["role"] == "requester" and job is not None and ended and not job.get("paid"):
            # it had ended before it was known what that costs
            t.put("jobs", {**job, "paid": content.paid})
        mine = content.paid if row["role"] == "provider" else f"-{content.paid}"
        t.put(
            "statements",
            {
                "id": receipt.cid, "contract_id": contract_id, "job_id": row["job_id"], "at": content.settled_at,
                "kind": content.outcome, "amount": "0" if mine == "-0" else mine, "message": content.reason,
            },
        )  # fmt: skip
    note_balance(t, content.contract_database, balance)


def _see_evidence(contract_id: str) -> str:
    return f"both results are signed, and kept as evidence: nunet contract export {contract_id}"


def _keep_second_result(t: Transaction, contract_id: str, receipt: Document, balance: str) -> None:
    """Keep the receipt of a contract that was closed by another result than the provider gave here; the job fails."""
    row = t.find("contracts", contract_id)
    assert row is not None
    if row["receipt"] is not None:
        return
    _keep_receipt(t, contract_id, receipt, balance)
    content = receipt.read(Receipt)
    job = t.find("jobs", row["job_id"])
    if job is None or job["contract_id"] != contract_id or job["state"] not in ("completed", "verified"):
        return
    error = JobFailedError(
        "the provider had another result settled than the one that it gave here", code=SECOND_RESULT,
        hint=_see_evidence(contract_id), details={"settled": content.result_cid},
    )  # fmt: skip
    event = {"paid": content.paid, "refunded": content.refunded, "reason": error.code, "message": error.message}
    advance(t, job["id"], "failed", event, error=error_fields(error), paid=content.paid)


def _finish_job(t: Transaction, job_id: str, receipt: Document, result: Result) -> None:
    job = t.find("jobs", job_id)
    content = receipt.read(Receipt)
    if job is None or job["contract_id"] != content.contract_id:
        # an earlier attempt's contract is closed; the job goes on with another one
        return
    if job["state"] == "disputed":
        event = {"paid": content.paid, "refunded": content.refunded, "message": content.reason}
        advance(t, job_id, "resolved", event, paid=content.paid, message=content.reason)
        return
    if job["state"] not in ("completed", "verified"):
        return
    money = {"paid": content.paid, "refunded": content.refunded, "message": content.reason}
    if result.state == "completed" and content.outcome == "settled":
        if job["state"] == "completed":
            advance(t, job_id, "verified", {"verdict": "verified"})
        advance(t, job_id, "settled", money, paid=content.paid, message=content.reason)
    elif result.state == "cancelled":
        advance(t, job_id, "cancelled", money, paid=content.paid)
    else:
        _fail_or_retry(t, job, result, money)


def _fail_or_retry(t: Transaction, job: dict[str, Any], result: Result, money: dict[str, Any]) -> None:
    """Fail a job, or where the failure was the provider's and the job allows it, look for another provider."""
    # what it says to have done, and nobody could fetch or verify in time, is its failure as well
    not_delivered = result.state == "completed" and money["message"].startswith(NOT_DELIVERED)
    if (result.fault == "provider" or not_delivered) and may_retry(job):
        contract = t.find("contracts", job["contract_id"])
        assert contract is not None
        search_again(t, job, contract["provider"], {"reason": result.reason or "not_delivered", **money})
        return
    message = result.message or result.reason or "the contract was refunded"
    code = result.reason or "job_failed"
    if result.state == "completed":
        message, code = money["message"], "rejected"
    error = JobFailedError(
        message, code=code, hint=f"see: nunet job logs {job['id']}",
        details={"exit_code": result.exit_code, "fault": result.fault},
    )  # fmt: skip
    advance(t, job["id"], "failed", {**money, "reason": result.reason}, error=error_fields(error), paid=money["paid"])


# -- both --------------------------------------------------------------------------------------------------------------


def register(ctx: Context) -> None:
    """Take the closing message, and know the answers of oracle and contract database."""

    async def on_message(message: Incoming) -> None:
        await _on_message(ctx, message)

    ctx.messenger.register("message", Message, on_message)
    ctx.messenger.register("job_verification_result", Verdict)
    ctx.messenger.register("settled", Settled)
    ctx.messenger.register("account_statement", AccountStatement)


async def _on_message(ctx: Context, message: Incoming) -> None:
    body: Message = message.body
    contract = ctx.store.find("contracts", body.contract_id)
    if contract is None or contract["contract_database"] != message.sender:
        raise PeerError("no such contract recorded with you here", code="no_contract")
    second = False
    try:
        check_receipt(contract, body.receipt)
    except RejectedMessageError as error:
        if error.code != SECOND_RESULT:
            raise
        second = True

    def change(t: Transaction) -> None:
        row = t.find("contracts", body.contract_id)
        assert row is not None
        if second:
            _keep_second_result(t, body.contract_id, body.receipt, body.balance)
            return
        first = row["receipt"] is None
        _keep_receipt(t, body.contract_id, body.receipt, body.balance)
        if first or not row.get("told"):
            row = t.find("contracts", body.contract_id)
            assert row is not None
            t.put("contracts", {**row, "message": body.text, "told": True})
            t.save_event(row["job_id"], "message", contract_id=row["id"], text=body.text, role=row["role"])
        if row["role"] == "requester" and row["result"]:
            # the requester was gone, and the provider had the contract settled
            job = t.find("jobs", row["job_id"])
            result = read(row, "result", Document).read(Result)
            paid = result.state == "completed" and body.receipt.read(Receipt).outcome == "settled"
            if job is None or job.get("collected") or job["state"] == "disputed" or not paid:
                _finish_job(t, row["job_id"], body.receipt, result)
            # else what was paid is fetched first: see `closing`

    await ctx.store.change(change)
