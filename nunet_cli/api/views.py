"""What the API shows of the store's rows: stable JSON keys, amounts as decimal strings, no internal fields."""

from __future__ import annotations

from typing import Any

from msgspec import to_builtins

from nunet_cli import quantities
from nunet_cli.network.addresses import format_address
from nunet_cli.network.peers import Peer, Told
from nunet_cli.node.node import Node
from nunet_cli.orchestrator.logs import read_piece
from nunet_cli.orchestrator.permissions import open_to_strangers
from nunet_cli.records.bids import BIDS, BidRecord, CapabilityComparison
from nunet_cli.records.contract_records import CONTRACTS, Completion, ContractRecord, RegisteredContract
from nunet_cli.records.contracts import Contract, Proof, Receipt
from nunet_cli.records.identifiers import key_from_did, peer_id_from_key
from nunet_cli.records.jobs import JOB_ENDS, JOBS, Attempt, Job

# of a group: so many of its failures, with the end of what each wrote
FAILURES_SHOWN, LAST_BYTES, LAST_LINES = 5, 1000, 3
NEXT_COMMAND = {
    "posted": "match", "matching": "match", "expired": "match", "matched": "request", "requested": "contract",
    "contracted": "invoke", "invoked": "settle", "running": "settle", "completed": "settle", "verified": "settle",
}  # fmt: skip


def job(row: Job) -> dict[str, Any]:
    """Return a job; `next` is the stage that comes now, or null."""
    return {
        "id": row.id, "name": row.name, "state": row.state, "requester": row.requester,
        "created_at": row.created_at, "changed_at": row.changed_at, "push": row.push,
        "limit": quantities.format_amount(row.limit), "paid": row.paid, "bid_id": row.bid_id or None,
        "contract_id": row.contract_id or None, "allocation_id": row.allocation_id or None,
        "attempts": row.attempts, "usage": to_builtins(row.usage), "result": to_builtins(row.result),
        "message": row.message, "note": row.note, "error": to_builtins(row.error), "spec_cid": row.spec_cid,
        "kind": row.kind, "parent": row.parent or None,
        "waiting": waiting(row),
        "next_run": row.next_run or None, "next": next_command(row), "attempt": row.attempt,
        "called_off": row.called_off or None, "item": row.item or None,
        "remark": (row.state == "running" and row.remark) or None,
    }  # fmt: skip


def waiting(row: Job) -> Any:
    """Return what a job waits for; null for one that has ended, whatever it waited for then."""
    return to_builtins(row.waiting) if row.state not in JOB_ENDS else None


def attempt(node: Node, past: Attempt) -> dict[str, Any]:
    """Return an earlier attempt of a job, and who ran it."""
    record = node.ctx.store[CONTRACTS].get(past.contract_id) if past.contract_id else None
    return {
        "number": past.number, "state": past.state, "ended_at": past.ended_at, "bid_id": past.bid_id or None,
        "contract_id": past.contract_id or None, "allocation_id": past.allocation_id or None, "paid": past.paid,
        "provider": did_text(record.provider) if record is not None else None, "result": to_builtins(past.result),
        "error": to_builtins(past.error), "called_off": past.called_off or None,
    }  # fmt: skip


def next_command(row: Job) -> str | None:
    """Return the stage that comes next for a job, `run` for one that has no stages of its own, None at its end."""
    if row.kind == "job":
        return NEXT_COMMAND.get(row.state)
    return "run" if row.kind != "member" and row.state in ("posted", "running") else None


def bid(row: BidRecord) -> dict[str, Any]:
    """Return a bid, a decline or a silence; what only a bid has is null in the others."""
    view = {
        "id": row.id, "kind": row.kind, "direction": row.direction, "job_id": row.job_id,
        "bid_request_id": row.bid_request_id, "bidder": row.bidder.peer_id, "peer": row.did,
        "price": None, "time": None, "score": row.score, "rank": row.rank, "why": row.why or None,
        "verdict": row.verdict, "reasons": list(row.reasons), "timeout": None, "locked": None,
        "comparison": to_builtins(compared(row)), "at": row.at,
    }  # fmt: skip
    if row.bid is not None:
        view |= {
            "price": to_builtins(row.bid.price), "time": to_builtins(row.bid.time), "timeout": row.bid.timeout,
            "locked": row.bid.resources_locked_until_timeout,
        }  # fmt: skip
    return view


