"""One of the parties lies, with good signatures: what it gains by that, and what the others' books say.

The nodes are real and talk over TCP; the liar's node is made to say what an honest one never would.
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from nunet_cli import quantities
from nunet_cli.allocation import run as allocation
from nunet_cli.config import DockerConfig, ExecutorConfig, LimitsConfig
from nunet_cli.errors import ContractError, DisputedError, NunetError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.jobs.reader import read_spec
from nunet_cli.jobs.spec import encode_spec
from nunet_cli.network.identity import Identity, new_identity
from nunet_cli.network.messenger import Answer, Change, Incoming
from nunet_cli.node.node import Node
from nunet_cli.orchestrator import contract, execute, invoke, match, outputs, request, settle
from nunet_cli.orchestrator.cancel import cancel
from nunet_cli.records.allocations import ALLOCATIONS
from nunet_cli.records.books import ACCOUNTS, LEDGER, LOG, REGISTRY
from nunet_cli.records.capability import PriceBid
from nunet_cli.records.contract_records import (
    CONTRACTS,
    PINNED_ROLES,
    REGISTERED_CONTRACTS,
    STATEMENTS,
    ContractRecord,
)
from nunet_cli.records.contracts import (
    DATABASE,
    ORACLE,
    PROVIDER,
    REQUESTER,
    Contract,
    JobVerificationResult,
    Proof,
    Receipt,
    Terms,
    deadline_of,
    sign_by_of,
)
from nunet_cli.records.disputes import DisputeContract
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.messages import (
    AskStatement,
    CheckKyc,
    JobCompleted,
    JobVerification,
    LogChunk,
    Message,
    RegisterContract,
    Replica,
    SettleContract,
)
from nunet_cli.records.messaging import GRANTS, INBOX
from nunet_cli.records.offers import OnboardOptions
from nunet_cli.records.results import OutputFile, Result, Usage
from nunet_cli.tokenomics import closing
from nunet_cli.tokenomics import dispute as disputes
from nunet_cli.tokenomics.oracle import compare_replicas, verify_documents
from tests.conftest import Market, config, needs_docker, open_market, post
from tests.images import import_image
from tests.together import ask, together

MarketOf = Callable[..., Any]
OPENING = quantities.parse_amount("100")
# a cent a second
BY_TIME, SECOND = "36/h", 10_000
STAGES = (match.match, request.request, contract.close_contract, invoke.invoke)


def spec(seconds: float = 0, **fields: Any) -> str:
    body = {
        "name": "test", "executor": {"type": "null", "env": {"NULL_SECONDS": str(seconds)}}, "price": "100",
        "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}, "time": {"max_duration": "1h"}, **fields,
    }  # fmt: skip
    return json.dumps(body)


def answering(node: Node, type_: str, behaviour: Callable[[Incoming], Awaitable[Answer | Change | None]]) -> None:
    """Let a node do something else with messages of a type."""
    known = node.ctx.messenger._types[type_]
    node.ctx.messenger.register(type_, known.kind, behaviour)


def lying(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Let providers sign results with other fields than are true; `usage` is merged, `shift` moves both times."""

    def lie(value: Any) -> Document:
        if isinstance(value, Result):
            usage = msgspec.structs.replace(value.usage, **fields.get("usage", {}))
            value = msgspec.structs.replace(value, usage=usage, **{k: v for k, v in fields.items() if k != "usage"})
        return make_document(value)

    monkeypatch.setattr(allocation, "make_document", lie)


async def through(m: Market, job_id: str, count: int) -> ContractRecord:
    """Take a job through its first stages, at least three of them; return the requester's record of its contract."""
    await up_to(m, job_id, count)
    return record_of(m.requester, job_id)


async def up_to(m: Market, job_id: str, count: int) -> None:
    for stage in STAGES[:count]:
        await stage(m.requester.ctx, job_id)


def record_of(node: Node, job_id: str) -> ContractRecord:
    record = node.ctx.store[CONTRACTS].first("job_id", job_id)
    assert record is not None
    return record


# -- contracts that were refused ---------------------------------------------------------------------------------------


