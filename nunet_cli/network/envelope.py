"""The envelope: every message between nodes, signed on its own, so that it is evidence after the connection is gone.

The signature is over a prefix and the exact bytes sent; nothing is encoded a second time.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.errors import NunetError, RejectedMessageError
from nunet_cli.network.identity import Identity
from nunet_cli.records.fields import Did, Id, MaybeId, Text, Time
from nunet_cli.records.identifiers import verify
from nunet_cli.records.limits import Limits
from nunet_cli.records.reading import decode
from nunet_cli.world import world

PREFIX = b"nunet-envelope-v1\n"
SIGNATURE_SIZE = 64
MAX_SKEW = timedelta(seconds=60)
MAX_LIFETIME = timedelta(days=31)
MAX_DETAILS, MAX_DEPTH = 16 * 1024, 8
MAX_AT = 8
# An introduction is taken over its sender's own channel alone, so there is nothing to replay; and the clocks of two
# nodes may be what they have to tell each other of.
TIMELESS = frozenset({"hello"})


class Envelope(Struct, forbid_unknown_fields=True, frozen=True, rename={"from_": "from"}):
    """A message; `to` is a DID or a topic, `reply_to` the id of the message that this answers.

    `at` says where the sender listens, `HOST:PORT`, best first: for those that get a publication from others.
    """

    v: Literal[1]
    id: Id
    type: Annotated[str, Limits(pattern=r"^[a-z_]{1,60}(?!\n)$")]
    from_: Did
    to: Annotated[str, Limits(min_length=1, max_length=200)]
    sent_at: Time
    expires_at: Time
    body: msgspec.Raw
    reply_to: MaybeId = ""
    at: Annotated[tuple[Annotated[str, Limits(max_length=300)], ...], Limits(max_length=MAX_AT)] = ()


class ErrorMessage(Struct, forbid_unknown_fields=True, frozen=True):
    """A typed refusal (seed 4: `ErrorMessage`)."""

    code: Annotated[str, Limits(pattern=r"^[a-z0-9_]{1,60}(?!\n)$")]
    message: Text
    hint: Text = ""
    details: dict[str, Any] = {}

    def __post_init__(self) -> None:
        # they are kept with a job and printed: no more than a refusal of this node's own ever has
        if len(msgspec.json.encode(self.details)) > MAX_DETAILS or _depth(self.details) > MAX_DEPTH:
            raise ValueError("too many details")


def error_message(error: NunetError) -> ErrorMessage:
    """Return an error as it is told to a peer: without its details where they are too many."""
    message, hint = error.message[:4000], error.hint[:4000]
    try:
        return ErrorMessage(error.code, message, hint, error.details)
    except ValueError:
        return ErrorMessage(error.code, message, hint)


def _depth(value: Any) -> int:
    """Return how many lists and maps are inside of each other, as far as that matters."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [item for part in level if isinstance(part, (dict, list, tuple))
                 for item in (part.values() if isinstance(part, dict) else part)]  # fmt: skip
        depth += bool(level)
    return depth


def seal(
    identity: Identity,
    to: str,
    type_: str,
    body: Any,
    *,
    lifetime: float,
    reply_to: str = "",
    at: tuple[str, ...] = (),
    now: datetime | None = None,
) -> tuple[Envelope, bytes]:
    """Return a new envelope and the bytes to send: the signature, then the exact text that it covers.

    Args:
        identity: who sends.
        to: a DID or a topic.
        type_: the message's type.
        body: a struct.
        lifetime: seconds until the message expires.
        reply_to: id of the message that this answers.
        at: where the sender listens, for a publication.
        now: the present time, for a test's clock.
    """
    sent = now or quantities.now()
    envelope = Envelope(
        v=1, id=world().token(16), type=type_, from_=identity.did, to=to, sent_at=quantities.format_time(sent),
        expires_at=quantities.format_time(sent + timedelta(seconds=lifetime)), reply_to=reply_to,
        body=msgspec.Raw(msgspec.json.encode(body)), at=at,
    )  # fmt: skip
    text = msgspec.json.encode(envelope)
    return envelope, identity.sign(PREFIX + text) + text


def unseal(
    raw: bytes, *, me: str, topics: frozenset[str] | None = frozenset(), now: datetime | None = None
) -> Envelope:
    """Check a message's form, recipient, times and signature, in that order, and return it.

    Args:
        raw: the bytes as received.
        me: the receiver's DID.
        topics: topics that the receiver subscribes to; None takes every recipient, for passing on.
        now: the present time, for a test's clock.

    Raises:
        RejectedMessageError: `code` is the reason that is counted.
    """
    signature, text = raw[:SIGNATURE_SIZE], raw[SIGNATURE_SIZE:]
    try:
        envelope = decode(text, Envelope)
        sent, expires = quantities.parse_time(envelope.sent_at), quantities.parse_time(envelope.expires_at)
    except (msgspec.MsgspecError, NunetError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedMessageError(f"not an envelope: {error}", code="malformed") from None
    if topics is not None and envelope.to != me and envelope.to not in topics:
        raise RejectedMessageError("the message is for somebody else", code="wrong_recipient")
    now = now or quantities.now()
    timed = envelope.type not in TIMELESS
    if timed and sent > now + MAX_SKEW:
        ahead = quantities.format_duration(round((sent - now).total_seconds()))
        raise RejectedMessageError(
            f"the message was sent {ahead} from now: the clocks differ by that at least", code="clock_differs"
        )
    if timed and expires <= now:
        raise RejectedMessageError(f"the message expired at {envelope.expires_at}", code="expired")
    if expires > sent + MAX_LIFETIME:
        raise RejectedMessageError("the message lives too long", code="lifetime")
    if not verify(envelope.from_, signature, PREFIX + text):
        raise RejectedMessageError("the signature is not the sender's", code="bad_signature")
    return envelope


def body_of(envelope: Envelope, kind: type[Any]) -> Any:
    """Return the body as a struct; fields of a newer version are ignored.

    Raises:
        RejectedMessageError: it does not fit the schema; the message names the field.
    """
    try:
        return decode(envelope.body, kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RejectedMessageError(f"{envelope.type}: {error}", code="bad_body") from None
