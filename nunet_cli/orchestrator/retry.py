"""When a provider fails: its contract is called off, and another bid, or another search, takes its place.

A job that has ended is run again as a person wants it: as a new attempt, which begins where the first one did.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Protocol

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.spec import JobSpec, encode_spec
from nunet_cli.orchestrator.changes import advance, find_job, let_go
from nunet_cli.orchestrator.needs import HasHeard, HasMessenger, HasProgress, HasStore
from nunet_cli.records.bids import BIDS, is_unit
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.jobs import JOBS, Attempt, ErrorRecord, Job, Refusal
from nunet_cli.records.machine import PROVIDER, REQUESTER
from nunet_cli.records.messages import JobCancel

CANCEL_LIFETIME = 14 * 86400
MAX_LAPSES = 3
# an item goes elsewhere that had so many contracts with one provider, at which no place came free for it
MAX_IN_VAIN = 10
# of so many earlier attempts it is kept with a job how they went; the events have all
MAX_PAST = 100
# where this is not in it, a specification has none, and need not be read
_A_DEADLINE = '"deadline":"2'


class GivingUp(HasHeard, HasMessenger, HasProgress, HasStore, Protocol):
    """Gives a provider up, and tells it when it is back."""


def may_retry(job: Job) -> bool:
    """Say whether a job's `retry` allows one more attempt."""
    return job.attempts < decode_spec(job.spec).retry.attempts


def has_next_bid(job: Job) -> bool:
    """Say whether the shortlist has a bid after the present one."""
    return job.place + 1 < len(job.shortlist)


def search_again(t: Transaction, job: Job, provider: str, said: dict[str, Any]) -> Job:
    """Put a job back into the search as a new attempt, without the provider that failed; how it went stays with it.

    Args:
        t: the change.
        job: the job.
        provider: the DID of the one that failed.
        said: why, with `reason` and, where there is one, `message`; `paid` is what the attempt cost, where it is known.
    """
    error = ErrorRecord(str(said["reason"]), str(said.get("message", "")))
    past = _past(structs.replace(job, error=error, paid=said.get("paid", job.paid)), "failed", quantities.utc_now())
    number = {"retry": job.attempts + 1, "attempt": job.attempt + 1}
    return advance(
        t, job.id, "search_again", by=REQUESTER, said={**number, **said}, attempts=job.attempts + 1,
        attempt=job.attempt + 1, past=past, excluded=tuple(sorted({*job.excluded, provider})), contract_id="",
        bid_id="", allocation_id="", result=None, collected=False, shortlist=(), place=0, given_up=False, usage=None,
        heard_at="", late=False, remark="", remarks=0,
    )  # fmt: skip


def _past(job: Job, state: str, ended_at: str) -> tuple[Attempt, ...]:
    """Return how a job has run before, with the attempt that it gives up now."""
    attempt = Attempt(
        job.attempt, state, ended_at, job.bid_id, job.contract_id, job.allocation_id, job.paid, job.result, job.error,
        job.called_off,
    )  # fmt: skip
    return (*job.past, attempt)[-MAX_PAST:]


def search_elsewhere(t: Transaction, job: Job, provider: str, said: dict[str, Any]) -> Job:
    """Put a job that was not begun back into the search, without a provider, as part of a change: no new attempt."""
    return advance(
        t, job.id, "search_again", by=REQUESTER, said=said, contract_id="", bid_id="", bid_request_id="",
        allocation_id="", result=None, collected=False, usage=None, shortlist=(), place=0,
        excluded=tuple(sorted({*job.excluded, provider})), given_up=True,
    )  # fmt: skip


def look_again(t: Transaction, job: Job, said: dict[str, Any], *, counts: bool = True) -> bool:
    """Put a job back into the search where what it was offered lapsed by nobody's doing.

    False after a few times, of those that count.
    """
    if counts and job.lapses >= MAX_LAPSES:
        return False
    advance(
        t, job.id, "search_again", by=REQUESTER, said=said, lapses=job.lapses + counts, contract_id="", bid_id="",
        shortlist=(), place=0, allocation_id="", result=None, collected=False, usage=None,
    )  # fmt: skip
    return True


def note_called_off(t: Transaction, contract_id: str, by: Literal["cancel", "silence"]) -> None:
    """Keep with a contract when its provider was told to stop, the first time: `by` a `cancel`, or given up here."""
    record = t[CONTRACTS].get(contract_id)
    if record is not None and not record.called_off_at:
        t[CONTRACTS].put(structs.replace(record, called_off_at=quantities.utc_now(), called_off_by=by))


