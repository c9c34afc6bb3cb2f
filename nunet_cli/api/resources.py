"""Routes for the node itself: status, capability, preferences, peers, bids, allocations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import trio
from msgspec import Struct
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from nunet_cli import quantities
from nunet_cli.api import schemas, views
from nunet_cli.api.common import PAGING, STATE, Endpoint, answer, body_of, did_of, in_states, listed, node_of, sliced
from nunet_cli.config import Topic
from nunet_cli.config_file import shown
from nunet_cli.errors import PeerError, UsageError
from nunet_cli.jobs import expressions
from nunet_cli.node import indices as activity
from nunet_cli.node import overview
from nunet_cli.node.benchmark import probe_machine
from nunet_cli.node.node import Node
from nunet_cli.node.onboarding import parse_price
from nunet_cli.orchestrator.telling import ask_capability
from nunet_cli.records.allocations import ALLOCATION, ALLOCATIONS
from nunet_cli.records.bids import BIDS, Weights, bid_id_of, is_unit
from nunet_cli.records.limits import Limits
from nunet_cli.records.offers import OnboardOptions
from nunet_cli.records.shares import MOST_SHARES, MostPerRequester, Share

PING_TIMEOUT = 5.0


class Onboarding(Struct, forbid_unknown_fields=True):
    """What to offer, and whether to measure the machine first; without, the last benchmark stays."""

    options: OnboardOptions
    measure: bool = False


class Offboarding(Struct, forbid_unknown_fields=True):
    """Whether to end what runs."""

    force: bool = False


class NewPeer(Struct, forbid_unknown_fields=True):
    """`PEER@HOST:PORT`."""

    address: Annotated[str, Limits(max_length=300)]


class Subscription(Struct, forbid_unknown_fields=True):
    """A topic, and whether to take its bid requests from now on."""

    topic: Topic
    subscribed: bool = True


class NewSetting(Struct, forbid_unknown_fields=True):
    """The value of a setting, or the text that `nunet config set` takes for it."""

    value: str | bool | int | list[str] | dict[str, str]


class Choice(Struct, forbid_unknown_fields=True):
    """Whom to use in a role where the configuration names nobody."""

    role: Literal["contract-database", "oracle"]
    did: Annotated[str, Limits(max_length=200)]


class Preferences(Struct, forbid_unknown_fields=True):
    """What to change of the preferences; null leaves a field as it is."""

    rules: tuple[str, ...] | None = None
    bid_rules: tuple[str, ...] | None = None
    weights: Weights | None = None
    minimum_price: Annotated[str, Limits(max_length=40)] | None = None
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] | None = None
    shares: Annotated[tuple[Share, ...], Limits(max_length=MOST_SHARES)] | None = None
    most_per_requester: MostPerRequester | None = None
    price: Annotated[str, Limits(max_length=60)] | None = None


async def status(request: Request) -> Response:
    """Return the node's status."""
    return answer(overview.status(node_of(request)))


async def whoami(request: Request) -> Response:
    """Return the node's identifiers and addresses."""
    node = node_of(request)
    found = node.ctx.transport.describe_all() if node.ctx.transport.port else []
    address = found[0] if found else None
    return answer({**msgspec.to_builtins(node.identity.node_id), "address": address, "addresses": found})


async def choose_role(request: Request) -> Response:
    """Use a node in a role from now on, instead of any that was used before."""
    node, body = node_of(request), await body_of(request, Choice)
    did = did_of(body.did)
    await node.ctx.roles.choose(body.role, did)
    return answer({"role": body.role, "did": did})


async def show_configuration(request: Request) -> Response:
    """Return the settings that the node goes by; of secret ones, only whether they are set."""
    return answer({"settings": msgspec.to_builtins(shown(node_of(request).ctx.config))})


async def change_configuration(request: Request) -> Response:
    """Set a key in the node's configuration file, and in the node where it can take it up as it runs."""
    body = await body_of(request, NewSetting)
    done = await node_of(request).settings.change(request.path_params["key"], body.value)
    return answer(msgspec.to_builtins(done))


async def stop(request: Request) -> Response:
    """Stop the node, once the request has been read and answered."""
    await request.body()

    async def then() -> None:
        node_of(request).stop_requested.set()

    return answer({"stopping": True}, status=202, background=BackgroundTask(then))


async def show_capability(request: Request) -> Response:
    """Return the node's capability."""
    return answer(views.capability(node_of(request)))


