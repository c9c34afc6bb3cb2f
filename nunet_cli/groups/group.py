"""Jobs with children: each goes through the stages once what it is linked to is done (seed 1: `JobLink`, `Pod`)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from msgspec import structs

from nunet_cli.database.store import Transaction
from nunet_cli.errors import UsageError
from nunet_cli.jobs.check import check_spec, decode_spec
from nunet_cli.jobs.spec import InputSpec, JobLink, JobSpec, encode_spec
from nunet_cli.jobs.tree import Arrangement, place_of
from nunet_cli.orchestrator.changes import change_job, find_job
from nunet_cli.orchestrator.needs import HasStore
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.jobs import JOBS, Job, LinkRule
from nunet_cli.records.results import OutputFile, Result

log = logging.getLogger("nunet.group")

Run = Callable[[str], Awaitable[Job]]
PLACED = frozenset({"contracted", "invoked", "running", "completed", "verified", "settled"})


async def release(ctx: HasStore, job: Job, arranged: Arrangement, name: str) -> None:
    """Give a child what its links bring: the data as inputs, the provider to run at, the constraints on its bids."""
    child = find_job(ctx.store, job.children[name])
    links = arranged.before(name) if arranged.children else []
    if not _is_held(child) or not links:
        return
    spec, push, rules = decode_spec(child.spec), child.push, []
    for source, link in links:
        other = find_job(ctx.store, job.children[source])
        if link.kind == "data":
            spec = _with_data(ctx, spec, link, other, in_pod=spec.pod)
        if link.kind == "colocate":
            contract = ctx.store[CONTRACTS].get(other.contract_id)
            push = (contract.provider,) if contract is not None else push
        if link.constraint:
            rules.append(LinkRule(constraint=link.constraint, bid_id=other.bid_id, from_=link.from_))
    check_spec(spec)
    text = encode_spec(spec)

    def change(t: Transaction) -> None:
        # it may have been called off in the meantime
        if not _is_held(t[JOBS].one(child.id)):
            return
        change_job(
            t, child.id, spec=text.decode(), spec_cid=content_id(text), push=push, link_rules=tuple(rules),
            released=True,
        )  # fmt: skip
        t.save_event(child.id, "job_released", after=sorted({source for source, _ in links}))

    await ctx.store.change(change)


def _is_held(child: Job) -> bool:
    """Say whether a child waits for what its links bring."""
    return child.state == "posted" and not child.released


def _with_data(ctx: HasStore, spec: JobSpec, link: JobLink, source: Job, *, in_pod: bool) -> JobSpec:
    """Return a job with the outputs that a link brings among its inputs."""
    inside = link.from_ != source.name
    prefix = f"{link.from_}/" if inside else ""
    found = {
        name.removeprefix(prefix): output
        for name, output in outputs_of(ctx, source).items()
        if name.startswith(prefix) and link.output in ("", name.removeprefix(prefix))
    }
    if not found:
        raise UsageError(f"{link.from_} has no output {link.output or 'at all'} for {link.to}", code="no_output")
    inputs = tuple(
        InputSpec(
            to=place_of(link, name, output.kind), cid=output.cid, size=output.size,
            kind="file" if output.kind == "file" else "folder",
        )
        for name, output in found.items()
    )  # fmt: skip
    if in_pod:
        members = tuple(
            structs.replace(member, inputs=member.inputs + inputs) if member.name == link.to else member
            for member in spec.children
        )
        return structs.replace(spec, children=members)
    return structs.replace(spec, inputs=spec.inputs + inputs)


def outputs_of(ctx: HasStore, job: Job) -> dict[str, OutputFile]:
    """Return the outputs of a job by name; those of a group's children have the child's name before a slash.

    Of a child that failed it is what is here.
    """
    if job.kind == "member":
        pod = find_job(ctx.store, job.parent)
        prefix = f"{job.name}/"
        return {k.removeprefix(prefix): v for k, v in outputs_of(ctx, pod).items() if k.startswith(prefix)}
    if job.kind == "group":
        found: dict[str, OutputFile] = {}
        for name, child_id in job.children.items():
            child = find_job(ctx.store, child_id)
            # a pod is no level of names of its own
            prefix = "" if child.members else f"{name}/"
            if child.kind == "job" and not child.collected:
                continue
            found |= {f"{prefix}{output}": file for output, file in outputs_of(ctx, child).items()}
        return found
    if job.kind == "replicas":
        replicas = [find_job(ctx.store, child_id) for child_id in job.children.values()]
        agreed = [replica for replica in replicas if replica.state == "settled"]
        return outputs_of(ctx, agreed[0]) if agreed else {}
    return {output.name: output for output in job.result.outputs} if job.result is not None else {}


def earlier_of(ctx: HasStore, job: Job) -> dict[str, list[OutputFile]]:
    """Return what earlier attempts of a group's children left, outputs and logs, by the prefix that `outputs_of` has.

    Of a single job it is its logs alone: its folder may be one in which its user has other files.
    """
    found: dict[str, list[OutputFile]] = {}
    if job.kind != "group":
        return {"": [log for past in job.past for log in _logs(past.result)]} if job.kind == "job" else {}
    for name, child_id in job.children.items():
        child = find_job(ctx.store, child_id)
        if child.kind == "group":
            found |= {f"{name}/{prefix}": files for prefix, files in earlier_of(ctx, child).items()}
            continue
        results = [past.result for past in child.past if past.result is not None]
        # a pod is no level of names of its own, but for its logs
        for prefix, files in (
            ("" if child.members else f"{name}/", [file for result in results for file in result.outputs]),
            (f"{name}/", [log for result in results for log in _logs(result)]),
        ):
            if files:
                found.setdefault(prefix, []).extend(files)
    return found


def _logs(result: Result | None) -> list[OutputFile]:
    """Return the logs of a result that are not empty, as the files that they are written to."""
    if result is None:
        return []
    logs = (("stdout", result.stdout_cid, result.stdout_size), ("stderr", result.stderr_cid, result.stderr_size))
    return [OutputFile(name, cid, size) for name, cid, size in logs if cid and size]


def logs_of(ctx: HasStore, job: Job) -> dict[str, str]:
    """Return the logs of a job that are here and not empty: file name → content id; a folder for each child."""
    if job.kind == "group":
        return {
            f"{name}/{log_name}": cid
            for name, child in job.children.items()
            for log_name, cid in logs_of(ctx, find_job(ctx.store, child)).items()
        }
    return {log.name: log.cid for log in _logs(job.result)} if job.collected else {}
