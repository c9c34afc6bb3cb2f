"""Ranking bids (seed 2: `selectBestBid`): cheapest first, then the one that starts first, then the nearest."""

from __future__ import annotations

from dataclasses import dataclass

from nunet_cli import units
from nunet_cli.jobs.job import Bid
from nunet_cli.jobs.spec import total_price

PRICE_WEIGHT, START_WEIGHT, DISTANCE_WEIGHT = 70.0, 20.0, 10.0


@dataclass(frozen=True)
class RankedBid:
    """A bid with its place: `score` is 0 to 100, `why` says what made it."""

    bid: Bid
    rank: int
    score: float
    price: int
    why: str


def bid_price(bid: Bid) -> int:
    """Return what a bid costs at most, in micro-NTX."""
    return total_price(units.parse_amount(bid.price.amount), bid.price.time_unit, bid.time.duration)


def rank(bids: list[Bid], *, limit: int, now: str, distance: dict[str, float]) -> list[RankedBid]:
    """Return the bids from best to worst.

    Args:
        bids: valid offers.
        limit: the most that the requester pays, in micro-NTX.
        now: the present time, RFC 3339; a bid that starts later loses points, all of them at one hour.
        distance: measured round-trip times in seconds, by DID; unknown counts as far.
    """
    at = units.parse_time(now)

    def judge(bid: Bid) -> tuple[float, int, str]:
        price = bid_price(bid)
        delay = max(0.0, (units.parse_time(bid.time.start) - at).total_seconds())
        trip = distance.get(bid.bidder.did, 1.0)
        saved = 1.0 - price / limit if limit else 1.0
        score = (
            PRICE_WEIGHT * saved + START_WEIGHT * (1 - min(delay, 3600) / 3600) + DISTANCE_WEIGHT * (1 - min(trip, 1.0))
        )
        start = "starts now" if delay < 1 else f"starts in {units.format_duration(delay)}"
        far = f"{trip * 1000:.1f} ms away" if bid.bidder.did in distance else "distance unknown"
        return (
            round(score, 1),
            price,
            f"{units.format_amount(price)} NTX of {units.format_amount(limit)}, {start}, {far}",
        )

    judged = [(bid, *judge(bid)) for bid in bids]
    # the id decides between equals, so that every run ranks alike
    judged.sort(key=lambda item: (-item[1], item[2], item[0].id))
    return [RankedBid(bid, place, score, price, why) for place, (bid, score, price, why) in enumerate(judged, 1)]
