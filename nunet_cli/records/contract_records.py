"""A contract as its parties keep it, and as the contract database records it, each with its machine."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from nunet_cli.records.contracts import DATABASE, PROVIDER, REQUESTER
from nunet_cli.records.disputes import DisputeSummary
from nunet_cli.records.documents import Document
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.machine import CLOCK, OPERATOR, ORACLE, Machine, Move
from nunet_cli.records.table import Table


class ContractRecord(Struct, frozen=True):
    """One of this node's contracts, with every signed document about it that this node has.

    `spec` is the job itself, empty at a provider until it is invoked. `proved_at` and `result_at` are when the proof
    and the result were here, by this node's clock; `called_off_at` when the provider was told to stop, the first time,
    by a `cancel` or for its `silence`. `told` says that the closing message was here.
    """

    id: str
    job_id: str
    role: Literal["requester", "provider"]
    bid_id: str
    requester: str
    provider: str
    contract_database: str
    oracle: str
    deposit: str
    payment: Literal["volunteer", "escrow"]
    deadline: str
    created_at: str
    document: Document
    state: str = "proposed"
    spec: str = ""
    proof: Document | None = None
    result: Document | None = None
    verdict: Document | None = None
    receipt: Document | None = None
    dispute: DisputeSummary | None = None
    message: str = ""
    reason: str = ""
    proved_at: str = ""
    result_at: str = ""
    called_off_at: str = ""
    called_off_by: Literal["", "cancel", "silence"] = ""
    told: bool = False


def _upgrade(row: dict[str, Any]) -> dict[str, Any]:
    dispute = row.get("dispute")
    return row if dispute is None else {**row, "dispute": _summary(dispute)}


def _summary(dispute: dict[str, Any]) -> dict[str, Any]:
    # an earlier version kept a dispute's evidence with the contract whole, a later one by content id
    def name(document: str | dict[str, Any]) -> str:
        return document if isinstance(document, str) else content_id(document["content"].encode())

    evidence = [{**part, "documents": [name(each) for each in part["documents"]]} for part in dispute["evidence"]]
    return {**dispute, "evidence": evidence}


CONTRACTS = Table("contracts", ContractRecord, indexes=("job_id", "state", "bid_id", "deadline"), upgrade=_upgrade)


def _is_signed_here(record: ContractRecord) -> bool:
    own = (record.requester if record.role == REQUESTER else record.provider, record.role)
    return any((entry.did, entry.role) == own for entry in record.document.signatures)


_NOT_SIGNED = "this node has not signed it: nobody's word binds it"
_BOTH = (REQUESTER, PROVIDER)
_UNPROVED = ("proposed", "agreed")
# a party that never saw the proof, or that withdrew or gave up after it had signed, learns by the receipt how it ended
_CLOSABLE = ("agreed", "proved", "disputed", "refused", "expired")
CONTRACT = Machine(
    "contract",
    start=("proposed", "agreed"),
    ends=frozenset({"settled", "refunded"}),
    moves=(
        Move("agree", ("proposed",), "agreed", (PROVIDER,), about="id"),
        Move("refuse", _UNPROVED, "refused", _BOTH, about="id"),
        Move("expire", _UNPROVED, "expired", (CLOCK, DATABASE), about="id"),
        # a contract database that was put back to what it was before knows nothing of it any more
        Move("forget", ("proved",), "expired", (DATABASE,), about="id"),
        Move("prove", ("agreed",), "proved", (DATABASE,), about="id", when=_is_signed_here, why=_NOT_SIGNED),
        # what this node could not reach the contract database about was recorded all the same
        Move("prove", ("refused", "expired"), "proved", (DATABASE,), about="id", when=_is_signed_here, why=_NOT_SIGNED),
        Move(
            "dispute",
            ("agreed", "proved", "refused", "expired"),
            "disputed",
            (*_BOTH, DATABASE),
            about="id",
            when=_is_signed_here,
            why=_NOT_SIGNED,
        ),
        Move("settle", _CLOSABLE, "settled", (DATABASE,), about="id", when=_is_signed_here, why=_NOT_SIGNED),
        Move("refund", _CLOSABLE, "refunded", (DATABASE,), about="id", when=_is_signed_here, why=_NOT_SIGNED),
    ),
)


class RegisteredContract(Struct, frozen=True):
    """A contract that the contract database has recorded; `result` is the first that its provider signed, once seen.

    From `window_from` on it can be settled for a while longer; then its deposit goes back.
    """

    id: str
    job_id: str
    requester: str
    provider: str
    deadline: str
    document: Document
    proof: Document
    window_from: str = ""
    state: str = "proved"
    receipt: Document | None = None
    result: Document | None = None
    result_at: str = ""


# what is open among those of one party, and what is due among those that are open: both are asked often, and what is
# closed stays for long
REGISTERED_CONTRACTS = Table(
    "registered_contracts", RegisteredContract,
    indexes=("state", "requester", "provider", "job_id", "deadline", "window_from"),
    together=(("requester", "state"), ("provider", "state"), ("state", "window_from")),
)  # fmt: skip

REGISTERED = Machine(
    "registered contract",
    start=("proved",),
    ends=frozenset({"settled", "refunded"}),
    moves=(
        Move("settle", ("proved",), "settled", _BOTH, about="id"),
        # what failed and earned nothing goes back when a party says so, what nobody settled when its time is over
        Move("refund", ("proved",), "refunded", (*_BOTH, CLOCK), about="id"),
        Move("dispute", ("proved",), "disputed", _BOTH, about="id"),
        # the first result that the provider signed is the result
        Move(
            "hand_in",
            ("disputed",),
            "",
            _BOTH,
            about="id",
            when=lambda record: record.result is None,
            why="no result of its provider's is here yet",
        ),
        Move("settle", ("disputed",), "settled", (ORACLE, OPERATOR), about="id"),
        Move("refund", ("disputed",), "refunded", (ORACLE, OPERATOR), about="id"),
    ),
)


class VerdictRecord(Struct, frozen=True):
    """A verdict that this oracle gave: `id` names contract, result and policy."""

    id: str
    job_id: str
    document: Document


VERDICTS = Table("verdicts", VerdictRecord, indexes=("job_id",))


class Completion(Struct, frozen=True):
    """A job that its provider told this oracle it completed, by the contract (the `id`); it is kept until `until`.

    `verdict` is what was said of the result, empty as long as nobody brought it to verification; `shown` names another
    result of the same contract that somebody brought. `database` is its contract database where this oracle knows that.
    """

    id: str
    job_id: str
    requester: str
    provider: str
    result: Document
    at: str
    deadline: str
    until: str
    verdict: str = ""
    shown: str = ""
    database: str = ""


COMPLETIONS = Table("completions", Completion, indexes=("provider", "until", "verdict", "database"))


class LateResult(Struct, frozen=True):
    """A contract whose provider delivered when the job did not wait for it any more; its outputs are to be fetched."""

    id: str


LATE_RESULTS = Table("late_results", LateResult)


class Statement(Struct, frozen=True):
    """One movement on this node's own account, by the receipt that says so; amounts in NTX, negative where it paid."""

    id: str
    contract_id: str
    job_id: str
    at: str
    kind: str
    amount: str
    message: str = ""


STATEMENTS = Table("statements", Statement, indexes=("contract_id", "amount"))


class Balance(Struct, frozen=True):
    """What a contract database (its DID is the `id`) last said of this node's balance, in NTX."""

    id: str
    balance: str
    at: str


BALANCES = Table("balances", Balance)


class PinnedRole(Struct, frozen=True):
    """Whom this node uses in a role (the `id`), since when."""

    id: str
    did: str
    at: str


PINNED_ROLES = Table("pinned_roles", PinnedRole)
