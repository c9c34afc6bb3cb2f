"""Following a job of many children: how many are done, which ones failed and why; not what happens to each of them."""

from __future__ import annotations

import contextlib
from typing import Any

from nunet_cli.api.client import ApiClient
from nunet_cli.cli.job_logs import tail
from nunet_cli.errors import NunetError

# of so many children it is told how many are done, and no longer what happens to each
MANY = 11
# lines about how far it is, about children that failed, and about what else happens to children
STEPS, MOST_FAILURES, MOST_REMARKS = 20, 50, 10
LONGEST = 200
DONE = frozenset({"job_settled", "job_resolved"})
LOST = frozenset({"job_failed", "job_expired", "job_cancelled", "job_disputed", "job_stuck"})
AGAIN = frozenset({"job_posted", "job_matching"})
# what may happen to many children at once, for one reason
REMARKS = frozenset({
    "job_waiting", "invocation_unanswered", "provider_unanswered", "contract_database_unanswered", "settlement_waits",
    "late_result", "job_remark", "role_taken", "provider_silent", "provider_heard",
})  # fmt: skip
# what happens to the whole that is not told: there is a line about the bids that were found
_ASKING = frozenset({"bid_received", "bid_declined", "bid_silent"})


class Counted:
    """What is told of the events of a job with many children: lines, in the form that `describe` has.

    Args:
        client: the node.
        row: the job with its children, as the node shows it.
        steps: whether there are lines about how far it is; a bar says it too.
    """

    def __init__(self, client: ApiClient, row: dict[str, Any], *, steps: bool = True) -> None:
        self._client, self._steps = client, steps
        self._ids = {child["name"]: child["id"] for child in row["children"]}
        # those that have not failed are not run again
        self._done = {child["name"] for child in row["children"] if child["state"] in ("settled", "resolved")}
        self._lost: set[str] = set()
        self._running: set[str] = set()
        self._said: set[str] = set()
        # for what reasons nobody can run those that have none
        self._nobody: set[str] = set()
        self._found_bids = False
        self._failures = 0
        self._told = (len(self._done) * STEPS // len(self._ids), 0)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many children are done, how many failed, and how many there are."""
        return len(self._done), len(self._lost), len(self._ids)

    def text(self) -> str:
        """Return how far it is, in words."""
        done, lost, total = self.counts
        failed = f", {lost} failed" if lost else ""
        running = f", {len(self._running)} running" if self._running else ""
        return f"{done} of {total} done{failed}{running}"

    def tell(self, event: dict[str, Any], line: tuple[str, str] | None) -> list[tuple[str, str]]:
        """Take an event in, and return the lines to print for it.

        Args:
            event: one of the job or of a child.
            line: what is said of it where there are few children.
        """
        child, kind = event.get("child", ""), event["type"]
        if child in self._ids:
            return self._of_child(child, event, line)
        if child:
            return self._once(child, line) if kind in REMARKS else []
        if kind == "search_ended":
            return self._nobody_can(event["data"])
        if kind == "bids_ranked" and event["data"]["bids"] and not self._found_bids:
            self._found_bids = True
            data = event["data"]
            bids = "one bid" if data["bids"] == 1 else f"{data['bids']} bids"
            return [("match", f"{bids}, for {data['units']} at once")]
        return [line] if line is not None and kind not in _ASKING else []

    def _of_child(self, name: str, event: dict[str, Any], line: tuple[str, str] | None) -> list[tuple[str, str]]:
        kind = event["type"]
        if kind == "job_running":
            self._running.add(name)
        elif kind in ("job_completed", *AGAIN, *DONE, *LOST):
            self._running.discard(name)
        if kind in AGAIN:
            self._lost.discard(name)
        if kind in DONE and name not in self._done:
            self._lost.discard(name)
            self._done.add(name)
            return self._step()
        if kind in LOST and name not in self._lost:
            self._lost.add(name)
            if kind == "job_expired" and event["data"].get("message") in self._nobody:
                # that was told of all of them
                return []
            return [*self._failure(name, event), *self._step()]
        return self._once(name, line) if kind in REMARKS else []

    def _step(self) -> list[tuple[str, str]]:
        """Return a line where it has come a step further."""
        if not self._steps:
            return []
        done, lost, total = self.counts
        # with the last one the whole ends, and says so itself
        now = ((done + lost) * STEPS // total, 0)
        if now <= self._told or done + lost == total:
            return []
        self._told = now
        return [("execute", self.text())]

    def _nobody_can(self, data: dict[str, Any]) -> list[tuple[str, str]]:
        """Return a line that says once for all children that wait why nobody can run them."""
        message = data.get("message", "")
        if not message or message in self._nobody:
            return []
        self._nobody.add(message)
        which = "those that are left" if self._done else "any of them"
        return [("match", f"nobody can run {which}: {data.get('why') or message}")]

    def _failure(self, name: str, event: dict[str, Any]) -> list[tuple[str, str]]:
        """Return a line about a child that failed, with the last line that it wrote."""
        if event["type"] == "job_cancelled":
            # that is told with the reason for which it was called off
            return []
        self._failures += 1
        if self._failures > MOST_FAILURES:
            more = "more that fail are counted, and not told of"
            return [("execute", more)] if self._failures == MOST_FAILURES + 1 else []
        data = event["data"]
        why, wrote = data.get("message") or data.get("reason") or event["type"].removeprefix("job_"), ""
        with contextlib.suppress(NunetError):
            row = self._client.get(f"/jobs/{self._ids[name]}")
            why = row["error"]["message"] if row["error"] is not None else why
            wrote = tail(self._client, row)
        # what it says beside is the same for all
        why = why.partition("; ")[0]
        return [("execute", f"{name}: {why}" + (f": {wrote[:LONGEST]}" if wrote else ""))]

    def _once(self, name: str, line: tuple[str, str] | None) -> list[tuple[str, str]]:
        """Return a line about a child where no other one has said the same; with what it is said of first."""
        if line is None or len(self._said) >= MOST_REMARKS:
            return []
        # times differ
        reason = line[1].partition("; ")[0]
        if reason in self._said:
            return []
        self._said.add(reason)
        return [(line[0], f"{name}: {line[1]}")]
