"""What is owed: the deposit that a price asks for, and what a result has earned. Micro-NTX, pure functions."""

from __future__ import annotations

from nunet_cli import quantities
from nunet_cli.jobs.spec import total_price
from nunet_cli.records.capability import PriceBid
from nunet_cli.records.contracts import Terms
from nunet_cli.records.results import Result


def deposit_for(price: PriceBid, max_duration: int) -> int:
    """Return the most that a job can cost at a price: what goes into escrow."""
    return total_price(quantities.parse_amount(price.amount), price.time_unit, max_duration)


def amount_due(terms: Terms, result: Result, seen: float | None = None) -> int:
    """Return what the provider has earned, at most the deposit.

    A price per result is earned by a completed job only. A price per time unit is earned by the time that the machine
    was held, whether the job succeeded, failed or was cancelled; a failure of the provider's earns nothing.

    Args:
        terms: what was agreed.
        result: what the provider claims.
        seen: the seconds that somebody else saw pass; a claim beyond them earns no more than they do.
    """
    deposit = quantities.parse_amount(terms.deposit)
    if result.state == "completed" and not terms.price.time_unit:
        return deposit
    if not terms.price.time_unit or result.fault == "provider":
        return 0
    seconds = min(result.usage.wall_seconds, float(terms.max_duration))
    if seen is not None:
        seconds = max(0.0, min(seconds, seen))
    return min(deposit, total_price(quantities.parse_amount(terms.price.amount), terms.price.time_unit, seconds))


def seconds_between(first: str, last: str) -> float:
    """Return the seconds from one time to another; negative where the second one is earlier."""
    return (quantities.parse_time(last) - quantities.parse_time(first)).total_seconds()


def check_payment_info(price: PriceBid, max_duration: int) -> bool:
    """Say whether a bid asks for payment (seed 4: `checkPaymentInfo`); without, the job is volunteer compute."""
    return deposit_for(price, max_duration) > 0
