"""Every way to say no, stage by stage, on the wire between two processes, and what the user sees of it.

The user's node is a process of its own, driven by the command line. The other side runs in the test's process: real
nodes, of which one behaviour is changed to refuse, to lie or to say nothing.
"""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from nunet_cli import quantities
from nunet_cli.config import ExecutorConfig, ProcessConfig
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError
from nunet_cli.executor.base import ExecutorError
from nunet_cli.network.data.sealed import SealedStream
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.records.bids import BIDS, CapabilityComparator
from nunet_cli.records.books import ACCOUNTS
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import Contract, Proof, Receipt
from nunet_cli.records.documents import make_document
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.jobs import JOBS
from nunet_cli.records.messages import (
    AllocationStartSuccess,
    ContractAgreement,
    DeclineJobRequest,
    JobCompleted,
    Message,
    ProofOfContract,
    TimeoutJobRequest,
)
from nunet_cli.records.messaging import Outgoing
from nunet_cli.records.offers import OnboardOptions
from nunet_cli.records.results import OutputFile, Result
from tests.conftest import config, nunet

PROVIDER, AUTHORITY = "provider", "authority"
OFFER = OnboardOptions(price="0.25", cpu=1, memory="512MiB", disk="512MiB", max_duration="1d")


@dataclass
class Others:
    """The nodes of the other side, and the user's home."""

    provider: Node
    authority: Node
    home: Path

    async def user(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Type a command as the user; return what is printed to standard output and standard error."""
        done = await trio.to_thread.run_sync(lambda: nunet(*arguments, home=self.home, check=False))
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout, done.stderr

    async def show(self, *arguments: str) -> Any:
        return json.loads((await self.user(*arguments, "--output", "json"))[0])

    def node(self, name: str) -> Node:
        return self.provider if name == PROVIDER else self.authority


@asynccontextmanager
async def others(folder: Path, monkeypatch: pytest.MonkeyPatch, **provider: Any) -> AsyncIterator[Others]:
    async with (
        open_node(folder / "a", config(), roles=("contract-database", "oracle")) as a,
        open_node(folder / "p", config(**provider)) as p,
    ):
        await p.onboard(OFFER, None)
        await p.add_peer(a.ctx.transport.describe())
        known = ",".join(node.ctx.transport.describe() for node in (a, p))
        for name, value in {
            "NETWORK_PEERS": known, "NETWORK_DISCOVERY": "false", "DEFAULT_SEARCH_TIMEOUT": "3s",
            "LIMITS_ANSWER_TIMEOUT": "2s", "LIMITS_HEARTBEAT": "1s", "KYC_VERIFIERS": f"acme-bank={a.identity.did}",
        }.items():  # fmt: skip
            monkeypatch.setenv(f"NUNET_{name}", value)
        yield Others(p, a, folder / "r")


async def told(node: Node, said: Any) -> Any:
    """Return the answer that a behaviour gives, with what it changes done."""
    return await node.ctx.store.change(said) if callable(said) else said


def says(node: Node, type_: str, change: Callable[[Any, Any], Awaitable[Any]]) -> None:
    """Change what a node answers to a message type: `change` gets the message and what the node would say."""
    known = node.ctx.messenger._types[type_]

    async def behaviour(message: Any) -> Any:
        assert known.behaviour is not None
        return await change(message, await told(node, await known.behaviour(message)))

    node.ctx.messenger.register(type_, known.kind, behaviour)


Prepare = Callable[[Others], Awaitable[None]]


def instead(name: str, type_: str, answer: Callable[[Any], tuple[str, Any]]) -> Prepare:
    """Return what makes a node give another answer, without doing what was asked."""

    async def prepare(there: Others) -> None:
        known = there.node(name).ctx.messenger._types[type_]

        async def behaviour(message: Any) -> Any:
            return answer(message)

        there.node(name).ctx.messenger.register(type_, known.kind, behaviour)

    return prepare


def after(name: str, type_: str, answer: Callable[[Node, Any, Any], Any]) -> Prepare:
    """Return what makes a node do what was asked and say something else."""

    async def prepare(there: Others) -> None:
        async def change(message: Any, said: Any) -> Any:
            return answer(there.node(name), message, said)

        says(there.node(name), type_, change)

    return prepare


def raises(name: str, type_: str, error: Exception) -> Prepare:
    """Return what makes a node answer with an error."""

    def refuse(_: Any) -> Any:
        raise error

    return instead(name, type_, refuse)


def silent(name: str, type_: str) -> Prepare:
    """Return what makes a node never answer."""

    async def prepare(there: Others) -> None:
        known = there.node(name).ctx.messenger._types[type_]

        async def behaviour(_: Any) -> Any:
            await trio.sleep_forever()

        there.node(name).ctx.messenger.register(type_, known.kind, behaviour)

    return prepare


def prefers(**fields: Any) -> Prepare:
    async def prepare(there: Others) -> None:
        await there.provider.accounting.set_preferences(CapabilityComparator(**fields))

    return prepare


def broken_executor(error: Exception) -> Prepare:
    async def prepare(there: Others) -> None:
        async def start(_: Any) -> str:
            raise error

        there.provider.ctx.executors["process"].start = start  # type: ignore[method-assign]

    return prepare


async def nothing(_: Others) -> None:
    """The other side is as it should be: the job itself is refused."""


async def offboarded(there: Others) -> None:
    await there.provider.offboard(force=True)


async def no_authority(there: Others) -> None:
    """Nobody says to be a contract database."""
    os.environ["NUNET_NETWORK_PEERS"] = there.provider.ctx.transport.describe()


async def sold_out(there: Others) -> None:
    full = there.provider.accounting.get_available_capability().resources
    far = "2999-01-01T00:00:00.000Z"
    await there.provider.ctx.store.change(
        lambda t: there.provider.accounting.lock_capability(t, "other", "other", full, far)
    )


async def sold_out_after_the_bid(there: Others) -> None:
    async def change(_: Any, said: Any) -> Any:
        if not there.provider.get_locked_capabilities():
            await sold_out(there)
        return said

    says(there.provider, "bid_request", change)


async def provider_not_verified(there: Others) -> None:
    assert there.authority.contract_database is not None
    await there.authority.contract_database.registry.revoke(there.provider.identity.did)


async def user_not_verified(there: Others) -> None:
    assert there.authority.contract_database is not None
    did = (await there.show("whoami"))["did"]
    await there.authority.contract_database.registry.revoke(did)
    # it may have been asked a moment ago
    there.provider.ctx.verified.forget(there.authority.identity.did, did)


async def bids_go_bad(there: Others) -> None:
    """What was offered is taken back by the time the contract is there."""

    async def change(_: Any, said: Any) -> Any:
        def take_back(t: Transaction) -> None:
            for row in list(t[BIDS].all()):
                gone = msgspec.structs.replace(row.offer, timeout="2001-01-01T00:00:00.000Z")
                t[BIDS].put(msgspec.structs.replace(row, bid=gone, offered_until=""))
                there.provider.accounting.release(t, row.id)

        await there.provider.ctx.store.change(take_back)
        return said

    says(there.provider, "job_request", change)


async def another_oracle_trusted(there: Others) -> None:
    ctx = there.provider.ctx
    ctx.roles.config = msgspec.structs.replace(ctx.config, oracle=there.provider.identity.did)


async def contract_expires_first(there: Others) -> None:
    """The provider's clock says that the contract's deadline has passed when the invocation comes."""

    async def prepare(message: Any) -> Any:
        raise ContractError(
            f"the contract's deadline {message.body.contract.read(Contract).terms.deadline} has passed",
            code="contract_expired",
        )

    there.provider.ctx.messenger.register("invocation", there.provider.ctx.messenger._types["invocation"].kind, prepare)


async def lock_is_lost(there: Others) -> None:
    """What was locked is gone, and the machine is full, when the invocation comes."""
    known = there.provider.ctx.messenger._types["invocation"]
    assert known.behaviour is not None
    behaviour = known.behaviour

    async def late(message: Any) -> Any:
        def release(t: Transaction) -> None:
            for row in t[BIDS].all():
                there.provider.accounting.release(t, row.id)

        await there.provider.ctx.store.change(release)
        await sold_out(there)
        return await behaviour(message)

    there.provider.ctx.messenger.register("invocation", known.kind, late)


def other_bid(node: Node, _: Any, said: Any) -> Any:
    type_, bid = said
    return type_, msgspec.structs.replace(bid, price=msgspec.structs.replace(bid.price, amount="0.9"))


def other_terms(node: Node, _: Any, said: Any) -> Any:
    type_, bid = said
    return type_, msgspec.structs.replace(bid, spec_cid="baaaaaaaaaaaaaaa")


def unlocked_bid(node: Node, _: Any, said: Any) -> Any:
    type_, bid = said
    return type_, msgspec.structs.replace(bid, resources_locked_until_timeout=False)


def bid_for_another_job(node: Node, _: Any, said: Any) -> Any:
    type_, bid = said
    return type_, msgspec.structs.replace(bid, spec_cid=content_id(b"another job"))


def another_contract(node: Node, message: Any, _: Any) -> Any:
    contract = message.body.contract.read(Contract)
    terms = msgspec.structs.replace(contract.terms, deposit="0.5")
    changed = make_document(msgspec.structs.replace(contract, terms=terms))
    return "contract_agreement", ContractAgreement(changed.sign(node.identity, "provider"))


def unsigned_contract(node: Node, message: Any, _: Any) -> Any:
    return "contract_agreement", ContractAgreement(message.body.contract)


def proof_of_another(node: Node, _: Any, said: Any) -> Any:
    proof = said[1].proof.read(Proof)
    other = make_document(msgspec.structs.replace(proof, contract_id=content_id(b"another contract")))
    return "proof_of_contract", ProofOfContract(other.sign(node.identity, "contract-database"), said[1].balance)


async def receipt_of_another(there: Others) -> None:
    did = there.authority.identity.did
    receipt = Receipt(
        1, content_id(b"another contract"), did, "settled", did, there.provider.identity.did, "0.25", "0", "paid",
        "2026-01-01T00:00:00.000Z", content_id(b""),
    )  # fmt: skip
    signed = make_document(receipt).sign(there.authority.identity, "contract-database")
    await instead(
        AUTHORITY, "settle_contract", lambda asked: ("message", Message(asked.body.contract_id, "paid", signed, "1"))
    )(there)


def another_allocation(node: Node, _: Any, said: Any) -> Any:
    return "allocation_start_success", AllocationStartSuccess("bafkother", said[1].allocation_id, "starting")


def lying_results(change: Callable[[Result], Result], role: str = "provider") -> Prepare:
    """Return what makes the provider sign another result than the true one, wherever it tells of it."""

    async def prepare(there: Others) -> None:
        messenger = there.provider.ctx.messenger
        honest, known = messenger.outbox.outgoing, messenger._types["job_sync"]

        def lie(document: Any) -> Any:
            return make_document(change(document.read(Result))).sign(there.provider.identity, role)

        def outgoing(to: str, type_: str, body: Any, *, lifetime: float) -> Outgoing:
            if isinstance(body, JobCompleted):
                body = msgspec.structs.replace(body, result=lie(body.result))
            return honest(to, type_, body, lifetime=lifetime)

        async def on_sync(message: Any) -> Any:
            assert known.behaviour is not None
            said = await told(there.provider, await known.behaviour(message))
            assert said is not None
            state: Any = said[1]
            return said[0], state if state.result is None else msgspec.structs.replace(state, result=lie(state.result))

        messenger.outbox.outgoing = outgoing  # type: ignore[method-assign]
        messenger.register("job_sync", known.kind, on_sync)

    return prepare


def claims_success(result: Result) -> Result:
    return msgspec.structs.replace(result, state="completed", exit_code=0, reason="", fault="")


def unasked_output(result: Result) -> Result:
    return msgspec.structs.replace(result, outputs=(OutputFile("../evil", content_id(b""), 0),))


async def outputs_are_kept_back(there: Others) -> None:
    async def refuse(sealed: SealedStream, _did: str, _asked: bytes) -> bool:
        await sealed.send_word(json.dumps({"error": "not for you"}).encode())
        return False

    there.provider.ctx.blobs._data._give = refuse  # type: ignore[union-attr]


@dataclass(frozen=True)
class No:
    """One way to say no: who prepares it, the job it meets, and what the user gets to see."""

    name: str
    prepare: Prepare
    code: int
    error: str
    explained: str = ""
    state: str = ""
    job: dict[str, Any] | None = None
    command: str = "true"
    provider: dict[str, Any] | None = None
    # `job run` would ask again until the contract's deadline
    by_stage: bool = False


MATCH = [
    No("no provider", offboarded, 4, "nobody to ask", state="expired"),
    No("too few cores", nothing, 4, "1 declined", "7 short", job={"resources": {"cpu": 8}}),
    No("too little memory", nothing, 4, "1 declined", "1.5 GiB short", job={"resources": {"memory": "2GiB"}}),
    No("too little disk", nothing, 4, "1 declined", "3.5 GiB short", job={"resources": {"disk": "4GiB"}}),
    No("no GPU", nothing, 4, "1 declined", "no free device", job={"resources": {"gpus": [{"vram": "8GiB"}]}}),
    No("another place", nothing, 4, "1 declined", "localities.country",
       job={"localities": [{"kind": "country", "name": "SE"}]}),
    No("another library", nothing, 4, "1 declined", "libraries.python",
       job={"libraries": [{"name": "python", "constraint": ">=9"}]}),
    No("no such storage", nothing, 4, "1 declined", "storage.ssd", job={"storage": [{"type": "ssd", "size": "1GiB"}]}),
    No("no open port", nothing, 4, "1 declined", "connectivity.ports", job={"connectivity": {"ports": [443]}}),
    No("no such verification", nothing, 4, "1 declined", "no statement of acme-bank", job={"kycs": ["acme-bank"]}),
    No("too long", nothing, 4, "1 declined", "time", job={"time": {"max_duration": "90d"}}),
    No("too dear", nothing, 4, "1 declined", "0.15 NTX above the limit", job={"price": "0.1"}),
    No("a hard constraint", nothing, 4, "1 declined", "constraints.hard[0]",
       job={"constraints": {"hard": ["node.cpu.cores > 64.0"]}}),
    No("strangers' commands", nothing, 4, "1 declined", "no process here",
       provider={"executor": ExecutorConfig(process=ProcessConfig())}),
    No("the machine is taken", sold_out, 4, "1 is busy", "short", job={"time": {"max_duration": 60, "deadline": "3s"}}),
    No("a provider's rule", prefers(rules=("job.memory > quantity('64GiB')",)), 4, "1 declined",
       "preferences.rules[0]"),
    No("a provider's list", prefers(allow=("did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH",)), 4, "1 declined", "the preferences exclude it"),
    No("below the minimum", prefers(minimum_price=500_000), 4, "1 declined", "below the provider's minimum"),
    No("no answer", silent(PROVIDER, "bid_request"), 4, "did not answer", "did not answer"),
    No("a bid for another job", after(PROVIDER, "bid_request", bid_for_another_job), 4, "did not answer",
       "the bid answers another request"),
]  # fmt: skip

REQUEST = [
    No("taken in the meantime", sold_out_after_the_bid, 4, "1 is busy", "short",
       "expired", job={"time": {"max_duration": 60, "deadline": "3s"}}),
    No("second thoughts", instead(PROVIDER, "job_request", lambda message: (
        "decline_job_request", DeclineJobRequest(message.body.bid_id, "the machine is going down"))), 5,
       "every provider on the shortlist declined", "the machine is going down", "failed"),
    No("the bid timed out", instead(PROVIDER, "job_request", lambda message: (
        "timeout_job_request", TimeoutJobRequest(message.body.bid_id, "2026-01-01T00:00:00.000Z"))), 5,
       "every provider on the shortlist declined", "the bid timed out at 2026-01-01", "failed"),
    No("another bid", after(PROVIDER, "job_request", other_bid), 5, "declined", "came back with another bid",
       "failed"),
    No("a lock for another job", after(PROVIDER, "job_request", other_terms), 5, "declined",
       "came back with another bid", "failed"),
    No("nothing locked", after(PROVIDER, "job_request", unlocked_bid), 5, "declined", "did not lock the resources",
       "failed"),
    No("no answer to the request", silent(PROVIDER, "job_request"), 5, "declined", "did not answer", "failed"),
]  # fmt: skip

CONTRACT = [
    No("no contract database", no_authority, 6, "no contract-database is known", state="failed"),
    No("the contract database is silent", silent(AUTHORITY, "check_kyc"), 6, "the contract database does not answer",
       state="failed", provider={"lock_lease": 2}),
    No("the provider is not verified", provider_not_verified, 5, "declined", "is not verified", "failed"),
    No("the user is not verified", user_not_verified, 5, "declined", "the requester is not verified", "failed"),
    No("the bid is over", bids_go_bad, 5, "declined", "the bid timed out at 2001", "failed"),
    No("another oracle is trusted", another_oracle_trusted, 5, "declined", "this provider accepts only", "failed"),
    No("another contract comes back", after(PROVIDER, "contract_proposal", another_contract), 5, "declined",
       "answered with another contract", "failed"),
    No("the contract comes back unsigned", after(PROVIDER, "contract_proposal", unsigned_contract), 5, "declined",
       "no good signature of its provider", "failed"),
    No("the provider says nothing", silent(PROVIDER, "contract_proposal"), 5, "declined", "did not answer", "failed"),
    No("too little money", nothing, 6, "the contract database refused the contract", state="failed",
       job={"price": "500", "time": {"max_duration": "10h"}}, provider={"price": "40/h"}),
    No("the proof is for another", after(AUTHORITY, "register_contract", proof_of_another), 6,
       "the proof is for another contract", state="failed"),
    No("the contract is not taken", raises(AUTHORITY, "register_contract", ContractError("the registry is closed")), 6,
       "the registry is closed", state="failed"),
]  # fmt: skip

INVOKE = [
    No("the contract expired", contract_expires_first, 5, "has passed", state="failed"),
    No("the lock is lost", lock_is_lost, 5, "the allocation cannot be made", state="failed"),
    No("called off", raises(PROVIDER, "invocation", ContractError("the contract was called off", code="called_off")),
       5, "the contract was called off", state="failed"),
]  # fmt: skip

EXECUTE = [
    No("the command fails", nothing, 1, "exit", state="failed", command="echo why >&2; exit 3"),
    No("no such command", nothing, 1, "no-such-program", state="failed",
       job={"executor": {"type": "process", "command": ["no-such-program"]}}),
    No("too slow", nothing, 1, "longer than its max_duration", state="failed", command="sleep 60", job={"time": {"max_duration": 1}}),
    No("an output is missing", nothing, 1, "result.txt", state="failed", job={"outputs": [{"path": "result.txt"}]}),
    No("the folder is not there", nothing, 1, "'nowhere'", state="failed",
       job={"executor": {"type": "process", "command": ["true"], "workdir": "nowhere"}}),
    No("the executor is broken", broken_executor(ExecutorError("the disk is broken")), 1, "the disk is broken",
       state="failed"),
    No("the executor is broken in another way", broken_executor(RuntimeError("surprise")), 1,
       "the provider could not go on: surprise",
       state="failed"),
]  # fmt: skip

SETTLE = [
    No("the oracle finds a lie", lying_results(claims_success), 7, "the oracle rejected the result", state="disputed",
       job={"outputs": [{"path": "result.txt"}]}),
    No("the oracle is silent", silent(AUTHORITY, "job_verification"), 6, "the oracle did not verify",
       state="completed", by_stage=True),
    No("the oracle refuses", raises(AUTHORITY, "job_verification", ContractError("no more work", code="full")), 6,
       "the oracle did not verify: no more work", state="completed"),
    No("the contract database is silent about money", silent(AUTHORITY, "settle_contract"), 6,
       "the contract was not settled", state="verified", by_stage=True),
    No("the receipt is for another", receipt_of_another, 6,
       "the receipt does not fit the contract: it settles another contract", state="verified"),
    No("the outputs are kept back", outputs_are_kept_back, 6, "the outputs cannot be fetched", state="completed",
       command="echo 1 > out", job={"outputs": [{"path": "out"}]}),
]  # fmt: skip


@pytest.mark.parametrize("no", [*MATCH, *REQUEST, *CONTRACT, *INVOKE, *EXECUTE, *SETTLE], ids=lambda no: no.name)
async def test_what_the_user_sees_of_a_no(no: No, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(no.provider or {})
    price = options.pop("price", "0.25")
    async with others(tmp_path, monkeypatch, **options) as there:
        if price != "0.25":
            await there.provider.onboard(msgspec.structs.replace(OFFER, price=price), None)
        monkeypatch.setenv("NUNET_NETWORK_PEERS", os.environ["NUNET_NETWORK_PEERS"])
        await no.prepare(there)
        body = {"name": "test", "executor": {"type": "process", "command": ["sh", "-c", no.command]}, "price": "1",
                "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}, **(no.job or {})}  # fmt: skip
        path = tmp_path / "job.yaml"
        path.write_text(json.dumps(body))
        if no.by_stage:
            job_id = (await there.user("job", "post", str(path), "--quiet"))[0].strip()
            for stage in ("match", "request", "contract", "invoke"):
                await there.user("job", stage, job_id)
            _, errors = await there.user("job", "settle", job_id, code=no.code)
        else:
            _, errors = await there.user("job", "run", str(path), code=no.code)
        last = errors[errors.rindex("nunet: ") :]
        assert no.error in last
        assert "Traceback" not in errors
        store = Store(there.home, read_only=True)
        (job,) = store[JOBS].all()
        assert job.state == (no.state or "expired")
        if no.explained:
            assert no.explained in (await there.user("job", "explain", job.id))[0]
        # who says no does not lose its hold of the machine, and nobody is paid for nothing
        assert store[CONTRACTS].count("state", "settled") == 0
        account = there.authority.ctx.store[ACCOUNTS].get(there.provider.identity.did)
        assert account is None or account.balance <= quantities.parse_amount("100")
