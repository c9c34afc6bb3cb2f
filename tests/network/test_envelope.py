from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nunet_cli import quantities
from nunet_cli.errors import RejectedMessageError
from nunet_cli.network.envelope import SIGNATURE_SIZE, ErrorMessage, body_of, seal, unseal
from nunet_cli.network.identity import new_identity
from nunet_cli.network.topics import Hello
from nunet_cli.records.messages import JobSync

SENDER, RECEIVER, OTHER = new_identity(), new_identity(), new_identity()
BODY = ErrorMessage("code", "text")


def sealed(**options: object) -> bytes:
    return seal(SENDER, RECEIVER.did, "error_message", BODY, **{"lifetime": 60, **options})[1]  # type: ignore[arg-type]


def reason(raw: bytes, **options: object) -> str:
    with pytest.raises(RejectedMessageError) as caught:
        unseal(raw, **{"me": RECEIVER.did, **options})  # type: ignore[arg-type]
    return caught.value.code


def test_a_good_message_comes_through() -> None:
    envelope = unseal(sealed(), me=RECEIVER.did)
    assert envelope.from_ == SENDER.did
    assert body_of(envelope, ErrorMessage) == BODY


def test_refusals_have_their_reason() -> None:
    now = quantities.now()
    assert reason(sealed(), me=OTHER.did) == "wrong_recipient"
    assert reason(sealed(), now=now + timedelta(seconds=61)) == "expired"
    assert reason(sealed(now=now + timedelta(seconds=90), lifetime=120)) == "clock_differs"
    assert reason(sealed(lifetime=40 * 86400)) == "lifetime"
    assert reason(b"") == reason(b"x" * 64) == reason(sealed()[:-1]) == "malformed"


def test_an_introduction_is_taken_whatever_the_clocks_say() -> None:
    now = quantities.now()
    for days in (-1, 1):
        raw = seal(SENDER, RECEIVER.did, "hello", Hello(), lifetime=60, now=now + timedelta(days=days))[1]
        assert unseal(raw, me=RECEIVER.did, now=now).type == "hello"


def test_a_topic_is_a_recipient_for_its_subscribers_only() -> None:
    raw = seal(SENDER, "/nunet/bids", "error_message", BODY, lifetime=60)[1]
    assert unseal(raw, me=RECEIVER.did, topics=frozenset({"/nunet/bids"})).to == "/nunet/bids"
    assert reason(raw) == "wrong_recipient"


def test_somebody_elses_signature_is_refused() -> None:
    raw = sealed()
    forged = OTHER.sign(b"nunet-envelope-v1\n" + raw[SIGNATURE_SIZE:]) + raw[SIGNATURE_SIZE:]
    assert reason(forged) == "bad_signature"


@given(st.data())
def test_no_changed_byte_is_accepted(data: st.DataObject) -> None:
    raw = bytearray(sealed())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RejectedMessageError):
        unseal(bytes(raw), me=RECEIVER.did)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(RejectedMessageError):
        unseal(raw, me=RECEIVER.did)


def test_a_body_of_another_type_is_refused() -> None:
    with pytest.raises(RejectedMessageError) as caught:
        body_of(unseal(sealed(), me=RECEIVER.did), JobSync)
    assert caught.value.code == "bad_body"
