"""Stage 5, invocation and allocation: the order to start, and the execution space that it makes."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import ContractError, NunetError, PeerError, RejectedMessageError, StateError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import images_of, is_group, programs, required_capability
from nunet_cli.network.blobs import Blobs
from nunet_cli.network.messenger import Answer, Incoming
from nunet_cli.orchestrator.bid import may_use
from nunet_cli.orchestrator.context import Context, advance, plain, read
from nunet_cli.orchestrator.contract import check_proof, set_contract
from nunet_cli.orchestrator.post import new_id
from nunet_cli.records.allocations import Allocation
from nunet_cli.records.bids import BidRequest
from nunet_cli.records.contracts import PROVIDER, REQUESTER, Contract
from nunet_cli.records.documents import Document, require_signature
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.kyc import Kyc
from nunet_cli.records.messages import AllocationStartSuccess, Invocation

# -- requester ---------------------------------------------------------------------------------------------------------


async def invoke(ctx: Context, job_id: str) -> dict[str, Any]:
    """Order the provider to start; a job that was invoked already is left as it is.

    Raises:
        StateError: the job is not at this stage.
        PeerError: the provider does not answer; the contract stands, and this can be run again.
        NunetError: the provider refused; its reason.
    """
    job = ctx.job(job_id)
    if job["state"] in ("invoked", "running", "completed", "verified", "settled"):
        return job
    if job["state"] != "contracted":
        raise StateError(
            f"job {job['id']} is {job['state']}, not contracted", hint=f"run: nunet job contract {job['id']}"
        )
    contract = ctx.store.find("contracts", job["contract_id"])
    assert contract is not None
    spec = decode_spec(job["spec"])

    def grant(t: Transaction) -> None:
        for item in (item for part in programs(spec) for item in part.inputs):
            Blobs.grant(t, item.cid, contract["provider"])
            Blobs.grant(t, item.cid, contract["oracle"])

    await ctx.store.change(grant)
    started = await send_invocation(ctx, contract, job["spec"])
    event = {"allocation_id": started.allocation_id, "contract_id": contract["id"]}
    return await ctx.store.change(lambda t: _invoked(t, job["id"], started.allocation_id, event))


def _invoked(t: Transaction, job_id: str, allocation_id: str, event: dict[str, Any]) -> dict[str, Any]:
    row = t.find("jobs", job_id)
    assert row is not None
    # a quick job's first status update may have been here before the answer
    if row["state"] != "contracted":
        row["allocation_id"] = allocation_id
        t.put("jobs", row)
        return row
    return advance(t, job_id, "invoked", event, allocation_id=allocation_id)


async def send_inputs(ctx: Context, job_id: str) -> dict[str, Any]:
    """Stay until the provider has taken the inputs and begun, or has shown no interest for `answer_timeout`.

    A node that lives on serves the inputs in any case; this is for a node that would end with its command.
    """
    quiet_since = trio.current_time()
    while True:
        event = ctx.store.new_event
        job = ctx.job(job_id)
        if job["state"] != "invoked" or not any(part.inputs for part in programs(decode_spec(job["spec"]))):
            return job
        contract = ctx.store.find("contracts", job["contract_id"])
        assert contract is not None
        if ctx.blobs.is_serving(contract["provider"]):
            quiet_since = trio.current_time()
        elif trio.current_time() - quiet_since > ctx.config.limits.answer_timeout:
            return job
        with trio.move_on_after(0.1):
            await event.wait()


async def send_invocation(ctx: Context, contract: dict[str, Any], spec: str) -> AllocationStartSuccess:
    """Send the job, the contract and its proof (seed 5: `network.sendInvocation`)."""
    body = Invocation(spec, read(contract, "document", Document), read(contract, "proof", Document))
    answer = await ctx.messenger.request(
        contract["provider"], "invocation", body, timeout=ctx.config.limits.answer_timeout * 2
    )
    started = answer.body
    if not isinstance(started, AllocationStartSuccess) or started.contract_id != contract["id"]:
        raise PeerError("the provider did not confirm the allocation", code="bad_answer")
    return started


# -- provider ----------------------------------------------------------------------------------------------------------


def register(ctx: Context) -> None:
    """Take invocations."""

    async def on_invocation(message: Incoming) -> Answer:
        return await _on_invocation(ctx, message)

    ctx.messenger.register("invocation", Invocation, on_invocation)
    ctx.messenger.register("allocation_start_success", AllocationStartSuccess)


async def _on_invocation(ctx: Context, message: Incoming) -> Answer:
    return "allocation_start_success", await start_allocation(ctx, message.body, message.sender)


async def start_allocation(ctx: Context, invocation: Invocation, sender: str) -> AllocationStartSuccess:
    """Make and start the allocation that an invocation orders (second seed: `startAllocation`).

    Raises:
        ContractError: there is no such contract with the sender, or it is over.
        NunetError: the allocation cannot be made; code `allocation_error`.
    """
    document = invocation.contract
    row = ctx.store.find("contracts", document.cid)
    if row is None or row["role"] != "provider" or row["requester"] != sender:
        raise ContractError("there is no contract with you for this invocation", code="no_contract")
    known = _allocation_of(ctx, row["id"])
    if known is None and row["result"] is not None:
        raise ContractError("the contract was called off", code="called_off")
    if known is None:
        _check_invocation(invocation, document)
        # a stranger's: it is checked off the event loop, once
        _check_bid_for(ctx, await ctx.judging.run(decode_spec, invocation.spec), row)
        known = await create_allocation(ctx, invocation, row)
        ctx.begin_allocation(known["id"])
        await ctx.peers.note_useful(sender, row["contract_database"], row["oracle"])
    return AllocationStartSuccess(row["id"], known["id"], known["state"])


def _allocation_of(ctx: Context, contract_id: str) -> dict[str, Any] | None:
    return ctx.store.find("allocations", contract_id, "contract_id")


def _check_invocation(body: Invocation, document: Document) -> None:
    contract = document.read(Contract)
    require_signature(document, contract.requester, REQUESTER, "contract")
    require_signature(document, contract.provider, PROVIDER, "contract")
    check_proof(body.proof, document)
    if contract.terms.deadline <= units.utc_now():
        raise ContractError(f"the contract's deadline {contract.terms.deadline} has passed", code="contract_expired")
    if content_id(body.spec.encode()) != contract.terms.spec_cid:
        raise RejectedMessageError("the job is not the one that the contract names", code="wrong_spec")


def _check_bid_for(ctx: Context, spec: JobSpec, contract: dict[str, Any]) -> None:
    """Refuse a job that asks for something else than the bid request did on which this provider decided.

    The bid request only names the job's content id. What runs, for how long and under which rules, must be what was
    compared, accepted and locked; and what strangers may use here may have changed since.

    Raises:
        RejectedMessageError: naming what differs.
        ContractError: the requester may not use an executor or image here.
    """
    bid = ctx.store.find("bids", contract["bid_id"])
    row = ctx.store.find("bid_requests", bid["bid_request_id"]) if bid is not None else None
    if row is None:
        raise ContractError("the bid request of this contract is not here", code="no_bid_here")
    asked = msgspec.convert({k: row[k] for k in BidRequest.__struct_fields__ if k in row}, BidRequest)
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
        if not may_use(ctx, name, contract["requester"]):
            raise ContractError(f"your jobs may not use the {name} executor here", code="not_allowed")


async def create_allocation(ctx: Context, body: Invocation, contract: dict[str, Any]) -> dict[str, Any]:
    """Turn the lock into an allocation, at most one per contract ever (seed 5: `executor.createAllocation`).

    Raises:
        StateError: what was locked is not free any more.
    """
    spec = decode_spec(body.spec)
    needs = required_capability(spec)
    allocation = Allocation(
        id=new_id("allocation"), job_id=contract["job_id"], contract_id=contract["id"],
        requester=contract["requester"], executor=",".join(needs.executors), created_at=units.utc_now(),
    )  # fmt: skip

    def change(t: Transaction) -> dict[str, Any]:
        known = t.find("allocations", contract["id"], "contract_id")
        if known is not None:
            return known
        current = t.find("contracts", contract["id"])
        if current is None or current["result"] is not None:
            raise StateError("the contract was called off", code="called_off")
        ctx.accounting.allocate(t, contract["bid_id"], allocation.id, needs.resources, needs.time.max)
        row: dict[str, Any] = msgspec.to_builtins(allocation)
        t.put("allocations", row)
        signed = {"document": plain(body.contract), "proof": plain(body.proof), "proved_at": units.utc_now()}
        set_contract(t, contract["id"], "proved", spec=body.spec, **signed)
        t.save_event(contract["job_id"], "allocation_created", allocation_id=allocation.id, contract_id=contract["id"])
        return row

    try:
        return await ctx.store.change(change)
    except StateError as error:
        raise NunetError(f"the allocation cannot be made: {error.message}", code="allocation_error") from None
