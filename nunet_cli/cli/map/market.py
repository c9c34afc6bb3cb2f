"""Items on the market: one batch, whose jobs are heard of as they end."""

from __future__ import annotations

import base64
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from nunet_cli.api.client import ApiClient
from nunet_cli.cli.job_logs import pieces
from nunet_cli.cli.map.ending import advice
from nunet_cli.cli.map.interrupts import held
from nunet_cli.cli.map.orders import Returned, Work
from nunet_cli.cli.map.outcome import Outcome, Stream, exit_value_of
from nunet_cli.cli.map.placing import put, size_of
from nunet_cli.cli.map.posting import return_name
from nunet_cli.cli.map.tally import Tally
from nunet_cli.cli.output import note
from nunet_cli.errors import EXIT_JOB_FAILED, NodeError, NunetError, StateError
from nunet_cli.records.results import LOG_CUT

_ENDS = {"job_settled", "job_failed", "job_cancelled", "job_expired", "job_disputed", "job_resolved", "job_stuck"}
# a job in one of these has not been started
_NOT_STARTED = {"posted", "matching", "matched", "requested"}
_OVER = {"settled", "failed", "cancelled", "expired", "disputed", "resolved"}
_RECONNECTS, _PAUSE, _CANCEL_TIMEOUT, _SETTLING, _SUMMED_UP = 5, 0.2, 60.0, 20.0, 5.0


@dataclass
class Child:
    """A job of the batch, and how it stands."""

    work: Work
    id: str = ""
    host: str = ""
    tries: int = 1
    is_over: bool = field(default=False)


