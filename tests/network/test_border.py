"""What a peer may write where an id, a name, a number or an amount is expected: refused at the border otherwise."""

import json
from typing import Any

import msgspec
import pytest

from nunet_cli.errors import IdentityError
from nunet_cli.network.envelope import Envelope, ErrorMessage, error_message, seal
from nunet_cli.network.identity import new_identity
from nunet_cli.network.topics import Hello
from nunet_cli.records.bids import CapabilityComparison, Decline, NodeID
from nunet_cli.records.capability import Capability, Locality, PriceBid
from nunet_cli.records.identifiers import key_from_did
from nunet_cli.records.messages import JobCancel, JobLogs, JobSync
from nunet_cli.records.reading import convert, decode_exactly
from nunet_cli.records.results import Result, Usage

DID = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"
NOW = "2026-01-31T12:00:00.000Z"
LONG = {"a": "x" * 20_000}
DEEP: dict[str, Any] = {}
for _ in range(20):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    "text", ["", "a b", "a\n", "../x", "/etc/passwd", "a\x1b[2J", "‮a", "a" * 121, "-rf", ".hidden", "ü", "a\x00"]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        convert({"contract_id": text}, JobSync)
    if text:
        with pytest.raises(msgspec.ValidationError):
            convert({"bid_id": text}, JobCancel)


@pytest.mark.parametrize(
    "text", [f"{DID}\n", f" {DID}", "did:key:z", "did:key:z0OIl00000", DID.replace("did:key", "did:web")]
)
def test_a_key_has_one_name(text: str) -> None:
    """A second text for the same key would pass a list of denied peers, and open a second account."""
    with pytest.raises(msgspec.ValidationError):
        convert({"uuid": "", "cid": "", "peer_id": "", "did": text}, NodeID)
    with pytest.raises(IdentityError):
        key_from_did(text)


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\nb", "a\n", "a\x00", "‮a", "a\u2028b", "\x9b2J"])
def test_what_people_are_shown_commands_no_terminal(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        convert({"kind": "country", "name": text}, Locality)
    hello = {"version": [1, 0], "agent": "x", "roles": [], "topics": [], "port": 0}
    convert(hello, Hello)
    for fields in ({"agent": text}, {"topics": [text]}, {"roles": [text]}):
        with pytest.raises(msgspec.ValidationError):
            convert({**hello, **fields}, Hello)


def test_names_in_every_language_are_names() -> None:
    for text in ("Göteborg", "東京", "مدينة", "A100 80GB PCIe (rev. a1)", "naïve—ok"):
        convert({"kind": "city", "name": text}, Locality)


@pytest.mark.parametrize("amount", ["٣", "1\n", "-1", "1e3", "1_0", "", ".5", "1.", "NaN", "1.0000001", "1" * 13])
def test_what_is_no_amount_is_refused(amount: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        convert({"amount": amount}, PriceBid)


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "1e300", "-1", "true", '"1"', "null", "[]"]
)
def test_numbers_are_finite_and_bounded(number: str) -> None:
    for kind, field in ((Usage, "wall_seconds"), (Usage, "max_memory"), (JobLogs, "offset"), (JobLogs, "wait")):
        body = (
            f'{{"contract_id":"c","stream":"stdout","{field}":{number}}}'
            if kind is JobLogs
            else f'{{"{field}":{number}}}'
        )
        body = body if field == "offset" or kind is Usage else body[:-1] + ',"offset":0}'
        with pytest.raises(msgspec.MsgspecError):
            decode_exactly(body, kind)
    with pytest.raises(msgspec.MsgspecError):
        decode_exactly(f'{{"time":{{"max":{number}}}}}', Capability)


def test_an_exit_code_is_one() -> None:
    result = {
        "job_id": "j",
        "contract_id": "c",
        "allocation_id": "",
        "state": "failed",
        "started_at": NOW,
        "ended_at": NOW,
    }
    for code in (0, -9, 255, None):
        convert({**result, "exit_code": code}, Result)
    for code in (2**80, -(2**40), 1.5, True, "0"):
        with pytest.raises(msgspec.ValidationError):
            convert({**result, "exit_code": code}, Result)


@pytest.mark.parametrize("details", [LONG, DEEP])
def test_the_details_of_a_refusal_are_bounded(details: dict[str, Any]) -> None:
    text = json.dumps({"code": "no", "message": "no", "details": details})
    with pytest.raises(msgspec.ValidationError):
        decode_exactly(text, ErrorMessage)
    # this node's own refusal is told without them
    from nunet_cli.errors import NunetError

    assert error_message(NunetError("no", code="no", details=details)) == ErrorMessage("no", "no")
    assert error_message(NunetError("no", code="no", details={"a": [1]})).details == {"a": [1]}


def test_half_a_character_is_none() -> None:
    for text in (b'{"contract_id":"\\ud800"}', b'{"contract_id":"\xff"}', b'{"contract_id":"\\udc80\\ud800"}'):
        with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
            decode_exactly(text, JobSync)


def test_what_this_node_sends_passes_the_border() -> None:
    identity = new_identity()
    envelope, raw = seal(identity, identity.did, "job_sync", JobSync("contract-1"), lifetime=5, reply_to="a" * 32)
    assert decode_exactly(raw[64:], Envelope) == envelope
    decline = Decline("request-1", "job-1", identity.node_id, CapabilityComparison())
    assert decode_exactly(msgspec.json.encode(decline), Decline) == decline
