"""The machine is watched as long as the node runs: what others use of it, and whether it is short of something."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nunet_cli.allocation.actor import Running
from nunet_cli.database.store import Store, Transaction
from nunet_cli.node.monitor import Monitor

log = logging.getLogger("nunet.machine")


class Watch:
    """Looks at the machine from time to time, and says when it falls short of something and when it has enough again.

    Args:
        store: keeps the events.
        monitor: looks.
        running: the allocations that run here, whose use is not others'.
        relieved: what follows once there is enough again.
    """

    def __init__(self, store: Store, monitor: Monitor, running: Running, relieved: Callable[[], None]) -> None:
        self._store, self._monitor, self._running, self._relieved = store, monitor, running, relieved
        self._short = False

    async def look(self) -> None:
        """Look once."""
        used = {actor.allocation_id: (await actor.usage()).cpu_seconds for actor in self._running.all()}
        self._monitor.watch_others(used)
        pressure = self._monitor.pressure()
        if bool(pressure) == self._short:
            return
        self._short = bool(pressure)
        if pressure:
            text = ", and of ".join(pressure)
            log.warning("the machine is short of %s: no job is taken", text)
            await self._note("machine_short", short_of=text)
        else:
            log.info("the machine has enough again")
            await self._note("machine_relieved")
            self._relieved()

    async def _note(self, event: str, **said: str) -> None:
        def change(t: Transaction) -> None:
            t.save_event("", event, **said)

        await self._store.change(change)
