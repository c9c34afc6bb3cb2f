"""Deciding on a comparison with a provider's preferences (seed 2: `accept`)."""

from __future__ import annotations

from nunet_cli import quantities
from nunet_cli.jobs import expressions
from nunet_cli.jobs.expressions import Variables
from nunet_cli.records.bids import CapabilityComparator, CapabilityComparison, Comparison


def accept(
    fields: tuple[Comparison, ...], comparator: CapabilityComparator, *, requester: str, price: int,
    names: Variables | None = None,
) -> CapabilityComparison:  # fmt: skip
    """Return the comparison with its verdict, and for a refusal every reason.

    Args:
        fields: what `compare` found.
        comparator: the provider's preferences.
        requester: the DID that asks.
        price: what the whole job would earn, in micro-NTX.
        names: what the comparator's rules may name, from `expressions.variables`.
    """
    fields += tuple(refusals(comparator.rules, names or {}, "preferences.rules"))
    if price < comparator.minimum_price:
        least, short = (
            quantities.format_amount(value) for value in (comparator.minimum_price, comparator.minimum_price - price)
        )
        fields += (
            Comparison(
                "preferences.minimum_price", "worse", f"{least} NTX", f"{quantities.format_amount(price)} NTX",
                f"-{short} NTX", f"{short} NTX below the provider's minimum",
            ),
        )  # fmt: skip
    reasons = [
        f"{field.field}: {field.reason or field.result}" for field in fields if field.result in ("worse", "error")
    ]
    reasons += unwanted(comparator, requester)
    return CapabilityComparison(tuple(fields), "decline" if reasons else "accept", tuple(reasons))


def unwanted(comparator: CapabilityComparator, did: str) -> list[str]:
    """Return why a party is not dealt with, by the lists of DIDs; empty where it is."""
    if did in comparator.deny or (comparator.allow and did not in comparator.allow):
        return ["peer: the preferences exclude it"]
    return []


def refusals(rules: tuple[str, ...], names: Variables, where: str) -> list[Comparison]:
    """Return the rules that do not hold, as comparisons."""
    found = []
    for index, rule in enumerate(rules):
        field = f"{where}[{index}]"
        try:
            if not expressions.holds(rule, names):
                had = expressions.values_in(rule, names)
                found.append(Comparison(field, "worse", rule, had, "", "does not hold"))
        except expressions.ExpressionError as error:
            found.append(Comparison(field, "error", rule, "", "", error.message))
    return found
