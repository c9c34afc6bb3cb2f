"""What bidders have locked for this node's jobs, and how it is freed before it lapses by itself."""

from __future__ import annotations

from nunet_cli import quantities
from nunet_cli.errors import NunetError
from nunet_cli.orchestrator.needs import Asking, HasMessenger
from nunet_cli.records.bids import Bid, BidRecord
from nunet_cli.records.messages import JobCancel
from nunet_cli.records.messaging import Outgoing

# a lock lapses by itself
RELEASE_LIFETIME = 120


def check_resource_lock(bid: Bid) -> bool:
    """Say whether the provider has locked the resources of a bid and the lock still holds (seed 3)."""
    return bid.resources_locked_until_timeout and bid.timeout > quantities.utc_now()


def release_message(ctx: HasMessenger, bid_id: str, did: str) -> Outgoing:
    """Return the message that frees what a bidder has locked; it need not wait for the end of its lease."""
    return ctx.messenger.outbox.outgoing(did, "job_cancel", JobCancel(bid_id=bid_id), lifetime=RELEASE_LIFETIME)


async def release_lock(ctx: Asking, bid: BidRecord, timeout: float) -> str:
    """Have a bidder free what it has locked; return a note where it does not answer: the lock lapses by itself."""
    try:
        await ctx.messenger.request(bid.did, "job_cancel", JobCancel(bid_id=bid.id), timeout=timeout)
    except NunetError as error:
        return f"{error.message}; the lock ends by itself at {bid.offer.timeout}"
    return ""
