"""Stage 3, job request: the chosen provider locks what its bid offers, or the next one on the shortlist is asked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import trio

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import DeclinedError, NunetError, RejectedMessageError, StateError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.matching.rank import start_delay
from nunet_cli.network.messenger import Answer, Incoming
from nunet_cli.orchestrator.bid import assess, sent_bid
from nunet_cli.orchestrator.context import Context, advance, error_fields, plain
from nunet_cli.orchestrator.retry import may_retry, search_again
from nunet_cli.orchestrator.select import SOON, read_bid
from nunet_cli.records.bids import Bid, BidRequest
from nunet_cli.records.messages import DeclineJobRequest, JobRequest, TimeoutJobRequest

# -- requester ---------------------------------------------------------------------------------------------------------


async def request(ctx: Context, job_id: str) -> dict[str, Any]:
    """Get the resources of the best bid locked, walking the shortlist; a job that has them already is left as it is.

    A job with a deadline goes back to the search when nobody on the shortlist takes it.

    Raises:
        StateError: the job is not at this stage.
        DeclinedError: everybody on the shortlist declined or did not answer; the details say what each said.
    """
    job = ctx.job(job_id)
    if job["state"] == "requested":
        return job
    if job["state"] != "matched":
        raise StateError(f"job {job['id']} is {job['state']}, not matched", hint=f"run: nunet job match {job['id']}")
    refusals: list[dict[str, str]] = list(job.get("refusals", []))
    for place in range(job["place"], len(job["shortlist"])):
        bid = ctx.store.find("bids", job["shortlist"][place])
        assert bid is not None
        # a busy provider is free a moment later: its bid said when
        await trio.sleep(min(SOON, start_delay(read_bid(bid), units.utc_now())))
        if check_resource_lock(bid):
            return await _requested(ctx, job["id"], place, bid)
        refusal = await _try_bid(ctx, bid)
        if not refusal:
            return await _requested(ctx, job["id"], place, bid)
        refusals.append({"bid": bid["id"], "peer": bid["bidder"]["peer_id"], "reason": refusal})
        await ctx.store.change(lambda t, bid=bid, said=refusal: _note_refusal(t, job["id"], bid, said))  # type: ignore[misc]  # the defaults bind the loop's values
    if decode_spec(job["spec"]).time.deadline > units.utc_now():
        event = {"refusals": refusals}
        return await ctx.store.change(lambda t: _search_again(t, job["id"], event, refusals))
    if job.get("given_up") and may_retry(job):
        # one of them had signed and did not start: that is what `retry` is for
        bid = ctx.store.find("bids", job["shortlist"][0])
        first = bid["did"] if bid is not None else ""
        again: dict[str, Any] = {"reason": "declined", "refusals": refusals}
        return await ctx.store.change(lambda t: search_again(t, ctx.job(job["id"]), first, again))
    error = DeclinedError(
        f"every provider on the shortlist declined ({len(refusals)})",
        hint=f"see why with: nunet job explain {job['id']}; search again with: nunet job run",
        details={"refusals": refusals},
    )
    await ctx.store.change(
        lambda t: advance(t, job["id"], "failed", {"refusals": refusals}, error=error_fields(error), refusals=refusals)
    )
    raise error


def _search_again(t: Transaction, job_id: str, event: dict[str, Any], refusals: list[dict[str, str]]) -> dict[str, Any]:
    row = t.find("jobs", job_id)
    assert row is not None
    tries = row.get("tries", 0) + 1
    return advance(t, job_id, "matching", event, refusals=refusals, tries=tries, shortlist=[], place=0)


def check_resource_lock(bid: dict[str, Any]) -> bool:
    """Say whether the provider has locked the resources of a bid and the lock still holds (seed 3)."""
    return bool(bid["resources_locked_until_timeout"]) and bid["timeout"] > units.utc_now()


async def _try_bid(ctx: Context, row: dict[str, Any]) -> str:
    """Ask a bidder to lock; return an empty text, or why it did not."""
    request_row = ctx.store.find("bid_requests", row["bid_request_id"])
    assert request_row is not None
    bid_request = msgspec.convert({k: request_row[k] for k in BidRequest.__struct_fields__}, BidRequest)
    try:
        answer = await query_peer(ctx, row["did"], JobRequest(row["id"], bid_request))
    except NunetError as error:
        return error.message
    body = answer.body
    if isinstance(body, DeclineJobRequest):
        return body.reason
    if isinstance(body, TimeoutJobRequest):
        return f"the bid timed out at {body.timeout}"
    if not isinstance(body, Bid) or (body.id, plain(body.price), plain(body.time)) != (
        row["id"],
        row["price"],
        row["time"],
    ):
        return "the provider came back with another bid"
    if not body.resources_locked_until_timeout:
        return "the provider did not lock the resources"
    row.update(resources_locked_until_timeout=True, timeout=body.timeout, evidence=answer.evidence)
    return ""


async def query_peer(ctx: Context, did: str, body: JobRequest) -> Incoming:
    """Send the request to lock resources (seed 3: `network.queryPeer`)."""
    return await ctx.messenger.request(did, "job_request", body, timeout=ctx.config.limits.answer_timeout)


async def _requested(ctx: Context, job_id: str, place: int, bid: dict[str, Any]) -> dict[str, Any]:
    def change(t: Transaction) -> dict[str, Any]:
        t.put("bids", dict(bid))
        event = {"bid_id": bid["id"], "bidder": bid["bidder"]["peer_id"], "locked_until": bid["timeout"]}
        return advance(t, job_id, "requested", event, place=place, bid_id=bid["id"])

    return await ctx.store.change(change)


def _note_refusal(t: Transaction, job_id: str, bid: dict[str, Any], reason: str) -> None:
    t.put("bids", {**bid, "verdict": "refused", "reasons": [reason]})
    t.save_event(job_id, "job_request_declined", bidder=bid["bidder"]["peer_id"], bid_id=bid["id"], reason=reason)


async def next_bid(ctx: Context, job_id: str, reason: str) -> dict[str, Any]:
    """Give up the current bid and go back to the shortlist, from the next one on."""
    job = ctx.job(job_id)
    bid = ctx.store.find("bids", job["bid_id"])
    peer = bid["bidder"]["peer_id"] if bid else ""
    refusals = [*job.get("refusals", []), {"bid": job["bid_id"], "peer": peer, "reason": reason}]
    event = {"refused_by": peer, "reason": reason}
    return await ctx.store.change(
        lambda t: advance(t, job["id"], "matched", event, place=job["place"] + 1, refusals=refusals)
    )


# -- provider ----------------------------------------------------------------------------------------------------------


def register(ctx: Context) -> None:
    """Take job requests."""

    async def on_job_request(message: Incoming) -> Answer:
        return await _on_job_request(ctx, message)

    ctx.messenger.register("job_request", JobRequest, on_job_request)
    ctx.messenger.register("decline_job_request", DeclineJobRequest)
    ctx.messenger.register("timeout_job_request", TimeoutJobRequest)


async def _on_job_request(ctx: Context, message: Incoming) -> Answer:
    body: JobRequest = message.body
    row = sent_bid(ctx, body.bid_id, message.sender)
    if row["bid_request_id"] != body.bid_request.id or row["spec_cid"] != body.bid_request.spec_cid:
        raise RejectedMessageError("the job request is not what was bid for", code="wrong_bid")
    if offered_until(row) <= units.utc_now():
        return "timeout_job_request", TimeoutJobRequest(row["id"], row["timeout"])
    known = ctx.store.find("bid_requests", body.bid_request.id)
    assert known is not None
    original = msgspec.convert({k: known[k] for k in BidRequest.__struct_fields__}, BidRequest)
    if not ctx.accounting.is_locked(ctx.store, row["id"]):
        comparison = (await assess(ctx, original)).comparison
        if comparison.verdict != "accept":
            return await _decline(ctx, row, "; ".join(comparison.reasons))
    return await lock_resources(ctx, row, original)


def offered_until(row: dict[str, Any]) -> str:
    """Return how long an offer stands: a lock that lapses earlier is taken again, while there is room."""
    return str(max(row["timeout"], row.get("offered_until", "")))


async def lock_resources(ctx: Context, row: dict[str, Any], request: BidRequest) -> Answer:
    """Lock for a lease what a bid offers, and submit the bid again (seed 3: `lockResources`)."""
    until = units.format_time(units.now() + timedelta(seconds=ctx.config.lock_lease))

    def change(t: Transaction) -> None:
        ctx.accounting.lock(t, row["id"], row["job_id"], request.required_capability.resources, until, _duration(row))
        locked = {"resources_locked_until_timeout": True, "timeout": until, "offered_until": offered_until(row)}
        t.put("bids", {**row, **locked})
        t.save_event(row["job_id"], "resources_locked", bid_id=row["id"], until=until)

    try:
        await ctx.store.change(change)
    except StateError as error:
        return await _decline(ctx, row, error.message)
    bid = msgspec.convert({k: row[k] for k in Bid.__struct_fields__}, Bid)
    return "bid", msgspec.structs.replace(bid, resources_locked_until_timeout=True, timeout=until)


def _duration(row: dict[str, Any]) -> int:
    return int(row["time"]["duration"])


async def _decline(ctx: Context, row: dict[str, Any], reason: str) -> Answer:
    await ctx.store.save_event(row["job_id"], "job_request_declined", bid_id=row["id"], reason=reason)
    return "decline_job_request", DeclineJobRequest(row["id"], reason)
