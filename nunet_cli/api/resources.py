"""Routes for what is not a job: node, capability, peers, bids, contracts, allocations, accounts, registry."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import trio
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinydb import Query

from nunet_cli import units
from nunet_cli.api import views
from nunet_cli.api.common import body_of, node_of
from nunet_cli.errors import ContractError, NunetError, PeerError, StateError
from nunet_cli.network.identity import did_from_key, key_from_any
from nunet_cli.node.benchmark import Benchmark
from nunet_cli.node.onboarding import OnboardOptions
from nunet_cli.orchestrator.contract import check_contract
from nunet_cli.tokenomics import ledger
from nunet_cli.tokenomics.contract import DATABASE, AccountStatement, AskStatement
from nunet_cli.tokenomics.contract_database import ContractDatabase

PING_TIMEOUT = 5.0


class Onboarding(Struct, forbid_unknown_fields=True):
    """What to offer, and what the benchmark measured."""

    options: OnboardOptions
    benchmark: Benchmark | None = None


class Offboarding(Struct, forbid_unknown_fields=True):
    """Whether to end what runs."""

    force: bool = False


class NewPeer(Struct, forbid_unknown_fields=True):
    """`PEER@HOST:PORT`."""

    address: Annotated[str, Meta(max_length=300)]


class RegistryChange(Struct, forbid_unknown_fields=True):
    """Whom to approve or revoke, and why."""

    did: Annotated[str, Meta(max_length=200)]
    note: Annotated[str, Meta(max_length=400)] = ""


class Deposit(Struct, forbid_unknown_fields=True):
    """Whom to credit with how much, in NTX."""

    to: Annotated[str, Meta(max_length=200)]
    amount: Annotated[str, Meta(max_length=40)]


async def status(request: Request) -> Response:
    """Return the node's status."""
    return JSONResponse(node_of(request).status())


async def whoami(request: Request) -> Response:
    """Return the node's identifiers and address."""
    node = node_of(request)
    port = node.ctx.transport.port
    address = node.ctx.transport.describe() if port else None
    return JSONResponse({**msgspec.to_builtins(node.identity.node_id), "address": address})


async def stop(request: Request) -> Response:
    """Stop the node."""
    node_of(request).stop_requested.set()
    return JSONResponse({"stopping": True}, status_code=202)


async def show_capability(request: Request) -> Response:
    """Return the node's capability."""
    return JSONResponse(views.capability(node_of(request)))


async def onboard(request: Request) -> Response:
    """Register this machine's capability."""
    node, body = node_of(request), await body_of(request, Onboarding)
    await node.onboard(body.options, body.benchmark)
    return JSONResponse(views.capability(node), status_code=201)


async def offboard(request: Request) -> Response:
    """Offer nothing any more."""
    node, body = node_of(request), await body_of(request, Offboarding)
    await node.offboard(force=body.force)
    return JSONResponse(views.capability(node))


async def list_bids(request: Request) -> Response:
    """Return bids, declines and silences; of one job with `job=`."""
    node, job = node_of(request), request.query_params.get("job")
    table = node.ctx.store.table("bids")
    rows = table.search(Query().job_id == node.ctx.job(job)["id"]) if job else table.all()
    rows.sort(key=lambda row: (row["job_id"], row.get("rank") or 10**6, row["at"]))
    return JSONResponse([views.bid(row) for row in rows])


async def show_bid(request: Request) -> Response:
    """Return one bid."""
    node = node_of(request)
    return JSONResponse(views.bid(node.ctx.store.resolve("bids", request.path_params["bid"], what="bid")))


async def list_contracts(request: Request) -> Response:
    """Return this node's contracts, oldest first."""
    rows = node_of(request).ctx.store.table("contracts").all()
    rows.sort(key=lambda row: row["created_at"])
    return JSONResponse([views.contract(row) for row in rows])


async def show_contract(request: Request) -> Response:
    """Return one contract with its documents; with `check=1` the contract database's own state of it as well."""
    node = node_of(request)
    row = node.ctx.store.resolve("contracts", request.path_params["contract"], what="contract")
    view = views.contract(row, whole=True)
    if request.query_params.get("check") == "1":
        view["recorded_state"] = (await check_contract(node.ctx, row["id"])).state
    return JSONResponse(view)


async def list_allocations(request: Request) -> Response:
    """Return every allocation that was ever made here."""
    rows = node_of(request).ctx.store.table("allocations").all()
    rows.sort(key=lambda row: row["created_at"])
    return JSONResponse([dict(row) for row in rows])


async def show_allocation(request: Request) -> Response:
    """Return one allocation."""
    return JSONResponse(dict(node_of(request).get_allocation(request.path_params["allocation"])))


async def list_peers(request: Request) -> Response:
    """Return the known peers, connected ones first."""
    peers = sorted(node_of(request).ctx.peers, key=lambda peer: (not peer.connected, peer.peer_id))
    return JSONResponse([views.peer(peer) for peer in peers])


async def show_peer(request: Request) -> Response:
    """Return one peer."""
    return JSONResponse(views.peer(node_of(request).ctx.peers.resolve(request.path_params["peer"])))


