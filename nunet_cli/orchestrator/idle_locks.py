"""Locks that came to nothing: who has this machine kept, and no job begun, waits before it may lock here again.

A lock costs a requester nothing, and a contract whose job is never begun gives its deposit back. Without this, one that
takes another as soon as the last has lapsed keeps the machine from everybody, for ever. It is kept in memory alone, and
for each identity: one that is new has a clean sheet.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

import trio

from nunet_cli.database.store import Store, Transaction
from nunet_cli.orchestrator.accounting import Accounting

# seconds for which a machine may be kept and given back, as by who takes another's bid, and for which in all without a
# contract in between; the pause after the first time beyond that, which doubles, and the longest; and after how long
# what was is forgotten
SHORT, MANY_SHORT, FIRST_PAUSE, LONGEST_PAUSE, MEMORY = 5.0, 60.0, 30.0, 600.0, 3600.0
# one that is given back at once counts so many seconds: what is kept of it here is kept for days
LEAST = 1.0
# of so many requesters, and of so many locks of each, it is remembered
MOST_REQUESTERS, MOST_LOCKS = 1000, 100


@dataclass(slots=True)
class _Sheet:
    """What one requester has locked: by bid since when, and for how long where that is over; and its pause.

    `short` is for how many seconds it has held locks in all that it gave back soon.
    """

    locks: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    short: float = 0.0
    times: int = 0
    until: float = 0.0


class IdleLocks:
    """What came of the locks of each requester."""

    def __init__(self) -> None:
        self._sheets: OrderedDict[str, _Sheet] = OrderedDict()

    def note(self, did: str, bid_id: str) -> None:
        """Note that a requester has a lock; one that is taken again counts from the first time on."""
        sheet = self._sheets.setdefault(did, _Sheet())
        self._sheets.move_to_end(did)
        sheet.locks.setdefault(bid_id, (trio.current_time(), None))
        if len(sheet.locks) > MOST_LOCKS:
            del sheet.locks[next(iter(sheet.locks))]
        if len(self._sheets) > MOST_REQUESTERS:
            self._sheets.popitem(last=False)

    def given_back(self, did: str, bid_id: str) -> None:
        """Note that a requester needs a lock no more."""
        sheet = self._sheets.get(did)
        if sheet is not None and bid_id in sheet.locks:
            since, _ = sheet.locks[bid_id]
            sheet.locks[bid_id] = since, trio.current_time() - since

    def kept(self, did: str, bid_id: str) -> None:
        """Note that a job was to be begun with what was locked: its requester may begin anew with a clean sheet."""
        sheet = self._sheets.get(did)
        if sheet is not None and sheet.locks.pop(bid_id, None) is not None:
            sheet.times, sheet.until, sheet.short = 0, 0.0, 0.0

    def pause(self, accounting: Accounting, source: Store | Transaction, did: str) -> float:
        """Return for how many seconds a requester may not lock; 0 for one that may."""
        sheet, now = self._sheets.get(did), trio.current_time()
        if sheet is None:
            return 0.0
        in_vain = False
        for bid_id, (_, held) in list(sheet.locks.items()):
            if held is None and (accounting.is_locked(source, bid_id) or accounting.is_in_line(source, bid_id)):
                continue
            if held is None or held > SHORT or sheet.short + max(held, LEAST) > MANY_SHORT:
                in_vain, sheet.short = True, 0.0
            else:
                sheet.short += max(held, LEAST)
            del sheet.locks[bid_id]
        if now > sheet.until + MEMORY:
            sheet.times = 0
        if in_vain:
            sheet.times += 1
            sheet.until = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(sheet.times - 1, 10))
        return max(0.0, sheet.until - now)


def idle_reason(pause: float) -> str:
    """Return what a requester is told that may not lock."""
    return f"what you locked here came to no contract: this machine is not locked for you for {math.ceil(pause)} s"
