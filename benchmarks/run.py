"""Measures what section by section should stay fast, side by side in one run, and prints ratios: `python benchmarks/run.py`.

Absolute times differ between machines and moments; the ratios should not. Nothing here passes or fails.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nacl.signing
import trio
from nunet_cli.database.storage import Database

from nunet_cli.config import Config, NetworkConfig
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.jobs.reader import read_spec
from nunet_cli.network.envelope import ErrorMessage, seal, unseal
from nunet_cli.network.identity import new_identity
from nunet_cli.node.node import Node, open_node
from nunet_cli.orchestrator.post import process_job
from nunet_cli.records.offers import OnboardOptions

BARE = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"


def best(run: Callable[[], object], times: int = 7) -> float:
    """Return the shortest of several runs, in seconds: the one that was disturbed least."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return min(found)


def command(*arguments: str, **more: str) -> Callable[[], object]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | more
    return lambda: subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=True)


def start_up() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home, quiet = str(Path(folder) / "running"), str(Path(folder) / "quiet")
        # as the installed script does it
        nunet = ("-c", "from nunet_cli.__main__ import main; main()", "--home")
        settings = {"NUNET_NETWORK_NAME": f"start-up-{os.getpid()}", "NUNET_NETWORK_LISTEN": "127.0.0.1:0"}
        runs = {
            "python -c pass": command("-c", "pass"),
            "bare Typer": command("-c", BARE),
            "nunet version": command(*nunet, home, "version"),
            "nunet job --help": command(*nunet, home, "job", "--help"),
            "bids list, node runs": command(*nunet, home, "bids", "list"),
            "bids list, none runs": command(*nunet, quiet, "bids", "list"),
            # what a shell does when Tab is pressed
            "live completion of ids": command(
                *nunet[:2],
                NUNET_HOME=home,
                _NUNET_COMPLETE="complete_bash",
                COMP_WORDS="nunet job show ",
                COMP_CWORD="3",
            ),
        }
        spec = '{"name": "x", "executor": {"type": "null"}}'
        subprocess.run(
            [sys.executable, *nunet, home, "job", "post", "-"], input=spec, text=True, capture_output=True, check=True
        )
        command(*nunet, home, "node", "start", **settings)()
        try:
            # in turn, so that what disturbs the machine disturbs all of them
            took: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(15):
                for name, run in runs.items():
                    took[name].append(best(run, times=1))
        finally:
            command(*nunet, home, "node", "stop")()
    print("start-up                        ms   over bare Typer   over python -c pass")
    floor, bare = min(took["python -c pass"]), min(took["bare Typer"])
    for name, found in took.items():
        print(f"  {name:<24} {min(found) * 1000:7.0f}   {min(found) / bare:15.2f}   {min(found) / floor:19.2f}")


def messages() -> None:
    sender, receiver = new_identity(), new_identity()
    _, raw = seal(sender, receiver.did, "error_message", ErrorMessage("code", "text"), lifetime=600)
    signed = sender.signing_key.sign(raw)
    key = nacl.signing.VerifyKey(sender.public_key)
    count = 2000

    def ours() -> None:
        for _ in range(count):
            unseal(raw, me=receiver.did)

    def floor() -> None:
        for _ in range(count):
            key.verify(signed)

    took, least = best(ours, 3), best(floor, 3)
    print(f"envelopes checked               {count / took:,.0f}/s, {least / took:.0%} of raw Ed25519 verifications")


def store() -> None:
    print("store, ms per operation         insert   get by id   update by id")
    from tinydb import Query

    for size in (100, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            table = Database(Path(folder) / "x.db").table("t")
            table.insert_multiple({"id": f"job-{n}", "state": "posted", "text": "x" * 400} for n in range(size))
            fresh = iter(range(10**9))
            inserts = best(lambda table=table, fresh=fresh: table.insert({"id": f"new-{next(fresh)}"}), 30)
            gets = best(lambda table=table, size=size: table.get(Query().id == f"job-{size // 2}"), 30)
            updates = best(
                lambda table=table, size=size, fresh=fresh: table.update(
                    {"n": next(fresh)}, Query().id == f"job-{size // 2}"
                ),
                30,
            )
            print(f"  {size:>9,} documents          {inserts * 1e3:7.3f}   {gets * 1e3:9.3f}   {updates * 1e3:12.3f}")


async def lifecycle() -> None:
    def config() -> Config:
        return Config(network=NetworkConfig(listen="127.0.0.1:0", discovery=False))

    spec = read_spec(
        "name: nothing\nexecutor: {type: 'null'}\nprice: 1\nresources: {cpu: 0.05, memory: 1MiB, disk: 1MiB}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        async with (
            open_node(home / "a", config(), roles=("contract-database", "oracle")) as a,
            open_node(home / "p", config()) as p,
            open_node(home / "r", config()) as r,
        ):
            await p.onboard(OnboardOptions(price="0.001"), None)
            for node in (p, r):
                await node.add_peer(a.ctx.transport.describe())
            await r.add_peer(p.ctx.transport.describe())
            times = [await one(r, spec, home) for _ in range(12)]
            took = statistics.median(times[2:])
            begin = time.perf_counter()
            together = 20
            async with trio.open_nursery() as nursery:
                for _ in range(together):
                    nursery.start_soon(one, r, spec, home)
            rate = together / (time.perf_counter() - begin)
    commit = best(sync_floor, 5)
    print(
        f"lifecycle, null executor        {took * 1000:.0f} ms, {took / commit:.0f} synced writes' worth; {rate:.1f}/s at once"
    )


async def one(node: Node, spec: object, folder: Path) -> float:
    job = await process_job(node.ctx, spec, folder=folder)  # type: ignore[arg-type]
    begin = time.perf_counter()
    await orchestrate_job(node.ctx, job["id"])
    return time.perf_counter() - begin


def sync_floor() -> None:
    import os

    with tempfile.NamedTemporaryFile() as file:
        file.write(hashlib.sha256(b"").digest() * 128)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    start_up()
    messages()
    store()
    trio.run(lifecycle)
