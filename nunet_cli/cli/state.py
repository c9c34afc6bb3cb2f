"""What the global options said, and how a command gets at a node: the running one, another, or an embedded one."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nunet_cli.errors import NodeError

if TYPE_CHECKING:
    from nunet_cli.api.client import ApiClient
    from nunet_cli.config import Config


class State:
    """The global options of this run."""

    def __init__(self) -> None:
        self.home: Path | None = None
        self.node = ""

    @property
    def folder(self) -> Path:
        """The home of the node."""
        if self.home is not None:
            return self.home.expanduser().absolute()
        from nunet_cli.config import default_home

        return default_home()

    @property
    def config_file(self) -> Path:
        """Where the configuration is kept."""
        from nunet_cli.config import config_path

        return config_path(self.folder, explicit_home=self.home is not None)

    def config(self, overrides: dict[str, Any] | None = None) -> Config:
        """Return the configuration: file, environment, options."""
        from nunet_cli.config_file import load
        from nunet_cli.node.settings import check_settings

        return load(self.config_file, overrides=overrides, check=check_settings)

    def running(self) -> ApiClient | None:
        """Return the client of the node that runs now, or None.

        Raises:
            NodeError: another node was named, and it does not answer.
        """
        # imported here: not every command asks a node
        from nunet_cli.api.client import ApiClient, socket_path

        if self.node:
            url = self.node.startswith("http://")
            client = ApiClient(self.node, os.environ.get("NUNET_TOKEN", "")) if url else ApiClient(Path(self.node))
            if not client.answers():
                hint = "--node takes the path of a node's socket, or http://HOST:PORT with the token in NUNET_TOKEN"
                raise NodeError(f"no node answers at {self.node}", hint=hint)
            return client
        client = ApiClient(socket_path(self.folder))
        return client if client.answers() else None


STATE = State()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Leave the garbage alone while much is imported: it stays, and to look through it takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def passphrase() -> str | None:
    """Return the passphrase that seals the node's key, from `NUNET_PASSPHRASE`."""
    return os.environ.get("NUNET_PASSPHRASE") or None


@contextlib.contextmanager
def connect(*, read_only: bool = False, local: bool = False) -> Iterator[ApiClient]:
    """Give a command its node: the running one, or else an embedded one for the command's duration.

    Args:
        read_only: the command only looks at the store; an embedded node then opens no network and takes no lock.
        local: with an embedded provider and authority, on loopback.

    Raises:
        NodeError: the node cannot be started; or one runs already where `local` needs its own.
    """
    client = STATE.running()
    if client is not None:
        if local:
            raise NodeError(
                f"a node runs in {STATE.folder}; --local needs one of its own",
                code="home_in_use",
                hint="choose another folder with --home, or leave --local out to use the running node",
            )
        yield client
        return
    with importing():
        from nunet_cli.api.client import ApiClient
        from nunet_cli.api.embedded import EmbeddedNode

    config = STATE.config()
    with EmbeddedNode(STATE.folder, config, passphrase=passphrase(), read_only=read_only, local=local) as embedded:
        yield ApiClient(embedded.socket)


def register_completion() -> None:
    """Teach Typer the shells that ask for completions; only a shell's request needs it."""
    # a re-export that Typer's types leave out
    module: Any = importlib.import_module("typer.completion")
    module.completion_init()


def is_embedded() -> bool:
    """Say whether a command would start an embedded node."""
    return STATE.running() is None