async def benchmark_capability(request: Request) -> Response:
    """Measure this machine, which takes some seconds; nothing is registered."""
    node = node_of(request)
    measured = await node.benchmark_capability()
    machine = await node.ctx.threads.run(probe_machine, node.ctx.home)
    return answer({"machine": msgspec.to_builtins(machine), "benchmark": msgspec.to_builtins(measured)})


async def onboard(request: Request) -> Response:
    """Register this machine's capability."""
    node, body = node_of(request), await body_of(request, Onboarding)
    await node.onboard(body.options, await node.benchmark_capability() if body.measure else None)
    return answer(views.capability(node), status=201)


async def offboard(request: Request) -> Response:
    """Offer nothing any more."""
    node, body = node_of(request), await body_of(request, Offboarding)
    await node.offboard(force=body.force)
    return answer(views.capability(node))


async def show_preferences(request: Request) -> Response:
    """Return the preferences, with what expressions may name."""
    node = node_of(request)
    return answer(_preferences(node))


async def set_preferences(request: Request) -> Response:
    """Change the preferences; an expression that is wrong is refused, with its position."""
    node, body = node_of(request), await body_of(request, Preferences)
    for name in ("rules", "bid_rules"):
        for index, rule in enumerate(getattr(body, name) or ()):
            try:
                expressions.check(rule)
            except UsageError as error:
                raise UsageError(f"{name}[{index}]: {error.message}", hint=error.hint, details=error.details) from None
    plain = ("rules", "bid_rules", "weights", "most_per_requester")
    changes: dict[str, Any] = {name: value for name in plain if (value := getattr(body, name)) is not None}
    if body.shares is not None:
        changes["shares"] = tuple(_share(share, f"shares[{index}]") for index, share in enumerate(body.shares))
    if body.minimum_price is not None:
        try:
            changes["minimum_price"] = quantities.parse_amount(body.minimum_price)
        except UsageError as error:
            raise UsageError(f"minimum_price: {error.message}", hint=error.hint) from None
    for name in ("allow", "deny"):
        named = getattr(body, name)
        if named is not None:
            changes[name] = tuple(did_of(text) for text in named)
    price = None
    if body.price is not None:
        price = parse_price(body.price)
    comparator = msgspec.structs.replace(node.get_preferences(), **changes)
    await node.set_preferences(comparator, price)
    return answer(_preferences(node))


def _share(share: Share, where: str) -> Share:
    """Return a share as it is kept: of a requester by its DID, or by an expression about `peer`."""
    try:
        return msgspec.structs.replace(share, who=did_of(share.who))
    except UsageError:
        try:
            expressions.check(share.who)
        except UsageError as error:
            raise UsageError(f"{where}: {error.message}", hint=error.hint, details=error.details) from None
        return share


def _preferences(node: Node) -> dict[str, Any]:
    comparator = node.get_preferences()
    document: dict[str, Any] = msgspec.to_builtins(comparator)
    document["minimum_price"] = quantities.format_amount(comparator.minimum_price)
    return {**document, "price": msgspec.to_builtins(node.accounting.price())}


async def indices(request: Request) -> Response:
    """Return the node's indices, and where they differ from what the event log gives."""
    ctx = node_of(request).ctx
    # everything that the node has done is looked through, beside what it does now
    return answer(await ctx.threads.run(activity.audit, ctx.home))


async def list_bids(request: Request) -> Response:
    """Return bids, declines and silences in the order in which they were made; of one job with `job=`.

    Those of an item that has a unit of a bid for its whole batch are the batch's.
    """
    node, named = node_of(request), request.query_params.get("job")
    where = {}
    if named:
        job = node.get_job(named)
        where = {"bid_request_id": job.bid_request_id} if is_unit(job.bid_id) else {"job_id": job.id}
    return listed(request, node.ctx.store[BIDS], views.bid, **where)


async def show_bid(request: Request) -> Response:
    """Return one bid; of a unit the bid that it is of."""
    bids = node_of(request).ctx.store[BIDS]
    return answer(views.bid(bids.resolve(bid_id_of(request.path_params["bid"]), what="bid")))


async def list_allocations(request: Request) -> Response:
    """Return the allocations that were ever made here, in their order."""
    where = in_states(request, ALLOCATION)
    return listed(request, node_of(request).ctx.store[ALLOCATIONS], msgspec.to_builtins, **where)


async def show_allocation(request: Request) -> Response:
    """Return one allocation, with what it uses now."""
    node, key = node_of(request), request.path_params["allocation"]
    return answer(msgspec.to_builtins(await node.check_allocation_status(key)))


