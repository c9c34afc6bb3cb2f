"""The contract database's books: accounts, ledger, registry, and the hash-chained log of all that it did."""

from __future__ import annotations

from msgspec import Struct

from nunet_cli.records.table import Table


class Account(Struct, frozen=True):
    """An account's balance in micro-NTX; `id` is a DID, an escrow or the issuance."""

    id: str
    balance: int


ACCOUNTS = Table("accounts", Account)


class Transfer(Struct, frozen=True):
    """One movement from `payer` to `payee`, in micro-NTX."""

    at: str
    kind: str
    payer: str
    payee: str
    amount: int
    contract_id: str = ""


LEDGER = Table("ledger", Transfer, key="", indexes=("payer", "payee", "contract_id"))


class LogEntry(Struct, frozen=True):
    """One entry of the log: its text, the hash before it and the hash with it, hexadecimal."""

    previous: str
    hash: str
    entry: str


LOG = Table("log", LogEntry, key="")


class LogHead(Struct, frozen=True):
    """The hash of the last entry; the only row's `id` is `head`."""

    id: str
    hash: str


LOG_HEAD = Table("log_head", LogHead)


class Presence(Struct, frozen=True):
    """When a node was there in a role (the `id`) last, to a minute."""

    id: str
    seen_at: str


PRESENCE = Table("presence", Presence)


class RegistryEntry(Struct, frozen=True):
    """Somebody who was admitted or revoked; `id` is the DID."""

    id: str
    status: str
    at: str
    note: str = ""


REGISTRY = Table("registry", RegistryEntry, indexes=("status",))
