"""Shared fixtures: real nodes on loopback, in this process or in processes of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trio
from msgspec import Struct, structs

from nunet_cli import quantities
from nunet_cli.config import Config, DockerConfig, ExecutorConfig, LimitsConfig, NetworkConfig, ProcessConfig
from nunet_cli.database.store import Store
from nunet_cli.jobs.reader import read_spec
from nunet_cli.network.blobs import Blobs
from nunet_cli.network.identity import Identity
from nunet_cli.network.secure_channel import SecureChannel, offer_handshake
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator.post import process_job
from nunet_cli.records.books import ACCOUNTS
from nunet_cli.records.contract_records import CONTRACTS, REGISTERED_CONTRACTS
from nunet_cli.records.jobs import Job
from nunet_cli.records.offers import OnboardOptions
from tests import forks, leftovers

# a busy machine is slow, and that is no finding
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")
# started in the background of a script, a process ignores Ctrl-C, and so do those that it starts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# a process that cannot keep what it compiled takes three times as long to start
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


# those that take longest begin first, so that no worker is left with one when the others are done
LONGEST = (
    "test_ten_processes", "test_schemas", "test_documents", "test_ten_nodes", "test_simulation", "test_dashboard", "test_kills",
    "test_benchmarks", "test_namespaces", "test_scripts", "test_old_homes", "test_overview", "test_processes",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the tests into the order in which they are handed out: those that wait between those that compute."""

    def place(item: pytest.Item) -> tuple[int, int]:
        first = next((at for at, name in enumerate(LONGEST) if item.path.stem == name), len(LONGEST))
        # a module's tests stay together, for what they share
        return first, zlib.crc32(str(item.path.name).encode())

    items.sort(key=place)


def pytest_configure() -> None:
    """Mark all that is started from here on."""
    leftovers.mark()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that leaves something on the machine, and name it; the process that hands out the tests looks."""
    forks.stop()
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    folder = Path(session.config._tmp_path_factory.getbasetemp())  # type: ignore[attr-defined]  # made by pytest's tmpdir
    patience = float(os.environ.get("TESTS_PATIENCE", leftovers.PATIENCE))
    found = leftovers.left_behind(leftovers.mark(), folder, leftovers.namespace_tag(), patience=patience)
    for text in found:
        print(f"\nleft behind: {text}")
    if found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the developer's own node, and none sends anything off loopback."""
    for name in list(os.environ):
        if name.startswith("NUNET_") and name != "NUNET_NODE_MODULES":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NUNET_NETWORK_LISTEN", "127.0.0.1:0")


def config(**overrides: Any) -> Config:
    """A configuration for a node on loopback with static peers, and short times."""
    settings: dict[str, Any] = {
        "network": NetworkConfig(listen="127.0.0.1:0", discovery=False),
        "executor": ExecutorConfig(DockerConfig(images=("*",)), ProcessConfig(foreign="unsandboxed")),
        "limits": LimitsConfig(answer_timeout=5, heartbeat=1),
        "default_search_timeout": 3,
    }
    return Config(**{**settings, **overrides})


@dataclass
class Market:
    """Three nodes that know each other."""

    requester: Node
    provider: Node
    authority: Node
    folder: Path

    async def post(self, text: str, **options: Any) -> str:
        """Post a job and return its id."""
        job = await process_job(self.requester.ctx, read_spec(text), folder=self.folder, **options)
        return job.id

    def job(self, job_id: str) -> Job:
        return self.requester.get_job(job_id)

    def event_types(self, job_id: str) -> list[str]:
        return [event.type for _, event in self.requester.ctx.store.log(job_id)]

    async def let_pass_the_deadline(self, contract_id: str) -> None:
        """Let a contract's deadline be now, in the provider's books and in the contract database's."""
        tables: list[tuple[Node, Any]] = [(self.provider, CONTRACTS), (self.authority, REGISTERED_CONTRACTS)]
        for node, table in tables:
            now = quantities.utc_now()
            times = {"deadline": now} if table is CONTRACTS else {"deadline": now, "window_from": now}
            past = structs.replace(node.ctx.store[table].one(contract_id), **times)
            await node.ctx.store.change(lambda t, table=table, past=past: t[table].put(past))  # type: ignore[misc]
        self.provider.ctx.closings.look(contract_id)
        assert self.authority.contract_database is not None
        self.authority.contract_database.expect("")

    def balances(self) -> dict[str, int]:
        return {row.id: row.balance for row in self.authority.ctx.store[ACCOUNTS].all()}

    def balance(self, node: Node) -> int:
        return self.balances().get(node.identity.did, 0)


MarketFactory = Callable[..., contextlib.AbstractAsyncContextManager[Market]]


