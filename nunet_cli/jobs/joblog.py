"""The job log of `nunet map`, in GNU parallel's form: a line for each item that ended, in columns with tabs between."""

from __future__ import annotations

from typing import NamedTuple

from nunet_cli.errors import UsageError

HEADER = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand"
COLUMNS = HEADER.count("\t") + 1


class Entry(NamedTuple):
    """How an item ended, and where.

    `started` is in seconds since 1970, `seconds` how long it ran, `sent` and `received` are bytes. `exit_value` is -1
    for what did not end by itself, or did not run at all.
    """

    number: int
    host: str
    started: float
    seconds: float
    sent: int
    received: int
    exit_value: int
    signal: int
    command: str

    def line(self) -> str:
        """Return it as a line of the log, with its end; a line's end in the command is written as a zero byte."""
        command = self.command.replace("\n", "\0")
        return (
            f"{self.number}\t{self.host}\t{self.started:.3f}\t{self.seconds:10.3f}\t{self.sent}\t{self.received}"
            f"\t{self.exit_value}\t{self.signal}\t{command}\n"
        )


def read_log(text: str, name: str) -> dict[int, Entry]:
    """Return the entries of a log by the items' numbers; the last one of an item counts.

    Args:
        text: the log; a last line that was cut short is left out: that item has not ended.
        name: the file, for error messages.

    Raises:
        UsageError: it is none; with the line.
    """
    found: dict[int, Entry] = {}
    *lines, _ = text.split("\n")
    for number, line in enumerate(lines, 1):
        if line == HEADER:
            continue
        try:
            seq, host, started, seconds, sent, received, value, signal, command = line.split("\t", COLUMNS - 1)
            entry = Entry(
                int(seq), host, float(started), float(seconds), int(sent), int(received), int(value), int(signal),
                command.replace("\0", "\n"),
            )  # fmt: skip
        except ValueError:
            raise UsageError(f"{name}:{number}: not a line of a job log", hint=f"its columns are {HEADER}") from None
        found[entry.number] = entry
    return found


def is_failed(entry: Entry) -> bool:
    """Say whether an item failed."""
    return entry.exit_value != 0 or entry.signal != 0
