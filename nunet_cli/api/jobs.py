"""Routes for jobs: posting, the stages, output, results."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nunet_cli.api import schemas, views
from nunet_cli.api.common import (
    PAGING,
    STATE,
    Endpoint,
    answer,
    body_of,
    in_states,
    job_of,
    listed,
    node_of,
    number_of,
    versioned,
)
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NotFoundError, StateError, UsageError
from nunet_cli.groups.group import earlier_of, logs_of, outputs_of
from nunet_cli.groups.mended import mend
from nunet_cli.jobs.items import MAX_ITEMS, Row, values_of
from nunet_cli.jobs.reader import no_items, placed, read_spec, spec_from_object
from nunet_cli.jobs.spec import MOST_PUSHED, JobSpec, PeerName
from nunet_cli.orchestrator.changes import change_job
from nunet_cli.orchestrator.contract import close_contract
from nunet_cli.orchestrator.invoke import invoke, send_inputs
from nunet_cli.orchestrator.match import match
from nunet_cli.orchestrator.outputs import collect_outputs, read_logs, take_away_earlier, write_outputs
from nunet_cli.orchestrator.post import process_job
from nunet_cli.orchestrator.request import request as request_stage
from nunet_cli.orchestrator.settle import settle
from nunet_cli.records.bids import BIDS
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.jobs import GROUP, JOB, JOB_ENDS, JOBS, Job
from nunet_cli.records.limits import Limits
from nunet_cli.records.results import Result

Stage = Callable[[Any, str], Awaitable[Job]]
STAGES: dict[str, Stage] = {
    "contract": close_contract, "invoke": invoke, "settle": settle,
}  # fmt: skip
MAX_WAIT = 10.0
# with the items of its batches
MAX_POSTING = 16 * 2**20
RUN_AGAIN = "run it again: nunet job retry {}"


class Written(Struct, forbid_unknown_fields=True):
    """A specification as text or as an object, and where its paths start.

    `items` has the items of batches that the specification names as a file or a pattern: by that name, the values of
    each.
    """

    spec: dict[str, Any] | None = None
    spec_text: Annotated[str, Limits(max_length=300_000)] = ""
    source: Annotated[str, Limits(max_length=4000)] = "job.yaml"
    folder: Annotated[str, Limits(max_length=4000)] = ""
    items: dict[str, Annotated[tuple[dict[str, str], ...], Limits(max_length=MAX_ITEMS)]] = {}

    def load(self, name: str) -> list[Row]:
        """Return the items that the posting has for a name.

        Raises:
            UsageError: it has none.
        """
        if name not in self.items:
            return no_items(name)
        return [Row(values_of(values, f"item {number}")) for number, values in enumerate(self.items[name])]

    def read(self) -> tuple[JobSpec, Path]:
        """Return the specification, and its folder.

        Raises:
            UsageError: there is none, it is wrong, or the folder is no absolute path.
        """
        if (self.spec is None) == (not self.spec_text):
            raise UsageError("give either `spec` or `spec_text`")
        if self.spec is not None:
            spec = spec_from_object(self.spec, source=self.source, load=self.load)
        else:
            spec = read_spec(self.spec_text, source=self.source, load=self.load)
        folder = Path(self.folder or "/")
        if not folder.is_absolute():
            raise UsageError(f"`folder` must be an absolute path: {self.folder!r}")
        return spec, folder


class Posting(Written):
    """A job to post; `push` names the only providers to ask, instead of those of the specification."""

    push: Annotated[tuple[PeerName, ...], Limits(max_length=MOST_PUSHED)] = ()
    pull: bool = False
    topic: Annotated[str, Limits(max_length=200)] = ""
    orchestrate: bool = True


class OutputRequest(Struct, forbid_unknown_fields=True):
    """Where to write the outputs."""

    folder: Annotated[str, Limits(min_length=1, max_length=4000)]


class StageOptions(Struct, forbid_unknown_fields=True):
    """For the stage `match`, how long to search, in seconds; for `request`, the bid to take instead of the best one."""

    timeout: Annotated[float, Limits(gt=0, le=86400)] | None = None
    bid: Annotated[str, Limits(max_length=120)] = ""


async def post_job(request: Request) -> Response:
    """Post a job (seed 1: `POST /orchestrator/postJob`), and orchestrate it at once unless told otherwise."""
    node, body = node_of(request), await body_of(request, Posting, MAX_POSTING)
    spec, folder = body.read()
    try:
        job = await process_job(
            node.ctx, spec, folder=folder, push=body.push, pull=body.pull, topic=body.topic,
            orchestrate=body.orchestrate,
        )  # fmt: skip
    except UsageError as error:
        if "path" not in error.details:
            raise
        raise placed(error, body.spec_text or json.dumps(body.spec), body.source, body.load) from None
    if body.orchestrate:
        node.orchestrate(job.id)
    return answer(views.job(job), status=201)


async def list_jobs(request: Request) -> Response:
    """Return jobs in the order in which they were posted, each with its place in groups (`path`)."""
    jobs = node_of(request).ctx.store[JOBS]
    parent = request.query_params.get("parent")
    where = {} if parent is None else {"parent": parent and node_of(request).get_job(parent).id}
    names: dict[str, str] = {"": ""}

    def path(job: Job) -> str:
        if job.parent not in names:
            above = jobs.get(job.parent)
            names[job.parent] = f"{path(above)}/" if above is not None else ""
        return names[job.parent] + job.name

    return listed(
        request, jobs, lambda job: {**views.job(job), "path": path(job)}, **in_states(request, JOB, GROUP), **where
    )


async def show_job(request: Request) -> Response:
    """Return one job."""
    node, job = job_of(request)
    children = [versioned(views.job(node.get_job(child))) for child in below(job)]
    past = [views.attempt(node, item) for item in job.past]
    summary = views.children_summary(node, job)
    return answer({
        **views.job(job), "children": children, "counts": summary["counts"] if summary is not None else None,
        "failures": views.failures(node, job), "past": past, "spec": json.loads(job.spec),
    })  # fmt: skip


def below(job: Job) -> tuple[str, ...]:
    """Return the ids of the jobs right below one."""
    return (*job.children.values(), *job.members)


async def run_stage(request: Request) -> Response:
    """Take a job through one stage, and return it."""
    node, job = job_of(request)
    stage = request.path_params["stage"]
    async with node.ctx.job_locks.hold(job.id):
        options = await body_of(request, StageOptions)
        for name, of in (("timeout", "match"), ("bid", "request")):
            if getattr(options, name) and stage != of:
                raise UsageError(f"`{name}` belongs to the stage {of}, not to {stage}")
        if stage == "match":
            done = await match(node.ctx, job.id, timeout=options.timeout)
        elif stage == "request":
            chosen = node.ctx.store[BIDS].resolve(options.bid, what="bid") if options.bid else None
            done = await request_stage(node.ctx, job.id, chosen=chosen)
        elif stage in STAGES:
            done = await STAGES[stage](node.ctx, job.id)
            if stage == "invoke":
                done = await send_inputs(node.ctx, job.id)
        else:
            raise NotFoundError(f"no stage {stage!r}")
    return answer(views.job(done))


async def run_job(request: Request) -> Response:
    """Take a job through all stages that are left, in the background."""
    node, job = job_of(request)

    def keep(t: Transaction) -> Job:
        now = t[JOBS].one(job.id)
        if now.state in JOB_ENDS and now.state != "expired":
            raise StateError(
                f"job {now.id} has ended: it is {now.state}", hint=f"run it again: nunet job retry {now.id}"
            )
        if now.state == "expired" and now.parent:
            raise StateError(
                f"job {now.id} is expired, and its group goes on without it",
                hint=RUN_AGAIN.format(now.id),
            )
        return now if now.orchestrate else change_job(t, now.id, orchestrate=True)

    job = await node.ctx.store.change(keep)
    node.orchestrate(job.id)
    return answer(views.job(job), status=202)


async def retry_job(request: Request) -> Response:
    """Run a job again that did not end well, or what failed in a group, as a new attempt, in the background.

    With a specification, as that has it now.
    """
    (node, job), body = job_of(request), await body_of(request, Written, MAX_POSTING)
    mended = None
    if body.spec is not None or body.spec_text:
        spec, folder = body.read()
        mended = await mend(node.ctx, job.id, spec, folder)
    done = await node.retry_job(job.id, mended)
    return answer({**views.job(done.job), "again": done.runs}, status=202)


async def cancel_job(request: Request) -> Response:
    """Call a job off."""
    node, job = job_of(request)
    return answer(views.job(await node.cancel_job(job.id)))


async def job_logs(request: Request) -> Response:
    """Return a piece of a job's output from `offset` on, base64."""
    node, job = job_of(request)
    stream = request.query_params.get("stream", "stdout")
    if stream not in ("stdout", "stderr"):
        raise UsageError(f"no stream {stream!r}", hint="stdout or stderr")
    offset, wait = number_of(request, "offset"), min(MAX_WAIT, number_of(request, "wait"))
    data, ended = await read_logs(node.ctx, job, stream, offset, wait, attempt=number_of(request, "attempt"))
    return answer({"data": base64.b64encode(data).decode(), "next_offset": offset + len(data), "ended": ended})


