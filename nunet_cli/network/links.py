"""Byte streams between hosts, as the transport needs them: TCP, or the memory of one process for simulations."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Protocol

import trio

Accept = Callable[[trio.abc.Stream, str], Awaitable[None]]


class Links(Protocol):
    """Opens and accepts streams."""

    async def serve(
        self, host: str, port: int, accept: Accept, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen, and give each new stream and the address it comes from to `accept`; started with the port."""

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """Open a stream; raises OSError where nobody listens."""

    def disturb(self, frame: bytes) -> list[bytes]:
        """Return the frames that are sent for one: itself, where the network is as it should be."""


class TcpLinks:
    """The real thing."""

    async def serve(
        self, host: str, port: int, accept: Accept, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on a TCP port."""
        listeners = await trio.open_tcp_listeners(port, host=host)
        async with trio.open_nursery() as nursery:
            task_status.started(listeners[0].socket.getsockname()[1])
            await trio.serve_listeners(partial(self._accept, accept), listeners, handler_nursery=nursery)

    @staticmethod
    async def _accept(accept: Accept, stream: trio.SocketStream) -> None:
        try:
            address = str(stream.socket.getpeername()[0])
        except OSError:
            return
        await accept(stream, address)

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """Open a TCP connection."""
        return await trio.open_tcp_stream(host, port)

    def disturb(self, frame: bytes) -> list[bytes]:
        """Nothing is disturbed on purpose."""
        return [frame]


def write_now(stream: trio.abc.Stream, data: bytes) -> int:
    """Write to a stream what goes at once, without a turn of the event loop; return how many bytes that were.

    Nothing goes where the stream is not TCP, is full, or has ended: who then waits until it takes more finds out.
    """
    if not isinstance(stream, trio.SocketStream):
        return 0
    try:
        return os.write(stream.socket.fileno(), data)
    except OSError:
        return 0


class MemoryNetwork:
    """A network inside one process: hosts by name, latency, partitions, and frames that are lost or come twice.

    Args:
        random: decides on everything that is left to chance.
        latency: the least and the greatest delay of a packet, in seconds.
    """

    def __init__(self, random: Random, latency: tuple[float, float] = (0.001, 0.005)) -> None:
        self.random, self.latency = random, latency
        self.loss, self.repetition = 0.0, 0.0
        self.frames = 0
        self._listening: dict[tuple[str, int], tuple[Accept, trio.Nursery]] = {}
        self._groups: dict[str, int] = {}
        self._lives: dict[str, int] = {}
        self._changed = trio.Event()

    def links(self, host: str) -> MemoryLinks:
        """Return the links of a host."""
        return MemoryLinks(self, host)

    def partition(self, *groups: set[str]) -> None:
        """Let only hosts of the same group reach each other; hosts in no group are together. No groups heal all."""
        self._groups = {host: number for number, group in enumerate(groups, 1) for host in group}
        self._changed.set()
        self._changed = trio.Event()

    def crash(self, host: str) -> None:
        """Let what a host has sent and what has not arrived yet be lost, as when its machine loses power."""
        self._lives[host] = self._lives.get(host, 0) + 1

    def lives(self, ends: tuple[str, str]) -> tuple[int, int]:
        """Return how often each of two hosts has crashed."""
        return self._lives.get(ends[0], 0), self._lives.get(ends[1], 0)

    def is_cut(self, one: str, other: str) -> bool:
        """Say whether two hosts cannot reach each other now."""
        return self._groups.get(one, 0) != self._groups.get(other, 0)

    async def wait_joined(self, one: str, other: str) -> None:
        """Wait until two hosts can reach each other."""
        while self.is_cut(one, other):
            await self._changed.wait()

    def delay(self) -> float:
        """Return how long a packet takes."""
        return self.random.uniform(*self.latency)


class MemoryLinks:
    """The links of one host of a memory network."""

    def __init__(self, network: MemoryNetwork, host: str) -> None:
        self._network, self._host = network, host

    async def serve(
        self, host: str, port: int, accept: Accept, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen under this host's name; port 0 takes 4000."""
        key = (self._host, port or 4000)
        async with trio.open_nursery() as nursery:
            self._network._listening[key] = (accept, nursery)
            try:
                task_status.started(key[1])
                await trio.sleep_forever()
            finally:
                del self._network._listening[key]

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """Open a stream to a host of the network."""
        await trio.sleep(self._network.delay())
        known = self._network._listening.get((host, port))
        if known is None or self._network.is_cut(self._host, host):
            raise OSError(f"{host}:{port} cannot be reached")
        accept, nursery = known
        ours, theirs = _stream_pair(self._network, self._host, host)
        nursery.start_soon(accept, theirs, self._host)
        return ours

    def disturb(self, frame: bytes) -> list[bytes]:
        """Lose the frame, or send it twice, as chance has it."""
        self._network.frames += 1
        chance = self._network.random.random()
        if chance < self._network.loss:
            return []
        return [frame, frame] if chance < self._network.loss + self._network.repetition else [frame]


class _MemoryStream(trio.abc.Stream):
    """One end of a stream: what is sent arrives in order, after a delay, and not at all while the hosts are cut."""

    def __init__(
        self, network: MemoryNetwork, ends: tuple[str, str], sending: trio.MemorySendChannel[tuple[float, bytes]],
        receiving: trio.MemoryReceiveChannel[tuple[float, bytes]],
    ) -> None:  # fmt: skip
        self._network, self._ends, self._sending, self._receiving = network, ends, sending, receiving
        self._lives = network.lives(ends)
        self._buffer = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._sending.send_nowait((trio.current_time() + self._network.delay(), bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._buffer:
            try:
                arrives, self._buffer = await self._receiving.receive()
            except trio.EndOfChannel:
                return b""
            await trio.sleep_until(arrives)
            await self._network.wait_joined(*self._ends)
            if self._network.lives(self._ends) != self._lives:
                return b""
        count = len(self._buffer) if max_bytes is None else max_bytes
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    async def aclose(self) -> None:
        self._sending.close()
        self._receiving.close()
        await trio.lowlevel.checkpoint()


def _stream_pair(network: MemoryNetwork, one: str, other: str) -> tuple[trio.abc.Stream, trio.abc.Stream]:
    there = trio.open_memory_channel[tuple[float, bytes]](math.inf)
    back = trio.open_memory_channel[tuple[float, bytes]](math.inf)
    ends = (one, other)
    return _MemoryStream(network, ends, there[0], back[1]), _MemoryStream(network, ends, back[0], there[1])
