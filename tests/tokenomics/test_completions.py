"""What a provider tells the oracle of a job that it completed, and what that is good for."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.retention import Cutoffs, remove_old
from nunet_cli.errors import DisputedError, NunetError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.network.identity import new_identity
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import contract, execute, invoke, match, request, settle
from nunet_cli.records.contract_records import COMPLETIONS, CONTRACTS, Completion, ContractRecord
from nunet_cli.records.contracts import DATABASE, PROVIDER, REQUESTER, Contract, JobVerificationResult, Proof
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.messages import JobCompleted
from nunet_cli.records.results import Result
from nunet_cli.tokenomics import completions
from nunet_cli.tokenomics.evidence import export_bundle, read_bundle, verify_bundle
from tests.conftest import Market, config, post
from tests.together import ask

MarketOf = Callable[..., Any]
STAGES = (match.match, request.request, contract.close_contract, invoke.invoke)


def spec(**fields: Any) -> str:
    body = {
        "name": "test", "executor": {"type": "null"}, "price": "1",
        "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}, **fields,
    }  # fmt: skip
    return json.dumps(body)


async def completed(m: Market, **fields: Any) -> ContractRecord:
    """Take a job to the end of its execution; return the provider's record of its contract."""
    job_id = await m.post(spec(**fields))
    for stage in STAGES:
        await stage(m.requester.ctx, job_id)
    await execute.follow(m.requester.ctx, job_id)
    (record,) = m.provider.ctx.store[CONTRACTS].by("job_id", job_id)
    return record


async def told(m: Market, contract_id: str) -> Completion:
    """Wait until the oracle has heard of a completion; return what it keeps."""
    with trio.fail_after(20):
        while (row := m.authority.ctx.store[COMPLETIONS].get(contract_id)) is None:
            await trio.sleep(0.01)
    return row


def another(record: ContractRecord, signer: Node, **fields: Any) -> Document:
    """Return another result of a contract, signed by a provider."""
    assert record.result is not None
    changed = structs.replace(record.result.read(Result), **fields)
    return make_document(changed).sign(signer.identity, PROVIDER)


async def test_the_oracle_is_told_what_was_completed_and_sees_what_nobody_brings_to_it(market: MarketOf) -> None:
    async with market() as m:
        left = await completed(m)
        row = await told(m, left.id)
        assert left.result is not None
        assert (row.job_id, row.provider, row.requester, row.result, row.verdict) == (
            left.job_id, m.provider.identity.did, m.requester.identity.did, left.result, "",
        )  # fmt: skip
        assert (await orchestrate_job(m.requester.ctx, await m.post(spec()))).state == "settled"
        (brought,) = [each for each in m.requester.ctx.store[CONTRACTS].all() if each.id != left.id]
        await told(m, brought.id)
        found = m.authority.ctx.store[COMPLETIONS]
        assert found.one(brought.id).verdict == "verified"
        assert [each.id for each in found.page(100, verdict="").rows] == [left.id]
        await settle.settle(m.requester.ctx, left.job_id)
        assert found.one(left.id).verdict == "verified"


async def test_a_job_that_failed_is_none_that_was_completed(market: MarketOf) -> None:
    async with market() as m:
        record = await completed(m, executor={"type": "null", "env": {"NULL_EXIT": "3"}})
        assert record.result is not None
        assert record.result.read(Result).state == "failed"
        # what comes after it on the same way is there
        await told(m, (await completed(m)).id)
        assert not m.authority.ctx.store[COMPLETIONS].has(record.id)


