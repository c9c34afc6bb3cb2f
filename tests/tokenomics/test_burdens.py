"""What a stranger can make a node do: how much of its time, memory and disk a message costs."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import trio

from nunet_cli import quantities
from nunet_cli.allocation import run as allocation
from nunet_cli.errors import ContractError, NoSpaceError, NunetError, PeerError, StateError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.jobs import expressions
from nunet_cli.jobs.reader import read_spec
from nunet_cli.jobs.spec import encode_spec
from nunet_cli.network.answers import Answers
from nunet_cli.network.envelope import seal
from nunet_cli.network.identity import new_identity
from nunet_cli.node.node import Node
from nunet_cli.orchestrator import disputes, invoke, settle
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import DATABASE, PROVIDER, REQUESTER, Contract, JobVerificationResult, Proof
from nunet_cli.records.disputes import DisputeContract
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.messages import AskStatement, JobVerification
from nunet_cli.records.messaging import INBOX
from nunet_cli.records.results import OutputFile, Result
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
        document, proof = row.document, row.proof
        assert proof is not None
        mine = whole(spec(constraints={"hard": ["1 < 2 || price < 8.5"]}))
        text = whole(spec(constraints={"hard": ["1 < 2 || price < 7.5"]}))
        terms = msgspec.structs.replace(document.read(Contract).terms, spec_cid=content_id(text.encode()))
        other = make_document(msgspec.structs.replace(document.read(Contract), terms=terms))
        signed = other.sign(m.requester.identity, REQUESTER).sign(m.provider.identity, PROVIDER)
        now = quantities.utc_now()
        result = make_document(Result(row.job_id, signed.cid, "", "completed", 0, now, now))
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
        row = m.provider.ctx.store[CONTRACTS].one(row.id)
        monkeypatch.setattr(invoke, "_check_invocation", lambda *_: None)
        with pytest.raises(NunetError, match="not the one that was bid for"):
            await invoke.send_invocation(m.requester.ctx, msgspec.structs.replace(row, proof=proof), mine)
        assert on_the_loop == []


# -- memory and disk ---------------------------------------------------------------------------------------------------


async def test_a_dispute_takes_what_its_contract_is_worth(market: MarketOf) -> None:
    """A liar's evidence is bounded, and keeps neither the other party's out nor either of them from reading it."""
    async with market(price="0") as m:
        row = await through(m, await m.post(spec()), 3)
        database = m.authority.identity.did

        async def say(node: Node, text: str, *documents: Document) -> str:
            try:
                await disputes.send(node.ctx, database, row.id, text, documents)
            except NunetError as error:
                return error.code
            return "taken"

        documents = [Document(f"{number}" + "y" * 200_000) for number in range(40)]
        said = [await say(m.requester, f"look {index}", document) for index, document in enumerate(documents)]
        assert said == ["taken"] * 3 + ["too_much_evidence"] * 37
        words = [await say(m.requester, f"word {index}") for index in range(40)]
        assert words == ["taken"] * 29 + ["too_much_evidence"] * 11
        assert await say(m.provider, "x" * 4000, Document("z" * 300_000)) == "taken"
        for node in (m.requester, m.provider):
            known = await disputes.ask(node.ctx, row.id)
            texts = [document.content for item in known.evidence for document in item.documents]
            assert texts == [*(document.content for document in documents[:3]), "z" * 300_000]
        assert "too_much_evidence" in [await say(m.provider, f"{index}" + "x" * 3990) for index in range(9)]


async def test_a_message_that_changes_nothing_leaves_nothing(market: MarketOf) -> None:
    async with market(price="0") as m:
        row = await through(m, await m.post(spec()), 3)
        database, store = m.authority.identity.did, m.authority.ctx.store
        await disputes.send(m.requester.ctx, database, row.id, "look", (Document("y" * 500_000),))
        inbox = list(store[INBOX].all())
        answer = await m.requester.ctx.messenger.request(
            database, "dispute_contract", DisputeContract(row.id, "look", (Document("y" * 500_000),)), timeout=10
        )
        assert len(answer.raw) < 5000
        assert list(store[INBOX].all()) == inbox


async def test_a_large_answer_is_kept_in_memory_alone(market: MarketOf) -> None:
    async with market() as m:
        answers, store = Answers(m.authority.ctx.store), m.authority.ctx.store
        for size in (2**15, 2**20):
            envelope, _ = seal(m.requester.identity, m.authority.identity.did, "x", AskStatement(), lifetime=60)
            await store.change(lambda t, e=envelope, s=size: answers.keep(t, e, b"x" * s))  # type: ignore[misc]
            answers.remember(envelope, b"x" * size)
            assert answers.find(envelope) == b"x" * size
            assert store[INBOX].has(f"{envelope.from_}/{envelope.id}") == (size < 2**16)


async def test_senders_without_number_are_not_counted_for_ever(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nunet_cli.network.answers.MAX_REMEMBERED", 5)
    async with market() as m:
        answers, store = Answers(m.authority.ctx.store), m.authority.ctx.store
        for _ in range(20):
            envelope, _ = seal(new_identity(), m.authority.identity.did, "x", AskStatement(), lifetime=60)
            await store.change(lambda t, e=envelope: answers.keep(t, e, b""))  # type: ignore[misc]
        assert len(answers._kept) <= 5


# -- oracles that cannot say anything now ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        ContractError("other jobs run", code="oracle_busy"), StateError("no room"), NoSpaceError("the disk is full"),
        PeerError("nobody gives the inputs", code="peer_silent"),
    ],
)  # fmt: skip
async def test_what_passes_by_itself_is_no_verdict(market: MarketOf, trouble: NunetError) -> None:
    """An oracle that is busy for a moment says so: honest work is neither disputed nor judged by that for ever."""
    async with market() as m:
        oracle, row = m.authority.oracle, await through(m, await m.post(spec(verify={"policy": "reexecute"})), 4)
        with trio.fail_after(20):
            while (row := m.provider.ctx.store[CONTRACTS].one(row.id)).result is None:
                await trio.sleep(0.02)
        result = row.result.read(Result)
        answers = iter([trouble, ContractError("not here", code="not_allowed"), result])

        async def again(*_: Any) -> Result:
            answer = next(answers)
            if isinstance(answer, NunetError):
                raise answer
            return answer

        oracle._reexecute = again
        with pytest.raises(NunetError) as caught:
            await settle.verify_job(m.provider.ctx, row)
        assert caught.value.code == "oracle_busy"
        for expected in ("inconclusive", "verified", "verified"):
            verdict = await settle.verify_job(m.provider.ctx, row)
            assert verdict is not None
            assert verdict.read(JobVerificationResult).verdict == expected


async def test_a_result_that_nobody_could_read_is_not_signed(market: MarketOf, monkeypatch: pytest.MonkeyPatch) -> None:
    real = allocation.result_of

    async def unreadable(*arguments: Any) -> Result:
        result = await real(*arguments)
        return msgspec.structs.replace(result, outputs=(OutputFile("o\x7f", "bafyx", 1),))

    async with market() as m:
        monkeypatch.setattr(allocation, "result_of", unreadable)
        with suppress(NunetError):
            await orchestrate_job(m.requester.ctx, job_id := await m.post(spec()))
        assert m.job(job_id).state == "failed"
        row = m.provider.ctx.store[CONTRACTS].first("job_id", job_id)
        assert row is not None
        assert row.result is not None
        result = row.result.read(Result)
        assert (result.reason, result.fault) == ("provider_error", "provider")
