"""Data from one node to another over what openssl brings from a socket to a file, encrypted as well; messages meanwhile.

`python -m benchmarks.data HOME FILE` is the node that gives: it says its address and the content id of the file, is told
who may have it, and ends with its standard input.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import trio

from benchmarks.lines import Line, Options, SkippedError
from nunet_cli.config import Config, NetworkConfig
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node

SIZE, TIMES = 2**29, 5
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


async def _measure(folder: Path, source: Path) -> list[Line]:
    command = [sys.executable, "-m", "benchmarks.data", str(folder / "giver"), str(source)]
    giver = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert giver.stdin is not None
    assert giver.stdout is not None
    took: dict[str, list[float]] = {"ours": [], "raw": []}
    idle: list[float] = []
    busy: list[float] = []
    try:
        async with open_node(folder / "taker", config(folder)) as node:
            said = b""
            with trio.fail_after(PATIENCE):
                while not said.endswith(b"\n"):
                    said += await giver.stdout.receive_some()
            address, cid, did = said.decode().split()
            await giver.stdin.send_all(node.identity.did.encode() + b"\n")
            peer = await node.add_peer(address)
            with trio.fail_after(PATIENCE):
                await node.ctx.transport.wait_connected(peer.public_key)
                await giver.stdout.receive_some()
            with trio.move_on_after(1):
                await _pings(node, peer.public_key, idle)
            for _ in range(TIMES):
                took["raw"].append(await trio.to_thread.run_sync(raw, source, folder / "target"))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_pings, node, peer.public_key, busy)
                    begin = time.perf_counter()
                    path = await node.ctx.blobs.fetch(did, cid, SIZE)
                    took["ours"].append(time.perf_counter() - begin)
                    nursery.cancel_scope.cancel()
                path.unlink()
    finally:
        giver.terminate()
        await giver.wait()
    ours, bare = min(took["ours"]), min(took["raw"])
    rate, rate_bare = SIZE / 1e6 / ours, SIZE / 1e6 / bare
    usual, worse = sorted(idle)[len(idle) // 2], sorted(busy)[int(len(busy) * 0.95)]
    return [
        Line(
            "data", "from a node to another", rate / rate_bare, "openssl's chacha20 at both ends", "≥ 0.5",
            f"{rate:,.0f} MB/s, checked by its hash; {rate_bare:,.0f} MB/s; both to the disk",
            {"mb_per_s": rate, "raw_mb_per_s": rate_bare},
        ),
        Line(
            "data", "a message meanwhile", worse / usual, "one while nothing is sent", "",
            f"19 of 20 round trips within {worse * 1e3:.2f} ms; {usual * 1e3:.2f} ms",
            {"busy_ms": worse * 1e3, "idle_ms": usual * 1e3},
        ),
    ]  # fmt: skip


async def _pings(node: Node, key: bytes, found: list[float]) -> None:
    while True:
        found.append(await node.ctx.transport.ping(key))
        await trio.sleep(PAUSE)


async def give(home: Path, source: Path) -> None:
    """Be the node that gives."""
    async with open_node(home, config(home.parent)) as node:
        cid, _ = await node.ctx.blobs.add_file(source)
        print(node.ctx.transport.describe(), cid, node.identity.did, flush=True)
        did = (await trio.to_thread.run_sync(sys.stdin.readline)).strip()
        await node.ctx.store.change(lambda t: node.ctx.blobs.grant(t, cid, did))
        print("granted", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    trio.run(give, Path(sys.argv[1]), Path(sys.argv[2]))
