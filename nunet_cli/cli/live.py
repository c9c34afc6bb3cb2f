"""What a terminal shows of a job that goes on: a table of bids, transfers with their progress, what is waited for."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from nunet_cli.cli.output import clean, console, declines, short
from nunet_cli.quantities import format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_BIDS, BAR = 12, 30
REFRESH = 8
Row = tuple[str, ...]


class LiveView:
    """A context with a region at the bottom of the terminal that changes; finished lines stand above it."""

    def __init__(self) -> None:
        self._live = Live(console=console(stderr=True), refresh_per_second=REFRESH, transient=True)
        self._bids: dict[str, list[Row]] = {}
        self._transfers: dict[str, dict[str, Any]] = {}
        self._counted: tuple[int, int] | None = None
        self._spinner = Spinner("dots", Text("posted"))
        # lines come from the follower and from the one that reads the logs
        self._turn = threading.Lock()

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.update(Text(""))
        self._live.stop()

    def line(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        with self._turn:
            self._live.console.print(Text(clean(text), style), soft_wrap=True)

    def waits_for(self, what: str) -> None:
        """Say what is waited for."""
        self._spinner.update(text=Text(clean(what)))
        self._show()

    def count(self, ended: int, total: int, text: str) -> None:
        """Show of a job with many children how many have ended, and how that is said."""
        self._counted = ended, total
        self.waits_for(text)

    def search(self, key: str) -> None:
        """Begin a table of answers."""
        self._bids[key] = []
        self._show()

    def answer(self, key: str, event: dict[str, Any]) -> None:
        """Add a bid, a decline or a silence to the table of a search."""
        data = event["data"]
        who = short(data["bidder"])
        if event["type"] == "bid_received":
            start = data["start"][11:19] if "start" in data else ""
            row: Row = (who, f"{data['price']} NTX", start, f"{data.get('load', 0):.0%}", "bids")
        else:
            says = declines(data) if event["type"] == "bid_declined" else "does not answer"
            row = (who, "", "", "", says)
        self._bids.setdefault(key, []).append(row)
        self._show()

    def matched(self, key: str) -> None:
        """End a table; it stays above, as it is now."""
        rows = self._bids.pop(key, [])
        if rows:
            with self._turn:
                self._live.console.print(_bid_table(rows))
        self._show()

    def transfer(self, key: str, what: str, done: int, total: int) -> None:
        """Show how far a transfer has come, in bytes."""
        self._transfers[key] = {"what": what, "done": done, "total": total}
        self._show()

    def transferred(self, key: str) -> None:
        """Take a transfer away."""
        if self._transfers.pop(key, None) is not None:
            self._show()

    def _show(self) -> None:
        parts: list[RenderableType] = [_bid_table(rows) for rows in self._bids.values() if rows]
        if self._transfers:
            grid = Table.grid(padding=(0, 1))
            for item in self._transfers.values():
                total = item["total"]
                sizes = format_size(item["done"]) + (f" of {format_size(total)}" if total else "")
                bar = ProgressBar(total=total or None, completed=item["done"], width=BAR)
                grid.add_row(Text(clean(item["what"])), bar, Text(sizes))
            parts.append(grid)
        if self._counted is not None:
            ended, total = self._counted
            grid = Table.grid(padding=(0, 1))
            grid.add_row(self._spinner, ProgressBar(total=total, completed=ended, width=BAR))
            parts.append(grid)
        else:
            parts.append(self._spinner)
        self._live.update(Group(*parts))


def _bid_table(rows: list[Row]) -> Table:
    grid = Table(box=None, pad_edge=True, header_style="bold", padding=(0, 2, 0, 0))
    for header in ("  PROVIDER", "PRICE", "STARTS", "BUSY", "ANSWER"):
        grid.add_column(header)
    for who, *cells in rows[-MOST_BIDS:]:
        grid.add_row(*(Text(clean(cell)) for cell in (f"  {who}", *cells)))
    if len(rows) > MOST_BIDS:
        grid.add_row(f"  and {len(rows) - MOST_BIDS} before them")
    return grid