def compared(row: BidRecord) -> CapabilityComparison | None:
    """Return the comparison that a bid or a decline rests on; a silence has none."""
    return row.bid.comparison if row.bid is not None else row.comparison


def contract(row: ContractRecord, *, whole: bool = False) -> dict[str, Any]:
    """Return a contract; `whole` adds the signed documents."""
    view: dict[str, Any] = {
        key: getattr(row, key)
        for key in (
            "id", "job_id", "role", "state", "requester", "provider", "contract_database", "oracle", "payment",
            "deposit", "deadline", "created_at", "message",
        )
    }  # fmt: skip
    view |= {"requester_peer": did_text(row.requester), "provider_peer": did_text(row.provider)}
    if whole:
        documents = ("document", "proof", "result", "verdict", "receipt")
        view["documents"] = {key: to_builtins(getattr(row, key)) for key in documents}
    return view


def recorded(row: RegisteredContract) -> dict[str, Any]:
    """Return a contract as the contract database has recorded it, for its operator."""
    text = row.document.read(Contract)
    receipt = row.receipt.read(Receipt) if row.receipt is not None else None
    return {
        "id": row.id, "job_id": row.job_id, "state": row.state, "requester": row.requester, "provider": row.provider,
        "requester_peer": did_text(row.requester), "provider_peer": did_text(row.provider), "payment": text.payment,
        "deposit": text.terms.deposit, "verification": text.terms.verification,
        "recorded_at": row.proof.read(Proof).registered_at, "deadline": row.deadline, "window_from": row.window_from,
        "paid": receipt.paid if receipt else None, "refunded": receipt.refunded if receipt else None,
        "reason": receipt.reason if receipt else None, "closed_at": receipt.settled_at if receipt else None,
    }  # fmt: skip


def completion(row: Completion) -> dict[str, Any]:
    """Return a completion as its provider told this oracle of it, for the oracle's operator."""
    return {
        "id": row.id, "job_id": row.job_id, "requester": row.requester, "provider": row.provider,
        "requester_peer": did_text(row.requester), "provider_peer": did_text(row.provider), "told_at": row.at,
        "deadline": row.deadline, "result_cid": row.result.cid, "verdict": row.verdict or None,
        "shown_instead": row.shown or None,
    }  # fmt: skip


def peer(item: Peer) -> dict[str, Any]:
    """Return a peer; `rtt` is milliseconds, `clock` the seconds by which its clock is ahead of this machine's."""
    problem = item.obstacle
    return {
        "peer_id": item.peer_id, "did": item.did, "addresses": [format_address(*address) for address in item.to_try],
        "roles": list(item.roles), "source": item.source, "connected": item.connected,
        "rtt": None if item.rtt is None else round(item.rtt * 1000, 2), "last_seen": item.last_seen or None,
        "clock": None if item.clock is None else round(item.clock, 3), "agent": item.agent,
        "protocol": "" if item.version is None else ".".join(map(str, item.version)), "features": list(item.features),
        "problem": "" if problem is None else problem.message,
    }  # fmt: skip


def peer_detail(item: Peer, told: Told | None) -> dict[str, Any]:
    """Return a peer with what it told of its capability; null where it did not."""
    return {**peer(item), "told": None if told is None else to_builtins(told._asdict())}


def capability(node: Node) -> dict[str, Any]:
    """Return registered, available, locked and allocated capability, price and benchmark."""
    accounting = node.accounting
    onboarded = accounting.is_onboarded()
    return {
        "onboarded": onboarded,
        "registered": to_builtins(node.get_registered_capability()) if onboarded else None,
        "available": to_builtins(node.get_available_capability()) if onboarded else None,
        "taken": to_builtins(accounting.taken(node.ctx.store)),
        "price": to_builtins(accounting.price()),
        "offer": to_builtins(accounting.offer()),
        "benchmark": to_builtins(accounting.benchmark()),
        "executors": node.ctx.available_executors,
        "strangers": open_to_strangers(node.ctx),
    }


