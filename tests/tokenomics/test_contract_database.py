"""The contract database's rules about money and state: each with two messages that arrive together, or with time.

Three real nodes; the contracts are made by hand, so that both parties' signatures are the test's to give.
"""

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from nunet_cli import quantities
from nunet_cli.config import LimitsConfig
from nunet_cli.database.store import Transaction
from nunet_cli.errors import NunetError
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import contract_keeping, invoke
from nunet_cli.records.allocations import ALLOCATIONS
from nunet_cli.records.books import ACCOUNTS, LEDGER, PRESENCE
from nunet_cli.records.capability import PriceBid
from nunet_cli.records.contract_records import REGISTERED, REGISTERED_CONTRACTS, RegisteredContract
from nunet_cli.records.contracts import (
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
from nunet_cli.records.disputes import DISPUTES, DisputeContract, DisputeSummary
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.events import EVENTS
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.messages import (
    AskStatement,
    CheckContract,
    ContractRegistered,
    Message,
    ProofOfContract,
    RegisterContract,
    SettleContract,
)
from nunet_cli.records.messaging import INBOX
from nunet_cli.records.results import Result, Usage
from nunet_cli.tokenomics import ledger
from nunet_cli.tokenomics.settling import read_claim
from tests.conftest import Market, config, open_market, total
from tests.together import ask, together
from tests.tokenomics.test_liars import record_of, spec, through

MarketOf = Callable[..., Any]
OPENING = quantities.parse_amount("100")
QUARTER = quantities.parse_amount("0.25")
# how long the contracts here may run, in seconds
DURATION = 60


class Papers:
    """What the two parties of a contract sign, and what the oracle says of it."""

    def __init__(
        self, m: Market, price: str = "0.25", *, provider: Node | None = None, terms: str = "attested"
    ) -> None:
        self.m, self.provider = m, provider or m.provider
        authority, now = m.authority.identity.did, quantities.utc_now()
        agreed = Terms(
            content_id(b"{}"),
            PriceBid(amount=price),
            DURATION,
            price,
            terms,
            deadline_of(now, DURATION),  # type: ignore[arg-type]
        )
        self.text = Contract(
            1, "job-" + content_id(now.encode() + price.encode())[-20:], "bid-1", m.requester.identity.did,
            self.provider.identity.did, authority, authority, agreed,
            "volunteer" if price == "0" else "escrow", now, sign_by_of(now),
        )  # fmt: skip
        unsigned = make_document(self.text)
        self.contract = unsigned.sign(self.provider.identity, PROVIDER).sign(m.requester.identity, REQUESTER)

    @property
    def id(self) -> str:
        return self.contract.cid

    def result(self, state: Any = "completed", **fields: Any) -> Document:
        now = quantities.utc_now()
        said = Result(self.text.job_id, self.id, "allocation-1", state, 0, now, now, usage=Usage(), **fields)
        return make_document(said).sign(self.provider.identity, PROVIDER)

    def verdict(self, result: Document, verdict: Any = "verified", policy: Any = "attested") -> Document:
        said = JobVerificationResult(
            1, self.id, result.cid, self.m.authority.identity.did, verdict, (), quantities.utc_now(), policy
        )  # fmt: skip
        return make_document(said).sign(self.m.authority.identity, ORACLE)

    def to_settle(self, result: Document, verdict: Any = "verified") -> SettleContract:
        return SettleContract(self.id, result, self.verdict(result, verdict))

    def recorded(self) -> RegisteredContract:
        return self.m.authority.ctx.store[REGISTERED_CONTRACTS].one(self.id)

    async def register(self) -> None:
        await ask(self.m.requester, self.m, "register_contract", RegisterContract(self.contract))


def money(m: Market) -> tuple[int, int, int]:
    """Return what the requester has, what the provider has, and what is in escrow, in micro-NTX; the books balance."""
    found = m.balances()
    assert total(m.authority.ctx.store) == 0
    assert all(left >= 0 for name, left in found.items() if name != ledger.ISSUANCE)
    in_escrow = sum(left for name, left in found.items() if name.startswith("escrow:"))
    return m.balance(m.requester), m.balance(m.provider), in_escrow


# -- registering -------------------------------------------------------------------------------------------------------


async def test_both_parties_register_the_same_contract_together(market: MarketOf) -> None:
    """One proof, one deposit, whoever comes first."""
    async with market() as m:
        papers = Papers(m)
        body = RegisterContract(papers.contract)
        ends = await together(
            m, lambda: ask(m.requester, m, "register_contract", body),
            lambda: ask(m.provider, m, "register_contract", body),
        )  # fmt: skip
        first, second = ends
        assert isinstance(first, ProofOfContract)
        assert isinstance(second, ProofOfContract)
        assert first.proof == second.proof == papers.recorded().proof
        assert money(m) == (OPENING - QUARTER, OPENING, QUARTER)
        types = [event.type for _, event in m.authority.ctx.store.log(papers.text.job_id)]
        assert types == ["contract_registered"]


async def test_a_party_is_told_of_its_own_account_alone(market: MarketOf) -> None:
    async with market() as m:
        body = RegisterContract(Papers(m).contract)
        # registered by the provider first, then asked for by both
        said = [
            (await ask(node, m, "register_contract", body)).balance for node in (m.provider, m.provider, m.requester)
        ]
        assert said == ["100", "100", "99.75"]


async def test_two_deposits_that_the_requester_has_only_once(market: MarketOf) -> None:
    async with market() as m:
        pair = [Papers(m, "60"), Papers(m, "70")]
        ends = await together(
            m, *(lambda p=p: ask(m.requester, m, "register_contract", RegisterContract(p.contract)) for p in pair)
        )  # fmt: skip
        assert isinstance(ends[0], ProofOfContract)
        assert isinstance(ends[1], NunetError)
        assert ends[1].code == "insufficient_funds"
        assert money(m) == (quantities.parse_amount("40"), OPENING, quantities.parse_amount("60"))
        # what was refused left nothing: neither a contract nor an event
        store = m.authority.ctx.store
        assert not store[REGISTERED_CONTRACTS].has(pair[1].id)
        assert store.log(pair[1].text.job_id) == []


@pytest.mark.parametrize("who", [REQUESTER, PROVIDER])
async def test_a_party_that_is_revoked_while_its_contract_is_registered(market: MarketOf, who: str) -> None:
    async with market() as m:
        did = (m.requester if who == REQUESTER else m.provider).identity.did
        papers = Papers(m)
        _, end = await together(
            m, lambda: m.authority.contract_database.registry.revoke(did),
            lambda: ask(m.requester, m, "register_contract", RegisterContract(papers.contract)),
        )  # fmt: skip
        assert isinstance(end, NunetError)
        assert end.code == "not_verified_entity"
        assert m.authority.ctx.store[REGISTERED_CONTRACTS].count() == 0
        # the first one's account was opened by nothing
        assert m.authority.ctx.store[LEDGER].count() == 0


async def test_the_provider_has_the_proof_before_it_is_invoked(market: MarketOf) -> None:
    async with market() as m:
        row = await through(m, job_id := await m.post(spec()), 3)
        with trio.fail_after(20):
            while record_of(m.provider, job_id).state != "proved":
                await trio.sleep(0.02)
        there = record_of(m.provider, job_id)
        assert there.proof == row.proof
        assert "contract_proved" in [event.type for _, event in m.provider.ctx.store.log(job_id)]


@pytest.mark.parametrize("lie", ["wrong_proof", "bad_signature", "no_contract"])
async def test_a_proof_that_is_not_the_contract_databases_is_not_kept(market: MarketOf, lie: str) -> None:
    async with market() as m:
        m.provider.ctx.messenger.register("contract_registered", ContractRegistered, None)
        row = await through(m, job_id := await m.post(spec()), 3)
        contract_keeping.register(m.provider.ctx)
        assert row.proof is not None
        other = make_document(msgspec.structs.replace(row.proof.read(Proof), contract_id=content_id(b"other")))
        proof = {
            "wrong_proof": other.sign(m.authority.identity, "contract-database"),
            "bad_signature": other.sign(m.requester.identity, "contract-database"), "no_contract": row.proof,
        }[lie]  # fmt: skip
        sender = m.requester if lie == "no_contract" else m.authority
        with pytest.raises(NunetError) as caught:
            await sender.ctx.messenger.request(
                m.provider.identity.did, "contract_registered", ContractRegistered(row.id, proof, "1"), timeout=5
            )
        assert caught.value.code == lie
        assert record_of(m.provider, job_id).state == "agreed"


# -- settling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [REQUESTER, PROVIDER])
async def test_both_parties_settle_together_and_one_payment_is_made(market: MarketOf, first: str) -> None:
    async with market() as m:
        papers = Papers(m)
        await papers.register()
        await past_the_deadline(papers)
        body = papers.to_settle(papers.result())
        nodes = [m.requester, m.provider] if first == REQUESTER else [m.provider, m.requester]
        ends = await together(m, *(lambda node=node: ask(node, m, "settle_contract", body) for node in nodes))
        assert all(isinstance(end, Message) for end in ends), ends
        assert ends[0].receipt == ends[1].receipt == papers.recorded().receipt
        assert money(m) == (OPENING - QUARTER, OPENING + QUARTER, 0)
        paid = m.authority.ctx.store[LEDGER].by("contract_id", papers.id)
        assert [row.kind for row in paid] == ["escrow", "payment"]
        # asked once more, it is the same receipt, and nothing is written
        before = m.authority.ctx.store[LEDGER].count()
        assert (await ask(m.provider, m, "settle_contract", body)).receipt == ends[0].receipt
        assert m.authority.ctx.store[LEDGER].count() == before


@pytest.mark.parametrize("first", ["settle", "dispute"])
async def test_a_settlement_and_a_dispute_of_the_other_party_arrive_together(market: MarketOf, first: str) -> None:
    async with market() as m:
        papers = Papers(m)
        await papers.register()
        body = papers.to_settle(papers.result())
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "settle": lambda: ask(m.requester, m, "settle_contract", body),
            "dispute": lambda: ask(m.provider, m, "dispute_contract", DisputeContract(papers.id, "not this one")),
        }
        ends = dict(zip(order := sorted(calls, key=lambda name: name != first), await together(
            m, *(calls[name] for name in order)), strict=True))  # fmt: skip
        known = m.authority.ctx.store[DISPUTES].get(papers.id)
        if first == "settle":
            assert (papers.recorded().state, known) == ("settled", None)
            assert ends["dispute"].code == "already_settled"
            assert money(m) == (OPENING - QUARTER, OPENING + QUARTER, 0)
        else:
            assert known is not None
            assert (papers.recorded().state, known.decision) == ("disputed", "")
            assert ends["settle"].code == "disputed"
            assert money(m) == (OPENING - QUARTER, OPENING, QUARTER)


