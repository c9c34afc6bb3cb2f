"""Ranking bids (seed 2: `selectBestBid`): every reason to prefer a bid earns it points, and `why` lists them."""

from __future__ import annotations

from dataclasses import dataclass, field

from nunet_cli import quantities
from nunet_cli.jobs import expressions
from nunet_cli.jobs.spec import total_price
from nunet_cli.records.bids import Bid, SoftConstraint, Weights
from nunet_cli.records.capability import Capability

LATE = 3600.0

# seconds from now on that are as good as now
SOON = 2.0


@dataclass(frozen=True)
class RankedBid:
    """A bid with its place: `score` is the sum of the points, `why` says what made it."""

    bid: Bid
    rank: int
    score: float
    price: int
    why: str


@dataclass(frozen=True)
class Wishes:
    """What a requester ranks by: the most it pays in micro-NTX, its weights, the job's soft constraints and needs."""

    limit: int
    weights: Weights = field(default_factory=Weights)
    soft: tuple[SoftConstraint, ...] = ()
    required: Capability = field(default_factory=Capability)
    name: str = ""


def bid_price(bid: Bid) -> int:
    """Return what a bid costs at most, in micro-NTX."""
    return total_price(quantities.parse_amount(bid.price.amount), bid.price.time_unit, bid.time.duration)


def start_delay(bid: Bid, now: str) -> float:
    """Return the seconds until a bid's provider can start, never negative."""
    return max(0.0, (quantities.parse_time(bid.time.start) - quantities.parse_time(now)).total_seconds())


def bid_names(bid: Bid, wishes: Wishes, *, now: str, rtt: float | None) -> expressions.Variables:
    """Return what the expressions of a requester may name about a bid."""
    return expressions.variables(
        node=bid.offer, job=wishes.required, job_name=wishes.name, price=bid_price(bid), peer_did=bid.bidder.did,
        rtt=rtt, start_in=start_delay(bid, now), load=bid.load,
    )  # fmt: skip


def rank(bids: list[Bid], wishes: Wishes, *, now: str, distance: dict[str, float]) -> list[RankedBid]:
    """Return the bids from best to worst.

    Args:
        bids: valid offers.
        wishes: what makes one better than another.
        now: the present time, RFC 3339; a bid that starts later loses points, all of them at one hour.
        distance: measured round-trip times in seconds, by DID; unknown counts as far.
    """
    judged = [(bid, *_judge(bid, wishes, now, distance.get(bid.bidder.did))) for bid in bids]
    # equal points: the cheaper, and then the id decides, so that every run ranks alike
    judged.sort(key=lambda item: (-item[1], item[2], item[0].id))
    return [RankedBid(bid, place, score, price, why) for place, (bid, score, price, why) in enumerate(judged, 1)]


def _judge(bid: Bid, wishes: Wishes, now: str, rtt: float | None) -> tuple[float, int, str]:
    price, delay, weights = bid_price(bid), start_delay(bid, now), wishes.weights
    trip = 1.0 if rtt is None else min(rtt, 1.0)
    saved = max(0.0, 1.0 - price / wishes.limit) if wishes.limit else 1.0
    start = "starts now" if delay < 1 else f"starts in {quantities.format_duration(delay)}"
    far = "distance unknown" if rtt is None else f"{rtt * 1000:.1f} ms away"
    busy = "idle" if not bid.load else f"{bid.load:.0%} taken"
    parts = [
        (weights.price * saved, f"{quantities.format_amount(price)} NTX of {quantities.format_amount(wishes.limit)}"),
        (weights.start * (1 - min(delay, LATE) / LATE), start),
        (weights.load * (1 - bid.load), busy),
        (weights.distance * (1 - trip), far),
    ]
    names = bid_names(bid, wishes, now=now, rtt=rtt) if wishes.soft else {}
    for index, wish in enumerate(wishes.soft):
        try:
            parts.append((wish.weight * expressions.number(wish.rank, names), f"soft[{index}]"))
        except expressions.ExpressionError as error:
            parts.append((0.0, f"soft[{index}] cannot be evaluated: {error.message}"))
    why = ", ".join(f"{text} ({points:+.1f})" for points, text in parts)
    return round(sum(points for points, _ in parts), 3), price, why[:2000]