class Market:
    """Runs items as the jobs of a batch.

    Args:
        client: of the node that has the batch.
        batch: the batch, as it was posted.
        works: its items.
        tally: hears of them.
        tries: how often an item is run that fails.
    """

    def __init__(
        self, client: ApiClient, batch: dict[str, Any], works: list[Work], tally: Tally, *, tries: int
    ) -> None:
        self._client, self._batch, self._tally, self._tries = client, batch, tally, tries
        # whether the node was asked to
        self.is_called_off = False
        self._children = {f"{batch['name']}-{work.item.number}": Child(work) for work in works}

    def run(self) -> None:
        """Hear of all items until each has ended, or it is time to stop.

        Raises:
            NodeError: the node has gone.
        """
        for event in self._events():
            child = self._children.get(event["child"])
            if child is not None:
                child.id = event["job_id"]
                self._hear(child, event)
            elif not event["child"] and event["type"] in _ENDS:
                self._hear_of_the_end()
            if self._tally.halts == "now":
                self.call_off()
            elif self._tally.halts == "soon":
                self._start_no_more()
            if not self._tally.left:
                return

    def call_off(self) -> None:
        """Call off what has not ended, and hear how all of it did.

        Raises:
            NodeError: the node has gone.
        """
        self.is_called_off = True
        try:
            self._client.post(f"/jobs/{self._batch['id']}/cancel", timeout=_CANCEL_TIMEOUT)
        except NunetError as error:
            # it has ended in the meantime
            if error.code != StateError.default_code:
                raise
        end = time.monotonic() + _SETTLING
        while self._look_at_all(again=False) and time.monotonic() < end:
            # what had run to its end just then is being settled
            time.sleep(_PAUSE)
        for child in self._children.values():
            if not child.is_over:
                self._called_off(child)

    def paid(self) -> str:
        """Return what all of it cost, in NTX, once that is known; empty where it cost nothing."""
        end = time.monotonic() + _SUMMED_UP
        with contextlib.suppress(NunetError):
            while (row := self._client.get(f"/jobs/{self._batch['id']}"))["state"] not in _OVER:
                if time.monotonic() > end:
                    return ""
                time.sleep(_PAUSE / 4)
            return row["paid"] if row["paid"] not in (None, "0") else ""
        return ""

    def advice(self) -> str:
        """Return what would have got those items a bid that had none, or where that is explained."""
        found: dict[str, Any] = {"suggestion": None}
        with contextlib.suppress(NunetError):
            found = self._client.get(f"/jobs/{self._batch['id']}/explain")
        return advice(self._batch["id"], found["suggestion"])

    def leave(self) -> None:
        """Call off what has not ended; nobody wants to hear of it any more."""
        with contextlib.suppress(NunetError):
            self._client.post(f"/jobs/{self._batch['id']}/cancel", timeout=_CANCEL_TIMEOUT)

    def _events(self) -> Iterator[dict[str, Any]]:
        failures, after = 0, 0
        while True:
            try:
                for event in self._client.events(f"/jobs/{self._batch['id']}/events", follow=1, after=after):
                    failures, after = 0, event["seq"]
                    yield event
            except NodeError as gone:
                failures += 1
                if failures >= _RECONNECTS:
                    gone.hint = f"the items are kept: once the node runs again, see nunet job show {self._batch['id']}"
                    raise
            time.sleep(_PAUSE)

    def _hear(self, child: Child, event: dict[str, Any]) -> None:
        kind, data = event["type"], event["data"]
        if kind == "job_requested":
            child.host = data["bidder"]
        elif kind == "job_running" and child.tries == 1:
            self._tally.began(child.work)
        elif kind in _ENDS and not child.is_over:
            self._end(child, self._client.get(f"/jobs/{child.id}"))

    def _hear_of_the_end(self) -> None:
        """The batch has ended, unless some of it is run again: what has not ended with it goes no further."""
        self._look_at_all()
        if self._tally.left and self._client.get(f"/jobs/{self._batch['id']}")["state"] in _OVER:
            for row in self._rows():
                child = self._children[row["name"]]
                if not child.is_over:
                    self._told(child, self._outcome(child, row))

    def _look_at_all(self, *, again: bool = True) -> int:
        """Look how each item stands that is not known to be over; return how many are not over now.

        What never began has said nothing.
        """
        for row in self._rows():
            child = self._children[row["name"]]
            child.id = row["id"]
            if not child.is_over:
                self._end(child, row, again=again)
        return sum(not child.is_over for child in self._children.values())

    def _rows(self) -> list[dict[str, Any]]:
        return self._client.page("/jobs", limit=0, parent=self._batch["id"]).rows

    def _start_no_more(self) -> None:
        """Call off what has not been started."""
        for row in self._rows():
            child = self._children[row["name"]]
            if child.is_over or row["state"] not in _NOT_STARTED:
                continue
            try:
                self._client.post(f"/jobs/{row['id']}/cancel", timeout=_CANCEL_TIMEOUT)
            except NunetError as error:
                note(f"nunet: item {child.work.item.number}: {error.message}")
                continue
            self._called_off(child)

    def _end(self, child: Child, row: dict[str, Any], *, again: bool = True) -> None:
        """Tell how an item ended; or have it run `again`, where it failed and there are tries left.

        Without `again` all are being called off; else it was somebody else who cancelled one, and so it has failed.
        """
        state = row["state"]
        if state not in _OVER:
            # it runs again already, or is stuck
            return
        if state == "cancelled" and not again:
            self._called_off(child)
            return
        if (
            state not in ("settled", "cancelled")
            and again
            and child.tries < self._tries
            and self._tally.halts == "never"
        ):
            child.tries += 1
            self._client.post(f"/jobs/{row['id']}/retry")
            return
        self._told(child, self._outcome(child, row))

    def _called_off(self, child: Child) -> None:
        with held():
            child.is_over = True
            self._tally.will_not_run(child.work)

    def _told(self, child: Child, outcome: Outcome) -> None:
        """Tell how an item ended; with a Ctrl-C it was told, or will be when all are called off."""
        with held():
            child.is_over = True
            self._tally.ended(outcome)

    def _outcome(self, child: Child, row: dict[str, Any]) -> Outcome:
        result, error, work = row["result"], row["error"], child.work
        problem, exit_code = "", EXIT_JOB_FAILED
        if row["state"] != "settled":
            problem = error["message"] if error is not None else f"its job is {row['state']}"
            exit_code = error["exit_code"] if error is not None else EXIT_JOB_FAILED
        elif self._is_cut(row):
            problem = "its output is not whole, it is more than the provider keeps: write to a file, and --return it"
        elif work.returned:
            try:
                self._bring_back(row["id"], work.returned)
            except (NunetError, OSError) as trouble:
                why = trouble.message if isinstance(trouble, NunetError) else _where(trouble)
                problem = f"what it made cannot be brought here: {why}; it is kept: nunet job result {row['id']}"
        started = _seconds(result["started_at"]) if result is not None else _seconds(row["created_at"])
        ended = _seconds(result["ended_at"]) if result is not None else started
        received = 0
        if result is not None:
            received = result["stdout_size"] + sum(output["size"] for output in result["outputs"])
        return Outcome(
            work, exit_value_of(result["exit_code"] if result is not None else None, is_failed=bool(problem)), problem,
            lambda stream: self._read(row, stream), host=child.host or "-", started=started,
            seconds=ended - started, sent=sum(size_of(one.path) for one in work.sent), received=received,
            exit_code=exit_code,
        )  # fmt: skip

    def _read(self, row: dict[str, Any], stream: Stream) -> Iterator[bytes]:
        """Yield what a job wrote; nothing where it was not started."""
        if row["result"] is not None and row["result"][f"{stream}_size"]:
            yield from pieces(self._client, row["id"], stream, follow=False)

    def _is_cut(self, row: dict[str, Any]) -> bool:
        """Say whether a provider kept not all that a job wrote to its standard output: it says so at the end."""
        size = row["result"]["stdout_size"]
        if size < len(LOG_CUT):
            return False
        job, stream = f"/jobs/{row['id']}/logs", "stdout"
        end = self._client.get(job, stream=stream, offset=size - len(LOG_CUT), wait=0)
        return base64.b64decode(end["data"]) == LOG_CUT

    def _bring_back(self, job_id: str, returned: tuple[Returned, ...]) -> None:
        """Put what a job made where it belongs.

        Raises:
            NunetError: it is not here.
            OSError: it cannot be written.
        """
        # beside where it goes, so that each appears whole
        beside = Path.cwd() if os.access(Path.cwd(), os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix=".nunet-map-", dir=beside) as folder:
            self._client.post(f"/jobs/{job_id}/outputs", {"folder": folder})
            for number, back in enumerate(returned, 1):
                found = Path(folder) / return_name(number)
                if not back.is_pattern:
                    put(found, back.target)
                    continue
                for entry in sorted(found.iterdir()):
                    put(entry, back.target / entry.name, is_named=False)


def _where(error: OSError) -> str:
    """Return what is wrong with which file: for a person, without a number."""
    name = error.filename2 or error.filename
    path = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None
    if path is not None and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{error.strerror or error}{f': {path}' if path is not None else ''}"


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def interrupted(market: Market, batch: dict[str, Any], tally: Tally, *, embedded: bool) -> None:
    """After Ctrl-C: call off the rest, print what has ended, and say so; a second one does not wait for that."""
    sys.stdout.flush()
    try:
        note("\nnunet: interrupted: calling off what has not ended …; Ctrl-C again does not wait for that")
        market.call_off()
        paid = market.paid()
        cost = f"; {paid} NTX paid" if paid else ""
        note(f"nunet: {tally.succeeded} done, {len(tally.failures)} failed, {tally.called_off} called off{cost}")
    except KeyboardInterrupt:
        # a node that runs goes on with it, unless it was not even asked; the embedded one ends with this command
        goes_on = market.is_called_off and not embedded
        text = (
            "what has not ended is being called off" if goes_on else f"call it off with: nunet job cancel {batch['id']}"
        )
        note(f"\nnunet: not waited for: {text}; see: nunet job show {batch['id']}")
