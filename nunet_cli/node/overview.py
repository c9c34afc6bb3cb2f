"""The node on one page: who it is, what it does, what it has earned and spent."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from nunet_cli import __version__, quantities
from nunet_cli.database.store import Store
from nunet_cli.errors import ContractError
from nunet_cli.network.addresses import format_address
from nunet_cli.node.node import Node
from nunet_cli.orchestrator.permissions import open_to_strangers
from nunet_cli.records.allocations import ALLOCATION_ENDS, ALLOCATIONS
from nunet_cli.records.contract_records import BALANCES, STATEMENTS
from nunet_cli.records.jobs import JOB_ENDS, JOBS

MOST = 20


def status(node: Node) -> dict[str, Any]:
    """Return what `nunet status`, `nunet top` and `nunet dashboard` show."""
    ctx, store = node.ctx, node.ctx.store
    # counted by the index: what has ended is not read
    jobs, allocations = store[JOBS].count_by("state"), store[ALLOCATIONS].count_by("state")
    open_jobs = store[JOBS].page(MOST, newest=True, state=tuple(jobs.keys() - JOB_ENDS))
    running = store[ALLOCATIONS].page(MOST, newest=True, state=tuple(allocations.keys() - ALLOCATION_ENDS))
    earned, spent = _moved(store)
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
            "all": sum(jobs.values()), "open": open_jobs.total,
            "settled": jobs.get("settled", 0),
            "failed": jobs.get("failed", 0) + jobs.get("expired", 0),
            "cancelled": jobs.get("cancelled", 0),
            "disputed": jobs.get("disputed", 0),
            "states": jobs,
            "now": [{"id": job.id, "name": job.name, "state": job.state, "waiting": msgspec.to_builtins(job.waiting)}
                    for job in reversed(open_jobs.rows)],
        },
        "allocations": {
            "all": sum(allocations.values()), "running": running.total,
            "now": [{"id": row.id, "job_id": row.job_id, "state": row.state, "usage": msgspec.to_builtins(row.usage)}
                    for row in reversed(running.rows)],
        },
        "load": node.accounting.load(store) if onboarded else 0.0,
        "balances": msgspec.to_builtins(list(store[BALANCES].all())),
        "earned": quantities.format_amount(earned), "spent": quantities.format_amount(spent),
        "known_roles": {role: _known(node, role) for role in ("contract-database", "oracle")},
        "undecided": ctx.roles.undecided(),
        "rejections": dict(ctx.transport.rejections), "failures": dict(ctx.supervisor.failures),
        "machine": {
            **node.accounting.machine(), "others_cpu": node.accounting.monitor.others_cpu,
            "short_of": list(node.accounting.monitor.pressure()),
        },
    }  # fmt: skip


def _moved(store: Store) -> tuple[int, int]:
    """Return what came to this node's account and what went from it in all, in micro-NTX; by the index of amounts."""
    earned = spent = 0
    for amount, count in store[STATEMENTS].count_by("amount").items():
        if amount.startswith("-"):
            spent += quantities.parse_amount(amount[1:]) * count
        else:
            earned += quantities.parse_amount(amount) * count
    return earned, spent


def _known(node: Node, role: str) -> str:
    try:
        return node.ctx.roles.find(role)
    except ContractError:
        return ""
