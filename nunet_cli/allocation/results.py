"""Stage 6, what a provider signs: the result of an allocation, however that ended."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import msgspec

from nunet_cli import quantities
from nunet_cli.allocation.pod import Ended
from nunet_cli.errors import NunetError
from nunet_cli.executor.files import allocation_folder
from nunet_cli.orchestrator.needs import HasBlobs, HasHome, HasStore
from nunet_cli.records.allocations import Allocation
from nunet_cli.records.contract_records import CONTRACTS, ContractRecord
from nunet_cli.records.contracts import Contract
from nunet_cli.records.reading import as_read
from nunet_cli.records.results import Result
from nunet_cli.tokenomics.payment import seconds_between

log = logging.getLogger("nunet.results")


class TakingLogs(HasHome, HasBlobs, Protocol):
    """Keeps what a job has written."""


class Resulting(TakingLogs, HasStore, Protocol):
    """Makes the result of an allocation."""


def held(started_at: str, ended_at: str) -> float:
    """Return for how many seconds a machine was held: what a price per time unit is paid for."""
    return max(0.0, seconds_between(started_at, ended_at)) if started_at else 0.0


def seconds_left(contract: ContractRecord) -> float:
    """Return the seconds until a contract's deadline, never negative."""
    return max(0.0, seconds_between(quantities.utc_now(), contract.deadline))


def cause_of(error: Exception) -> Exception:
    """Return what went wrong first, where tasks that ran together failed."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def said_of(error: Exception) -> str:
    """Return what another node is told of an error: what it was, not where on this machine."""
    cause = cause_of(error)
    return (isinstance(cause, OSError) and cause.strerror) or str(cause)


def broken_result(allocation: Allocation, error: Exception) -> Result:
    """Return the result of an allocation that the provider could not go on with, and why."""
    message = f"the provider could not go on: {said_of(error)}"
    return failed_result(allocation, allocation.started_at, "provider_error", message, fault="provider")


_REASONS = {
    "out_of_memory": "the job used more memory than it asked for",
    "disk_full": "the job wrote more than its disk",
    "too_many_processes": "the job started too many processes",
    "max_duration": "the job ran longer than its max_duration",
    "missing_output": "the job did not write its outputs",
    "unhealthy": "the service failed its health check",
}


async def result_of(ctx: Resulting, allocation: Allocation, ended: Ended) -> Result:
    """Take the logs in as blobs and return the result; shielded, as the job has ended."""
    logs = await _take_logs(ctx, allocation.id)
    exit_, ended_at = ended.exit, ended.at or quantities.utc_now()
    reason, message = exit_.reason, _REASONS.get(exit_.reason, "")
    if not reason and exit_.exit_code != 0:
        reason, message = "exit_code", f"the job exited with {exit_.exit_code}"
    elif not reason and ended.missing:
        reason, message = "missing_output", f"the job did not write {', '.join(ended.missing)}"
    if ended.failed:
        message = f"{ended.failed}: {message}"
    outputs = tuple(ended.outputs)
    if reason and outputs and _is_paid_per_result(ctx, allocation):
        outputs, message = (), f"{message}; its outputs are kept back, as nothing is paid for them"
    (stdout_cid, stdout_size), (stderr_cid, stderr_size) = logs.get("stdout", ("", 0)), logs.get("stderr", ("", 0))
    return Result(
        job_id=allocation.job_id, contract_id=allocation.contract_id, allocation_id=allocation.id,
        state="failed" if reason else "completed", exit_code=exit_.exit_code, started_at=allocation.started_at,
        ended_at=ended_at, usage=exit_.usage, outputs=outputs, stdout_cid=stdout_cid,
        stdout_size=stdout_size, stderr_cid=stderr_cid, stderr_size=stderr_size, reason=reason, message=message[:4000],
        fault="job" if reason else "",
    )  # fmt: skip


async def _take_logs(ctx: TakingLogs, allocation_id: str) -> dict[str, tuple[str, int]]:
    """Take in as content what an allocation has written; return content id and size by the stream's name."""
    folder = allocation_folder(ctx.home, allocation_id)
    written = [file for name in ("stdout", "stderr") if (file := folder / name).exists()]
    return dict(zip((file.name for file in written), await ctx.blobs.add_files(*written), strict=True))


async def with_logs(ctx: TakingLogs, result: Result) -> Result:
    """Return the result of a job that came to no end of its own, with what it wrote until then.

    Where that cannot be kept, as on a full disk, the result is what it was.
    """
    if result.stdout_cid or result.stderr_cid:
        return result
    try:
        logs = await _take_logs(ctx, result.allocation_id)
    except (NunetError, OSError) as error:
        log.warning("what allocation %s wrote cannot be kept: %s", result.allocation_id, error)
        return result
    (stdout_cid, stdout_size), (stderr_cid, stderr_size) = logs.get("stdout", ("", 0)), logs.get("stderr", ("", 0))
    return msgspec.structs.replace(
        result, stdout_cid=stdout_cid, stdout_size=stdout_size, stderr_cid=stderr_cid, stderr_size=stderr_size
    )


def _is_paid_per_result(ctx: HasStore, allocation: Allocation) -> bool:
    """Say whether an allocation's contract pays for a result: then a job that fails by its own doing hands out none."""
    contract = ctx.store[CONTRACTS].get(allocation.contract_id)
    if contract is None:
        # an oracle's second run
        return False
    text = contract.document.read(Contract)
    return text.payment == "escrow" and not text.terms.price.time_unit


def failed_result(
    allocation: Allocation, started_at: str, reason: str, message: str, *, fault: Any, state: Any = "failed"
) -> Result:
    """Return the result of an allocation that came to no end of its own, and whose `fault` that is."""
    return Result(
        job_id=allocation.job_id, contract_id=allocation.contract_id, allocation_id=allocation.id, state=state,
        exit_code=None, started_at=started_at or quantities.utc_now(), ended_at=quantities.utc_now(), reason=reason,
        message=message[:4000], fault=fault,
    )  # fmt: skip


def called_off_result(allocation: Allocation) -> Result:
    """Return the result of an allocation that its requester has called off."""
    return failed_result(
        allocation, allocation.started_at, "cancelled", "called off by the requester", fault="", state="cancelled"
    )


def readable(result: Result) -> Result:
    """Return a result as others can read it: what they cannot would never be paid, nor end the job."""
    try:
        return as_read(result)
    except msgspec.MsgspecError as error:
        log.error("the result of allocation %s cannot be read by anybody: %s", result.allocation_id, error)
        return Result(
            job_id=result.job_id, contract_id=result.contract_id, allocation_id=result.allocation_id, state="failed",
            exit_code=None, started_at=result.started_at, ended_at=result.ended_at, reason="provider_error",
            message=f"the result cannot be written down: {error}"[:4000], fault="provider",
        )  # fmt: skip
