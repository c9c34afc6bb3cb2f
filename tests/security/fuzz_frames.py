"""A generator of frames: whatever a peer with a key can send, over a real connection, to real nodes in processes.

    python -m tests.security.fuzz_frames --seconds 60 --role provider --seed 1

Bodies of every registered type are made to fit, with ids that the node itself has said, and then spoilt; so are
envelopes, publications and frames of no kind at all; and so are the words of data connections. Requests of the node are answered with spoilt
answers. At the end each node must be alive, take an honest job to its settlement, have logged nothing unexpected, and
hold little more memory and store than in the middle. In a long run every kind of frame and every message type must have
been sent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import psutil
import trio

from nunet_cli import quantities
from nunet_cli.errors import NunetError
from nunet_cli.network import connection as frames
from nunet_cli.network.data.sealed import SealedStream
from nunet_cli.network.envelope import PREFIX
from nunet_cli.network.identity import Identity, load_or_create, new_identity
from nunet_cli.network.secure_channel import SecureChannel, data_identifier, network_identifier, offer_handshake
from nunet_cli.node.opening import open_node
from nunet_cli.records import contracts as contracts
from nunet_cli.records.documents import Document
from nunet_cli.records.identifiers import content_id
from nunet_cli.records.limits import checked
from nunet_cli.records.results import Result
from nunet_cli.supervise import UNEXPECTED
from tests import forks
from tests.conftest import config, free_port, onboarded, open_client

ROLES = ("provider", "requester", "authority")
TOPICS = ("/nunet/bids", "/nunet/events", "/x")
PARTS = ("requester", "provider", "contract_database", "oracle")
KINDS = (frames.ENVELOPE, frames.ACK, frames.PING, frames.PONG, frames.RELAY, frames.RELAYED,
         frames.DATA_WANTED)  # fmt: skip
# What a node may hold more at the end of a run than in its middle. A first answer is kept for each message, up to
# 20,000 and 32 MiB, which a minute does not fill: less than a kilobyte a frame. In the store are the requests that were
# accepted, mostly the contract database's: measured are 310 bytes a frame there, 60 elsewhere.
MEMORY_SLACK, MEMORY_PER_FRAME = 8 * 2**20, 1024
STORE_SLACK, STORE_PER_FRAME = 2**20, 512
# seconds of a run that is long enough to say so
LONG = 30
DOCUMENTS = {
    "contract": contracts.Contract, "proof": contracts.Proof, "receipt": contracts.Receipt, "result": Result,
    "verdict": contracts.JobVerificationResult,
}  # fmt: skip
SPEC = "name: x\nexecutor: {type: process, command: ['true']}\nprice: 1\n"
# written into the text as they are: JSON has no such numbers, or Python has them and others do not
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "-0", "9" * 400, "1.0", "1E2", '"\\ud800"', '"\\u0000"', "tru", "'x'")
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 2**80, 0.1, 1e308, -1e308, 5e-324, "",
    " ", "x" * 121, "x" * 5000, "\n", "\x00", "\x1b[2J", "‮txet", "ünï", "日本", "🦆" * 100, "٣", "²", "1_000", "-1",
    "1e9", "../../etc/passwd", "/etc/passwd", "%s%n{0}", "a..b:80", "[::1]:0", "0000-00-00T00:00:00Z",
    "9999-12-31T23:59:59.999+23:59", "2026-01-31T12:00:00.000+23:59", "did:key:z", "did:key:z6Mk\n", [], {}, [[]],
    [None] * 2000, {"": 1}, {"a": {"b": {"c": {}}}}, ["x"], {"x" * 300: "y"},
)  # fmt: skip


def registered(folder: Path) -> dict[str, Any]:
    """Return every message type that a node with every role takes, with the struct of its body."""
    return {name: known.kind for name, known in _look(folder, "contract-database", "oracle").items()}


def taken(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return for each role the types that a node has a behaviour for, beside those that only come as an answer."""
    both = tuple(name for name, known in _look(folder).items() if known.behaviour is not None)
    authority = _look(folder, "contract-database", "oracle").items()
    return {
        "provider": both, "requester": both,
        "authority": tuple(name for name, known in authority if known.behaviour is not None),
    }  # fmt: skip


