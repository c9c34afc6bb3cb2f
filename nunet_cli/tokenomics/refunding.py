"""The contract database gives deposits back that nobody settled in time, and counts its own absence against nobody."""

from __future__ import annotations

import logging
import math
from datetime import datetime, timedelta
from functools import partial

import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.records import HIGHEST
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import NunetError
from nunet_cli.records.books import PRESENCE, Presence
from nunet_cli.records.contract_records import REGISTERED_CONTRACTS
from nunet_cli.records.contracts import DATABASE, Contract
from nunet_cli.records.machine import CLOCK
from nunet_cli.tokenomics.closing import Closing
from nunet_cli.tokenomics.receipt import NOT_DELIVERED

log = logging.getLogger("nunet.contract-database")

NOTED_EVERY = timedelta(minutes=1)
# a busy machine may be late by that much without having been away
LATE = timedelta(seconds=10)
AT_ONCE = 100
RETRY_PAUSE = 2.0


def window_from(contract: Contract, now: datetime) -> str:
    """Return when the window of a contract begins: at its deadline, or now where that has passed.

    Where its terms ask for the oracle's own run of the job, that may take its time before.
    """
    terms = contract.terms
    second_run = timedelta(seconds=2 * terms.max_duration if terms.verification == "reexecute" else 0)
    return quantities.format_time(max(quantities.parse_time(terms.deadline), now) + second_run)


class Refunding:
    """What becomes of contracts whose time is over.

    One task asks the store which is due next, and sleeps until then. A task for each, as their parties have it, would
    keep the open contracts of a whole network in memory; what is due first costs one search in an index.

    After its deadline a contract can still be settled for a while, the window: by its provider, whose requester may be
    gone. Where this node was away, so that nobody could settle, the windows begin anew when it is back; where its clock
    was set to another time, what it shows says nothing about how long that was, and they begin anew as well.

    Args:
        store: where contracts are, and when this node was there last.
        window: for how long after its deadline a contract can be settled, in seconds.
        closing: how a contract is closed.
    """

    def __init__(self, store: Store, window: float, closing: Closing) -> None:
        self._store, self._window, self._closing = store, timedelta(seconds=window), closing
        self._seen: datetime | None = None
        # as long a silence as a machine may have that is only busy
        self._patience = max(self._window / 5, LATE)
        self._next, self._sooner = HIGHEST, trio.Event()

    async def run(self) -> None:
        """Give back what is due, when it is due, for ever.

        It looks at the clock often enough to know that it was there all the time, and that nobody has set the clock.
        """
        while True:
            self._sooner = trio.Event()
            refunded = await self.refund_expired()
            wait = self._look_ahead(quantities.now())
            if wait <= 0 and not refunded:
                # what could not be given back is tried again, and not at once
                wait = RETRY_PAUSE
            with trio.move_on_after(min(wait, self._patience.total_seconds() / 2, NOTED_EVERY.total_seconds())):
                await self._sooner.wait()

    def _look_ahead(self, now: datetime) -> float:
        """Find out which contract is due next; return in how many seconds that is."""
        first = self._store[REGISTERED_CONTRACTS].below("window_from", HIGHEST, 1, state="proved")
        self._next = first[0].window_from if first else HIGHEST
        if not first:
            return math.inf
        return (quantities.parse_time(self._next) + self._window + timedelta(milliseconds=1) - now).total_seconds()

    def expect(self, window_from: str) -> None:
        """Note that there is another contract, whose window begins at a time; wake up where that is the first one."""
        if window_from < self._next:
            self._sooner.set()

    async def refund_expired(self) -> list[str]:
        """Give back what is due now; return the ids of those contracts.

        A contract in dispute is left as it is: its escrow is held.
        """
        now = quantities.now()
        await self._note_presence(now)
        before = quantities.format_time(now - self._window)
        refunded = []
        for record in self._store[REGISTERED_CONTRACTS].below("window_from", before, AT_ONCE, state="proved"):
            try:
                await self._store.change(partial(self._refund, record.id))
            except NunetError as error:
                # it was disputed just now, for example: the others' money does not wait for it
                log.info("contract %s is not refunded: %s", record.id, error)
            else:
                refunded.append(record.id)
        return refunded

    def _refund(self, contract_id: str, t: Transaction) -> None:
        record = t[REGISTERED_CONTRACTS].one(contract_id)
        self._closing.close(t, record, 0, NOT_DELIVERED, by=CLOCK, at=quantities.utc_now())

    async def _note_presence(self, now: datetime) -> None:
        """Note that this node is here, and let the windows begin anew where it was away."""
        known = self._store[PRESENCE].get(DATABASE)
        noted = quantities.parse_time(known.seen_at) if known is not None else None
        # the store knows it to a minute only, and this process better
        seen, patience = (self._seen, self._patience) if self._seen else (noted, self._window / 5)
        was_away = seen is None or noted is None or abs(now - seen) > patience
        if was_away:
            await self._begin_anew(now)
        if was_away or noted is None or abs(now - noted) >= NOTED_EVERY:
            # the last of it: where this process ends in between, the next one does all of it again
            await self._store.change(lambda t: t[PRESENCE].put(Presence(DATABASE, quantities.format_time(now))))
        self._seen = now

    async def _begin_anew(self, now: datetime) -> None:
        last = count = 0
        while rows := self._store[REGISTERED_CONTRACTS].after(last, AT_ONCE, state="proved"):
            last = rows[-1][0]
            count += await self._store.change(partial(_begin_anew, [record.id for _, record in rows], now))
        if count:
            log.info("this contract database was away: %d contracts can be settled for longer", count)


def _begin_anew(contract_ids: list[str], now: datetime, t: Transaction) -> int:
    count = 0
    for contract_id in contract_ids:
        record = t[REGISTERED_CONTRACTS].get(contract_id)
        if record is not None and record.state == "proved":
            begins = window_from(record.document.read(Contract), now)
            if begins != record.window_from:
                t[REGISTERED_CONTRACTS].put(structs.replace(record, window_from=begins))
                count += 1
    return count
