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
from nunet_cli.network.discovery import local_addresses
from nunet_cli.network.identity import Identity
from nunet_cli.network.links import Links, TcpLinks
from nunet_cli.network.peers import Address, Peer, Peers, format_address, parse_address
from nunet_cli.world import world

log = logging.getLogger("nunet.network")

ENVELOPE, ACK, PING, PONG, BLOB_GET, BLOB_DATA, BLOB_END, RELAY, RELAYED = range(1, 10)
SEND_TIMEOUT = 30.0
QUEUE_FRAMES = 64
DIAL_INTERVAL = 0.25
MAX_PARALLEL_DIALS = 16
MAX_PINGS = 8


class TokenBucket:
    """A rate limit: `rate` tokens a second, at most `rate * burst` saved up."""

    def __init__(self, rate: float, burst: float = 4.0) -> None:
        self._rate, self._most = rate, rate * burst
        self._tokens, self._at = self._most, trio.current_time()

    def take(self, count: float = 1.0) -> bool:
        """Take tokens, or return False when there are not enough."""
        now = trio.current_time()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < count:
            return False
        self._tokens -= count
        return True


class Connection:
    """One secure channel to a peer whose key is proved; `host` is the address of the other end."""

    def __init__(self, channel: secure_channel.SecureChannel, peer: Peer, host: str, rate: int, links: Links) -> None:
        self.channel, self.peer, self.host, self._links = channel, peer, host, links
        self.bucket = TokenBucket(rate)
        self.scope = trio.CancelScope()
        self._pings: dict[bytes, float] = {}
        self._queue, self._outgoing = trio.open_memory_channel[bytes](QUEUE_FRAMES)
        self.closed = trio.Event()

    async def send(self, kind: int, payload: bytes) -> None:
        """Queue a frame; waits while the queue is full.

        Raises:
            PeerError: the connection is over.
        """
        try:
            frame = bytes([kind]) + payload
            for sent in self._links.disturb(frame) if kind in (ENVELOPE, ACK) else (frame,):
                await self._queue.send(sent)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PeerError(f"the connection to {self.peer.peer_id} is closed") from None

    async def ping(self) -> None:
        """Ask for a sign of life, with a number that the peer cannot guess: it cannot look nearer than it is.

        Raises:
            PeerError: the connection is over.
        """
        nonce = bytes.fromhex(world().token(8))
        while len(self._pings) >= MAX_PINGS:
            del self._pings[next(iter(self._pings))]
        self._pings[nonce] = trio.current_time()
        await self.send(PING, nonce)

    def take_pong(self, nonce: bytes) -> None:
        """Measure the round trip of the ping that a pong answers."""
        sent = self._pings.pop(nonce, None)
        if sent is not None:
            self.peer.rtt = trio.current_time() - sent

    async def write_forever(self) -> None:
        """Send what is queued, one frame at a time, until the peer stops taking it."""
        async with self._outgoing:
            async for frame in self._outgoing:
                with trio.move_on_after(SEND_TIMEOUT) as patience:
                    await self.channel.send_frame(frame)
                if patience.cancelled_caught:
                    log.info("%s does not read: closing", self.peer.peer_id)
                    break
        self.scope.cancel()

    def close(self) -> None:
        """End the connection's tasks."""
        self.scope.cancel()
        self._queue.close()
        self._outgoing.close()


