"""A market of five real processes on loopback, each with a home of its own: started, killed, started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from nunet_cli.api.client import ApiClient, socket_path
from nunet_cli.config import Config, NetworkConfig, config_path
from nunet_cli.config_file import set_in_file
from nunet_cli.network.identity import load_or_create
from nunet_cli.node.onboarding import OnboardOptions
from nunet_cli.node.opening import open_node
from nunet_cli.supervise import UNEXPECTED
from tests import forks
from tests.conftest import free_port

REQUESTER, DATABASE, ORACLE = "requester", "contract-database", "oracle"
PROVIDERS = ("provider-a", "provider-b")
NAMES = (REQUESTER, *PROVIDERS, DATABASE, ORACLE)
# one sells results, the other time: which of them is cheaper depends on a job's longest duration
PRICES = {"provider-a": "0.2", "provider-b": "72/h"}
START, STOP = 60.0, 30.0


class Late(Exception):
    """Something did not come true in time."""


def wait_for(condition: Callable[[], Any], seconds: float, what: str, pause: float = 0.05) -> Any:
    """Return the first true value of a condition that is looked at every `pause` seconds.

    Raises:
        Late: it took longer than `seconds`.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise Late(f"{what}: not in {seconds:.0f} s")
        time.sleep(pause)
    return value


class Market:
    """Requester, two providers, contract database and oracle, who know each other's addresses.

    Args:
        folder: for the homes; made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, forks.Process] = {}
        self._read: dict[str, int] = {}
        # a socket's path is short
        folder.mkdir(parents=True, exist_ok=True)
        self.dids = {name: load_or_create(self.home(name)).did for name in NAMES}
        self._configure()
        for name in PROVIDERS:
            trio.run(self._onboard, name)

    def home(self, name: str) -> Path:
        return self.folder / name

    def name_of(self, did: str) -> str:
        return next(name for name, known in self.dids.items() if known == did)

    def _configure(self) -> None:
        ports = {name: free_port() for name in NAMES}
        where = {name: f"{load_or_create(self.home(name)).peer_id}@127.0.0.1:{ports[name]}" for name in NAMES}
        for name in NAMES:
            path = config_path(self.home(name), explicit_home=True)
            settings: dict[str, Any] = {
                "network.name": f"kills-{self.folder.name}-{os.getpid()}", "network.discovery": False,
                "network.listen": f"127.0.0.1:{ports[name]}",
                "network.peers": [where[other] for other in NAMES if other != name],
                "contract_database": self.dids[DATABASE], "oracle": self.dids[ORACLE],
                "executor.process.foreign": "unsandboxed", "executor.docker.enabled": False,
                "registry.opening_balance": "100000",
            }  # fmt: skip
            for key, value in settings.items():
                set_in_file(path, key, value)

    async def _onboard(self, name: str) -> None:
        options = OnboardOptions(cpu=1, memory="1GiB", disk="1GiB", price=PRICES[name])
        alone = Config(network=NetworkConfig(listen="127.0.0.1:0", discovery=False))
        async with open_node(self.home(name), alone, isolated=True) as node:
            await node.onboard(options, None)

    # -- processes ---------------------------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start nodes, and return once the API of each answers.

        Raises:
            Late: one does not start.
        """
        environment = {key: value for key, value in os.environ.items() if not key.startswith("NUNET_")}
        for name in names:
            roles = ["--role", name] if name in (DATABASE, ORACLE) else []
            with (self.home(name) / "node.log").open("ab") as log:
                self.processes[name] = forks.Process(
                    ["--home", str(self.home(name)), "node", "run", *roles], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=environment,
                )  # fmt: skip
        for name in names:
            wait_for(lambda name=name: self._is_up(name), START, f"{name} starts")  # type: ignore[misc]  # bound now

    def _is_up(self, name: str) -> bool:
        if self.processes[name].poll() is not None:
            raise Late(f"{name} ended with {self.processes[name].returncode}: see {self.home(name) / 'node.log'}")
        return self.api(name).answers()

    def kill(self, name: str) -> None:
        """End a process as `kill -9` does."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(STOP)

    def stop(self) -> None:
        """Stop every node as a person does; one that does not stop is killed.

        Raises:
            Late: it had to be killed.
        """
        stuck = []
        for process in self.processes.values():
            process.terminate()
        for name, process in self.processes.items():
            try:
                process.wait(STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP)
                stuck.append(name)
        self.processes.clear()
        if stuck:
            raise Late(f"{', '.join(stuck)}: did not stop in {STOP:.0f} s")

    # -- what they say -----------------------------------------------------------------------------------------------

    def api(self, name: str) -> ApiClient:
        return ApiClient(socket_path(self.home(name)))

    def unexpected(self) -> list[str]:
        """Return what the nodes have logged since the last look that nobody had foreseen."""
        found = []
        for name in NAMES:
            path = self.home(name) / "node.log"
            with path.open("rb") as log:
                log.seek(self._read.get(name, 0))
                text = log.read()
            self._read[name] = self._read.get(name, 0) + len(text)
            lines = text.decode(errors="replace").splitlines()
            found += [f"{name} logged: {line}" for line in lines if UNEXPECTED in line or re.match("Traceback", line)]
        return found
