"""What comes from elsewhere is refused over each limit of each field; what comes from the store is read without them."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import pytest
from msgspec import Meta, Struct, structs

from nunet_cli.api.openapi import ENDPOINTS
from nunet_cli.database.store import Store
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.network import blobs, envelope, relay
from nunet_cli.network.identity import new_identity
from nunet_cli.records.bids import BID_REQUESTS, Bid, BidRequest, BidRequestRecord
from nunet_cli.records.capability import Capability
from nunet_cli.records.contracts import Contract, JobVerificationResult, Proof, Receipt
from nunet_cli.records.documents import Document
from nunet_cli.records.kyc import KycStatement
from nunet_cli.records.limits import Limits, checked
from nunet_cli.records.reading import LARGEST_REMEMBERED, as_read, convert, decode, decode_again
from nunet_cli.records.results import Result
from nunet_cli.tokenomics.evidence import Bundle
from tests.security.fuzz_frames import registered

NOW, DID = "2026-01-31T12:00:00.000Z", new_identity().did
TEXTS = ("a", NOW, DID, "1", "aaaaaaaaaaaa", "sha256", "/x")
OTHERS: tuple[Any, ...] = (
    Contract, Proof, Receipt, Result, JobVerificationResult, KycStatement, Bundle, Document, Capability, JobSpec,
    relay._Route, relay._Forwarded, blobs.Get, blobs.Answer, envelope.Envelope,
)  # fmt: skip
# what else bounds it: the frame that it came in, or the struct itself
UNBOUNDED = {"ErrorMessage.details", "LogChunk.data", "Envelope.body"}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    bodies = [endpoint.body for endpoint in ENDPOINTS if endpoint.body is not None]
    found = [*registered(tmp_path_factory.mktemp("types")).values(), *OTHERS, *bodies]
    return {kind.__name__: kind for kind in found}


def limits_of(part: Any) -> Limits | None:
    """Return what `Annotated` says of a type; the configuration's types have msgspec's own."""
    if isinstance(part, Meta):
        return Limits(*(getattr(part, name) for name in Limits.__struct_fields__))
    return part if isinstance(part, Limits) else None


def fit(kind: Any, deep: int = 0) -> Any:
    """Return a value that fits, with every field that there is."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        limits = limits_of(parts[1])
        return _fit_limits(parts[0], limits, deep) if limits is not None else fit(parts[0], deep)
    if origin in (Union, UnionType):
        return fit(parts[0], deep)
    if origin is Literal:
        return parts[0]
    if origin is dict:
        return {fit(parts[0], deep): fit(parts[1], deep)}
    if origin is tuple:
        return [fit(part, deep) for part in parts if part is not ...]
    if isinstance(kind, type) and issubclass(kind, Struct):
        # a job may have children, and those none
        known = [part for part in structs.fields(kind) if deep < 2 or "children" not in part.name]
        return {part.encode_name: fit(part.type, deep + (kind is JobSpec)) for part in known}
    examples: dict[Any, Any] = {str: "a", int: 1, float: 1.0, bool: True, bytes: "YQ==", Any: 1, msgspec.Raw: {}}
    return examples[kind]


def _fit_limits(kind: Any, limits: Limits, deep: int) -> Any:
    if kind is str:
        return next(text for text in (*TEXTS, "") if _takes(limits, text))
    if kind in (int, float):
        least = limits.ge if limits.ge is not None else (limits.gt or 0) + 1
        return kind(least)
    return fit(kind, deep)


def _takes(limits: Limits, value: Any) -> bool:
    try:
        msgspec.convert(value, Annotated[str, limits.as_meta()])
    except msgspec.ValidationError:
        return False
    return True


def over(limits: Limits, kind: Any, value: Any) -> Iterator[Any]:
    """Return values that are each over one of the limits."""
    if limits.ge is not None:
        yield kind(limits.ge) - 1
    if limits.gt is not None:
        yield kind(limits.gt)
    if limits.le is not None:
        yield kind(limits.le) * 2 + 1
    if limits.lt is not None:
        yield kind(limits.lt)
    if limits.pattern is not None:
        yield "\n"
    if limits.min_length:
        yield "" if isinstance(value, str) else []
    if limits.max_length is not None:
        yield "a" * (limits.max_length + 1) if isinstance(value, str) else value * (limits.max_length + 1)


