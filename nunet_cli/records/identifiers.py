"""The identifiers that are made from a public key or from bytes, and the check of a signature.

Formats: did:key with multicodec ed25519-pub (W3C CCG did:key method), libp2p peer id (identity multihash of the
protobuf public key, base58btc) and the same peer id as CIDv1 with codec libp2p-key in base32 (libp2p peer-ids spec).
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache

import base58
import nacl.exceptions
import nacl.signing

from nunet_cli.errors import IdentityError

IDENTIFIERS_KEPT = 4096  # base58 of a key takes some 20 µs and is asked for at every look at the peers
_ED25519_MULTICODEC = b"\xed\x01"
_PEER_ID_PREFIX = bytes.fromhex(
    "002408011220"
)  # identity multihash, 36 bytes: protobuf {type: Ed25519, data: 32 bytes}
_CID_LIBP2P_KEY = b"\x01\x72"
_CID_RAW_SHA256 = b"\x01\x55\x12\x20"


@lru_cache(maxsize=IDENTIFIERS_KEPT)
def did_from_key(public_key: bytes) -> str:
    """Return `did:key:z6Mk…` for a 32-byte Ed25519 public key."""
    return "did:key:z" + base58.b58encode(_ED25519_MULTICODEC + public_key).decode()


@lru_cache(maxsize=IDENTIFIERS_KEPT)
def key_from_did(did: str) -> bytes:
    """Return the 32-byte public key of a did:key.

    Raises:
        IdentityError: not a did:key of an Ed25519 key.
    """
    try:
        if did.startswith("did:key:z") and len(did) < 100:
            data = base58.b58decode(did.removeprefix("did:key:z"))
            # one key has one name: base58 itself takes others, with a line break at the end for example
            if data[:2] == _ED25519_MULTICODEC and len(data) == 34 and did_from_key(data[2:]) == did:
                return data[2:]
    except ValueError:
        pass
    raise IdentityError(f"not a did:key of an Ed25519 key: {did[:100]!r}")


@lru_cache(maxsize=IDENTIFIERS_KEPT)
def peer_id_from_key(public_key: bytes) -> str:
    """Return `12D3KooW…` for a 32-byte Ed25519 public key."""
    return base58.b58encode(_PEER_ID_PREFIX + public_key).decode()


def key_from_peer_id(peer_id: str) -> bytes:
    """Return the public key inside a peer id, in base58 (`12D3KooW…`) or as a CID (`bafz…`).

    Raises:
        IdentityError: not a peer id of an Ed25519 key.
    """
    try:
        if len(peer_id) < 120:
            if peer_id.startswith("b"):
                padded = peer_id[1:].upper() + "=" * (-len(peer_id[1:]) % 8)
                data = base64.b32decode(padded).removeprefix(_CID_LIBP2P_KEY)
            else:
                data = base58.b58decode(peer_id)
            if data.startswith(_PEER_ID_PREFIX) and len(data) == 38:
                return data[6:]
    except ValueError:
        pass
    raise IdentityError(
        f"not a peer id: {peer_id[:100]!r}", hint="a peer id starts with 12D3KooW; `nunet whoami` prints a node's own"
    )


@lru_cache(maxsize=IDENTIFIERS_KEPT)
def peer_cid_from_key(public_key: bytes) -> str:
    """Return the peer id as CIDv1 (`bafz…`)."""
    return "b" + base64.b32encode(_CID_LIBP2P_KEY + _PEER_ID_PREFIX + public_key).decode().rstrip("=").lower()


def key_from_any(identifier: str) -> bytes:
    """Return the public key for a DID, a peer id or its CID.

    Raises:
        IdentityError: none of them.
    """
    return key_from_did(identifier) if identifier.startswith("did:") else key_from_peer_id(identifier)


def content_id(data: bytes) -> str:
    """Return the CIDv1 (raw, sha2-256, base32) of exact bytes."""
    return cid_from_digest(hashlib.sha256(data).digest())


def cid_from_digest(digest: bytes) -> str:
    """Return the CIDv1 (raw, sha2-256, base32) for a sha2-256 digest."""
    return "b" + base64.b32encode(_CID_RAW_SHA256 + digest).decode().rstrip("=").lower()


def is_content_id(text: str) -> bool:
    """Say whether a text is a CIDv1 of raw bytes with sha2-256, and so safe to be a file's name."""
    try:
        data = base64.b32decode(text[1:].upper() + "=" * (-len(text[1:]) % 8))
    except ValueError:
        return False
    return text == cid_from_digest(data[4:]) and len(data) == 36 and data.startswith(_CID_RAW_SHA256)


def verify(did: str, signature: bytes, data: bytes) -> bool:
    """Say whether `signature` over `data` was made with the key that a DID names."""
    try:
        nacl.signing.VerifyKey(key_from_did(did)).verify(data, signature)
    except (nacl.exceptions.BadSignatureError, nacl.exceptions.ValueError, ValueError, IdentityError):
        return False
    return True
