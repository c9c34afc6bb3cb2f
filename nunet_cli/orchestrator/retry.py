"""When a provider fails: its contract is called off, and another bid, or another search, takes its place."""

from __future__ import annotations

from typing import Any

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.orchestrator.context import Context, advance
from nunet_cli.records.messages import JobCancel

CANCEL_LIFETIME = 14 * 86400


def may_retry(job: dict[str, Any]) -> bool:
    """Say whether a job's `retry` allows one more attempt."""
    return bool(job["attempts"] < decode_spec(job["spec"]).retry.attempts)


def has_next_bid(job: dict[str, Any]) -> bool:
    """Say whether the shortlist has a bid after the present one."""
    return bool(job["place"] + 1 < len(job["shortlist"]))


def search_again(t: Transaction, job: dict[str, Any], provider: str, event: dict[str, Any]) -> dict[str, Any]:
    """Put a job back into the search as a new attempt, without the provider that failed."""
    excluded = sorted({*job.get("excluded", []), provider})
    return advance(
        t, job["id"], "matching", {"retry": job["attempts"] + 1, **event}, attempts=job["attempts"] + 1,
        excluded=excluded, contract_id="", bid_id="", allocation_id="", result=None, collected=False, shortlist=[],
        place=0, given_up=False, usage=None, heard_at="", late=False,
    )  # fmt: skip


def note_called_off(t: Transaction, contract_id: str, by: str) -> None:
    """Keep with a contract when its provider was told to stop, the first time: `by` a `cancel`, or given up here."""
    row = t.find("contracts", contract_id)
    if row is not None and not row.get("called_off_at"):
        t.put("contracts", {**row, "called_off_at": units.utc_now(), "called_off_by": by})


async def give_up(ctx: Context, job_id: str, error: NunetError) -> bool:
    """Call off a contract whose provider is silent or refuses to start, and go on without it; False where nothing is.

    The provider gets the order to stop when it is back. What it has finished by then is paid and fetched; what it has
    not earned comes back with its answer, or after the contract's deadline.
    """
    job = ctx.job(job_id)
    contract = ctx.store.find("contracts", job["contract_id"])
    if contract is None or not (may_retry(job) or (has_next_bid(job) and job["state"] == "contracted")):
        return False
    body = JobCancel(contract_id=contract["id"])
    message = ctx.messenger.outbox.outgoing(contract["provider"], "job_cancel", body, lifetime=CANCEL_LIFETIME)
    event = {"reason": error.code, "message": error.message, "contract_id": contract["id"]}

    def change(t: Transaction) -> None:
        current = t.find("jobs", job_id)
        assert current is not None
        if current["contract_id"] != contract["id"] or current["state"] != job["state"]:
            # the result, or another sign of life, came just now
            return
        ctx.messenger.outbox.enqueue(t, message)
        note_called_off(t, contract["id"], "silence")
        if job["state"] == "contracted" and has_next_bid(current):
            peer = (t.find("bids", current["bid_id"]) or {"bidder": {"peer_id": ""}})["bidder"]["peer_id"]
            refusals = [*current.get("refusals", []), {"bid": current["bid_id"], "peer": peer, "reason": error.message}]
            said = {**event, "refused_by": peer, "reason": error.message}
            fields = {"place": current["place"] + 1, "contract_id": "", "refusals": refusals, "given_up": True}
            advance(t, job_id, "matched", said, **fields)
        else:
            search_again(t, current, contract["provider"], event)

    await ctx.store.change(change)
    ctx.heard.pop(contract["id"], None)
    ctx.messenger.outbox.wake()
    return True
