"""Data from one node to another over what openssl brings from a socket to a file, encrypted as well; messages meanwhile.

A folder of many small files is measured over `tar` and the same connection. `python -m benchmarks.data HOME FOLDER` is the
node that gives: it says where it is, is told line by line what to take in, and ends with its standard input.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import trio

from benchmarks.lines import Line, Options, SkippedError
from nunet_cli.config import Config, NetworkConfig
from nunet_cli.database.store import Transaction
from nunet_cli.network.data.kept import Writer
from nunet_cli.network.data.trees import look, opened, pack, unpack
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.records.identifiers import key_from_did

SIZE, TIMES, FILES = 2**29, 5, 10_000
PATIENCE = 120.0
PAUSE = 0.005
KEY = ("-K", "00" * 32, "-iv", "00" * 16)


def measure(options: Options) -> Iterator[Line]:
    """Send a file of half a gibibyte, in turns."""
    if shutil.which("openssl") is None:
        raise SkippedError("needs the command openssl")
    folder = options.folder / "data"
    folder.mkdir()
    source = folder / "source"
    with source.open("wb") as file:
        for _ in range(SIZE // 2**20):
            file.write(os.urandom(2**20))
    yield from trio.run(_measure, folder, source)


def raw(source: Path, target: Path) -> float:
    """Bring a file over a socket with a process at each end, encrypted, to the disk; return the seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    begin = time.perf_counter()
    with near, far:
        command = ("openssl", "enc", "-chacha20", *KEY, "-bufsize", str(2**20))
        sender = subprocess.Popen([*command, "-in", str(source)], stdout=near.fileno())
        receiver = subprocess.Popen([*command, "-d", "-out", str(target)], stdin=far.fileno())
    if sender.wait(PATIENCE) or receiver.wait(PATIENCE):
        raise RuntimeError("openssl failed")
    with target.open("rb") as file:
        os.fsync(file.fileno())
    took = time.perf_counter() - begin
    target.unlink()
    return took


def config(folder: Path) -> Config:
    """Return what both nodes are configured with."""
    name = f"bench-{folder.name}-{folder.stat().st_ino}"
    return Config(network=NetworkConfig(name=name, listen="127.0.0.1:0", discovery=False))


