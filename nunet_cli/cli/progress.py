"""Following a job through its stages: one line per event, a live view on a terminal, the error at the end."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nunet_cli.api.client import ApiClient
from nunet_cli.cli.counted import MANY, Counted
from nunet_cli.cli.job_logs import begins, pieces
from nunet_cli.cli.output import declines, note, short
from nunet_cli.errors import DeclinedError, NodeError, NunetError
from nunet_cli.quantities import format_size

if TYPE_CHECKING:
    from nunet_cli.cli.live import LiveView

ENDS = {"job_settled", "job_failed", "job_cancelled", "job_expired", "job_disputed", "job_resolved", "job_stuck"}
WAITING = {
    "job_posted": "looking for providers", "job_matching": "waiting for bids", "job_matched": "asking for a lock",
    "job_requested": "closing the contract", "job_contracted": "sending the invocation",
    "job_invoked": "the provider makes the allocation", "job_running": "the job runs",
    "job_completed": "fetching the outputs", "outputs_received": "the oracle verifies", "job_verified": "settling",
}  # fmt: skip
_COUNTED = re.compile(r"\d+ of \d+ failed: ")
RECONNECTS = 5
TIMED_OUT = "timed_out"
LAST_LINES = 2.0


class Follower:
    """A context that prints a job's events until its end: lines, or on a terminal a live view with the job's output.

    What happened before the `attempt` that it follows is left out. Of a batch, and of a group with many children, it is
    counted how far it is, and told which ones failed.
    """

    def __init__(
        self, client: ApiClient, job_id: str, *, attempt: int = 1, quiet: bool = False, show_logs: bool = True
    ) -> None:
        self._client, self._job_id, self._quiet, self._show_logs = client, job_id, quiet, show_logs
        self._attempt, self._begun = attempt, attempt == 1
        self._view: LiveView | None = None
        self._reader: threading.Thread | None = None
        self._counted: Counted | None = None

    def __enter__(self) -> Follower:
        if sys.stderr.isatty() and not self._quiet:
            from nunet_cli.cli.live import LiveView

            self._view = LiveView().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is not None and kind is None:
            # what the job wrote last is still on its way
            self._reader.join(LAST_LINES)
        if self._view is not None:
            self._view.__exit__(kind, value, trace)

    def follow(self, after: int = 0, *, until: float | None = None) -> dict[str, Any]:
        """Print events from a sequence number on, and return the last one: the job's end.

        Args:
            after: the sequence number.
            until: the `time.monotonic()` at which to give up.

        Raises:
            NodeError: the node has gone.
            DeclinedError: it takes longer.
        """
        failures = 0
        row = self._client.get(f"/jobs/{self._job_id}")
        if row["kind"] == "group" and (len(row["children"]) >= MANY or row["spec"]["type"] == "batch"):
            self._counted = Counted(self._client, row, steps=self._view is None)
        while True:
            try:
                stream = self._client.events(
                    f"/jobs/{self._job_id}/events", silence=_left(until), follow=1, after=after,
                    progress=int(self._view is not None),
                )  # fmt: skip
                for event in stream:
                    failures, after = 0, event["seq"]
                    self._begun = self._begun or begins(event, self._attempt)
                    if not self._begun:
                        continue
                    self._show(event)
                    if event["type"] in ENDS and not event.get("child"):
                        return event
                    _left(until)
            except NodeError:
                _left(until)
                failures += 1
                if failures >= RECONNECTS:
                    raise
            time.sleep(0.2)

    def _show(self, event: dict[str, Any]) -> None:
        kind, child = event["type"], event.get("child", "")
        line = describe(event)
        if self._counted is not None:
            self._count(self._counted, event, line)
            return
        text = f"{line[0]:<9} {f'{child}: ' if child else ''}{line[1]}" if line else ""
        if self._view is None:
            if line and not self._quiet:
                note(text)
            return
        key = event["job_id"]
        if kind == "progress":
            data = event["data"]
            self._view.transfer(key, f"{child} {data['what']}".strip(), data["done"], data["total"])
            return
        if kind in ("bid_received", "bid_declined", "bid_silent"):
            self._view.answer(key, event)
            return
        if kind in ("job_running", "outputs_received", "job_completed", "job_failed", "job_cancelled"):
            self._view.transferred(key)
        if kind == "job_matching":
            self._view.search(key)
        elif kind in ("job_matched", "job_expired", "job_waiting", "job_cancelled"):
            self._view.matched(key)
        if line:
            self._view.line(text)
        if kind in WAITING:
            self._view.waits_for(WAITING[kind])
        if kind == "job_running" and not child and event["data"].get("allocation_id") and self._show_logs:
            self._reader = threading.Thread(target=self._print_output, daemon=True)
            self._reader.start()

    def _count(self, counted: Counted, event: dict[str, Any], line: tuple[str, str] | None) -> None:
        if event["type"] == "progress" or (self._quiet and self._view is None):
            return
        lines = counted.tell(event, line)
        if self._view is not None:
            # first, so that it is not behind the lines above it
            done, lost, total = counted.counts
            self._view.count(done + lost, total, counted.text())
        for stage, text in lines:
            if self._view is None:
                note(f"{stage:<9} {text}")
            else:
                self._view.line(f"{stage:<9} {text}")

    def _print_output(self) -> None:
        """Print what the job writes, line by line, as it comes; what goes wrong with it is told by the events."""
        assert self._view is not None
        rest = b""
        with contextlib.suppress(NunetError):
            for data in pieces(self._client, self._job_id, "stdout", follow=True):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._view.line(f"        | {line.decode(errors='replace')}", "dim")
        if rest:
            self._view.line(f"        | {rest.decode(errors='replace')}", "dim")


def _left(until: float | None) -> float | None:
    """Return the seconds that are left.

    Raises:
        DeclinedError: there are none.
    """
    if until is None:
        return None
    left = until - time.monotonic()
    if left <= 0:
        raise DeclinedError("the job has not ended in the time that --timeout gives it", code=TIMED_OUT)
    return left


def describe(event: dict[str, Any]) -> tuple[str, str] | None:
    """Return stage and text for an event that a person wants to see, or None."""
    data, kind = event["data"], event["type"]
    if "pod" in data or (kind == "job_running" and not data.get("allocation_id")):
        # the pod, or the group's children, tell the same
        return None
    if kind == "job_posted":
        again = f", attempt {data['attempt']}" if "attempt" in data else ""
        return "post", f"{data.get('name', '')} is {event['job_id']}{again}"
    if kind == "job_retried":
        return "post", f"{data['count']} run again"
    if kind == "job_matching":
        if "retry" not in data:
            return "match", f"again: {data['message']}" if "message" in data else "asking for bids"
        return (
            "match",
            f"again (attempt {data.get('attempt', data['retry'] + 1)}): {data.get('message') or data['reason']}",
        )
    if kind == "bid_received":
        return "match", f"bid of {data['price']} NTX from {short(data['bidder'])}"
    if kind == "bid_declined":
        return "match", f"{short(data['bidder'])} {declines(data)}"
    if kind == "bid_silent":
        return "match", f"{short(data['bidder'])} does not answer"
    if kind == "invocation_unanswered":
        return "invoke", f"{data['message']}; trying again until {data['until'][11:19]} UTC"
    if kind == "provider_unanswered":
        return "contract", f"the provider has trouble just now, and is asked again: {data['message']}"
    if kind == "contract_database_unanswered":
        return "contract", f"{data['message']}; trying again until {data['until'][11:19]} UTC"
    if kind == "settlement_waits":
        return "settle", f"{data['message']}; trying again until {data['until'][11:19]} UTC"
    if kind == "late_result":
        return "execute", "an earlier attempt had finished out of reach: its outputs are here, and it is paid"
    if kind == "job_waiting":
        return "match", f"waiting: {data['reason']}; next try at {data['next_try'][11:19]} UTC"
    if kind == "provider_silent":
        since, until = data["since"][11:16], data["until"][11:16]
        who = f"its provider {short(data['peer'])} is silent since {since} UTC"
        return "execute", f"{who}; its result is waited for until {until} UTC"
    if kind == "provider_heard":
        return "execute", f"its provider {short(data['peer'])} is heard again"
    if kind == "job_scheduled":
        return "post", f"runs next at {data['next_run'][:19]}"
    if kind == "job_released" and data["after"]:
        return "post", f"goes on after {', '.join(data['after'])}"
    if kind in ("job_settled", "job_failed") and ("children" in data or "child" in data or "replicas" in data):
        return "settle", _group_end(kind, data)
    if kind == "job_disputed":
        return "settle", f"disputed: {data.get('message') or data.get('reason', '')}"
    if kind == "job_matched":
        return "match", _matched(data)
    if kind == "bid_chosen":
        return "request", f"the bid of {short(data['bidder'])} was chosen"
    if kind == "job_request_declined":
        return "request", f"{short(data.get('bidder'))} declines: {data['reason']}"
    if kind == "job_requested":
        if "locked_until" not in data:
            # an item of a batch, which goes on under the bid that was made for all
            return "request", f"goes to {short(data['bidder'])} under the bid for all items"
        return "request", f"{short(data['bidder'])} locked the resources until {data['locked_until'][11:19]}"
    if kind == "role_taken":
        setting = f"nunet config set {data['role'].replace('-', '_')} DID"
        return "contract", f"{data['did']} is this node's {data['role']} from now on; to use another: {setting}"
    if kind == "job_contracted":
        return "contract", f"{data['contract_id'][-12:]} signed by both and proved; deposit {data['deposit']} NTX"
    if kind == "job_invoked":
        return "invoke", f"{data['allocation_id']}"
    if kind == "job_remark":
        return "execute", f"the provider remarks: {data['text']}"
    if kind == "job_running":
        return "execute", "running"
    if kind == "job_completed":
        usage = data["usage"]
        outcome = "completed" if not data["reason"] else f"ended: {data['message'] or data['reason']}"
        return "execute", f"{outcome} ({usage['wall_seconds']:.1f} s, {usage['cpu_seconds']:.1f} s of processor)"
    if kind == "outputs_received":
        files = "1 output file" if data["count"] == 1 else f"{data['count']} output files"
        return "execute", f"{files} fetched and checked ({format_size(data['bytes'])} with the logs)"
    if kind == "job_verified":
        return "settle", f"verified by the oracle ({data.get('checks', 'all')} checks)"
    if kind in ("job_settled", "job_cancelled", "job_failed") and "paid" in data:
        back = f", {data['refunded']} NTX returned" if data.get("refunded", "0") != "0" else ""
        said = f"; {data['message']}" if kind == "job_settled" and data.get("message") else ""
        return "settle", f"{kind.removeprefix('job_')}: {data['paid']} NTX paid{back}{said}"
    if kind == "job_cancelled":
        return "cancel", data.get("note") or "cancelled"
    return None


def _group_end(kind: str, data: dict[str, Any]) -> str:
    if kind == "job_failed":
        # an earlier version did not say it with the child's name
        child = f"{data['child']}: " if "child" in data and not data["message"].startswith(data["child"]) else ""
        paid = f"; {data['paid']} NTX paid" if "paid" in data else ""
        said = f"{child}{data['message']}{paid}"
        # of a group it is counted how many did: `3 of 40 failed: …`
        return said if _COUNTED.match(said) else f"failed: {said}"
    if "replicas" in data:
        return f"{data['agreed']} of {data['replicas']} providers agree: {data['paid']} NTX paid"
    return f"all {data['children']} children settled: {data['paid']} NTX paid"


def _matched(data: dict[str, Any]) -> str:
    if "bids" in data:
        count = "one bid" if data["bids"] == 1 else f"{data['bids']} bids"
        return f"{count}; best is {short(data['bidder'])}: {data['why']}"
    return f"{short(data.get('refused_by'))} refused ({data.get('reason')}); the next bid is tried"


def error_of(job: dict[str, Any], event: dict[str, Any], spec: str = "") -> NunetError | None:
    """Return the error that a job ended with, or None for one that was settled.

    Args:
        job: the job with its specification, as the node shows it.
        event: its last one.
        spec: the file that it was posted with, where that is known: a batch may be run again as that is mended.
    """
    if event["type"] == "job_settled":
        return None
    stored = event["data"] if event["type"] == "job_stuck" else job["error"]
    if event["type"] == "job_cancelled" or stored is None:
        error = NunetError(f"job {job['id']} was cancelled", code="cancelled")
        error.exit_code = 1
        return error
    error = NunetError(
        stored["message"], code=stored["code"], hint=stored["hint"].replace(" JOB", f" {job['id']}"),
        details=stored.get("details"),
    )  # fmt: skip
    error.exit_code = stored["exit_code"]
    if job.get("spec", {}).get("type") == "batch" and job["state"] == "failed":
        named = shlex.quote(spec) if spec else "SPEC"
        error.hint += f"; with what you have mended: nunet job retry {job['id']} --spec {named}"
    return error
