"""Ranking many bids: over reading the same bids from their bytes, which whoever ranks them has to do once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from random import Random

import msgspec

from benchmarks.lines import Line, Options
from benchmarks.timing import best_in_turns
from nunet_cli import quantities
from nunet_cli.matching.rank import Wishes, rank
from nunet_cli.network.identity import new_identity
from nunet_cli.records.bids import Bid, NodeID, SoftConstraint, TimeBid
from nunet_cli.records.capability import Capability, Cpu, PriceBid, Resources

# with a wish a bid takes so long that fewer have to do
COUNT, WISHED, BIDDERS, TIMES = 10_000, 1000, 100, 3
SOFT = SoftConstraint("node.resources.cpu.cores >= 4.0", 10.0)


def measure(options: Options) -> Iterator[Line]:
    """Measure a ranking by the four weights, and one with a wish in CEL."""
    made, distance = bids(Random(1))
    raw = [msgspec.json.encode(bid) for bid in made]
    decoder = msgspec.json.Decoder(Bid)
    now = quantities.utc_now()
    plain, wishing = Wishes(limit=10**7), Wishes(limit=10**7, soft=(SOFT,))
    for name, wishes, count in (
        ("by price, start, load, distance", plain, COUNT), ("with a wish in CEL", wishing, WISHED),
    ):  # fmt: skip
        took = best_in_turns(
            {
                "ours": partial(rank, made[:count], wishes, now=now, distance=distance),
                "floor": partial(read, decoder, raw[:count]),
            },
            TIMES,
            time.process_time,
        )
        yield Line(
            "ranking", name, took["ours"] / took["floor"], "reading the bids", "",
            f"{count:,} bids in {took['ours'] * 1000:.0f} ms; reading them {took['floor'] * 1000:.0f} ms",
            {"ms": took["ours"] * 1000, "floor_ms": took["floor"] * 1000, "bids": count},
        )  # fmt: skip


def read(decoder: msgspec.json.Decoder[Bid], raw: list[bytes]) -> list[Bid]:
    """Return bids from their bytes."""
    return [decoder.decode(text) for text in raw]


def bids(random: Random) -> tuple[list[Bid], dict[str, float]]:
    """Return valid offers that differ in all that is ranked by, and measured distances to most of the bidders."""
    dids = [new_identity().did for _ in range(BIDDERS)]
    now = quantities.now()
    timeout = quantities.format_time(now + timedelta(minutes=5))
    made = [
        Bid(
            id=f"bid-{number}", bid_request_id="request-1", job_id="job-1",
            bidder=NodeID(uuid="", cid="", peer_id="", did=dids[number % BIDDERS]),
            price=PriceBid("per_result", "NTX", "", f"{random.uniform(0.1, 10):.6f}"),
            time=TimeBid(quantities.format_time(now + timedelta(seconds=random.choice([0, 0, 60, 600]))), 3600),
            timeout=timeout, spec_cid="cid", load=random.random(),
            offer=Capability(
                executors=("docker", "process"), job_types=("task",),
                resources=Resources(Cpu(random.uniform(0.5, 8), 3000, "x86_64"), 2**33, 2**35),
            ),
        )
        for number in range(COUNT)
    ]  # fmt: skip
    return made, {did: random.uniform(0, 0.2) for did in dids[: BIDDERS * 9 // 10]}
