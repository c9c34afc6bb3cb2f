"""The oracle: verifies a finished job from its signed documents, and signs the verdict (seed 7: `oracle.verifyJob`).

Policy `attested`: the chain of signatures holds, the result belongs to the contract, time used and outputs fit the
terms, and the exit code is 0 where the result claims success. Outputs are held to their content ids by the requester,
who refuses what does not hash to them.
"""

from __future__ import annotations

import msgspec

from nunet_cli import units
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError, NunetError, UsageError
from nunet_cli.jobs.job import Result
from nunet_cli.jobs.spec import JobSpec, decode_spec, output_name
from nunet_cli.network.documents import Document, make_document
from nunet_cli.network.identity import Identity, content_id
from nunet_cli.network.messenger import Answer, Incoming, Messenger
from nunet_cli.tokenomics.contract import (
    DATABASE,
    ORACLE,
    PROVIDER,
    REQUESTER,
    Check,
    Contract,
    JobVerification,
    JobVerificationResult,
    Proof,
    Verdict,
)

GRACE_SECONDS = 30


class Oracle:
    """The role's behaviour."""

    def __init__(self, identity: Identity, store: Store, messenger: Messenger) -> None:
        self._identity, self._store = identity, store
        messenger.register("job_verification", JobVerification, self._on_verification)

    async def verify_job(self, request: JobVerification, sender: str) -> Document:
        """Return the signed verdict on a result; the same one however often it is asked for.

        Raises:
            ContractError: this oracle is not the contract's, or the sender no party to it.
        """
        contract = request.contract.read(Contract)
        if contract.oracle != self._identity.did:
            raise ContractError("the contract names another oracle", code="wrong_oracle")
        if sender not in (contract.requester, contract.provider):
            raise ContractError("only a party can ask for a verdict", code="not_a_party")
        key = f"{request.contract.cid}/{request.result.cid}"
        checks = verify_documents(request)
        verdict = "verified" if all(check.passed for check in checks) else "rejected"

        def change(t: Transaction) -> Document:
            known = t.find("verdicts", key)
            if known is not None:
                return msgspec.convert(known["document"], Document)
            document = make_document(
                JobVerificationResult(
                    1, request.contract.cid, request.result.cid, self._identity.did,
                    verdict,  # type: ignore[arg-type]  # one of the two literals above
                    checks, units.utc_now(),
                )
            ).sign(self._identity, ORACLE)  # fmt: skip
            t.put("verdicts", {"id": key, "job_id": contract.job_id, "document": msgspec.to_builtins(document)})
            t.save_event(contract.job_id, f"result_{verdict}", contract_id=request.contract.cid)
            return document

        return await self._store.change(change)

    async def _on_verification(self, message: Incoming) -> Answer:
        return "job_verification_result", Verdict(await self.verify_job(message.body, message.sender))


def verify_documents(request: JobVerification) -> tuple[Check, ...]:
    """Return every check of the `attested` policy with its outcome; pure, so that anybody can repeat it."""
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
    check("spec_matches", content_id(request.spec.encode()) == contract.terms.spec_cid, "another specification")
    try:
        _check_run(decode_spec(request.spec), contract, result, check)
    except UsageError as error:
        check("spec_readable", False, error.message)
    return tuple(checks)


def _check_run(spec: JobSpec, contract: Contract, result: Result, check: object) -> None:
    assert callable(check)
    used, allowed = result.usage.wall_seconds, contract.terms.max_duration
    check("time_used", used <= allowed + GRACE_SECONDS, f"{used:.1f} s used, {allowed} s agreed")
    try:
        started, ended = units.parse_time(result.started_at), units.parse_time(result.ended_at)
        lasted = (ended - started).total_seconds()
        check(
            "times_plausible", used - GRACE_SECONDS <= lasted, f"{used:.1f} s used between times {lasted:.1f} s apart"
        )
    except UsageError as error:
        check("times_plausible", False, error.message)
    if result.state != "completed":
        return
    check("exit_code", result.exit_code == 0, f"the job exited with {result.exit_code}")
    sizes = {output.name: output.size for output in result.outputs}
    for output in spec.outputs:
        name = output_name(output)
        check(f"output_{name}"[:120], name in sizes, "the output is missing")
        if spec.verify.outputs_not_empty:
            check(f"output_not_empty_{name}"[:120], sizes.get(name, 0) > 0, "the output is empty")
