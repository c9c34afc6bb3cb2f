"""Stage 4, the provider's half: a proposed contract that follows from this provider's bid is signed, and kept."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import msgspec
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.database.transition import transition
from nunet_cli.errors import ContractError, StateError
from nunet_cli.network.messenger import Answer, Change, Incoming
from nunet_cli.orchestrator.bid import Assessing, assess, offered_until, sent_bid
from nunet_cli.orchestrator.contract import Validating, contract_text, validate_provider
from nunet_cli.orchestrator.contract_keeping import contract_record
from nunet_cli.orchestrator.idle_locks import idle_reason
from nunet_cli.orchestrator.needs import Dealing, HasAccounting, HasClosings, HasIdentity, HasRoles
from nunet_cli.orchestrator.owners_rules import check_now
from nunet_cli.orchestrator.permissions import check_dealing
from nunet_cli.orchestrator.units import as_unit
from nunet_cli.records.bids import BID, BID_REQUESTS, BIDS, BidRecord, BidRequest, bid_id_of, is_unit, unit_number
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import DATABASE, ORACLE, PROVIDER, REQUESTER, UNVERIFIED, Contract
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.messages import ContractAgreement, ContractProposal

MAX_SKEW = timedelta(seconds=60)


class Agreeing(HasClosings, HasRoles, Validating, Assessing, Dealing, Protocol):
    """Closes a contract as its provider."""


def register(ctx: Agreeing) -> None:
    """Take contract proposals."""

    async def on_proposal(message: Incoming) -> Answer | Change:
        return await _on_proposal(ctx, message)

    ctx.messenger.register("contract_proposal", ContractProposal, on_proposal)


async def _on_proposal(ctx: Agreeing, message: Incoming) -> Answer | Change:
    document: Document = message.body.contract
    contract = document.read(Contract)
    known = _signed_before(ctx.store, document, message.sender)
    if known is not None:
        return known
    check_dealing(ctx, ctx.store, message.sender)
    bid = _open_bid(ctx, ctx.store, contract, message.sender)
    _check_roles(ctx, contract)
    agreement = generate_job_agreement(ctx, bid, contract)
    if agreement.content != document.content:
        raise ContractError(
            "the contract differs from the bid", code="terms_differ", details=_differences(agreement, document)
        )
    sign_by = quantities.parse_time(contract.sign_by)
    if (
        sign_by + MAX_SKEW <= quantities.now()
        or quantities.parse_time(contract.created_at) > quantities.now() + MAX_SKEW
    ):
        raise ContractError(
            f"the contract was to be signed between {contract.created_at} and {contract.sign_by}", code="bad_times",
            hint="compare the clocks of both machines",
        )  # fmt: skip
    if not await validate_provider(ctx, contract.requester, contract.contract_database):
        raise ContractError("the requester is not verified", code=UNVERIFIED)
    if is_unit(contract.bid_id):
        await _check_still_wanted(ctx, bid)
    agreed = agreement.sign(ctx.identity, PROVIDER)
    record = structs.replace(contract_record(agreed, "provider", ""), state="agreed")

    def change(t: Transaction) -> Answer:
        before = _signed_before(t, document, message.sender)
        if before is not None:
            return before
        check_dealing(ctx, t, message.sender)
        current = _open_bid(ctx, t, contract, message.sender)
        if t[CONTRACTS].first("bid_id", current.id) is not None:
            raise ContractError("there is a contract for this bid already", code="bid_used")
        request = t[BID_REQUESTS].one(current.bid_request_id).request
        resources = request.required_capability.resources
        lease = quantities.format_time(quantities.now() + timedelta(seconds=ctx.config.lock_lease))
        if is_unit(current.id):
            _take_unit(ctx, t, current, request, lease)
        else:
            # a lock that lapsed in the meantime is taken again, if there is still room
            duration = current.offer.time.duration
            ctx.accounting.lock_capability(t, current.id, current.job_id, resources, lease, duration, current.did)
            transition(t, current, "take", by=REQUESTER)
        t[CONTRACTS].put(record)
        t.then(partial(ctx.closings.look, record.id))
        t.save_event(current.job_id, "contract_agreed", contract_id=agreed.cid, deposit=contract.terms.deposit)
        return "contract_agreement", ContractAgreement(agreed)

    return change


def _signed_before(source: Store | Transaction, document: Document, sender: str) -> Answer | None:
    """Return the answer to a proposal that was agreed to already."""
    known = source[CONTRACTS].get(document.cid)
    if known is None or known.requester != sender:
        return None
    return "contract_agreement", ContractAgreement(known.document)


def _open_bid(ctx: HasAccounting, source: Store | Transaction, contract: Contract, sender: str) -> BidRecord:
    """Return the bid that a proposal is about, while it stands.

    Raises:
        PeerError: no such bid was made to the sender.
        ContractError: it timed out.
        StateError: it was released.
    """
    bid = sent_bid(source, bid_id_of(contract.bid_id), sender)
    if is_unit(contract.bid_id) and not unit_number(contract.bid_id):
        raise ContractError(f"{contract.bid_id} is no unit of a bid", code="no_bid_here")
    if is_unit(contract.bid_id) != (source[BID_REQUESTS].one(bid.bid_request_id).request.count > 1):
        raise ContractError(f"no bid {contract.bid_id} was made to you", code="no_bid_here")
    if offered_until(bid) <= quantities.utc_now() and not ctx.accounting.is_locked(source, bid.id):
        raise ContractError(f"the bid timed out at {offered_until(bid)}", code="bid_timeout")
    if bid.verdict != "taken":
        # what was released is locked for nobody any more; that it has its contract is said with that
        BID.move(bid, "lock", PROVIDER, None)
    return as_unit(bid, contract.bid_id, contract.job_id, contract.terms.spec_cid)


async def _check_still_wanted(ctx: Agreeing, unit: BidRecord) -> None:
    """Hold a bid for many units against what this provider's owner has decided since, before another one is taken.

    What the machine is like just now is looked at as the unit is taken.

    Raises:
        ContractError: the price is not the bid's any more, or the rules are against the job; code `offer_changed`.
    """
    comparator, price = ctx.accounting.get_preferences(), ctx.accounting.price()
    bid_id = bid_id_of(unit.id)
    if ctx.work.is_decided(bid_id, comparator, price):
        return
    request = ctx.store[BID_REQUESTS].one(unit.bid_request_id).request
    later = ctx.accounting.earliest_start(ctx.store, request.required_capability.resources, unit.did)
    comparison = (await assess(ctx, request, at=later, idle=True)).comparison
    if comparison.verdict != "accept" or price != unit.offer.price:
        why = "; ".join(comparison.reasons) or "it has another price"
        raise ContractError(f"this machine is offered differently by now: {why}", code="offer_changed")
    ctx.work.decide(bid_id, comparator, price)


def _take_unit(ctx: Agreeing, t: Transaction, unit: BidRecord, request: BidRequest, lease: str) -> None:
    """Lock what a unit of a bid needs, or have it line up behind the requester's others; the bid stands longer then.

    Raises:
        StateError: there is no room for it; code `no_place`, or by the owner's rules `machine_busy`.
    """
    did, duration, accounting = unit.did, unit.offer.time.duration, ctx.accounting
    if ctx.work.was_given_back(unit.id):
        raise StateError("it was given back already", code="no_bid_here")
    resources = request.required_capability.resources
    if not ctx.work.may_take(did):
        ctx.work.note_waiting(did, refills=True)
        raise StateError("others wait for a place here, and it is their turn", code="no_place")
    pause = ctx.work.idle_locks.pause(accounting, t, did)
    if pause:
        raise StateError(idle_reason(pause), code="no_place")
    try:
        check_now(ctx, t, request, unit.offer.price, accounting.earliest_start(t, resources, did))
    except StateError:
        ctx.work.note_waiting(did, refills=True)
        raise
    try:
        accounting.lock_capability(t, unit.id, unit.job_id, resources, lease, duration, did)
    except StateError:
        others = ctx.work.others(did)
        if others or not accounting.holds(t, did):
            ctx.work.note_waiting(did, refills=True)
            raise StateError("there is no room, and others wait for it" if others else "there is no room",
                             code="no_place") from None  # fmt: skip
        accounting.line_up(t, unit.id, unit.job_id, resources, lease, duration, did)
    t.then(partial(ctx.work.idle_locks.note, did, unit.id))
    t.then(partial(ctx.work.took_turn, did))
    bid = t[BIDS].one(bid_id_of(unit.id))
    until = quantities.now() + timedelta(seconds=ctx.config.bid_timeout)
    if quantities.parse_time(offered_until(bid)) < until:
        # not with each unit: it is a row to be written
        until += timedelta(seconds=ctx.config.bid_timeout + duration)
        t[BIDS].put(structs.replace(bid, offered_until=quantities.format_time(until)))


def generate_job_agreement(ctx: HasIdentity, bid: BidRecord, proposed: Contract) -> Document:
    """Return the contract as this provider's bid has it (seed 4: `generateJobAgreement`).

    Only what the requester chooses is taken over from the proposal, once it was checked.
    """
    return make_document(
        contract_text(
            bid, requester=bid.did, provider=ctx.identity.did, database=proposed.contract_database,
            oracle=proposed.oracle, verification=proposed.terms.verification, created_at=proposed.created_at,
            replicas=proposed.terms.replicas,
        )
    )  # fmt: skip


def _check_roles(ctx: HasRoles, contract: Contract) -> None:
    """Refuse a contract database or oracle that is not this provider's own choice, where money is at stake."""
    for role, named in ((DATABASE, contract.contract_database), (ORACLE, contract.oracle)):
        if contract.payment == "volunteer" and not ctx.roles.configured(role):
            continue
        trusted = ctx.roles.find(role)
        if named != trusted:
            key = role.replace("-", "_")
            raise ContractError(
                f"this provider accepts only {trusted} as {role}; the setting {key} decides on each side",
                code="untrusted_role",
                hint=f"to use it as well: nunet config set {key} {trusted}",
            )


def _differences(mine: Document, theirs: Document) -> dict[str, Any]:
    """Return what differs, as `{field: {bid, contract}}`."""
    ours, other = (msgspec.to_builtins(document.read(Contract)) for document in (mine, theirs))
    ours, other = {**ours, **ours.pop("terms")}, {**other, **other.pop("terms")}
    return {key: {"bid": ours[key], "contract": other[key]} for key in ours if ours[key] != other[key]}