class Giver:
    """The node that gives, in a process of its own."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self._to, self._from = process, process.stdin, process.stdout
        self._said = b""

    @classmethod
    async def start(cls, folder: Path) -> Giver:
        """Start it in a folder, in which its files are as well."""
        command = [sys.executable, "-m", "benchmarks.data", str(folder / "giver"), str(folder)]
        return cls(await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

    async def ask(self, *words: str) -> list[str]:
        """Tell it something in a line; return the words of its answer."""
        if words:
            await self._to.send_all(" ".join(words).encode() + b"\n")
        with trio.fail_after(PATIENCE):
            while b"\n" not in self._said:
                self._said += await self._from.receive_some()
        line, _, self._said = self._said.partition(b"\n")
        return line.decode().split()


async def _measure(folder: Path, source: Path) -> list[Line]:
    giver = await Giver.start(folder)
    try:
        async with open_node(folder / "taker", config(folder)) as node:
            address, did = await giver.ask()
            peer = await node.add_peer(address)
            with trio.fail_after(PATIENCE):
                await node.ctx.transport.wait_connected(peer.public_key)
            return [*await _large(node, giver, did, source), await _many(node, giver, did, folder)]
    finally:
        giver.process.terminate()
        await giver.process.wait()


async def _large(node: Node, giver: Giver, did: str, source: Path) -> list[Line]:
    took: dict[str, list[float]] = {"ours": [], "raw": []}
    idle: list[float] = []
    busy: list[float] = []
    key = key_from_did(did)
    cid, _ = await giver.ask("file", source.name, node.identity.did)
    with trio.move_on_after(1):
        await _pings(node, key, idle)
    for _ in range(TIMES):
        took["raw"].append(await trio.to_thread.run_sync(raw, source, source.with_name("target")))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pings, node, key, busy)
            begin = time.perf_counter()
            path = await node.ctx.blobs.fetch(did, cid, SIZE)
            took["ours"].append(time.perf_counter() - begin)
            nursery.cancel_scope.cancel()
        path.unlink()
    rate, bare = SIZE / 1e6 / min(took["ours"]), SIZE / 1e6 / min(took["raw"])
    usual, worse = sorted(idle)[len(idle) // 2], sorted(busy)[int(len(busy) * 0.95)]
    return [
        Line(
            "data", "from a node to another", rate / bare, "openssl's chacha20 at both ends", "≥ 0.5",
            f"{rate:,.0f} MB/s, checked by its hash; {bare:,.0f} MB/s; both to the disk",
            {"mb_per_s": rate, "raw_mb_per_s": bare},
        ),
        Line(
            "data", "a message meanwhile", worse / usual, "one while nothing is sent", "",
            f"19 of 20 round trips within {worse * 1e3:.2f} ms; {usual * 1e3:.2f} ms",
            {"busy_ms": worse * 1e3, "idle_ms": usual * 1e3},
        ),
    ]  # fmt: skip


async def _many(node: Node, giver: Giver, did: str, folder: Path) -> Line:
    many = folder / "many"
    for number in range(FILES):
        (many / str(number // 100)).mkdir(parents=True, exist_ok=True)
        (many / str(number // 100) / str(number)).write_bytes(os.urandom(1000))
    took: dict[str, list[float]] = {"tree": [], "tar": []}
    for number in range(TIMES):
        for kind, times in took.items():
            target = folder / f"{kind}-{number}"
            target.mkdir()
            begin = time.perf_counter()
            cid, size = await giver.ask(kind, "many", node.identity.did)
            path = await node.ctx.blobs.fetch(did, cid, int(size))
            await trio.to_thread.run_sync(_untar if kind == "tar" else _unpack, path, target)
            times.append(time.perf_counter() - begin)
            path.unlink()
            await giver.ask("forget", cid)
    ours, bare = min(took["tree"]), min(took["tar"])
    return Line(
        "data", f"a folder of {FILES:,} small files", ours / bare, "tar over the same connection", "≤ 2",
        f"{ours:.2f} s; {bare:.2f} s", {"seconds": ours, "tar_seconds": bare},
    )  # fmt: skip


def _untar(source: Path, target: Path) -> None:
    subprocess.run(["tar", "-xf", source, "-C", target], check=True)


def _unpack(source: Path, target: Path) -> None:
    with opened(target) as root:
        unpack(source, root)


async def _pings(node: Node, key: bytes, found: list[float]) -> None:
    while True:
        found.append(await node.ctx.transport.ping(key))
        await trio.sleep(PAUSE)


async def give(home: Path, folder: Path) -> None:
    """Be the node that gives: take in what is named, and grant it, until the standard input ends."""
    async with open_node(home, config(home.parent)) as node:
        blobs = node.ctx.blobs
        print(node.ctx.transport.describe(), node.identity.did, flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            kind, name, *rest = line.split()
            if kind == "forget":
                blobs.path(name).unlink()
                print("forgotten", flush=True)
                continue
            if kind == "tar":
                done = folder / f"{name}.tar"
                await trio.run_process(["tar", "-cf", str(done), "-C", str(folder / name), "."])
                cid, size = await blobs.add_file(done)
            elif kind == "tree":
                cid, size = await blobs.add_made(partial(_pack, folder / name))
            else:
                cid, size = await blobs.add_file(folder / name)
            did, granted = rest[0], cid
            await node.ctx.store.change(partial(_grant, node, granted, did))
            print(cid, size, flush=True)


def _grant(node: Node, cid: str, did: str, t: Transaction) -> None:
    node.ctx.blobs.grant(t, cid, did)


def _pack(folder: Path, target: Writer) -> None:
    with opened(folder) as root:
        pack(root, look(root), target)


if __name__ == "__main__":
    trio.run(give, Path(sys.argv[1]), Path(sys.argv[2]))
