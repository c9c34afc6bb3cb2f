"""What a receipt must be, whoever holds it: a node before it believes one, and anybody who reads a bundle."""

from __future__ import annotations

from nunet_cli import quantities
from nunet_cli.errors import NunetError, RejectedMessageError
from nunet_cli.records.contracts import DATABASE, Check, Contract, Proof, Receipt
from nunet_cli.records.documents import Document
from nunet_cli.records.results import Result
from nunet_cli.tokenomics.payment import amount_due, seconds_between

# what was decided otherwise than by the provider's result; the words with which such a receipt's reason begins
NOT_DELIVERED = "no verified result before the deadline"
DECIDED_OTHERWISE = ("dispute", NOT_DELIVERED)


OTHER_RESULT = "receipt.result"
SECOND_RESULT = "second_result"


def receipt_checks(
    document: Document, signed: Document, proof: Document | None, result: Document | None
) -> tuple[Check, ...]:
    """Return every check of a receipt with its outcome; pure.

    Args:
        document: the receipt.
        signed: the contract.
        proof: its proof, where there is one.
        result: the provider's result, where there is one.
    """
    checks: list[Check] = []

    def check(name: str, passed: bool, detail: str) -> None:
        checks.append(Check(name, passed, "" if passed else detail))

    try:
        contract, receipt = signed.read(Contract), document.read(Receipt)
        paid, refunded = quantities.parse_amount(receipt.paid), quantities.parse_amount(receipt.refunded)
        deposit = quantities.parse_amount(contract.terms.deposit)
    except NunetError as error:
        return (Check("receipt", False, error.message),)
    database = contract.contract_database
    check("receipt.signed", document.is_signed(database, DATABASE), f"it is not signed by {database}")
    check("receipt.database", receipt.contract_database == database, "it names another contract database")
    check("receipt.contract", receipt.contract_id == signed.cid, "it settles another contract")
    same = (receipt.requester, receipt.provider) == (contract.requester, contract.provider)
    check("receipt.parties", same, "it names other parties")
    whole = paid + refunded == deposit
    check("receipt.sum", whole, f"paid and refunded are not the deposit of {contract.terms.deposit}")
    check("receipt.outcome", receipt.outcome == "settled" or not paid, f"refunded, and {receipt.paid} NTX were paid")
    other = result is not None and receipt.result_cid not in ("", result.cid)
    check(OTHER_RESULT, not other, "the provider had another result settled than the one that it gave")
    if result is not None and not other and not receipt.reason.startswith(DECIDED_OTHERWISE):
        try:
            seen = seconds_between(proof.read(Proof).registered_at, receipt.settled_at) if proof is not None else None
            due = amount_due(contract.terms, result.read(Result), seen)
        except NunetError as error:
            check("receipt.amount", False, error.message)
        else:
            check(
                "receipt.amount", paid == due, f"{receipt.paid} NTX were paid, {quantities.format_amount(due)} were due"
            )
    return tuple(checks)


def require_receipt(document: Document, signed: Document, proof: Document | None, result: Document | None) -> Receipt:
    """Return a receipt that fits its contract.

    Raises:
        RejectedMessageError: it does not; the message says in what. Code `second_result` where it is as it should be,
            but for another result that the provider signed.
    """
    wrong = [check for check in receipt_checks(document, signed, proof, result) if not check.passed]
    if [check.name for check in wrong] == [OTHER_RESULT]:
        raise RejectedMessageError(wrong[0].detail, code=SECOND_RESULT)
    if wrong:
        raise RejectedMessageError(
            f"the receipt does not fit the contract: {'; '.join(check.detail for check in wrong)}",
            code="wrong_receipt", details={"checks": [check.name for check in wrong]},
        )  # fmt: skip
    return document.read(Receipt)
