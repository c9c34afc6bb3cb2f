"""When `nunet map` stops before all items are done: `--halt`, as GNU parallel has it."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

from nunet_cli.errors import UsageError

When = Literal["never", "soon", "now"]
Why = Literal["fail", "success", "done"]
_FORM = re.compile(r"(now|soon),(fail|success|done)=([0-9]+)(%?)\Z")
# how it was written before there were words for it
_SHORT = {"0": "never", "1": "soon,fail=1", "2": "now,fail=1", "-1": "soon,success=1", "-2": "now,success=1"}


class Halt(NamedTuple):
    """When it stops: once so many items, or so many per cent of all, have failed, succeeded or ended at all."""

    when: When = "never"
    why: Why = "fail"
    number: int = 0
    is_share: bool = False

    def is_met(self, *, failed: int, succeeded: int, total: int) -> bool:
        """Say whether it is time."""
        if self.when == "never":
            return False
        reached = {"fail": failed, "success": succeeded, "done": failed + succeeded}[self.why]
        return reached * 100 >= self.number * total if self.is_share else reached >= self.number


def read_halt(text: str) -> Halt:
    """Return what `--halt` says: `never`, `soon,fail=3`, `now,success=1`, `soon,done=20%`.

    Raises:
        UsageError: it is none of these.
    """
    text = _SHORT.get(text, text)
    if text in ("", "never"):
        return Halt()
    if re.fullmatch(r"[0-9]+%", text):
        text = f"soon,fail={text}"
    found = _FORM.match(text)
    if found is None or int(found[3]) == 0 or (found[4] and int(found[3]) > 100):
        raise UsageError(f"--halt: {text!r}", hint="never, or for example soon,fail=3 or now,success=1")
    when = next(word for word in get_args(When) if word == found[1])
    why = next(word for word in get_args(Why) if word == found[2])
    return Halt(when, why, int(found[3]), bool(found[4]))
