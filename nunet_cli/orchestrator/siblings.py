"""Stage 7, the replicas of one job: what the others did, which the oracle compares."""

from __future__ import annotations

from typing import Any

import msgspec

from nunet_cli.orchestrator.context import Context
from nunet_cli.records.contracts import Replica
from nunet_cli.records.documents import Document


def other_replicas(ctx: Context, job: dict[str, Any]) -> tuple[Replica, ...]:
    """Return the documents of a replica's siblings that have a result, for the oracle."""
    parent = ctx.store.find("jobs", job["parent"]) if job["parent"] else None
    if parent is None or parent["kind"] != "replicas":
        return ()
    found = []
    for child_id in parent["units"].values():
        contract_id = ctx.job(child_id)["contract_id"]
        contract = ctx.store.find("contracts", contract_id) if contract_id and child_id != job["id"] else None
        if contract is not None and contract["result"] and contract["proof"]:
            documents = (msgspec.convert(contract[key], Document) for key in ("document", "proof", "result"))
            found.append(Replica(*documents))
    return tuple(found)