async def test_a_result_that_is_not_verified_opens_a_dispute_and_says_so_once(market: MarketOf) -> None:
    """The refusal and the dispute are one change: whoever asks again gets the same answer, and there is one dispute."""
    async with market() as m:
        papers = Papers(m)
        await papers.register()
        result = papers.result()
        body = SettleContract(papers.id, result, papers.verdict(result, "rejected"))
        ends = await together(
            m, lambda: ask(m.requester, m, "settle_contract", body),
            lambda: ask(m.requester, m, "settle_contract", body),
        )  # fmt: skip
        assert [end.code for end in ends] == ["disputed"] * 2
        known = m.authority.ctx.store[DISPUTES].one(papers.id)
        assert len(known.evidence) == 1
        assert known.evidence[0].documents == (result, body.verdict)
        assert papers.recorded().result == result
        assert money(m) == (OPENING - QUARTER, OPENING, QUARTER)


async def test_a_failed_job_and_its_refund_are_asked_for_by_both(market: MarketOf) -> None:
    async with market() as m:
        papers = Papers(m)
        await papers.register()
        body = SettleContract(papers.id, papers.result("failed", fault="provider", reason="provider_error"))
        ends = await together(
            m, lambda: ask(m.provider, m, "settle_contract", body), lambda: ask(m.requester, m, "settle_contract", body)
        )
        assert ends[0].receipt == ends[1].receipt
        assert ends[0].receipt.read(Receipt).outcome == "refunded"
        assert money(m) == (OPENING, OPENING, 0)


