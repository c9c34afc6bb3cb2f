"""An embedded node: a node of this process's own, in a thread, for as long as a command needs one."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

from nunet_cli.api.client import socket_path
from nunet_cli.api.server import run_node
from nunet_cli.config import Config
from nunet_cli.errors import NodeError
from nunet_cli.node.node import Node

log = logging.getLogger("nunet.embedded")

START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0


class EmbeddedNode:
    """A context in which a node runs, served at `socket`.

    Args:
        home: the node's folder.
        config: its configuration.
        passphrase: opens a sealed key.
        read_only: only look at the store: no lock, no network.
        local: with a provider and an authority on loopback.
    """

    def __init__(
        self, home: Path, config: Config, *, passphrase: str | None = None, read_only: bool = False, local: bool = False
    ) -> None:
        self._home, self._config, self._passphrase = home, config, passphrase
        self._read_only, self._local = read_only, local
        self._folder = tempfile.TemporaryDirectory(prefix="nunet-") if read_only else None
        self.socket = Path(self._folder.name) / "node.sock" if self._folder else socket_path(home)
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._stop: Callable[[], Any] = lambda: None
        self._thread = threading.Thread(target=self._main, name="nunet-node", daemon=True)

    def __enter__(self) -> EmbeddedNode:
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT):
            raise NodeError("the embedded node did not start in time")
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._thread.join(STOP_TIMEOUT)
        if self._folder is not None:
            self._folder.cleanup()

    def _main(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as error:
            # it belongs to the thread that waits for the start
            self._error = only(error)
            if self._ready.is_set():
                log.error("the embedded node stopped: %s", self._error)
        finally:
            self._ready.set()

    async def _run(self) -> None:
        token = trio.lowlevel.current_trio_token()

        def ready(node: Node) -> None:
            self._stop = lambda: _set_soon(token, node.stop_requested)
            self._ready.set()

        await run_node(
            self._home, self._config, passphrase=self._passphrase, ready=ready,
            until=lambda node: node.stop_requested.wait(), read_only=self._read_only, local=self._local,
            socket=self.socket, announce=False,
        )  # fmt: skip


def _set_soon(token: trio.lowlevel.TrioToken, event: trio.Event) -> None:
    try:
        token.run_sync_soon(event.set)
    except trio.RunFinishedError:
        pass


def only(error: BaseException) -> BaseException:
    """Return what is inside exception groups that hold a single exception each."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
