"""A provider's own rules as they are evaluated here: with what is seen of the machine now, or as if nobody held any.

A bid for many units stands for as long as units of it are taken, which may be for days: rules that name what changes
meanwhile, such as `machine.cpu_load`, hold for each unit, in the change that takes it.
"""

from __future__ import annotations

from typing import Protocol

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import StateError
from nunet_cli.jobs import expressions
from nunet_cli.jobs.spec import total_price
from nunet_cli.matching.accept import refusals
from nunet_cli.orchestrator.needs import HasAccounting, HasPeers, HasStore
from nunet_cli.records.bids import BidRequest
from nunet_cli.records.capability import Capability, PriceBid


class HoldingRules(HasAccounting, HasPeers, HasStore, Protocol):
    """Knows the owner's rules, and what they may name."""


def cost_of(request: BidRequest, price: PriceBid) -> int:
    """Return what a whole job costs at a price, in micro-NTX."""
    return total_price(
        quantities.parse_amount(price.amount), price.time_unit, max(1, request.required_capability.time.max)
    )


def names_for(
    ctx: HoldingRules, request: BidRequest, available: Capability, cost: int, *, idle: bool = False
) -> expressions.Variables:
    """Return what expressions about a request may name.

    Args:
        ctx: the node's parts.
        request: the bid request.
        available: what there is for it.
        cost: what the whole job costs, in micro-NTX.
        idle: as if nobody used the machine.
    """
    peer = ctx.peers.find(request.requester.did)
    return expressions.variables(
        node=available, job=request.required_capability, job_name=request.name, price=cost,
        peer_did=request.requester.did, rtt=peer.rtt if peer is not None else None,
        load=0.0 if idle else ctx.accounting.load(ctx.store), machine=ctx.accounting.machine(idle=idle),
    )  # fmt: skip


def check_now(ctx: HoldingRules, t: Transaction, request: BidRequest, price: PriceBid, at: str) -> None:
    """Hold those of the owner's rules that name what changes against one unit more of a bid that stands.

    They are the owner's own, and bounded: so they are evaluated within the change, and of units that arrive together
    each is held against what those before it have left.

    Args:
        ctx: the node's parts.
        t: the change that takes the unit.
        request: what the bid answers.
        price: the bid's.
        at: when the unit begins at the latest; what is given back until then counts as left.

    Raises:
        StateError: one does not hold just now; code `machine_busy`.
    """
    rules = tuple(rule for rule in ctx.accounting.get_preferences(t).rules if expressions.is_live(rule))
    if not rules:
        return
    names = names_for(ctx, request, ctx.accounting.available(t, at), cost_of(request, price))
    names["bid"]["load"] = ctx.accounting.load(t)
    refused = refusals(rules, names, "preferences.rules")
    if refused:
        why = "; ".join(f"{field.required}: {field.reason}" for field in refused)
        raise StateError(f"by its owner's rules this machine takes no job just now: {why}", code="machine_busy")