async def test_another_result_than_the_provider_completed_with_is_found_and_anybody_can_check_it(
    market: MarketOf,
) -> None:
    async with market() as m:
        record = await completed(m)
        await told(m, record.id)
        other = another(record, m.provider, stdout_size=7)

        def show(t: Any) -> None:
            mine = t[CONTRACTS].one(record.id)
            t[CONTRACTS].put(structs.replace(mine, result=other))

        await m.requester.ctx.store.change(show)
        with pytest.raises(DisputedError, match="result_as_completed"):
            await settle.settle(m.requester.ctx, record.job_id)
        assert m.balances()[f"escrow:{record.id}"] == quantities.parse_amount("0.25")
        mine = m.requester.ctx.store[CONTRACTS].one(record.id)
        assert mine.verdict is not None
        said = mine.verdict.read(JobVerificationResult)
        assert (said.verdict, said.completed) == ("rejected", record.result)
        row = m.authority.ctx.store[COMPLETIONS].one(record.id)
        assert (row.verdict, row.shown) == ("", other.cid)
        bundle = read_bundle(export_bundle(mine, None), "test")
        assert [each for each in verify_bundle(bundle) if not each.passed] == []
        # an oracle that rejects without the other result is found
        forged = make_document(structs.replace(said, completed=other)).sign(m.authority.identity, "oracle")
        failed = [each.name for each in verify_bundle(structs.replace(bundle, verdict=forged)) if not each.passed]
        assert failed == ["verdict.completed", "verdict.agrees"]


async def test_a_completion_that_comes_after_the_verdict_is_held_against_it_too(market: MarketOf) -> None:
    async with market() as m:
        record = await completed(m)
        await told(m, record.id)
        await m.authority.ctx.store.change(lambda t: t[COMPLETIONS].remove(record.id))
        await settle.settle(m.requester.ctx, record.job_id)
        assert record.result is not None
        other = another(record, m.provider, stdout_size=7)
        body = JobCompleted(record.id, other, record.document, record.proof)
        await ask_quietly(m.provider, m, body)
        row = await told(m, record.id)
        assert (row.result, row.verdict, row.shown) == (other, "", record.result.cid)
        (event,) = [event for _, event in m.authority.ctx.store.log(record.job_id) if event.type == "result_differs"]
        assert event.data["shown"] == record.result.cid


async def ask_quietly(node: Node, m: Market, body: JobCompleted) -> None:
    """Put a completion into a node's outbox, as the end of an allocation does."""
    await post(node, m.authority.identity.did, "job_completed", body, lifetime=60)


async def test_what_an_oracle_does_not_take_of_a_completion(market: MarketOf, monkeypatch: pytest.MonkeyPatch) -> None:
    async with market() as m:
        record = await completed(m)
        await told(m, record.id)
        assert record.result is not None
        whole = JobCompleted(record.id, record.result, record.document, record.proof)
        text = record.document.read(Contract)

        def altered(**fields: Any) -> Document:
            signed = make_document(structs.replace(text, **fields)).sign(m.requester.identity, REQUESTER)
            return signed.sign(m.provider.identity, PROVIDER)

        elsewhere = altered(oracle=m.provider.identity.did)
        unsigned = make_document(structs.replace(text, bid_id="bid-two")).sign(m.provider.identity, PROVIDER)
        unproved = altered(bid_id="bid-three")
        cases: list[tuple[Node, JobCompleted, str]] = [
            (m.requester, whole, "not_a_party"),
            (m.provider, structs.replace(whole, contract=elsewhere, contract_id=elsewhere.cid), "wrong_oracle"),
            (m.provider, structs.replace(whole, contract=unsigned, contract_id=unsigned.cid), "bad_signature"),
            (m.provider, structs.replace(whole, contract=unproved, contract_id=unproved.cid), "wrong_proof"),
            (m.provider, structs.replace(whole, contract_id="another"), "not_a_party"),
            (m.provider, structs.replace(whole, proof=None), "bad_document"),
            (m.provider, structs.replace(whole, result=make_document(record.result.read(Result))), "bad_signature"),
            (m.provider, structs.replace(whole, result=another(record, m.provider, state="failed")), "wrong_result"),
            (m.provider, structs.replace(whole, result=another(record, m.provider, job_id="job-x")), "wrong_result"),
            (m.provider, structs.replace(whole, result=another(record, m.provider, stdout_size=7)), "second_result"),
        ]
        before = list(m.authority.ctx.store[COMPLETIONS].all())
        for node, body, code in cases:
            with pytest.raises(NunetError) as caught:
                await ask(node, m, "job_completed", body)
            assert caught.value.code == code, (body, caught.value)
        monkeypatch.setattr(completions, "MOST_BYTES", 100)
        with pytest.raises(NunetError) as caught:
            await ask(m.provider, m, "job_completed", whole)
        assert caught.value.code == "too_large"
        assert list(m.authority.ctx.store[COMPLETIONS].all()) == before
        # who is no oracle takes none
        with pytest.raises(NunetError) as caught:
            await m.provider.ctx.messenger.request(m.requester.identity.did, "job_completed", whole, timeout=20)
        assert caught.value.code == "wrong_oracle"


