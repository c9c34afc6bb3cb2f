"""Commands in processes of their own, forked from one that has imported the program already.

To start the interpreter and to import takes longer than what most commands do; the tests run hundreds of them. A command
has its own memory, environment, folder, standard streams and exit code, as if it had been started from a shell.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

IMPORTED = (
    "docker", "rich.console", "rich.live", "rich.progress", "rich.table", "tomlkit", "yaml", "zeroconf", "nunet_cli.api.embedded",
    "nunet_cli.cli.app", "nunet_cli.cli.live", "nunet_cli.cli.progress", "nunet_cli.cli.receipt", "nunet_cli.node.doctor",
)  # fmt: skip
LENGTH = struct.Struct("!i")


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


# -- the process that forks ---------------------------------------------------------------------------------------------


def serve(path: str) -> list[str]:
    """Fork a process for each connection until standard input ends; in a command's process, return its program and arguments."""
    for name in IMPORTED:
        importlib.import_module(name)
    for place, _ in importlib.import_module("nunet_cli.cli.table").COMMANDS.values():
        importlib.import_module(f"nunet_cli.cli.{place.partition(':')[0]}")
    gc.freeze()
    assert threading.active_count() == 1, "a process with threads cannot be forked"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            watched: list[socket.socket | int] = [listener, 0]
            ready, _, _ = select.select(watched, [], [])
            if 0 in ready:
                os._exit(0)
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return _attend(connection)


def _attend(connection: socket.socket) -> list[str]:
    """Fork the command, and tell its pid and how it ended; return in the command's process."""
    first, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    asked = json.loads(_read(connection, LENGTH.unpack(first)[0]))
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        connection.sendall(LENGTH.pack(pid))
        _, status = os.waitpid(pid, 0)
        connection.sendall(LENGTH.pack(os.waitstatus_to_exitcode(status)))
        os._exit(0)
    connection.close()
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return [asked.get("program", ""), *asked["arguments"]]


# -- the tests' side ----------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_server: tuple[subprocess.Popen[bytes], str] | None = None


def _path() -> str:
    global _server
    with _lock:
        if _server is None or _server[0].poll() is not None:
            path = str(Path(tempfile.mkdtemp(prefix="nn-")) / "s")
            process = subprocess.Popen(
                [sys.executable, __file__, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parent.parent,
            )
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            _server = process, path
        return _server[1]


def stop() -> None:
    """End the process that forks; commands that run go on."""
    global _server
    with _lock:
        if _server is not None:
            process, path = _server
            process.communicate()
            Path(path).unlink(missing_ok=True)
            Path(path).parent.rmdir()
            _server = None


def run(
    arguments: list[str], *, stdin: str | None = None, timeout: float, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command with this process's environment, as `subprocess.run` would.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": str(folder)}
    body = json.dumps(request).encode()
    with (
        socket.socket(socket.AF_UNIX) as connection, tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):  # fmt: skip
        given.write((stdin or "").encode())
        given.seek(0)
        connection.connect(_path())
        socket.send_fds(connection, [LENGTH.pack(len(body))], [given.fileno(), out.fileno(), err.fileno()])
        connection.sendall(body)
        (pid,) = LENGTH.unpack(_read(connection, LENGTH.size))
        connection.settimeout(timeout)
        try:
            (code,) = LENGTH.unpack(_read(connection, LENGTH.size))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            connection.settimeout(30)
            _read(connection, LENGTH.size)
            raise subprocess.TimeoutExpired(["nunet", *arguments], timeout) from None
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(["nunet", *arguments], code, *printed)


TOOL = """#!PYTHON -IS
import json, os, signal, socket, struct, sys
asked = json.dumps({"program": "PROGRAM", "arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}).encode()
connection = socket.socket(socket.AF_UNIX)
connection.connect("PATH")
socket.send_fds(connection, [struct.pack("!i", len(asked))], [0, 1, 2])
connection.sendall(asked)
pid = struct.unpack("!i", connection.recv(4, socket.MSG_WAITALL))[0]
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(pid, number))
code = struct.unpack("!i", connection.recv(4, socket.MSG_WAITALL))[0]
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def write_tool(place: Path, program: str = "") -> None:
    """Write a program that runs `nunet`, or a Python file; it passes streams, signals and exit code on."""
    text = TOOL.replace("PYTHON", sys.executable).replace("PATH", _path()).replace("PROGRAM", program)
    place.write_text(text)
    place.chmod(0o755)


def tools(folder: Path) -> str:
    """Write `nunet` into a folder; return the path of a shell that finds it there."""
    folder.mkdir(exist_ok=True)
    write_tool(folder / "nunet")
    return f"{folder}:{os.environ['PATH']}"


if __name__ == "__main__":
    # as `python -m nunet_cli` has it
    sys.path[0] = str(Path.cwd())
    program, *arguments = serve(sys.argv[1])
    sys.argv = [program or "nunet", *arguments]
    if program:
        runpy.run_path(program, run_name="__main__")
    else:
        from nunet_cli.__main__ import main

        main()
