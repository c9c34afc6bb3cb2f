"""Nodes of other versions: what they say beyond what this one knows is ignored; another major version is refused."""

import json
import logging
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from nunet_cli import quantities
from nunet_cli.api import views
from nunet_cli.errors import PeerError, UsageError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.jobs.reader import read_spec
from nunet_cli.network import messenger, topics
from nunet_cli.network.connection import ACK, ENVELOPE
from nunet_cli.network.envelope import PREFIX, Envelope, seal, unseal
from nunet_cli.network.identity import new_identity
from nunet_cli.network.peers import PROTOCOL_VERSION
from nunet_cli.node.opening import open_node
from nunet_cli.records.contracts import Contract, JobVerificationResult, Proof, Receipt
from nunet_cli.records.documents import Document
from nunet_cli.records.limits import checked
from nunet_cli.records.reading import decode, decode_exactly
from nunet_cli.records.results import Result
from tests.conftest import config, open_market
from tests.network.test_relay import Stranger
from tests.security.fuzz_frames import Maker, registered
from tests.security.test_hostile_peer import Hostile

DOCUMENTS = {kind.__name__: kind for kind in (Contract, Proof, Receipt, Result, JobVerificationResult)}
UNKNOWN: tuple[Any, ...] = (None, 0, 2**70, -1.5, "text", "\x1b[2J", [], {}, [{"a": {"b": [1]}}], {"id": "x"})


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {**registered(tmp_path_factory.mktemp("types")), **DOCUMENTS}


def structs(value: Any, info: Any) -> list[dict[str, Any]]:
    """Return the objects in a value that are structs by its type, from the outermost on."""
    inspect = msgspec.inspect
    if isinstance(info, inspect.Metadata):
        return structs(value, info.type)
    if isinstance(info, inspect.UnionType):
        fitting = (inspect.StructType, inspect.DictType) if isinstance(value, dict) else (inspect.VarTupleType,)
        return [found for part in info.types if isinstance(part, fitting) for found in structs(value, part)]
    if isinstance(info, inspect.StructType) and isinstance(value, dict):
        known = {field.encode_name: field.type for field in info.fields}
        return [value] + [found for name in [*value] if name in known for found in structs(value[name], known[name])]
    if isinstance(info, inspect.DictType) and isinstance(value, dict):
        return [found for item in value.values() for found in structs(item, info.value_type)]
    if isinstance(info, (inspect.VarTupleType, inspect.ListType)) and isinstance(value, list):
        return [found for item in value for found in structs(item, info.item_type)]
    return []


@given(data=st.data())
@settings(max_examples=400)
def test_of_every_message_and_document_unknown_fields_are_ignored_at_any_depth(
    types: dict[str, Any], data: st.DataObject
) -> None:
    kind = types[data.draw(st.sampled_from(sorted(types)))]
    maker = Maker(random.Random(data.draw(st.integers(0, 2**32))), new_identity(), types, new_identity().did)
    info = msgspec.inspect.type_info(checked(kind))
    value = maker.fit(info)
    try:
        expected = decode_exactly(json.dumps(value), kind)
    except msgspec.ValidationError:
        return
    places = structs(value, info)
    for _ in range(data.draw(st.integers(1, 3))):
        place = places[data.draw(st.integers(0, len(places) - 1))]
        name = data.draw(st.sampled_from(["newer", "", "__class__", "Ünï", "x" * 300]))
        if name not in place:
            place[name] = data.draw(st.sampled_from(UNKNOWN))
    text = json.dumps(value)
    assert decode(text, kind) == expected
    assert Document(text).read(kind) == expected


def test_what_is_wrong_is_refused_beside_an_unknown_field() -> None:
    good: dict[str, Any] = msgspec.to_builtins(topics.Hello(PROTOCOL_VERSION))
    assert decode(json.dumps({**good, "newer": 1}), topics.Hello) == topics.Hello(PROTOCOL_VERSION)
    for wrong in ({"port": -1}, {"roles": ["../x"]}, {"agent": 5}, {"version": [1]}, {"topics": {}}):
        with pytest.raises(msgspec.ValidationError):
            decode(json.dumps({**good, "newer": 1, **wrong}), topics.Hello)


@pytest.mark.parametrize(
    "text", ['{"newer": ' + "[" * 5000, '{"newer": tru}', '{"newer": 1', "[" * 5000, '{"newer":"\\ud8"}']
)
def test_what_is_no_json_is_refused_in_an_unknown_field_as_well(text: str) -> None:
    with pytest.raises((msgspec.MsgspecError, RecursionError)):
        decode(text, topics.Hello)


def test_what_people_write_still_has_no_unknown_fields() -> None:
    with pytest.raises(UsageError, match="surprise"):
        read_spec("name: x\nexecutor: {type: process, command: ['true']}\nsurprise: 1\n")


def test_an_envelope_with_an_unknown_field_is_checked_over_the_bytes_as_they_came() -> None:
    sender, receiver = new_identity(), new_identity()
    _, raw = seal(sender, receiver.did, "hello", topics.Hello(PROTOCOL_VERSION), lifetime=60)
    document = {**json.loads(raw[64:]), "newer": {"a": 1}}
    text = json.dumps(document, indent=1).encode()
    signed = sender.sign(PREFIX + text) + text
    assert unseal(signed, me=receiver.did).body == msgspec.Raw(json.dumps(document["body"], indent=1).encode()) or (
        json.loads(bytes(unseal(signed, me=receiver.did).body)) == document["body"]
    )
    with pytest.raises(Exception, match="signature"):
        unseal(raw[:64] + text, me=receiver.did)