@contextlib.asynccontextmanager
async def open_market(
    folder: Path, *, price: str = "0.25", requester: Config | None = None, provider: Config | None = None,
    authority: Config | None = None, onboard: OnboardOptions | None = None,
) -> AsyncIterator[Market]:  # fmt: skip
    async with (
        open_node(folder / "authority", authority or config(), roles=("contract-database", "oracle")) as a,
        open_node(folder / "provider", provider or config()) as p,
        open_node(folder / "requester", requester or config()) as r,
    ):
        await p.onboard(onboard or OnboardOptions(price=price), None)
        for node in (p, r):
            await node.add_peer(a.ctx.transport.describe())
        await r.add_peer(p.ctx.transport.describe())
        yield Market(r, p, a, folder)


async def longest_pause(task: Any) -> float:
    """Run a task; return the longest time in which the event loop had no turn."""
    longest, last = 0.0, trio.current_time()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await task()
            nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        with trio.CancelScope():
            while not nursery.cancel_scope.cancel_called:
                await trio.lowlevel.checkpoint()
                now = trio.current_time()
                longest, last = max(longest, now - last), now
                await trio.sleep(0.001)
    return longest


@pytest.fixture
def market(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that opens a market in a fresh folder."""

    def make(**options: Any) -> Any:
        return open_market(tmp_path, **options)

    return make


@pytest.fixture
def shared() -> Iterator[Path]:
    """Return a folder that the tests' jobs see: the sandbox has that of Python, as it is."""
    with tempfile.TemporaryDirectory(prefix="nunet-tests-", dir=sys.prefix) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def total(store: Store) -> int:
    """Return the sum over all accounts of a contract database, micro-NTX: zero as long as the books are right."""
    return sum(row.balance for row in store[ACCOUNTS].all())


async def add_bytes(blobs: Blobs, data: bytes) -> tuple[str, int]:
    """Keep bytes as a blob; return its content id and size."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return await blobs.add_file(Path(file.name))


async def open_client(
    stream: trio.abc.Stream, network: bytes, identity: Identity, server_key: bytes, max_frame: int
) -> SecureChannel:
    """Open a channel of messages on a fresh stream, as the transport does."""
    return SecureChannel(stream, await offer_handshake(stream, network, identity, server_key), max_frame)


def nunet(
    *arguments: str, home: Path | None = None, check: bool = True, stdin: str | None = None, timeout: float = 180,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run the command line in a process of its own."""
    command = [*(["--home", str(home)] if home else []), *arguments]
    done = forks.run(command, stdin=stdin, timeout=timeout, cwd=cwd or ROOT)
    if check and done.returncode:
        raise AssertionError(f"nunet {command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
    assert "Traceback" not in done.stderr, done.stderr
    return done


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def post(node: Node, to: str, type_: str, body: Struct, *, lifetime: float) -> None:
    """Put a message into a node's outbox, as the changes of its stages do."""
    outbox = node.ctx.messenger.outbox
    message = outbox.outgoing(to, type_, body, lifetime=lifetime)
    await node.ctx.store.change(lambda t: outbox.enqueue(t, message))


def wait_until(condition: Callable[[], Any], timeout: float = 60, what: str = "the condition") -> Any:
    """Return the first true value of a condition, polled; fail when it takes longer than `timeout` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true in {timeout} s")


@dataclass
class Processes:
    """Three nodes in processes of their own, which find each other by mDNS on loopback."""

    folder: Path
    running: list[Path]

    @property
    def authority(self) -> Path:
        return self.folder / "a"

    @property
    def provider(self) -> Path:
        return self.folder / "p"

    @property
    def requester(self) -> Path:
        return self.folder / "r"

    def start(self, home: Path, *options: str) -> None:
        nunet("node", "start", *options, home=home)
        self.running.append(home)

    def stop(self, home: Path) -> None:
        self.running.remove(home)
        nunet("node", "stop", home=home)


def onboarded(home: Path) -> None:
    """Make the home of a provider of one core, 1 GiB of memory and of disk, at 0.2 NTX a job."""

    async def main() -> None:
        async with open_node(home, config()) as node:
            await node.onboard(OnboardOptions(cpu=1, memory="1GiB", disk="1GiB", price="0.2"), None)

    trio.run(main)


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """Start authority and provider; the requester is up to the test."""
    # a network of the test's own, so that tests that run at the same time do not meet
    monkeypatch.setenv("NUNET_NETWORK_NAME", f"test-{tmp_path.name}-{os.getpid()}")
    monkeypatch.setenv("NUNET_EXECUTOR_PROCESS_FOREIGN", "unsandboxed")
    monkeypatch.setenv("NUNET_LIMITS_HEARTBEAT", "1s")
    monkeypatch.setenv("NUNET_LIMITS_ANSWER_TIMEOUT", "10s")
    nodes = Processes(tmp_path, [])
    try:
        onboarded(nodes.provider)
        with ThreadPoolExecutor() as pool:
            pool.submit(nodes.start, nodes.provider)
            pool.submit(nodes.start, nodes.authority, "--role", "contract-database", "--role", "oracle")
        yield nodes
    finally:
        for home in list(nodes.running):
            nunet("node", "stop", home=home, check=False)


needs_docker = pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0,
    reason="no Docker Engine answers",
)
