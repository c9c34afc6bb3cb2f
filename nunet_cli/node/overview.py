"""The node on one page: who it is, what it does, what it has earned and spent."""

from __future__ import annotations

import os
from typing import Any

from nunet_cli import __version__, units
from nunet_cli.errors import ContractError
from nunet_cli.jobs.states import ALLOCATION_ENDS, JOB_ENDS
from nunet_cli.network.peers import format_address
from nunet_cli.node.node import Node
from nunet_cli.orchestrator.bid import open_to_strangers

MOST = 20


def status(node: Node) -> dict[str, Any]:
    """Return what `nunet status`, `nunet top` and `nunet dashboard` show."""
    ctx, store = node.ctx, node.ctx.store
    jobs = store.table("jobs").all()
    allocations = store.table("allocations").all()
    open_jobs = [row for row in jobs if row["state"] not in JOB_ENDS]
    running = [row for row in allocations if row["state"] not in ALLOCATION_ENDS]
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
        "jobs": {
            "all": len(jobs), "open": len(open_jobs),
            "settled": sum(row["state"] == "settled" for row in jobs),
            "failed": sum(row["state"] in ("failed", "expired") for row in jobs),
            "disputed": sum(row["state"] == "disputed" for row in jobs),
            "now": [{"id": row["id"], "name": row["name"], "state": row["state"], "waiting": row.get("waiting")}
                    for row in open_jobs[-MOST:]],
        },
        "allocations": {
            "all": len(allocations), "running": len(running),
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


def _known(node: Node, role: str) -> str:
    configured = node.ctx.config.contract_database if role == "contract-database" else node.ctx.config.oracle
    try:
        return node.ctx.find_role(role, configured)
    except ContractError:
        return ""