async def job_outputs(request: Request) -> Response:
    """Write a job's outputs and logs into a folder of this machine; return their paths."""
    node, job = job_of(request)
    body = await body_of(request, OutputRequest)
    folder = Path(body.folder)
    if not folder.is_absolute():
        raise UsageError(f"`folder` must be an absolute path: {body.folder!r}")
    outputs = outputs_of(node.ctx, job)
    if job.kind in ("job", "replicas"):
        result = _result(job)
        if job.kind == "job":
            job = await collect_outputs(node.ctx, job.id)
            result = _result(job)
        logs = {name: cid for name, cid in (("stdout", result.stdout_cid), ("stderr", result.stderr_cid)) if cid}
    else:
        # those of its children that are here: one that failed has perhaps left nothing
        outputs = {name: output for name, output in outputs.items() if node.ctx.blobs.has(output.cid)}
        logs = logs_of(node.ctx, job)
        if not outputs and not logs and job.state not in JOB_ENDS:
            raise StateError(f"job {job.id} is {job.state}: it has no outputs yet")
    try:
        await take_away_earlier(node.ctx, earlier_of(node.ctx, job), folder)
        files = await write_outputs(node.ctx, outputs, logs, folder)
    except OSError as error:
        raise UsageError(
            f"cannot write to {error.filename2 or error.filename or folder}: {error.strerror}",
            hint=f"the outputs are kept; to write them elsewhere: nunet job result {job.id} --output-dir FOLDER",
        ) from None
    return answer({"folder": str(folder), "files": files})