async def list_peers(request: Request) -> Response:
    """Return the known peers, connected ones first."""
    peers = sorted(node_of(request).ctx.peers, key=lambda peer: (not peer.connected, peer.peer_id))
    return sliced(request, peers, views.peer, "peer_id")


async def show_peer(request: Request) -> Response:
    """Return one peer, with what it offers: it is asked, and has a second to answer."""
    ctx = node_of(request).ctx
    peer = ctx.peers.resolve(request.path_params["peer"])
    return answer(views.peer_detail(peer, await ask_capability(ctx, peer)))


async def add_peer(request: Request) -> Response:
    """Add a static peer; waits a moment for the connection."""
    node, body = node_of(request), await body_of(request, NewPeer)
    peer = await node.add_peer(body.address)
    with trio.move_on_after(PING_TIMEOUT):
        while not peer.introduced:
            await node.ctx.transport.wait_change(0.2)
    return answer(views.peer(peer), status=201)


async def remove_peer(request: Request) -> Response:
    """Forget a peer."""
    node = node_of(request)
    peer = node.ctx.peers.resolve(request.path_params["peer"])
    await node.ctx.peers.remove(peer)
    connection = node.ctx.transport.connection(peer.public_key)
    if connection is not None:
        connection.close()
    return answer(views.peer(peer))


async def list_topics(request: Request) -> Response:
    """Return the topics that this node or a connected peer subscribes to."""
    node = node_of(request)
    return answer([_topic(node, topic) for topic in node.get_known_topics()])


async def subscribe(request: Request) -> Response:
    """Take the bid requests of a topic, or take them no more, until the node stops."""
    node, body = node_of(request), await body_of(request, Subscription)
    await (node.subscribe if body.subscribed else node.unsubscribe)(body.topic)
    return answer(_topic(node, body.topic))


def _topic(node: Node, topic: str) -> dict[str, Any]:
    peers = len(node.ctx.topics.subscribers(topic))
    return {"topic": topic, "subscribed": topic in node.get_subscribed_topics(), "peers": peers}


async def ping_peer(request: Request) -> Response:
    """Measure a round trip to a peer."""
    node = node_of(request)
    peer = node.ctx.peers.resolve(request.path_params["peer"])
    with trio.move_on_after(PING_TIMEOUT):
        elapsed = await node.ctx.transport.ping(peer.public_key)
        return answer({"peer_id": peer.peer_id, "rtt": round(elapsed * 1000, 3)})
    raise PeerError(f"{peer.peer_id} does not answer")


ENDPOINTS = (
    Endpoint("/status", status, schemas.Status),
    Endpoint("/whoami", whoami, schemas.WhoAmI),
    Endpoint("/roles", choose_role, schemas.Role, "POST", Choice),
    Endpoint("/configuration", show_configuration, schemas.Configuration),
    Endpoint("/configuration/{key}", change_configuration, schemas.Setting, "PUT", NewSetting),
    Endpoint("/stop", stop, schemas.Stopping, "POST", status=202),
    Endpoint("/capability", show_capability, schemas.CapabilityOverview),
    Endpoint("/capability/benchmark", benchmark_capability, schemas.Measured, "POST"),
    Endpoint("/capability/onboard", onboard, schemas.CapabilityOverview, "POST", Onboarding, status=201),
    Endpoint("/capability/offboard", offboard, schemas.CapabilityOverview, "POST", Offboarding),
    Endpoint("/preferences", show_preferences, schemas.Preferences),
    Endpoint("/preferences", set_preferences, schemas.Preferences, "POST", Preferences),
    Endpoint("/indices", indices, schemas.Indices),
    Endpoint("/bids", list_bids, list[schemas.Bid], query={**PAGING, "job": "of this job alone"}),
    Endpoint("/bids/{bid}", show_bid, schemas.Bid),
    Endpoint("/allocations", list_allocations, list[schemas.Allocation], query={**PAGING, **STATE}),
    Endpoint("/allocations/{allocation}", show_allocation, schemas.Allocation),
    Endpoint("/peers", list_peers, list[schemas.Peer], query=PAGING),
    Endpoint("/peers", add_peer, schemas.Peer, "POST", NewPeer, status=201),
    Endpoint("/peers/{peer}", show_peer, schemas.PeerDetail),
    Endpoint("/peers/{peer}", remove_peer, schemas.Peer, "DELETE"),
    Endpoint("/peers/{peer}/ping", ping_peer, schemas.Ping, "POST"),
    Endpoint("/topics", list_topics, list[schemas.Topic]),
    Endpoint("/topics", subscribe, schemas.Topic, "POST", Subscription),
)
