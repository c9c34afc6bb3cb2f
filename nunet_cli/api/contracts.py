"""Routes for contracts and money: contracts, disputes, evidence, accounts, the registry of a contract database."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
import trio
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from nunet_cli import quantities
from nunet_cli.api import schemas, views
from nunet_cli.api.common import PAGING, STATE, Endpoint, answer, body_of, did_of, flag_of, in_states, listed, node_of
from nunet_cli.database.records import Records
from nunet_cli.errors import ContractError, NunetError, PeerError, StateError
from nunet_cli.node import kyc
from nunet_cli.node.node import Node
from nunet_cli.orchestrator import disputes
from nunet_cli.orchestrator.contract import check_contract
from nunet_cli.orchestrator.settle import verify_job
from nunet_cli.orchestrator.units import bid_of
from nunet_cli.records.books import ACCOUNTS, LOG, REGISTRY
from nunet_cli.records.contract_records import (
    BALANCES,
    COMPLETIONS,
    CONTRACT,
    CONTRACTS,
    REGISTERED,
    REGISTERED_CONTRACTS,
    STATEMENTS,
    ContractRecord,
    RegisteredContract,
)
from nunet_cli.records.contracts import DATABASE, Receipt
from nunet_cli.records.disputes import DISPUTES
from nunet_cli.records.documents import Document
from nunet_cli.records.limits import Limits
from nunet_cli.records.messages import AccountStatement, AskStatement
from nunet_cli.tokenomics import chain
from nunet_cli.tokenomics.contract_database import ContractDatabase
from nunet_cli.tokenomics.evidence import export_bundle

STATEMENT_TIMEOUT = 5.0


class NewEvidence(Struct, forbid_unknown_fields=True):
    """What to say in a dispute; with `reexecute` the oracle is asked to run the job, and its verdict is added."""

    text: Annotated[str, Limits(max_length=4000)] = ""
    reexecute: bool = False


class Resolution(Struct, forbid_unknown_fields=True):
    """How the operator ends a dispute; `share` is the provider's part of the deposit, 0 to 1."""

    decision: Literal["pay", "split", "refund"]
    share: Annotated[str, Limits(max_length=20)] = "0.5"


class RegistryChange(Struct, forbid_unknown_fields=True):
    """Whom to approve or revoke, and why."""

    did: Annotated[str, Limits(max_length=200)]
    note: Annotated[str, Limits(max_length=400)] = ""


class Attestation(Struct, forbid_unknown_fields=True):
    """Whom this node has verified, under which name of its own, and for how long that counts."""

    did: Annotated[str, Limits(max_length=200)]
    name: Annotated[str, Limits(max_length=200)]
    valid: Annotated[str, Limits(max_length=40)] = "365d"


class Deposit(Struct, forbid_unknown_fields=True):
    """Whom to credit with how much, in NTX."""

    to: Annotated[str, Limits(max_length=200)]
    amount: Annotated[str, Limits(max_length=40)]


R = TypeVar("R", ContractRecord, RegisteredContract)


def _named(records: Records[R], text: str) -> R:
    """Return the contract that a text names: by its id or the beginning of it, or the newest one of a job's id.

    Raises:
        NotFoundError: there is none.
        UsageError: several begin so.
    """
    of_job = records.with_prefix(text, field="job_id") if text.startswith("job-") else []
    if len({row.job_id for row in of_job}) == 1:
        return records.latest("job_id", of_job[0].job_id)[0]
    return records.resolve(text, what="contract")


def _contract(request: Request) -> ContractRecord:
    return _named(node_of(request).ctx.store[CONTRACTS], request.path_params["contract"])


async def list_contracts(request: Request) -> Response:
    """Return this node's contracts in the order in which they were made."""
    contracts = node_of(request).ctx.store[CONTRACTS]
    return listed(request, contracts, views.contract, **in_states(request, CONTRACT))


async def show_contract(request: Request) -> Response:
    """Return one contract with its documents; with `check=1` the contract database's own state of it as well."""
    node = node_of(request)
    row = _contract(request)
    view = views.contract(row, whole=True)
    if flag_of(request, "check"):
        view["recorded_state"] = (await check_contract(node.ctx, row.id)).state
        if row.state in ("disputed", "settled", "refunded") and row.dispute is not None:
            view["dispute"] = msgspec.to_builtins(await disputes.ask(node.ctx, row.id))
    return answer(view)


