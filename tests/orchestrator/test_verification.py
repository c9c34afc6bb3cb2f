"""What the oracle decides beyond a signature: replicas, re-execution, and disputes to their end."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.allocation import reexecute as again
from nunet_cli.allocation import run as allocation
from nunet_cli.config import Config, ExecutorConfig, ProcessConfig, RetentionConfig
from nunet_cli.errors import ContractError, DisputedError, JobFailedError, NunetError
from nunet_cli.groups.group import outputs_of
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.node.care import Care
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import disputes, orchestrate, settle
from nunet_cli.orchestrator.orchestrate import next_stage
from nunet_cli.orchestrator.settle import verify_job
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.offers import OnboardOptions
from nunet_cli.records.results import Result
from tests.conftest import Market, config, open_market

MarketOf = Callable[..., Any]
OPENING = quantities.parse_amount("100")
NOW = "2026-11-26T00:00:00.000Z"


def spec(command: str, **fields: Any) -> str:
    body = {
        "name": "sum", "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "2",
        "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}, "outputs": [{"path": "out"}],
    }  # fmt: skip
    return json.dumps({**body, **fields})


@contextlib.asynccontextmanager
async def market_of(folder: Path, count: int) -> AsyncIterator[tuple[Market, list[Node]]]:
    """A market with several providers."""
    async with open_market(folder, price="1") as m, contextlib.AsyncExitStack() as stack:
        providers = [m.provider]
        for number in range(1, count):
            node = await stack.enter_async_context(open_node(folder / f"provider-{number}", config()))
            await node.onboard(OnboardOptions(price="1"), None)
            for other in (m.authority, m.requester):
                await node.add_peer(other.ctx.transport.describe())
            providers.append(node)
        with trio.fail_after(20):
            while len(m.requester.ctx.topics.subscribers("/nunet/bids")) < count:
                await trio.sleep(0.02)
        yield m, providers


def lie(node: Node) -> None:
    """Let a provider's machine compute something wrong, as one that cheats would."""
    executor = node.ctx.executors["process"]
    wait = executor.wait

    async def cheat(task: Any, handle: str) -> Any:
        ended = await wait(task, handle)
        (task.work / "out").write_text("42\n")
        return ended

    executor.wait = cheat  # type: ignore[method-assign]


PATIENT = orchestrate.MOMENTARY


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an oracle cannot do just now is asked for again, until a contract's deadline: no test waits for that."""
    monkeypatch.setattr(orchestrate, "MOMENTARY", frozenset())


async def test_replicas_agree_and_each_provider_is_paid(tmp_path: Path) -> None:
    async with market_of(tmp_path, 3) as (m, providers):
        job = await orchestrate_job(m.requester.ctx, await m.post(spec("echo 5 > out", verify={"policy": "replicate"})))
        assert (job.state, job.paid) == ("settled", "3")
        assert {m.balance(node) for node in providers} == {OPENING + quantities.MICRO}
        contracts = m.requester.ctx.store[CONTRACTS].all()
        assert {row.provider for row in contracts} == {node.identity.did for node in providers}
        output = outputs_of(m.requester.ctx, job)["out"]
        assert m.requester.ctx.blobs.path(output.cid).read_text() == "5\n"


async def test_the_odd_one_out_is_not_paid_and_the_quorums_output_is_the_result(tmp_path: Path) -> None:
    async with market_of(tmp_path, 3) as (m, providers):
        lie(providers[0])
        job = await orchestrate_job(m.requester.ctx, await m.post(spec("echo 5 > out", verify={"policy": "replicate"})))
        assert (job.state, job.paid) == ("settled", "2")
        assert m.balance(providers[0]) == OPENING
        assert m.balance(providers[1]) == m.balance(providers[2]) == OPENING + quantities.MICRO
        assert m.balance(m.requester) == OPENING - 2 * quantities.MICRO
        output = outputs_of(m.requester.ctx, job)["out"]
        assert m.requester.ctx.blobs.path(output.cid).read_text() == "5\n"
        (odd,) = [row for row in m.requester.ctx.store[CONTRACTS].all() if row.state == "refunded"]
        assert odd.provider == providers[0].identity.did
        dispute = await disputes.ask(m.requester.ctx, odd.id)
        assert (dispute.decision, dispute.by) == ("refund", "quorum")


