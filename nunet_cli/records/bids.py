"""Bid request, bid and decline, and what they rest on: comparison and comparator."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Struct, field

from nunet_cli.records.capability import Capability, PriceBid, Resources
from nunet_cli.records.fields import PLAIN, Did, Id, Many, MaybeId, Name, Text, Time, TimeOrNone
from nunet_cli.records.limits import Limits
from nunet_cli.records.machine import CLOCK, PROVIDER, REQUESTER, Machine, Move
from nunet_cli.records.shares import MOST_SHARES, MostPerRequester, Share
from nunet_cli.records.table import Table

# bid requests that are handed out at a time, and the units that one may ask for
MOST_OPEN, MOST_UNITS = 20, 10_000
Units = Annotated[int, Limits(ge=1, le=MOST_UNITS)]


class NodeID(Struct, forbid_unknown_fields=True, frozen=True):
    """The four identifiers of a node (second seed: `dms.node.NodeID`); the last three name the same public key."""

    uuid: MaybeId
    cid: MaybeId
    peer_id: MaybeId
    did: Did


class Comparison(Struct, forbid_unknown_fields=True, frozen=True):
    """One field of a capability compared: what was required, what was there, and by how much it missed.

    The texts are for people; of a number that fell short, `needed` and `would_do` are what was asked and what there
    was, as a specification writes them.
    """

    field: Name
    result: Literal["equal", "better", "worse", "error"]
    required: Text = ""
    available: Text = ""
    margin: Text = ""
    reason: Text = ""
    needed: Annotated[str, Limits(max_length=40)] = ""
    would_do: Annotated[str, Limits(max_length=40)] = ""


class CapabilityComparison(Struct, forbid_unknown_fields=True, frozen=True):
    """The comparison of a required with an available capability (seed 2: `capabilityComparison`)."""

    fields: Annotated[tuple[Comparison, ...], Many] = ()
    verdict: Literal["accept", "decline"] = "decline"
    reasons: Annotated[tuple[Text, ...], Many] = ()


Rule = Annotated[str, Limits(min_length=1, max_length=1000)]


class SoftConstraint(Struct, forbid_unknown_fields=True, frozen=True):
    """A wish: `rank` is CEL and gives 0 to 1 (true counts 1), `weight` is the points that 1 is worth."""

    rank: Rule
    weight: Annotated[float, Limits(ge=0, le=1000)] = 10.0


class Weights(Struct, forbid_unknown_fields=True, frozen=True):
    """The points that a bid can earn for each reason to prefer it."""

    price: Annotated[float, Limits(ge=0, le=1000)] = 60.0
    start: Annotated[float, Limits(ge=0, le=1000)] = 20.0
    load: Annotated[float, Limits(ge=0, le=1000)] = 10.0
    distance: Annotated[float, Limits(ge=0, le=1000)] = 10.0


class CapabilityComparator(Struct, forbid_unknown_fields=True, frozen=True):
    """A node's preferences (seed 2: `capabilityComparator`): what it accepts beyond what the capability says.

    As a provider it accepts jobs for which every rule of `rules` (CEL) holds; as a requester it takes bids for which
    every rule of `bid_rules` holds, and ranks them by `weights`. `minimum_price` is micro-NTX for a whole job; `allow`
    and `deny` hold DIDs of the other party, and an empty `allow` admits everybody. Of the requesters that wait for a
    provider each has its turn, as often as `shares` say, and none holds more than `most_per_requester`.
    """

    rules: Annotated[tuple[Rule, ...], Limits(max_length=32)] = ()
    bid_rules: Annotated[tuple[Rule, ...], Limits(max_length=32)] = ()
    weights: Weights = field(default_factory=Weights)
    minimum_price: Annotated[int, Limits(ge=0)] = 0
    allow: Annotated[tuple[Did, ...], Many] = ()
    deny: Annotated[tuple[Did, ...], Many] = ()
    shares: Annotated[tuple[Share, ...], Limits(max_length=MOST_SHARES)] = ()
    most_per_requester: MostPerRequester = field(default_factory=MostPerRequester)


class BidRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """What a requester publishes to get offers (seed 2: `bidRequest`).

    `hard` are constraints in CEL. `count` units of the same need are asked for at once, such as the items of a batch.
    """

    id: Id
    job_id: Id
    requester: NodeID
    required_capability: Capability
    spec_cid: Id
    deadline: Time
    topic: Annotated[str, Limits(max_length=200, pattern=PLAIN)] = ""
    name: Annotated[str, Limits(max_length=200, pattern=PLAIN)] = ""
    images: Annotated[tuple[Annotated[str, Limits(max_length=400, pattern=PLAIN)], ...], Limits(max_length=100)] = ()
    hard: Annotated[tuple[Rule, ...], Limits(max_length=32)] = ()
    count: Units = 1


class TimeBid(Struct, forbid_unknown_fields=True, frozen=True):
    """When the provider can run the job: `start` is the earliest time, `duration` the seconds it may take."""

    start: Time
    duration: Annotated[int, Limits(ge=1, le=10**9)]


class Bid(Struct, forbid_unknown_fields=True, frozen=True):
    """A provider's offer (seed 2: `bid`), valid until `timeout`.

    `offer` is what the provider has left at `time.start`, `load` the share of it that is taken now, 0 to 1. `units` is
    how many of what was asked for it takes at once; the price, the time and the offer are those of one.
    """

    id: Id
    bid_request_id: Id
    job_id: Id
    bidder: NodeID
    price: PriceBid
    time: TimeBid
    timeout: Time
    spec_cid: Id
    valid_offer: bool = True
    resources_locked_until_timeout: bool = False
    comparison: CapabilityComparison = field(default_factory=CapabilityComparison)
    offer: Capability = field(default_factory=Capability)
    load: Annotated[float, Limits(ge=0, le=1)] = 0.0
    units: Units = 1


class Decline(Struct, forbid_unknown_fields=True, frozen=True):
    """A provider's refusal of a bid request, with the comparison that led to it.

    `free_at` is when what others hold is free at the latest, where that is all that stands against the job: the machine
    is busy. Where it is empty, it can never run the job.
    """

    bid_request_id: Id
    job_id: Id
    bidder: NodeID
    comparison: CapabilityComparison
    free_at: TimeOrNone = ""


class AskOpenRequests(Struct, forbid_unknown_fields=True, frozen=True):
    """A provider looks for work: it asks which bid requests wait that fit into what it has left."""

    resources: Resources


class OpenRequests(Struct, forbid_unknown_fields=True, frozen=True):
    """The bid requests that wait for a provider, those that have waited longest first.

    `takes` says that what waits is taken under a bid for many units which the provider has made already. Where nothing
    waits that fits into what the provider has left, `needs` is what the first one needs that does not.
    """

    requests: Annotated[tuple[BidRequest, ...], Limits(max_length=MOST_OPEN)] = ()
    takes: bool = False
    needs: Resources | None = None


class BidRequestRecord(Struct, frozen=True):
    """A bid request that this node sent, or one that it bid for."""

    id: str
    job_id: str
    direction: Literal["sent", "received"]
    at: str
    request: BidRequest


class BidRecord(Struct, frozen=True):
    """A bid that this node made or got, or, of `kind` decline or silent, what it got in its place.

    `did` is the other party; `evidence` the envelope that brought it, in base64. What a comparison with the preferences
    came to is its `score`, `rank`, `why` and, where it was not taken, `reasons`. `offered_until` is how long a bid of
    this node's stands, where its lock lapses earlier. `clock` is by how many seconds the clock of one who could not
    answer differs. `free_at` is when a busy provider that declined is free at the latest.
    """

    id: str
    kind: Literal["bid", "decline", "silent"]
    direction: Literal["sent", "received"]
    did: str
    bid_request_id: str
    job_id: str
    at: str
    bidder: NodeID
    bid: Bid | None = None
    comparison: CapabilityComparison | None = None
    verdict: str = "offered"
    reasons: tuple[str, ...] = ()
    score: float | None = None
    rank: int | None = None
    why: str = ""
    evidence: str = ""
    offered_until: str = ""
    clock: float | None = None
    free_at: str = ""

    @property
    def offer(self) -> Bid:
        """The bid itself; only what is of the kind `bid` has one."""
        assert self.bid is not None, f"{self.id} is a {self.kind}"
        return self.bid


def _nested_request(row: dict[str, Any]) -> dict[str, Any]:
    fields = {name: row[name] for name in BidRequest.__struct_fields__ if name in row}
    if row.get("image"):
        # before there were pods, a job had one image
        fields["images"] = [row["image"]]
    return {**{name: row[name] for name in ("id", "job_id", "direction", "at")}, "request": fields}


def _nested_bid(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: row[name] for name in BidRecord.__struct_fields__ if row.get(name) is not None}
    kept["bidder"] = {"uuid": "", "cid": "", **row["bidder"]}
    if row["kind"] == "bid":
        kept["bid"] = {name: row[name] for name in Bid.__struct_fields__ if name in row}
    return kept


BID_REQUESTS = Table("bid_requests", BidRequestRecord, indexes=("job_id", "direction"), upgrade=_nested_request)
BIDS = Table(
    "bids", BidRecord, indexes=("job_id", "bid_request_id", "did", "direction", "at", "verdict"),
    together=(("did", "verdict"),), upgrade=_nested_bid,
)  # fmt: skip

_TAKEN = ("offered", "best", "shortlisted", "later")
# what becomes of an offer: its state is its verdict
BID = Machine(
    "bid",
    start=("offered", "declined", "silent"),
    ends=frozenset(
        {"declined", "silent", "refused", "lapsed", "released", "unwanted", "excluded", "unverified", "taken"}
    ),
    state="verdict",
    moves=(
        Move("prefer", _TAKEN, "best", (REQUESTER,)),
        Move("shortlist", _TAKEN, "shortlisted", (REQUESTER,)),
        Move("postpone", _TAKEN, "later", (REQUESTER,)),
        Move("pass_over", _TAKEN, "offered", (REQUESTER,)),
        Move("reject", _TAKEN, "unwanted", (REQUESTER,)),
        Move("exclude", _TAKEN, "excluded", (REQUESTER,)),
        # it did not show the statements that the job names
        Move("distrust", _TAKEN, "unverified", (REQUESTER,)),
        Move("decline", _TAKEN, "refused", (PROVIDER,)),
        # it was not asked for as long as it stood
        Move("lapse", _TAKEN, "lapsed", (CLOCK,)),
        Move("lock", _TAKEN, "", (PROVIDER,)),
        # its contract is agreed
        Move("take", _TAKEN, "taken", (REQUESTER,)),
        Move("release", (*_TAKEN, "released"), "released", (REQUESTER,)),
    ),
)


# a unit of a bid for many is named by the bid and a number
_MARK, _DIGITS = ".", 12


def unit_id(bid_id: str, number: int) -> str:
    """Return the id of a unit of a bid."""
    return f"{bid_id}{_MARK}{number}"


def is_unit(bid_id: str) -> bool:
    """Say whether an id names a unit of a bid, and not a whole one."""
    return _MARK in bid_id


def bid_id_of(name: str) -> str:
    """Return the id of the bid that an id names, or of which it names a unit."""
    return name.partition(_MARK)[0]


def unit_number(name: str) -> int:
    """Return which unit of a bid an id names, from 1 on; 0 where it names none in the form that is written here."""
    digits = name.partition(_MARK)[2]
    is_plain = digits.isascii() and digits.isdecimal() and len(digits) <= _DIGITS and not digits.startswith("0")
    return int(digits) if is_plain else 0