async def test_what_was_refused_leaves_no_trace_in_the_store(market: MarketOf) -> None:
    async with market() as m:
        papers, store = Papers(m), m.authority.ctx.store
        await papers.register()
        tables = (INBOX, EVENTS, LEDGER, ACCOUNTS, DISPUTES)
        before = {table.name: store[table].count() for table in tables}
        early = papers.to_settle(papers.result())
        for node, type_, body, code in (
            (m.provider, "settle_contract", early, "too_early"),
            (m.requester, "settle_contract", SettleContract(papers.id, papers.result()), "verdict_needed"),
            (m.requester, "settle_contract", SettleContract("bafknone", papers.result()), "no_contract"),
            (m.authority, "dispute_contract", DisputeContract(papers.id, "me too"), "no_contract"),
            (m.requester, "register_contract", RegisterContract(Papers(m, "200").contract), "insufficient_funds"),
        ):
            with pytest.raises(NunetError) as caught:
                await ask(node, m, type_, body)
            assert caught.value.code == code
        assert {table.name: store[table].count() for table in tables} == before


# -- disputes ----------------------------------------------------------------------------------------------------------


async def test_both_are_told_of_a_dispute_when_it_is_opened(market: MarketOf) -> None:
    async with market() as m:
        row = await through(m, job_id := await m.post(spec(60)), 4)
        with trio.fail_after(20):
            while m.job(job_id).state != "running":
                await trio.sleep(0.02)
        await ask(m.requester, m, "dispute_contract", DisputeContract(row.id, "it does nothing"))
        with trio.fail_after(20):
            while {record_of(node, job_id).state for node in (m.requester, m.provider)} != {"disputed"}:
                await trio.sleep(0.02)
        for node in (m.requester, m.provider):
            told = record_of(node, job_id).dispute
            assert told is not None
            assert (told.opened_by, told.reason) == (m.requester.identity.did, "it does nothing")


