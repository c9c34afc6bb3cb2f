"""Stage 7, the replicas of one job: what the others did, which the oracle compares."""

from __future__ import annotations

from nunet_cli.jobs.check import decode_spec
from nunet_cli.orchestrator.changes import find_job
from nunet_cli.orchestrator.needs import HasStore
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.messages import Replica


def other_replicas(ctx: HasStore, job: Job) -> tuple[Replica, ...]:
    """Return the documents of a replica's siblings that have a result, for the oracle."""
    if decode_spec(job.spec).verify.policy != "replicate":
        # the row of a group of thousands is not read for each of them
        return ()
    parent = ctx.store[JOBS].get(job.parent) if job.parent else None
    if parent is None or parent.kind != "replicas":
        return ()
    found = []
    for child_id in parent.children.values():
        contract_id = find_job(ctx.store, child_id).contract_id
        contract = ctx.store[CONTRACTS].get(contract_id) if contract_id and child_id != job.id else None
        if contract is not None and contract.result is not None and contract.proof is not None:
            found.append(Replica(contract.document, contract.proof, contract.result))
    return tuple(found)
