"""Taking one job through the stage that its state asks for, and what a failure there leads to."""

from __future__ import annotations

import logging
from functools import partial
from typing import Protocol

import trio

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import ContractError, NoSpaceError, NunetError, PeerError, StateError
from nunet_cli.orchestrator.batch import Finding, put_back, take_unit
from nunet_cli.orchestrator.changes import advance, error_record, find_job, let_go
from nunet_cli.orchestrator.contract import PROVIDER_REFUSED, TRANSIENT, Contracting, close_contract, propose_at_once
from nunet_cli.orchestrator.execute import Following, follow
from nunet_cli.orchestrator.invoke import invoke
from nunet_cli.orchestrator.locks import release_message
from nunet_cli.orchestrator.match import match
from nunet_cli.orchestrator.needs import (
    Dealing,
    HasAsked,
    HasBlobs,
    HasClosings,
    HasHeard,
    HasMessenger,
    HasProgress,
    HasRoles,
    HasStanding,
    HasStore,
    HasThreads,
    HasVerified,
)
from nunet_cli.orchestrator.request import ask_first, next_bid, release_forgotten, request
from nunet_cli.orchestrator.retry import CANCEL_LIFETIME, GivingUp, give_up, look_again, note_called_off
from nunet_cli.orchestrator.settle import Settling, settle
from nunet_cli.orchestrator.units import bid_of
from nunet_cli.records.bids import is_unit
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import LAPSED
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.machine import REQUESTER
from nunet_cli.records.messages import JobCancel
from nunet_cli.records.messaging import Outgoing

log = logging.getLogger("nunet.orchestrate")

RETRY_PAUSE, SETTLE_PAUSE = 3.0, 10.0
# what an oracle, a contract database or a provider cannot do just now, because it is busy, or away
MOMENTARY = TRANSIENT | {"oracle_busy", "not_available", "machine_busy", "transfer_stalled", "too_early"}


class Invoking(HasClosings, GivingUp, Dealing, Protocol):
    """Has a job started."""


class ClosingContract(HasHeard, HasProgress, HasStanding, Contracting, Protocol):
    """Closes a contract, or gives the provider up."""


class Failing(HasClosings, GivingUp, Protocol):
    """Ends jobs that cannot be taken further."""


class Orchestrating(
    HasAsked, HasRoles, HasVerified, Finding, HasClosings, HasHeard, HasProgress, HasBlobs, HasThreads, Protocol
):
    """Takes a job through every stage; it can do what closing a contract, following and settling need."""


async def next_stage(ctx: Orchestrating, job: Job) -> None:
    """Take a job with a contract of its own through the stage that its state asks for."""
    state, job_id = job.state, job.id
    if state in ("posted", "matching", "expired"):
        if await take_unit(ctx, job):
            return
        if state == "matching":
            await release_forgotten(ctx, job)
        await match(ctx, job_id, first=partial(ask_first, ctx))
    elif state == "matched":
        await request(ctx, job_id, partial(propose_at_once, ctx))
    elif state == "requested":
        await _contract(ctx, job_id)
    elif state == "contracted":
        await _invoke(ctx, job_id)
    elif state in ("invoked", "running"):
        await _follow(ctx, job_id)
    else:
        await _settle(ctx, job_id)


async def _contract(ctx: ClosingContract, job_id: str) -> None:
    try:
        job = await close_contract(ctx, job_id)
        ctx.standing.agreed(job.parent, job_id)
    except ContractError as error:
        if error.code == PROVIDER_REFUSED and is_unit(find_job(ctx.store, job_id).bid_id):
            await put_back(ctx, job_id, error)
            return
        if error.code == PROVIDER_REFUSED:
            await next_bid(ctx, job_id, error.message)
            return
        if error.code == LAPSED and await _search_anew(ctx, job_id, error):
            return
        await fail(ctx, job_id, error)
        raise


async def _search_anew(ctx: HasStore, job_id: str, error: NunetError) -> bool:
    """Look for bids again after a contract lapsed that nobody had recorded; False after a few times."""
    said = {"reason": error.code, "message": error.message}

    return await ctx.store.change(lambda t: look_again(t, t[JOBS].one(job_id), said))


async def _settle(ctx: Settling, job_id: str) -> None:
    """Settle; who cannot just now, or is away, is asked again until the contract's deadline."""
    try:
        await settle(ctx, job_id)
    except ContractError as error:
        contract = ctx.store[CONTRACTS].get(find_job(ctx.store, job_id).contract_id)
        if error.code not in MOMENTARY or contract is None or contract.deadline <= quantities.utc_now():
            raise
        event = {"message": error.message, "until": contract.deadline}
        await ctx.store.save_event(job_id, "settlement_waits", **event)
        await trio.sleep(SETTLE_PAUSE)


async def _invoke(ctx: Invoking, job_id: str) -> None:
    contract = ctx.store[CONTRACTS].one(find_job(ctx.store, job_id).contract_id)
    asked = ctx.heard.begin(contract.id)
    try:
        await invoke(ctx, job_id)
    except PeerError as error:
        silent = trio.current_time() - asked
        if silent > ctx.config.limits.silence and await give_up(ctx, job_id, error):
            return
        if contract.deadline > quantities.utc_now():
            event = {"message": error.message, "until": contract.deadline}
            await ctx.store.save_event(job_id, "invocation_unanswered", **event)
            await trio.sleep(RETRY_PAUSE)
            return
        await fail(ctx, job_id, error)
        raise
    except NoSpaceError:
        # this node's own disk: the provider has nothing to do with it
        raise
    except NunetError as error:
        if await give_up(ctx, job_id, error):
            return
        if not error.hint:
            error.hint = f"the deposit of {contract.deposit} NTX comes back after {contract.deadline}"
        await fail(ctx, job_id, error)
        raise


async def _follow(ctx: Following, job_id: str) -> None:
    try:
        await follow(ctx, job_id)
    except PeerError as error:
        if await give_up(ctx, job_id, error):
            return
        await fail(ctx, job_id, error)
        raise


async def fail(ctx: Failing, job_id: str, error: NunetError) -> None:
    """Record that a job failed, and why; the first reason stays."""
    record = error_record(error)

    def change(t: Transaction) -> None:
        job = t[JOBS].one(job_id)
        said = {"reason": error.code, "message": error.message}
        advance(t, job_id, "fail", by=REQUESTER, said=said, error=record)
        message = _release(ctx, t, job)
        if message is not None:
            ctx.messenger.outbox.enqueue(t, message)
            note_called_off(t, job.contract_id, "silence")
        let_go(ctx, t, job.contract_id, job_id)
        # its result may have come just now
        t.then(partial(ctx.closings.look, job.contract_id))

    try:
        await ctx.store.change(change)
    except StateError:
        log.info("job %s has ended already; not failed: %s", job_id, error)


def _release(ctx: HasMessenger, t: Transaction, job: Job) -> Outgoing | None:
    """Return the message that frees what a provider holds for a job, and so the deposit; None where nothing is held."""
    contract = t[CONTRACTS].get(job.contract_id) if job.contract_id else None
    if contract is not None and contract.state == "proved":
        body = JobCancel(contract_id=contract.id)
        return ctx.messenger.outbox.outgoing(contract.provider, "job_cancel", body, lifetime=CANCEL_LIFETIME)
    bid = bid_of(t, job.bid_id) if job.state == "requested" else None
    return release_message(ctx, job.bid_id, bid.did) if bid is not None else None