async def test_a_contract_that_is_in_dispute_is_not_invoked(market: MarketOf) -> None:
    """Else a requester disputes first, and has the work done under a contract that pays nothing."""
    async with market() as m:
        row = await through(m, job_id := await m.post(spec()), 3)
        await ask(m.requester, m, "dispute_contract", DisputeContract(row.id, "before it begins"))
        with trio.fail_after(20):
            while record_of(m.provider, job_id).state != "disputed":
                await trio.sleep(0.02)
        with pytest.raises(NunetError) as caught:
            await invoke.send_invocation(m.requester.ctx, row, row.spec)
        assert caught.value.code == "allocation_error"
        assert m.provider.ctx.store[ALLOCATIONS].count() == 0


async def test_a_dispute_is_told_by_the_contracts_own_database_alone(market: MarketOf) -> None:
    async with market() as m:
        row = await through(m, job_id := await m.post(spec()), 3)
        said = DisputeSummary(row.id, m.requester.identity.did, quantities.utc_now(), "so I say")
        with pytest.raises(NunetError) as caught:
            await m.requester.ctx.messenger.request(m.provider.identity.did, "dispute_opened", said, timeout=5)
        assert caught.value.code == "no_contract"
        assert record_of(m.provider, job_id).dispute is None


async def test_the_first_result_of_two_that_arrive_together_is_the_result(market: MarketOf) -> None:
    async with market() as m:
        papers = Papers(m)
        await papers.register()
        results = [papers.result(), papers.result(message="another one")]
        ends = await together(
            m, *(
                lambda r=r: ask(m.provider, m, "dispute_contract", DisputeContract(papers.id, "mine", (r,)))
                for r in results
            )
        )  # fmt: skip
        assert [len(end.evidence) for end in ends] == [1, 2]
        assert papers.recorded().result == results[0]
        assert m.authority.ctx.store[DISPUTES].count() == 1


@pytest.mark.parametrize("first", ["operator", "quorum"])
async def test_the_operator_and_a_quorum_decide_together(market: MarketOf, first: str) -> None:
    """One of them decides, and what the other one would have paid is not paid as well."""
    async with market() as m:
        papers = Papers(m, terms="reexecute")
        await papers.register()
        result = papers.result()
        await ask(m.provider, m, "dispute_contract", DisputeContract(papers.id, "mine", (result,)))
        verdict = papers.verdict(result, "verified", "reexecute")
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "operator": lambda: m.authority.contract_database.resolve(papers.id, "refund"),
            "quorum": lambda: ask(m.provider, m, "dispute_contract", DisputeContract(papers.id, "look", (verdict,))),
        }
        order = sorted(calls, key=lambda name: name != first)
        ends = await together(m, *(calls[name] for name in order))
        known = m.authority.ctx.store[DISPUTES].one(papers.id)
        assert isinstance(ends[1], NunetError)
        if first == "operator":
            assert (known.by, known.decision, ends[1].code) == ("operator", "refund", "already_settled")
            assert money(m) == (OPENING, OPENING, 0)
        else:
            assert (known.by, known.decision, ends[1].code) == ("quorum", "pay", "not_disputed")
            assert money(m) == (OPENING - QUARTER, OPENING + QUARTER, 0)


# -- time --------------------------------------------------------------------------------------------------------------


