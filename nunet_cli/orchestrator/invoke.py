"""Stage 5, invocation and allocation: the order to start, and the execution space that it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError, NunetError, PeerError, RejectedMessageError, StateError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import images_of, is_group, programs, required_capability
from nunet_cli.network.blobs import Blobs
from nunet_cli.network.messenger import Change, Incoming
from nunet_cli.orchestrator.changes import advance, change_job, find_job
from nunet_cli.orchestrator.contract_keeping import check_proof, keep_proof
from nunet_cli.orchestrator.needs import (
    Asking,
    BeginsAllocations,
    Dealing,
    HasAccounting,
    HasBlobs,
    HasClosings,
    HasConfig,
    HasJudging,
    HasMessenger,
    HasPeers,
    HasStore,
    HasWork,
)
from nunet_cli.orchestrator.permissions import Permitting, check_dealing, may_use
from nunet_cli.orchestrator.post import new_id
from nunet_cli.orchestrator.units import bid_of
from nunet_cli.records.allocations import ALLOCATIONS, Allocation
from nunet_cli.records.bids import BID_REQUESTS
from nunet_cli.records.capability import Capability
from nunet_cli.records.contract_records import CONTRACTS, ContractRecord
from nunet_cli.records.contracts import PROVIDER, REQUESTER, Contract
from nunet_cli.records.documents import Document, require_signature
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.kyc import Kyc
from nunet_cli.records.messages import AllocationStartSuccess, Invocation


class Serving(HasBlobs, HasConfig, HasStore, Protocol):
    """Serves the inputs of a job."""


class Checking(Permitting, HasStore, Protocol):
    """Checks what is invoked."""


class Allocating(HasAccounting, HasClosings, Protocol):
    """Makes allocations."""


class Starting(BeginsAllocations, Allocating, HasJudging, HasPeers, HasWork, Checking, Protocol):
    """Makes allocations, and has them begun."""


class Invoked(Starting, HasMessenger, Protocol):
    """Takes invocations."""


# -- requester ---------------------------------------------------------------------------------------------------------


async def invoke(ctx: Dealing, job_id: str) -> Job:
    """Order the provider to start; a job that was invoked already is left as it is.

    Raises:
        StateError: the job is not at this stage.
        PeerError: the provider does not answer; the contract stands, and this can be run again.
        NunetError: the provider refused; its reason.
    """
    job = find_job(ctx.store, job_id)
    if job.state in ("invoked", "running", "completed", "verified", "settled"):
        return job
    if job.state != "contracted":
        raise StateError(f"job {job.id} is {job.state}, not contracted", hint=f"run: nunet job contract {job.id}")
    contract = ctx.store[CONTRACTS].one(job.contract_id)
    inputs = [item for part in programs(decode_spec(job.spec)) for item in part.inputs]

    def grant(t: Transaction) -> None:
        for item in inputs:
            Blobs.grant(t, item.cid, contract.provider)
            Blobs.grant(t, item.cid, contract.oracle)

    if inputs:
        await ctx.store.change(grant)
    started = await send_invocation(ctx, contract, job.spec)
    return await ctx.store.change(lambda t: _invoked(t, job.id, contract.id, started.allocation_id))


def _invoked(t: Transaction, job_id: str, contract_id: str, allocation_id: str) -> Job:
    job = t[JOBS].one(job_id)
    if job.contract_id != contract_id:
        # it was given up in the meantime, and goes on with another provider
        return job
    # a quick job's first status update may have been here before the answer
    if job.state != "contracted":
        return change_job(t, job_id, allocation_id=allocation_id)
    said = {"allocation_id": allocation_id, "contract_id": contract_id}
    return advance(
        t, job_id, "invoke", by=PROVIDER, about=contract_id, said=said, allocation_id=allocation_id
    )  # fmt: skip


async def send_inputs(ctx: Serving, job_id: str) -> Job:
    """Stay until the provider has taken the inputs and begun, or has shown no interest for `answer_timeout`.

    A node that lives on serves the inputs in any case; this is for a node that would end with its command.
    """
    quiet_since = trio.current_time()
    while True:
        event = ctx.store.news(job_id)
        job = find_job(ctx.store, job_id)
        if job.state != "invoked" or not any(part.inputs for part in programs(decode_spec(job.spec))):
            return job
        if ctx.blobs.is_serving(ctx.store[CONTRACTS].one(job.contract_id).provider):
            quiet_since = trio.current_time()
        elif trio.current_time() - quiet_since > ctx.config.limits.answer_timeout:
            return job
        with trio.move_on_after(0.1):
            await event.wait()


async def send_invocation(ctx: Asking, contract: ContractRecord, spec: str) -> AllocationStartSuccess:
    """Send the job, the contract and its proof (seed 5: `network.sendInvocation`)."""
    assert contract.proof is not None
    body = Invocation(spec, contract.document, contract.proof)
    answer = await ctx.messenger.request(
        contract.provider, "invocation", body, timeout=ctx.config.limits.answer_timeout * 2
    )
    started = answer.body
    if not isinstance(started, AllocationStartSuccess) or started.contract_id != contract.id:
        raise PeerError("the provider did not confirm the allocation", code="bad_answer")
    return started


# -- provider ----------------------------------------------------------------------------------------------------------


def register(ctx: Invoked) -> None:
    """Take invocations."""

    async def on_invocation(message: Incoming) -> Change:
        start = await start_allocation(ctx, message.body, message.sender)
        return lambda t: ("allocation_start_success", start(t))

    ctx.messenger.register("invocation", Invocation, on_invocation)
    ctx.messenger.register("allocation_start_success", AllocationStartSuccess)


async def start_allocation(
    ctx: Starting, invocation: Invocation, sender: str
) -> Callable[[Transaction], AllocationStartSuccess]:
    """Check an invocation, and return the change that makes its allocation and has it begun, however often it comes.

    Second seed: `startAllocation`.

    Raises:
        ContractError: there is no such contract with the sender, or it is over; also by the change.
        NunetError: the allocation cannot be made; code `allocation_error`; by the change.
    """
    contract = _contract_of(ctx.store, invocation.contract.cid, sender)
    needs = Capability()
    if ctx.store[ALLOCATIONS].first("contract_id", contract.id) is None:
        check_dealing(ctx, ctx.store, sender)
        _check_invocation(invocation, invocation.contract)
        # a stranger's: it is checked off the event loop, once
        spec = await ctx.judging.run(decode_spec, invocation.spec)
        _check_bid_for(ctx, spec, contract)
        if ctx.accounting.has(ctx.store, contract.bid_id):
            # what becomes of it from here on is not its requester's doing
            ctx.work.idle_locks.kept(sender, contract.bid_id)
        needs = required_capability(spec)
        await ctx.peers.note_useful(sender, contract.contract_database, contract.oracle)

    def change(t: Transaction) -> AllocationStartSuccess:
        current = _contract_of(t, contract.id, sender)
        known = t[ALLOCATIONS].first("contract_id", current.id)
        if known is None:
            check_dealing(ctx, t, sender)
            known = create_allocation(ctx, t, invocation, current, needs)
            begun = known.id
            t.then(lambda: ctx.begin_allocation(begun))
        return AllocationStartSuccess(current.id, known.id, known.state)

    return change


def _contract_of(source: Store | Transaction, contract_id: str, sender: str) -> ContractRecord:
    """Return the contract that is invoked, unless there is none with the sender, or it was called off."""
    contract = source[CONTRACTS].get(contract_id)
    if contract is None or contract.role != "provider" or contract.requester != sender:
        raise ContractError("there is no contract with you for this invocation", code="no_contract")
    if contract.result is not None and source[ALLOCATIONS].first("contract_id", contract_id) is None:
        raise ContractError("the contract was called off", code="called_off")
    return contract


def _check_invocation(body: Invocation, document: Document) -> None:
    contract = document.read(Contract)
    require_signature(document, contract.requester, REQUESTER, "contract")
    require_signature(document, contract.provider, PROVIDER, "contract")
    check_proof(body.proof, document)
    if contract.terms.deadline <= quantities.utc_now():
        raise ContractError(f"the contract's deadline {contract.terms.deadline} has passed", code="contract_expired")
    if content_id(body.spec.encode()) != contract.terms.spec_cid:
        raise RejectedMessageError("the job is not the one that the contract names", code="wrong_spec")


def _check_bid_for(ctx: Checking, spec: JobSpec, contract: ContractRecord) -> None:
    """Refuse a job that asks for something else than the bid request did on which this provider decided.

    The bid request only names the job's content id. What runs, for how long and under which rules, must be what was
    compared, accepted and locked; and what strangers may use here may have changed since.

    Raises:
        RejectedMessageError: naming what differs.
        ContractError: the requester may not use an executor or image here.
    """
    bid = bid_of(ctx.store, contract.bid_id)
    record = ctx.store[BID_REQUESTS].get(bid.bid_request_id) if bid is not None else None
    if record is None:
        raise ContractError("the bid request of this contract is not here", code="no_bid_here")
    asked = record.request
    parts = list(programs(spec))
    flat = all(not part.children for part in parts) and len(parts) == max(1, len(spec.children))
    if is_group(spec) or not parts or not flat:
        raise RejectedMessageError("the job is none that one machine runs", code="spec_differs")
    then = asked.required_capability
    # which key a name stands for is in the bid request alone
    now = required_capability(spec, {kyc.name: kyc.verifier for kyc in then.kycs if isinstance(kyc, Kyc)})
    differing = [name for name in now.__struct_fields__ if getattr(now, name) != getattr(then, name)]
    differing += ["images"] if images_of(spec) != asked.images else []
    differing += ["constraints"] if spec.constraints.hard != asked.hard else []
    if differing:
        raise RejectedMessageError(
            f"the job is not the one that was bid for; it differs in {', '.join(differing)}", code="spec_differs"
        )
    for name in now.executors:
        if not may_use(ctx, name, contract.requester):
            raise ContractError(f"your jobs may not use the {name} executor here", code="not_allowed")


def create_allocation(
    ctx: Allocating, t: Transaction, body: Invocation, contract: ContractRecord, needs: Capability
) -> Allocation:
    """Turn the lock into an allocation, at most one per contract ever (seed 5: `executor.createAllocation`).

    Raises:
        NunetError: what was locked is not free any more, or the contract is over; code `allocation_error`.
    """
    allocation = Allocation(
        id=new_id("allocation"), job_id=contract.job_id, contract_id=contract.id, requester=contract.requester,
        executor=",".join(needs.executors), created_at=quantities.utc_now(),
    )  # fmt: skip
    try:
        ctx.accounting.allocate(t, contract.bid_id, allocation.id, needs.resources, needs.time.max, contract.requester)
        keep_proof(ctx, t, contract.id, body.proof, spec=body.spec, document=body.contract)
    except StateError as error:
        raise NunetError(f"the allocation cannot be made: {error.message}", code="allocation_error") from None
    t[ALLOCATIONS].put(allocation)
    t.save_event(contract.job_id, "allocation_created", allocation_id=allocation.id, contract_id=contract.id)
    return allocation
