"""What a provider, a contract database and an oracle refuse, each in a process of its own, and that it harms them not.

The asking side is in the test's process: a real node that sends what an honest one never would.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from nunet_cli import quantities
from nunet_cli.errors import NunetError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.node.parts import Parts
from nunet_cli.orchestrator import contract as closure
from nunet_cli.orchestrator import execute, match, outputs, request, settle
from nunet_cli.orchestrator.changes import find_job
from nunet_cli.records.bids import BID_REQUESTS, BIDS
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import Contract, JobVerificationResult, deadline_of, sign_by_of
from nunet_cli.records.disputes import DisputeContract
from nunet_cli.records.documents import Document, make_document
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.jobs import Job
from nunet_cli.records.messages import (
    AskStatement,
    CheckContract,
    ContractProposal,
    Invocation,
    JobCancel,
    JobLogs,
    JobRequest,
    JobSync,
    JobVerification,
    RegisterContract,
    SettleContract,
)
from nunet_cli.records.results import Result
from tests.conftest import Market, config, nunet

FAR = "2999-01-01T00:00:00.000Z"


@dataclass
class Town:
    """Two processes, provider and authority, by their homes and DIDs; and a requester and a stranger in this process."""

    market: Market
    stranger: Node
    homes: dict[str, Path]
    did: dict[str, str]

    @property
    def ctx(self) -> Parts:
        return self.market.requester.ctx

    async def typed(self, who: str, *arguments: str) -> Any:
        """Return what a command prints, typed at the provider's or the authority's machine."""
        done = await trio.to_thread.run_sync(lambda: nunet(*arguments, "--output", "json", home=self.homes[who]))
        return json.loads(done.stdout)

    async def refused(self, who: str, type_: str, body: Any, code: str, sender: Node | None = None) -> str:
        """Send a request, and return the message of the refusal, whose code must be the one given."""
        messenger = (sender or self.market.requester).ctx.messenger
        with pytest.raises(NunetError) as caught:
            await messenger.request(self.did[who], type_, body, timeout=5)
        assert caught.value.code == code, (caught.value.code, caught.value.message)
        return caught.value.message


@asynccontextmanager
async def town(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    homes = {"authority": folder / "a", "provider": folder / "p"}

    async def typed(home: Path, *arguments: str) -> str:
        return (await trio.to_thread.run_sync(lambda: nunet(*arguments, home=home))).stdout

    monkeypatch.setenv("NUNET_NETWORK_DISCOVERY", "false")
    monkeypatch.setenv("NUNET_EXECUTOR_PROCESS_FOREIGN", "unsandboxed")
    try:
        await typed(homes["authority"], "node", "start", "--role", "contract-database", "--role", "oracle")
        authority = json.loads(await typed(homes["authority"], "whoami", "--output", "json"))
        monkeypatch.setenv("NUNET_NETWORK_PEERS", authority["address"])
        await typed(homes["provider"], "onboard", "--cpu", "1", "--memory", "1GiB", "--disk", "1GiB", "--price", "0.25",
                    "--no-benchmark")  # fmt: skip
        await typed(homes["provider"], "node", "start")
        provider = json.loads(await typed(homes["provider"], "whoami", "--output", "json"))
        async with open_node(folder / "r", config()) as requester, open_node(folder / "s", config()) as stranger:
            for node in (requester, stranger):
                await node.add_peer(authority["address"])
                await node.add_peer(provider["address"])
            with trio.fail_after(30):
                while len(requester.ctx.transport.connected()) < 2 or len(stranger.ctx.transport.connected()) < 2:
                    await requester.ctx.transport.wait_change(0.1)
            market = Market(requester, requester, requester, folder)
            yield Town(market, stranger, homes, {"authority": authority["did"], "provider": provider["did"]})
    finally:
        with trio.CancelScope(shield=True):
            for home in homes.values():
                await trio.to_thread.run_sync(lambda home=home: nunet("node", "stop", home=home, check=False))


def job(command: str = "true", **fields: Any) -> str:
    body = {"name": "test", "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "1",
            "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}}  # fmt: skip
    return json.dumps({**body, **fields})


def altered(document: Document, node: Node, role: str, **fields: Any) -> Document:
    """Return a document with other terms, signed by one party."""
    content = document.read(Contract)
    names = {name: value for name, value in fields.items() if name in Contract.__struct_fields__}
    terms = msgspec.structs.replace(content.terms, **{k: v for k, v in fields.items() if k not in names})
    return make_document(msgspec.structs.replace(content, **{"terms": terms, **names})).sign(node.identity, role)


def made_at(when: datetime, duration: int = 3600) -> dict[str, str]:
    """Return the times of a contract that is made at a moment."""
    at = quantities.format_time(when)
    return {"created_at": at, "deadline": deadline_of(at, duration), "sign_by": sign_by_of(at)}


async def test_what_a_provider_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with town(tmp_path, monkeypatch) as there:
        ctx, me, stranger = there.ctx, there.market.requester, there.stranger
        job_id = await there.market.post(job())
        await match.match(ctx, job_id)
        bid_request = ctx.store[BID_REQUESTS].one(find_job(ctx.store, job_id).bid_request_id).request
        bid_id = find_job(ctx.store, job_id).shortlist[0]

        # stage 2: a request in somebody else's name
        await there.refused("provider", "bid_request", bid_request, "wrong_sender", stranger)
        # stage 3: a bid that was never made, one that was made to somebody else, one for another job
        await there.refused("provider", "job_request", JobRequest("bid-none", bid_request), "no_bid_here")
        await there.refused("provider", "job_request", JobRequest(bid_id, bid_request), "no_bid_here", stranger)
        other = msgspec.structs.replace(bid_request, spec_cid=content_id(b"other"))
        await there.refused("provider", "job_request", JobRequest(bid_id, other), "wrong_bid")

        # stage 4: contracts that are not the bid's
        await request.request(ctx, job_id)
        bid = ctx.store[BIDS].one(bid_id)
        plain_contract = closure.generate_job_contract(
            ctx, find_job(ctx.store, job_id), bid, there.did["authority"], there.did["authority"]
        )
        proposals: list[tuple[dict[str, Any], str]] = [
            ({"deposit": "0.01"}, "terms_differ"), ({"max_duration": 10**6}, "terms_differ"),
            ({"spec_cid": content_id(b"other")}, "terms_differ"), ({"payment": "volunteer"}, "terms_differ"),
            ({"provider": stranger.identity.did}, "terms_differ"), ({"requester": stranger.identity.did}, "terms_differ"),
            ({"deadline": "2001-01-01T00:00:00.000Z"}, "terms_differ"), ({"deadline": FAR}, "terms_differ"),
            ({"bid_id": "bid-none"}, "no_bid_here"), ({"oracle": stranger.identity.did}, "untrusted_role"),
            ({"contract_database": me.identity.did}, "untrusted_role"),
        ]  # fmt: skip
        for fields, code in proposals:
            proposal = ContractProposal(altered(plain_contract, me, "requester", **fields))
            await there.refused("provider", "contract_proposal", proposal, code)
        row = await closure.close_contract(ctx, job_id)
        held = ctx.store[CONTRACTS].one(row.contract_id)
        # one contract for a bid, made now, and not in another's time
        stale = quantities.parse_time("2026-01-01T00:00:00.000Z")
        soon = quantities.now() + timedelta(minutes=5)
        for when, code in ((quantities.now(), "bid_used"), (stale, "bad_times"), (soon, "bad_times")):
            again = ContractProposal(altered(plain_contract, me, "requester", **made_at(when)))
            await there.refused("provider", "contract_proposal", again, code)

        # stage 5: no contract with the sender, a forged proof, another job than the contract's
        document, proof, spec = held.document, held.proof, find_job(ctx.store, job_id).spec
        assert proof is not None
        order = Invocation(spec, document, proof)
        await there.refused("provider", "invocation", order, "no_contract", stranger)
        forged = make_document(msgspec.json.decode(proof.content)).sign(me.identity, "contract-database")
        await there.refused("provider", "invocation", Invocation(spec, document, forged), "bad_signature")
        await there.refused("provider", "invocation", Invocation(job("echo other"), document, proof), "wrong_spec")

        # stage 6: what concerns others is told to nobody else, and stopped by nobody else
        for type_, body in (
            ("job_logs", JobLogs(held.id, "stdout", 0, 0)), ("job_sync", JobSync(held.id)),
            ("job_cancel", JobCancel("", held.id)),
        ):  # fmt: skip
            await there.refused("provider", type_, body, "no_contract", stranger)

        # nothing of all that cost the provider anything: one contract, no allocation, and the honest job still runs
        with trio.fail_after(20):
            # without an invocation, the proof is told within seconds
            while [item["state"] for item in await there.typed("provider", "contract", "list")] != ["proved"]:
                await trio.sleep(0.1)
        assert await there.typed("provider", "allocation", "list") == []
        assert (await orchestrate_job(ctx, job_id)).state == "settled"
        assert (await there.typed("provider", "account", "balance"))["balance"] == "100.25"


async def test_what_a_contract_database_and_an_oracle_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with town(tmp_path, monkeypatch) as there:
        ctx, me, stranger = there.ctx, there.market.requester, there.stranger
        # a second pair of hands, so that both parties of a contract are the test's to play
        me_too = stranger
        job_id = await there.market.post(job("echo done > out", outputs=[{"path": "out"}]))
        for stage in (match.match, request.request, closure.close_contract):
            await stage(ctx, job_id)
        held = ctx.store[CONTRACTS].one(find_job(ctx.store, job_id).contract_id)
        document = held.document

        # stage 4: registration
        def both(**fields: Any) -> RegisterContract:
            named = {"provider": me_too.identity.did, "bid_id": "bid-two", **fields}
            return RegisterContract(altered(document, me, "requester", **named).sign(me_too.identity, "provider"))

        await there.refused("authority", "register_contract", both(provider=held.provider, requester=held.provider),
                            "not_a_party")  # fmt: skip
        one_signature = RegisterContract(altered(document, me, "requester", provider=me_too.identity.did))
        await there.refused("authority", "register_contract", one_signature, "bad_signature")
        cases: list[tuple[dict[str, Any], str]] = [
            ({"contract_database": me.identity.did}, "wrong_database"), ({"deposit": "0.01"}, "bad_deposit"),
            ({"payment": "volunteer"}, "bad_payment"), ({"deadline": "2001-01-01T00:00:00.000Z"}, "bad_deadline"),
            ({"deadline": FAR}, "bad_deadline"), (made_at(quantities.parse_time("2026-01-01T00:00:00.000Z")), "signature_lapsed"),
            (made_at(quantities.now() + timedelta(minutes=5)), "bad_times"),
            ({"price": {"currency": "NTX", "amount": "500", "time_unit": ""}, "deposit": "500"}, "insufficient_funds"),
        ]  # fmt: skip
        for fields, code in cases:
            if "price" in fields:
                fields["price"] = type(document.read(Contract).terms.price)(amount="500")
            await there.refused("authority", "register_contract", both(**fields), code)
        padded = Document(both().contract.content.replace(",", ", ", 1))
        padded = padded.sign(me.identity, "requester").sign(me_too.identity, "provider")
        await there.refused("authority", "register_contract", RegisterContract(padded), "bad_document")
        alone = altered(document, me, "requester", provider=me.identity.did).sign(me.identity, "provider")
        await there.refused("authority", "register_contract", RegisterContract(alone), "self_contract")
        await there.typed(
            "authority",
            "registry",
            "revoke",
            me_too.identity.did,
        )
        said = await there.refused("authority", "register_contract", both(), "not_verified_entity")
        assert "revoked" in said

        # stage 7: settlement, by others, without or with a forged verdict, with another's result
        await there.refused("authority", "check_contract", CheckContract(held.id), "no_contract", stranger)
        completed = await _completed(there, job_id)
        held = ctx.store[CONTRACTS].one(held.id)
        result, proof = held.result, held.proof
        assert result is not None
        assert proof is not None
        await there.refused("authority", "settle_contract", SettleContract(held.id, result, None), "no_contract",
                            stranger)  # fmt: skip
        await there.refused("authority", "settle_contract", SettleContract(held.id, result, None), "verdict_needed")
        mine = make_document(result.read(Result)).sign(me.identity, "provider")
        await there.refused("authority", "settle_contract", SettleContract(held.id, mine, None), "bad_signature")
        forged = make_document(
            JobVerificationResult(1, held.id, result.cid, there.did["authority"], "verified", (), FAR)
        ).sign(me.identity, "oracle")
        await there.refused("authority", "settle_contract", SettleContract(held.id, result, forged), "bad_signature")

        # the oracle: another oracle's contract, a stranger's question, and a result that was changed
        question = JobVerification(held.spec, document, proof, result)
        await there.refused("authority", "job_verification", question, "not_a_party", stranger)
        elsewhere = altered(document, me, "requester", oracle=stranger.identity.did)
        other = msgspec.structs.replace(question, contract=elsewhere)
        await there.refused("authority", "job_verification", other, "wrong_oracle")
        unknown = DisputeContract("bafknone", "mine", ())
        await there.refused("authority", "dispute_contract", unknown, "no_contract", stranger)

        # none of it moved a coin: the honest job is settled, and the books and the log are whole
        assert completed.state == "completed"
        assert (await settle.settle(ctx, job_id)).state == "settled"
        await there.refused("authority", "dispute_contract", DisputeContract(held.id, "too late", ()),
                            "already_settled")  # fmt: skip
        audit = await there.typed("authority", "registry", "audit")
        assert (audit["total"], audit["log_problem"]) == ("0", "")
        assert (await there.typed("provider", "account", "balance"))["balance"] == "100.25"
        answer = await stranger.ctx.messenger.request(
            there.did["authority"], "ask_statement", AskStatement(), timeout=5
        )
        assert answer.body.balance == "0"


async def _completed(there: Town, job_id: str) -> Job:
    from nunet_cli.orchestrator import invoke

    await invoke.invoke(there.ctx, job_id)
    await execute.follow(there.ctx, job_id)
    return await outputs.collect_outputs(there.ctx, job_id)
