"""Who must have verified the provider: a statement counts that its verifier's key signed, about this very node."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.config import KycConfig
from nunet_cli.errors import ContractError, NoBidError, UsageError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.matching.compare import compare
from nunet_cli.network.identity import Identity, new_identity
from nunet_cli.node import kyc
from nunet_cli.node.onboarding import OnboardOptions
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import bid, contract, match, request
from nunet_cli.records.bids import BIDS, CapabilityComparator
from nunet_cli.records.capability import Capability
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.documents import make_document
from nunet_cli.records.jobs import JOBS
from nunet_cli.records.kyc import VERIFIER, Kyc, KycStatement
from tests.conftest import Market, config, open_market

MarketOf = Callable[..., Any]
BANK, FORGER = new_identity(), new_identity()
ACME = config(kyc=KycConfig({"acme-bank": BANK.did}))


def spec(**fields: Any) -> str:
    body = {
        "name": "test", "executor": {"type": "process", "command": ["true"]}, "price": "1", "kycs": ["acme-bank"],
        "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}, **fields,
    }  # fmt: skip
    return json.dumps(body)


def at(**delta: float) -> str:
    return quantities.format_time(quantities.now() + timedelta(**delta))


def statement(subject: str, signer: Identity = BANK, *, role: str = VERIFIER, **fields: Any) -> Kyc:
    """Make a statement as `nunet registry attest` does, or one that is wrong in one thing."""
    said = {"name": "acme-bank", "issued_at": at(hours=-1), "expires_at": at(days=1), **fields}
    document = make_document(KycStatement(v=1, subject=subject, **said)).sign(signer, role)
    return Kyc("acme-bank", signer.did, document.content, document.signatures[0].signature)


async def offer(m: Market, *kycs: Kyc | str) -> None:
    """Let the provider offer statements without looking at them, as a liar would."""
    registered = m.provider.get_registered_capability()
    await m.provider.accounting.set_registered_capability(structs.replace(registered, kycs=kycs), None)


def bid_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the provider bid whatever it could not show."""

    def lenient(required: Capability, *arguments: Any, **named: Any) -> Any:
        return compare(structs.replace(required, kycs=()), *arguments, **named)

    monkeypatch.setattr(bid, "compare", lenient)


def changed_byte(kyc: Kyc) -> Kyc:
    return structs.replace(kyc, statement=kyc.statement.replace('"v":1', '"v": 1'))


WRONG: list[tuple[str, Callable[[str], Kyc | str], str]] = [
    ("a bare name", lambda did: "acme-bank", "no statement of acme-bank"),
    ("no text", lambda did: Kyc("acme-bank", BANK.did), "is not signed by that key"),
    ("of another node", lambda did: statement(FORGER.did), "is about another node"),
    ("expired", lambda did: statement(did, expires_at=at(seconds=-1)), "expired on"),
    ("of tomorrow", lambda did: statement(did, issued_at=at(days=1), expires_at=""), "counts from"),
    ("by another key", lambda did: statement(did, FORGER), "no statement of acme-bank"),
    ("by another key that says it is the bank's", lambda did: structs.replace(statement(did, FORGER), verifier=BANK.did),
     "is not signed by that key"),
    ("a changed byte", lambda did: changed_byte(statement(did)), "is not signed by that key"),
    ("under another name", lambda did: statement(did, name="acme-shop"), "is made as acme-shop"),
    ("signed for something else", lambda did: statement(did, role="provider"), "is not signed by that key"),
    ("no statement at all", lambda did: other_document(did), "cannot be read"),
]  # fmt: skip


def other_document(did: str) -> Kyc:
    document = make_document({"subject": did}).sign(BANK, VERIFIER)
    return Kyc("acme-bank", BANK.did, document.content, document.signatures[0].signature)