async def test_a_market_of_newer_and_older_nodes_trades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the newer one says has a field more in each part, and it is two minor versions ahead."""
    async with open_market(tmp_path) as m:
        kinds = {
            name: known.kind
            for node in (m.provider, m.authority) for name, known in node.ctx.messenger._types.items()
        }  # fmt: skip
        newer = {m.provider.identity.did, m.authority.identity.did}
        real = messenger.seal

        def seal_newer(identity: Any, to: str, type_: str, body: Any, **options: Any) -> tuple[Envelope, bytes]:
            envelope, raw = real(identity, to, type_, body, **options)
            if identity.did not in newer:
                return envelope, raw
            document = json.loads(raw[64:])
            for place in structs(document["body"], msgspec.inspect.type_info(kinds[type_])):
                place["newer"] = {"deep": [1, {"id": "x"}]}
            if type_ == "hello":
                document["body"]["version"] = [PROTOCOL_VERSION[0], PROTOCOL_VERSION[1] + 2]
            text = json.dumps({**document, "newer": 1}).encode()
            return envelope, identity.sign(PREFIX + text) + text

        monkeypatch.setattr(messenger, "seal", seal_newer)
        for node in (m.provider, m.authority):
            await node.ctx.topics.set(roles=node.ctx.topics.roles, topics=node.ctx.topics.subscribed)
        peer = m.requester.ctx.peers.find(m.provider.identity.did)
        assert peer is not None
        with trio.fail_after(20):
            while peer.version != (PROTOCOL_VERSION[0], PROTOCOL_VERSION[1] + 2):
                await m.requester.ctx.transport.wait_change(0.1)
        job_id = await m.post("name: x\nexecutor: {type: process, command: ['true']}\nprice: 1\n")
        with trio.fail_after(60):
            job = await orchestrate_job(m.requester.ctx, job_id)
        assert job.state == "settled"


async def test_another_major_version_is_refused_and_both_sides_know_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = (PROTOCOL_VERSION[0] + 1, 3)
    said = f"it speaks version {theirs[0]}.3 of the protocol, and this node {PROTOCOL_VERSION[0]}.{PROTOCOL_VERSION[1]}"
    caplog.set_level(logging.WARNING, logger="nunet.topics")
    async with open_node(tmp_path, config()) as node:
        other = await Hostile.connect(node)
        hello = {"version": list(theirs), "agent": "next/2", "roles": ["provider"], "unheard": {"of": 1}}
        await other.envelope("hello", hello)
        heard: dict[str, Any] = {}
        with trio.fail_after(20):
            while not {"hello", "error_message"} <= heard.keys():
                frame = await other.channel.receive_frame()
                if frame[0] == ENVELOPE:
                    document = json.loads(frame[65:])
                    heard[document["type"]] = document["body"]
                    await other.send(ACK, document["id"].encode())
            # each side has the other's version by now, and the connection is of no use
            with pytest.raises(Exception, match=r"closed|cut"):
                while True:
                    await other.channel.receive_frame()
        assert heard["hello"]["version"] == list(PROTOCOL_VERSION)
        assert (heard["error_message"]["code"], heard["error_message"]["message"]) == ("protocol_version", said)
        peer = node.ctx.peers.find(other.identity.did)
        assert peer is not None
        assert not peer.introduced
        assert views.peer(peer)["problem"] == said
        assert views.peer(peer)["protocol"] == f"{theirs[0]}.3"
        assert said in caplog.text
        assert node.ctx.transport.rejections["protocol_version"] == 1
        with pytest.raises(PeerError, match="it speaks version"), trio.fail_after(5):
            await node.ctx.transport.wait_connected(other.identity.public_key)
        job = await _search(node)
        assert said in job


async def _search(node: Any) -> str:
    from nunet_cli.errors import NoBidError
    from nunet_cli.orchestrator.match import match
    from nunet_cli.orchestrator.post import process_job

    spec = read_spec("name: x\nexecutor: {type: process, command: ['true']}\nprice: 1\n")
    job = await process_job(node.ctx, spec, folder=node.ctx.home)
    with pytest.raises(NoBidError) as caught:
        await match(node.ctx, job.id, timeout=1)
    return caught.value.message


async def test_a_publication_of_a_newer_node_is_passed_on_and_taken(tmp_path: Path) -> None:
    async with open_node(tmp_path, config()) as node:
        await node.ctx.topics.set(roles=(), topics=frozenset({"/lab/notes"}))
        heard = trio.Event()

        async def note(_: Any) -> None:
            heard.set()

        node.ctx.relay.on_publication("hello", topics.Hello, note)
        author = new_identity()
        body = {"version": [1, 9], "newer": 1}
        document = {
            "v": 1, "id": "n1", "type": "hello", "from": author.did, "to": "/lab/notes", "sent_at": quantities.utc_now(),
            "expires_at": quantities.format_time(quantities.now() + timedelta(seconds=60)), "body": body, "newer": [1],
        }  # fmt: skip
        text = json.dumps(document).encode()
        stranger = await Stranger(node, new_identity()).connect()
        await stranger.relay(author.sign(PREFIX + text) + text, newer="field")
        with trio.fail_after(20):
            await heard.wait()
