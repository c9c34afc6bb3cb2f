"""Statements of who has verified a node: making one as a verifier, and taking those that are about this node."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

import msgspec

from nunet_cli import quantities
from nunet_cli.errors import RejectedMessageError, UsageError
from nunet_cli.orchestrator.needs import HasIdentity, HasStore
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.kyc import MAX_STATEMENT, VERIFIER, Kyc, KycStatement
from nunet_cli.records.reading import as_read, decode_exactly

FOR_EVER = "forever"
LONGEST = timedelta(days=36525)


class StatementFile(Document, forbid_unknown_fields=False, frozen=True):
    """A document as a command prints it: what else is there is not looked at."""


class Attesting(HasIdentity, HasStore, Protocol):
    """Signs statements, and notes them."""


async def attest(ctx: Attesting, subject: str, name: str, valid: str) -> Document:
    """Sign that this node has verified another one, and note it in the event log.

    Args:
        ctx: the node's parts.
        subject: the DID of the node that was verified.
        name: what this verifier goes by; requesters name it in `kycs`.
        valid: how long the statement counts, such as `365d`; `forever` for no end.

    Raises:
        UsageError: the name or the time is none.
    """
    now, end = quantities.now(), ""
    if valid != FOR_EVER:
        lasts = timedelta(seconds=quantities.parse_duration(valid))
        if lasts > LONGEST:
            raise UsageError(f"{valid!r} is longer than a hundred years", hint=f"for no end write: {FOR_EVER}")
        end = quantities.format_time(now + lasts)
    statement = KycStatement(v=1, subject=subject, name=name, issued_at=quantities.format_time(now), expires_at=end)
    try:
        as_read(statement)
    except msgspec.ValidationError:
        hint = "1 to 200 letters that can be shown, for example acme-bank"
        raise UsageError(f"{name[:100]!r} cannot be a verifier's name", hint=hint) from None
    document = make_document(statement).sign(ctx.identity, VERIFIER)
    await ctx.store.save_event("", "kyc_attested", subject=subject, name=name, expires_at=end)
    return document


def read_statement(text: str | bytes) -> Kyc:
    """Return a verifier's statement, as its file has it, the way a capability carries it.

    Whether its signature is good, and about whom it is, is not looked at: see `Kyc.fault`.

    Raises:
        UsageError: it is none.
    """
    try:
        document = decode_exactly(text, StatementFile)
        said = document.read(KycStatement)
    except (msgspec.MsgspecError, RejectedMessageError, UnicodeDecodeError):
        raise UsageError("no statement of a verifier", hint="it is what `nunet registry attest` prints") from None
    signed = [entry for entry in document.signatures if entry.role == VERIFIER]
    if len(signed) != 1 or len(document.content) > MAX_STATEMENT:
        raise UsageError("no statement that one verifier signed", hint="it is what `nunet registry attest` prints")
    return Kyc(said.name, signed[0].did, document.content, signed[0].signature)
