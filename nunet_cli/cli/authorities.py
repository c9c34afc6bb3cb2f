"""Asking whose contract database and oracle to use, where several are known and none was chosen."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from nunet_cli.cli.output import clean, note
from nunet_cli.cli.state import STATE

if TYPE_CHECKING:
    from nunet_cli.api.client import ApiClient

UNDECIDED = ("several_contract_databases", "several_oracles")


def choose(client: ApiClient) -> bool:
    """Ask the person at the terminal, if there is one; what they say is kept in the node and in its configuration.

    Returns:
        Whether something was chosen.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    undecided = client.get("/status")["undecided"]
    peers = {row["did"]: row for row in client.page("/peers", limit=0).rows} if undecided else {}
    for role, dids in undecided.items():
        did = _ask(role, dids, peers)
        client.post("/roles", {"role": role, "did": did})
        if not STATE.node:
            from nunet_cli.config_file import set_in_file

            set_in_file(STATE.config_file, role.replace("-", "_"), did)
            note(f"kept in {STATE.config_file}")
    return bool(undecided)


def _ask(role: str, dids: list[str], peers: dict[str, dict[str, Any]]) -> str:
    note(f"Several nodes act as {role}. It {_TASK[role]}: choose whose you trust.")
    for number, did in enumerate(dids, 1):
        peer = peers.get(did, {"addresses": [], "connected": False})
        where = f"{peer['addresses'][0]}, " if peer["addresses"] else ""
        note(clean(f"{number:>3}  {did}  ({where}{'connected' if peer['connected'] else 'not connected'})"))
    number = 0
    while not 1 <= number <= len(dids):
        number = typer.prompt(f"Number, 1 to {len(dids)}", type=int, err=True)
    return dids[number - 1]


_TASK = {"contract-database": "holds the money of your contracts", "oracle": "says whether a result is right"}
