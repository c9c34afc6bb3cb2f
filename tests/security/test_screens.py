"""What a peer wrote is shown as text: it neither commands the terminal of who reads it, nor hides what stands there."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nunet_cli.cli import output
from nunet_cli.cli.live import _bid_table
from nunet_cli.errors import NunetError
from nunet_cli.orchestrator import match
from nunet_cli.records.bids import BIDS, BidRequest, CapabilityComparison, Comparison, Decline
from tests.conftest import nunet, open_market

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b1;1H\u202eNTN 0 diap"


async def test_a_decline_with_escapes_in_it_is_shown_without(tmp_path: Path) -> None:
    async with open_market(tmp_path) as m:

        async def decline(message: Any) -> Any:
            request: BidRequest = message.body
            fields = (Comparison("resources", "worse", f"{EVIL}64MiB", f"{EVIL}2MiB", EVIL, EVIL),)
            comparison = CapabilityComparison(fields, "decline", (EVIL,))
            return "decline", Decline(request.id, request.job_id, m.provider.identity.node_id, comparison)

        m.provider.ctx.messenger.register("bid_request", BidRequest, decline)
        body = {"name": "test", "executor": {"type": "null"}, "price": "1"}
        job_id = await m.post(json.dumps(body))
        with pytest.raises(NunetError):
            await match.match(m.requester.ctx, job_id, timeout=5)
        (row,) = m.requester.ctx.store[BIDS].all()
        home = m.requester.ctx.home
    commands = [["bids", "show", row.id], ["bids", "list"], ["job", "explain", job_id], ["job", "show", job_id]]
    for command in (*commands, ["job", "events", job_id]):
        done = nunet(*command, home=home)
        assert not set("\x1b\x07\x9b\u202e") & set(done.stdout + done.stderr), command
    # of what programs read, YAML has all letters that are any
    assert not set("\x1b\x07\x9b") & set(nunet("bids", "show", row.id, "--output", "yaml", home=home).stdout)
    assert "64MiB" in nunet("bids", "show", row.id, home=home).stdout


def test_what_came_back_is_named_exactly_to_a_script_and_harmlessly_at_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output.say_path("out/\u202egnp.sh")
    assert capsys.readouterr().out == "out/\u202egnp.sh\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    output.say_path("out/\u202egnp.sh")
    assert capsys.readouterr().out == "out/\N{REPLACEMENT CHARACTER}gnp.sh\n"


def test_a_table_of_bids_takes_nothing_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Console(force_terminal=True, width=100).print(_bid_table([("[red]who\x1b[2J", "1 NTX", "", "", "[bold]bids")]))
    shown = capsys.readouterr().out
    assert "[red]who\N{REPLACEMENT CHARACTER}[2J" in shown
    assert "[bold]bids" in shown
