from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nunet_cli import quantities
from nunet_cli.matching.accept import accept
from nunet_cli.matching.compare import compare, version_satisfies
from nunet_cli.matching.rank import Wishes, rank
from nunet_cli.network.identity import new_identity
from nunet_cli.records.bids import Bid, CapabilityComparator, Comparison, TimeBid
from nunet_cli.records.capability import Capability, Cpu, Gpu, Library, Locality, PriceBid, Resources, TimeCapability

GIB = 2**30


def capability(**fields: Any) -> Capability:
    base: dict[str, Any] = {
        "executors": ("docker", "process"), "job_types": ("task",),
        "resources": Resources(Cpu(4, 3000, "x86_64"), 8 * GIB, 100 * GIB, (Gpu("NVIDIA", "A100", 80 * GIB),)),
        "libraries": (Library("python", "3.11.7"),), "localities": (Locality("country", "SE"),),
    }  # fmt: skip
    return Capability(**{**base, **fields})


def outcome(required: Capability, available: Capability | None = None) -> dict[str, Comparison]:
    return {field.field: field for field in compare(required, available or capability())}


@pytest.mark.parametrize(
    ("required", "field", "result", "margin"),
    [
        (Capability(resources=Resources(Cpu(4))), "cpu.cores", "equal", "0"),
        (Capability(resources=Resources(Cpu(2))), "cpu.cores", "better", "+2"),
        (Capability(resources=Resources(Cpu(6))), "cpu.cores", "worse", "-2"),
        (Capability(resources=Resources(memory=12 * GIB)), "memory", "worse", "-4 GiB"),
        (Capability(resources=Resources(disk=1 * GIB)), "disk", "better", "+99 GiB"),
        (Capability(resources=Resources(gpus=(Gpu("nvidia", "", 40 * GIB),))), "gpus", "equal", "+0"),
        (Capability(resources=Resources(gpus=(Gpu(), Gpu()))), "gpus", "worse", "-1"),
        (Capability(executors=("docker",)), "executors", "better", ""),
        (Capability(executors=("wasm",)), "executors", "worse", "-1"),
        (Capability(libraries=(Library("python", "", ">=3.9,<4"),)), "libraries.python", "equal", ""),
        (Capability(libraries=(Library("python", "", ">=3.12"),)), "libraries.python", "worse", ""),
        (Capability(libraries=(Library("python", "", "newish"),)), "libraries.python", "error", ""),
        (Capability(libraries=(Library("torch"),)), "libraries.torch", "worse", ""),
        (Capability(localities=(Locality("country", "SE"),)), "localities.country", "equal", ""),
        (Capability(localities=(Locality("country", "NO"),)), "localities.country", "worse", ""),
        (Capability(localities=(Locality("country", "SE", exclude=True),)), "localities.country", "worse", ""),
        (Capability(localities=(Locality("country", "NO", exclude=True),)), "localities.country", "equal", ""),
        (Capability(resources=Resources(Cpu(1, arch="arm64"))), "cpu.arch", "worse", ""),
    ],
)
def test_each_field_says_how_it_compares_and_by_how_much(
    required: Capability, field: str, result: str, margin: str
) -> None:
    found = outcome(required)[field]
    assert (found.result, found.margin if margin else "") == (result, margin)


def test_price_and_time_have_margins() -> None:
    required = Capability(price=PriceBid(amount="1"), time=TimeCapability(max=7200))
    found = outcome(required, capability(price=PriceBid(amount="1.25"), time=TimeCapability(max=3600)))
    assert (found["price"].result, found["price"].margin) == ("worse", "-0.25 NTX")
    assert (found["time"].result, found["time"].margin) == ("worse", "-1h")


@pytest.mark.parametrize(
    ("version", "constraint", "fulfilled"),
    [("3.11.7", ">=3.9", True), ("3.11", "==3.11.0", True), ("3.9", ">3.9", False), ("2.0rc1", "<2.1,!=2.0.1", True)],
)
def test_version_constraints(version: str, constraint: str, fulfilled: bool) -> None:
    assert version_satisfies(version, constraint) is fulfilled


amounts = st.integers(0, 16)


@given(amounts, amounts, amounts, amounts)
def test_a_job_is_accepted_exactly_when_it_fits(cores: int, memory: int, have_cores: int, have_memory: int) -> None:
    required = Capability(resources=Resources(Cpu(cores), memory * GIB))
    there = Resources(Cpu(have_cores), have_memory * GIB)
    fields = compare(required, Capability(resources=there))
    verdict = accept(fields, CapabilityComparator(), requester="did:key:zabc", price=0).verdict
    assert (verdict == "accept") == there.fits(required.resources) == (cores <= have_cores and memory <= have_memory)


def test_preferences_decide_beside_the_capability() -> None:
    me, other = new_identity().did, new_identity().did
    for comparator, price, verdict in (
        (CapabilityComparator(), 0, "accept"), (CapabilityComparator(deny=(me,)), 0, "decline"),
        (CapabilityComparator(allow=(other,)), 0, "decline"), (CapabilityComparator(allow=(me,)), 0, "accept"),
        (CapabilityComparator(minimum_price=10), 9, "decline"), (CapabilityComparator(minimum_price=10), 10, "accept"),
    ):  # fmt: skip
        assert accept((), comparator, requester=me, price=price).verdict == verdict


NOW = "2030-01-01T00:00:00.000Z"


def bid(amount: str, start: str = NOW, name: str = "") -> Bid:
    who = new_identity().node_id
    time = TimeBid(start, 60)
    return Bid(name or f"bid-{who.did[-6:]}", "r", "j", who, PriceBid(amount=amount), time, "2031-01-01T00:00:00Z", "c")


@given(st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_among_bids_alike_the_cheapest_comes_first(prices: list[int]) -> None:
    ranked = rank([bid(str(price)) for price in prices], Wishes(100 * quantities.MICRO), now=NOW, distance={})
    assert [item.price for item in ranked] == sorted(price * quantities.MICRO for price in prices)
    assert [item.rank for item in ranked] == list(range(1, len(prices) + 1))


def test_at_equal_price_an_idle_machine_and_then_the_nearer_one_wins() -> None:
    late, far, near = bid("1", "2030-01-01T00:30:00.000Z"), bid("1"), bid("1")
    distance = {far.bidder.did: 0.5, near.bidder.did: 0.01, late.bidder.did: 0.001}
    ranked = rank([late, far, near], Wishes(2 * quantities.MICRO), now=NOW, distance=distance)
    assert [item.bid for item in ranked] == [near, far, late]
    assert "starts in 30m" in ranked[2].why


def test_the_order_does_not_depend_on_the_order_of_arrival() -> None:
    bids = [bid("1", name=f"bid-{n}") for n in range(5)]
    limit = quantities.MICRO
    assert rank(bids, Wishes(limit), now=NOW, distance={}) == rank(bids[::-1], Wishes(limit), now=NOW, distance={})
