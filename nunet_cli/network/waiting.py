"""A message that is out, and what came back for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from nunet_cli.errors import IdentityError, NoSpaceError, RejectedMessageError
from nunet_cli.network.envelope import Envelope, ErrorMessage, body_of
from nunet_cli.records.identifiers import key_from_did, peer_id_from_key

# the other side could not do its work just now: the message is sent again, as one that was lost would be
_TRANSIENT = ("internal", NoSpaceError.default_code)


@dataclass
class Waiting:
    """Who was asked, and the answer: an envelope, a mere acknowledgement, or the reason of a rejection."""

    sender: str
    arrived: trio.Event = field(default_factory=trio.Event)
    envelope: Envelope | None = None
    raw: bytes = b""
    rejected: str = ""

    def trouble(self) -> str:
        """Return the code of what the other side says where it may do better later; empty for a real answer."""
        if self.envelope is None or self.envelope.type != "error_message":
            return ""
        try:
            error: ErrorMessage = body_of(self.envelope, ErrorMessage)
        except RejectedMessageError:
            return ""
        return error.code if error.code in _TRANSIENT else ""


def short(did: str) -> str:
    """Return a DID as people can tell it from others, and as lists have it: the end of its peer id."""
    try:
        return f"…{peer_id_from_key(key_from_did(did))[-8:]}"
    except IdentityError:
        return f"…{did[-8:]}"
