"""Ctrl-C, held back while something is done that must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_is_held = False


@contextmanager
def held() -> Iterator[None]:
    """Hold a Ctrl-C back until the end of the block, the outermost one; a second one is not held back.

    Raises:
        KeyboardInterrupt: in the end, where one came; or with the second one.
    """
    global _is_held
    before = signal.getsignal(signal.SIGINT)
    if _is_held or threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        # only the main thread hears of it; and who began this in the background may not want it heard at all
        yield
        return
    came = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came += 1
        if came > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    _is_held = True
    try:
        yield
    finally:
        _is_held = False
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
