"""What who follows a job is told of its events."""

from typing import Any

import pytest

from nunet_cli.cli.progress import describe

PEER = "12D3KooWMot5"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"bid_id": "b", "bidder": PEER, "locked_until": "2026-11-26T10:11:12.000Z"}, "locked the resources until 10:11:12"),
        # an item of a batch is under the bid that was made for all of them
        ({"bid_id": "b", "bidder": PEER}, "under the bid for all items"),
    ],
)  # fmt: skip
def test_a_request_is_told_with_and_without_a_lock_of_its_own(data: dict[str, Any], said: str) -> None:
    stage, text = describe({"type": "job_requested", "data": data})
    assert stage == "request"
    assert said in text


def test_who_is_only_busy_is_told_from_who_declines_for_good() -> None:
    data = {"bidder": PEER, "reasons": ["cpu.cores: 0.5 short"]}
    _, text = describe({"type": "bid_declined", "data": data})
    assert text.endswith(" declines: cpu.cores: 0.5 short")
    _, text = describe({"type": "bid_declined", "data": {**data, "free_at": "2026-11-26T10:11:12.000Z"}})
    assert text.endswith(" is busy, just now: cpu.cores: 0.5 short")


def test_who_follows_hears_of_a_provider_that_is_silent() -> None:
    data = {"peer": PEER, "since": "2026-11-26T10:01:11.000Z", "until": "2026-11-26T10:11:12.000Z"}
    said = describe({"type": "provider_silent", "data": data})
    text = "its provider …KooWMot5 is silent since 10:01 UTC; its result is waited for until 10:11 UTC"
    assert said == ("execute", text)
    assert describe({"type": "provider_heard", "data": data}) == ("execute", "its provider …KooWMot5 is heard again")
