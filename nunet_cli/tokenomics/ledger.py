"""The ledger: double entry, integer micro-NTX. The sum over all accounts is zero, and none but issuance is negative."""

from __future__ import annotations

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError
from nunet_cli.records.books import ACCOUNTS, LEDGER, Account, Transfer

ISSUANCE = "issuance"


def escrow(contract_id: str) -> str:
    """Return the name of the account that holds a contract's deposit."""
    return f"escrow:{contract_id}"


def balance(source: Store | Transaction, account: str) -> int:
    """Return an account's balance in micro-NTX; an account that does not exist has zero."""
    row = source[ACCOUNTS].get(account)
    return row.balance if row is not None else 0


def exists(source: Store | Transaction, account: str) -> bool:
    """Say whether an account was ever used."""
    return source[ACCOUNTS].has(account)


def transfer(t: Transaction, payer: str, payee: str, micro: int, kind: str, contract_id: str = "") -> None:
    """Move money between two accounts, as part of a change.

    Raises:
        ContractError: the payer would become negative (`insufficient_funds`), or the amount is.
    """
    if micro < 0:
        raise ContractError("a transfer cannot be negative", code="bad_amount")
    left = balance(t, payer) - micro
    if left < 0 and payer != ISSUANCE:
        raise ContractError(
            f"the account has {quantities.format_amount(left + micro)} NTX, {quantities.format_amount(micro)} NTX"
            " are needed",
            code="insufficient_funds",
            hint="the contract database's operator can add funds with: nunet account deposit AMOUNT --to DID",
            details={"missing": quantities.format_amount(-left)},
        )
    t[ACCOUNTS].put(Account(payer, left))
    t[ACCOUNTS].put(Account(payee, balance(t, payee) + micro))
    t[LEDGER].append(Transfer(quantities.utc_now(), kind, payer, payee, micro, contract_id))


def entries(source: Store | Transaction, account: str, limit: int) -> list[Transfer]:
    """Return the latest movements of an account, oldest first, as it sees them: negative where it paid."""
    rows = source[LEDGER].latest(("payer", "payee"), account, limit) if limit else []
    return [
        row if row.payee == account else structs.replace(row, amount=-row.amount)
        for row in reversed(rows)
    ]  # fmt: skip
