"""What a node keeps so that messages arrive once, who may fetch which blob, and the peers that it knows."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from nunet_cli.records.table import Table


class Handled(Struct, frozen=True):
    """A message that was handled: `id` is its sender and its own id, `answer` the sealed answer, if it had one."""

    id: str
    type: str
    expires_at: str
    answer: bytes = b""


INBOX = Table("inbox", Handled, indexes=("expires_at",))


class Outgoing(Struct, frozen=True):
    """A message that is repeated until it is acknowledged or expires; `raw` is the sealed envelope."""

    id: str
    to: str
    type: str
    expires_at: str
    raw: bytes


OUTBOX = Table("outbox", Outgoing, indexes=("to", "expires_at"))


class Grant(Struct, frozen=True):
    """Permission for a peer to fetch a blob; `id` is both."""

    id: str
    cid: str
    did: str


def _upgrade_grant(row: dict[str, Any]) -> dict[str, Any]:
    cid, _, did = row["id"].partition("/")
    return {"id": row["id"], "cid": cid, "did": did}


GRANTS = Table("grants", Grant, indexes=("cid",), upgrade=_upgrade_grant)


class PeerRecord(Struct, frozen=True):
    """A known peer, as a restarted node finds it again; `id` is its peer id."""

    id: str
    did: str
    addresses: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    source: str = "inbound"
    last_seen: str = ""
    useful_at: str = ""


PEERS = Table("peers", PeerRecord, indexes=("did", "last_seen"))
