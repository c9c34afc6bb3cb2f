"""TCP between nodes: listening, dialling, secure channels, keep-alive and the bounds on all of it.

A connection has one task that reads, one that writes and one that asks for signs of life; a peer's misbehaviour ends
its own connection and nothing else.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from nunet_cli.config import NetworkConfig
from nunet_cli.errors import NodeError, PeerError, RejectedMessageError
from nunet_cli.network import secure_channel
from nunet_cli.network.addresses import Address, format_address, parse_address
from nunet_cli.network.connection import ANSWERS, PING, PONG, SEND_TIMEOUT, SIGNS_OF_LIFE, Connection
from nunet_cli.network.discovery import local_addresses
from nunet_cli.network.identity import Identity
from nunet_cli.network.links import Links, TcpLinks
from nunet_cli.network.peers import MAX_ADDRESSES, Peer, Peers
from nunet_cli.network.places import STAY, HalfOpen, Places
from nunet_cli.supervise import Supervisor

log = logging.getLogger("nunet.network")

DIAL_INTERVAL = 0.25
MAX_PARALLEL_DIALS = 16
# of these, for peers that others told of and that were never reached: whoever names many takes no more than these
MAX_STRANGE_DIALS = 4
# seconds that a new connection is given to introduce itself before it is used all the same
INTRODUCTION = 1.0
# seconds until who asks for what cannot be hears of it: nobody asks again and again without a pause
OBSTACLE_PAUSE = 0.5
# seconds until a peer that cannot be dealt with is dialled again: somebody has to update it, or set its clock
OBSTACLE_BACK_OFF = 60.0

FrameHandler = Callable[[Connection, int, bytes], Awaitable[None]]
DataHandler = Callable[[trio.abc.Stream, secure_channel.ChannelKeys], Awaitable[None]]


def own_addresses(identity: Identity, host: str, port: int) -> list[str]:
    """Return the addresses of a node that listens there, in the form that `peer add` takes, best first."""
    return [f"{identity.peer_id}@{format_address(address, port)}" for address in local_addresses(host)]


class TcpTransport:
    """Connections to peers over TCP.

    Args:
        identity: this node's key.
        config: bounds, timeouts, the network's name and secret.
        peers: who is known, and where.
        links: what opens the streams; TCP where it is not given.
        supervisor: starts the tasks that peers cause.
    """

    def __init__(
        self, identity: Identity, config: NetworkConfig, peers: Peers, links: Links | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:  # fmt: skip
        self.supervisor = supervisor or Supervisor()
        self.links: Links = links or TcpLinks()
        self.identity, self.config, self.peers = identity, config, peers
        self.network_id = secure_channel.network_identifier(config.name, config.secret)
        self.data_id = secure_channel.data_identifier(self.network_id)
        self.port = 0
        self.host = ""
        # what connections for data are given to
        self.on_data: DataHandler | None = None
        self.on_frame: dict[int, FrameHandler] = {}
        self.on_connect: list[Callable[[Connection], Awaitable[None]]] = []
        self.rejections: Counter[str] = Counter()
        self._connections: dict[bytes, list[Connection]] = {}
        self.places = Places(config.max_connections, config.max_connections_per_address, self._is_known)
        self._half_open = HalfOpen()
        self._changed = trio.Event()
        self._dial_now = trio.Event()
        self._dialling: set[bytes] = set()
        self._strange: dict[bytes, Address] = {}
        self._wanted: Counter[bytes] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, dial known peers and keep connections, until cancelled; started once the port is open.

        Raises:
            NodeError: the address cannot be listened on.
        """
        self.host, port = parse_address(self.config.listen, least_port=0)
        problem: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                self.port = await nursery.start(self.supervisor.service, "listening", self._listen, port)
                nursery.start_soon(self.supervisor.every, 0, "dialling", self._dial_forever, nursery)
                task_status.started(self.port)
            except (OSError, OverflowError) as error:
                # raised outside of the nursery, which would make a group of it
                problem = error
        if problem is not None:
            in_use = getattr(problem, "errno", None) == errno.EADDRINUSE
            reason = "the port is in use by another program" if in_use else str(problem)
            raise NodeError(
                f"cannot listen on {self.config.listen}: {reason}",
                code="cannot_listen",
                hint="choose another port with: nunet config set network.listen HOST:PORT (port 0 takes a free one)",
            )

    async def _listen(self, port: int, *, task_status: trio.TaskStatus[int]) -> None:
        accept = self.supervisor.watched("connection", self._accept)
        await self.links.serve(self.host, self.port or port, accept, task_status=task_status)

    def connection(self, public_key: bytes) -> Connection | None:
        """Return the newest connection to a peer, or None."""
        connections = self._connections.get(public_key)
        return connections[-1] if connections else None

    def connected(self) -> list[Peer]:
        """Return the peers that are connected and have introduced themselves."""
        return [open_[-1].peer for open_ in self._connections.values() if open_[-1].peer.introduced]

    async def wait_connected(self, public_key: bytes) -> Connection:
        """Return a connection to a peer, as soon as there is one; the caller sets the timeout.

        Raises:
            PeerError: they are connected, and cannot deal with each other; code `protocol_version`, `clock_differs`.
        """
        while True:
            changed = self._changed
            connection, peer = self.connection(public_key), self.peers.get(public_key)
            ready = connection is not None and (connection.peer.introduced or connection.age >= INTRODUCTION)
            if peer is not None and peer.obstacle is not None and (ready or connection is None):
                await trio.sleep(OBSTACLE_PAUSE)
                if peer.obstacle is not None:
                    raise peer.obstacle
                continue
            if connection is not None and ready:
                return connection
            if peer is not None and connection is None:
                peer.next_dial = 0.0
                self._dial_now.set()
            self._wanted[public_key] += 1
            try:
                with trio.move_on_after(1):
                    await changed.wait()
            finally:
                self._wanted[public_key] -= 1
                if not self._wanted[public_key]:
                    del self._wanted[public_key]

    def dial_soon(self) -> None:
        """Dial newly known peers at once."""
        self._dial_now.set()

    async def wait_change(self, timeout: float) -> None:
        """Wait until a connection comes or goes, at most `timeout` seconds."""
        changed = self._changed
        with trio.move_on_after(timeout):
            await changed.wait()

    def notify(self) -> None:
        """Wake those who wait for a change of connections or introductions."""
        self._changed.set()
        self._changed = trio.Event()

    async def _dial_forever(self, nursery: trio.Nursery) -> None:
        while True:
            # whom this node chose or had business with, then whom it met, then whom others told of
            for peer in sorted(self.peers.to_dial(), key=self._rank):
                if peer.public_key not in self._dialling and self._has_place(peer):
                    self._dialling.add(peer.public_key)
                    if peer.is_strange:
                        self._strange[peer.public_key] = peer.to_try[0]
                    self.supervisor.start_soon(nursery, "dial", self._dial_task, peer)
            self._dial_now = trio.Event()
            with trio.move_on_after(self.peers.next_dial(self._dialling)):
                await self._dial_now.wait()

    def _rank(self, peer: Peer) -> tuple[bool, bool, bool, bool]:
        return peer.is_strange, not peer.is_kept, peer.source == "relay", peer.public_key not in self._wanted

    def _is_known(self, peer: Peer) -> bool:
        return peer.is_kept or peer.public_key in self._wanted

    def _has_place(self, peer: Peer) -> bool:
        if self.places.is_full and not self._is_known(peer):
            # who comes by itself may get a place; whom this node need not have waits
            peer.next_dial = trio.current_time() + STAY
            return False
        if not peer.is_strange:
            return len(self._dialling) - len(self._strange) < MAX_PARALLEL_DIALS - MAX_STRANGE_DIALS
        taken = self._strange.values()
        return len(taken) < MAX_STRANGE_DIALS and peer.to_try[0] not in taken

    def _dialled(self, peer: Peer) -> None:
        self._dialling.discard(peer.public_key)
        self._strange.pop(peer.public_key, None)

    async def _dial_task(self, peer: Peer) -> None:
        try:
            await self._dial(peer)
        finally:
            self._dialled(peer)
            self._dial_now.set()

    async def _dial(self, peer: Peer) -> None:
        patience, key = float(self.config.handshake_timeout), peer.public_key
        if peer.is_strange:
            # it holds one of few places
            patience = max(1.0, patience / len(peer.to_try))
        for address in peer.to_try:
            try:
                with trio.fail_after(patience):
                    stream, keys = await secure_channel.dial(self.links, address, self.network_id, self.identity, key)
            except Exception as error:
                # the address may come from a peer: whatever is wrong with it, this dial has failed and no more
                if isinstance(error, secure_channel.HandshakeError):
                    self.rejections[error.code] += 1
                elif not isinstance(error, (OSError, trio.TooSlowError)):
                    self.supervisor.note("dial", error)
                log.debug("dialling %s at %s failed: %s", peer.peer_id, format_address(*address), error)
                continue
            self._dialled(peer)
            # whoever answers there has the key: that is the peer's own word on its address
            self.peers.note_address(peer, address)
            with suppress(OSError):
                await self._serve(stream, keys, peer, address[0], dialled_at=address)
            return
        self.peers.failed(peer, is_wanted=key in self._wanted)

    async def _accept(self, stream: trio.abc.Stream, address: str) -> None:
        try:
            with self._half_open.place(address, self.config.handshake_timeout) as waiting:
                known = (self.network_id, self.data_id)
                network, keys = await secure_channel.take_handshake(stream, known, self.identity)
            if waiting.cancelled_caught:
                self.rejections["handshake"] += 1
                return
            if network == self.data_id and self.on_data is not None:
                await self.on_data(stream, keys)
                return
            peer = self.peers.add(keys.peer_key, None, "inbound", host=address)
            if peer is None:
                self.rejections["unwanted_peer"] += 1
            elif not self.places.make_room(peer, address):
                self.rejections["too_many_connections"] += 1
            else:
                await self._serve(stream, keys, peer, address)
        except secure_channel.HandshakeError as error:
            self.rejections["handshake"] += 1
            log.debug("handshake with %s failed: %s", address, error)
        except OSError as error:
            log.debug("connection from %s failed: %s", address, error)
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve(
        self, stream: trio.abc.Stream, keys: secure_channel.ChannelKeys, peer: Peer, host: str,
        dialled_at: Address | None = None,
    ) -> None:  # fmt: skip
        channel = secure_channel.SecureChannel(stream, keys, self.config.max_frame)
        connection = Connection(channel, peer, host, self.config.rate, self.links)
        connection.dialled_at = dialled_at
        self._connections.setdefault(peer.public_key, []).append(connection)
        self.places.take(connection)
        if not peer.connected:
            # what it was before, it may have changed
            peer.version = peer.clock = None
        peer.connected, peer.reached = True, True
        self.peers.seen(peer)
        try:
            with connection.scope:
                await self._converse(connection)
        finally:
            connection.close()
            connection.closed.set()
            self.places.leave(connection)
            remaining = self._connections[peer.public_key]
            remaining.remove(connection)
            if not remaining:
                del self._connections[peer.public_key]
                self._parted(peer)
            self.notify()
            with trio.move_on_after(0.2) as patience:
                patience.shield = True
                await channel.goodbye()
            await trio.aclose_forcefully(stream)

    def _parted(self, peer: Peer) -> None:
        was_introduced, peer.connected, peer.introduced, peer.topics = peer.introduced, False, False, ()
        if peer.obstacle is not None:
            peer.next_dial = trio.current_time() + OBSTACLE_BACK_OFF
        elif was_introduced:
            peer.failures, peer.next_dial = 0, trio.current_time() + DIAL_INTERVAL
        else:
            # it had no place for this node, or none of its kind: asked again and again it would have no more
            self.peers.failed(peer)
        self._dial_now.set()

    async def _converse(self, connection: Connection) -> None:
        """Run a connection's tasks; whatever goes wrong in them ends this connection, and nothing else."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, connection)
                nursery.start_soon(self._keep_alive, connection)
                for hook in self.on_connect:
                    nursery.start_soon(hook, connection)
                await self._read(connection)
                nursery.cancel_scope.cancel()
        except* PeerError:
            log.debug("the connection to %s closed while something was sent", connection.peer.peer_id)
        except* Exception as group:
            self.rejections["internal"] += 1
            self.supervisor.note("connection", group)

    async def _write(self, connection: Connection) -> None:
        try:
            await connection.write_forever()
        except RejectedMessageError as error:
            log.debug("writing to %s ended: %s", connection.peer.peer_id, error)
            connection.scope.cancel()

    async def _read(self, connection: Connection) -> None:
        peer = connection.peer
        while True:
            try:
                frame = await connection.channel.receive_frame()
            except RejectedMessageError as error:
                if error.code != "channel_closed":
                    self.rejections[error.code] += 1
                log.debug("connection to %s ended: %s", peer.peer_id, error)
                return
            connection.heard_at = trio.current_time()
            self.peers.seen(peer)
            kind = frame[0] if frame else 0
            if kind not in SIGNS_OF_LIFE:
                connection.used_at = trio.current_time()
            if kind not in ANSWERS and not connection.bucket.take():
                # what is too much is not only left undone: it is read no faster, or reading it would be the work
                self.rejections["rate"] += 1
                await trio.sleep(1 / self.config.rate)
                continue
            try:
                await self._take(connection, kind, frame[1:])
            except RejectedMessageError as error:
                self.rejections[error.code] += 1
                if kind in ANSWERS:
                    # such a flood is read no faster than requests; it is not cut off: a transfer given up is late, too
                    await connection.bucket.wait()

    async def _take(self, connection: Connection, kind: int, payload: bytes) -> None:
        if kind == PING:
            await connection.take_ping(payload)
        elif kind == PONG:
            connection.take_pong(payload)
        elif kind in self.on_frame:
            await self.on_frame[kind](connection, kind, payload)
        else:
            raise RejectedMessageError(f"unknown kind of frame {kind}", code="unknown_frame")

    async def _keep_alive(self, connection: Connection) -> None:
        """Measure the distance at once; then see that the peer is there and reads, and end the connection if not."""
        # one look at all, now and then: a deadline for each frame would cost as much as the frame
        idle = float(self.config.idle_timeout)
        while not (problem := connection.problem(idle)):
            with trio.move_on_after(1):
                await connection.ping()
            await trio.sleep(min(idle, SEND_TIMEOUT) / 3)
        log.info("%s %s: closing", connection.peer.peer_id, problem)
        connection.scope.cancel()

    async def ping(self, public_key: bytes) -> float:
        """Measure one round trip to a peer, in seconds; the caller sets the timeout."""
        # also of a peer that this node cannot deal with otherwise
        connection = self.connection(public_key) or await self.wait_connected(public_key)
        connection.peer.rtt = None
        await connection.ping()
        while connection.peer.rtt is None:
            await trio.sleep(0.002)
        return connection.peer.rtt

    def describe(self) -> str:
        """Return this node's own address in the form that `peer add` takes; of several, the best."""
        return self.describe_all()[0]

    def describe_all(self) -> list[str]:
        """Return the addresses at which others may reach this node, in the form that `peer add` takes, best first."""
        return own_addresses(self.identity, self.host, self.port)

    def listens_at(self) -> tuple[str, ...]:
        """Return the addresses at which others may reach this node, best first, for what it signs."""
        if not self.port:
            return ()
        return tuple(format_address(host, self.port) for host in local_addresses(self.host)[:MAX_ADDRESSES])

    def advertised(self) -> Address:
        """Return the address that this node listens on."""
        return self.host, self.port