def places(kind: Any, value: Any, path: str = "$", deep: int = 0) -> Iterator[tuple[str, list[Any], Any, Any]]:
    """Return each place in a value that has limits: its path as msgspec says it, its keys, its type and its limits."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        if (limits := limits_of(parts[1])) is not None:
            yield path, [], parts[0], limits
        yield from places(parts[0], value, path, deep)
    elif origin in (Union, UnionType):
        yield from places(parts[0], value, path, deep)
    elif origin is dict:
        for key in value:
            yield from _inside(key, places(parts[1], value[key], f"{path}[...]", deep))
    elif origin is tuple:
        for index, part in enumerate(parts):
            if part is not ...:
                yield from _inside(index, places(part, value[index], f"{path}[{index}]", deep))
    elif isinstance(kind, type) and issubclass(kind, Struct):
        for part in structs.fields(kind):
            name = part.encode_name
            if name in value:
                yield from _inside(name, places(part.type, value[name], f"{path}.{name}", deep))


def _inside(key: Any, found: Iterator[tuple[str, list[Any], Any, Any]]) -> Iterator[tuple[str, list[Any], Any, Any]]:
    return ((path, [key, *keys], kind, limits) for path, keys, kind, limits in found)


def replaced(value: Any, keys: list[Any], new: Any) -> Any:
    """Return a value in which what is at a place is another."""
    if not keys:
        return new
    if isinstance(value, dict):
        return {**value, keys[0]: replaced(value[keys[0]], keys[1:], new)}
    return [*value[: keys[0]], replaced(value[keys[0]], keys[1:], new), *value[keys[0] + 1 :]]


def at(value: Any, keys: list[Any]) -> Any:
    for key in keys:
        value = value[key]
    return value


def test_every_message_document_and_body_is_refused_over_each_of_its_limits(kinds: dict[str, Any]) -> None:
    tried = 0
    for name, kind in kinds.items():
        good = fit(kind)
        decode(json.dumps(good), kind)
        for path, keys, inner, limits in places(kind, good):
            known = at(good, keys)
            for bad in over(limits, inner, known):
                value = replaced(good, keys, bad)
                with pytest.raises(msgspec.ValidationError) as caught:
                    decode(json.dumps(value), kind)
                place = "" if path == "$" else f" - at `{path}`"
                assert str(caught.value).endswith(place), (name, path, bad)
                if kind is JobSpec:
                    with pytest.raises(msgspec.ValidationError, match=re.escape(str(caught.value))):
                        convert(value, kind)
                tried += 1
    assert tried > 1000


def test_an_unknown_field_lets_nothing_through() -> None:
    """It is left out in a text of its own, which is checked as the first was."""
    good = fit(Bid)
    assert decode(json.dumps({**good, "newer": 1}), Bid) == decode(json.dumps(good), Bid)
    for _, keys, inner, limits in places(Bid, good):
        for bad in over(limits, inner, at(good, keys)):
            with pytest.raises(msgspec.ValidationError):
                decode(json.dumps({**replaced(good, keys, bad), "newer": 1}), Bid)


def test_what_is_read_again_is_decoded_once_and_checked_as_ever() -> None:
    good = fit(Capability)
    text = json.dumps(good)
    first = decode_again(text, Capability)
    assert first == decode(text, Capability)
    assert decode_again("".join(text), Capability) is first
    assert decode_again(msgspec.Raw(text.encode()), Capability) == first
    newer = json.dumps({**good, "newer": 1})
    assert decode_again(newer, Capability) == first
    for _ in range(2):
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            decode_again(newer, Capability, exactly=True)
        with pytest.raises(msgspec.ValidationError, match=r"\$\.resources\.disk"):
            decode_again(json.dumps(replaced(good, ["resources", "disk"], -1)), Capability)
    # what is long is not kept
    long = text + " " * LARGEST_REMEMBERED
    assert decode_again(long, Capability) == first
    assert decode_again(long, Capability) is not decode_again(long, Capability)


def unbounded(kind: Any, place: str, seen: set[Any]) -> Iterator[str]:
    """Return the fields below a type that may be of any size."""
    origin, parts = get_origin(kind), get_args(kind)
    limits = (limits_of(parts[1]) if origin is Annotated else None) or Limits()
    inner = parts[0] if origin is Annotated else kind
    origin, parts = get_origin(inner), get_args(inner)
    if origin in (Union, UnionType):
        for part in parts:
            yield from unbounded(part, place, seen)
    elif origin is tuple:
        if ... in parts and limits.max_length is None:
            yield place
        for part in parts:
            yield from unbounded(part, place, seen) if part is not ... else ()
    elif isinstance(inner, type) and issubclass(inner, Struct):
        if inner not in seen:
            seen.add(inner)
            for part in structs.fields(inner):
                yield from unbounded(part.type, f"{inner.__name__}.{part.name}", seen)
    elif inner is str:
        if limits.max_length is None and (limits.pattern is None or _takes(limits, "1" * 5000)):
            yield place
    elif inner in (int, float):
        if (limits.ge is None and limits.gt is None) or (limits.le is None and limits.lt is None):
            yield place
    elif origin is not Literal and inner not in (bool, type(None)):
        yield place


def test_no_message_has_a_field_that_may_be_of_any_size(tmp_path: Path) -> None:
    seen: set[Any] = set()
    types = [*registered(tmp_path).values(), envelope.Envelope, relay._Route, relay._Forwarded, blobs.Get, blobs.Answer]
    found = {place for kind in types for place in unbounded(kind, kind.__name__, seen)}
    assert found == UNBOUNDED
    # and it would be found
    lost = msgspec.defstruct("Lost", [("id", str), ("several", tuple[BidRequest, ...]), ("number", int)])
    assert set(unbounded(lost, "Lost", set())) >= {"Lost.id", "Lost.several", "Lost.number"}


async def test_a_row_of_the_store_is_read_as_it_is(tmp_path: Path) -> None:
    """One that an earlier version took, with other limits, say."""
    good = decode(json.dumps(fit(BidRequest)), BidRequest)
    row = BidRequestRecord("r", "j", "sent", NOW, structs.replace(good, name="\n" * 500))
    with Store(tmp_path) as store:
        await store.change(lambda t: t[BID_REQUESTS].put(row))
        assert store[BID_REQUESTS].get("r") == row
    with pytest.raises(msgspec.ValidationError, match=r"\$\.request\.name"):
        as_read(row)


def test_a_checked_type_looks_like_the_one_it_is_made_of() -> None:
    made = checked(JobSpec)
    assert made is checked(JobSpec)
    assert (made.__name__, made.__module__, made.__doc__) == (JobSpec.__name__, JobSpec.__module__, JobSpec.__doc__)
    for old, new in zip(structs.fields(JobSpec), structs.fields(made), strict=True):
        assert (old.name, old.encode_name, old.default) == (new.name, new.encode_name, new.default)
        assert (old.default_factory, old.required) == (new.default_factory, new.required)


class Item(Struct):
    name: Annotated[str, Limits(max_length=3)]


def test_threads_that_read_a_type_first_at_once_all_check_it() -> None:
    """Without a lock msgspec ends the whole process: it looks at a type once, and not twice at a time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            _read_at_once()
    finally:
        sys.setswitchinterval(interval)


def _read_at_once() -> None:
    names = [f"f{n}" for n in range(30)]
    kind = msgspec.defstruct("Outer", [(name, Annotated[tuple[Item, ...], Limits(max_length=2)]) for name in names])
    bad = [json.dumps({**{key: [] for key in names}, name: [{"name": "four"}]}) for name in names[:8]]
    start, refused = Barrier(len(bad)), []

    def read(text: str) -> None:
        start.wait(10)
        try:
            decode(text, kind)
        except msgspec.ValidationError as error:
            refused.append(str(error))

    threads = [Thread(target=read, args=(text,)) for text in bad]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(refused) == [f"Expected `str` of length <= 3 - at `$.{name}[0].name`" for name in names[:8]]
