"""Stage 2, search and match: bid requests go out, bids and refusals come in, the best bids are shortlisted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import trio
from tinydb import Query

from nunet_cli import units
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NoBidError, NunetError, PeerError, RejectedMessageError, StateError
from nunet_cli.executor.process import SANDBOXED
from nunet_cli.jobs.capability import Capability, PriceBid
from nunet_cli.jobs.job import Bid, BidRequest, CapabilityComparison, Comparison, Decline, TimeBid
from nunet_cli.jobs.spec import decode_spec, required_capability, total_price
from nunet_cli.matching.accept import accept
from nunet_cli.matching.compare import compare
from nunet_cli.matching.rank import bid_price, rank
from nunet_cli.network.identity import key_from_did, peer_cid_from_key, peer_id_from_key
from nunet_cli.network.messenger import Answer, Incoming
from nunet_cli.network.topics import BIDS
from nunet_cli.orchestrator.context import Context, advance, error_fields, plain
from nunet_cli.orchestrator.post import new_id

SETTLE_TIME = 2.0
ENOUGH_BIDS = 50
SHORTLIST = 5

# -- requester ---------------------------------------------------------------------------------------------------------


async def match(ctx: Context, job_id: str, *, timeout: float | None = None) -> dict[str, Any]:
    """Ask for bids and shortlist the best; a job that is matched already is left as it is.

    Args:
        ctx: the node's parts.
        job_id: the job.
        timeout: seconds to search, instead of `default_search_timeout`.

    Raises:
        StateError: the job is past this stage.
        NoBidError: nobody answered, or nobody can take it; the details say what each said.
    """
    job = ctx.job(job_id)
    if job["state"] == "matched" and job["shortlist"]:
        return job
    if job["state"] not in ("posted", "matching", "expired", "matched"):
        raise StateError(f"job {job['id']} is {job['state']}: it has been matched")
    request = await _new_bid_request(ctx, job)
    search = ctx.config.default_search_timeout if timeout is None else timeout
    await publish_bid_request(ctx, request, push=job["push"], timeout=search)
    return await select_best_bid(ctx, job["id"], request.id)


async def _new_bid_request(ctx: Context, job: dict[str, Any]) -> BidRequest:
    spec = decode_spec(job["spec"])
    search = timedelta(seconds=ctx.config.default_search_timeout)
    request = BidRequest(
        id=new_id("request"), job_id=job["id"], requester=ctx.identity.node_id,
        required_capability=required_capability(spec), spec_cid=job["spec_cid"],
        deadline=units.format_time(units.now() + search), topic="" if job["push"] else BIDS, image=spec.executor.image,
    )  # fmt: skip

    def change(t: Transaction) -> None:
        t.put("bid_requests", {**plain(request), "direction": "sent", "at": units.utc_now()})
        advance(t, job["id"], "matching", {"bid_request_id": request.id}, bid_request_id=request.id, error=None)

    await ctx.store.change(change)
    return request


async def publish_bid_request(ctx: Context, request: BidRequest, *, push: str = "", timeout: float = 10) -> None:
    """Send a bid request to every subscriber of its topic, or to one peer, and register what they answer.

    Peers that appear during the search are asked as well. It ends when everybody known has answered, when there are
    enough bids, or after `timeout` seconds (seed 2: `publishBidRequest`).
    """
    asked: set[str] = set()
    waiting: set[str] = set()
    end = trio.current_time() + timeout
    with trio.move_on_at(end + 1):
        async with trio.open_nursery() as nursery:
            while trio.current_time() < end:
                targets = [push] if push else [peer.did for peer in ctx.topics.subscribers(request.topic)]
                for did in targets:
                    if did not in asked:
                        asked.add(did)
                        waiting.add(did)
                        nursery.start_soon(_ask, ctx, request, did, end - trio.current_time(), waiting)
                everybody = bool(asked) and not waiting and (bool(push) or _is_settled(ctx))
                if everybody or len(_answers(ctx, request.job_id, request.id, "bid")) >= ENOUGH_BIDS:
                    nursery.cancel_scope.cancel()
                    break
                await ctx.transport.wait_change(0.1)


def _answers(ctx: Context, job_id: str, request_id: str, *kinds: str) -> list[dict[str, Any]]:
    """Return what was answered to a bid request: bids, declines and silences."""
    rows = ctx.store.table("bids").search(Query().job_id == job_id)
    return [row for row in rows if row["bid_request_id"] == request_id and (not kinds or row["kind"] in kinds)]


def _is_settled(ctx: Context) -> bool:
    """Say whether who is there could be found: known peers are connected, or discovery had its time."""
    pending = [peer for peer in ctx.peers if not peer.introduced and peer.failures == 0]
    uptime = trio.current_time() - ctx.started_at
    return uptime >= SETTLE_TIME or (not ctx.config.network.discovery and not pending)


async def _ask(ctx: Context, request: BidRequest, did: str, timeout: float, waiting: set[str]) -> None:
    try:
        answer = await ctx.messenger.request(did, "bid_request", request, timeout=timeout)
        if isinstance(answer.body, Bid):
            await register_bid(ctx, request, answer)
        elif isinstance(answer.body, Decline):
            await _register_decline(ctx, request, answer)
    except NunetError as error:
        if error.code != "peer_unreachable" or request.topic == "":
            await _register_silence(ctx, request, did, error)
    finally:
        waiting.discard(did)
        ctx.transport.notify()


async def register_bid(ctx: Context, request: BidRequest, message: Incoming) -> None:
    """Check a bid and add it to the compute providers index (seed 2: `registerComputeBid`).

    Raises:
        RejectedMessageError: it is not an answer to this request, not the sender's own, or over the price limit.
    """
    bid: Bid = message.body
    _check_bidder(bid, message.sender)
    if bid.bid_request_id != request.id or bid.job_id != request.job_id or bid.spec_cid != request.spec_cid:
        raise RejectedMessageError("the bid answers another request", code="wrong_bid")
    try:
        units.parse_time(bid.time.start), units.parse_time(bid.timeout)
    except NunetError as error:
        raise RejectedMessageError(error.message, code="wrong_bid") from None
    if bid.time.duration != request.required_capability.time.max:
        raise RejectedMessageError("the bid is for another duration", code="wrong_bid")
    if bid_price(bid) > units.parse_amount(request.required_capability.price.amount):
        raise RejectedMessageError("the bid is over the price limit", code="wrong_bid")
    row = {**plain(bid), "kind": "bid", "direction": "received", "did": message.sender, "at": units.utc_now()}
    row |= {"evidence": message.evidence, "score": None, "rank": None, "why": "", "verdict": "offered"}

    def change(t: Transaction) -> None:
        if t.find("bids", bid.id) is not None:
            return
        t.put("bids", row)
        t.save_event(
            request.job_id, "bid_received", bid_id=bid.id, bidder=bid.bidder.peer_id,
            price=units.format_amount(bid_price(bid)),
        )  # fmt: skip

    await ctx.store.change(change)


def _check_bidder(bid: Bid | Decline, sender: str) -> None:
    key = key_from_did(sender)
    if (bid.bidder.did, bid.bidder.peer_id, bid.bidder.cid) != (sender, peer_id_from_key(key), peer_cid_from_key(key)):
        raise RejectedMessageError("the bidder is not who signed", code="wrong_bid")


async def _register_decline(ctx: Context, request: BidRequest, message: Incoming) -> None:
    decline: Decline = message.body
    _check_bidder(decline, message.sender)
    row = _answer_row(request, message.sender, "decline", list(decline.comparison.reasons))
    row |= {"bidder": plain(decline.bidder), "comparison": plain(decline.comparison), "evidence": message.evidence}
    await _register(ctx, request, row)


async def _register_silence(ctx: Context, request: BidRequest, did: str, error: NunetError) -> None:
    await _register(ctx, request, _answer_row(request, did, "silent", [error.message]))


def _answer_row(request: BidRequest, did: str, kind: str, reasons: list[str]) -> dict[str, Any]:
    return {
        "id": new_id(kind), "kind": kind, "direction": "received", "did": did, "bid_request_id": request.id,
        "job_id": request.job_id, "bidder": {"did": did, "peer_id": peer_id_from_key(key_from_did(did))},
        "reasons": reasons, "verdict": "declined" if kind == "decline" else "silent", "at": units.utc_now(),
    }  # fmt: skip


async def _register(ctx: Context, request: BidRequest, row: dict[str, Any]) -> None:
    def change(t: Transaction) -> None:
        t.put("bids", row)
        kind = "bid_declined" if row["kind"] == "decline" else "bid_silent"
        t.save_event(request.job_id, kind, bidder=row["bidder"]["peer_id"], reasons=row["reasons"])

    await ctx.store.change(change)


async def select_best_bid(ctx: Context, job_id: str, request_id: str) -> dict[str, Any]:
    """Rank the bids of a request and keep the shortlist with the job (seed 2: `selectBestBid`).

    Raises:
        NoBidError: there is none.
    """
    job = ctx.job(job_id)
    rows = _answers(ctx, job_id, request_id)
    excluded = set(job.get("excluded", []))
    offers = [row for row in rows if row["kind"] == "bid" and row["did"] not in excluded]
    bids = [msgspec.convert({k: v for k, v in row.items() if k in Bid.__struct_fields__}, Bid) for row in offers]
    now = units.utc_now()
    valid = [bid for bid in bids if bid.valid_offer and bid.timeout > now]
    distance = {peer.did: peer.rtt for peer in ctx.peers if peer.rtt is not None}
    ranked = rank(valid, limit=job["limit"], now=now, distance=distance)
    if not ranked:
        error = _no_bid(rows)
        event = {"reason": error.code, "message": error.message}
        await ctx.store.change(lambda t: advance(t, job_id, "expired", event, error=error_fields(error)))
        raise error

    def change(t: Transaction) -> dict[str, Any]:
        for item in ranked:
            row = t.find("bids", item.bid.id)
            assert row is not None
            verdict = "best" if item.rank == 1 else "shortlisted" if item.rank <= SHORTLIST else "offered"
            row.update(score=item.score, rank=item.rank, why=item.why, verdict=verdict)
            t.put("bids", row)
        shortlist = [item.bid.id for item in ranked[:SHORTLIST]]
        best = ranked[0]
        event = {"bids": len(ranked), "best": best.bid.id, "bidder": best.bid.bidder.peer_id, "why": best.why}
        return advance(t, job_id, "matched", event, shortlist=shortlist, place=0, bid_id=shortlist[0])

    return await ctx.store.change(change)


def _no_bid(rows: list[dict[str, Any]]) -> NoBidError:
    if not rows:
        return NoBidError(
            "nobody to ask: no provider was found",
            code="no_peer",
            hint="see: nunet peer list; a machine becomes a provider with: nunet onboard && nunet node run",
        )
    said = [{"peer": row["bidder"]["peer_id"], "kind": row["kind"], "reasons": row.get("reasons", [])} for row in rows]
    declined = sum(row["kind"] == "decline" for row in rows)
    silent = sum(row["kind"] == "silent" for row in rows)
    parts = [f"{declined} declined"] if declined else []
    parts += [f"{silent} did not answer"] if silent else []
    return NoBidError(
        f"no acceptable bid: {', '.join(parts) or 'the bids are no longer valid'}",
        hint="see why with: nunet job explain JOB",
        details={"answers": said},
    )


# -- provider ----------------------------------------------------------------------------------------------------------


def register(ctx: Context) -> None:
    """Take bid requests, and know bids and refusals as answers."""

    async def on_bid_request(message: Incoming) -> Answer:
        return await _on_bid_request(ctx, message)

    ctx.messenger.register("bid_request", BidRequest, on_bid_request)
    ctx.messenger.register("bid", Bid)
    ctx.messenger.register("decline", Decline)


async def _on_bid_request(ctx: Context, message: Incoming) -> Answer:
    request: BidRequest = message.body
    if request.requester.did != message.sender:
        raise RejectedMessageError("the bid request is not the sender's own", code="wrong_sender")
    comparison, price = assess(ctx, request, await _compare_image(ctx, request))
    bid = create_bid(ctx, request, comparison, price) if comparison.verdict == "accept" else None

    def change(t: Transaction) -> bool:
        if t.find("bid_requests", request.id) is None:
            t.put("bid_requests", {**plain(request), "direction": "received", "at": units.utc_now()})
        locked = False
        if bid is not None:
            if ctx.config.lock_on_bid:
                ctx.accounting.lock(t, bid.id, request.job_id, request.required_capability.resources, bid.timeout)
                locked = True
            row = {**plain(bid), "kind": "bid", "direction": "sent", "did": message.sender, "at": units.utc_now()}
            t.put("bids", {**row, "resources_locked_until_timeout": locked, "verdict": "offered"})
            t.save_event(request.job_id, "bid_sent", bid_id=bid.id, requester=request.requester.peer_id)
        else:
            t.save_event(request.job_id, "decline_sent", reasons=list(comparison.reasons))
        return locked

    locked = await ctx.store.change(change)
    if bid is None:
        return "decline", Decline(request.id, request.job_id, ctx.identity.node_id, comparison)
    return "bid", msgspec.structs.replace(bid, resources_locked_until_timeout=locked)


async def _compare_image(ctx: Context, request: BidRequest) -> tuple[Comparison, ...]:
    """Compare the image that a job needs with those that can run here; nothing where there is none to compare."""
    names = request.required_capability.executors
    executor = ctx.executors.get(names[0]) if names and names[0] in ctx.available_executors else None
    if executor is None or not request.image:
        return ()
    reason = await executor.refusal(request.image)
    return (Comparison("executor.image", "worse" if reason else "equal", request.image, "", "", reason),)


def assess(
    ctx: Context, request: BidRequest, more: tuple[Comparison, ...] = ()
) -> tuple[CapabilityComparison, PriceBid]:
    """Compare a request with what this provider has left now, and decide; return the comparison and the price.

    `more` are comparisons that the caller had to wait for.
    """
    required = request.required_capability
    price = ctx.accounting.price()
    cost = total_price(units.parse_amount(price.amount), price.time_unit, max(1, required.time.max))
    available = offer_to(ctx, request.requester.did, cost)
    fields = compare(required, available) + more
    return accept(fields, ctx.accounting.preferences(), requester=request.requester.did, price=cost), price


def offer_to(ctx: Context, requester: str, cost: int) -> Capability:
    """Return what this provider offers a requester: what is left, the executors it may use, and the cost."""
    available = ctx.accounting.available(ctx.store)
    usable = tuple(name for name in available.executors if may_use(ctx, name, requester))
    return msgspec.structs.replace(available, executors=usable, price=PriceBid(amount=units.format_amount(cost)))


def may_use(ctx: Context, executor: str, requester: str) -> bool:
    """Say whether a requester's jobs may use an executor here; commands of strangers only as configured."""
    if executor not in ctx.available_executors:
        return False
    if executor != "process" or requester == ctx.identity.did:
        return True
    process = ctx.config.executor.process
    if requester in process.trusted or process.foreign == "unsandboxed":
        return True
    return process.foreign == "sandboxed" and ctx.available_executors["process"] == SANDBOXED


def create_bid(ctx: Context, request: BidRequest, comparison: CapabilityComparison, price: PriceBid) -> Bid:
    """Return the offer (seed 2: `createBid`)."""
    now = units.now()
    timeout = units.format_time(now + timedelta(seconds=ctx.config.bid_timeout))
    return Bid(
        id=new_id("bid"), bid_request_id=request.id, job_id=request.job_id, bidder=ctx.identity.node_id, price=price,
        time=TimeBid(start=units.format_time(now), duration=max(1, request.required_capability.time.max)),
        timeout=timeout, spec_cid=request.spec_cid, comparison=comparison,
    )  # fmt: skip


def sent_bid(ctx: Context, bid_id: str, requester: str) -> dict[str, Any]:
    """Return a bid of this provider's that was made to a requester.

    Raises:
        PeerError: there is no such bid.
    """
    row = ctx.store.find("bids", bid_id)
    if row is None or row["direction"] != "sent" or row["did"] != requester:
        raise PeerError(f"no bid {bid_id} was made to you", code="no_bid_here")
    return row