async def test_without_a_quorum_all_are_disputed_and_escrow_is_held(tmp_path: Path) -> None:
    async with market_of(tmp_path, 2) as (m, providers):
        lie(providers[1])
        with pytest.raises(DisputedError, match="0 of 2 providers agree on the result, 2 are needed"):
            text = spec("echo 5 > out", verify={"policy": "replicate", "n": 2})
            await orchestrate_job(m.requester.ctx, job_id := await m.post(text))
        assert m.job(job_id).state == "disputed"
        held = [balance for name, balance in m.balances().items() if name.startswith("escrow:") and balance]
        assert held == [quantities.MICRO] * 2
        group = m.job(job_id)
        first, second = (m.job(child).contract_id for child in group.children.values())
        assert m.authority.contract_database is not None
        await m.authority.contract_database.resolve(first, "pay")
        await is_resolved(m, group.children.values(), first)
        # the other one is still to be decided
        assert m.job(job_id).state == "disputed"
        await m.authority.contract_database.resolve(second, "split", "0.5")
        await is_resolved(m, group.children.values(), second)
        assert (m.job(job_id).state, m.job(job_id).paid) == ("resolved", "1.5")
        assert m.event_types(job_id)[-1] == "job_resolved"
        care = Care(m.requester.ctx.store, m.requester.ctx.blobs, RetentionConfig(jobs=0))
        with trio.fail_after(5):
            while (await care.collect()).rows.jobs == 0:
                await trio.sleep(0.01)
        assert m.requester.ctx.store[JOBS].count() == 0


async def is_resolved(m: Market, job_ids: Iterable[str], contract_id: str) -> None:
    """Wait until the job that has a contract has ended with its dispute."""
    (job_id,) = [job_id for job_id in job_ids if m.job(job_id).contract_id == contract_id]
    with trio.fail_after(20):
        while m.job(job_id).state != "resolved":
            await trio.sleep(0.02)


async def test_replicas_whose_disputes_were_decided_under_an_earlier_version_have_ended(tmp_path: Path) -> None:
    async with open_node(tmp_path, config()) as node:
        done = Job("a", "a", node.identity.did, "{}", "c", NOW, NOW, state="resolved", parent="group", paid="1")
        open_one = structs.replace(done, id="b", state="disputed", parent="other")
        groups = [
            structs.replace(done, id=name, kind="replicas", state="disputed", parent="", children={"one": child})
            for name, child in (("group", "a"), ("other", "b"))
        ]
        for row in (done, open_one, *groups):
            await node.ctx.store.change(lambda t, row=row: t[JOBS].put(row))
    async with open_node(tmp_path, config()) as node:
        assert (node.get_job("group").state, node.get_job("group").paid) == ("resolved", "1")
        assert node.get_job("other").state == "disputed"


async def test_too_few_providers_for_the_replicas_call_the_job_off(tmp_path: Path) -> None:
    async with market_of(tmp_path, 2) as (m, _):
        with pytest.raises(JobFailedError, match="no acceptable bid"), trio.fail_after(40):
            await orchestrate_job(m.requester.ctx, await m.post(spec("echo > out", verify={"policy": "replicate"})))
        assert m.balance(m.requester) == OPENING


def too_dear() -> OnboardOptions:
    """For an oracle that offers its machine for second runs, and at a price at which nobody takes it."""
    return OnboardOptions(price="1000")


async def test_the_oracle_runs_the_job_again_and_finds_a_cheat(tmp_path: Path) -> None:
    async with open_market(tmp_path, price="1") as m:
        await m.authority.onboard(too_dear(), None)
        (tmp_path / "in").write_text("6\n")
        text = spec("cat in > out", verify={"policy": "reexecute"}, inputs=[{"path": "in"}])
        assert (await orchestrate_job(m.requester.ctx, await m.post(text))).state == "settled"
        lie(m.provider)
        job = await orchestrate_job(m.requester.ctx, job_id := await m.post(text))
        assert (job.state, job.error.code) == ("failed", "rejected")
        row = m.requester.ctx.store[CONTRACTS].first("job_id", job_id)
        assert row.state == "refunded"
        assert m.balance(m.provider) == OPENING + quantities.MICRO
        assert not list((m.authority.ctx.home / "allocations").glob("*"))
        assert not m.authority.ctx.accounting.taken(m.authority.ctx.store)


def closed() -> Config:
    return config(executor=ExecutorConfig(process=ProcessConfig()))


