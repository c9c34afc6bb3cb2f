"""Ctrl-C and SIGTERM: held back while something is done that must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nunet_cli.errors import EXIT_INTERRUPTED, EXIT_TERMINATED


class Terminated(KeyboardInterrupt):
    """SIGTERM: another program's Ctrl-C, such as that of a time limit."""


_RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_is_held = False


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code after an interrupt: 128 and the signal's number, as a shell has it."""
    return EXIT_TERMINATED if isinstance(interrupt, Terminated) else EXIT_INTERRUPTED


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Have SIGTERM interrupt what is done in the block, as Ctrl-C does, instead of ending this process at once."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def held() -> Iterator[None]:
    """Hold an interrupt back until the end of the block, the outermost one; a second one is not held back.

    Raises:
        KeyboardInterrupt: in the end, where one came; or with the second one.
    """
    global _is_held
    if _is_held or threading.current_thread() is not threading.main_thread():
        # only the main thread hears of it
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise _RAISED[signal.Signals(number)]

    # who is not to hear of it, as it was begun in the background, does not
    before = {number: handler for number in _RAISED if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, note)
    _is_held = True
    try:
        yield
    finally:
        _is_held = False
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise _RAISED[signal.Signals(came[0])]
