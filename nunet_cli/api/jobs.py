"""Routes for jobs: posting, the stages, following, results."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from nunet_cli import units
from nunet_cli.api import schemas, views
from nunet_cli.api.common import Endpoint, answer, body_of, node_of, number_of, versioned
from nunet_cli.errors import NotFoundError, StateError, UsageError
from nunet_cli.groups.group import logs_of, outputs_of
from nunet_cli.jobs.reader import placed, read_spec, spec_from_object
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.node.node import Node
from nunet_cli.orchestrator.contract import close_contract
from nunet_cli.orchestrator.execute import collect_outputs, read_logs
from nunet_cli.orchestrator.invoke import invoke, send_inputs
from nunet_cli.orchestrator.match import match
from nunet_cli.orchestrator.post import process_job
from nunet_cli.orchestrator.request import request as request_stage
from nunet_cli.orchestrator.settle import settle
from nunet_cli.records.states import JOB_ENDS

Stage = Callable[[Any, str], Awaitable[dict[str, Any]]]
STAGES: dict[str, Stage] = {
    "match": match, "request": request_stage, "contract": close_contract, "invoke": invoke, "settle": settle,
}  # fmt: skip
MAX_WAIT = 10.0
STREAM_SILENCE, PROGRESS_INTERVAL = 15.0, 0.25


class Posting(Struct, forbid_unknown_fields=True):
    """A job to post: the specification as text or as an object, and where its paths start."""

    spec: dict[str, Any] | None = None
    spec_text: Annotated[str, Meta(max_length=300_000)] = ""
    source: Annotated[str, Meta(max_length=4000)] = "job.yaml"
    folder: Annotated[str, Meta(max_length=4000)] = ""
    push: Annotated[str, Meta(max_length=200)] = ""
    pull: bool = False
    topic: Annotated[str, Meta(max_length=200)] = ""
    orchestrate: bool = True


class OutputRequest(Struct, forbid_unknown_fields=True):
    """Where to write the outputs."""

    folder: Annotated[str, Meta(min_length=1, max_length=4000)]


class MatchOptions(Struct, forbid_unknown_fields=True):
    """How long to search, in seconds."""

    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None


async def post_job(request: Request) -> Response:
    """Post a job (seed 1: `POST /orchestrator/postJob`), and orchestrate it at once unless told otherwise."""
    node, body = node_of(request), await body_of(request, Posting)
    if (body.spec is None) == (not body.spec_text):
        raise UsageError("give either `spec` or `spec_text`")
    if body.spec is not None:
        spec = spec_from_object(body.spec, source=body.source)
    else:
        spec = read_spec(body.spec_text, source=body.source)
    folder = Path(body.folder or "/")
    if not folder.is_absolute():
        raise UsageError(f"`folder` must be an absolute path: {body.folder!r}")
    try:
        row = await process_job(
            node.ctx, spec, folder=folder, push=body.push, pull=body.pull, topic=body.topic,
            orchestrate=body.orchestrate,
        )  # fmt: skip
    except UsageError as error:
        if "path" not in error.details:
            raise
        raise placed(error, body.spec_text or json.dumps(body.spec), body.source) from None
    if body.orchestrate:
        node.orchestrate(row["id"])
    return answer(views.job(row), status=201)


async def list_jobs(request: Request) -> Response:
    """Return all jobs, oldest first."""
    rows = node_of(request).ctx.store.table("jobs").all()
    rows.sort(key=lambda row: row["created_at"])
    return answer([views.job(row) for row in rows])


def _job(request: Request) -> tuple[Node, dict[str, Any]]:
    node = node_of(request)
    return node, node.ctx.job(request.path_params["job"])


async def show_job(request: Request) -> Response:
    """Return one job."""
    node, row = _job(request)
    children = [versioned(views.job(node.ctx.job(child))) for child in (*row["units"].values(), *row["members"])]
    return answer({**views.job(row), "children": children, "spec": json.loads(row["spec"])})


async def run_stage(request: Request) -> Response:
    """Take a job through one stage, and return it."""
    node, row = _job(request)
    stage = request.path_params["stage"]
    async with node.ctx.one_at_a_time(row["id"]):
        if stage == "match":
            options = await body_of(request, MatchOptions)
            done = await match(node.ctx, row["id"], timeout=options.timeout)
        elif stage in STAGES:
            done = await STAGES[stage](node.ctx, row["id"])
            if stage == "invoke":
                done = await send_inputs(node.ctx, row["id"])
        else:
            raise NotFoundError(f"no stage {stage!r}")
    return answer(views.job(done))


async def run_job(request: Request) -> Response:
    """Take a job through all stages that are left, in the background."""
    node, row = _job(request)
    if row["state"] in JOB_ENDS and row["state"] != "expired":
        raise StateError(f"job {row['id']} has ended: it is {row['state']}")

    def keep(t: Any) -> None:
        t.put("jobs", {**t.find("jobs", row["id"]), "orchestrate": True})

    await node.ctx.store.change(keep)
    node.orchestrate(row["id"])
    return answer(views.job(row), status=202)


async def cancel_job(request: Request) -> Response:
    """Call a job off."""
    node, row = _job(request)
    return answer(views.job(await node.cancel_job(row["id"])))


async def job_events(request: Request) -> Response:
    """Return a job's events; with `follow=1` as a stream of server-sent events that goes on.

    With `progress=1` the stream also has events of the type `progress`, which are not kept: what takes its time now.
    """
    node, row = _job(request)
    after = number_of(request, "after")
    if request.query_params.get("follow") != "1":
        return answer(_events(node, row["id"], after))
    stream = _stream(node, row["id"], after, progress=request.query_params.get("progress") == "1")
    return StreamingResponse(stream, media_type="text/event-stream")


def _family(node: Node, row: dict[str, Any]) -> dict[str, str]:
    """Return a job and everything below it: id → name, empty for the job itself."""
    found = {row["id"]: ""}
    for child_id in (*row["units"].values(), *row["members"]):
        child = node.ctx.job(child_id)
        below = _family(node, child)
        found |= {key: f"{child['name']}/{name}".rstrip("/") for key, name in below.items()}
    return found


def _events(node: Node, job_id: str, after: int) -> list[dict[str, Any]]:
    """Return the events of a job and of all below it, in order, each with the child's name."""
    family = _family(node, node.ctx.job(job_id))
    events = node.ctx.store.events(job_id, after)
    if len(family) > 1:
        # a job's children are never older than itself
        first = next((event["seq"] for event in node.ctx.store.events(job_id)), 1)
        events = [event for event in node.ctx.store.events(None, max(after, first - 1)) if event["job_id"] in family]
    return [versioned({**event, "child": family[event["job_id"]]}) for event in events]


