"""Whole networks of real nodes in one process: an in-memory network, a virtual clock, and chance from a seed."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import trio
from trio.testing import MockClock

from nunet_cli import quantities
from nunet_cli.config import Config, DockerConfig, ExecutorConfig, LimitsConfig, NetworkConfig, ProcessConfig
from nunet_cli.jobs.reader import read_spec
from nunet_cli.network.links import MemoryNetwork
from nunet_cli.node.monitor import Load, Monitor
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator.post import process_job
from nunet_cli.records.allocations import ALLOCATIONS
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.books import ACCOUNTS
from nunet_cli.records.capability import Capability, Cpu, PriceBid, Resources
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.tokenomics import ledger
from nunet_cli.world import World, use_world
from tests.conftest import total

BEGIN = datetime(2030, 1, 1, tzinfo=UTC)
PORT = 4000
GIB = 2**30


class IdleMachine(Monitor):
    """A machine that nobody else uses, however busy the one that simulates it is."""

    # its time is not this machine's
    interval = math.inf

    def __init__(self) -> None:
        super().__init__(Path("/"))

    def load(self) -> Load:
        return Load(0.0, 2**50, 2**50)


class Simulation:
    """A network of nodes. `at` in its events is virtual time."""

    def __init__(self, folder: Path, seed: int, nursery: trio.Nursery) -> None:
        self.folder, self.random, self._nursery = folder, Random(seed), nursery
        self.network = MemoryNetwork(Random(seed + 1))
        self.nodes: dict[str, Node] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._gone: dict[str, trio.Event] = {}
        self._roles: dict[str, tuple[str, ...]] = {}
        self._configs: dict[str, dict[str, Any]] = {}
        # by how much every clock was set ahead
        self.clock_ahead = timedelta()

    def config(self, name: str, **overrides: Any) -> Config:
        settings: dict[str, Any] = {
            "network": NetworkConfig(listen=f"{name}:{PORT}", discovery=False, rate=10_000),
            "executor": ExecutorConfig(docker=DockerConfig(enabled=False), process=ProcessConfig(enabled=False)),
            "limits": LimitsConfig(answer_timeout=10, heartbeat=5),
        }
        return Config(**{**settings, **overrides})

    async def start(
        self, name: str, *, roles: tuple[str, ...] = (), knows: tuple[str, ...] = (), **overrides: Any
    ) -> Node:
        """Start a node, for the first time or again, and introduce it to others."""
        self._roles[name], self._configs[name] = roles, overrides
        node: Node = await self._nursery.start(self._run, name)
        for other in knows:
            key = self.nodes[other].identity.public_key
            node.ctx.peers.add(key, (other, PORT), "static")
        node.ctx.transport.dial_soon()
        return node

    async def _run(self, name: str, *, task_status: trio.TaskStatus[Node]) -> None:
        self._gone[name] = trio.Event()
        with trio.CancelScope() as self._scopes[name]:
            async with (
                open_node(
                    self.folder / name, self.config(name, **self._configs[name]), roles=self._roles[name],
                    monitor=IdleMachine(), links=self.network.links(name),
                ) as node,
                trio.open_nursery() as nursery,
            ):  # fmt: skip
                self.nodes[name] = node
                nursery.start_soon(self._watch, node)
                task_status.started(node)
                await trio.sleep_forever()
        self._gone[name].set()

    async def crash(self, name: str) -> None:
        """End a node without a word: nothing that it still wants to say gets out."""
        self.network.partition({name})
        self.network.crash(name)
        self._scopes[name].cancel()
        await self._gone[name].wait()
        self.network.partition()

    async def restart(self, name: str) -> Node:
        """Start a node again in its home."""
        return await self.start(name, roles=self._roles[name], **self._configs[name])

    async def _watch(self, node: Node) -> None:
        while True:
            event = node.ctx.store.new_event
            check_invariants(node)
            await event.wait()

    async def onboard(
        self, node: Node, *, cores: float = 4, memory: int = 8 * GIB, price: str = "0.25", unit: Any = "",
        comparator: CapabilityComparator | None = None, **fields: Any,
    ) -> None:  # fmt: skip
        """Let a node offer capability."""
        capability = Capability(
            job_types=("task", "service"), resources=Resources(Cpu(cores, 3000, "x86_64"), memory, 64 * GIB), **fields
        )
        bid: Any = PriceBid("per_time_unit" if unit else "per_result", "NTX", unit, price)
        await node.accounting.set_registered_capability(capability, None)
        await node.accounting.set_preferences(comparator or CapabilityComparator(), bid)
        await node._announce()

    async def post(self, node: Node, **fields: Any) -> str:
        """Post a job that the node takes through all stages by itself; return its id."""
        body = {
            "name": "job", "executor": {"type": "null", "env": {"NULL_SECONDS": fields.pop("seconds", 1)}},
            "price": "1", "resources": {"cpu": 1, "memory": "1GiB", "disk": "1GiB"}, **fields,
        }  # fmt: skip
        text = msgspec.json.encode(body).decode()
        job = await process_job(node.ctx, read_spec(text), folder=self.folder, orchestrate=True)
        node.orchestrate(job.id)
        return job.id

    async def wait_ended(self, names: dict[str, str], timeout: float = 3600) -> dict[str, str]:
        """Wait until jobs (id → node's name) have ended, in virtual seconds; return their states."""
        ends = {"settled", "failed", "cancelled", "expired", "disputed", "resolved"}

        def states() -> dict[str, str]:
            return {job_id: self.nodes[name].get_job(job_id).state for job_id, name in names.items()}

        with trio.move_on_after(timeout):
            while not all(state in ends for state in states().values()):
                await trio.sleep(1)
        return states()

    async def until(self, condition: Callable[[], bool], within: float) -> None:
        """Wait until a condition is true.

        Raises:
            trio.TooSlowError: that takes more than `within` virtual seconds.
        """
        with trio.fail_after(within):
            while not condition():
                await trio.sleep(1)

    def log(self) -> list[tuple[str, str, str, str]]:
        """Return every event of every node: who, when, about what, which."""
        return [
            (name, event.at, event.job_id, event.type)
            for name, node in sorted(self.nodes.items())
            for _, event in node.ctx.store.log()
        ]


def check_invariants(node: Node) -> None:
    """What holds after every event, whatever happened."""
    store = node.ctx.store
    # no machine is over-committed: this raises where it is
    node.accounting.available(store)
    assert total(store) == 0
    for account in store[ACCOUNTS].all():
        assert account.balance >= 0 or account.id == ledger.ISSUANCE, account
    allocations = list(store[ALLOCATIONS].all())
    assert len({row.contract_id for row in allocations}) == len(allocations)
    for row in allocations:
        assert store[CONTRACTS].one(row.contract_id).proof is not None


def check_documents(node: Node) -> None:
    """Every signed document that a node keeps verifies."""
    for row in node.ctx.store[CONTRACTS].all():
        for document in (row.document, row.proof, row.result, row.verdict, row.receipt):
            if document is not None:
                # what the provider refused nobody has signed
                assert document.signatures or (document is row.document and row.state == "refused")
                assert all(document.is_signed(entry.did, entry.role) for entry in document.signatures), (
                    document.content,
                    row.id,
                )


def run(
    main: Callable[[Simulation], Awaitable[Any]], folder: Path, seed: int = 0, kind: type[Simulation] = Simulation
) -> Any:
    """Run a simulation, of a kind, on a virtual clock; alike for one seed."""
    tokens = Random(seed + 2)
    simulations: list[Simulation] = []

    def now() -> datetime:
        ahead = simulations[0].clock_ahead if simulations else timedelta()
        return BEGIN + timedelta(seconds=trio.current_time()) + ahead

    world = World(
        now=now,
        token=lambda count: tokens.randbytes(count).hex(), threads=False,
    )  # fmt: skip
    outcome: list[Any] = []

    async def whole() -> None:
        with use_world(world):
            async with trio.open_nursery() as nursery:
                simulations.append(kind(folder, seed, nursery))
                outcome.append(await main(simulations[0]))
                nursery.cancel_scope.cancel()

    # the scheduler shuffles, and is told how: as pytest-trio does for Hypothesis
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio._core._run._r.seed(seed)
    try:
        trio.run(whole, clock=MockClock(autojump_threshold=0))
    finally:
        trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = False  # type: ignore[misc]
    assert quantities.now().year < 2030
    return outcome[0]
