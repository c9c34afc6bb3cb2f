"""The receipt: what a person sees on a terminal at the end of a job that was settled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nunet_cli.cli.output import note, short
from nunet_cli.quantities import format_size

if TYPE_CHECKING:
    from nunet_cli.api.client import ApiClient


def print_receipt(client: ApiClient, job: dict[str, Any]) -> None:
    """Print who did the job, what it used, what it cost, and what is left."""
    rows = {"job": f"{job['name']}  {job['id']}"}
    database = ""
    if job["contract_id"]:
        contract = client.get(f"/contracts/{job['contract_id']}")
        database = contract["contract_database"]
        rows |= {
            "provider": contract["provider_peer"], "contract": contract["id"], "state": contract["state"],
            "verified by": contract["oracle"],
        }  # fmt: skip
    elif job["children"]:
        rows["children"] = f"{(job['counts'] or {}).get('settled', 0)} of {len(job['children'])} settled"
    text = used(job["usage"])
    if text:
        rows["used"] = text
    rows["paid"] = f"{job['paid']} NTX of at most {job['limit']} NTX" if job["limit"] != "0" else "volunteer compute"
    balances = {row["id"]: row["balance"] for row in client.get("/status")["balances"]}
    if database in balances:
        rows["balance"] = f"{balances[database]} NTX at {short(database)}"
    width = max(map(len, rows))
    note("")
    for name, value in rows.items():
        note(f"  {name:<{width}}  {value}")
    note("")


def used(usage: dict[str, Any] | None) -> str | None:
    """Return what a job used, and how often its service was started again, for people; None where nothing is known."""
    if not usage:
        return None
    restarts = f", {usage['restarts']} restarts" if usage.get("restarts") else ""
    memory = format_size(usage["max_memory"])
    return f"{usage['wall_seconds']:.1f} s, {usage['cpu_seconds']:.1f} s of processor, {memory} of memory{restarts}"