@pytest.mark.parametrize("lies", [False, True], ids=["honest", "liar"])
@pytest.mark.parametrize(("what", "made", "reason"), WRONG, ids=[what for what, _, _ in WRONG])
async def test_what_does_not_prove_it_never_gets_the_job(
    what: str, made: Callable[[str], Kyc | str], reason: str, lies: bool, market: MarketOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if lies:
        bid_for_everything(monkeypatch)
    async with market(requester=ACME) as m:
        await offer(m, made(m.provider.identity.did))
        job_id = await m.post(spec())
        said = "1 without the statements" if lies else "1 declined"
        with pytest.raises(NoBidError, match=said):
            await orchestrate_job(m.requester.ctx, job_id)
        row = m.requester.ctx.store[BIDS].first("job_id", job_id)
        assert row is not None
        (why,) = row.reasons
        assert why.startswith("kycs: ")
        assert reason in why
        assert row.verdict == ("unverified" if lies else "declined")
        assert m.requester.ctx.store[CONTRACTS].count() == 0


async def test_a_good_statement_among_others_gets_the_job(market: MarketOf) -> None:
    async with market(requester=ACME) as m:
        did = m.provider.identity.did
        await offer(m, "acme-bank", statement(did, expires_at=at(seconds=-1)), statement(did), statement(did, FORGER))
        job = await orchestrate_job(m.requester.ctx, await m.post(spec()))
        assert job.state == "settled"


async def test_a_statement_that_runs_out_before_the_contract_counts_no_more(market: MarketOf) -> None:
    async with market(requester=config(kyc=KycConfig({"acme-bank": BANK.did}))) as m:
        await offer(m, statement(m.provider.identity.did))
        job_id = await m.post(spec())
        for stage in (match.match, request.request):
            await stage(m.requester.ctx, job_id)
        row = m.requester.ctx.store[BIDS].one(m.job(job_id).bid_id)
        late = structs.replace(row.offer.offer, kycs=(statement(m.provider.identity.did, expires_at=at()),))
        changed = structs.replace(row, bid=structs.replace(row.offer, offer=late))
        await m.requester.ctx.store.change(lambda t: t[BIDS].put(changed))
        with pytest.raises(ContractError, match="expired on") as caught:
            await contract.close_contract(m.requester.ctx, job_id)
        # so that the next one on the shortlist is asked
        assert caught.value.code == contract.PROVIDER_REFUSED
        assert m.requester.ctx.store[CONTRACTS].count() == 0


async def test_of_two_providers_the_one_that_can_show_it_is_taken(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    bid_for_everything(monkeypatch)
    async with market(requester=ACME, price="0.1") as m, open_node(tmp_path / "second", config()) as second:
        await second.onboard(OnboardOptions(price="0.9", kycs=(statement(second.identity.did),)), None)
        for node in (m.authority, m.requester):
            await second.add_peer(node.ctx.transport.describe())
        await offer(m, statement(m.provider.identity.did, FORGER))
        job = await orchestrate_job(m.requester.ctx, await m.post(spec(time={"max_duration": 60, "deadline": "1m"})))
        row = m.requester.ctx.store[BIDS].one(job.bid_id)
        assert (job.state, row.did) == ("settled", second.identity.did)


async def test_a_verifier_without_a_key_is_refused_when_the_job_is_posted(market: MarketOf) -> None:
    async with market() as m:
        child = {"name": "one", **{k: v for k, v in json.loads(spec(kycs=["acme bank"])).items() if k != "name"}}
        for text, key in ((spec(), "kyc.verifiers.acme-bank"),
                          (json.dumps({"name": "all", "children": [child]}), "'kyc.verifiers.acme bank'")):  # fmt: skip
            with pytest.raises(UsageError) as caught:
                await m.post(text)
            assert caught.value.code == "no_verifier"
            assert f"nunet config set {key} DID" in caught.value.hint
        assert m.requester.ctx.store[JOBS].count() == 0


async def test_a_key_that_is_gone_when_bids_are_asked_for_is_no_key(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    bid_for_everything(monkeypatch)
    async with market(requester=config(kyc=KycConfig({"acme-bank": BANK.did}))) as m:
        await offer(m, "acme-bank", statement(m.provider.identity.did))
        job_id = await m.post(spec())
        m.requester.ctx.config.kyc.verifiers.clear()
        with pytest.raises(NoBidError, match="1 without the statements"):
            await match.match(m.requester.ctx, job_id)


@pytest.mark.parametrize("proves", [False, True])
async def test_a_requesters_expressions_see_no_name_that_was_only_claimed(proves: bool, market: MarketOf) -> None:
    async with market(requester=ACME) as m:
        await offer(m, statement(m.provider.identity.did) if proves else "acme-bank")
        rules = CapabilityComparator(bid_rules=("'acme-bank' in node.kycs",))
        await m.requester.accounting.set_preferences(rules)
        job_id = await m.post(spec(kycs=[]))
        if proves:
            assert (await match.match(m.requester.ctx, job_id)).state == "matched"
        else:
            with pytest.raises(NoBidError, match="against the preferences"):
                await match.match(m.requester.ctx, job_id)


async def test_a_statement_is_made_by_any_node_and_taken_by_the_one_it_is_about(tmp_path: Any) -> None:
    async with open_market(tmp_path) as m:
        provider = m.provider.identity.did
        document = await kyc.attest(m.requester.ctx, provider, "acme-bank", "90d")
        mine = kyc.read_statement(msgspec.json.encode(document))
        assert (mine.name, mine.verifier) == ("acme-bank", m.requester.identity.did)
        assert mine.fault(provider, quantities.utc_now()) == ""
        assert "expired" in mine.fault(provider, at(days=91))
        await m.provider.onboard(OnboardOptions(kycs=(mine,)), None)
        # what no option changes stays
        await m.provider.onboard(OnboardOptions(price="0.3"), None)
        assert m.provider.get_registered_capability().kycs == (mine,)
        for_ever = kyc.read_statement(msgspec.json.encode(await kyc.attest(m.requester.ctx, provider, "x", "forever")))
        assert for_ever.fault(provider, at(days=36500)) == ""
        with pytest.raises(UsageError, match="is about another node"):
            await m.requester.onboard(OnboardOptions(kycs=(mine,)), None)
        with pytest.raises(UsageError, match="a name alone counts for nothing"):
            await m.provider.onboard(OnboardOptions(kycs=("acme-bank",)), None)
        for name, valid in (("", "1d"), ("x" * 201, "1d"), ("a\tb", "1d"), ("acme", "soon"), ("acme", "99999999d")):
            with pytest.raises(UsageError):
                await kyc.attest(m.requester.ctx, provider, name, valid)


@pytest.mark.parametrize("text", [b"", b"\xff", b"{}", b'{"content": "{}", "signatures": []}', b"[1]"])
def test_what_is_no_statement_is_refused(text: bytes) -> None:
    with pytest.raises(UsageError, match="no statement"):
        kyc.read_statement(text)
