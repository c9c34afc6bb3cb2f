"""The floor of a lifecycle: what its cryptography, its durable commits and its round trips take at raw library speed.

The counts are fixed, so that a lifecycle which needs less of them is seen to: they are what the first one needed.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import nacl.signing
import trio

SIGNATURES, VERIFICATIONS, COMMITS, ROUND_TRIPS = 29, 41, 41, 11
# bytes of a message as it is sent and signed, and of what a commit writes: the middle of those of a real lifecycle
MESSAGE, WRITTEN = 1500, 2000
# the other process of the round trips: it answers with the bytes that it gets
ECHO = """
import sys, trio
async def answer(stream):
    async for data in stream:
        await stream.send_all(data)
async def main():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()
trio.run(main)
"""


class Floor:
    """Does what a lifecycle cannot do without, and nothing else.

    Args:
        folder: where the commits go: on the file system of the nodes' homes.
    """

    def __init__(self, folder: Path) -> None:
        self._key = nacl.signing.SigningKey.generate()
        self._text = os.urandom(MESSAGE)
        self._signed = self._key.sign(self._text)
        folder.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(folder / "floor.db", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("CREATE TABLE IF NOT EXISTS documents (id INTEGER PRIMARY KEY, document TEXT)")
        self._echo = subprocess.Popen([sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._echo.stdout is not None
        self._port = int(self._echo.stdout.readline())

    def measure(self) -> dict[str, float]:
        """Return the seconds of each part, done once."""
        return {
            "signatures": _timed(self._sign), "verifications": _timed(self._verify),
            "commits": _timed(self._commit), "round_trips": trio.run(self._talk),
        }  # fmt: skip

    def _sign(self) -> None:
        for _ in range(SIGNATURES):
            self._key.sign(self._text)

    def _verify(self) -> None:
        for _ in range(VERIFICATIONS):
            self._key.verify_key.verify(self._signed)

    def _commit(self) -> None:
        document = "x" * WRITTEN
        for _ in range(COMMITS):
            self._database.execute("INSERT INTO documents (document) VALUES (?)", (document,))

    async def _talk(self) -> float:
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
            with trio.fail_after(30):
                begin = time.perf_counter()
                for _ in range(ROUND_TRIPS):
                    await stream.send_all(self._text)
                    missing = MESSAGE
                    while missing:
                        data = await stream.receive_some(missing)
                        if not data:
                            raise RuntimeError("the other process of the round trips has ended")
                        missing -= len(data)
                return time.perf_counter() - begin

    def __enter__(self) -> Floor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        assert self._echo.stdin is not None
        self._echo.stdin.close()
        try:
            self._echo.wait(10)
        except subprocess.TimeoutExpired:
            self._echo.kill()
            self._echo.wait()


def _timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
