"""Shares and caps of a provider's preferences: how often a requester has its turn, and what its jobs may hold."""

from __future__ import annotations

from collections.abc import Sequence

from nunet_cli.jobs import expressions
from nunet_cli.records.capability import Capability, Resources
from nunet_cli.records.shares import MostPerRequester, Share

CAP = "preferences.most_per_requester"
# what is rounded of cores, and of a share of bytes, is no reason
_ROUNDED = 1e-6


def weight_of(shares: Sequence[Share], did: str, rtt: float | None) -> float:
    """Return how many turns a requester has for one of a requester whom no share names.

    Args:
        shares: the preferences' shares; the first one that names it counts.
        did: the requester.
        rtt: the round-trip time to it in seconds, None where it is not known.
    """
    names = expressions.variables(node=Capability(), job=Capability(), peer_did=did, rtt=rtt) if shares else {}
    for share in shares:
        if share.who == did:
            return share.weight
        if not is_did(share.who):
            try:
                if expressions.holds(share.who, names):
                    return share.weight
            except expressions.ExpressionError:
                # it names what only a job has: it is about nobody
                continue
    return 1.0


def is_did(who: str) -> bool:
    """Say whether a share names one requester, and not those for whom an expression holds."""
    return who.startswith("did:")


def over_cap(most: MostPerRequester, machine: Resources, held: Sequence[Resources], needs: Resources) -> str:
    """Return why a requester may not have one job more; empty where it may.

    Args:
        most: the most that one requester may have.
        machine: what the machine offers in all.
        held: what each of the requester's jobs has, or has locked.
        needs: what the next one takes.
    """
    if most.jobs and len(held) >= most.jobs:
        jobs = "1 job" if most.jobs == 1 else f"{most.jobs} jobs"
        return f"one requester may have {jobs} here at a time"
    if most.share >= 1:
        return ""
    total = needs
    for resources in held:
        total = total.plus(resources)
    dimensions = (
        ("cores", total.cpu.cores, machine.cpu.cores), ("memory", total.memory, machine.memory),
        ("disk", total.disk, machine.disk), ("gpus", len(total.gpus), len(machine.gpus)),
    )  # fmt: skip
    for name, taken, there in dimensions:
        if taken > there * most.share + _ROUNDED:
            return f"one requester may have {most.share:.0%} of the {name} here at a time"
    return ""