async def test_a_contract_that_the_provider_refused_binds_nobody(market: MarketOf) -> None:
    """It answers with an error, signs all the same, has the contract registered, and hands in a made-up result."""
    async with market() as m:
        kept: list[Document] = []

        async def refuse(message: Incoming) -> Answer:
            kept.append(message.body.contract.sign(m.provider.identity, PROVIDER))
            raise ContractError("no, thank you", code="not_today")

        answering(m.provider, "contract_proposal", refuse)
        job_id = await m.post(spec())
        with pytest.raises(NunetError):
            await orchestrate_job(m.requester.ctx, job_id)
        with pytest.raises(NunetError):
            await m.provider.ctx.messenger.request(
                m.authority.identity.did, "register_contract", RegisterContract(kept[0]), timeout=5
            )
        assert m.authority.ctx.store[REGISTERED_CONTRACTS].count() == 0
        assert m.balances().get(m.requester.identity.did, OPENING) == OPENING
        assert record_of(m.requester, job_id).state == "refused"


async def test_a_signature_lapses_where_the_contract_is_not_registered_in_time(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A requester that keeps the provider's signature cannot bind it when that suits itself better."""
    async with market() as m:
        job_id = await m.post(spec())
        await up_to(m, job_id, 2)
        monkeypatch.setattr(contract, "register_contract", _never)
        with pytest.raises(ContractError):
            await contract.close_contract(m.requester.ctx, job_id)
        document = record_of(m.requester, job_id).document
        assert document.is_signed(m.provider.identity.did, PROVIDER)
        real = quantities.now
        monkeypatch.setattr(quantities, "now", lambda: real() + timedelta(seconds=121))
        with pytest.raises(NunetError) as caught:
            await ask(m.requester, m, "register_contract", RegisterContract(document))
        assert caught.value.code == "signature_lapsed"


async def _never(*_: Any) -> Any:
    raise ContractError("kept back")


async def test_a_volunteers_contract_moves_nobodys_trust(market: MarketOf, tmp_path: Path) -> None:
    """A stranger's free contract may name the stranger's own authority; for money that one is not taken afterwards."""
    async with market(price="0") as m:
        job = await orchestrate_job(m.requester.ctx, await m.post(spec()))
        assert job.state == "settled"
        for node in (m.provider, m.requester):
            assert node.ctx.store[PINNED_ROLES].count() == 0


async def test_asking_about_identities_writes_nothing(market: MarketOf) -> None:
    async with market() as m:
        store = m.authority.ctx.store
        before = {table.name: store[table].count() for table in (REGISTRY, ACCOUNTS, LEDGER, LOG, INBOX)}
        for _ in range(30):
            answer = await m.requester.ctx.messenger.request(
                m.authority.identity.did, "check_kyc", CheckKyc(new_identity().did), timeout=5
            )
            assert answer.body.verified
        after = {table.name: store[table].count() for table in (REGISTRY, ACCOUNTS, LEDGER, LOG, INBOX)}
        assert after == before
        # who asks for its balance is told what its account would open with
        statement = await m.requester.ctx.messenger.request(
            m.authority.identity.did, "ask_statement", AskStatement(), timeout=5
        )
        assert statement.body.balance == "100"
        assert not store[ACCOUNTS].has(m.requester.identity.did)


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["+23:59", "+00:00", "Z ", "z", "", "Z\n"])
async def test_a_deadline_in_another_form_is_no_contract(market: MarketOf, end: str) -> None:
    """Two texts of one time do not compare as times do: such a deadline would come a day late for one of the parties."""
    async with market() as m:
        row = await through(m, await m.post(spec()), 3)
        text = json.loads(row.document.content)
        text["terms"]["deadline"] = text["terms"]["deadline"].removesuffix("Z") + end
        document = Document(json.dumps(text))
        signed = document.sign(m.provider.identity, PROVIDER).sign(m.requester.identity, "requester")
        for node, type_, body in (
            (m.authority, "register_contract", RegisterContract(signed)),
            (m.provider, "contract_proposal", contract.ContractProposal(document)),
        ):
            with pytest.raises(NunetError) as caught:
                await m.requester.ctx.messenger.request(node.identity.did, type_, body, timeout=5)
            assert caught.value.code == "bad_document"


