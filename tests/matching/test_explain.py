"""The smallest change that would have got a bid: it does, and no smaller one is overlooked."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.matching.accept import accept
from nunet_cli.matching.compare import compare
from nunet_cli.matching.explain import (
    EXAMPLES,
    MOST_REASONS,
    Suggestion,
    common,
    counts,
    parts,
    sentence,
    suggest,
    table,
)
from nunet_cli.records.bids import CapabilityComparator, Comparison
from nunet_cli.records.capability import Capability, Cpu, Locality, PriceBid, Resources, Storage, TimeCapability

GIB = 2**30
AMOUNTS = st.integers(1, 64)


@st.composite
def capabilities(draw: st.DrawFn) -> Capability:
    return Capability(
        resources=Resources(
            Cpu(draw(AMOUNTS) / 4, draw(AMOUNTS) * 100.0), draw(AMOUNTS) * GIB // 3, draw(AMOUNTS) * GIB
        ),
        localities=(Locality("country", draw(st.sampled_from(["SE", "NO"]))),),
        storage=(Storage("ssd", draw(AMOUNTS) * GIB),),
        price=PriceBid(amount=quantities.format_amount(draw(st.integers(1, 10**7)))),
        time=TimeCapability(max=draw(st.integers(1, 10**6))),
    )


def declines(job: Capability, providers: list[Capability]) -> list[tuple[str, list[Comparison], list[str]]]:
    found = []
    for number, provider in enumerate(providers):
        outcome = accept(compare(job, provider), CapabilityComparator(), requester="did:key:z", price=0)
        if outcome.verdict == "accept":
            return []
        found.append((f"peer-{number}", list(outcome.fields), list(outcome.reasons)))
    return found


def apply(job: Capability, suggestion: Suggestion) -> Capability:
    """Change a job as a person would who does what the suggestion says."""
    resources = job.resources
    for change in suggestion.changes:
        if change.path == "resources.cpu.cores":
            resources = structs.replace(resources, cpu=structs.replace(resources.cpu, cores=float(change.then)))
        elif change.path == "resources.cpu.mhz":
            resources = structs.replace(resources, cpu=structs.replace(resources.cpu, mhz=float(change.then)))
        elif change.path == "resources.memory":
            resources = structs.replace(resources, memory=quantities.parse_size(change.then))
        elif change.path == "resources.disk":
            resources = structs.replace(resources, disk=quantities.parse_size(change.then))
        elif change.path == "price.max":
            job = structs.replace(job, price=PriceBid(amount=change.then))
        elif change.path == "time.max_duration":
            job = structs.replace(job, time=TimeCapability(max=quantities.parse_duration(change.then)))
        elif change.path == "storage.ssd":
            job = structs.replace(job, storage=(Storage("ssd", quantities.parse_size(change.then)),))
        elif change.path == "localities.country":
            job = structs.replace(job, localities=())
        else:
            raise AssertionError(change)
    return structs.replace(job, resources=resources)


@given(capabilities(), st.lists(capabilities(), min_size=1, max_size=4))
def test_the_changed_job_gets_a_bid_and_no_single_provider_is_nearer(
    job: Capability, providers: list[Capability]
) -> None:
    answers = declines(job, providers)
    suggestion = suggest(answers)
    if not answers:
        return
    assert suggestion is not None
    assert declines(apply(job, suggestion), providers) == []
    assert sentence(suggestion)
    each = [suggest([answer]) for answer in answers]
    assert suggestion.distance == min(one.distance for one in each if one is not None)


def test_a_provider_that_does_not_want_to_is_not_suggested() -> None:
    job, provider = Capability(resources=Resources(Cpu(4))), Capability(resources=Resources(Cpu(2)))
    fields = compare(job, provider)
    unwilling = accept(fields, CapabilityComparator(deny=("did:key:zabc",)), requester="did:key:zabc", price=0)
    assert suggest([("peer", list(unwilling.fields), list(unwilling.reasons))]) is None
    rows = table([("peer", list(unwilling.fields), list(unwilling.reasons))])
    assert [row["constraint"] for row in rows if row["result"] == "worse"] == ["cpu.cores", "peer"]


def test_nobody_is_told_to_drop_what_a_job_is() -> None:
    for field in ("executors", "executor.image", "job_types", "machine", "preferences.rules[0]"):
        missed = Comparison(field, "worse", "docker", "none", "-1", "none here")
        assert suggest([("peer", [missed], [f"{field}: none here"])]) is None
    changed = Comparison("localities.country", "worse", "SE", "NO", "", "elsewhere")
    assert suggest([("peer", [changed], ["localities.country: elsewhere"])]) is not None


@given(st.lists(st.tuples(st.sampled_from(["failed", "settled", "matching"]), st.integers(0, 40).map(str))))
def test_the_parts_of_a_group_are_all_its_children_and_few(children: list[tuple[str, str]]) -> None:
    named = [(f"c{number}", state, reason) for number, (state, reason) in enumerate(children)]
    found = parts(named)
    assert sum(part.count for part in found) == len(children)
    by_state = counts(state for _, state, _ in named)
    assert {state: sum(part.count for part in found if part.state == state) for state in by_state} == by_state
    assert len(found) <= MOST_REASONS + len(by_state)
    assert all(len(part.examples) == min(EXAMPLES, part.count) for part in found)
    where = {name: state for name, state, _ in named}
    assert all(where[name] == part.state for part in found for name in part.examples)


def test_what_those_that_declined_have_in_common_is_one_line() -> None:
    assert common([]) == ""
    assert common([[]]) == ""
    assert common([["cpu.cores: 3 short"]]) == "cpu.cores: 3 short"
    assert common([["cpu.cores: 3 short"], ["price: 0.1 NTX over", "cpu.cores: 3 short"]]) == (
        "cpu.cores: 3 short (2 of 2), price: 0.1 NTX over (1 of 2)"
    )
    # a peer says what it likes
    many = common([[f"{number} {'x' * 10_000}"] for number in range(50)])
    assert many.endswith(", and 47 more")
    assert len(many) < 500