FrameHandler = Callable[[Connection, int, bytes], Awaitable[None]]


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
    """

    def __init__(self, identity: Identity, config: NetworkConfig, peers: Peers, links: Links | None = None) -> None:
        self._links: Links = links or TcpLinks()
        self._identity, self._config, self.peers = identity, config, peers
        self.network_id = secure_channel.network_identifier(config.name, config.secret)
        self.port = 0
        self.host = ""
        self.on_frame: dict[int, FrameHandler] = {}
        self.on_connect: list[Callable[[Connection], Awaitable[None]]] = []
        self.rejections: Counter[str] = Counter()
        self._connections: dict[bytes, list[Connection]] = {}
        self._per_address: Counter[str] = Counter()
        self._changed = trio.Event()
        self._dial_now = trio.Event()
        self._dialling: set[bytes] = set()

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, dial known peers and keep connections, until cancelled; started once the port is open.

        Raises:
            NodeError: the address cannot be listened on.
        """
        self.host, port = parse_address(self._config.listen)
        problem: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                self.port = await nursery.start(self._links.serve, self.host, port, self._accept)
                nursery.start_soon(self._dial_forever, nursery)
                task_status.started(self.port)
            except (OSError, OverflowError) as error:
                # raised outside of the nursery, which would make a group of it
                problem = error
        if problem is not None:
            in_use = getattr(problem, "errno", None) == errno.EADDRINUSE
            reason = "the port is in use by another program" if in_use else str(problem)
            raise NodeError(
                f"cannot listen on {self._config.listen}: {reason}",
                code="cannot_listen",
                hint="choose another port with: nunet config set network.listen HOST:PORT (port 0 takes a free one)",
            )

    def connection(self, public_key: bytes) -> Connection | None:
        """Return the newest connection to a peer, or None."""
        connections = self._connections.get(public_key)
        return connections[-1] if connections else None

    def connected(self) -> list[Peer]:
        """Return the peers that are connected and have introduced themselves."""
        return [peer for peer in self.peers if peer.connected and peer.introduced]

    async def wait_connected(self, public_key: bytes) -> Connection:
        """Return a connection to a peer, as soon as there is one; the caller sets the timeout."""
        while True:
            connection = self.connection(public_key)
            if connection is not None:
                return connection
            changed = self._changed
            peer = self.peers.get(public_key)
            if peer is not None:
                peer.next_dial = 0.0
                self._dial_now.set()
            with trio.move_on_after(1):
                await changed.wait()

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
            for peer in self.peers.to_dial():
                if peer.public_key not in self._dialling and len(self._dialling) < MAX_PARALLEL_DIALS:
                    self._dialling.add(peer.public_key)
                    nursery.start_soon(self._dial_task, peer)
            self._dial_now = trio.Event()
            with trio.move_on_after(self.peers.next_dial(self._dialling)):
                await self._dial_now.wait()

    async def _dial_task(self, peer: Peer) -> None:
        try:
            await self._dial(peer)
        finally:
            self._dialling.discard(peer.public_key)
            self._dial_now.set()

    async def _dial(self, peer: Peer) -> None:
        for host, port in list(peer.addresses):
            stream: trio.abc.Stream | None = None
            try:
                with trio.fail_after(self._config.handshake_timeout):
                    stream = await self._links.connect(host, port)
                    channel = await secure_channel.open_client(
                        stream, self.network_id, self._identity, peer.public_key, self._config.max_frame
                    )
            except (OSError, trio.TooSlowError, secure_channel.HandshakeError) as error:
                if isinstance(error, secure_channel.HandshakeError):
                    self.rejections[error.code] += 1
                log.debug("dialling %s at %s:%s failed: %s", peer.peer_id, host, port, error)
                if stream is not None:
                    await trio.aclose_forcefully(stream)
                continue
            self._dialling.discard(peer.public_key)
            with suppress(OSError):
                await self._serve(stream, channel, peer, host)
            return
        self.peers.failed(peer)

    async def _accept(self, stream: trio.abc.Stream, address: str) -> None:
        total = sum(self._per_address.values())
        if (
            total >= self._config.max_connections
            or self._per_address[address] >= self._config.max_connections_per_address
        ):
            self.rejections["too_many_connections"] += 1
            await trio.aclose_forcefully(stream)
            return
        self._per_address[address] += 1
        try:
            with trio.fail_after(self._config.handshake_timeout):
                channel = await secure_channel.open_server(
                    stream, self.network_id, self._identity, self._config.max_frame
                )
            peer = self.peers.add(channel.peer_key, None, "inbound")
            if peer is None:
                self.rejections["unwanted_peer"] += 1
                return
            await self._serve(stream, channel, peer, address)
        except (trio.TooSlowError, secure_channel.HandshakeError) as error:
            self.rejections["handshake"] += 1
            log.debug("handshake with %s failed: %s", address, error)
        except OSError as error:
            log.debug("connection from %s failed: %s", address, error)
        finally:
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]
            await trio.aclose_forcefully(stream)

    async def _serve(
        self, stream: trio.abc.Stream, channel: secure_channel.SecureChannel, peer: Peer, host: str
    ) -> None:
        connection = Connection(channel, peer, host, self._config.rate, self._links)
        self._connections.setdefault(peer.public_key, []).append(connection)
        peer.connected, peer.failures = True, 0
        self.peers.seen(peer)
        try:
            with connection.scope:
                await self._converse(connection)
        finally:
            connection.close()
            connection.closed.set()
            remaining = self._connections[peer.public_key]
            remaining.remove(connection)
            if not remaining:
                del self._connections[peer.public_key]
                peer.connected = peer.introduced = False
                peer.next_dial = trio.current_time() + DIAL_INTERVAL
                self._dial_now.set()
            self.notify()
            with trio.move_on_after(0.2) as patience:
                patience.shield = True
                await channel.goodbye()
            await trio.aclose_forcefully(stream)

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
        except* Exception:
            self.rejections["internal"] += 1
            log.exception("the connection to %s failed", connection.peer.peer_id)

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
                with trio.fail_after(self._config.idle_timeout):
                    frame = await connection.channel.receive_frame()
            except trio.TooSlowError:
                log.info("%s is silent: closing", peer.peer_id)
                return
            except RejectedMessageError as error:
                if error.code != "channel_closed":
                    self.rejections[error.code] += 1
                log.debug("connection to %s ended: %s", peer.peer_id, error)
                return
            self.peers.seen(peer)
            kind = frame[0] if frame else 0
            # what this node asked for does not count against the peer's rate
            if kind not in (BLOB_DATA, BLOB_END, ACK, PONG, RELAYED) and not connection.bucket.take():
                self.rejections["rate"] += 1
                continue
            if kind == PING:
                await connection.send(PONG, frame[1:9])
            elif kind == PONG:
                connection.take_pong(frame[1:])
            elif kind in self.on_frame:
                try:
                    await self.on_frame[kind](connection, kind, frame[1:])
                except RejectedMessageError as error:
                    self.rejections[error.code] += 1
            else:
                self.rejections["unknown_frame"] += 1

    async def _keep_alive(self, connection: Connection) -> None:
        # a round trip at once measures the distance; later ones show that the peer is still there
        while True:
            try:
                await connection.ping()
            except PeerError:
                return
            await trio.sleep(self._config.idle_timeout / 3)

    async def ping(self, public_key: bytes) -> float:
        """Measure one round trip to a peer, in seconds; the caller sets the timeout."""
        connection = await self.wait_connected(public_key)
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
        return own_addresses(self._identity, self.host, self.port)

    def advertised(self) -> Address:
        """Return the address that this node listens on."""
        return self.host, self.port
