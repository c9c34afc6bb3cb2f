"""Real nodes as processes of their own, on loopback: one alone, or a market of authority, provider and requester."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nunet_cli.api.client import ApiClient, socket_path

PATIENCE = 30.0
ROLES = ("--role", "contract-database", "--role", "oracle")
# a job so small that many find room on any machine, and a provider that has the room
SMALL = {"cpu": 0.02, "memory": "1MiB", "disk": "1MiB"}
OFFER = ("--cpu", "1", "--memory", "256MiB", "--disk", "256MiB", "--price", "0.001")
JOB_ENDS = {"settled", "failed", "cancelled", "expired", "disputed", "resolved"}


@dataclass
class NodeProcess:
    """A node that runs in a process of its own."""

    name: str
    home: Path
    process: subprocess.Popen[bytes]
    client: ApiClient

    def cpu_seconds(self) -> float:
        """Return what the node's process, and those that it started, have had of the processor."""
        times = [part.cpu_times() for part in self._all()]
        return sum(time.user + time.system for time in times)

    def memory(self) -> int:
        """Return the memory that the node's processes hold alone, in bytes."""
        return sum(part.memory_full_info().uss for part in self._all())

    def _all(self) -> list[psutil.Process]:
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]


@dataclass
class Market:
    """Three nodes that know each other, or more; `env` is the environment of commands for them."""

    authority: NodeProcess
    provider: NodeProcess
    requester: NodeProcess
    others: tuple[NodeProcess, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    @property
    def nodes(self) -> tuple[NodeProcess, ...]:
        """All of them."""
        return self.authority, self.provider, self.requester, *self.others

    def run_job(self) -> float:
        """Post a job that does nothing, and follow its events until it has settled; return the seconds between.

        Raises:
            RuntimeError: it ended otherwise, or was silent for too long.
        """
        spec = {"name": "nothing", "executor": {"type": "null"}, "price": "1", "resources": SMALL}
        client = self.requester.client
        begin = time.perf_counter()
        job = client.post("/orchestrator/postJob", {"spec": spec}, timeout=PATIENCE)
        for event in client.events(f"/jobs/{job['id']}/events", silence=PATIENCE, follow=1):
            state = event["type"].removeprefix("job_")
            if state == "settled":
                return time.perf_counter() - begin
            if state in JOB_ENDS:
                raise RuntimeError(f"a job ended {state}: {event['data']}")
        raise RuntimeError(f"the events of job {job['id']} ended before it did")


def environment(folder: Path, *, docker: bool = False) -> dict[str, str]:
    """Return the environment of a market's commands: nothing of the user's own node, and a network of its own."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("NUNET_")}
    return kept | {
        "NUNET_NETWORK_NAME": f"bench-{folder.name}-{os.getpid()}", "NUNET_NETWORK_LISTEN": "127.0.0.1:0",
        "NUNET_NETWORK_DISCOVERY": "false",
        # the bound on a peer's messages is not what is measured
        "NUNET_NETWORK_RATE": "10000",
        "NUNET_EXECUTOR_DOCKER_ENABLED": str(docker).lower(), "NUNET_EXECUTOR_DOCKER_IMAGES": "*",
        "NUNET_EXECUTOR_PROCESS_ENABLED": "false",
    }  # fmt: skip


def nunet(home: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Run a command in a home and return what it prints.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "nunet_cli", "--home", str(home), *arguments], env=env, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"nunet {' '.join(arguments)} failed: {done.stderr}")
    return done.stdout


@contextlib.contextmanager
def running(name: str, home: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[NodeProcess]:
    """Run a node for the duration of the context; its log is `node.log` in its home."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    client = ApiClient(socket_path(home))
    command = [sys.executable, "-m", "nunet_cli", "--home", str(home), "node", "run", *options]
    with (home / "node.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or client.answers(), f"the start of {name}")
        if process.poll() is not None:
            raise RuntimeError(f"{name} did not start: {(home / 'node.log').read_text()[-2000:]}")
        yield NodeProcess(name, home, process, client)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def open_market(
    folder: Path, *, docker: bool = False, offer: Sequence[str] = (), also: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> Iterator[Market]:  # fmt: skip
    """Run an authority, a provider and a requester that know each other, for the duration of the context.

    Args:
        folder: where their homes are made.
        docker: whether the provider uses a Docker Engine.
        offer: what it offers, as options of `nunet onboard`.
        also: the names of more nodes; one whose name begins with `provider` offers the same.
        settings: variables for all of them.
    """
    env = environment(folder, docker=docker) | dict(settings or {})
    homes = {name: folder / name for name in ("authority", "provider", "requester", *also)}
    if not offer:
        offer = ("--cpu", "1", "--memory", "1GiB", "--disk", "1GiB", "--price", "0.001") if docker else OFFER
    providers = [name for name in homes if name.startswith("provider")]
    for name in providers:
        nunet(homes[name], "onboard", *offer, "--no-benchmark", env=env)
    with contextlib.ExitStack() as stack:
        nodes = {
            name: stack.enter_context(running(name, home, *(ROLES if name == "authority" else ()), env=env))
            for name, home in homes.items()
        }
        addresses = {name: node.client.get("/whoami")["addresses"][0] for name, node in nodes.items()}
        # all are connected, as on a local network: a search that goes on by relay waits for who is beyond
        for number, name in enumerate(nodes):
            for other in list(nodes)[:number]:
                nodes[name].client.post("/peers", {"address": addresses[other]})
        wait_until(lambda: all(connected(node) == len(nodes) - 1 for node in nodes.values()), "the connections")
        others = tuple(nodes[name] for name in also)
        yield Market(nodes["authority"], nodes["provider"], nodes["requester"], others, env)


def connected(node: NodeProcess) -> int:
    """Return how many peers a node is connected to and knows the roles or topics of."""
    return sum(peer["connected"] and peer["last_seen"] is not None for peer in node.client.get("/peers"))


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
    """Wait until a condition holds.

    Raises:
        RuntimeError: it did not within `patience` seconds.
    """
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} took longer than {patience:.0f} s")
        time.sleep(0.02)
