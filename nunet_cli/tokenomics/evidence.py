"""Evidence: one bundle with every signed document of a contract, checked offline by anybody, with no node.

Nothing in a bundle is taken on trust: each document is held against the signatures of those that it names, against the
content ids in the others, and against the one way in which a bundle is written; so a changed byte anywhere is found.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct

from nunet_cli.errors import NunetError, UsageError
from nunet_cli.network.envelope import PREFIX, SIGNATURE_SIZE, Envelope
from nunet_cli.records.bids import Bid, BidRecord, bid_id_of, is_unit
from nunet_cli.records.contract_records import ContractRecord
from nunet_cli.records.contracts import (
    DATABASE,
    ORACLE,
    PROVIDER,
    REQUESTER,
    Check,
    Contract,
    JobVerificationResult,
    Proof,
    Receipt,
)
from nunet_cli.records.documents import Document
from nunet_cli.records.fields import Text
from nunet_cli.records.identifiers import content_id, verify
from nunet_cli.records.limits import Limits
from nunet_cli.records.messages import JobVerification
from nunet_cli.records.reading import decode, decode_exactly
from nunet_cli.tokenomics.completions import is_contradiction
from nunet_cli.tokenomics.oracle import verify_documents
from nunet_cli.tokenomics.output_checks import check_outputs
from nunet_cli.tokenomics.receipt import receipt_checks

MAX_BUNDLE = 16 * 2**20
# what shows that the documents are what they claim; whether the job did what was asked is the verdict's to say
AUTHENTICITY = frozenset(
    {
        "contract_signed_by_requester", "contract_signed_by_provider", "proof_signed", "result_signed",
        "documents_readable", "proof_names_contract", "result_names_contract", "spec_matches", "spec_readable",
    }
)  # fmt: skip


class Bundle(Struct, forbid_unknown_fields=True, frozen=True):
    """Everything that was signed about one contract; what there is not is null. `bid` is the envelope as it came."""

    format: Literal["nunet-evidence"]
    version: Literal[1]
    spec: Annotated[str, Limits(max_length=256 * 1024)]
    contract: Document
    bid: Annotated[str, Limits(max_length=4 * 2**20)] | None = None
    proof: Document | None = None
    result: Document | None = None
    verdict: Document | None = None
    receipt: Document | None = None


def export_bundle(contract: ContractRecord, bid: BidRecord | None) -> bytes:
    """Return the bundle of a contract as its file holds it.

    Args:
        contract: this node's record of it.
        bid: the bid that it rests on, with the envelope that brought it, where this node got one.
    """
    evidence = bid.evidence or None if bid is not None else None
    return _encode(
        Bundle(
            "nunet-evidence", 1, contract.spec, contract.document, evidence, contract.proof, contract.result,
            contract.verdict, contract.receipt,
        )
    )  # fmt: skip


def _encode(bundle: Bundle) -> bytes:
    return msgspec.json.format(msgspec.json.encode(bundle), indent=1) + b"\n"


def read_bundle(data: bytes, source: str) -> Bundle:
    """Return a bundle from its file.

    Raises:
        UsageError: it is none, or is written in another way than a bundle is; the message has the first such byte.
    """
    if len(data) > MAX_BUNDLE:
        raise UsageError(f"{source}: a bundle has at most {MAX_BUNDLE} bytes")
    try:
        bundle = decode_exactly(data, Bundle)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{source}: not an evidence bundle: {error}", code="bad_bundle") from None
    expected = _encode(bundle)
    if expected != data:
        at = next(
            (i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), min(len(data), len(expected))
        )
        raise UsageError(f"{source}: byte {at + 1} was changed: this is not how a bundle is written", code="bad_bundle")
    return bundle


def verify_bundle(bundle: Bundle, outputs: Path | None = None) -> list[Check]:
    """Check a bundle; return every check with what is wrong where it fails.

    Args:
        bundle: what was read.
        outputs: a folder with the job's output files, to be held against the result's content ids.
    """
    checks: list[Check] = []
    found: tuple[Check, ...] = ()

    def check(name: str, passed: bool, detail: str = "") -> None:
        checks.append(Check(name, passed, "" if passed else detail))

    try:
        contract = bundle.contract.read(Contract)
    except NunetError as error:
        return [Check("contract", False, error.message)]
    _check_signers(bundle.contract, {(contract.requester, REQUESTER), (contract.provider, PROVIDER)}, "contract", check)
    check("spec", content_id(bundle.spec.encode()) == contract.terms.spec_cid, "it is not the job of the contract")
    if bundle.bid is not None:
        _check_bid(bundle.bid, contract, check)
    if bundle.proof is not None:
        _check_proof(bundle.proof, bundle, contract, check)
    if bundle.result is not None and bundle.proof is not None:
        _check_signers(bundle.result, {(contract.provider, PROVIDER)}, "result", check)
        request = JobVerification(bundle.spec, bundle.contract, bundle.proof, bundle.result)
        found = verify_documents(request, _verified_at(bundle.verdict))
        checks += [Check(f"result.{c.name}"[:120], c.passed, c.detail) for c in found if c.name in AUTHENTICITY]
        if outputs is not None:
            check_outputs(bundle.result, bundle.spec, outputs, check)
    if bundle.verdict is not None:
        _check_verdict(bundle.verdict, bundle, contract, check, all(item.passed for item in found))
    if bundle.receipt is not None:
        _check_receipt(bundle.receipt, bundle, contract, check)
    return checks


def _check_signers(document: Document, wanted: set[tuple[str, str]], name: str, check: Any) -> None:
    """Every party that has to has signed, every signature there is is good, and nobody else has signed."""
    for did, role in sorted(wanted):
        check(f"{name}.signature.{role}", document.is_signed(did, role), f"no good signature of its {role} ({did})")
    for entry in document.signatures:
        if (entry.did, entry.role) not in wanted:
            check(f"{name}.signature", False, f"a signature that does not belong here: {entry.role} {entry.did}"[:400])


def _check_bid(evidence: str, contract: Contract, check: Any) -> None:
    try:
        raw = base64.b64decode(evidence, validate=True)
        if base64.b64encode(raw).decode() != evidence:
            raise ValueError("not the usual base64")
        envelope = decode(raw[SIGNATURE_SIZE:], Envelope)
        bid = decode(envelope.body, Bid)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        check("bid", False, f"not a bid: {error}"[:400])
        return
    good = verify(envelope.from_, raw[:SIGNATURE_SIZE], PREFIX + raw[SIGNATURE_SIZE:])
    check("bid.signature", good and envelope.from_ == contract.provider, "it is not signed by the provider")
    terms = contract.terms
    same = (bid.price, bid.time.duration) == (terms.price, terms.max_duration)
    # a unit of a bid for many is for whichever item takes it
    if is_unit(contract.bid_id):
        same = same and bid_id_of(contract.bid_id) == bid.id
    else:
        same = same and (bid.id, bid.spec_cid) == (contract.bid_id, terms.spec_cid)
    check("bid.terms", same, "the contract differs from the bid")


def _check_proof(document: Document, bundle: Bundle, contract: Contract, check: Any) -> None:
    _check_signers(document, {(contract.contract_database, DATABASE)}, "proof", check)
    try:
        proof = document.read(Proof)
    except NunetError as error:
        check("proof", False, error.message)
        return
    problem = proof.problem(bundle.contract.cid, contract)
    check("proof.contract", not problem, problem)


def _verified_at(verdict: Document | None) -> str:
    try:
        return verdict.read(JobVerificationResult).verified_at if verdict is not None else ""
    except NunetError:
        return ""


def _check_verdict(document: Document, bundle: Bundle, contract: Contract, check: Any, is_fulfilled: bool) -> None:
    _check_signers(document, {(contract.oracle, ORACLE)}, "verdict", check)
    try:
        verdict = document.read(JobVerificationResult)
    except NunetError as error:
        check("verdict", False, error.message)
        return
    cid = bundle.result.cid if bundle.result is not None else ""
    check("verdict.result", (verdict.contract_id, verdict.result_cid) == (bundle.contract.cid, cid),
          "it is about another result")  # fmt: skip
    if verdict.completed is not None:
        try:
            shown = is_contradiction(verdict.completed, contract, bundle.contract.cid, cid)
        except NunetError:
            shown = False
        check("verdict.completed", shown, "it is no other result that the provider signed for this contract")
        is_fulfilled &= not shown
    agrees = (verdict.verdict == "verified") <= is_fulfilled and (verdict.policy != "attested") | (
        (verdict.verdict == "verified") == is_fulfilled
    )
    check("verdict.agrees", agrees, "the documents do not bear it out")


def _check_receipt(document: Document, bundle: Bundle, contract: Contract, check: Any) -> None:
    _check_signers(document, {(contract.contract_database, DATABASE)}, "receipt", check)
    for found in receipt_checks(document, bundle.contract, bundle.proof, bundle.result):
        check(found.name, found.passed, found.detail)


class BundleReport(Struct, frozen=True):
    """What a bundle shows, in one record."""

    contract_id: str
    job_id: str
    requester: str
    provider: str
    outcome: Text
    paid: str
    checks: list[Check]

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]


def report(bundle: Bundle, outputs: Path | None = None) -> BundleReport:
    """Return a bundle's checks with what it is about."""
    checks = verify_bundle(bundle, outputs)
    try:
        contract = bundle.contract.read(Contract)
        receipt = bundle.receipt.read(Receipt) if bundle.receipt is not None else None
    except NunetError as error:
        return BundleReport(bundle.contract.cid, "", "", "", error.message, "", checks)
    return BundleReport(
        bundle.contract.cid, contract.job_id, contract.requester, contract.provider,
        receipt.outcome if receipt else "not settled", receipt.paid if receipt else "", checks,
    )  # fmt: skip