def _result(job: Job) -> Result:
    if job.result is None:
        raise StateError(f"job {job.id} is {job.state}: it has no result yet")
    return job.result


async def job_explain(request: Request) -> Response:
    """Say, provider by provider, why a job was taken or not."""
    node, job = job_of(request)
    return answer(views.explain(node, job))


async def job_result(request: Request) -> Response:
    """Return a job's result, with the provider's signature."""
    node, job = job_of(request)
    result, contract = _result(job), node.ctx.store[CONTRACTS].get(job.contract_id)
    document = msgspec.to_builtins(contract.result) if contract is not None else None
    return answer({**msgspec.to_builtins(result), "document": document})


async def validate_job(request: Request) -> Response:
    """Check a specification without keeping it."""
    body = await body_of(request, Posting, MAX_POSTING)
    spec = read_spec(body.spec_text, source=body.source, load=body.load)
    return JSONResponse(msgspec.to_builtins(spec))


_STREAM = {"stream": "stdout or stderr", "offset": "byte to begin at", "wait": "seconds to wait for something new",
           "attempt": "of an earlier attempt, by its number"}  # fmt: skip

ENDPOINTS = (
    Endpoint("/orchestrator/postJob", post_job, schemas.Job, "POST", Posting, status=201),
    Endpoint("/jobs", list_jobs, list[schemas.Job], query={
        **PAGING, **STATE, "parent": "right below this group; empty for those that are below none",
    }),
    Endpoint("/jobs/{job}", show_job, schemas.JobDetail),
    Endpoint("/jobs/{job}/run", run_job, schemas.Job, "POST", status=202),
    Endpoint("/jobs/{job}/retry", retry_job, schemas.JobAgain, "POST", Written, status=202),
    Endpoint("/jobs/{job}/cancel", cancel_job, schemas.Job, "POST"),
    Endpoint("/jobs/{job}/outputs", job_outputs, schemas.Outputs, "POST", OutputRequest),
    Endpoint("/jobs/{job}/stages/{stage}", run_stage, schemas.Job, "POST", StageOptions),
    Endpoint("/jobs/{job}/logs", job_logs, schemas.Logs, query=_STREAM),
    Endpoint("/jobs/{job}/explain", job_explain, schemas.Explanation),
    Endpoint("/jobs/{job}/result", job_result, schemas.JobResult),
    Endpoint("/specs/validate", validate_job, JobSpec, "POST", Posting),
)  # fmt: skip
