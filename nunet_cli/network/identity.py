"""A node's key and the four identifiers made from it (second seed: `dms.node.NodeID`).

Formats: did:key with multicodec ed25519-pub (W3C CCG did:key method), libp2p peer id (identity multihash of the
protobuf public key, base58btc) and the same peer id as CIDv1 with codec libp2p-key in base32 (libp2p peer-ids spec).
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nacl.exceptions
import nacl.pwhash
import nacl.secret
import nacl.signing
import nacl.utils

from nunet_cli.errors import IdentityError
from nunet_cli.records.bids import NodeID
from nunet_cli.records.identifiers import did_from_key, peer_cid_from_key, peer_id_from_key
from nunet_cli.world import world

KEY_FILE = "identity.json"


@dataclass(frozen=True)
class Identity:
    """A node's Ed25519 key and its random uuid."""

    seed: bytes
    uuid: str

    @cached_property
    def signing_key(self) -> nacl.signing.SigningKey:
        """The key that signs."""
        return nacl.signing.SigningKey(self.seed)

    @cached_property
    def public_key(self) -> bytes:
        """The 32 bytes that peers know."""
        return bytes(self.signing_key.verify_key)

    @cached_property
    def did(self) -> str:
        """`did:key:z6Mk…`."""
        return did_from_key(self.public_key)

    @cached_property
    def peer_id(self) -> str:
        """`12D3KooW…`."""
        return peer_id_from_key(self.public_key)

    @cached_property
    def node_id(self) -> NodeID:
        """All four identifiers."""
        return NodeID(uuid=self.uuid, cid=peer_cid_from_key(self.public_key), peer_id=self.peer_id, did=self.did)

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte detached signature."""
        return bytes(self.signing_key.sign(data).signature)


def new_identity() -> Identity:
    """Make a random key and uuid."""
    token = world().token
    return Identity(seed=bytes.fromhex(token(32)), uuid=str(uuid.UUID(hex=token(16), version=4)))


def load_or_create(home: Path, passphrase: str | None = None) -> Identity:
    """Return the identity kept in a home, making it at the first start (file mode 0600).

    Args:
        home: the node's folder.
        passphrase: seals a new key, or opens a sealed one (argon2id, secretbox).

    Raises:
        IdentityError: the file is damaged, readable by others, or sealed with another passphrase.
    """
    path = home / KEY_FILE
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        identity = new_identity()
        _write(path, identity, passphrase)
        return identity
    if path.stat().st_mode & 0o077:
        raise IdentityError(f"{path} can be read by others", hint=f"run: chmod 600 {path}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        name, sealed = str(uuid.UUID(str(document["uuid"]))), document.get("sealed")
        if sealed:
            if not passphrase:
                raise IdentityError(f"{path} is sealed", hint="set NUNET_PASSPHRASE", code="sealed_identity")
            box = nacl.secret.SecretBox(_stretch(passphrase, base64.b64decode(sealed["salt"])))
            seed = box.decrypt(base64.b64decode(sealed["box"]))
        else:
            seed = base64.b64decode(document["seed"], validate=True)
        identity = Identity(seed=seed, uuid=name)
        if identity.did != document["did"]:
            raise ValueError("the key does not belong to the did beside it")
    except nacl.exceptions.CryptoError:
        raise IdentityError(f"{path}: wrong passphrase", hint="set NUNET_PASSPHRASE to the right one") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IdentityError(
            f"{path} is damaged: {error}",
            hint="restore it from a copy; without it this node's contracts and funds cannot be used",
        ) from None
    return identity


def _stretch(passphrase: str, salt: bytes) -> bytes:
    return nacl.pwhash.argon2id.kdf(
        nacl.secret.SecretBox.KEY_SIZE, passphrase.encode(), salt,
        opslimit=nacl.pwhash.argon2id.OPSLIMIT_MODERATE, memlimit=nacl.pwhash.argon2id.MEMLIMIT_MODERATE,
    )  # fmt: skip


def _write(path: Path, identity: Identity, passphrase: str | None) -> None:
    document: dict[str, object] = {"version": 1, "uuid": identity.uuid, "did": identity.did}
    if passphrase:
        salt = nacl.utils.random(nacl.pwhash.argon2id.SALTBYTES)
        box = nacl.secret.SecretBox(_stretch(passphrase, salt)).encrypt(identity.seed)
        document["sealed"] = {"salt": base64.b64encode(salt).decode(), "box": base64.b64encode(bytes(box)).decode()}
    else:
        document["seed"] = base64.b64encode(identity.seed).decode()
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    # a rename on its own may be lost by a power cut: sync the folder as well
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
