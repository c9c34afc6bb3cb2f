"""What a provider tells who asks, outside of bids: what it has left for it, and its price. Nothing is decided by it."""

from __future__ import annotations

import logging
from typing import Protocol

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.errors import NunetError
from nunet_cli.matching.accept import unwanted
from nunet_cli.network.messenger import Answer, Incoming
from nunet_cli.network.peers import Peer, Told
from nunet_cli.network.topics import TELLS_CAPABILITY
from nunet_cli.orchestrator.needs import HasAccounting, HasMessenger, HasStore
from nunet_cli.orchestrator.permissions import Permitting, may_use
from nunet_cli.records.bids import BIDS
from nunet_cli.records.messages import AskCapability, CapabilityTold

log = logging.getLogger("nunet.telling")

# seconds for an answer; for which one is not asked again; and the bids of a peer that are looked through for its last
PATIENCE, FRESH = 1.0, 5.0
LOOKED_AT = 50


class Telling(HasAccounting, Permitting, HasStore, Protocol):
    """Knows what this machine has left for whom."""


class Answering(HasMessenger, Telling, Protocol):
    """Takes the questions of others."""


class Asking(HasMessenger, HasStore, Protocol):
    """Asks others."""


# -- requester ---------------------------------------------------------------------------------------------------------


async def ask_capability(ctx: Asking, peer: Peer) -> Told | None:
    """Ask a peer what it offers now, and return what it told last; None where it never did.

    It has a second for an answer. One that is away, or too old to be asked, has told what its last bid offered.
    """
    known = peer.told
    if known is None or (quantities.now() - quantities.parse_time(known.at)).total_seconds() > FRESH:
        await _ask(ctx, peer)
    return peer.told or _last_bid(ctx, peer.did)


async def _ask(ctx: Asking, peer: Peer) -> None:
    if not peer.introduced or TELLS_CAPABILITY not in peer.features:
        return
    try:
        answer = await ctx.messenger.request(peer.did, "ask_capability", AskCapability(), timeout=PATIENCE)
    except NunetError as error:
        log.debug("%s did not tell what it offers: %s", peer.peer_id, error)
        return
    if isinstance(answer.body, CapabilityTold):
        peer.told = Told(quantities.utc_now(), "answer", answer.body.offered, answer.body.load)


def _last_bid(ctx: HasStore, did: str) -> Told | None:
    """Return what a peer's last bid to this node offered."""
    for row in ctx.store[BIDS].page(LOOKED_AT, newest=True, did=did).rows:
        if row.direction == "received" and row.bid is not None:
            return Told(row.at, "bid", structs.replace(row.bid.offer, price=row.bid.price), row.bid.load)
    return None


# -- provider ----------------------------------------------------------------------------------------------------------


def register(ctx: Answering) -> None:
    """Take the questions of who wants to know what this machine offers."""

    async def on_question(message: Incoming) -> Answer:
        return "capability_told", tell(ctx, message.sender)

    ctx.messenger.register("ask_capability", AskCapability, on_question)
    ctx.messenger.register("capability_told", CapabilityTold)


def tell(ctx: Telling, did: str) -> CapabilityTold:
    """Return what this machine has left for somebody; nothing for whom the preferences exclude."""
    if not ctx.accounting.is_onboarded() or unwanted(ctx.accounting.get_preferences(), did):
        return CapabilityTold()
    available = ctx.accounting.available(ctx.store)
    usable = tuple(name for name in available.executors if may_use(ctx, name, did))
    offered = structs.replace(available, executors=usable, price=ctx.accounting.price())
    return CapabilityTold(offered, ctx.accounting.load(ctx.store))
