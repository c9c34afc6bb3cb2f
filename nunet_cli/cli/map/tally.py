"""What is told of items while they end: their output whole, in order where that was asked for, the log, and a bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import IO

from nunet_cli.cli.map.interrupts import held
from nunet_cli.cli.map.orders import Work
from nunet_cli.cli.map.outcome import NO_EXIT, Outcome, Stream
from nunet_cli.cli.output import note
from nunet_cli.jobs.halting import Halt, When
from nunet_cli.jobs.joblog import HEADER

# so many failures are told one by one
TOLD = 20
_BAR = 20
_CLEAR = "\r\x1b[K"
_ESCAPED = str.maketrans({"\\": "\\\\", "/": "\\_", "\t": "\\t", "\0": "\\0"})


class Tally:
    """Hears of items as they end, and tells of them.

    Args:
        works: all that are run, in their order.
        keep_order: print what they wrote in that order.
        tagged: put its tag before each line of an item.
        results: a folder that what they wrote is put into, instead of printing it.
        log: the job log, open.
        halt: when to stop.
        shows_bar: tell on stderr how far it has come.
        tells_commands: print each command on stderr as it begins.
    """

    def __init__(
        self, works: list[Work], *, keep_order: bool, tagged: bool, results: Path | None, log: IO[str] | None,
        halt: Halt, shows_bar: bool, tells_commands: bool,
    ) -> None:  # fmt: skip
        self._keep_order, self._tagged, self._results, self._log = keep_order, tagged, results, log
        self._halt, self._tells_commands = halt, tells_commands
        self._bar = Bar(len(works)) if shows_bar else None
        self._total = len(works)
        # in order: what has ended, None for what will not run, and whose turn it is
        self._ends: dict[int, Outcome | None] = {}
        self._order = [work.item.number for work in works]
        self._place = 0
        self.failures: list[Outcome] = []
        # of those that were told: how many failed that ran, and for which reasons how many could not
        self._failed = 0
        self._not_run: dict[str, int] = {}
        self.succeeded = self.called_off = 0
        self.stopped_by: Outcome | None = None
        self._draw()

    @property
    def halts(self) -> When:
        """How to stop now; `never` is to go on."""
        return self._halt.when if self.stopped_by is not None else "never"

    @property
    def left(self) -> int:
        """How many have neither ended nor been called off."""
        return self._total - self.succeeded - len(self.failures) - self.called_off

    def began(self, work: Work) -> None:
        """Hear that an item's command runs."""
        if self._tells_commands:
            self._say(work.line)

    def ended(self, outcome: Outcome) -> None:
        """Hear that an item ended, and will not be run again; a Ctrl-C waits until all that is told of it was told."""
        with held():
            if self._results is not None:
                outcome = self._keep(outcome, self._results)
            if outcome.is_failed:
                self.failures.append(outcome)
            else:
                self.succeeded += 1
            self._show(outcome.work.item.number, outcome)
            met = self._halt.is_met(failed=len(self.failures), succeeded=self.succeeded, total=self._total)
            if met and self.stopped_by is None:
                self.stopped_by = outcome
            self._draw()

    def will_not_run(self, work: Work) -> None:
        """Hear that an item was called off."""
        with held():
            self.called_off += 1
            self._show(work.item.number, None)
            self._draw()

    def close(self) -> None:
        """Take the bar away, and tell of failures that were not told one by one."""
        if self._bar is not None:
            self._bar.clear()
        for problem, count in self._not_run.items():
            if count > 1:
                items = "one more item" if count == 2 else f"{count - 1} more items"
                why = f": {problem}" if len(self._not_run) > 1 else ", for the same reason"
                note(f"nunet: {items} could not run{why}")
        if self._failed > TOLD:
            note(f"nunet: {self._failed - TOLD} more failed")

    def _show(self, number: int, outcome: Outcome | None) -> None:
        """Tell of an item, and of those that waited for their turn behind it."""
        if not self._keep_order or self._results is not None:
            self._tell(outcome)
            return
        self._ends[number] = outcome
        while self._place < len(self._order) and self._order[self._place] in self._ends:
            self._place += 1
            self._tell(self._ends.pop(self._order[self._place - 1]))

    def _tell(self, outcome: Outcome | None) -> None:
        """Print what an item wrote, note it in the log, and say why it failed; what is not printed is not noted."""
        if outcome is None:
            return
        self._print(outcome)
        if self._log is not None:
            self._log.write(outcome.entry().line())
            self._log.flush()
        if not outcome.is_failed:
            return
        if outcome.could_run:
            self._failed += 1
            is_told = self._failed <= TOLD
        else:
            # it is the same for all of them, mostly
            problem = outcome.problem
            is_told = problem not in self._not_run and len(self._not_run) < TOLD
            self._not_run[problem] = self._not_run.get(problem, 0 if is_told else 1) + 1
        if is_told:
            text = outcome.work.item.text
            name = f" ({text if len(text) <= 60 else text[:59] + '…'})" if text else ""
            self._say(f"nunet: item {outcome.work.item.number}{name}: {outcome.problem}")

    def _print(self, outcome: Outcome) -> None:
        if self._results is not None:
            return
        if self._bar is not None:
            self._bar.clear()
        streams: tuple[tuple[Stream, IO[bytes]], ...] = (
            ("stdout", sys.stdout.buffer), ("stderr", sys.stderr.buffer),
        )  # fmt: skip
        for stream, target in streams:
            data = outcome.read(stream)
            for piece in _tag(data, outcome.work.tag.encode() + b"\t") if self._tagged else data:
                target.write(piece)
            target.flush()

    def _keep(self, outcome: Outcome, folder: Path) -> Outcome:
        """Write what an item wrote where GNU parallel does: a folder for each source, in it one for each value.

        It has failed where that cannot be.
        """
        for number, value in enumerate(outcome.work.item.arguments, 1):
            # a name of dots alone would lead elsewhere
            name = value.translate(_ESCAPED)
            folder = folder / str(number) / (name if name.strip(".") else name.replace(".", "\\."))
        streams: tuple[Stream, ...] = ("stdout", "stderr")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "seq").write_text(str(outcome.work.item.number))
            for stream in streams:
                with (folder / stream).open("wb") as file:
                    file.writelines(outcome.read(stream))
        except OSError as error:
            problem = f"what it wrote cannot be kept: {error.strerror}"
            return replace(outcome, problem=outcome.problem or problem, exit_value=outcome.exit_value or NO_EXIT)
        return outcome

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        note(text)

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.draw(done=self.succeeded + len(self.failures), failed=len(self.failures))


