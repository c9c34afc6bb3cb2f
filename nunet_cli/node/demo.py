"""A market in one process, to look at: providers with different machines and prices, and jobs that suit some of them.

Everything is as it always is, real nodes on loopback with keys, contracts and a ledger; only the homes are thrown away.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
import trio

from nunet_cli import quantities
from nunet_cli.config import Config, ExecutorConfig, NetworkConfig, ProcessConfig
from nunet_cli.jobs.reader import read_spec
from nunet_cli.network.identity import load_or_create
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator.post import process_job
from nunet_cli.records.books import ACCOUNTS
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.jobs import JOB_ENDS
from nunet_cli.records.offers import OnboardOptions

COUNT = "n = {}; print(sum(all(k % d for d in range(2, int(k ** 0.5) + 1)) for k in range(2, n)))"
# primes below so many are counted: a moment of work, and with `slow` long enough to be looked at
LARGE, SMALL, SLOW = 60_000, 40_000, 25


@dataclass(frozen=True)
class Machine:
    """What a provider of the demonstration offers: a share of the cores, memory, a price, where it says to be."""

    name: str
    cores: float
    memory: str
    price: str
    country: str


MACHINES = (
    Machine("laptop", 0.2, "256MiB", "0.02", "SE"),
    Machine("desktop", 0.4, "512MiB", "0.05", "SE"),
    Machine("workstation", 0.6, "1GiB", "0.12", "NO"),
    Machine("server", 0.9, "2GiB", "0.4", "NO"),
    Machine("cluster", 0.9, "3GiB", "60/h", "DK"),
)


def jobs(cores: float, *, slow: bool = False) -> list[dict[str, Any]]:
    """Return ten jobs for a machine with so many cores; nobody will take the last one."""

    def job(name: str, price: str, memory: str, share: float, size: int = SMALL, **fields: Any) -> dict[str, Any]:
        command = ["python3", "-c", COUNT.format(size * (SLOW if slow else 1))]
        return {
            "name": name, "executor": {"type": "process", "command": command}, "price": price,
            "resources": {"cpu": round(share * cores, 2), "memory": memory, "disk": "16MiB"},
            "time": {"max_duration": "1m", "deadline": "5m"}, **fields,
        }  # fmt: skip

    small = [job(f"small-{number}", "0.2", "128MiB", 0.1) for number in range(1, 5)]
    return [
        *small,
        job("medium-1", "0.2", "400MiB", 0.3), job("medium-2", "0.2", "400MiB", 0.3),
        job("not-in-sweden", "1", "128MiB", 0.1, localities=[{"kind": "country", "name": "SE", "exclude": True}]),
        job("large", "1", "1500MiB", 0.5, LARGE), job("in-denmark", "2", "64MiB", 0.1,
        localities=[{"kind": "country", "name": "DK"}]),
        {**job("too-cheap", "0.01", "64MiB", 0.1), "time": {"max_duration": "1m"}},
    ]  # fmt: skip


@dataclass
class Demo:
    """The nodes, by their names, and the ids of the jobs that were posted."""

    requester: Node
    authority: Node
    providers: dict[str, Node]
    waiting: list[dict[str, Any]]
    posted: list[str]

    async def post(self, pause: float = 0) -> None:
        """Post the jobs, with a pause after each; they run in the background."""
        while self.waiting:
            text = json.dumps(self.waiting.pop(0))
            job = await process_job(
                self.requester.ctx, read_spec(text), folder=self.requester.ctx.home, orchestrate=True
            )
            self.posted.append(job.id)
            self.requester.orchestrate(job.id)
            await trio.sleep(pause)

    def name_of(self, did: str) -> str:
        """Return the name of a provider."""
        return next((name for name, node in self.providers.items() if node.identity.did == did), "?")

    def rows(self) -> list[dict[str, Any]]:
        """Return the jobs with who runs them, at what price."""
        found = []
        for job_id in self.posted:
            job = self.requester.get_job(job_id)
            contract = self.requester.ctx.store[CONTRACTS].get(job.contract_id)
            found.append({
                "id": job.id, "name": job.name, "state": job.state, "paid": job.paid or "",
                "provider": self.name_of(contract.provider) if contract is not None else "",
                "error": job.error.message if job.error is not None else "",
            })  # fmt: skip
        return found

    def machines(self) -> list[dict[str, Any]]:
        """Return the providers with how busy they are and what they have earned."""
        store = self.authority.ctx.store
        found = []
        for machine in MACHINES:
            node = self.providers[machine.name]
            account = store[ACCOUNTS].get(node.identity.did)
            earned = account.balance - quantities.parse_amount("100") if account is not None else 0
            found.append({
                "name": machine.name, "country": machine.country, "price": machine.price,
                "cores": node.get_registered_capability().resources.cpu.cores, "memory": machine.memory,
                "load": node.accounting.load(node.ctx.store), "earned": quantities.format_amount(earned),
            })  # fmt: skip
        return found

    def ended(self) -> bool:
        """Say whether every job has."""
        return not self.waiting and all(self.requester.get_job(job_id).state in JOB_ENDS for job_id in self.posted)


@contextlib.asynccontextmanager
async def open_demo(folder: Path, *, slow: bool = False) -> AsyncIterator[Demo]:
    """Open the market below a folder.

    Args:
        folder: for the homes of the nodes.
        slow: whether the jobs take some seconds each, for somebody who looks on.
    """
    cores = float(psutil.cpu_count() or 1)
    requester_did = load_or_create(folder / "requester").did
    network = NetworkConfig(listen="127.0.0.1:0", discovery=False, name="demo")
    executor = ExecutorConfig(process=ProcessConfig(trusted=(requester_did,)))
    async with contextlib.AsyncExitStack() as stack:

        async def start(name: str, peers: tuple[str, ...], *roles: str) -> Node:
            known = msgspec.structs.replace(network, peers=peers)
            config = Config(network=known, executor=executor, default_search_timeout=3)
            return await stack.enter_async_context(open_node(folder / name, config, roles=roles, isolated=True))

        authority = await start("authority", (), "contract-database", "oracle")
        address = authority.ctx.transport.describe()
        providers = {}
        for machine in MACHINES:
            node = providers[machine.name] = await start(machine.name, (address,))
            options = OnboardOptions(
                cpu=round(machine.cores * cores, 2), memory=machine.memory, disk="256MiB", price=machine.price,
                localities=(f"country={machine.country}",),
            )  # fmt: skip
            await node.onboard(options, None)
        addresses = (address, *(node.ctx.transport.describe() for node in providers.values()))
        requester = await start("requester", addresses)
        demo = Demo(requester, authority, providers, jobs(cores, slow=slow), [])
        with trio.move_on_after(5):
            while len(requester.ctx.topics.subscribers("/nunet/bids")) < len(providers):
                await requester.ctx.transport.wait_change(0.1)
        yield demo