# -- time that was not worked ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"usage": {"wall_seconds": 3500.0}},
        {"usage": {"wall_seconds": 9.0}},
        {"usage": {"wall_seconds": 3500.0}, "started_at": "2024-01-01T00:00:00.000Z"},
        {"usage": {"wall_seconds": 3500.0}, "ended_at": "2031-01-01T00:00:00.000Z"},
        {
            "usage": {"wall_seconds": 3500.0},
            "started_at": "2024-01-01T00:00:00.000Z",
            "state": "failed",
            "fault": "job",
            "reason": "exit_code",
            "exit_code": 1,
        },
    ],
)
async def test_a_provider_is_not_paid_for_time_that_did_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: dict[str, Any]
) -> None:
    async with open_market(tmp_path, onboard=OnboardOptions(price=BY_TIME)) as m:
        lying(monkeypatch, **lie)
        job_id = await m.post(spec(0.5))
        with suppress(DisputedError):
            await orchestrate_job(m.requester.ctx, job_id)
        assert m.balance(m.provider) <= OPENING + 2 * SECOND
        job = m.job(job_id)
        assert job.state == "disputed", job
        # what was claimed beyond that is held, and whoever looks sees why
        dispute = disputes.find(m.authority.ctx.store, job.contract_id)
        assert dispute is not None
        assert dispute.decision == ""


async def test_a_provider_that_is_called_off_is_not_paid_for_time_that_did_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_market(tmp_path, onboard=OnboardOptions(price=BY_TIME)) as m:
        lying(monkeypatch, usage={"wall_seconds": 3500.0}, started_at="2024-01-01T00:00:00.000Z")
        job_id = await m.post(spec(60))
        await through(m, job_id, 4)
        with suppress(DisputedError):
            await cancel(m.requester.ctx, job_id)
        assert m.balance(m.provider) <= OPENING + 2 * SECOND
        assert m.job(job_id).state == "disputed"


def made_up(m: Market, row: ContractRecord, seconds: float = 80.0, state: Any = "completed") -> Document:
    """A result of work that nobody did, signed by the provider."""
    now = quantities.utc_now()
    claim = Result(row.job_id, row.id, "allocation-none", state, 0, now, now, usage=Usage(0, seconds))
    return make_document(claim).sign(m.provider.identity, PROVIDER)


def verified(m: Market, row: ContractRecord, result: Document) -> SettleContract:
    """A request to settle, with the verdict of an oracle that lies as well."""
    content = JobVerificationResult(
        1, row.id, result.cid, m.authority.identity.did, "verified", (), quantities.utc_now()
    )  # fmt: skip
    return SettleContract(row.id, result, make_document(content).sign(m.authority.identity, ORACLE))


async def test_no_more_is_paid_than_the_contract_database_saw_pass(tmp_path: Path) -> None:
    """Provider and oracle lie together, and the requester's node believes them."""
    async with open_market(tmp_path, onboard=OnboardOptions(price=BY_TIME)) as m:
        row = await through(m, await m.post(spec()), 3)
        await ask(m.requester, m, "settle_contract", verified(m, row, made_up(m, row)))
        earned = m.balance(m.provider) - OPENING
        assert 0 < earned < 10 * SECOND


async def test_a_provider_is_not_paid_before_the_deadline_on_its_own_word(market: MarketOf) -> None:
    """It signs a result the moment that the contract is proved; until the deadline the requester says what it has."""
    async with market() as m:
        row = await through(m, job_id := await m.post(spec()), 3)
        with pytest.raises(NunetError) as caught:
            await m.provider.ctx.messenger.request(
                m.authority.identity.did, "settle_contract", verified(m, row, made_up(m, row)), timeout=5
            )
        assert caught.value.code == "too_early"
        assert m.balance(m.provider) == OPENING
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"


async def test_a_provider_that_is_silent_when_it_is_called_off_sells_no_more_time_by_that(tmp_path: Path) -> None:
    short = config(limits=LimitsConfig(answer_timeout=1, heartbeat=1))
    async with open_market(tmp_path, onboard=OnboardOptions(price=BY_TIME), requester=short) as m:
        row = await through(m, job_id := await m.post(spec(60)), 4)

        async def silent(_message: Incoming) -> Answer:
            await trio.sleep_forever()
            raise AssertionError("never")

        answering(m.provider, "job_cancel", silent)
        await cancel(m.requester.ctx, job_id)
        assert m.job(job_id).state == "cancelled"
        began = trio.current_time()
        while trio.current_time() - began < 4:
            await trio.sleep(0.1)
        started = m.provider.ctx.store[ALLOCATIONS].first("contract_id", row.id)
        assert started is not None
        late = Result(
            job_id, row.id, started.id, "cancelled", None, started.started_at, quantities.utc_now(),
            usage=Usage(0, 5.0),
        )  # fmt: skip
        said = JobCompleted(row.id, make_document(late).sign(m.provider.identity, PROVIDER))
        await post(m.provider, m.requester.identity.did, "job_error", said, lifetime=60)
        with trio.fail_after(20):
            while m.requester.ctx.store[CONTRACTS].one(row.id).state != "disputed":
                await trio.sleep(0.05)
        assert m.balance(m.provider) == OPENING