async def past_the_deadline(papers: Papers, window: float = 0) -> None:
    """Let the deadline of a contract have passed in the contract database's books, and so many seconds since."""
    at = quantities.format_time(quantities.now() - timedelta(seconds=window))
    past = msgspec.structs.replace(papers.recorded(), deadline=at, window_from=at)
    await papers.m.authority.ctx.store.change(lambda t: t[REGISTERED_CONTRACTS].put(past))


@pytest.mark.parametrize("first", ["settle", "refund"])
async def test_a_settlement_and_the_end_of_the_window_come_together(market: MarketOf, first: str) -> None:
    async with market() as m:
        papers = Papers(m)
        await papers.register()
        await past_the_deadline(papers, 601)
        body = papers.to_settle(papers.result())
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "settle": lambda: ask(m.provider, m, "settle_contract", body),
            "refund": m.authority.contract_database.refund_expired,
        }
        ends = await together(m, *(calls[name] for name in sorted(calls, key=lambda name: name != first)))
        receipt = papers.recorded().receipt
        assert receipt is not None
        outcome = receipt.read(Receipt).outcome
        # the node's own timer may have been there before either
        assert outcome == papers.recorded().state in REGISTERED.ends
        paid = QUARTER if outcome == "settled" else 0
        assert money(m) == (OPENING - paid, OPENING + paid, 0), ends
        settled = next(end for end in ends if isinstance(end, Message))
        assert settled.receipt == receipt


@asynccontextmanager
async def books_of(folder: Path) -> Any:
    """The authority's node on the books that it had, without the others."""
    async with open_node(folder / "authority", config(limits=short()), roles=("contract-database", "oracle")) as node:
        yield node


def short() -> LimitsConfig:
    return LimitsConfig(answer_timeout=5, heartbeat=1, settlement_window=600)


def at_another_time(monkeypatch: pytest.MonkeyPatch, **later: float) -> None:
    """Let every clock of this process be later by so much than it is."""
    real, shift = REAL_NOW, timedelta(**later)
    monkeypatch.setattr(quantities, "now", lambda: real() + shift)


REAL_NOW = quantities.now


async def test_the_contract_databases_own_absence_counts_against_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was away over the deadline and the window: when it is back the provider can settle, as if it had not been."""
    async with open_market(tmp_path) as m:
        papers = Papers(m)
        await papers.register()
        receipt = papers.to_settle(papers.result())
        provider = m.provider.identity.did
    at_another_time(monkeypatch, hours=3)
    async with books_of(tmp_path) as node:
        assert await node.contract_database.refund_expired() == []
        at_another_time(monkeypatch, hours=3, seconds=590)
        node.contract_database._refunding._seen = quantities.now()
        assert await node.contract_database.refund_expired() == []
        claim = read_claim(node.ctx.store[REGISTERED_CONTRACTS].one(papers.id), receipt)
        settling = node.contract_database._settling
        settled = await node.ctx.store.change(lambda t: settling.settle(t, receipt, provider, claim))
        assert settled.read(Receipt).paid == "0.25"


async def test_after_a_window_that_began_anew_the_deposit_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_market(tmp_path) as m:
        papers = Papers(m)
        await papers.register()
    at_another_time(monkeypatch, hours=3)
    async with books_of(tmp_path) as node:
        store, database = node.ctx.store, node.contract_database
        assert await database.refund_expired() == []
        with trio.fail_after(20):
            for seconds in range(0, 660, 60):
                # it is there all the time; its own timer may be the one that refunds
                at_another_time(monkeypatch, hours=3, seconds=seconds)
                await database.refund_expired()
        assert store[REGISTERED_CONTRACTS].one(papers.id).state == "refunded"
        assert total(store) == 0
        assert store[ACCOUNTS].one(papers.text.requester).balance == OPENING


async def test_a_short_absence_takes_nothing_from_who_waits_for_the_deposit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A contract database that is restarted again and again refunds all the same."""
    async with open_market(tmp_path) as m:
        papers = Papers(m)
        await papers.register()
        begins = papers.recorded().window_from
        assert begins == papers.text.terms.deadline
    end = quantities.parse_time(begins) + timedelta(seconds=600) - REAL_NOW()
    seconds = 0.0
    while seconds < end.total_seconds() + 1:
        seconds += 100
        at_another_time(monkeypatch, seconds=seconds)
        async with books_of(tmp_path) as node:
            await node.contract_database.refund_expired()
            record = node.ctx.store[REGISTERED_CONTRACTS].one(papers.id)
    assert (record.state, record.window_from) == ("refunded", begins)


