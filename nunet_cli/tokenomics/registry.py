"""The contract database's registry: who is a verified entity, and what its account opens with."""

from __future__ import annotations

from nunet_cli import quantities
from nunet_cli.config import Config
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError
from nunet_cli.records.books import REGISTRY, RegistryEntry
from nunet_cli.records.contracts import UNVERIFIED
from nunet_cli.records.identifiers import key_from_did
from nunet_cli.records.messages import KycAnswer
from nunet_cli.tokenomics import chain, ledger


class Registry:
    """Who is admitted (second seed: verified entities), and the operator's functions about it.

    Args:
        store: where it is kept.
        config: admission, and the balance that an account opens with.
    """

    def __init__(self, store: Store, config: Config) -> None:
        self._store, self._config = store, config

    def check_kyc(self, did: str, source: Store | Transaction | None = None) -> KycAnswer:
        """Say whether a node is verified; the question changes nothing, whoever it is about."""
        entry = (source or self._store)[REGISTRY].get(did)
        if entry is None and self._config.registry.admission == "open":
            return KycAnswer(did, verified=True)
        if entry is None:
            reason = "not in the registry; its operator can run: nunet registry approve " + did
            return KycAnswer(did, verified=False, reason=reason)
        verified = entry.status == "approved"
        return KycAnswer(did, verified=verified, reason="" if verified else "revoked")

    async def approve(self, did: str, note: str = "") -> RegistryEntry:
        """Admit a node, or admit it again (operator)."""
        key_from_did(did)
        return await self._store.change(lambda t: self._admit(t, did, note or "approved by the operator"))

    async def revoke(self, did: str, note: str = "") -> RegistryEntry:
        """Stop a node from closing new contracts (operator); those it has go on."""
        key_from_did(did)

        def change(t: Transaction) -> RegistryEntry:
            entry = RegistryEntry(did, "revoked", quantities.utc_now(), note or "revoked by the operator")
            t[REGISTRY].put(entry)
            chain.append(t, "revoke", did=did)
            return entry

        return await self._store.change(change)

    async def deposit(self, did: str, micro: int) -> int:
        """Credit an account from issuance (operator); return the balance after it, in micro-NTX."""
        key_from_did(did)

        def change(t: Transaction) -> int:
            if not t[REGISTRY].has(did) and self._config.registry.admission == "open":
                self._admit(t, did, "open admission")
            ledger.transfer(t, ledger.ISSUANCE, did, micro, "deposit")
            chain.append(t, "deposit", did=did, amount=quantities.format_amount(micro))
            return ledger.balance(t, did)

        return await self._store.change(change)

    def admit_party(self, t: Transaction, did: str, role: str) -> None:
        """Refuse a party that is not verified; under open admission the first contract of an unknown one admits it."""
        answer = self.check_kyc(did, t)
        if not answer.verified:
            raise ContractError(
                f"the {role} {did} is not verified: {answer.reason}", code=UNVERIFIED, details={"did": did}
            )
        if not t[REGISTRY].has(did):
            self._admit(t, did, "open admission")

    def _admit(self, t: Transaction, did: str, note: str) -> RegistryEntry:
        opening = self.opening_balance(t, did)
        entry = RegistryEntry(did, "approved", quantities.utc_now(), note)
        t[REGISTRY].put(entry)
        chain.append(t, "admit", did=did)
        if opening:
            ledger.transfer(t, ledger.ISSUANCE, did, opening, "opening")
        return entry

    def balance(self, source: Store | Transaction, did: str) -> str:
        """Return somebody's balance in NTX, or what its account would open with."""
        return quantities.format_amount(ledger.balance(source, did) + self.opening_balance(source, did))

    def opening_balance(self, source: Store | Transaction, did: str) -> int:
        """Return what the account of somebody opens with who was never admitted; nothing for everybody else."""
        known = source[REGISTRY].has(did) or ledger.exists(source, did)
        if known or self._config.registry.admission != "open":
            return 0
        return quantities.parse_amount(self._config.registry.opening_balance)