async def test_a_second_result_is_found_by_the_receipt_and_the_job_ends(market: MarketOf) -> None:
    """One result for the requester, another one for the contract database: the books agree, and both are kept."""
    async with market() as m:
        row = await through(m, job_id := await m.post(spec()), 4)
        await execute.follow(m.requester.ctx, job_id)
        other = made_up(m, row, 0.0)
        # the contract database's clock alone: the provider's node is not to settle what it gave the requester
        recorded = m.authority.ctx.store[REGISTERED_CONTRACTS].one(row.id)
        past = msgspec.structs.replace(recorded, deadline=quantities.utc_now())
        await m.authority.ctx.store.change(lambda t: t[REGISTERED_CONTRACTS].put(past))
        settled = await ask(m.provider, m, "settle_contract", verified(m, row, other))
        assert settled.receipt.read(Receipt).result_cid == other.cid
        with trio.fail_after(20):
            while m.job(job_id).state != "failed":
                await trio.sleep(0.05)
        job = m.job(job_id)
        assert job.error is not None
        assert (job.error.code, job.paid) == ("second_result", "0.25")
        kept = m.requester.ctx.store[CONTRACTS].one(row.id)
        assert kept.receipt is not None
        assert kept.result is not None
        assert (kept.state, kept.receipt.content) == ("settled", settled.receipt.content)
        assert kept.result.content != other.content


async def test_the_time_that_a_machine_is_held_is_paid_between_restarts_too(tmp_path: Path) -> None:
    """A service that ends at once and is started again holds the machine all along; how often is shown."""
    async with open_market(tmp_path, onboard=OnboardOptions(price=BY_TIME)) as m:
        service = {"restart": "always", "delay": "1s", "max_restarts": 100}
        job_id = await m.post(spec(type="service", service=service))
        await through(m, job_id, 4)
        with trio.fail_after(30):
            while (m.job(job_id).usage or Usage()).restarts < 3:
                await trio.sleep(0.05)
        await cancel(m.requester.ctx, job_id)
        usage = m.job(job_id).usage
        assert usage is not None
        assert usage.wall_seconds >= 3
        assert usage.restarts >= 3
        assert m.balance(m.provider) - OPENING == pytest.approx(usage.wall_seconds * SECOND, rel=0.01)


async def test_outputs_of_a_job_that_failed_by_itself_are_not_given_away_at_a_price_per_result(tmp_path: Path) -> None:
    """Else a job writes its answer and ends with 1, and the provider has worked for nothing."""
    async with open_market(tmp_path, price="1") as m:
        executor = {"type": "process", "command": ["sh", "-c", "echo answer > out; echo why >&2; exit 1"]}
        text = spec(executor=executor, outputs=[{"path": "out"}])
        job = await orchestrate_job(m.requester.ctx, await m.post(text))
        assert (job.state, job.paid) == ("failed", "0")
        assert job.result is not None
        assert job.error is not None
        assert job.result.outputs == ()
        assert "kept back" in job.error.message
        # why it failed is the requester's to see
        assert m.requester.ctx.blobs.path(job.result.stderr_cid).read_text() == "why\n"
        granted = {grant.cid for grant in m.provider.ctx.store[GRANTS].all()}
        assert granted == {job.result.stderr_cid, job.result.stdout_cid} - {""}


async def test_time_that_was_sold_gives_the_outputs_of_a_failed_job_too(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OnboardOptions(price=BY_TIME)) as m:
        executor = {"type": "process", "command": ["sh", "-c", "echo answer > out; exit 1"]}
        job = await orchestrate_job(m.requester.ctx, await m.post(spec(executor=executor, outputs=[{"path": "out"}])))
        assert job.state == "failed"
        assert job.result is not None
        assert [output.name for output in job.result.outputs] == ["out"]
        assert quantities.parse_amount(job.paid or "") > 0


