"""Following a job: what happened to it and to all below it, and what takes its time just now."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from nunet_cli import quantities
from nunet_cli.api import schemas
from nunet_cli.api.common import Endpoint, answer, flag_of, job_of, number_of, versioned
from nunet_cli.database.store import Store
from nunet_cli.node.node import Node
from nunet_cli.records.events import EVENTS, Event
from nunet_cli.records.jobs import JOB_ENDS, JOBS, Job

STREAM_SILENCE, PROGRESS_INTERVAL = 15.0, 0.25
# what happens within so many seconds is sent together: nobody sees the difference
TOGETHER = 0.1
MOST = 1000


async def job_events(request: Request) -> Response:
    """Return up to 1000 events of a job; with `follow=1` as a stream of server-sent events that goes on.

    With `progress=1` the stream also has events of the type `progress`, which are not kept: what takes its time now.
    """
    node, job = job_of(request)
    after, progress = number_of(request, "after"), flag_of(request, "progress")
    if not flag_of(request, "follow"):
        return answer((await _events(node, Family(node.ctx.store, job), after))[0])
    return StreamingResponse(_stream(node, job, after, progress=progress), media_type="text/event-stream")


class Family:
    """A job and everything below it, as far as it has been asked about.

    Args:
        store: where the jobs are.
        job: the job.
    """

    def __init__(self, store: Store, job: Job) -> None:
        self._store, self.job = store, job
        self._names: dict[str, str | None] = {job.id: "", "": None}
        self.is_alone = job.kind == "job" and not job.members

    def news(self) -> trio.Event:
        """Return the event that is set when more happens; take it before reading."""
        return self._store.news(self.job.id) if self.is_alone else self._store.new_event

    def end(self) -> trio.Event:
        """Return the event that is set when the job comes to its end; take it before reading."""
        return self._store.end(self.job.id)

    def has_ended(self) -> bool:
        """Say whether the job has come to its end."""
        job = self._store[JOBS].get(self.job.id)
        return job is None or job.state in JOB_ENDS

    def name(self, job_id: str) -> str | None:
        """Return the place of a job below this one, empty for itself, None for one that is not below it."""
        if job_id not in self._names:
            found = self._store[JOBS].get(job_id) if not self.is_alone else None
            above = self.name(found.parent) if found is not None else None
            self._names[job_id] = None if found is None or above is None else f"{above}/{found.name}".lstrip("/")
        return self._names[job_id]


async def _events(node: Node, family: Family, after: int) -> tuple[list[dict[str, Any]], int]:
    """Return the next events of a job and of all below it, and after which number it goes on."""
    log, job_id = node.ctx.store[EVENTS], family.job.id
    if family.is_alone:
        rows = log.after(after, MOST, job_id=job_id)
        return [_event(seq, event, "") for seq, event in rows], rows[-1][0] if rows else after
    # a job's children are never older than itself
    first = next((seq for seq, _ in log.after(0, 1, job_id=job_id)), 1)
    found: list[dict[str, Any]] = []
    after = max(after, first - 1)
    while len(found) < MOST and (rows := log.after(after, MOST - len(found))):
        after = rows[-1][0]
        for seq, event in rows:
            child = family.name(event.job_id)
            if child is not None:
                found.append(_event(seq, event, child))
        # others' events may lie between
        await trio.lowlevel.checkpoint()
    return found, after


def _event(seq: int, event: Event, child: str) -> dict[str, Any]:
    return versioned({"seq": seq, **msgspec.to_builtins(event), "child": child})


async def _stream(node: Node, job: Job, after: int, *, progress: bool) -> AsyncIterator[str]:
    yield ": following\n\n"
    family = Family(node.ctx.store, job)
    while True:
        changed = family.news()
        events, after = await _events(node, family, after)
        if events:
            yield "".join(map(_sent, events))
            await _pause(family)
            continue
        silent_at = trio.current_time() + STREAM_SILENCE
        shown: list[Any] = []
        while not changed.is_set():
            with trio.move_on_after(PROGRESS_INTERVAL if progress else STREAM_SILENCE):
                await changed.wait()
            now = _progress(node, family, after) if progress else []
            if now and [event["data"] for event in now] != shown:
                shown = [event["data"] for event in now]
                yield "".join(map(_sent, now))
            elif trio.current_time() >= silent_at:
                silent_at = trio.current_time() + STREAM_SILENCE
                yield ": still here\n\n"


async def _pause(family: Family) -> None:
    """Let more come together, as a busy node's news do by the hundred; what ends a job is not kept waiting."""
    end = family.end()
    if not family.has_ended():
        with trio.move_on_after(TOGETHER):
            await end.wait()


def _sent(event: dict[str, Any]) -> str:
    return f"id: {event['seq']}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"


def _progress(node: Node, family: Family, after: int) -> list[dict[str, Any]]:
    """Return what takes its time just now in a job and all below it, as events."""
    return [
        _event(after, Event(quantities.utc_now(), key, "progress", msgspec.to_builtins(item)), child)
        for key, item in sorted(node.ctx.progress.all().items()) if (child := family.name(key)) is not None
    ]  # fmt: skip


_QUERY = {
    "after": "sequence number of the last one that is known",
    "follow": "1 for a stream of server-sent events that goes on",
    "progress": "1 for events of the type `progress` among them, which are not kept",
}

ENDPOINTS = (Endpoint("/jobs/{job}/events", job_events, list[schemas.Event], query=_QUERY),)
