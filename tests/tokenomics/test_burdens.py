"""What a stranger can make a node do: how much of its time, memory and disk a message costs."""

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from nunet_cli import units
from nunet_cli.jobs import expressions
from nunet_cli.jobs.job import Result
from nunet_cli.jobs.reader import read_spec
from nunet_cli.jobs.spec import encode_spec
from nunet_cli.network.documents import Document, make_document
from nunet_cli.network.identity import content_id
from nunet_cli.orchestrator import invoke
from nunet_cli.tokenomics.contract import (
    DATABASE,
    PROVIDER,
    REQUESTER,
    Contract,
    JobVerification,
    JobVerificationResult,
    Proof,
)
from tests.tokenomics.test_liars import spec, through

MarketOf = Callable[..., Any]


def whole(text: str) -> str:
    """A specification as it is sent."""
    return encode_spec(read_spec(text)).decode()


async def test_a_strangers_specification_is_checked_off_the_event_loop(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checking one takes up to a second: meanwhile an oracle answers others, and a provider sends signs of life."""
    on_the_loop, loop = list[str](), threading.current_thread()
    real = expressions.check

    def check(text: str, *, kind: str = "bool") -> int:
        if threading.current_thread() is loop:
            on_the_loop.append(text)
        return real(text, kind=kind)

    async with market() as m:
        row = await through(m, await m.post(spec()), 3)
        document, proof = (msgspec.convert(row[key], Document) for key in ("document", "proof"))
        mine = whole(spec(constraints={"hard": ["1 < 2 || price < 8.5"]}))
        text = whole(spec(constraints={"hard": ["1 < 2 || price < 7.5"]}))
        terms = msgspec.structs.replace(document.read(Contract).terms, spec_cid=content_id(text.encode()))
        other = make_document(msgspec.structs.replace(document.read(Contract), terms=terms))
        signed = other.sign(m.requester.identity, REQUESTER).sign(m.provider.identity, PROVIDER)
        now = units.utc_now()
        result = make_document(Result(row["job_id"], signed.cid, "", "completed", 0, now, now))
        proof = make_document(msgspec.structs.replace(proof.read(Proof), contract_id=signed.cid))
        monkeypatch.setattr(expressions, "check", check)
        answer = await m.provider.ctx.messenger.request(
            m.authority.identity.did, "job_verification",
            JobVerification(
                text, signed, proof.sign(m.authority.identity, DATABASE), result.sign(m.provider.identity, PROVIDER)
            ), timeout=10,
        )  # fmt: skip
        assert answer.body.verdict.read(JobVerificationResult).verdict == "verified"
        # the provider's side: the bid names the content id of a specification that it has not seen
        row = m.provider.ctx.store.find("contracts", row["id"])
        assert row is not None
        monkeypatch.setattr(invoke, "_check_invocation", lambda *_: None)
        await invoke.send_invocation(m.requester.ctx, {**row, "proof": msgspec.to_builtins(proof)}, mine)
        assert on_the_loop == []