# -- contract databases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"provider": new_identity().did}, "it names other parties"),
        ({"paid": "9999999"}, "paid and refunded are not the deposit"),
        ({"paid": "-5"}, "Expected `str` matching"),
        ({"paid": "0.01", "refunded": "0.24"}, "0.25 were due"),
        ({"outcome": "refunded"}, "refunded, and 0.25 NTX were paid"),
    ],
    ids=["third-party", "too-much", "negative", "too-little", "refunded-and-paid"],
)
async def test_a_receipt_that_does_not_fit_its_contract_is_not_believed(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch, lie: dict[str, str], said: str
) -> None:
    async with market() as m:

        def forge(value: Any) -> Document:
            return make_document(msgspec.structs.replace(value, **lie) if isinstance(value, Receipt) else value)

        monkeypatch.setattr(closing, "make_document", forge)
        job_id = await m.post(spec())
        with pytest.raises(ContractError) as caught:
            await orchestrate_job(m.requester.ctx, job_id)
        assert said in caught.value.message
        assert caught.value.exit_code == 6
        assert m.job(job_id).state == "verified"
        for node in (m.requester, m.provider):
            record = record_of(node, job_id)
            assert (record.state, record.receipt) == ("proved", None)
            assert node.ctx.store[STATEMENTS].count() == 0


async def test_a_provider_that_has_nothing_new_at_once_is_not_asked_without_end(market: MarketOf) -> None:
    async with market() as m:
        await through(m, job_id := await m.post(spec()), 4)
        asked = 0

        async def nothing(message: Incoming) -> Answer:
            nonlocal asked
            asked += 1
            return "log_chunk", LogChunk(b"", ended=False)

        answering(m.provider, "job_logs", nothing)
        job = m.job(job_id)
        with trio.move_on_after(1):
            while True:
                assert await outputs.read_logs(m.requester.ctx, job, "stdout", 0, 5) == (b"", False)
        assert 0 < asked <= 1 / outputs.NOTHING_NEW_PAUSE + 1


async def test_a_log_that_never_ends_is_cut(market: MarketOf) -> None:
    limits = LimitsConfig(answer_timeout=5, heartbeat=1, log_size=2**20)
    async with market(requester=config(limits=limits)) as m:
        await through(m, job_id := await m.post(spec()), 4)

        async def more(message: Incoming) -> Answer:
            return "log_chunk", LogChunk(b"more " * 40_000, ended=False)

        answering(m.provider, "job_logs", more)
        said, ended = b"", False
        with trio.fail_after(20):
            while not ended:
                data, ended = await outputs.read_logs(m.requester.ctx, m.job(job_id), "stdout", len(said), 1)
                said += data
            assert await outputs.read_logs(m.requester.ctx, m.job(job_id), "stdout", len(said), 1) == (b"", True)
        assert said.endswith(outputs.CUT)
        assert 2**20 < len(said) < 2**20 + 2000


async def test_of_two_receipts_for_one_contract_the_first_counts_for_the_job_as_well(market: MarketOf) -> None:
    async with market() as m:
        database = m.authority.identity
        honest = m.authority.ctx.messenger._types["settle_contract"].behaviour
        assert honest is not None

        async def two_faced(message: Incoming) -> Answer | Change | None:
            body: SettleContract = message.body
            row = m.authority.ctx.store[REGISTERED_CONTRACTS].one(body.contract_id)
            said = Receipt(
                1, row.id, database.did, "settled", row.requester, row.provider, "0.1", "0.15", "dispute: half",
                quantities.utc_now(), "head", body.result.cid,
            )  # fmt: skip
            receipt = make_document(said).sign(database, DATABASE)
            # unasked, and the answer is another one
            await post(m.authority, row.requester, "message", Message(row.id, "half", receipt, "99.9"), lifetime=60)
            with trio.fail_after(20):
                while m.requester.ctx.store[CONTRACTS].one(row.id).receipt is None:
                    await trio.sleep(0.01)
            return await honest(message)

        answering(m.authority, "settle_contract", two_faced)
        job = await orchestrate_job(m.requester.ctx, await m.post(spec()))
        kept = record_of(m.requester, job.id)
        assert kept.receipt is not None
        assert (kept.receipt.read(Receipt).paid, job.state, job.paid) == ("0.1", "settled", "0.1")
        assert [row.amount for row in m.requester.ctx.store[STATEMENTS].all()] == ["-0.1"]


