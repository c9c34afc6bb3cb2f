import json
import os
from pathlib import Path

import nacl.signing
import pytest

from nunet_cli.errors import IdentityError
from nunet_cli.network import identity
from nunet_cli.network.waiting import short
from nunet_cli.records import identifiers


@pytest.mark.parametrize(
    ("seed", "did"),
    [
        # the did:key method's test vectors (ed25519-x25519.json)
        ("00" * 32, "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp"),
        ("00" * 31 + "01", "did:key:z6MkjchhfUsD6mmvni8mCdXHw216Xrm9bQe2mBH1P5RDjVJG"),
    ],
)
def test_did_key_vectors(seed: str, did: str) -> None:
    key = bytes(nacl.signing.SigningKey(bytes.fromhex(seed)).verify_key)
    assert identifiers.did_from_key(key) == did
    assert identifiers.key_from_did(did) == key


def test_libp2p_peer_id_vector() -> None:
    # published forms of one key: its protobuf, the peer id in base58btc, and the same as CIDv1
    protobuf = bytes.fromhex("080112202ffa35a99d3a3cfbb17bb7c1dc5561b18a8dcca4df38dc613ea859c37eb1336b")
    key = protobuf[4:]
    peer_id, cid = (
        "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA",
        "bafzaajaiaejcal72gwuz2or47oyxxn6b3rkwdmmkrxgkjxzy3rqt5kczyn7lcm3l",
    )
    assert identifiers.peer_id_from_key(key) == peer_id
    assert identifiers.peer_cid_from_key(key) == cid
    assert identifiers.key_from_peer_id(peer_id) == identifiers.key_from_peer_id(cid) == key


def test_content_id_vector() -> None:
    # `ipfs add --cid-version 1 --raw-leaves` of "hello world"
    assert identifiers.content_id(b"hello world") == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
    assert identifiers.is_content_id(identifiers.content_id(b""))
    for wrong in (
        "../../etc/passwd",
        "",
        "b",
        "bafkrei",
        "bafzaajaiaejcal72gwuz2or47oyxxn6b3rkwdmmkrxgkjxzy3rqt5kczyn7lcm3l",
    ):
        assert not identifiers.is_content_id(wrong)


@pytest.mark.parametrize(
    "text", ["", "did:key:z", "did:key:z6Mk", "did:web:example.org", "12D3KooW", "QmX", "b0", "z" * 500]
)
def test_malformed_identifiers_are_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        identifiers.key_from_any(text)


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    first = identity.load_or_create(tmp_path)
    assert identity.load_or_create(tmp_path) == first
    assert (tmp_path / identity.KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_sealed_key_needs_its_passphrase(tmp_path: Path) -> None:
    sealed = identity.load_or_create(tmp_path, "correct horse")
    assert "seed" not in json.loads((tmp_path / identity.KEY_FILE).read_text())
    assert identity.load_or_create(tmp_path, "correct horse") == sealed
    with pytest.raises(IdentityError, match="wrong passphrase"):
        identity.load_or_create(tmp_path, "battery staple")
    with pytest.raises(IdentityError, match="is sealed"):
        identity.load_or_create(tmp_path)


@pytest.mark.parametrize("damage", ["", "{", "{}", '{"uuid": 3}', '{"uuid": "x", "seed": "AA==", "did": "y"}'])
def test_a_damaged_key_file_is_named_and_left_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / identity.KEY_FILE
    path.write_text(damage)
    path.chmod(0o600)
    with pytest.raises(IdentityError) as caught:
        identity.load_or_create(tmp_path)
    assert str(path) in caught.value.message
    assert path.read_text() == damage


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    identity.load_or_create(tmp_path)
    os.chmod(tmp_path / identity.KEY_FILE, 0o644)  # noqa: PTH101
    with pytest.raises(IdentityError, match="read by others"):
        identity.load_or_create(tmp_path)


def test_a_peer_is_called_in_messages_as_it_is_in_lists() -> None:
    key = nacl.signing.SigningKey(bytes(32)).verify_key.encode()
    assert short(identifiers.did_from_key(key)) == f"…{identifiers.peer_id_from_key(key)[-8:]}"
    # what is none is shown all the same
    assert short("did:key:no-such-key") == "…such-key"
