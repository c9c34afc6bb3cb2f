"""How many items run at once: `-j`, as GNU parallel has it where that means something."""

from __future__ import annotations

import os
import re

from nunet_cli.errors import UsageError

MOST_AT_ONCE = 1000
_RELATIVE = re.compile(r"([+-])(\d+)|(\d+)%")


def at_once(text: str, *, local: bool) -> int:
    """Return how many items run at once, 0 where nothing was said.

    Args:
        text: a number, 0 for as many as may be; on this machine also `+2`, `-1` and `50%` of its cores.
        local: it is this machine.

    Raises:
        UsageError: it is none of these, or too many.
    """
    if not text:
        return 0
    found = _RELATIVE.fullmatch(text)
    if found is not None and not local:
        raise UsageError(
            f"--jobs: {text!r} is counted from the cores of one machine, and a market has many",
            hint="say how many items run at once in all, such as -j 50; machines take what they have room for",
        )
    if found is not None:
        cores, (sign, number, share) = os.cpu_count() or 1, found.groups()
        count = cores * int(share) // 100 if share else cores + int(sign + number)
        return min(max(count, 1), MOST_AT_ONCE)
    if not (text.isascii() and text.isdigit()) or int(text) > MOST_AT_ONCE:
        local_ones = ", or +2, -1 or 50% of the cores" if local else ""
        raise UsageError(
            f"--jobs: {text!r}", hint=f"a number up to {MOST_AT_ONCE}, 0 for as many as may be{local_ones}"
        )
    return int(text) or MOST_AT_ONCE