async def test_a_dispute_and_a_settlement_that_arrive_together_are_decided_once(market: MarketOf) -> None:
    """What is in dispute is not paid while the dispute stays open."""
    async with market() as m:
        for first in ("dispute", "settle"):
            row = await through(m, job_id := await m.post(spec()), 4)
            await execute.follow(m.requester.ctx, job_id)
            row = m.requester.ctx.store[CONTRACTS].one(row.id)
            verdict, result = await settle.verify_job(m.requester.ctx, row), row.result
            assert result is not None
            calls = {
                "dispute": partial(ask, m.requester, m, "dispute_contract", DisputeContract(row.id, "no")),
                "settle": partial(ask, m.requester, m, "settle_contract", SettleContract(row.id, result, verdict)),
            }
            ends = await together(m, *(calls[name] for name in sorted(calls, key=lambda name: name != first)))
            recorded = m.authority.ctx.store[REGISTERED_CONTRACTS].one(row.id)
            is_open = disputes.find(m.authority.ctx.store, row.id) is not None
            assert (recorded.state, recorded.receipt is None) == (
                ("disputed", True) if is_open else ("settled", False)
            ), (first, ends)
            left = m.balances()[f"escrow:{row.id}"]
            assert left == (250_000 if is_open else 0)


async def test_an_oracle_that_hangs_on_one_contract_keeps_no_other_from_its_money(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_market(tmp_path, requester=config()) as m:
        rows = []
        for _ in range(2):
            row = await through(m, job_id := await m.post(spec()), 4)
            await execute.follow(m.requester.ctx, job_id)
            rows.append(m.provider.ctx.store[CONTRACTS].one(row.id))
        honest = m.authority.oracle._on_verification

        async def hang(message: Incoming) -> Answer | Change:
            if message.body.contract.cid == rows[0].id:
                await trio.sleep_forever()
            return await honest(message)

        answering(m.authority, "job_verification", hang)
        # long past the deadline, and the requester says nothing; each contract may take as long as it may run
        for row in rows:
            await m.let_pass_the_deadline(row.id)
        with trio.fail_after(4):
            while m.provider.ctx.store[CONTRACTS].one(rows[1].id).state != "settled":
                await trio.sleep(0.05)
        assert m.balance(m.provider) == OPENING + 250_000


@needs_docker
async def test_a_container_that_is_called_off_is_paid_for_the_time_that_it_held_the_machine(tmp_path: Path) -> None:
    import_image("nunet-held:1")
    docker = {"executor": ExecutorConfig(docker=DockerConfig(images=("nunet-held:1",)))}
    async with open_market(tmp_path, onboard=OnboardOptions(price=BY_TIME), provider=config(**docker)) as m:
        executor = {"type": "docker", "image": "nunet-held:1", "command": ["sleep", "60"]}
        job_id = await m.post(spec(executor=executor))
        await through(m, job_id, 4)
        with trio.fail_after(60):
            while m.job(job_id).state != "running":
                await trio.sleep(0.02)
        began = trio.current_time()
        while trio.current_time() - began < 2:
            await trio.sleep(0.1)
        await cancel(m.requester.ctx, job_id)
        job = m.job(job_id)
        assert job.state == "cancelled"
        assert job.usage is not None
        assert job.usage.wall_seconds >= 2
        assert quantities.parse_amount(job.paid or "") >= 2 * SECOND


@pytest.mark.parametrize("behind", [-59, -35, 0, 35, 59])
def test_honest_results_are_verified_whatever_the_clocks_that_talk_to_each_other(behind: int) -> None:
    """An oracle's clock may be a minute behind the contract database's, or before it."""
    requester, provider, database = (new_identity() for _ in range(3))
    run = run_of(requester, provider, database, price="1", out="right")
    at = quantities.parse_time(run.proof.read(Proof).registered_at)
    begun, ended = quantities.format_time(at), quantities.format_time(at + timedelta(seconds=5))
    result = msgspec.structs.replace(
        run.result.read(Result), started_at=begun, ended_at=ended, usage=Usage(0, 5.0)
    )  # fmt: skip
    signed = make_document(result).sign(provider, PROVIDER)
    question = JobVerification(SPEC, run.contract, run.proof, signed)
    now = quantities.format_time(at + timedelta(seconds=5.2 + behind))
    timed = [check for check in verify_documents(question, now) if "time" in check.name or "_now" in check.name]
    assert len(timed) >= 4
    assert all(check.passed for check in timed), timed


def test_a_result_of_another_job_is_not_verified() -> None:
    requester, provider, database = (new_identity() for _ in range(3))
    run = run_of(requester, provider, database, price="1", out="right")
    for job_id, passed in (("job-1", True), ("job-2", False)):
        result = msgspec.structs.replace(run.result.read(Result), job_id=job_id)
        question = JobVerification(SPEC, run.contract, run.proof, make_document(result).sign(provider, PROVIDER))
        (found,) = [check for check in verify_documents(question) if check.name == "result_names_job"]
        assert found.passed == passed


def test_a_second_run_decides_against_a_provider_only_under_terms_that_say_so() -> None:
    """A job that writes other bytes each time would else be had for nothing."""
    requester, provider, database = (new_identity() for _ in range(3))
    run = run_of(requester, provider, database, price="1", out="right")
    content = JobVerificationResult(
        1, run.contract.cid, run.result.cid, database.did, "rejected", (), quantities.utc_now(), "reexecute"
    )  # fmt: skip
    for terms, decision in (("attested", None), ("reexecute", "refund")):
        text = run.contract.read(Contract)
        agreed = msgspec.structs.replace(text, terms=msgspec.structs.replace(text.terms, verification=terms))
        for verdict, expected in (("rejected", decision), ("verified", "pay")):
            said = make_document(msgspec.structs.replace(content, verdict=verdict)).sign(database, ORACLE)
            assert disputes.quorum_decision(agreed, (said,), run.result.cid) == expected


async def test_a_dispute_pays_no_more_time_than_the_contract_database_saw_pass(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OnboardOptions(price=BY_TIME)) as m:
        row = await through(m, await m.post(spec()), 3)
        database = m.authority.contract_database
        result = made_up(m, row)
        await ask(m.provider, m, "dispute_contract", DisputeContract(row.id, "mine", (result,)))
        # another result that comes later is not the result
        await ask(m.provider, m, "dispute_contract", DisputeContract(row.id, "", (made_up(m, row, 90.0),)))
        await database.resolve(row.id, "pay")
        assert 0 < m.balance(m.provider) - OPENING < 10 * SECOND


# -- replicas ----------------------------------------------------------------------------------------------------------


SPEC = encode_spec(read_spec(spec(0, price="1"))).decode()


def run_of(requester: Identity, provider: Identity, database: Identity, *, price: str, out: str) -> Replica:
    """Return the documents of one provider's run of a job that is replicated three times."""
    now, bid = quantities.utc_now(), PriceBid(amount=price)
    terms = Terms(content_id(SPEC.encode()), bid, 60, price, "replicate", deadline_of(now, 60), 3)
    payment: Any = "volunteer" if price == "0" else "escrow"
    text = Contract(
        1, "job-1", "bid-1", requester.did, provider.did, database.did, database.did, terms, payment, now,
        sign_by_of(now),
    )  # fmt: skip
    agreed = make_document(text).sign(provider, PROVIDER).sign(requester, REQUESTER)
    proof = make_document(Proof(1, agreed.cid, database.did, price, now, "head")).sign(database, DATABASE)
    outputs = (OutputFile("out", out, 1),)
    result = Result("job-1", agreed.cid, "allocation-1", "completed", 0, now, now, outputs=outputs)
    return Replica(agreed, proof, make_document(result).sign(provider, PROVIDER))


def test_who_runs_a_job_for_nothing_has_no_vote_on_one_that_is_paid() -> None:
    """Else a requester outvotes an honest provider with two identities of its own, and has the outputs for nothing."""
    requester, database, *providers = (new_identity() for _ in range(5))
    honest = run_of(requester, providers[0], database, price="1", out="right")

    def verdict(*prices: str) -> str:
        others = tuple(
            run_of(requester, provider, database, price=price, out="wrong")
            for provider, price in zip(providers[1:], prices, strict=True)
        )
        question = JobVerification(SPEC, honest.contract, honest.proof, honest.result, others)
        return compare_replicas(question)[0]

    assert verdict("1", "1") == "rejected"
    assert verdict("0", "0") == "inconclusive"
    assert verdict("1", "0") == "inconclusive"