def explain(node: Node, row: Job) -> dict[str, Any]:
    """Return the table provider × constraint of the last bid request, and the smallest change that would help."""
    from nunet_cli.matching import explain as reasons

    request_id = row.bid_request_id
    if not request_id and row.parent:
        # of an item of a batch, which is asked for with all others
        above = node.ctx.store[JOBS].get(row.parent)
        request_id = above.bid_request_id if above is not None else ""
    ranked = node.get_registered_bids(request_id) if request_id else []
    answered = node.ctx.store[BIDS].by("bid_request_id", request_id) if request_id else []
    # the bids, the best first, and then who made none
    last = [*ranked, *(item for item in answered if item.kind != "bid")]
    answers, declined, whole = [], [], []
    for item in last:
        comparison = compared(item)
        fields = list(comparison.fields) if comparison is not None else []
        peer, why = item.bidder.peer_id, list(item.reasons)
        whole.append((peer, fields, why))
        if item.kind == "decline" and not item.free_at:
            # who is only busy takes the job as it is, later
            declined.append(whole[-1])
        answers.append(
            {
                "peer": peer, "bid": item.id if item.kind == "bid" else None, "verdict": item.verdict, "reasons": why,
                "why": item.why or None,
                "missed": to_builtins([field for field in fields if field.result in ("worse", "error")]),
            }
        )  # fmt: skip
    suggestion = None if ranked else reasons.suggest(declined)
    return {
        "job_id": row.id, "state": row.state, "error": to_builtins(row.error), "answers": answers,
        "table": reasons.table(whole), "refusals": to_builtins(row.refusals), "waiting": waiting(row),
        "suggestion": {
            **to_builtins(suggestion), "text": reasons.sentence(suggestion),
        } if suggestion is not None else None,
        "children": children_summary(node, row),
    }  # fmt: skip


def children_summary(node: Node, row: Job) -> dict[str, Any] | None:
    """Return how the children of a group stand, and why; None for a job that has none of its own."""
    from nunet_cli.matching import explain as reasons

    if not row.children:
        return None
    found = {child.id: child for child in node.ctx.store[JOBS].by("parent", row.id)}
    children = [found[child_id] for child_id in row.children.values()]
    stands = [(child.name, child.state, _why(child)) for child in children]
    return {
        "counts": reasons.counts(child.state for child in children), "parts": to_builtins(reasons.parts(stands)),
    }  # fmt: skip


def _why(child: Job) -> str:
    """Return why a child of a group is in its state, where there is something to say."""
    if child.error is not None and child.state in ("failed", "expired", "disputed", "cancelled"):
        return child.error.message
    if child.state == "cancelled":
        return child.called_off
    return child.waiting.for_ if child.waiting is not None else ""


def failures(node: Node, row: Job) -> list[dict[str, Any]]:
    """Return the first children of a group that failed, and the last lines that each wrote; it reads their logs."""
    failed = node.ctx.store[JOBS].page(FAILURES_SHOWN, parent=row.id, state="failed").rows if row.children else []
    return [
        {"name": child.name, "id": child.id, "message": _why(child), "lines": _last_lines(node, child)}
        for child in failed
    ]


def _last_lines(node: Node, child: Job) -> list[str]:
    """Return the end of a job's standard error, or of its output where that is empty, as far as it is here."""
    result = child.result
    if result is None or not child.collected:
        return []
    cid = result.stderr_cid if result.stderr_size else result.stdout_cid
    size = result.stderr_size or result.stdout_size
    data = read_piece(node.ctx.blobs.path(cid), max(0, size - LAST_BYTES)) if cid else b""
    return data.decode(errors="replace").splitlines()[-LAST_LINES:]


def did_text(did: str) -> str:
    """Return the peer id of a DID."""
    return peer_id_from_key(key_from_did(did))