async def add_peer(request: Request) -> Response:
    """Add a static peer; waits a moment for the connection."""
    node, body = node_of(request), await body_of(request, NewPeer)
    peer = await node.add_peer(body.address)
    with trio.move_on_after(PING_TIMEOUT):
        while not peer.introduced:
            await node.ctx.transport.wait_change(0.2)
    return JSONResponse(views.peer(peer), status_code=201)


async def remove_peer(request: Request) -> Response:
    """Forget a peer."""
    node = node_of(request)
    peer = node.ctx.peers.resolve(request.path_params["peer"])
    await node.ctx.peers.remove(peer)
    connection = node.ctx.transport.connection(peer.public_key)
    if connection is not None:
        connection.close()
    return JSONResponse(views.peer(peer))


async def ping_peer(request: Request) -> Response:
    """Measure a round trip to a peer."""
    node = node_of(request)
    peer = node.ctx.peers.resolve(request.path_params["peer"])
    with trio.move_on_after(PING_TIMEOUT):
        elapsed = await node.ctx.transport.ping(peer.public_key)
        return JSONResponse({"peer_id": peer.peer_id, "rtt": round(elapsed * 1000, 3)})
    raise PeerError(f"{peer.peer_id} does not answer")


async def balance(request: Request) -> Response:
    """Return this node's account at the contract database, or what it last said when it does not answer."""
    node = node_of(request)
    ctx = node.ctx
    try:
        database = ctx.find_role(DATABASE, ctx.config.contract_database)
        answer = await ctx.messenger.request(database, "ask_statement", AskStatement(), timeout=PING_TIMEOUT)
        statement = answer.body
        if not isinstance(statement, AccountStatement):
            raise PeerError("the contract database answered something else")
    except NunetError as error:
        return JSONResponse(_last_known(node, error))
    return JSONResponse({**msgspec.to_builtins(statement), "contract_database": database, "live": True})


def _last_known(node: Any, error: NunetError) -> dict[str, Any]:
    rows = sorted(node.ctx.store.table("balances").all(), key=lambda row: str(row["at"]))
    statements = [
        {"at": row["at"], "kind": row["kind"], "amount": row["amount"], "contract_id": row["contract_id"]}
        for row in node.ctx.store.table("statements").all()
    ]
    if not rows:
        raise error
    last = rows[-1]
    return {
        "did": node.identity.did, "balance": last["balance"], "in_escrow": None, "entries": statements,
        "contract_database": last["id"], "live": False, "as_of": last["at"], "reason": error.message,
    }  # fmt: skip


async def deposit(request: Request) -> Response:
    """Credit an account (operator of a contract database)."""
    database, body = _database(request), await body_of(request, Deposit)
    did = did_from_key(key_from_any(body.to))
    micro = await database.deposit(did, units.parse_amount(body.amount))
    return JSONResponse({"did": did, "balance": units.format_amount(micro)}, status_code=201)


def _database(request: Request) -> ContractDatabase:
    database = node_of(request).contract_database
    if database is None:
        raise StateError(
            "this node is not a contract database", hint="start it with: nunet node run --role contract-database"
        )
    return database


async def registry(request: Request) -> Response:
    """Return everybody whom this contract database has admitted or revoked."""
    return JSONResponse(_database(request).registry())


async def approve(request: Request) -> Response:
    """Admit a node."""
    database, body = _database(request), await body_of(request, RegistryChange)
    return JSONResponse(await database.approve(did_from_key(key_from_any(body.did)), body.note), status_code=201)


async def revoke(request: Request) -> Response:
    """Stop a node from closing new contracts."""
    database, body = _database(request), await body_of(request, RegistryChange)
    return JSONResponse(await database.revoke(did_from_key(key_from_any(body.did)), body.note))


async def books(request: Request) -> Response:
    """Return all accounts of this contract database and their sum, which is zero, and check its log."""
    database, store = _database(request), node_of(request).ctx.store
    rows = store.table("accounts").all()
    try:
        entries, intact = database.check_log(), True
    except ContractError:
        entries, intact = 0, False
    accounts = {row["id"]: units.format_amount(row["balance"]) for row in rows}
    total = units.format_amount(ledger.total(store))
    return JSONResponse({"accounts": accounts, "total": total, "log_entries": entries, "log_intact": intact})


ROUTES = [
    Route("/status", status),
    Route("/whoami", whoami),
    Route("/stop", stop, methods=["POST"]),
    Route("/capability", show_capability),
    Route("/capability/onboard", onboard, methods=["POST"]),
    Route("/capability/offboard", offboard, methods=["POST"]),
    Route("/bids", list_bids),
    Route("/bids/{bid}", show_bid),
    Route("/contracts", list_contracts),
    Route("/contracts/{contract}", show_contract),
    Route("/allocations", list_allocations),
    Route("/allocations/{allocation}", show_allocation),
    Route("/peers", list_peers, methods=["GET"]),
    Route("/peers", add_peer, methods=["POST"]),
    Route("/peers/{peer}", show_peer, methods=["GET"]),
    Route("/peers/{peer}", remove_peer, methods=["DELETE"]),
    Route("/peers/{peer}/ping", ping_peer, methods=["POST"]),
    Route("/accounts/balance", balance),
    Route("/accounts/deposit", deposit, methods=["POST"]),
    Route("/registry", registry),
    Route("/registry/approve", approve, methods=["POST"]),
    Route("/registry/revoke", revoke, methods=["POST"]),
    Route("/registry/books", books),
]
