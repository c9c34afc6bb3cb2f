"""What providers tell an oracle: which jobs they completed, and with which result (seed 6: `jobCompleted`).

Whoever brings a job to verification is held to that: a provider has one result for a contract, and a job that was
completed and that nobody brings is seen here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError, RejectedMessageError
from nunet_cli.network.messenger import Incoming
from nunet_cli.records.contract_records import COMPLETIONS, VERDICTS, Completion
from nunet_cli.records.contracts import (
    DATABASE,
    PROVIDER,
    REQUESTER,
    Check,
    Contract,
    JobVerificationResult,
    Proof,
)
from nunet_cli.records.documents import Document, require_signature
from nunet_cli.records.messages import JobCompleted
from nunet_cli.records.results import Result

# anybody can make keys, those of a contract database too, and with them contracts that name this oracle: so much is
# kept in all, of one provider, and of one result, in bytes
MOST, MOST_OF_ONE, MOST_BYTES = 10_000, 1000, 16 * 2**10
# how long after its contract's deadline a completion is kept, and how far off that deadline may be; how long one is
# whose contract database this oracle does not know, which is long enough to be settled
KEPT, LONGEST, BRIEFLY = timedelta(days=14), timedelta(days=90), timedelta(days=2)
AT_ONCE = 20
# a job's verdicts that are looked through: each contract of it has one for a result and a policy
LOOKED_AT = 50
OUTCOMES = ("verified", "rejected", "inconclusive")


class Completions:
    """The completions that an oracle was told of, one for a contract.

    Args:
        did: the oracle's.
        store: where they are kept.
        knows: says whether a contract database is one that the oracle's operator deals with: what that one has signed
            was registered there, and costs whoever makes up contracts what it costs there.
    """

    def __init__(self, did: str, store: Store, knows: Callable[[str], bool]) -> None:
        self._did, self._store, self._knows = did, store, knows

    def take(self, message: Incoming) -> Callable[[Transaction], None]:
        """Check what a provider tells, and return the change that keeps it.

        Raises:
            ContractError: it is about another oracle's contract, or not the sender's to tell.
            RejectedMessageError: a signature is missing or bad, or the documents are not of one contract, or too large;
                the change raises it where the provider told of another result before, or there is no room for it.
        """
        body: JobCompleted = message.body
        contract = self._read(body, message.sender)
        now = quantities.now()
        until = min(quantities.parse_time(contract.terms.deadline), now + LONGEST) + KEPT
        database = contract.contract_database if self._knows(contract.contract_database) else ""
        if not database:
            until = min(until, now + BRIEFLY)
        told = Completion(
            body.contract_id, contract.job_id, contract.requester, contract.provider, body.result,
            quantities.format_time(now), contract.terms.deadline, quantities.format_time(until), database=database,
        )  # fmt: skip

        def change(t: Transaction) -> None:
            known = t[COMPLETIONS].get(told.id)
            if known is not None:
                if known.result.cid != told.result.cid:
                    raise RejectedMessageError("you completed it with another result before", code="second_result")
                return
            _make_room(t, told)
            row = told
            for verdict in _verdicts(t, told):
                row = _held(t, row, verdict.result_cid, verdict.verdict)
            t[COMPLETIONS].put(row)

        return change

    def _read(self, body: JobCompleted, sender: str) -> Contract:
        if body.contract is None or body.proof is None:
            raise RejectedMessageError("a contract and its proof are needed", code="bad_document")
        contract = body.contract.read(Contract)
        if contract.oracle != self._did:
            raise ContractError("the contract names another oracle", code="wrong_oracle")
        if contract.provider != sender or body.contract.cid != body.contract_id:
            raise ContractError("it is not a contract of yours", code="not_a_party")
        if len(body.result.content) > MOST_BYTES:
            raise RejectedMessageError(f"a result of over {MOST_BYTES} bytes is not kept here", code="too_large")
        require_signature(body.contract, contract.requester, REQUESTER, "contract")
        require_signature(body.contract, contract.provider, PROVIDER, "contract")
        require_signature(body.proof, contract.contract_database, DATABASE, "proof")
        require_signature(body.result, contract.provider, PROVIDER, "result")
        if problem := body.proof.read(Proof).problem(body.contract_id, contract):
            raise ContractError(problem, code="wrong_proof")
        result = body.result.read(Result)
        if (result.contract_id, result.job_id, result.state) != (body.contract_id, contract.job_id, "completed"):
            raise RejectedMessageError("the result is none by which this contract was completed", code="wrong_result")
        return contract

    def contradicting(self, contract_id: str, result: Document) -> Document | None:
        """Return the result that the provider told this oracle of, where that is another one than it is shown."""
        known = self._store[COMPLETIONS].get(contract_id)
        return None if known is None or known.result.cid == result.cid else known.result

    @staticmethod
    def note(t: Transaction, verdict: JobVerificationResult) -> None:
        """Note that a result was brought to verification, as part of the change that keeps the verdict."""
        known = t[COMPLETIONS].get(verdict.contract_id)
        if known is not None:
            held = _held(t, known, verdict.result_cid, verdict.verdict)
            if held != known:
                t[COMPLETIONS].put(held)


def contradiction(other: Document) -> Check:
    """Return the check that fails where a provider has signed two results for one contract."""
    return Check("result_as_completed", False, f"the provider completed the job with another result: {other.cid}")


def is_contradiction(other: Document, contract: Contract, contract_id: str, result_cid: str) -> bool:
    """Say whether a document shows that a contract's provider has signed another result as well.

    Raises:
        RejectedMessageError: it is no result.
    """
    return (
        other.cid != result_cid and other.is_signed(contract.provider, PROVIDER)
        and other.read(Result).contract_id == contract_id
    )  # fmt: skip


def _held(t: Transaction, row: Completion, result_cid: str, verdict: str) -> Completion:
    if result_cid == row.result.cid:
        return structs.replace(row, verdict=verdict)
    if row.shown == result_cid:
        return row
    t.save_event(
        row.job_id, "result_differs", contract_id=row.id, completed=row.result.cid, shown=result_cid, verdict=verdict
    )
    return structs.replace(row, shown=result_cid)


def _verdicts(t: Transaction, told: Completion) -> list[JobVerificationResult]:
    rows = t[VERDICTS].by("job_id", told.job_id, limit=LOOKED_AT)
    return [row.document.read(JobVerificationResult) for row in rows if row.id.startswith(f"{told.id}/")]


def _make_room(t: Transaction, told: Completion) -> None:
    """Let others go, where there are very many, so that one more has its place.

    Past its age comes first; then those of contract databases that nobody here knows; of those that are left, one of
    the provider that has most. So whoever fills this up does so at the cost of its own.

    Raises:
        RejectedMessageError: all that are here are of contract databases that are known, and this one is not.
    """
    table = t[COMPLETIONS]
    table.remove_below("until", told.at, limit=AT_ONCE)
    if table.count("provider", told.provider) >= MOST_OF_ONE:
        _let_go(t, provider=told.provider)
    if table.count() < MOST:
        return
    unknown = table.count_by("provider", database="")
    if not unknown and not told.database:
        raise RejectedMessageError(f"{MOST} completions are kept here already", code="too_many")
    most = unknown or table.count_by("provider")
    _let_go(t, provider=max(most, key=most.__getitem__), **({"database": ""} if unknown else {}))


def _let_go(t: Transaction, **which: Any) -> None:
    """Remove some that were brought to verification, or the oldest that was not."""
    table = t[COMPLETIONS]
    for row in table.page(AT_ONCE, verdict=OUTCOMES, **which).rows or table.page(1, **which).rows:
        table.remove(row.id)
