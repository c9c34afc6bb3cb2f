"""Items on this machine: `--local`, to try a command without a market.

Each runs plainly, as this user, in no sandbox: it is this user's own command. But it runs in a fresh folder that has
what a provider would be sent, and with hardly any environment, so that what was forgotten is missing here, too.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nunet_cli.cli.map.interrupts import held
from nunet_cli.cli.map.orders import Sent, Work
from nunet_cli.cli.map.outcome import NO_EXIT, SIGNALS, Outcome, Stream
from nunet_cli.cli.map.placing import put, size_of
from nunet_cli.cli.map.tally import Tally
from nunet_cli.errors import UsageError
from nunet_cli.jobs.globs import Pattern, split_glob

HOST = ":"
_AT_ONCE = 1 << 16
_AGAIN = 0.1
_NOT_STARTED = "it could not be started: "


class Began(NamedTuple):
    """An item that is begun now."""

    work: Work


class Here:
    """Runs items in processes of this machine.

    Args:
        works: the items.
        tally: hears of them.
        inputs: what all of them need.
        environment: what they find in it, beside what a provider gives them.
        jobs: how many run at once; 0 for as many as there are cores.
        tries: how often an item is run that fails.
        limit: seconds after which one is ended.
    """

    def __init__(
        self, works: Sequence[Work], tally: Tally, *, inputs: Sequence[Sent], environment: Mapping[str, str], jobs: int,
        tries: int, limit: float,
    ) -> None:  # fmt: skip
        self._tally, self._inputs, self._environment = tally, inputs, environment
        self._tries, self._limit = tries, limit
        self._waiting = list(reversed(works))
        self._jobs = min(jobs or os.cpu_count() or 1, len(works))
        self._running: set[subprocess.Popen[bytes]] = set()
        self._turn = threading.Lock()
        self._stops = False
        # what is told, and what its teller waits for
        self._told: queue.SimpleQueue[tuple[Outcome | Work | Began, threading.Event]] = queue.SimpleQueue()
        self._unheard: set[threading.Event] = set()

    def run(self) -> None:
        """Run all items until each has ended, or it is time to stop; Ctrl-C ends them all."""
        with tempfile.TemporaryDirectory(prefix="nunet-map-") as folder:
            threads = [threading.Thread(target=self._take, args=(Path(folder),)) for _ in range(self._jobs)]
            try:
                for thread in threads:
                    thread.start()
                while self._tally.left:
                    self._hear()
            except KeyboardInterrupt:
                self._end_all(threads)
                # what had ended by then is told, and the rest was called off
                while self._tally.left:
                    self._hear()
                raise
            finally:
                self._end_all(threads)

    def _end_all(self, threads: Sequence[threading.Thread]) -> None:
        self._stop(now=True)
        for thread in threads:
            thread.join()

    def _hear(self) -> None:
        """Hear what is told next; a Ctrl-C meanwhile is seen after it, or once nothing was told for a moment."""
        with held():
            try:
                news, heard = self._told.get(timeout=_AGAIN)
            except queue.Empty:
                return
            if isinstance(news, Outcome):
                self._tally.ended(news)
            elif isinstance(news, Began):
                self._tally.began(news.work)
            else:
                self._tally.will_not_run(news)
            if self._tally.halts != "never":
                self._stop(now=self._tally.halts == "now")
            heard.set()

    def _tell(self, news: Outcome | Work) -> None:
        """Tell how an item ended, and wait until it was heard: it may be time to stop."""
        heard = threading.Event()
        with self._turn:
            if not self._stops:
                self._unheard.add(heard)
            else:
                heard.set()
        self._told.put((news, heard))
        heard.wait()
        with self._turn:
            self._unheard.discard(heard)

    def _stop(self, *, now: bool) -> None:
        with self._turn:
            left, self._waiting = self._waiting, []
            for work in reversed(left):
                self._told.put((work, threading.Event()))
            if now:
                self._stops = True
                for heard in self._unheard:
                    heard.set()
                for process in self._running:
                    _end(process)

    def _take(self, folder: Path) -> None:
        while True:
            with self._turn:
                if not self._waiting:
                    return
                work = self._waiting.pop()
            self._told.put((Began(work), threading.Event()))
            for left in reversed(range(self._tries)):
                outcome = self._run(work, Path(tempfile.mkdtemp(dir=folder)))
                if self._stops or not left or not isinstance(outcome, Outcome) or not outcome.is_failed:
                    break
            self._tell(outcome)

    def _run(self, work: Work, folder: Path) -> Outcome | Work:
        """Run an item; what is returned is the work alone where it was called off."""
        place = folder / "job"
        started, value, problem = time.time(), NO_EXIT, ""
        try:
            place.mkdir()
            for sent in (*self._inputs, *work.sent):
                _copy(sent, place)
            value, problem = self._wait(work, place, folder)
            if self._stops and value != 0:
                return work
            seconds = time.time() - started
            received = (folder / "stdout").stat().st_size
            if not problem:
                received += _bring_back(work, place)
        except (OSError, UsageError) as error:
            seconds, received, value = time.time() - started, 0, NO_EXIT
            problem = error.message if isinstance(error, UsageError) else f"{_NOT_STARTED}{error}"
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return Outcome(
            work, value, problem, lambda stream: _read(folder, stream), host=HOST, started=started, seconds=seconds,
            sent=sum(size_of(one.path) for one in work.sent), received=received,
        )  # fmt: skip

    def _wait(self, work: Work, place: Path, folder: Path) -> tuple[int, str]:
        """Run a command to its end; return its exit value, and what is wrong with that."""
        environment = {
            "PATH": os.environ.get("PATH", os.defpath), "HOME": str(place), "TMPDIR": str(place),
            "LANG": "C.UTF-8", **self._environment, "PARALLEL_SEQ": str(work.item.number),
        }  # fmt: skip
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            with self._turn:
                if self._stops:
                    return NO_EXIT, "called off"
                process = subprocess.Popen(
                    ["sh", "-c", work.line], cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=out,
                    stderr=err, start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
            try:
                code = process.wait(self._limit)
            except subprocess.TimeoutExpired:
                _end(process)
                process.wait()
                return NO_EXIT, f"it ran for over {self._limit:g} s"
            finally:
                with self._turn:
                    self._running.discard(process)
                # what it left behind in its group
                _end(process)
        value = code if code >= 0 else SIGNALS - code
        return value, f"the command exited with {value}" if value else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _copy(sent: Sent, place: Path) -> None:
    target = place / sent.place
    target.parent.mkdir(parents=True, exist_ok=True)
    if sent.path.is_dir():
        shutil.copytree(sent.path, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(sent.path, target)


def _bring_back(work: Work, place: Path) -> int:
    """Put what a command made where it belongs; return its bytes.

    Raises:
        UsageError: it is not there.
        OSError: it cannot be written.
    """
    total = 0
    for back in work.returned:
        base, parts = split_glob(back.place) if back.is_pattern else (back.place, ())
        found = sorted(_found(place / base, Pattern(parts))) if parts else [place / base]
        if not found or not all(path.exists() for path in found):
            raise UsageError(f"the command did not write {back.place}")
        for path in found:
            total += size_of(path)
            target = back.target / path.relative_to(place / base) if back.is_pattern else back.target
            put(path, target, is_named=not back.is_pattern)
    return total


def _found(base: Path, pattern: Pattern) -> Iterator[Path]:
    for path in base.rglob("*"):
        places = pattern.start
        for name in path.relative_to(base).parts:
            places = pattern.step(places, name)
        if pattern.is_done(places) and path.is_file():
            yield path


def _read(folder: Path, stream: Stream) -> Iterator[bytes]:
    with contextlib.suppress(FileNotFoundError), (folder / stream).open("rb") as file:
        while data := file.read(_AT_ONCE):
            yield data
