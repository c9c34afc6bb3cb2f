"""The node on one page: who it is, what it does, what it has earned and spent."""

from __future__ import annotations

import os
from collections.abc import Set
from typing import Any

from tinydb import Query

from nunet_cli import __version__, units
from nunet_cli.database.store import Store
from nunet_cli.errors import ContractError
from nunet_cli.network.addresses import format_address
from nunet_cli.node.node import Node
from nunet_cli.orchestrator.bid import open_to_strangers
from nunet_cli.records.states import ALLOCATION_ENDS, JOB_ENDS

MOST = 20


def status(node: Node) -> dict[str, Any]:
    """Return what `nunet status`, `nunet top` and `nunet dashboard` show."""
    ctx, store = node.ctx, node.ctx.store
    # counted by the index: what has ended is not read
    jobs, allocations = store.table("jobs").count_by("state"), store.table("allocations").count_by("state")
    open_jobs = _in_states(store, "jobs", jobs.keys() - JOB_ENDS)
    running = _in_states(store, "allocations", allocations.keys() - ALLOCATION_ENDS)
    moved = [units.parse_amount(row["amount"].removeprefix("-")) * (-1 if row["amount"].startswith("-") else 1)
             for row in store.table("statements").all()]  # fmt: skip
    onboarded = node.accounting.is_onboarded()
    return {
        "version": __version__, "pid": os.getpid(), "home": str(ctx.home), "peer_id": node.identity.peer_id,
        "did": node.identity.did,
        "listen": format_address(ctx.transport.host, ctx.transport.port) if ctx.transport.port else "",
        "address": ctx.transport.describe() if ctx.transport.port else "",
        "network": ctx.config.network.name, "started_at": node.started_at, "roles": list(ctx.topics.roles),
        "onboarded": onboarded, "executors": dict(ctx.available_executors),
        "strangers": open_to_strangers(ctx),
        "peers": {"known": sum(1 for _ in ctx.peers), "connected": len(ctx.transport.connected())},
        # by how many seconds the clocks of the peers that are there are ahead of this machine's
        "clocks": {p.peer_id: round(p.clock, 3) for p in ctx.peers if p.connected and p.clock is not None},
        "jobs": {
            "all": sum(jobs.values()), "open": len(open_jobs),
            "settled": jobs.get("settled", 0),
            "failed": jobs.get("failed", 0) + jobs.get("expired", 0),
            "cancelled": jobs.get("cancelled", 0),
            "disputed": jobs.get("disputed", 0),
            "now": [{"id": row["id"], "name": row["name"], "state": row["state"], "waiting": row.get("waiting")}
                    for row in open_jobs[-MOST:]],
        },
        "allocations": {
            "all": sum(allocations.values()), "running": len(running),
            "now": [{"id": row["id"], "job_id": row["job_id"], "state": row["state"], "usage": row["usage"]}
                    for row in running[-MOST:]],
        },
        "load": node.accounting.load(store) if onboarded else 0.0,
        "balances": [dict(row) for row in store.table("balances").all()],
        "earned": units.format_amount(sum(amount for amount in moved if amount > 0)),
        "spent": units.format_amount(-sum(amount for amount in moved if amount < 0)),
        "known_roles": {role: _known(node, role) for role in ("contract-database", "oracle")},
        "undecided": ctx.undecided(),
        "rejections": dict(ctx.transport.rejections), "failures": dict(ctx.supervisor.failures),
        "machine": node.accounting.machine(),
    }  # fmt: skip


def _in_states(store: Store, table: str, states: Set[str]) -> list[dict[str, Any]]:
    """Return the rows that are in one of some states, in the order in which they were made."""
    rows = [row for state in states for row in store.table(table).search(Query().state == state)]
    return [dict(row) for row in sorted(rows, key=lambda row: row.doc_id)]


def _known(node: Node, role: str) -> str:
    configured = node.ctx.config.contract_database if role == "contract-database" else node.ctx.config.oracle
    try:
        return node.ctx.find_role(role, configured)
    except ContractError:
        return ""