async def _stream(node: Node, job_id: str, after: int, *, progress: bool) -> AsyncIterator[str]:
    yield ": following\n\n"
    while True:
        changed = node.ctx.store.new_event
        for event in _events(node, job_id, after):
            after = event["seq"]
            yield _sent(event)
        silent_at = trio.current_time() + STREAM_SILENCE
        shown: list[Any] = []
        while not changed.is_set():
            with trio.move_on_after(PROGRESS_INTERVAL if progress else STREAM_SILENCE):
                await changed.wait()
            now = _progress(node, job_id, after) if progress else []
            if now and [event["data"] for event in now] != shown:
                shown = [event["data"] for event in now]
                yield "".join(map(_sent, now))
            elif trio.current_time() >= silent_at:
                silent_at = trio.current_time() + STREAM_SILENCE
                yield ": still here\n\n"


def _sent(event: dict[str, Any]) -> str:
    return f"id: {event['seq']}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"


def _progress(node: Node, job_id: str, after: int) -> list[dict[str, Any]]:
    """Return what takes its time just now in a job and all below it, as events."""
    if not node.ctx.progress:
        return []
    family = _family(node, node.ctx.job(job_id))
    return [
        versioned({
            "seq": after, "at": units.utc_now(), "job_id": key, "type": "progress", "data": msgspec.to_builtins(item),
            "child": family[key],
        })
        for key, item in sorted(node.ctx.progress.items()) if key in family
    ]  # fmt: skip


