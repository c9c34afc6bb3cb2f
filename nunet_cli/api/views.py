"""What the API shows of the store's rows: stable JSON keys, amounts as decimal strings, no internal fields."""

from __future__ import annotations

from typing import Any

from nunet_cli import units
from nunet_cli.network.addresses import format_address
from nunet_cli.network.peers import Peer
from nunet_cli.node.node import Node
from nunet_cli.orchestrator.bid import open_to_strangers
from nunet_cli.records.identifiers import peer_id_from_key

NEXT_COMMAND = {
    "posted": "match", "matching": "match", "expired": "match", "matched": "request", "requested": "contract",
    "contracted": "invoke", "invoked": "settle", "running": "settle", "completed": "settle", "verified": "settle",
}  # fmt: skip


def job(row: dict[str, Any]) -> dict[str, Any]:
    """Return a job; `next` is the stage that comes now, or null."""
    return {
        "id": row["id"], "name": row["name"], "state": row["state"], "requester": row["requester"],
        "created_at": row["created_at"], "changed_at": row["changed_at"], "push": row["push"] or None,
        "limit": units.format_amount(row["limit"]), "paid": row.get("paid"), "bid_id": row["bid_id"] or None,
        "contract_id": row["contract_id"] or None, "allocation_id": row["allocation_id"] or None,
        "attempts": row["attempts"], "usage": row.get("usage"), "result": row.get("result"),
        "message": row.get("message"), "note": row.get("note"), "error": row["error"], "spec_cid": row["spec_cid"],
        "kind": row["kind"], "parent": row["parent"] or None, "waiting": row.get("waiting"),
        "next_run": row.get("next_run"), "next": next_command(row),
    }  # fmt: skip


def next_command(row: dict[str, Any]) -> str | None:
    """Return the stage that comes next for a job, `run` for one that has no stages of its own, None at its end."""
    if row["kind"] == "job":
        return NEXT_COMMAND.get(row["state"])
    return "run" if row["kind"] != "member" and row["state"] in ("posted", "running") else None


def bid(row: dict[str, Any]) -> dict[str, Any]:
    """Return a bid, a decline or a silence."""
    price, duration = row.get("price"), row.get("time")
    return {
        "id": row["id"], "kind": row["kind"], "direction": row["direction"], "job_id": row["job_id"],
        "bid_request_id": row["bid_request_id"], "bidder": row["bidder"]["peer_id"], "peer": row["did"],
        "price": price, "time": duration, "score": row.get("score"), "rank": row.get("rank"), "why": row.get("why"),
        "verdict": row["verdict"], "reasons": row.get("reasons", []), "timeout": row.get("timeout"),
        "locked": row.get("resources_locked_until_timeout"), "comparison": row.get("comparison"), "at": row["at"],
    }  # fmt: skip


def contract(row: dict[str, Any], *, whole: bool = False) -> dict[str, Any]:
    """Return a contract; `whole` adds the signed documents."""
    view = {
        key: row[key]
        for key in (
            "id", "job_id", "role", "state", "requester", "provider", "contract_database", "oracle", "payment",
            "deposit", "deadline", "created_at", "message",
        )
    }  # fmt: skip
    view |= {f"{role}_peer": did_text(row[role]) for role in ("requester", "provider")}
    if whole:
        view["documents"] = {key: row[key] for key in ("document", "proof", "result", "verdict", "receipt")}
    return view


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


def capability(node: Node) -> dict[str, Any]:
    """Return registered, available, locked and allocated capability, price and benchmark."""
    import msgspec

    accounting = node.accounting
    onboarded = accounting.is_onboarded()
    return {
        "onboarded": onboarded,
        "registered": msgspec.to_builtins(accounting.get_registered_capability()) if onboarded else None,
        "available": msgspec.to_builtins(accounting.get_available_capability()) if onboarded else None,
        "taken": msgspec.to_builtins(accounting.taken(node.ctx.store)),
        "price": msgspec.to_builtins(accounting.price()),
        "offer": msgspec.to_builtins(accounting.offer()),
        "benchmark": msgspec.to_builtins(accounting.benchmark()),
        "executors": node.ctx.available_executors,
        "strangers": open_to_strangers(node.ctx),
    }


def explain(node: Node, row: dict[str, Any]) -> dict[str, Any]:
    """Return the table provider × constraint of the last bid request, and the smallest change that would help."""
    import msgspec
    from tinydb import Query

    from nunet_cli.matching import explain as reasons
    from nunet_cli.records.bids import Comparison

    bids = node.ctx.store.table("bids").search(Query().job_id == row["id"])
    last = [item for item in bids if item["bid_request_id"] == row.get("bid_request_id")]
    answers, declined, whole = [], [], []
    for item in last:
        fields = msgspec.convert((item.get("comparison") or {}).get("fields", []), list[Comparison])
        peer = item["bidder"]["peer_id"]
        whole.append((peer, fields, item.get("reasons", [])))
        if item["kind"] == "decline":
            declined.append(whole[-1])
        answers.append(
            {
                "peer": peer, "verdict": item["verdict"], "reasons": item.get("reasons", []),
                "missed": [field for field in msgspec.to_builtins(fields) if field["result"] in ("worse", "error")],
                "why": item.get("why"),
            }
        )  # fmt: skip
    taken = any(item["kind"] == "bid" for item in last)
    suggestion = None if taken else reasons.suggest(declined)
    return {
        "job_id": row["id"], "state": row["state"], "error": row["error"], "answers": answers,
        "table": reasons.table(whole), "refusals": row.get("refusals", []), "waiting": row.get("waiting"),
        "suggestion": {
            **msgspec.to_builtins(suggestion), "text": reasons.sentence(suggestion),
        } if suggestion is not None else None,
    }  # fmt: skip


def did_text(did: str) -> str:
    """Return the peer id of a DID."""
    from nunet_cli.records.identifiers import key_from_did

    return peer_id_from_key(key_from_did(did))
