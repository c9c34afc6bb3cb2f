"""Documents that several parties sign: exact text, named by its content id, with detached signatures.

The signature is over a domain-separating prefix, the role of the signer and the exact bytes, so that a signature given
in one role never counts in another.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from msgspec import Struct

from nunet_cli.errors import RejectedMessageError
from nunet_cli.records.fields import Did
from nunet_cli.records.identifiers import content_id, verify
from nunet_cli.records.limits import Limits
from nunet_cli.records.reading import decode_again

T = TypeVar("T")
MAX_DOCUMENT = 512 * 1024
_PREFIX = b"nunet-document-v1\n"


class Signer(Protocol):
    """Who can sign: a node's key."""

    @property
    def did(self) -> str:
        """The DID of the key."""

    def sign(self, data: bytes) -> bytes:
        """Return a signature over exact bytes."""


class Signature(Struct, forbid_unknown_fields=True, frozen=True):
    """One party's signature, base64."""

    did: Did
    role: Annotated[str, Limits(min_length=1, max_length=40)]
    signature: Annotated[str, Limits(max_length=100)]


class Document(Struct, forbid_unknown_fields=True, frozen=True):
    """A signed document: `content` is the exact JSON text."""

    content: Annotated[str, Limits(max_length=MAX_DOCUMENT)]
    signatures: Annotated[tuple[Signature, ...], Limits(max_length=8)] = ()

    @property
    def cid(self) -> str:
        """The content id of the exact bytes."""
        return content_id(self.content.encode())

    def sign(self, identity: Signer, role: str) -> Document:
        """Return the document with one more signature; signing twice in a role changes nothing."""
        if self.is_signed(identity.did, role):
            return self
        data = _signed_bytes(self.content, role)
        signature = base64.b64encode(identity.sign(data)).decode()
        return Document(self.content, (*self.signatures, Signature(identity.did, role, signature)))

    def is_signed(self, did: str, role: str) -> bool:
        """Say whether there is a good signature of this party in this role."""
        for entry in self.signatures:
            if entry.did == did and entry.role == role:
                try:
                    raw = base64.b64decode(entry.signature, validate=True)
                except ValueError:
                    return False
                if base64.b64encode(raw).decode() != entry.signature:
                    # the last letter of base64 has bits to spare: one signature has one form
                    return False
                return verify(did, raw, _signed_bytes(self.content, role))
        return False

    def read(self, kind: type[T]) -> T:
        """Return the content as a struct; what a newer version wrote into it beside that is ignored.

        Raises:
            RejectedMessageError: it is not one.
        """
        try:
            return decode_again(self.content, kind)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise RejectedMessageError(f"not a {kind.__name__}: {error}", code="bad_document") from None


def make_document(value: Any) -> Document:
    """Return an unsigned document for a struct; its bytes are fixed here, once."""
    return Document(msgspec.json.encode(value).decode())


def require_signature(document: Document, did: str, role: str, what: str) -> None:
    """Refuse a document without this party's good signature.

    Raises:
        RejectedMessageError: naming whose signature is missing or bad.
    """
    if not document.is_signed(did, role):
        raise RejectedMessageError(f"the {what} has no good signature of its {role} ({did})", code="bad_signature")


def _signed_bytes(content: str, role: str) -> bytes:
    return _PREFIX + role.encode() + b"\n" + content.encode()
