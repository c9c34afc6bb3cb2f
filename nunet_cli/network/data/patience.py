"""How long a node waits for who sends it data: long for who is away, and not for who is there and sends nothing."""

from __future__ import annotations

import trio

# bytes a second, on the average: below it who sends holds what waits for the data more than it serves it
LEAST_RATE = 8 * 1024.0
# seconds for which who is there may send nothing
THERE = 30.0


class Patience:
    """An account of seconds: waiting takes from it, and what comes brings it back.

    While the sender is there a second costs as much as `LEAST_RATE` bytes bring, and the account lasts for `THERE`
    seconds; while it is away, it lasts for `seconds`.

    Args:
        seconds: for a sender that is away.
    """

    def __init__(self, seconds: float) -> None:
        self.most = self._left = seconds
        self._haste = max(1.0, seconds / THERE)
        self._at = trio.current_time()

    @property
    def is_over(self) -> bool:
        """Whether it is used up."""
        return self._left <= 0

    def wait(self, *, is_there: bool) -> float:
        """Count the time since the last look; return the seconds that are left for a sender that is there."""
        now = trio.current_time()
        self._left -= (now - self._at) * (self._haste if is_there else 1.0)
        self._at = now
        return max(0.0, self._left / self._haste)

    def earn(self, count: int) -> None:
        """Count bytes that came."""
        self._left = min(self.most, self._left + count * self._haste / LEAST_RATE)

    def rest(self) -> None:
        """Leave out the time since the last look: it was this node's own."""
        self._at = trio.current_time()
