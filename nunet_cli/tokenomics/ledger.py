"""The ledger: double entry, integer micro-NTX. The sum over all accounts is zero, and none but issuance is negative."""

from __future__ import annotations

from typing import Any

from tinydb import Query

from nunet_cli import units
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError

ISSUANCE = "issuance"


def escrow(contract_id: str) -> str:
    """Return the name of the account that holds a contract's deposit."""
    return f"escrow:{contract_id}"


def balance(source: Store | Transaction, account: str) -> int:
    """Return an account's balance in micro-NTX; an account that does not exist has zero."""
    row = source.find("accounts", account)
    return int(row["balance"]) if row else 0


def exists(source: Store | Transaction, account: str) -> bool:
    """Say whether an account was ever used."""
    return source.find("accounts", account) is not None


def transfer(transaction: Transaction, payer: str, payee: str, micro: int, kind: str, contract_id: str = "") -> None:
    """Move money between two accounts, as part of a change.

    Raises:
        ContractError: the payer would become negative (`insufficient_funds`), or the amount is.
    """
    if micro < 0:
        raise ContractError("a transfer cannot be negative", code="bad_amount")
    left = balance(transaction, payer) - micro
    if left < 0 and payer != ISSUANCE:
        raise ContractError(
            f"the account has {units.format_amount(left + micro)} NTX, {units.format_amount(micro)} NTX are needed",
            code="insufficient_funds",
            hint="the contract database's operator can add funds with: nunet account deposit AMOUNT --to DID",
            details={"missing": units.format_amount(-left)},
        )
    transaction.put("accounts", {"id": payer, "balance": left})
    transaction.put("accounts", {"id": payee, "balance": balance(transaction, payee) + micro})
    transaction.table("ledger").insert(
        {
            "at": units.utc_now(), "kind": kind, "contract_id": contract_id,
            "payer": payer, "payee": payee, "amount": micro,
        }
    )  # fmt: skip


def entries(store: Store, account: str, limit: int) -> list[dict[str, Any]]:
    """Return the latest movements of an account, oldest first, as `{at, kind, amount, contract_id}`, signed amounts."""
    query = Query()
    rows = store.table("ledger").search((query.payer == account) | (query.payee == account))[-limit:] if limit else []
    return [
        {
            "at": row["at"], "kind": row["kind"], "contract_id": row["contract_id"],
            "amount": row["amount"] if row["payee"] == account else -row["amount"],
        }
        for row in rows
    ]  # fmt: skip


def total(store: Store) -> int:
    """Return the sum over all accounts, which is zero as long as the books are right."""
    return sum(int(row["balance"]) for row in store.table("accounts").all())