async def test_contracts_of_version_0_1_have_their_whole_window(tmp_path: Path) -> None:
    """Their records do not say when it begins, and nobody knows when the contract database was there last."""
    async with open_market(tmp_path) as m:
        papers = Papers(m)
        await papers.register()

        def as_it_was(t: Transaction) -> None:
            t[PRESENCE].remove("contract-database")
            t[REGISTERED_CONTRACTS].put(msgspec.structs.replace(papers.recorded(), window_from=""))

        await m.authority.ctx.store.change(as_it_was)
    async with books_of(tmp_path) as node:
        assert await node.contract_database.refund_expired() == []
        record = node.ctx.store[REGISTERED_CONTRACTS].one(papers.id)
        assert (record.state, record.window_from) == ("proved", papers.text.terms.deadline)


async def test_a_clock_that_jumps_ahead_and_back_refunds_nothing_early_and_nothing_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_market(tmp_path) as m:
        papers = Papers(m)
        await papers.register()
        begins = papers.recorded().window_from
        database = m.authority.contract_database
        await database.refund_expired()
        at_another_time(monkeypatch, days=2)
        assert await database.refund_expired() == []
        assert papers.recorded().state == "proved"
        assert papers.recorded().window_from > begins
        at_another_time(monkeypatch)
        assert await database.refund_expired() == []
        assert papers.recorded().window_from == begins


async def test_a_contract_whose_oracle_runs_the_job_again_has_the_time_for_it(market: MarketOf) -> None:
    async with market() as m:
        papers = Papers(m, terms="reexecute")
        await papers.register()
        deadline = quantities.parse_time(papers.text.terms.deadline)
        assert quantities.parse_time(papers.recorded().window_from) == deadline + timedelta(seconds=2 * DURATION)


# -- how much is read --------------------------------------------------------------------------------------------------


def searched(store: Any, queries: list[str]) -> list[str]:
    """Return how SQLite would find the rows of queries."""
    plans = []
    for query in queries:
        if "registered_contracts" in query and query.startswith("SELECT"):
            plans += [row[3] for row in store.connection.execute("EXPLAIN QUERY PLAN " + query)]
    return plans


async def test_what_is_due_and_what_is_in_escrow_is_found_by_index(market: MarketOf) -> None:
    """The timer asks every other second, and anybody may ask for a statement: neither reads what it does not want."""
    async with market() as m:
        papers, store = Papers(m), m.authority.ctx.store
        await papers.register()
        await m.authority.contract_database.refund_expired()
        queries: list[str] = []
        store.connection.set_trace_callback(queries.append)
        try:
            await m.authority.contract_database.refund_expired()
            statement = await ask(m.requester, m, "ask_statement", AskStatement())
        finally:
            store.connection.set_trace_callback(None)
        assert statement.in_escrow == "0.25"
        plans = searched(store, queries)
        assert any("f_state=? AND f_window_from<?" in plan for plan in plans), plans
        assert any("f_requester=? AND f_state=?" in plan for plan in plans), plans
        assert not [plan for plan in plans if plan.startswith("SCAN")], plans


async def test_a_statement_has_the_latest_movements_in_their_order(market: MarketOf) -> None:
    async with market() as m:
        papers = [Papers(m, price) for price in ("1", "2", "3")]
        for one in papers:
            await one.register()
        body = papers[1].to_settle(papers[1].result())
        await ask(m.requester, m, "settle_contract", body)
        statement = await ask(m.requester, m, "ask_statement", AskStatement())
        assert [(row.kind, row.amount) for row in statement.entries] == [
            ("opening", "100"), ("escrow", "-1"), ("escrow", "-2"), ("escrow", "-3"),
        ]  # fmt: skip
        assert (statement.balance, statement.in_escrow) == ("94", "4")
        latest = await ask(m.requester, m, "ask_statement", AskStatement(2))
        assert [row.amount for row in latest.entries] == ["-2", "-3"]
        earned = await ask(m.provider, m, "ask_statement", AskStatement())
        assert [(row.kind, row.amount) for row in earned.entries] == [("opening", "100"), ("payment", "2")]


async def test_a_stranger_learns_nothing_of_a_contract(market: MarketOf) -> None:
    async with market() as m:
        papers = Papers(m)
        await papers.register()
        with pytest.raises(NunetError) as caught:
            await ask(m.authority, m, "check_contract", CheckContract(papers.id))
        assert caught.value.code == "no_contract"
