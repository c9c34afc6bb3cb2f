"""Stage 1, posting: validate, add metadata, keep the job, its children and its inputs (seed 1: `processJob`)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError, UsageError
from nunet_cli.jobs.check import moment
from nunet_cli.jobs.items import expand_batch, item_values
from nunet_cli.jobs.spec import MAX_SPEC_BYTES, MOST_PUSHED, InputSpec, JobSpec, encode_spec
from nunet_cli.jobs.tree import arrange, is_group, price_limit, programs
from nunet_cli.orchestrator.inputs import check_links, input_source, packing
from nunet_cli.orchestrator.needs import HasBlobs, HasConfig, HasIdentity, HasPeers, HasStore
from nunet_cli.records.identifiers import content_id, did_from_key, key_from_any
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.world import world

ID_BYTES = 10


class TakingIn(HasBlobs, HasConfig, Protocol):
    """Takes the inputs of a job in."""


class Asked(NamedTuple):
    """Who is asked for bids: the providers with these DIDs alone, or the subscribers of a topic; else everybody."""

    push: tuple[str, ...] = ()
    topic: str = ""


class Posting(HasPeers, TakingIn, HasIdentity, HasStore, Protocol):
    """Keeps new jobs."""


def new_id(prefix: str) -> str:
    """Return a new random id such as `job-1f…`; 80 random bits."""
    return f"{prefix}-{world().token(ID_BYTES)}"


async def process_job(
    ctx: Posting, spec: JobSpec, *, folder: Path, push: Sequence[str] = (), pull: bool = False, topic: str = "",
    orchestrate: bool = False,
) -> Job:  # fmt: skip
    """Keep a new job with its children, and its inputs by content id, and return it.

    Args:
        ctx: the node's parts.
        spec: the checked specification.
        folder: what the paths of the inputs are relative to.
        push: peer ids or DIDs, the only ones to ask, instead of those that the specification names; with neither the
            network is asked.
        pull: ask the network even where `default_orchestration_type` is push.
        topic: ask the subscribers of this topic instead of all providers.
        orchestrate: whether the node takes the job through all stages by itself, also after a restart.

    Raises:
        UsageError: an input is not there, or too large; the peer is not one; or a verifier's key is not known.
    """
    _check_verifiers(ctx, spec)
    if pull and (push or spec.push):
        raise UsageError("--pull asks the network, and there are providers to --push to", hint="use one of them")
    targets = _targets(ctx, push or spec.push, "" if push else "push")
    if not targets and not pull and ctx.config.default_orchestration_type == "push":
        raise UsageError("default_orchestration_type is push", hint="name providers with --push PEER, or use --pull")
    if topic and not topic.startswith("/"):
        raise UsageError(f"--topic: {topic!r}", hint="a topic begins with a slash, for example /lab/gpu")
    # a provider need not know whom else is asked
    spec = await _complete(ctx, structs.replace(spec, push=()), folder, "", {})
    first, *below = job_rows(spec, ctx.identity.did, Asked(targets, topic))
    job = structs.replace(first, orchestrate=orchestrate)

    def change(t: Transaction) -> None:
        for row in (job, *below):
            put_job(t, row)

    await ctx.store.change(change)
    return job


async def take_in(ctx: TakingIn, spec: JobSpec, folder: Path) -> JobSpec:
    """Return the specification of a job that is there already with its inputs by content id, as they are now.

    Raises:
        UsageError: an input is not there, or too large; or a verifier's key is not known.
    """
    _check_verifiers(ctx, spec)
    # which provider is asked stays as it is
    return await _complete(ctx, structs.replace(spec, push=()), folder, "", {})


def _check_verifiers(ctx: HasConfig, spec: JobSpec) -> None:
    """Refuse a job that names a verifier whose key nobody configured: anybody could sign in its name."""
    for name in (name for part in programs(spec) for name in part.kycs):
        if name not in ctx.config.kyc.verifiers:
            key = shlex.quote(f"kyc.verifiers.{name}")
            raise UsageError(
                f"this node does not know the key of {name}, which must have verified the provider",
                code="no_verifier", details={"path": "kycs"},
                hint=f"ask {name} for its DID, and say whom you trust: nunet config set {key} DID",
            )  # fmt: skip


def put_job(t: Transaction, job: Job) -> None:
    """Keep a new job, with its event."""
    t[JOBS].put(job)
    event = {"name": job.name, "kind": job.kind} | ({"parent": job.parent} if job.parent else {})
    t.save_event(job.id, "job_posted", **event)


# what a job's inputs have come to so far: several children may name the same large folder
_Taken = dict[tuple[Path, tuple[str, ...]], tuple[str, int]]


async def _complete(ctx: TakingIn, spec: JobSpec, folder: Path, where: str, taken: _Taken) -> JobSpec:
    """Return a specification with its inputs by content id and its times as times, children too.

    A batch has its items as children then, and its own inputs are as they were written.
    """
    is_batch = spec.batch is not None
    # there may be thousands
    await trio.lowlevel.checkpoint()
    children = []
    for index, child in enumerate(expand_batch(spec) if is_batch else spec.children):
        if is_batch:
            check_links(spec, index, folder, where)
        children.append(await _complete(ctx, child, folder, f"{where}children[{index}].", taken))
    inputs = [
        item if is_batch else await _take_input(ctx, item, folder, f"{where}inputs[{index}]", taken)
        for index, item in enumerate(spec.inputs)
    ]
    now = quantities.now()
    time = structs.replace(spec.time, start=moment(spec.time.start, now), deadline=moment(spec.time.deadline, now))
    return structs.replace(spec, children=tuple(children), inputs=tuple(inputs), time=time)


def job_rows(spec: JobSpec, requester: str, asked: Asked, *, parent: str = "", kind: str = "") -> list[Job]:
    """Return the records of a job and of everything below it, the job's own first.

    Args:
        spec: the job, complete.
        requester: whose job it is.
        asked: who is asked for bids, for all of them.
        parent: the id of the group that it belongs to.
        kind: `member` for a job inside a pod, whose state is the pod's; empty for what the specification says.
    """
    text = encode_spec(_without_items(spec))
    if len(text) > MAX_SPEC_BYTES:
        raise UsageError(f"{spec.name}: with what was filled in, its specification has over {MAX_SPEC_BYTES} bytes")
    job_id, now, kind = new_id("job"), quantities.utc_now(), kind or kind_of(spec)
    below: list[Job] = []
    names: dict[str, str] = {}
    members: list[str] = []
    if kind == "group":
        for index, (name, child) in enumerate(group_children(spec).items()):
            rows = job_rows(child, requester, asked, parent=job_id)
            if spec.batch is not None:
                rows[0] = structs.replace(rows[0], item=item_values(spec, index))
            names[name] = rows[0].id
            below += rows
    elif kind == "replicas":
        for index in range(spec.verify.n):
            first, *rest = job_rows(spec, requester, asked, parent=job_id, kind="job")
            replica = structs.replace(first, name=f"{spec.name}-r{index}")
            names[replica.name] = replica.id
            below += [replica, *rest]
    elif spec.pod and kind != "member":
        for member in spec.children:
            (row,) = job_rows(member, requester, asked, parent=job_id, kind="member")
            members.append(row.id)
            below.append(row)
    job = Job(
        id=job_id, name=spec.name, requester=requester, spec=text.decode(), spec_cid=content_id(text), created_at=now,
        changed_at=now, kind=kind, parent=parent, children=names, members=tuple(members), push=asked.push,
        topic=asked.topic, limit=price_limit(spec),
    )  # fmt: skip
    return [job, *below]


def _without_items(spec: JobSpec) -> JobSpec:
    """Return a specification as it is kept with a group: what its batches have as items are jobs of their own."""
    if spec.batch is not None:
        # without the items' values their names would all be the same
        batch = structs.replace(spec.batch, items=(), name="", read_from="") if spec.batch.items else spec.batch
        return structs.replace(spec, children=(), batch=batch)
    if not spec.children:
        return spec
    return structs.replace(spec, children=tuple(map(_without_items, spec.children)))


def kind_of(spec: JobSpec) -> str:
    """Return how a job is orchestrated: as a `job`, a `group` of jobs, or `replicas` of one job."""
    if is_group(spec):
        return "group"
    return "replicas" if spec.verify.policy == "replicate" else "job"


def group_children(spec: JobSpec) -> dict[str, JobSpec]:
    """Return what a group is orchestrated as; a recurring job has none until its first time comes."""
    if spec.type == "recurring":
        return {}
    if spec.type == "batch":
        return {child.name: child for child in spec.children}
    return arrange(spec).children


def _targets(ctx: HasPeers, names: Sequence[str], path: str) -> tuple[str, ...]:
    """Return the DIDs of the peers to push to, each once; `path` is the field of the specification that names them."""
    if len(names) > MOST_PUSHED:
        raise UsageError(f"a job may be pushed to {MOST_PUSHED} providers, not {len(names)}", details={"path": path})
    try:
        return tuple(dict.fromkeys(did_from_key(_target_key(ctx, name)) for name in names))
    except NunetError as error:
        if path:
            raise UsageError(error.message, hint=error.hint, details={"path": path}) from None
        raise


def _target_key(ctx: HasPeers, push: str) -> bytes:
    """Return the key of a peer to push to: a known one by prefix, or any by its whole id."""
    if len(push) >= 50:
        return key_from_any(push)
    return ctx.peers.resolve(push).public_key


async def _take_input(ctx: TakingIn, item: InputSpec, folder: Path, where: str, taken: _Taken) -> InputSpec:
    details = {"path": f"{where}.path"}
    if item.cid:
        if not ctx.blobs.use(item.cid):
            raise UsageError(f"the content {item.cid} is not on this node", details={"path": f"{where}.cid"})
        return msgspec.structs.replace(item, size=ctx.blobs.path(item.cid).stat().st_size)
    source, most = input_source(item, folder, where), ctx.config.limits.input_size
    path = source.path
    if source.kind == "file" and path.stat().st_size > most:
        raise UsageError(f"{path} is over limits.input_size ({most} bytes)", details=details)
    try:
        if (path, source.glob) not in taken:
            adding = ctx.blobs.add_file(path) if source.kind == "file" else ctx.blobs.add_made(packing(source, most))
            taken[path, source.glob] = await adding
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", details=details) from None
    cid, size = taken[path, source.glob]
    return InputSpec(to=item.to, cid=cid, size=size, kind=source.kind)
