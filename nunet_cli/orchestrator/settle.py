"""Stage 7, settlement: the oracle verifies, the contract database moves the funds, both parties are told."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import msgspec
from tinydb import Query

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
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.job import Result
from nunet_cli.network.documents import Document, require_signature
from nunet_cli.network.messenger import Incoming
from nunet_cli.orchestrator import execute
from nunet_cli.orchestrator.context import Context, advance, error_fields, plain, read
from nunet_cli.orchestrator.contract import note_balance, set_contract
from nunet_cli.orchestrator.replicas import other_replicas
from nunet_cli.tokenomics.contract import (
    DATABASE,
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
from nunet_cli.tokenomics.payment import amount_due

log = logging.getLogger("nunet.settle")

REEXECUTION_SLACK = 120

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
    try:
        job = await execute.collect_outputs(ctx, job["id"])
    except NunetError as error:
        # a failed job is refunded even when its logs are lost; a completed one is not paid without its outputs
        if result.state == "completed":
            raise ContractError(
                f"the outputs cannot be fetched: {error.message}", code=error.code,
                hint=f"try again: nunet job settle {job['id']}; the provider is paid after the contract's deadline"
                f" unless you dispute it: nunet contract dispute {job['contract_id']}",
            ) from None  # fmt: skip
        log.info("the logs of %s cannot be fetched: %s", job["id"], error)
    contract = ctx.store.find("contracts", job["contract_id"])
    assert contract is not None
    verdict = await verify_job(ctx, contract)
    if verdict is not None:
        await _note_verdict(ctx, job["id"], contract, verdict)
    receipt = await _close(ctx, contract, verdict)
    await ctx.store.change(lambda t: _finish_job(t, job["id"], receipt, result))
    return ctx.job(job["id"])


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
        event = {"verdict": content.verdict, "checks": len(content.checks), "failed": failed}
        # a failed job is never verified: its verdict only says that the time used is right
        if job["state"] == "completed" and content.verdict == "verified" and job["result"]["state"] == "completed":
            advance(t, job_id, "verified", event)
        else:
            t.save_event(job_id, f"result_{content.verdict}", **event)

    await ctx.store.change(change)


async def _close(ctx: Context, contract: dict[str, Any], verdict: Document | None) -> Document:
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
        _check_receipt(contract, receipt)
    except NunetError as error:
        if error.code == DisputedError.default_code:
            disputed = DisputedError(error.message, hint="escrow is held until the dispute is resolved")
            await ctx.store.change(lambda t: _dispute(t, contract, disputed))
            raise disputed from None
        message = f"the contract was not settled: {error.message}"
        raise ContractError(message, code=error.code, hint=error.hint) from None
    await ctx.store.change(lambda t: _keep_receipt(t, contract["id"], receipt, balance))
    return receipt


def _check_receipt(contract: dict[str, Any], receipt: Document) -> Receipt:
    require_signature(receipt, contract["contract_database"], DATABASE, "receipt")
    content = receipt.read(Receipt)
    if content.contract_id != contract["id"]:
        raise RejectedMessageError("the receipt belongs to another contract", code="wrong_receipt")
    return content


def _dispute(t: Transaction, contract: dict[str, Any], error: DisputedError) -> None:
    set_contract(t, contract["id"], "disputed")
    job = t.find("jobs", contract["job_id"])
    if job is not None and job["state"] in ("completed", "verified"):
        advance(t, job["id"], "disputed", {"message": error.message}, error=error_fields(error))


def _keep_receipt(t: Transaction, contract_id: str, receipt: Document, balance: str) -> None:
    """Keep a receipt, once: the contract's state, the movement on this node's own account, and the balance."""
    row = t.find("contracts", contract_id)
    assert row is not None
    content = receipt.read(Receipt)
    if row["receipt"] is None:
        set_contract(t, contract_id, content.outcome, receipt=plain(receipt), message=content.reason)
        mine = content.paid if row["role"] == "provider" else f"-{content.paid}"
        t.put(
            "statements",
            {
                "id": receipt.cid, "contract_id": contract_id, "job_id": row["job_id"], "at": content.settled_at,
                "kind": content.outcome, "amount": "0" if mine == "-0" else mine, "message": content.reason,
            },
        )  # fmt: skip
    note_balance(t, content.contract_database, balance)


def _finish_job(t: Transaction, job_id: str, receipt: Document, result: Result) -> None:
    job = t.find("jobs", job_id)
    content = receipt.read(Receipt)
    if job is None:
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
    if result.fault == "provider" and job["attempts"] < decode_spec(job["spec"]).retry.attempts:
        contract = t.find("contracts", job["contract_id"])
        assert contract is not None
        excluded = [*job.get("excluded", []), contract["provider"]]
        event = {"retry": job["attempts"] + 1, "reason": result.reason, **money}
        advance(
            t, job["id"], "matching", event, attempts=job["attempts"] + 1, excluded=excluded, contract_id="",
            bid_id="", allocation_id="", result=None, collected=False, shortlist=[], place=0,
        )  # fmt: skip
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
    _check_receipt(contract, body.receipt)

    def change(t: Transaction) -> None:
        row = t.find("contracts", body.contract_id)
        assert row is not None
        first = row["receipt"] is None
        _keep_receipt(t, body.contract_id, body.receipt, body.balance)
        if first or not row.get("told"):
            row = t.find("contracts", body.contract_id)
            assert row is not None
            t.put("contracts", {**row, "message": body.text, "told": True})
            t.save_event(row["job_id"], "message", contract_id=row["id"], text=body.text, role=row["role"])
        if row["role"] == "requester" and row["result"]:
            # the requester was gone, and the provider had the contract settled
            _finish_job(t, row["job_id"], body.receipt, read(row, "result", Document).read(Result))

    await ctx.store.change(change)


async def expire_unproved(ctx: Context) -> None:
    """Give up contracts that were agreed on and not proved before their deadline."""
    contracts, now = Query(), units.utc_now()
    for row in ctx.store.table("contracts").search(contracts.state == "agreed"):
        if row["deadline"] < now:
            reason = f"not proved before its deadline {row['deadline']}"
            await ctx.store.change(lambda t, row=row, why=reason: set_contract(t, row["id"], "expired", reason=why))  # type: ignore[misc]  # the defaults bind the loop's values


async def settle_cancelled(ctx: Context) -> None:
    """As a requester: settle contracts of jobs called off while the provider was away, once it has answered."""
    contracts = Query()
    rows = ctx.store.table("contracts").search((contracts.state == "proved") & (contracts.role == "requester"))
    for row in rows:
        job = ctx.store.find("jobs", row["job_id"])
        if row["result"] is None or job is None or job["state"] not in ("cancelled", "failed"):
            continue
        try:
            await _close(ctx, row, await verify_job(ctx, row))
        except NunetError as error:
            log.info("contract %s cannot be settled yet: %s", row["id"], error)


# -- provider ----------------------------------------------------------------------------------------------------------


async def settle_overdue(ctx: Context) -> None:
    """As a provider: settle finished jobs whose requester stays silent past the contract's deadline."""
    contracts = Query()
    rows = ctx.store.table("contracts").search((contracts.state == "proved") & (contracts.role == "provider"))
    for row in rows:
        if row["result"] is None or row["deadline"] > units.utc_now():
            continue
        given_up = units.parse_time(row["deadline"]) + timedelta(seconds=ctx.config.limits.settlement_window)
        try:
            verdict = await verify_job(ctx, row)
            await _close(ctx, row, verdict)
        except NunetError as error:
            if units.now() < given_up:
                log.warning("contract %s cannot be settled yet: %s", row["id"], error)
