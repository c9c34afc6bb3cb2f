"""How an item ended, wherever it ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from nunet_cli.cli.map.orders import Work
from nunet_cli.errors import EXIT_JOB_FAILED
from nunet_cli.jobs.joblog import Entry

Stream = Literal["stdout", "stderr"]
# what stands in the log for an item that did not end by itself, as GNU parallel has it
NO_EXIT = -1
SIGNALS = 128


@dataclass(frozen=True)
class Outcome:
    """How an item ended.

    `problem` says why it failed, empty where it did not; `exit_code` is that of the command `nunet` for it. `read`
    yields what it wrote, as bytes. `started` is in seconds since 1970, `seconds` how long it ran.
    """

    work: Work
    exit_value: int
    problem: str
    read: Callable[[Stream], Iterator[bytes]]
    host: str = ""
    started: float = 0.0
    seconds: float = 0.0
    sent: int = 0
    received: int = 0
    exit_code: int = EXIT_JOB_FAILED

    @property
    def is_failed(self) -> bool:
        """Whether it failed."""
        return bool(self.problem)

    @property
    def could_run(self) -> bool:
        """Whether its command was run, or could have been."""
        return self.exit_code == EXIT_JOB_FAILED

    def entry(self) -> Entry:
        """Return it as the job log has it: a command that a signal ended has its number there, and no exit value."""
        value, signal = self.exit_value, 0
        if value > SIGNALS:
            value, signal = 0, value - SIGNALS
        return Entry(
            self.work.item.number, self.host, self.started, self.seconds, self.sent, self.received, value, signal,
            self.work.line,
        )  # fmt: skip


def exit_value_of(exit_code: int | None, *, is_failed: bool) -> int:
    """Return what stands in the log: the exit code; for what failed for another reason, or did not run, -1."""
    if exit_code is None or (is_failed and exit_code == 0):
        return NO_EXIT
    return exit_code
