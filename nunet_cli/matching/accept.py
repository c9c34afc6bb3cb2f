"""Deciding on a comparison with a provider's preferences (seed 2: `accept`)."""

from __future__ import annotations

from nunet_cli import units
from nunet_cli.jobs.job import CapabilityComparator, CapabilityComparison, Comparison


def accept(
    fields: tuple[Comparison, ...], comparator: CapabilityComparator, *, requester: str, price: int
) -> CapabilityComparison:
    """Return the comparison with its verdict, and for a refusal every reason.

    Args:
        fields: what `compare` found.
        comparator: the provider's preferences.
        requester: the DID that asks.
        price: what the whole job would earn, in micro-NTX.
    """
    reasons = [
        f"{field.field}: {field.reason or field.result}" for field in fields if field.result in ("worse", "error")
    ]
    if requester in comparator.deny or (comparator.allow and requester not in comparator.allow):
        reasons.append("requester: this provider does not work for you")
    if price < comparator.minimum_price:
        short = units.format_amount(comparator.minimum_price - price)
        reasons.append(f"price: {short} NTX below the provider's minimum")
    return CapabilityComparison(tuple(fields), "decline" if reasons else "accept", tuple(reasons))