async def dispute_contract(request: Request) -> Response:
    """Open a dispute about a contract, or add evidence to it."""
    node, body = node_of(request), await body_of(request, NewEvidence)
    row = _contract(request)
    documents: tuple[Document, ...] = ()
    if body.reexecute:
        if row.result is None:
            raise StateError("there is no result yet that could be compared")
        verdict = await verify_job(node.ctx, row, reexecute=True)
        documents = (verdict,) if verdict is not None else ()
    dispute = await disputes.add(node.ctx, row.id, body.text, documents=documents, with_result=True)
    return answer(msgspec.to_builtins(dispute), status=201)


async def export_contract(request: Request) -> Response:
    """Return the evidence bundle of a contract, as its file holds it."""
    node, row = node_of(request), _contract(request)
    if not row.spec:
        raise StateError(f"contract {row.id} is {row.state}: the job itself is not here yet")
    return Response(export_bundle(row, bid_of(node.ctx.store, row.bid_id)), media_type="application/json")


async def list_disputes(request: Request) -> Response:
    """Return the disputes that this contract database has, in the order in which they were opened (operator)."""
    _database(request)
    where = {"decision": ""} if flag_of(request, "open") else {}
    return listed(request, node_of(request).ctx.store[DISPUTES], msgspec.to_builtins, **where)


async def resolve_contract(request: Request) -> Response:
    """End a dispute (operator of a contract database); return the receipt."""
    body, database = await body_of(request, Resolution), _database(request)
    recorded = _named(node_of(request).ctx.store[REGISTERED_CONTRACTS], request.path_params["contract"])
    receipt = await database.resolve(recorded.id, body.decision, body.share)
    return answer(msgspec.to_builtins(receipt.read(Receipt)))


async def balance(request: Request) -> Response:
    """Return this node's account at the contract database, or what it last said when it does not answer."""
    node = node_of(request)
    ctx = node.ctx
    try:
        database = ctx.roles.find(DATABASE)
        told = await ctx.messenger.request(database, "ask_statement", AskStatement(), timeout=STATEMENT_TIMEOUT)
        statement = told.body
        if not isinstance(statement, AccountStatement):
            raise PeerError("the contract database answered something else")
    except NunetError as error:
        return answer(_last_known(node, error))
    return answer({**msgspec.to_builtins(statement), "contract_database": database, "live": True})


def _last_known(node: Node, error: NunetError) -> dict[str, Any]:
    store = node.ctx.store
    # one for each contract database that this node ever had to do with
    last = max(store[BALANCES].all(), key=lambda row: row.at, default=None)
    if last is None:
        raise error
    entries = [
        {"at": row.at, "kind": row.kind, "amount": row.amount, "contract_id": row.contract_id}
        for row in store[STATEMENTS].page(AskStatement().limit, newest=True).rows[::-1]
    ]
    return {
        "did": node.identity.did, "balance": last.balance, "in_escrow": None, "entries": entries,
        "contract_database": last.id, "live": False, "as_of": last.at, "reason": error.message,
    }  # fmt: skip


async def statements(request: Request) -> Response:
    """Return the movements on this node's account as its own receipts have them, in the order in which they came."""
    return listed(request, node_of(request).ctx.store[STATEMENTS], msgspec.to_builtins)


async def deposit(request: Request) -> Response:
    """Credit an account (operator of a contract database)."""
    body, database = await body_of(request, Deposit), _database(request)
    did = did_of(body.to)
    micro = await database.registry.deposit(did, quantities.parse_amount(body.amount))
    return answer({"did": did, "balance": quantities.format_amount(micro)}, status=201)


def _database(request: Request) -> ContractDatabase:
    database = node_of(request).contract_database
    if database is None:
        raise StateError(
            "this node is not a contract database", hint="start it with: nunet node run --role contract-database"
        )
    return database


async def registry(request: Request) -> Response:
    """Return those whom this contract database has admitted or revoked, in the order in which they were."""
    _database(request)
    return listed(request, node_of(request).ctx.store[REGISTRY], msgspec.to_builtins)