def _tag(pieces: Iterator[bytes], tag: bytes) -> Iterator[bytes]:
    """Put a tag before each line."""
    begins = True
    for piece in pieces:
        for line in _lines(piece):
            yield tag + line if begins else line
            begins = line.endswith(b"\n")


def _lines(piece: bytes) -> list[bytes]:
    """Return the lines of a piece: only a line feed ends one."""
    *whole, rest = piece.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


class Bar:
    """How far it has come: a line of a terminal that is drawn again and again, elsewhere a line for each tenth.

    Args:
        total: how many items there are.
    """

    def __init__(self, total: int) -> None:
        self._total, self._began = total, time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._tenth, self._is_drawn = 0, False

    def draw(self, *, done: int, failed: int) -> None:
        """Show how many have ended, and how long it will still take if the rest goes as it went so far."""
        share = done / self._total if self._total else 1.0
        seconds = time.monotonic() - self._began
        left = timedelta(seconds=round(seconds / done * (self._total - done))) if done else "?"
        text = f"{share:4.0%}  {done} of {self._total} done, {failed} failed, {left} left"
        if self._is_terminal:
            filled = round(_BAR * share)
            sys.stderr.write(f"{_CLEAR}{'█' * filled}{'░' * (_BAR - filled)} {text}")
            sys.stderr.flush()
            self._is_drawn = True
        elif int(share * 10) > self._tenth:
            self._tenth = int(share * 10)
            note(text)

    def clear(self) -> None:
        """Take the line away, for what is printed in its place."""
        if self._is_drawn:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
            self._is_drawn = False


def open_log(path: Path, *, goes_on: bool) -> IO[str]:
    """Open a job log for writing: a new one, with its heading; or at the end of one that is gone on with.

    What was cut short at its end is ended first.

    Raises:
        OSError: it cannot be written.
    """
    if goes_on and path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            whole = file.read()
            file.truncate(whole.rfind(b"\n") + 1)
        return path.open("a", encoding="utf-8", newline="\n")
    file_ = path.open("w", encoding="utf-8", newline="\n")
    file_.write(HEADER + "\n")
    file_.flush()
    return file_