@pytest.mark.parametrize(
    ("authority", "onboard", "reason"),
    [
        (config(), None, "this oracle offers no machine to run jobs on"),
        (closed(), too_dear(), "the oracle does not run the requester's process jobs"),
        (config(), OnboardOptions(price="1000", memory="32MiB"), "not enough memory is left"),
    ],
    ids=["not-onboarded", "strangers-off", "too-large"],
)
async def test_the_oracle_runs_only_what_its_operator_allowed(
    tmp_path: Path, authority: Config, onboard: OnboardOptions | None, reason: str
) -> None:
    """Two strangers without money could have any command run on the oracle's machine."""
    async with open_market(tmp_path, price="0", authority=authority) as m:
        if onboard is not None:
            await m.authority.onboard(onboard, None)
        ran: list[Any] = []
        m.authority.ctx.executors["process"].start = ran.append  # type: ignore[assignment,method-assign]
        with pytest.raises(NunetError, match=reason):
            await orchestrate_job(m.requester.ctx, await m.post(spec("touch out", verify={"policy": "reexecute"})))
        assert not ran
        assert not m.authority.ctx.accounting.taken(m.authority.ctx.store)  # type: ignore[attr-defined]


async def test_the_oracle_runs_nothing_for_whom_its_operator_denies(tmp_path: Path) -> None:
    async with open_market(tmp_path, price="0") as m:
        await m.authority.onboard(too_dear(), None)
        await m.authority.set_preferences(CapabilityComparator(deny=(m.requester.identity.did,)))
        with pytest.raises(DisputedError, match="runs no jobs of this requester's"):
            await orchestrate_job(m.requester.ctx, await m.post(spec("touch out", verify={"policy": "reexecute"})))


async def test_an_engine_that_breaks_in_a_second_run_is_said_and_no_verdict(tmp_path: Path) -> None:
    async with open_market(tmp_path, price="0") as m:
        await m.authority.onboard(too_dear(), None)

        async def breaks(*_: Any) -> None:
            raise OSError("No space left on device")

        m.authority.ctx.executors["process"].wait = breaks  # type: ignore[assignment,method-assign]
        with pytest.raises(ContractError, match="the oracle could not run the job: No space left on device"):
            await orchestrate_job(m.requester.ctx, await m.post(spec("touch out", verify={"policy": "reexecute"})))
        assert not m.authority.ctx.accounting.taken(m.authority.ctx.store)  # type: ignore[attr-defined]


async def test_an_oracle_that_is_busy_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cheap second runs would else put everybody else's paid contract into dispute."""
    monkeypatch.setattr(orchestrate, "MOMENTARY", PATIENT)
    monkeypatch.setattr(orchestrate, "SETTLE_PAUSE", 0.1)
    monkeypatch.setattr(again, "MAX_AT_ONCE", 0)
    async with open_market(tmp_path, price="1") as m:
        await m.authority.onboard(too_dear(), None)
        job_id = await m.post(spec("echo 1 > out", verify={"policy": "reexecute"}))
        m.requester.orchestrate(job_id)
        with trio.fail_after(60):
            while "settlement_waits" not in m.event_types(job_id):
                await trio.sleep(0.02)
            monkeypatch.setattr(again, "MAX_AT_ONCE", 2)
            while m.job(job_id).state != "settled":
                await trio.sleep(0.05)


async def test_the_oracle_runs_few_jobs_again_at_once_and_none_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "MAX_SECONDS", 1)
    async with open_market(tmp_path, price="0") as m:
        await m.authority.onboard(too_dear(), None)
        text = spec("touch out", verify={"policy": "reexecute"})

        async def endless(*_: Any) -> None:
            await trio.sleep_forever()

        m.authority.ctx.executors["process"].wait = endless  # type: ignore[assignment,method-assign]
        with pytest.raises(DisputedError, match="the oracle gives a second run no more than 1 s"):
            await orchestrate_job(m.requester.ctx, await m.post(text))
        assert not m.authority.ctx.accounting.taken(m.authority.ctx.store)  # type: ignore[attr-defined]
        monkeypatch.setattr(again, "MAX_AT_ONCE", 0)
        with pytest.raises(ContractError, match="the oracle runs other jobs again just now"):
            await orchestrate_job(m.requester.ctx, job_id := await m.post(text))
        contract = m.requester.ctx.store[CONTRACTS].one(m.job(job_id).contract_id)
        assert contract.state == "proved"


async def disputed(m: Market, **fields: Any) -> tuple[str, str]:
    """Run a job whose empty output its `verify` rejects; return the ids of job and contract."""
    text = spec("touch out", verify={"outputs_not_empty": True}, **fields)
    with pytest.raises(DisputedError):
        await orchestrate_job(m.requester.ctx, job_id := await m.post(text))
    return job_id, m.job(job_id).contract_id


