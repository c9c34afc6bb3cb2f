"""Who acts as contract database and as oracle for this node: whom its owner names, or who was used before."""

from __future__ import annotations

import trio

from nunet_cli import quantities
from nunet_cli.config import Config
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError
from nunet_cli.network.peers import Peers
from nunet_cli.network.topics import Topics
from nunet_cli.network.transport import TcpTransport
from nunet_cli.records.contract_records import PINNED_ROLES, PinnedRole
from nunet_cli.records.contracts import DATABASE, ORACLE

MOST_NAMED = 8


def several(role: str) -> str:
    """Return the code of the error that says that several are known in a role, and none was chosen."""
    return {DATABASE: "several_contract_databases", ORACLE: "several_oracles"}[role]


class Roles:
    """Finds who acts in a role, and remembers whom this node has used.

    Args:
        did: this node.
        config: whom its owner names.
        store: whom it has used.
        topics: its own roles.
        transport: tells when somebody has come.
        peers: whom it knows.
    """

    def __init__(
        self, did: str, config: Config, store: Store, topics: Topics, transport: TcpTransport, peers: Peers
    ) -> None:
        self.config = config
        self._did, self._store, self._topics, self._transport, self._peers = did, store, topics, transport, peers

    def configured(self, role: str) -> str:
        """Return whom the configuration names in a role; empty where it names nobody."""
        return {DATABASE: self.config.contract_database, ORACLE: self.config.oracle}[role]

    def find(self, role: str, *, paid: bool = True) -> str:
        """Return the DID of the node to use in a role: the configured one, the one used before, or the only one known.

        The first one ever used is kept: a stranger who later announces the role is not taken instead. Where money is at
        stake nobody is picked among several: whoever holds the escrow is its owner's choice.

        Args:
            role: the role.
            paid: False for volunteer work, which may take any.

        Raises:
            ContractError: nobody is known in the role, or several are and none was chosen.
        """
        if configured := self.configured(role):
            return configured
        pinned = self._store[PINNED_ROLES].get(role)
        if pinned is not None:
            return pinned.did
        if role in self._topics.roles:
            return self._did
        known = self._peers.with_role(role)
        key = role.replace("-", "_")
        if not known:
            raise ContractError(
                f"no {role} is known",
                code="no_" + key,
                hint=f"start one with: nunet node run --role {role}; or name one with: nunet config set {key} DID",
            )
        if paid and len(known) > 1:
            dids = [peer.did for peer in known]
            raise ContractError(
                f"several nodes act as {role}, and none was chosen: {', '.join(dids[:MOST_NAMED])}",
                code=several(role),
                hint=f"ask whose you trust, and choose: nunet config set {key} DID",
                details={"role": role, "known": dids},
            )
        return known[0].did

    def knows(self, role: str, did: str) -> bool:
        """Say whether a node is whom this one uses in a role: by choice, by use, or because it is itself."""
        pinned = self._store[PINNED_ROLES].get(role)
        chosen = self.configured(role) or (pinned.did if pinned is not None else "")
        return did == chosen or (did == self._did and role in self._topics.roles)

    def undecided(self) -> dict[str, list[str]]:
        """Return who is known in each role in which several are, and none was chosen."""
        found = {}
        for role in (DATABASE, ORACLE):
            try:
                self.find(role)
            except ContractError as error:
                if error.code == several(role):
                    found[role] = list(error.details["known"])
        return found

    async def wait(self, role: str, *, paid: bool = True) -> str:
        """Return the DID of the node to use in a role, giving it `default_search_timeout` to be found.

        Raises:
            ContractError: nobody is known in the role, or, where money is at stake, several are and none was chosen.
        """
        end = trio.current_time() + self.config.default_search_timeout
        while True:
            try:
                return self.find(role, paid=paid)
            except ContractError as error:
                if error.code == several(role) or trio.current_time() >= end:
                    raise
                await self._transport.wait_change(0.25)

    async def choose(self, role: str, did: str) -> None:
        """Use a node in a role from now on, as this node's owner says."""
        await self._store.change(lambda t: t[PINNED_ROLES].put(PinnedRole(role, did, quantities.utc_now())))

    def pin(self, t: Transaction, role: str, did: str, *, job_id: str = "") -> None:
        """Remember who was used in a role, the first time, and say so; whom the configuration names is not remembered.

        Args:
            t: the change that this is part of.
            role: the role.
            did: who was used.
            job_id: the job of this node's for which it was; its followers are told.
        """
        if did == self.configured(role):
            return
        if not t[PINNED_ROLES].has(role):
            t[PINNED_ROLES].put(PinnedRole(role, did, quantities.utc_now()))
            if did != self._did:
                t.save_event(job_id, "role_taken", role=role, did=did)
