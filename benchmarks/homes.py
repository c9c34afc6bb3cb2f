"""A home with many finished jobs: one real lifecycle, whose rows are multiplied under new ids.

    python -m benchmarks.homes DIR --jobs 20000

makes the homes of a requester, a provider and an authority in DIR. Requester and provider keep every job with its bid
request, bid, contract, allocation, statements, events, and a blob of its own. The copies' signatures are the first
job's, so that nothing verifies them; nobody looks again at what is finished.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from benchmarks.market import open_market
from nunet_cli.database.store import Store, Transaction
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.jobs import JOBS
from nunet_cli.records.messaging import INBOX
from nunet_cli.records.table import Table
from nunet_cli.records.tables import TABLES

NODES = ("requester", "provider")
# that a message was handled is forgotten when it could not come again
HANDLED_KEPT = timedelta(days=10)
# jobs of one change
AT_ONCE = 500
# what names something of one job: `job-…`, content ids, and the part of a message's name that is its own
NAME = re.compile(r"\b(?:(?:job|request|bid|allocation)-[0-9a-f]{20}|bafkrei[a-z2-7]{52}|(?<=/)[0-9a-f]{32})\b")
MINUTE = re.compile(r"\b2[0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}")
TO_MINUTE = "%Y-%m-%dT%H:%M"
EMPTY = content_id(b"")
# where a job's output is named, in a record and in a document inside one
STDOUT = (f'"stdout_cid":"{EMPTY}"', f'\\"stdout_cid\\":\\"{EMPTY}\\"')


class Template:
    """The rows of one job in a home, to be written again under other names and at other times.

    Args:
        store: the store that has them.
        job_id: the job.
    """

    def __init__(self, store: Store, job_id: str) -> None:
        # what mentions the job belongs to it; where others do by its contract or its bid, those are named with it
        own = {job_id}
        texts: dict[Table[Any], list[str]] = {}
        for _ in range(2):
            texts = {
                table: [text for text in _texts(store, table) if own & set(NAME.findall(text))] for table in TABLES
            }
            own |= {name for rows in texts.values() for text in rows for name in NAME.findall(text)} - {EMPTY}
        texts[INBOX] = list(_texts(store, INBOX))
        own |= {name for text in texts[INBOX] for name in NAME.findall(text)}
        minutes = {minute for rows in texts.values() for text in rows for minute in MINUTE.findall(text)}
        self._names, self._minutes = sorted(own), sorted(minutes)
        parts = re.compile(f"({'|'.join(map(re.escape, [*self._names, *self._minutes, *STDOUT]))})")
        self._rows = [(table, parts.split(text)) for table, rows in texts.items() for text in rows]

    def write(self, t: Transaction, number: int, ago: timedelta, blobs: Path) -> None:
        """Write one copy.

        Args:
            t: the change that it is part of.
            number: which copy; its names are made of it.
            ago: how much earlier than the first it was done, to the minute.
            blobs: the folder in which its output goes.
        """
        output = f"the output of job {number}\n".encode()
        cid = content_id(output)
        (blobs / cid).write_bytes(output)
        # what is young is kept, since somebody may be about to name it
        os.utime(blobs / cid, (at := time.time() - ago.total_seconds(), at))
        new = {name: _renamed(name, number) for name in self._names}
        new |= {text: text.replace(EMPTY, cid) for text in STDOUT}
        for minute in self._minutes:
            new[minute] = (datetime.strptime(minute, TO_MINUTE) - ago).strftime(TO_MINUTE)
        for table, parts in self._rows:
            if table is INBOX and ago > HANDLED_KEPT:
                continue
            row = msgspec.json.decode("".join([new.get(part, part) for part in parts]), type=table.kind)
            if table.key:
                t[table].put(row)
            else:
                t[table].append(row)


def _texts(store: Store, table: Table[Any]) -> Iterator[str]:
    return (msgspec.json.encode(row).decode() for row in store[table].all())


def _renamed(name: str, number: int) -> str:
    """Return another name of the same form, the same for the same name and number."""
    made = hashlib.blake2s(f"{number} {name}".encode()).digest()
    if name.startswith("bafkrei"):
        return content_id(made)
    kind, dash, own = name.rpartition("-")
    return kind + dash + made.hex()[: len(own)]


def make(
    folder: Path, jobs: int, *, apart: timedelta = timedelta(minutes=1), ago: timedelta = timedelta(0),
    nodes: tuple[str, ...] = NODES,
) -> None:  # fmt: skip
    """Make the homes of a requester, a provider and an authority that have done many jobs; none of them runs.

    Args:
        folder: where; each home is named after its node.
        jobs: how many those of `nodes` have.
        apart: the time between two jobs.
        ago: how long ago the latest of the copies was done.
        nodes: whose homes get all of them; the others have one job.
    """
    with open_market(folder) as market:
        market.run_job()
    with Store(folder / "requester", read_only=True) as store:
        (job,) = store[JOBS].all()
    for name in nodes:
        trio.run(partial(_multiply, folder / name, job.id, jobs - 1, apart, ago))


async def _multiply(home: Path, job_id: str, copies: int, apart: timedelta, ago: timedelta) -> None:
    blobs = home / "blobs"
    with Store(home) as store:
        template = Template(store, job_id)

        def some(t: Transaction, first: int) -> None:
            for number in range(first, min(first + AT_ONCE, copies)):
                # the oldest first, as they would have come
                template.write(t, number, ago + apart * (copies - number), blobs)

        for first in range(0, copies, AT_ONCE):
            await store.change(partial(some, first=first))


def main() -> int:
    """Make homes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.homes", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the homes go")
    parser.add_argument("--jobs", type=int, default=20_000, metavar="N", help="how many jobs (20000)")
    parser.add_argument("--days-ago", type=int, default=0, metavar="N", help="how long ago the latest of them was done")
    asked = parser.parse_args()
    make(asked.folder, asked.jobs, ago=timedelta(days=asked.days_ago))
    for name in NODES:
        print(asked.folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