async def job_logs(request: Request) -> Response:
    """Return a piece of a job's output from `offset` on, base64."""
    node, row = _job(request)
    stream = request.query_params.get("stream", "stdout")
    if stream not in ("stdout", "stderr"):
        raise UsageError(f"no stream {stream!r}", hint="stdout or stderr")
    offset, wait = number_of(request, "offset"), min(MAX_WAIT, number_of(request, "wait"))
    data, ended = await read_logs(node.ctx, row, stream, offset, wait)
    return answer({"data": base64.b64encode(data).decode(), "next_offset": offset + len(data), "ended": ended})


async def job_outputs(request: Request) -> Response:
    """Write a job's outputs and logs into a folder of this machine; return their paths."""
    node, row = _job(request)
    body = await body_of(request, OutputRequest)
    folder = Path(body.folder)
    if not folder.is_absolute():
        raise UsageError(f"`folder` must be an absolute path: {body.folder!r}")
    files = {name: output.cid for name, output in outputs_of(node.ctx, row).items()}
    if row["kind"] in ("job", "replicas"):
        if not row.get("result"):
            raise StateError(f"job {row['id']} is {row['state']}: it has no result yet")
        if row["kind"] == "job":
            row = await collect_outputs(node.ctx, row["id"])
        files |= {name: row["result"][f"{name}_cid"] for name in ("stdout", "stderr") if row["result"][f"{name}_cid"]}
    else:
        files |= logs_of(node.ctx, row)
        if not files and row["state"] not in JOB_ENDS:
            raise StateError(f"job {row['id']} is {row['state']}: it has no outputs yet")
    try:
        for name, cid in files.items():
            await node.ctx.blobs.copy_out(cid, folder / name)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from None
    return answer({"folder": str(folder), "files": [str(folder / name) for name in files]})


async def job_explain(request: Request) -> Response:
    """Say, provider by provider, why a job was taken or not."""
    node, row = _job(request)
    return answer(views.explain(node, row))


async def job_result(request: Request) -> Response:
    """Return a job's result, with the provider's signature."""
    node, row = _job(request)
    if not row.get("result"):
        raise StateError(f"job {row['id']} is {row['state']}: it has no result yet")
    contract = node.ctx.store.find("contracts", row["contract_id"])
    return answer({**row["result"], "document": contract["result"] if contract else None})


async def validate_job(request: Request) -> Response:
    """Check a specification without keeping it."""
    body = await body_of(request, Posting)
    spec = read_spec(body.spec_text, source=body.source)
    return JSONResponse(msgspec.to_builtins(spec))


_STREAM = {"stream": "stdout or stderr", "offset": "byte to begin at", "wait": "seconds to wait for something new"}
_EVENTS = {
    "after": "sequence number", "follow": "1 for a stream of server-sent events that goes on",
    "progress": "1 for events of the type `progress` among them, which are not kept",
}  # fmt: skip

ENDPOINTS = (
    Endpoint("/orchestrator/postJob", post_job, schemas.Job, "POST", Posting, status=201),
    Endpoint("/jobs", list_jobs, list[schemas.Job]),
    Endpoint("/jobs/{job}", show_job, schemas.JobDetail),
    Endpoint("/jobs/{job}/run", run_job, schemas.Job, "POST", status=202),
    Endpoint("/jobs/{job}/cancel", cancel_job, schemas.Job, "POST"),
    Endpoint("/jobs/{job}/outputs", job_outputs, schemas.Outputs, "POST", OutputRequest),
    Endpoint("/jobs/{job}/stages/{stage}", run_stage, schemas.Job, "POST", MatchOptions),
    Endpoint("/jobs/{job}/events", job_events, list[schemas.Event], query=_EVENTS),
    Endpoint("/jobs/{job}/logs", job_logs, schemas.Logs, query=_STREAM),
    Endpoint("/jobs/{job}/explain", job_explain, schemas.Explanation),
    Endpoint("/jobs/{job}/result", job_result, schemas.JobResult),
    Endpoint("/specs/validate", validate_job, JobSpec, "POST", Posting),
)