async def recorded(request: Request) -> Response:
    """Return the contracts that this contract database has recorded, in the order in which they came (operator).

    They are in the store, whether or not the node acts as contract database now.
    """
    records = node_of(request).ctx.store[REGISTERED_CONTRACTS]
    if not records.count():
        _database(request)
    where: dict[str, Any] = in_states(request, REGISTERED)
    if party := request.query_params.get("party"):
        where["requester|provider"] = did_of(party)
    return listed(request, records, views.recorded, **where)


async def completions(request: Request) -> Response:
    """Return the jobs that providers told this oracle they completed, in the order in which they did (operator).

    They are in the store, whether or not the node acts as oracle now.
    """
    where = {"verdict": ""} if flag_of(request, "unverified") else {}
    return listed(request, node_of(request).ctx.store[COMPLETIONS], views.completion, **where)


async def approve(request: Request) -> Response:
    """Admit a node."""
    body, database = await body_of(request, RegistryChange), _database(request)
    return answer(msgspec.to_builtins(await database.registry.approve(did_of(body.did), body.note)), status=201)


async def revoke(request: Request) -> Response:
    """Stop a node from closing new contracts."""
    body, database = await body_of(request, RegistryChange), _database(request)
    return answer(msgspec.to_builtins(await database.registry.revoke(did_of(body.did), body.note)))


async def attest(request: Request) -> Response:
    """Sign that this node has verified another one; it need not be a contract database."""
    body = await body_of(request, Attestation)
    document = await kyc.attest(node_of(request).ctx, did_of(body.did), body.name, body.valid)
    return answer(msgspec.to_builtins(document), status=201)


async def books(request: Request) -> Response:
    """Return all accounts of this contract database and their sum, which is zero, and check its log.

    The books are in the store, whether or not the node acts as contract database now.
    """
    store = node_of(request).ctx.store
    if not store[ACCOUNTS].count() and not store[LOG].count():
        _database(request)
    problem = ""
    try:
        await chain.check_whole(store)
    except ContractError as error:
        problem = error.message
    accounts: dict[str, str] = {}
    total = seq = 0
    while page := store[ACCOUNTS].after(seq):
        accounts |= {row.id: quantities.format_amount(row.balance) for _, row in page}
        total, seq = total + sum(row.balance for _, row in page), page[-1][0]
        await trio.lowlevel.checkpoint()
    return answer(
        {
            "accounts": accounts, "total": quantities.format_amount(total), "log_entries": store[LOG].count(),
            "log_intact": not problem, "log_problem": problem,
        }
    )  # fmt: skip


ENDPOINTS = (
    Endpoint("/contracts", list_contracts, list[schemas.Contract], query={**PAGING, **STATE}),
    Endpoint("/contracts/{contract}", show_contract, schemas.ContractDetail,
             query={"check": "1 to ask the contract database as well"}),
    Endpoint("/contracts/{contract}/dispute", dispute_contract, schemas.DisputeDocument, "POST", NewEvidence,
             status=201),
    Endpoint("/contracts/{contract}/resolve", resolve_contract, schemas.ReceiptDocument, "POST", Resolution),
    Endpoint("/contracts/{contract}/evidence", export_contract),
    Endpoint("/disputes", list_disputes, list[schemas.DisputeDocument],
             query={**PAGING, "open": "1 for those that are not resolved"}),
    Endpoint("/accounts/balance", balance, schemas.Account),
    Endpoint("/accounts/statements", statements, list[schemas.Statement], query=PAGING),
    Endpoint("/accounts/deposit", deposit, schemas.Balance, "POST", Deposit, status=201),
    Endpoint("/registry", registry, list[schemas.RegistryEntry], query=PAGING),
    Endpoint("/registry/contracts", recorded, list[schemas.RecordedContract],
             query={**PAGING, **STATE, "party": "DID or peer id of one of the two parties"}),
    Endpoint("/registry/completions", completions, list[schemas.Completion],
             query={**PAGING, "unverified": "1 for those that nobody has brought to verification"}),
    Endpoint("/registry/approve", approve, schemas.RegistryEntry, "POST", RegistryChange, status=201),
    Endpoint("/registry/revoke", revoke, schemas.RegistryEntry, "POST", RegistryChange),
    Endpoint("/registry/attest", attest, schemas.KycDocument, "POST", Attestation, status=201),
    Endpoint("/registry/books", books, schemas.Books),
)  # fmt: skip
