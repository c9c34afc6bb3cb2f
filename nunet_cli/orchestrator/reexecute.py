"""Running a job again on the oracle's own machine, to compare (policy `reexecute`)."""

from __future__ import annotations

from typing import Any

import trio
from msgspec import structs

from nunet_cli import units
from nunet_cli.errors import ContractError, PeerError
from nunet_cli.executor.files import remove_folder
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.job import Result
from nunet_cli.orchestrator.allocation import make_parts, result_of
from nunet_cli.orchestrator.context import Context
from nunet_cli.orchestrator.part import Part, prepare, start
from nunet_cli.orchestrator.pod import run_pod, run_single
from nunet_cli.orchestrator.post import new_id
from nunet_cli.tokenomics.contract import Contract, JobVerification


async def reexecute(ctx: Context, request: JobVerification, sender: str) -> Result:
    """Run the job of a verification here and return its result, unsigned.

    Args:
        ctx: the node's parts.
        request: the documents, checked already.
        sender: who asked; it has the inputs, or the other party does.

    Raises:
        ContractError: this machine cannot run the job.
        PeerError: nobody gives the inputs.
    """
    contract = request.contract.read(Contract)
    spec = decode_spec(request.spec)
    kinds = {part.executor.type for part in (spec.children or (spec,)) if part.executor is not None}
    missing = kinds - set(ctx.available_executors)
    if missing:
        raise ContractError(f"the oracle has no {', '.join(sorted(missing))} executor", code="no_executor")
    row: dict[str, Any] = {
        "id": new_id("reexecution"), "job_id": contract.job_id, "contract_id": request.contract.cid,
        "requester": sender, "started_at": "", "handles": {},
    }  # fmt: skip
    for item in (item for part in (spec.children or (spec,)) for item in part.inputs):
        await _fetch(ctx, (sender, contract.requester, contract.provider), item.cid, item.size)
    parts = make_parts(ctx, row, spec)

    async def started(part: Part) -> None:
        row["started_at"] = row["started_at"] or part.started_at

    try:
        if spec.pod:
            ended = await run_pod(ctx, spec, parts, started)
        else:
            await prepare(ctx, parts[0], {})
            await start(parts[0])
            await started(parts[0])
            ended = await run_single(ctx, parts[0], started)
        result = await result_of(ctx, {**row, "started_at": row["started_at"] or units.utc_now()}, ended)
        return structs.replace(result, allocation_id="")
    finally:
        with trio.move_on_after(10) as patience:
            patience.shield = True
            for part in parts:
                if part.handle:
                    await part.executor.stop(part.task, part.handle)
                    await part.executor.cleanup(part.task, part.handle)
            await ctx.blocking(remove_folder, ctx.home / "allocations" / row["id"])


async def _fetch(ctx: Context, parties: tuple[str, ...], cid: str, size: int) -> None:
    problem: PeerError | None = None
    for did in dict.fromkeys(parties):
        try:
            await ctx.blobs.fetch(did, cid, size, patience=ctx.config.limits.answer_timeout)
        except PeerError as error:
            problem = error
        else:
            return
    assert problem is not None
    raise problem