@pytest.mark.parametrize(
    ("decision", "share", "paid"), [("pay", "", "1"), ("split", "0.25", "0.25"), ("refund", "", "0")]
)
async def test_the_operator_ends_a_dispute_and_both_are_told(
    market: MarketOf, decision: Any, share: str, paid: str
) -> None:
    async with market(price="1") as m:
        job_id, contract_id = await disputed(m)
        assert m.balances()[f"escrow:{contract_id}"] == quantities.MICRO
        for node, text in ((m.requester, "there is nothing in it"), (m.provider, "it ran as it was written")):
            await disputes.add(node.ctx, contract_id, text)
        known = await disputes.ask(m.provider.ctx, contract_id)
        assert [(e.did, e.text) for e in known.evidence[-2:]] == [
            (m.requester.identity.did, "there is nothing in it"), (m.provider.identity.did, "it ran as it was written"),
        ]  # fmt: skip
        assert m.authority.contract_database is not None
        await m.authority.contract_database.resolve(contract_id, decision, share or "0.5")
        with trio.fail_after(20):
            for node in (m.requester, m.provider):
                while not (row := node.ctx.store[CONTRACTS].one(contract_id)).told:
                    await trio.sleep(0.02)
                assert decision in row.message
        assert (m.job(job_id).state, m.job(job_id).paid) == ("resolved", paid)
        assert m.balance(m.provider) == OPENING + quantities.parse_amount(paid)
        assert m.balances()[f"escrow:{contract_id}"] == 0
        assert sum(m.balances().values()) == 0
        with pytest.raises(ContractError, match="not disputed"):
            await m.authority.contract_database.resolve(contract_id, "pay")
        with pytest.raises(NunetError, match="already"):
            await disputes.add(m.requester.ctx, contract_id, "one more thing")


async def test_a_verdict_of_a_second_run_ends_a_dispute(market: MarketOf) -> None:
    async with market(price="1") as m:
        await m.authority.onboard(too_dear(), None)
        job_id = await m.post(spec("echo 5 > out"))
        with trio.fail_after(20):
            while m.job(job_id).state != "completed":
                await next_stage(m.requester.ctx, m.job(job_id))
        contract = m.requester.ctx.store[CONTRACTS].first("job_id", job_id)
        assert contract is not None
        await disputes.add(m.requester.ctx, contract.id, "I do not believe it", with_result=True)
        with pytest.raises(DisputedError):
            await settle.settle(m.requester.ctx, job_id)
        row = m.provider.ctx.store[CONTRACTS].one(contract.id)
        verdict = await verify_job(m.provider.ctx, row, reexecute=True)
        assert verdict is not None
        dispute = await disputes.add(m.provider.ctx, contract.id, "run it yourself", documents=(verdict,))
        assert (dispute.decision, dispute.by, dispute.paid) == ("pay", "quorum", "1")
        assert m.balance(m.provider) == OPENING + quantities.MICRO


async def test_evidence_of_strangers_and_verdicts_of_others_decide_nothing(market: MarketOf, tmp_path: Path) -> None:
    async with market(price="1") as m, open_node(tmp_path / "stranger", config()) as stranger:
        await stranger.add_peer(m.authority.ctx.transport.describe())
        _, contract_id = await disputed(m)
        row = m.provider.ctx.store[CONTRACTS].one(contract_id)
        assert row.result is not None
        with pytest.raises(NunetError, match="no contract"):
            await disputes.send(stranger.ctx, row.contract_database, contract_id, "pay me", ())
        # the provider signs a verdict itself
        forged = make_document(
            {"v": 1, "contract_id": contract_id, "result_cid": row.result.cid, "oracle": row.oracle,
             "verdict": "verified", "checks": [], "verified_at": quantities.utc_now(), "policy": "reexecute"}
        ).sign(m.provider.identity, "oracle")  # fmt: skip
        dispute = await disputes.add(m.provider.ctx, contract_id, "see", documents=(forged,))
        assert dispute.decision == ""


async def test_outputs_that_nobody_asked_for_are_refused(market: MarketOf, tmp_path: Path) -> None:
    """A hostile provider's file names never become paths on the requester's machine."""
    async with market(price="1") as m:
        sign = allocation.make_document

        def hostile(value: Any) -> Document:
            if isinstance(value, Result) and value.outputs:
                bad = msgspec.structs.replace(value.outputs[0], name=str(tmp_path / "owned"))
                value = msgspec.structs.replace(value, outputs=(bad,))
            return sign(value)

        allocation.make_document = hostile
        try:
            job_id = await m.post(spec("echo 5 > out", time={"max_duration": 1}))
            with trio.move_on_after(4):
                await orchestrate_job(m.requester.ctx, job_id)
        finally:
            allocation.make_document = sign
        assert m.job(job_id).state == "running"
        assert m.job(job_id).result is None
