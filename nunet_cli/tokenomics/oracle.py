"""The oracle: verifies a finished job from its signed documents, and signs the verdict (seed 7: `oracle.verifyJob`).

Policy `attested`: the chain of signatures holds, the result belongs to the contract, time used and outputs fit the
terms, and the exit code is 0 where the result claims success. Outputs are held to their content ids by the requester,
who refuses what does not hash to them. `replicate` compares with other providers' results, `reexecute` with a run of
the oracle's own. Whatever the policy, a result is held against the one that its provider completed the job with, where
the oracle was told (`completions`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Literal

import trio

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError, NunetError, UsageError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import output_names
from nunet_cli.network.identity import Identity
from nunet_cli.network.messenger import Answer, Change, Incoming, Messenger
from nunet_cli.records.contract_records import VERDICTS, VerdictRecord
from nunet_cli.records.contracts import (
    DATABASE,
    ORACLE,
    PROVIDER,
    REQUESTER,
    Check,
    Contract,
    JobVerificationResult,
    Proof,
)
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.messages import JobVerification, Replica, Verdict
from nunet_cli.records.results import Result
from nunet_cli.records.trees import EMPTY_SIZE
from nunet_cli.threads import in_thread
from nunet_cli.tokenomics.completions import Completions, contradiction
from nunet_cli.tokenomics.payment import seconds_between

GRACE_SECONDS = 30
MAX_SKEW = 60
# why a second run is not made here, whenever it is asked for; everything else passes by itself
NEVER_HERE = {"not_onboarded", "no_executor", "not_allowed", "inputs_too_large", "reexecution_too_long"}

Reexecution = Callable[[JobVerification, str], Awaitable[Result]]
Policy = Literal["attested", "replicate", "reexecute"]
Outcome = Literal["verified", "rejected", "inconclusive"]


class Oracle:
    """The role's behaviour.

    Args:
        identity: the key that signs verdicts.
        store: where they are kept.
        messenger: carries the messages.
        reexecute: runs a job on the oracle's own machine; None where it cannot.
        knows: says whether a contract database is one that the operator deals with.
    """

    def __init__(
        self,
        identity: Identity,
        store: Store,
        messenger: Messenger,
        reexecute: Reexecution | None = None,
        knows: Callable[[str], bool] = lambda _did: False,
    ) -> None:
        self._identity, self._store, self._reexecute = identity, store, reexecute
        self._limiter = trio.CapacityLimiter(1)
        self.completions = Completions(identity.did, store, knows)
        messenger.register("job_verification", JobVerification, self._on_verification)

    async def verify_job(self, request: JobVerification, sender: str) -> Document | Callable[[Transaction], Document]:
        """Return the verdict where it was given before; else what keeps and returns it, all checks being made.

        Raises:
            ContractError: this oracle is not the contract's, or the sender no party to it; with code `oracle_busy`,
                nothing can be said just now, and who asks later is answered.
        """
        contract = request.contract.read(Contract)
        if contract.oracle != self._identity.did:
            raise ContractError("the contract names another oracle", code="wrong_oracle")
        if sender not in (contract.requester, contract.provider):
            raise ContractError("only a party can ask for a verdict", code="not_a_party")
        policy = self._policy(request, contract, sender)
        key = f"{request.contract.cid}/{request.result.cid}/{policy}"
        known = self._store[VERDICTS].get(key)
        if known is not None:
            return known.document
        # a stranger's documents: checking them takes up to a second
        checks = await in_thread(verify_documents, request, quantities.utc_now(), limiter=self._limiter)
        other = self.completions.contradicting(request.contract.cid, request.result)
        if other is not None:
            checks += (contradiction(other),)
        verdict: Outcome = "verified" if all(check.passed for check in checks) else "rejected"
        # what fails by itself is compared with nothing, and says so
        used: Policy = policy if verdict == "verified" else "attested"
        if verdict == "verified" and policy == "replicate":
            verdict, more = compare_replicas(request)
            checks += more
        elif verdict == "verified" and policy == "reexecute":
            verdict, check = await self._run_again(request, sender)
            checks += (check,)

        def change(t: Transaction) -> Document:
            known = t[VERDICTS].get(key)
            if known is not None:
                return known.document
            said = JobVerificationResult(
                1, request.contract.cid, request.result.cid, self._identity.did, verdict, checks[:100],
                quantities.utc_now(), used, other,
            )  # fmt: skip
            document = make_document(said).sign(self._identity, ORACLE)
            self.completions.note(t, said)
            if verdict != "inconclusive":
                t[VERDICTS].put(VerdictRecord(key, contract.job_id, document))
            t.save_event(contract.job_id, f"result_{verdict}", contract_id=request.contract.cid)
            return document

        return change

    @staticmethod
    def _policy(request: JobVerification, contract: Contract, sender: str) -> Policy:
        """Return how to verify: a provider whose requester keeps the other results to itself is judged by its own.

        Raises:
            ContractError: it may not be judged without them yet.
        """
        if request.reexecute:
            return "reexecute"
        silent = contract.terms.deadline <= quantities.utc_now() and sender == contract.provider
        if contract.terms.verification == "replicate" and not request.replicas and sender == contract.provider:
            if not silent:
                raise ContractError(
                    "the requester has the other results, until the contract's deadline", code="too_early"
                )
            return "attested"
        return contract.terms.verification

    async def _run_again(self, request: JobVerification, sender: str) -> tuple[Outcome, Check]:
        if self._reexecute is None:
            return "inconclusive", Check("reexecution", False, "this oracle cannot run jobs")
        result = request.result.read(Result)
        try:
            again = await self._reexecute(request, sender)
        except NunetError as error:
            if error.code not in NEVER_HERE:
                # no room, a party that is away, a full disk: none of this says anything about the result
                raise ContractError(
                    f"the oracle cannot run the job just now: {error.message}", code="oracle_busy", hint="ask it again"
                ) from None
            return "inconclusive", Check("reexecution", False, error.message[:4000])
        if outcome_of(again) == outcome_of(result):
            return "verified", Check("reexecution", True)
        return "rejected", Check("reexecution", False, f"the oracle's own run differs: {_difference(again, result)}")

    async def _on_verification(self, message: Incoming) -> Answer | Change:
        found = await self.verify_job(message.body, message.sender)
        if isinstance(found, Document):
            return "job_verification_result", Verdict(found)
        return lambda t: ("job_verification_result", Verdict(found(t)))


def outcome_of(result: Result) -> tuple[tuple[str, str], ...]:
    """Return what results are compared by: the outputs by name and content id; standard output where there are none."""
    outputs = tuple(sorted((output.name, output.cid) for output in result.outputs))
    return outputs or (("stdout", result.stdout_cid),)


def _difference(ours: Result, theirs: Result) -> str:
    if ours.state != theirs.state:
        return f"it {ours.state}: {ours.message}"[:4000]
    mine = dict(outcome_of(ours))
    other = dict(outcome_of(theirs))
    return ", ".join(sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)))[:4000]


def compare_replicas(request: JobVerification) -> tuple[Outcome, tuple[Check, ...]]:
    """Compare a result with those of the other providers; more than half of the agreed number must have the same.

    Returns:
        `verified` for the quorum's result, `rejected` for another one, `inconclusive` where there is no quorum.
    """
    contract, own = request.contract.read(Contract), request.result.read(Result)
    needed = contract.terms.replicas // 2 + 1
    votes = {contract.provider: outcome_of(own)}
    checks = []
    for index, replica in enumerate(request.replicas):
        problem, provider, outcome = _read_replica(contract, replica)
        checks.append(Check(f"replica_{index}", not problem, problem))
        if not problem and provider not in votes and outcome is not None:
            votes[provider] = outcome
    counted = Counter(votes.values())
    winner, count = counted.most_common(1)[0]
    detail = f"{count} of {contract.terms.replicas} providers agree, {needed} are needed"
    if count < needed:
        return "inconclusive", (*checks, Check("quorum", False, detail))
    if outcome_of(own) != winner:
        return "rejected", (*checks, Check("quorum", False, f"{detail}, and this result is another one"))
    return "verified", (*checks, Check("quorum", True))


def _read_replica(contract: Contract, replica: Replica) -> tuple[str, str, tuple[tuple[str, str], ...] | None]:
    """Return what is wrong with a replica's documents, whose it is, and its outcome (None for a failed one)."""
    try:
        other = replica.contract.read(Contract)
        proof, result = replica.proof.read(Proof), replica.result.read(Result)
    except NunetError as error:
        return error.message, "", None
    # who runs a job for nothing has nothing to lose by its vote, and says nothing about work that is paid
    fits = (
        other.requester == contract.requester and other.terms.spec_cid == contract.terms.spec_cid
        and other.provider != contract.provider and other.payment == contract.payment
        and other.contract_database == contract.contract_database
        and other.terms.verification == "replicate" and other.terms.replicas == contract.terms.replicas
        and proof.contract_id == replica.contract.cid
        and result.contract_id == replica.contract.cid
    )  # fmt: skip
    signed = (
        replica.contract.is_signed(other.requester, REQUESTER) and replica.contract.is_signed(other.provider, PROVIDER)
        and replica.proof.is_signed(contract.contract_database, DATABASE)
        and replica.result.is_signed(other.provider, PROVIDER)
    )  # fmt: skip
    if not fits or not signed:
        return "it is not another provider's run of this job", "", None
    return "", other.provider, outcome_of(result) if result.state == "completed" else None


