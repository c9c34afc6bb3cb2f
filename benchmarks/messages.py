"""Envelopes: checking one in full (form, recipient, times, signature) over its Ed25519 verification alone."""

from __future__ import annotations

from collections.abc import Iterator

import nacl.signing

from benchmarks.lines import Line, Options
from benchmarks.timing import best_in_turns
from nunet_cli.network.envelope import PREFIX, SIGNATURE_SIZE, ErrorMessage, seal, unseal
from nunet_cli.network.identity import new_identity

COUNT, TIMES = 250, 9
SIZES = {"a short message": 100, "a message of 3 KB": 3000}


def measure(options: Options) -> Iterator[Line]:
    """Measure short envelopes, and some of a bid's size."""
    sender, receiver = new_identity(), new_identity()
    key = nacl.signing.VerifyKey(sender.public_key)
    for name, size in SIZES.items():
        _, raw = seal(sender, receiver.did, "error_message", ErrorMessage("code", "x" * size), lifetime=3600)
        signature, text = raw[:SIGNATURE_SIZE], PREFIX + raw[SIGNATURE_SIZE:]

        def ours(raw: bytes = raw) -> None:
            for _ in range(COUNT):
                unseal(raw, me=receiver.did)

        def floor(signature: bytes = signature, text: bytes = text) -> None:
            for _ in range(COUNT):
                key.verify(text, signature)

        took = best_in_turns({"ours": ours, "floor": floor}, TIMES)
        rate, raw_rate = COUNT / took["ours"], COUNT / took["floor"]
        yield Line(
            "messages", name, raw_rate / rate, "an Ed25519 verification", "",
            f"{rate:,.0f} envelopes checked a second; {raw_rate:,.0f} verifications",
            {"envelopes_per_s": rate, "verifications_per_s": raw_rate},
        )  # fmt: skip
