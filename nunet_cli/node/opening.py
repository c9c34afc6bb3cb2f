"""Opening a home: its parts are made, the node is started with them, and stopped when the context is over."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from nunet_cli import __version__
from nunet_cli.config import Config
from nunet_cli.database.store import Store, owned
from nunet_cli.executor.base import Executor
from nunet_cli.executor.docker import DockerExecutor
from nunet_cli.executor.null import NullExecutor
from nunet_cli.executor.process import ProcessExecutor
from nunet_cli.network.blobs import Blobs
from nunet_cli.network.identity import Identity, load_or_create
from nunet_cli.network.links import Links
from nunet_cli.network.messenger import Messenger
from nunet_cli.network.peers import Peers
from nunet_cli.network.relay import Relay
from nunet_cli.network.topics import Topics
from nunet_cli.network.transport import TcpTransport
from nunet_cli.node.backup import check_restored
from nunet_cli.node.capability import CapabilityAccounting
from nunet_cli.node.monitor import Monitor
from nunet_cli.node.node import Node
from nunet_cli.node.parts import Parts
from nunet_cli.node.scratch import remove_unfinished
from nunet_cli.orchestrator.roles import Roles
from nunet_cli.records.contract_records import REGISTERED_CONTRACTS, VERDICTS
from nunet_cli.records.offers import ACTS_AS, ActsAs
from nunet_cli.supervise import Supervisor


def make_executors(config: Config) -> dict[str, Executor]:
    """Return the executors that the configuration allows."""
    executors: dict[str, Executor] = {"docker": DockerExecutor(config.executor.docker)}
    if config.executor.process.enabled:
        executors["process"] = ProcessExecutor()
    if config.executor.null:
        executors["null"] = NullExecutor()
    return executors


# the role that every node has
PLAIN_ROLE = "requester"


@contextlib.asynccontextmanager
async def open_node(
    home: Path,
    config: Config,
    *,
    roles: tuple[str, ...] = (),
    remember: bool = False,
    passphrase: str | None = None,
    read_only: bool = False,
    isolated: bool = False,
    announce: bool = True,
    monitor: Monitor | None = None,
    links: Links | None = None,
    config_file: Path | None = None,
) -> AsyncIterator[Node]:
    """Own a home and run its node for the duration of the context.

    Args:
        home: the node's folder.
        config: its configuration.
        roles: `contract-database`, `oracle`.
        remember: it also has the roles that it had before; `requester` as the only one gives those up.
        passphrase: opens a sealed key.
        read_only: no lock, no network, no changes: only to look at what the store holds.
        announce: False looks for others with mDNS, and is not found by it: for a node of a moment.
        monitor: what looks at the machine; a real one where it is not given.
        links: what opens streams to peers; TCP where it is not given.
        config_file: where its configuration is kept, and can be changed while it runs.
        isolated: peers of earlier runs are not dialled, and those of this run not remembered.

    Raises:
        NodeError: the home is in use, the key file is damaged, or the port is taken.
    """
    with contextlib.ExitStack() as stack:
        if not read_only:
            stack.enter_context(owned(home, "a node"))
            for folder in (home, home.parent):
                # of a backup into it, or a restore of it, that was killed
                remove_unfinished(folder)
        check_restored(home)
        key_there = (home / "identity.json").exists()
        identity = load_or_create(home, passphrase) if not read_only or key_there else _nobody()
        store = stack.enter_context(Store(home, read_only=read_only))
        peers = Peers(store, identity.public_key, persistent=not isolated)
        supervisor = Supervisor()
        transport = TcpTransport(identity, config.network, peers, links, supervisor)
        messenger = Messenger(identity, transport, store)
        topics = Topics(identity, transport, messenger, peers, f"nunet/{__version__}")
        async with trio.open_nursery() as nursery:
            relay = Relay(identity, transport, messenger, peers)
            accounting = CapabilityAccounting(store, monitor or Monitor(home, config.limits))
            ctx = Parts(
                home=home, config=config, identity=identity, store=store, peers=peers, transport=transport,
                messenger=messenger, topics=topics, relay=relay,
                blobs=Blobs(home, store, transport), accounting=accounting, executors=make_executors(config),
                nursery=nursery, supervisor=supervisor,
                roles=Roles(identity.did, config, store, topics, transport, peers),
            )  # fmt: skip
            if remember:
                roles = await _with_those_before(store, roles)
            node = Node(ctx, accounting, roles, announce=announce, config_file=config_file)
            if not read_only:
                await node.start()
            try:
                yield node
            finally:
                # what is already written goes out, if the peers are there to take it
                if not read_only:
                    with trio.move_on_after(1.0) as patience:
                        patience.shield = True
                        await messenger.outbox.flush(1.0)
                nursery.cancel_scope.cancel()


async def _with_those_before(store: Store, roles: tuple[str, ...]) -> tuple[str, ...]:
    """Return the roles that a node is given with those that it had before, and keep them."""
    row = store[ACTS_AS].get("roles")
    known = row.roles if row is not None else _acted_as(store)
    kept = () if roles == (PLAIN_ROLE,) else tuple(dict.fromkeys((*known, *roles)))
    if row is None or kept != row.roles:
        await store.change(lambda t: t[ACTS_AS].put(ActsAs("roles", kept)))
    return kept


def _acted_as(store: Store) -> tuple[str, ...]:
    """Return what the store of an earlier version says that the node was."""
    found = {"contract-database": store[REGISTERED_CONTRACTS].count(), "oracle": store[VERDICTS].count()}
    return tuple(role for role, rows in found.items() if rows)


def _nobody() -> Identity:
    from nunet_cli.network.identity import new_identity

    return new_identity()


async def wait_for_stop(node: Node) -> str:
    """Wait for a signal or a request to stop; return which."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        reason: list[str] = []
        async with trio.open_nursery() as nursery:

            async def by_signal() -> None:
                async for number in signals:
                    reason.append(signal.Signals(number).name)
                    nursery.cancel_scope.cancel()
                    return

            nursery.start_soon(by_signal)
            await node.stop_requested.wait()
            reason.append("request")
            nursery.cancel_scope.cancel()
        return reason[0]