def verify_documents(request: JobVerification, now: str = "") -> tuple[Check, ...]:
    """Return every check of the `attested` policy with its outcome; pure, so that anybody can repeat it.

    Args:
        request: the documents.
        now: when the result was here at the latest, by the clock of whoever checks; empty where nobody knows.
    """
    contract = request.contract.read(Contract)
    checks: list[Check] = []

    def check(name: str, passed: bool, detail: str = "") -> None:
        checks.append(Check(name, passed, "" if passed else detail))

    check("contract_signed_by_requester", request.contract.is_signed(contract.requester, REQUESTER), "bad signature")
    check("contract_signed_by_provider", request.contract.is_signed(contract.provider, PROVIDER), "bad signature")
    check("proof_signed", request.proof.is_signed(contract.contract_database, DATABASE), "bad signature")
    check("result_signed", request.result.is_signed(contract.provider, PROVIDER), "bad signature")
    try:
        proof, result = request.proof.read(Proof), request.result.read(Result)
    except NunetError as error:
        check("documents_readable", False, error.message)
        return tuple(checks)
    check("proof_names_contract", proof.contract_id == request.contract.cid, "the proof is for another contract")
    check("result_names_contract", result.contract_id == request.contract.cid, "the result is for another contract")
    check("result_names_job", result.job_id == contract.job_id, "the result is for another job")
    check("spec_matches", content_id(request.spec.encode()) == contract.terms.spec_cid, "another specification")
    if not all(found.passed for found in checks):
        # nobody signed for it: the specification is not worth the time that reading it takes
        return tuple(checks)
    try:
        _check_time(contract, proof, result, now, check)
        _check_run(decode_spec(request.spec), result, check)
    except UsageError as error:
        check("spec_readable", False, error.message)
    return tuple(checks)