def _look(folder: Path, *roles: str) -> dict[str, Any]:
    async def look() -> dict[str, Any]:
        async with open_node(folder, config(), roles=roles, read_only=True) as node:
            return dict(node.ctx.messenger._types)

    return trio.run(look)


class Maker:
    """Makes bodies that fit, and spoils them."""

    def __init__(self, rng: random.Random, identity: Identity, types: dict[str, Any], node: str) -> None:
        self.rng, self.identity, self.types, self.node = rng, identity, types, node
        self.seen: list[str] = [identity.did, "x", "contract-1", content_id(b"x"), "0", "1.5"]
        self._raw: dict[str, str] = {}
        self.known: dict[str, Any] = {}

    def hear(self, type_: str, body: Any) -> None:
        """Remember what was said, by a node or to it: the next message may be about the same."""
        if isinstance(body, dict):
            self.known |= {**body, type_: body}
            if "id" in body:
                self.known[f"{type_}_id"] = body["id"]
        self.learn(body)

    def learn(self, value: Any) -> None:
        """Remember the texts in it: ids that the node knows."""
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                self.learn(item)
        elif isinstance(value, str) and 0 < len(value) < 200 and value not in self.seen:
            self.seen.append(value)
            if len(self.seen) > 400:
                del self.seen[6 + self.rng.randrange(100)]

    def time(self) -> str:
        return quantities.format_time(
            quantities.now() + timedelta(seconds=self.rng.choice([-60, -1, 1, 30, 3600, 10**6]))
        )

    def document(self, name: str = "") -> dict[str, Any]:
        """Return a document, mostly of the kind that a field of this name holds, properly signed by this peer."""
        kind = DOCUMENTS.get(name) if self.rng.random() < 0.9 else None
        content = self.fit(_info(kind or self.rng.choice(list(DOCUMENTS.values()))))
        if isinstance(content, dict) and self.rng.random() < 0.7:
            for key in ("requester", "provider", "contract_database", "oracle"):
                if key in content and self.rng.random() < 0.8:
                    content[key] = self.node if key in ("contract_database", "oracle") else self.identity.did
        if self.rng.random() < 0.2:
            content = self.spoil(content)
        made = Document(self.text(content))
        for part in PARTS if self.rng.random() < 0.6 else self.rng.sample(PARTS, self.rng.randrange(4)):
            made = made.sign(self.identity, part)
        return msgspec.to_builtins(made)  # type: ignore[no-any-return]

    def fit(self, info: Any) -> Any:
        """Return a value that fits a type, mostly."""
        rng, inspect = self.rng, msgspec.inspect
        if isinstance(info, inspect.Metadata):
            return self.fit(info.type)
        if isinstance(info, inspect.StructType):
            if info.cls is checked(Document):
                return self.document()
            if info.cls.__name__ == "NodeID" and rng.random() < 0.8:
                return msgspec.to_builtins(self.identity.node_id)
            chosen = [field for field in info.fields if field.required or rng.random() < 0.5]
            return {field.encode_name: self._field(field) for field in chosen}
        if isinstance(info, inspect.StrType):
            return self._str(info)
        if isinstance(info, inspect.IntType):
            low, high = info.ge if info.ge is not None else -5, info.le if info.le is not None else 2**40
            return rng.choice([low, high, min(high, max(low, 1)), rng.randint(int(low), int(high))])
        if isinstance(info, inspect.FloatType):
            return rng.choice([info.ge or 0.0, info.le or 1e300, 0.5])
        if isinstance(info, inspect.LiteralType):
            return rng.choice(info.values)
        if isinstance(info, inspect.UnionType):
            return self.fit(rng.choice(info.types))
        if isinstance(info, (inspect.VarTupleType, inspect.ListType)):
            return [self.fit(info.item_type) for _ in range(rng.choice([0, 0, 1, 2, 3]))]
        if isinstance(info, inspect.DictType):
            return {"key": self.fit(info.value_type)}
        return {
            inspect.BoolType: rng.random() < 0.5, inspect.BytesType: "eA==", inspect.NoneType: None,
        }.get(type(info), rng.choice(ODD))  # fmt: skip

    def _field(self, field: Any) -> Any:
        if field.encode_name in self.known and self.rng.random() < 0.7:
            return self.known[field.encode_name]
        if field.encode_name in DOCUMENTS and getattr(field.type, "cls", None) is checked(Document):
            return self.document(field.encode_name)
        return self.fit(field.type)

    def bid_request(self) -> dict[str, Any]:
        """Return a bid request that a provider bids for."""
        needs = {
            "executors": ["process"], "job_types": ["batch"], "price": {"amount": "5"}, "time": {"max": 60},
            "resources": {"cpu": {"cores": 0.01}, "memory": 2**20, "disk": 2**20},
        }  # fmt: skip
        return {
            "id": f"request-{self.rng.getrandbits(80):020x}", "job_id": "job-1", "spec_cid": content_id(SPEC.encode()),
            "requester": msgspec.to_builtins(self.identity.node_id), "required_capability": needs,
            "deadline": quantities.format_time(quantities.now() + timedelta(seconds=60)), "topic": TOPICS[0], "name": "x",
        }  # fmt: skip

    def _str(self, info: Any) -> str:
        candidates = [*self.rng.sample(self.seen, min(6, len(self.seen))), self.identity.did, self.time(), "1", SPEC]
        candidates += ["docker", "per_result", "", "true", "1 < 2", "[1,2].map(x, [x]).size() > 0", "b" + "a" * 58]
        self.rng.shuffle(candidates)
        for text in candidates:
            if _fits(text, info):
                return text
        return self.rng.choice(candidates)

    def spoil(self, value: Any) -> Any:
        """Return the value with something in it replaced, left out or added."""
        rng = self.rng
        if isinstance(value, dict) and value and rng.random() < 0.85:
            key = rng.choice(list(value))
            chance = rng.random()
            if chance < 0.1:
                return {name: item for name, item in value.items() if name != key}
            if chance < 0.15:
                return {**value, rng.choice(["surprise", "", "__class__", key + " "]): rng.choice(ODD)}
            return {**value, key: self.spoil(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.8:
            place = rng.randrange(len(value))
            return [*value[:place], self.spoil(value[place]), *value[place + 1 :]]
        if rng.random() < 0.2:
            mark = f"raw-{rng.randrange(10**9)}"
            self._raw[mark] = rng.choice(RAW)
            return mark
        return rng.choice(self.seen) if rng.random() < 0.3 else rng.choice(ODD)

    def text(self, value: Any) -> str:
        """Return a value as text, with what is no JSON in it."""
        text = json.dumps(value)
        for mark in [mark for mark in self._raw if mark in text]:
            text = text.replace(f'"{mark}"', self._raw.pop(mark))
        return text.encode("utf-8", "replace").decode()

    def body(self, type_: str) -> Any:
        value = self.fit(_info(self.types[type_]))
        if type_ == "bid_request" and self.rng.random() < 0.7:
            value = self.bid_request()
        self.hear(type_, value)
        return self.spoil(value) if self.rng.random() < 0.5 else value

    def envelope(self, to: str, type_: str, reply_to: str = "", *, body: Any = None, at: Any = ()) -> bytes:
        """Return a signed envelope, at times spoilt, and signed all the same."""
        document = {
            "v": 1, "id": f"{self.rng.getrandbits(128):032x}", "type": type_, "from": self.identity.did, "to": to,
            "sent_at": quantities.utc_now(), "expires_at": quantities.format_time(quantities.now() + timedelta(seconds=60)),
            "reply_to": reply_to, "body": self.body(type_) if body is None else body, "at": list(at),
        }  # fmt: skip
        if self.rng.random() < 0.1:
            document = self.spoil(document)
        data = self.text(document).encode()
        return self.identity.sign(PREFIX + data) + data


@cache
def _info(kind: Any) -> Any:
    return msgspec.inspect.type_info(checked(kind))


def _fits(text: str, info: Any) -> bool:
    longest = 10**9 if info.max_length is None else info.max_length
    return (info.min_length or 0) <= len(text) <= longest and (not info.pattern or bool(re.search(info.pattern, text)))


class Fuzzer:
    """One peer that talks to one node until its time is over."""

    def __init__(self, rng: random.Random, node: Running, types: dict[str, Any], behaviours: tuple[str, ...]) -> None:
        self.rng, self.node, self.types = rng, node, types
        self.sent = 0
        self.sent_of: Counter[int | str] = Counter()
        # what the node has a behaviour for, so that not everything is sent that only comes as an answer
        self.taken = behaviours
        self.maker = Maker(rng, new_identity(), types, node.identity.did)

    async def run(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while True:
                if self.rng.random() < 0.2:
                    self.maker = Maker(self.rng, new_identity(), self.types, self.node.identity.did)
                try:
                    await self._converse()
                except (OSError, NunetError, trio.BrokenResourceError):
                    await trio.sleep(0.05)

    async def _converse(self) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", self.node.port)
        self._sending = trio.Lock()
        try:
            identifier = network_identifier(self.node.network)
            channel = await open_client(stream, identifier, self.maker.identity, self.node.identity.public_key, 2**20)
            hello = {"version": [1, 0], "agent": "fuzz", "roles": ["provider"], "topics": [TOPICS[0]], "port": 0}
            await self._send(channel, frames.ENVELOPE, self.maker.envelope(self.node.identity.did, "hello", body=hello))
            with trio.move_on_after(self.rng.uniform(0.5, 3)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, channel)
                    nursery.start_soon(self._ask_for_data, identifier)
                    while True:
                        kind, payload = self._frame()
                        await self._send(channel, kind, payload)
                        await trio.lowlevel.checkpoint()
        except* (OSError, NunetError, trio.BrokenResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _send(self, channel: SecureChannel, kind: int, payload: bytes) -> None:
        async with self._sending:
            await channel.send_frames(bytes([kind]) + payload)
        self.sent += 1
        self.sent_of[kind] += 1

    async def _listen(self, channel: SecureChannel) -> None:
        while True:
            frame = await channel.receive_frame()
            if frame[:1] != bytes([frames.ENVELOPE]):
                continue
            document = json.loads(frame[65:])
            self.maker.hear(document["type"], document["body"])
            if document["reply_to"]:
                continue
            wanted = {"bid_request": ("bid", "bid", "decline"), "hello": ("hello",)}.get(document["type"])
            type_ = self.rng.choice(wanted or tuple(self.types))
            answer = self.maker.envelope(self.node.identity.did, type_, document["id"])
            if document["type"] == "hello" or self.rng.random() < 0.1:
                await self._send(channel, frames.ACK, document["id"].encode())
            else:
                await self._send(channel, frames.ENVELOPE, answer)

    async def _ask_for_data(self, identifier: bytes) -> None:
        """Open data connections, and say on them what fits, what does not, and what is not sealed."""
        rng, maker = self.rng, self.maker
        while True:
            stream = await trio.open_tcp_stream("127.0.0.1", self.node.port)
            async with stream:
                with suppress(OSError, NunetError, trio.BrokenResourceError):
                    keys = await offer_handshake(
                        stream, data_identifier(identifier), maker.identity, self.node.identity.public_key
                    )
                    sealed = SealedStream(stream, keys, trio.CapacityLimiter(1))
                    for form in ({"ticket": ""}, {"cid": rng.choice(maker.seen), "offset": 0}):
                        await sealed.send_word(maker.text(maker.spoil(form) if rng.random() < 0.5 else form).encode())
                    self.sent_of["data"] += 1
                    if rng.random() < 0.5:
                        await stream.send_all(rng.randbytes(rng.choice([1, 4, 21, 100])))
                    with trio.move_on_after(0.2):
                        await sealed.receive_word()

    def _frame(self) -> tuple[int, bytes]:
        rng, maker, me = self.rng, self.maker, self.node.identity.did
        chance = rng.random()
        if chance < 0.7:
            type_ = rng.choice(self.taken if rng.random() < 0.8 else tuple(self.types))
            self.sent_of[type_] += 1
            return frames.ENVELOPE, maker.envelope(me, type_)
        if chance < 0.8:
            author = maker if rng.random() < 0.5 else Maker(rng, new_identity(), self.types, me)
            at = [f"127.0.0.1:{rng.randrange(65536)}"] * rng.randrange(3)
            raw = author.envelope(rng.choice(TOPICS), rng.choice(("bid_request", *self.types)), at=at)
            route: Any = {"hops": rng.randrange(17), "skip": ["00" * 8]}
            route = maker.spoil(route) if rng.random() < 0.6 else route
            return frames.RELAY, maker.text(route).encode() + b"\n" + raw
        if chance < 0.95:
            kind = rng.choice([kind for kind in KINDS if kind not in (frames.ENVELOPE, frames.RELAY)])
            if kind in (frames.PING, frames.PONG) and rng.random() < 0.7:
                return kind, rng.randbytes(rng.choice([0, 4, 7, 8, 9, 15, 16, 17, 1000]))
            forms: dict[int, Any] = {
                frames.DATA_WANTED: {"ticket": "ab", "cid": rng.choice(maker.seen)},
                frames.RELAYED: {"id": "x", "count": 1},
            }  # fmt: skip
            form = forms.get(kind, rng.choice(maker.seen))
            return kind, maker.text(maker.spoil(form) if rng.random() < 0.8 else form).encode()
        return rng.randrange(256), rng.randbytes(rng.choice([0, 1, 3, 4, 5, 63, 64, 65, 200]))


class Running:
    """A node in a process of its own."""

    def __init__(self, folder: Path, role: str, environment: dict[str, str], network: str) -> None:
        self.role, self.home, self.network, self.environment = role, folder / role, network, environment
        self.identity = load_or_create(self.home)
        self.port = free_port()
        self.log = folder / f"{role}.log"
        self.process: forks.Process | None = None

    @property
    def address(self) -> str:
        return f"{self.identity.peer_id}@127.0.0.1:{self.port}"

    def command(self, *arguments: str) -> list[str]:
        return ["--home", str(self.home), *arguments]

    def start(self, **environment: str) -> None:
        self.environment = {**self.environment, **environment, "NUNET_NETWORK_LISTEN": f"127.0.0.1:{self.port}"}
        options = ("--role", "contract-database", "--role", "oracle") if self.role == "authority" else ()
        with self.log.open("wb") as log:
            command = self.command("node", "run", *options)
            self.process = forks.Process(command, stdout=log, stderr=log, env=self.environment)

    def is_up(self) -> bool:
        return "stop with Ctrl-C" in self.log.read_text(errors="replace")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def memory(self) -> int:
        """Return the bytes of memory that the node holds."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def stored(self) -> int:
        """Return the bytes of its store."""
        return sum(path.stat().st_size for path in self.home.glob("store.db*"))

    def counts(self) -> dict[str, int]:
        """Return what the node says that it refused, and why."""
        done = forks.run(self.command("status", "--output", "json"), timeout=60, env=self.environment)
        return dict(json.loads(done.stdout)["rejections"]) if done.returncode == 0 else {}

    def problems(self) -> list[str]:
        """Return what is wrong with the node: that it ended, or what it logged."""
        found = []
        if self.process is None or self.process.poll() is not None:
            found.append(f"the {self.role} ended")
        lines = self.log.read_text(errors="replace").splitlines()
        bad = (UNEXPECTED, "Traceback", "Exception Group")
        found += [f"{self.role}: {line}" for line in lines if any(word in line for word in bad)]
        return found


def fuzz(folder: Path, *, seconds: float, roles: tuple[str, ...], seed: int, report: bool = False) -> dict[str, int]:
    """Run the three nodes, talk to those in `roles`, and look at them afterwards; return how many frames each got."""
    network = f"fuzz-{os.getpid()}-{seed}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUNET_")}
    environment |= {
        "NUNET_NETWORK_NAME": network, "NUNET_NETWORK_DISCOVERY": "false", "NUNET_NETWORK_RATE": "100000",
        "NUNET_NETWORK_MAX_CONNECTIONS_PER_ADDRESS": "64", "NUNET_EXECUTOR_PROCESS_FOREIGN": "unsandboxed",
        "NUNET_DEFAULT_SEARCH_TIMEOUT": "5s",
    }  # fmt: skip
    nodes = {role: Running(folder, role, environment, network) for role in ROLES}
    onboarded(nodes["provider"].home)
    types, behaviours = registered(folder / "look"), taken(folder / "look")
    authority = nodes["authority"]
    try:
        for node in nodes.values():
            others = ",".join(other.address for other in nodes.values() if other is not node)
            did = authority.identity.did
            node.start(NUNET_NETWORK_PEERS=others, NUNET_CONTRACT_DATABASE=did, NUNET_ORACLE=did)
        _wait(lambda: all(node.is_up() for node in nodes.values()))
        fuzzers = {
            role: Fuzzer(random.Random(f"{seed}/{role}"), nodes[role], types, behaviours[role]) for role in roles
        }
        # a job while it goes on, for which the requester asks the fuzzer, too
        job = folder / "job.yaml"
        job.write_text("name: honest\nexecutor: {type: process, command: ['true']}\nprice: 1\n"
                       "resources: {cpu: 0.1, memory: 16MiB, disk: 16MiB}\n")  # fmt: skip
        requester = nodes["requester"]
        meanwhile = forks.Process(
            requester.command("job", "run", str(job)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=requester.environment,
        )  # fmt: skip

        taken_up: dict[str, list[tuple[int, int, int]]] = {role: [] for role in roles}

        async def measure() -> None:
            # at the middle, where what is made once has been made, and at the end
            for _ in range(2):
                await trio.sleep(seconds / 2 - 0.1)
                for role in roles:
                    taken_up[role].append((nodes[role].memory(), nodes[role].stored(), fuzzers[role].sent))

        async def talk() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(measure)
                for fuzzer in fuzzers.values():
                    nursery.start_soon(fuzzer.run, seconds)

        try:
            trio.run(talk)
        finally:
            meanwhile.terminate()
            meanwhile.wait()
        problems = [problem for node in nodes.values() for problem in node.problems()]
        if not problems:
            problems = _honest_job(requester, job)
            problems += [problem for node in nodes.values() for problem in node.problems()]
        for role in roles if report else ():
            print(role, nodes[role].counts(), taken_up[role])
        # where there was time for all: each kind of frame, and each type that is registered
        for role, measured in taken_up.items() if seconds >= LONG else ():
            problems += _growth(role, measured)
            missed = [name for name in (*KINDS, "data", *types) if not fuzzers[role].sent_of[name]]
            problems += [f"the {role} was sent no {name}" for name in missed]
        assert not problems, "\n".join(problems[:20])
        return {role: fuzzer.sent for role, fuzzer in fuzzers.items()}
    finally:
        for node in nodes.values():
            node.stop()


def _growth(role: str, measured: list[tuple[int, int, int]]) -> list[str]:
    (memory, stored, sent), (memory_end, stored_end, sent_end) = measured
    frames_sent = sent_end - sent
    found = []
    if memory_end - memory > MEMORY_SLACK + frames_sent * MEMORY_PER_FRAME:
        found.append(f"the {role} went from {memory} to {memory_end} bytes of memory")
    if stored_end - stored > STORE_SLACK + frames_sent * STORE_PER_FRAME:
        found.append(f"the store of the {role} went from {stored} to {stored_end} bytes")
    return found


def _honest_job(requester: Running, job: Path) -> list[str]:
    # what a stranger had locked is free after a while
    done = forks.run(
        requester.command("job", "run", str(job), "--timeout", "90s"), timeout=180, env=requester.environment
    )
    settled = done.returncode == 0 and "Contract fulfilled" in done.stderr
    return [] if settled else [f"an honest job ended with {done.returncode}: {done.stderr[-2000:]}"]


def _wait(condition: Any, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the nodes did not start"
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--role", choices=[*ROLES, "all"], default="all")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--folder", type=Path, help="keep homes and logs here")
    options = parser.parse_args()
    roles = ROLES if options.role == "all" else (options.role,)
    with tempfile.TemporaryDirectory(prefix="nunet-fuzz-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sent = fuzz(folder, seconds=options.seconds, roles=roles, seed=options.seed, report=True)
    print(f"seed {options.seed}: {sent} frames; every node lives and has logged nothing unexpected")


if __name__ == "__main__":
    main()