async def give_up(ctx: GivingUp, job_id: str, error: NunetError) -> bool:
    """Call off a contract whose provider is silent or refuses to start, and go on without it; False where nothing is.

    The provider gets the order to stop when it is back. What it has finished by then is paid and fetched; what it has
    not earned comes back with its answer, or after the contract's deadline.
    """
    job = find_job(ctx.store, job_id)
    contract = ctx.store[CONTRACTS].get(job.contract_id)
    # what has not begun goes on with the next bid; an item under a bid for many, with another provider's
    has_another = job.state == "contracted" and (has_next_bid(job) or is_unit(job.bid_id))
    if contract is None or not (may_retry(job) or has_another):
        return False
    body = JobCancel(contract_id=contract.id)
    message = ctx.messenger.outbox.outgoing(contract.provider, "job_cancel", body, lifetime=CANCEL_LIFETIME)
    said = {"reason": error.code, "message": error.message, "contract_id": contract.id}

    def change(t: Transaction) -> None:
        current = t[JOBS].one(job_id)
        if current.contract_id != contract.id or current.state != job.state:
            # the result, or another sign of life, came just now
            return
        ctx.messenger.outbox.enqueue(t, message)
        note_called_off(t, contract.id, "silence")
        let_go(ctx, t, contract.id, job_id)
        if current.state == "contracted" and has_next_bid(current):
            bid = t[BIDS].get(current.bid_id)
            peer = bid.bidder.peer_id if bid is not None else ""
            advance(
                t, job_id, "decline", by=PROVIDER, about=current.bid_id,
                said={**said, "refused_by": peer, "reason": error.message}, place=current.place + 1, contract_id="",
                refusals=(*current.refusals, Refusal(current.bid_id, peer, error.message)), given_up=True,
            )  # fmt: skip
        elif current.state == "contracted" and is_unit(current.bid_id):
            # nothing was begun. The place was another's by the time: that may be had again
            if error.code != "allocation_error" or not look_again(t, current, said):
                search_elsewhere(t, current, contract.provider, said)
        else:
            search_again(t, current, contract.provider, said)

    await ctx.store.change(change)
    return True


def start_over(t: Transaction, job: Job, spec: JobSpec | None = None, push: tuple[str, ...] = ()) -> Job:
    """Put a job that has ended back to its beginning as a new attempt, as part of a change; return it.

    How it went before is kept with it, with its contract: that is closed on its own, as when `retry` goes on without a
    provider. A `time.deadline` that has passed is as long after now as it was after the attempt's beginning.

    Args:
        t: the change.
        job: the job.
        spec: the specification that it was posted with, where links have added to it since; None keeps what it has.
        push: with `spec`: the providers that it was posted for.

    Raises:
        StateError: it has not ended, or is settled.
    """
    now = quantities.now()
    begun = job.created_at if spec is not None else job.run_at or job.created_at
    fields: dict[str, Any] = {}
    if spec is not None:
        fields = {"released": False, "link_rules": (), "push": push}
    if spec is not None or _A_DEADLINE in job.spec:
        text = encode_spec(_renewed(decode_spec(job.spec) if spec is None else spec, quantities.parse_time(begun), now))
        fields |= {"spec": text.decode(), "spec_cid": content_id(text)}
    said = {"name": job.name, "kind": job.kind, "attempt": job.attempt + 1}
    return advance(
        t, job.id, "retry", by=REQUESTER, said=said, attempt=job.attempt + 1, run_at=quantities.format_time(now),
        past=_past(job, job.state, job.changed_at), bid_request_id="", shortlist=(), place=0, tries=0, attempts=0,
        lapses=0, excluded=(), refusals=(), given_up=False, waiting=None, next_run="", bid_id="", contract_id="",
        allocation_id="", heard_at="", remark="", remarks=0, usage=None, result=None, late=False, collected=False,
        paid=None, error=None, message=None, note=None, called_off="", **fields,
    )  # fmt: skip


def _renewed(spec: JobSpec, begun: datetime, now: datetime) -> JobSpec:
    """Return a specification, and those of a pod's members, with deadlines that have not passed."""
    time, deadline = spec.time, spec.time.deadline
    if deadline and quantities.parse_time(deadline) <= now:
        moved = quantities.format_time(now + (quantities.parse_time(deadline) - begun))
        time = structs.replace(time, deadline=moved)
    children = tuple(_renewed(child, begun, now) for child in spec.children) if spec.pod else spec.children
    return structs.replace(spec, time=time, children=children)