def _check_time(contract: Contract, proof: Proof, result: Result, now: str, check: Callable[..., None]) -> None:
    """Hold the time that a result claims against what was agreed, and against what passed since the proof.

    What is paid in the end is bounded by the contract database's own clock, to the second; here the clocks of several
    machines are compared, so this finds those who lie by more than clocks differ.
    """
    used, allowed = result.usage.wall_seconds, contract.terms.max_duration
    check("time_used", used <= allowed + GRACE_SECONDS, f"{used:.1f} s used, {allowed} s agreed")
    lasted = seconds_between(result.started_at, result.ended_at)
    plausible = used - GRACE_SECONDS <= lasted
    check("times_plausible", plausible, f"{used:.1f} s used between times {lasted:.1f} s apart")
    early = seconds_between(result.started_at, proof.registered_at)
    check("started_after_proof", early <= MAX_SKEW, f"it says that it began {early:.0f} s before the proof")
    if now:
        late = seconds_between(now, result.ended_at)
        check("ended_before_now", late <= MAX_SKEW, f"it says that it ends {late:.0f} s from now")
        passed = seconds_between(proof.registered_at, now)
        seen = used <= passed + GRACE_SECONDS + MAX_SKEW
        check("time_seen", seen, f"{used:.1f} s used, {passed:.1f} s passed since the proof")


def _check_run(spec: JobSpec, result: Result, check: Callable[..., None]) -> None:
    if result.state != "completed":
        return
    check("exit_code", result.exit_code == 0, f"the job exited with {result.exit_code}")
    # what a folder has when there is nothing in it
    sizes = {o.name: o.size - (EMPTY_SIZE if o.kind != "file" else 0) for o in result.outputs}
    for name in output_names(spec):
        check(f"output_{name}"[:120], name in sizes, "the output is missing")
        if spec.verify.outputs_not_empty:
            check(f"output_not_empty_{name}"[:120], sizes.get(name, 0) > 0, "the output is empty")