async def test_what_an_oracle_keeps_of_one_provider_is_bounded(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market() as m:
        first = await completed(m)
        row = await told(m, first.id)
        monkeypatch.setattr(completions, "MOST_OF_ONE", 3)
        old = structs.replace(row, until=quantities.format_time(quantities.now() - timedelta(days=1)))
        store = m.authority.ctx.store

        def fill(t: Any) -> None:
            t[COMPLETIONS].put(structs.replace(old, id="old"))
            t[COMPLETIONS].put(structs.replace(row, id="open"))
            t[COMPLETIONS].put(structs.replace(row, id="verified", verdict="verified"))

        await store.change(fill)
        # what is past its age goes first, then what was verified, and then the oldest
        second = await completed(m)
        await told(m, second.id)
        assert {each.id for each in store[COMPLETIONS].all()} == {first.id, "open", second.id}
        third = await completed(m)
        await told(m, third.id)
        assert {each.id for each in store[COMPLETIONS].all()} == {"open", second.id, third.id}
        await store.change(lambda t: t[COMPLETIONS].put(structs.replace(old, id="old")))
        await remove_old(store, Cutoffs("", "", ""))
        assert {each.id for each in store[COMPLETIONS].all()} == {"open", second.id, third.id}


async def test_contracts_that_nobody_knows_of_keep_no_completion_out(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(completions, "MOST", 6)
    async with market() as m, open_node(tmp_path / "stranger", config()) as stranger:
        await stranger.add_peer(m.authority.ctx.transport.describe())
        honest = await completed(m)
        await told(m, honest.id)
        store = m.authority.ctx.store[COMPLETIONS]
        for number in range(8):
            body = made_up(honest, stranger, number)
            await ask_quietly(stranger, m, body)
            await told(m, body.contract_id)
        assert (store.count(), store.has(honest.id)) == (6, True)
        # it is not for the deadline of its choice that they are kept
        soon = quantities.format_time(quantities.now() + timedelta(days=3))
        assert {row.provider for row in store.all() if row.until < soon} == {stranger.identity.did}
        another_one = await completed(m)
        await told(m, another_one.id)
        assert store.count("provider", stranger.identity.did) == 4

        def of_others(t: Any) -> None:
            t[COMPLETIONS].remove_by("provider", stranger.identity.did)
            row = t[COMPLETIONS].one(honest.id)
            for number in range(4):
                t[COMPLETIONS].put(structs.replace(row, id=f"of-{number}", provider="did:key:zmany"))

        await m.authority.ctx.store.change(of_others)
        # where there are such contracts alone, the one gives way that has most
        with pytest.raises(NunetError) as caught:
            await ask(stranger, m, "job_completed", made_up(honest, stranger, 9))
        assert caught.value.code == "too_many"
        third = await completed(m)
        await told(m, third.id)
        assert store.count("provider", "did:key:zmany") == 3
        assert {honest.id, another_one.id, third.id} <= {row.id for row in store.all()}


def made_up(like: ContractRecord, provider: Node, number: int) -> JobCompleted:
    """Return a completion of a contract between keys of one's own, in which one's own key says that it is registered."""
    requester, database = new_identity(), new_identity()
    assert like.proof is not None
    assert like.result is not None
    text, job = like.document.read(Contract), f"job-{number}"
    far = quantities.format_time(quantities.now() + timedelta(days=365))
    contract = make_document(
        structs.replace(
            text, job_id=job, bid_id=f"bid-{number}", requester=requester.did, provider=provider.identity.did,
            contract_database=database.did, terms=structs.replace(text.terms, deadline=far),
        )
    ).sign(provider.identity, PROVIDER).sign(requester, REQUESTER)  # fmt: skip
    proof = structs.replace(like.proof.read(Proof), contract_id=contract.cid, contract_database=database.did)
    result = structs.replace(like.result.read(Result), job_id=job, contract_id=contract.cid)
    signed = make_document(result).sign(provider.identity, PROVIDER)
    return JobCompleted(contract.cid, signed, contract, make_document(proof).sign(database, DATABASE))
