"""Stage 1, posting: read, validate, add metadata, keep the job and its inputs (seed 1: `processJob`)."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import msgspec

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import UsageError
from nunet_cli.jobs.spec import InputSpec, JobSpec, encode_spec, price_limit
from nunet_cli.network.identity import content_id, did_from_key, key_from_any
from nunet_cli.orchestrator.context import Context

ID_BYTES = 10


def new_id(prefix: str) -> str:
    """Return a new random id such as `job-1f…`; 80 random bits."""
    return f"{prefix}-{secrets.token_hex(ID_BYTES)}"


async def process_job(
    ctx: Context, spec: JobSpec, *, folder: Path, push: str = "", pull: bool = False, orchestrate: bool = False
) -> dict[str, Any]:
    """Keep a new job, with its inputs by content id, and return its row.

    Args:
        ctx: the node's parts.
        spec: the checked specification.
        folder: what the paths of the inputs are relative to.
        push: peer id or DID to ask alone; empty asks the network.
        pull: ask the network even where `default_orchestration_type` is push.
        orchestrate: whether the node takes the job through all stages by itself, also after a restart.

    Raises:
        UsageError: an input is not there, or too large; or the peer is not one.
    """
    target = did_from_key(_target_key(ctx, push)) if push else ""
    if not push and not pull and ctx.config.default_orchestration_type == "push":
        raise UsageError("default_orchestration_type is push", hint="name a provider with --push PEER, or use --pull")
    inputs = []
    for index, item in enumerate(spec.inputs):
        inputs.append(await _take_input(ctx, item, folder, f"inputs[{index}]"))
    spec = msgspec.structs.replace(spec, inputs=tuple(inputs))
    text = encode_spec(spec)
    job_id = new_id("job")
    row = {
        "id": job_id, "name": spec.name, "state": "posted", "requester": ctx.identity.did, "spec": text.decode(),
        "spec_cid": content_id(text), "push": target, "orchestrate": orchestrate, "created_at": units.utc_now(),
        "changed_at": units.utc_now(), "limit": price_limit(spec), "shortlist": [], "place": 0, "attempts": 0,
        "bid_id": "", "contract_id": "", "allocation_id": "", "error": None,
    }  # fmt: skip

    def change(t: Transaction) -> None:
        t.put("jobs", row)
        t.save_event(job_id, "job_posted", name=spec.name)

    await ctx.store.change(change)
    return row


def _target_key(ctx: Context, push: str) -> bytes:
    """Return the key of the peer to push to: a known one by prefix, or any by its whole id."""
    if len(push) >= 50:
        return key_from_any(push)
    return ctx.peers.resolve(push).public_key


async def _take_input(ctx: Context, item: InputSpec, folder: Path, where: str) -> InputSpec:
    if item.cid:
        if not ctx.blobs.has(item.cid):
            raise UsageError(f"{where}: the content {item.cid} is not on this node")
        return msgspec.structs.replace(item, size=ctx.blobs.path(item.cid).stat().st_size)
    path = folder / Path(item.path).expanduser()
    if not path.exists():
        raise UsageError(f"{where}.path: there is no file {path}", details={"path": where})
    if not path.is_file():
        raise UsageError(f"{where}.path: {path} is not a file", hint="pack a folder with: tar -cf inputs.tar FOLDER")
    if path.stat().st_size > ctx.config.limits.input_size:
        raise UsageError(f"{where}.path: {path} is over limits.input_size ({ctx.config.limits.input_size} bytes)")
    try:
        cid, size = await ctx.blobs.add_file(path)
    except OSError as error:
        raise UsageError(f"{where}.path: {path} cannot be read: {error.strerror}") from None
    return InputSpec(to=item.to, cid=cid, size=size)
