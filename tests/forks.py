"""Commands in processes of their own, forked from one that has imported the program already.

To start the interpreter and to import takes longer than what most commands do; the tests run hundreds of them. A command
has its own memory, environment, folder, standard streams and exit code, as if it had been started from a shell; the node
that `nunet node start` leaves behind is forked, too.
"""

from __future__ import annotations

import atexit
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
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import msgspec
import trio

IMPORTED = (
    "anyio._backends._trio", "anyio.abc", "anyio.streams.memory", "docker", "netrc", "nunet_cli.__main__", "nunet_cli.api.embedded",
    "nunet_cli.cli.app", "nunet_cli.cli.authorities", "nunet_cli.cli.examples", "nunet_cli.cli.live", "nunet_cli.cli.progress",
    "nunet_cli.cli.receipt", "nunet_cli.cli.wizard", "nunet_cli.node.doctor", "rich.console", "rich.live", "rich.progress", "rich.table", "tomlkit", "yaml",
    "zeroconf",
)  # fmt: skip
LENGTH = struct.Struct("!i")
# what starts the program from within itself
PROGRAM = (sys.executable, "-m", "nunet_cli")


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


# -- the process that forks ---------------------------------------------------------------------------------------------


def serve(path: str) -> dict[str, Any]:
    """Fork a process for each connection until standard input ends; in a command's process, return what was asked for."""
    _prepare()
    gc.freeze()
    assert threading.active_count() == 1, "a process with threads cannot be forked"
    waiting: dict[int, socket.socket] = {}
    listener, (ended, wake) = socket.socket(socket.AF_UNIX), socket.socketpair()
    ended.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, ended, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        if ended in ready:
            ended.recv(4096)
            _tell(waiting)
        if listener in ready:
            connection, _ = listener.accept()
            asked = _fork(connection, waiting)
            if asked is not None:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for one in (listener, ended, wake, connection, *waiting.values()):
                    one.close()
                return asked


def _prepare() -> None:
    """Import the program, and make what it makes of its types when it first needs it."""
    for name in IMPORTED:
        importlib.import_module(name)
    for place, _ in importlib.import_module("nunet_cli.cli.table").COMMANDS.values():
        importlib.import_module(f"nunet_cli.cli.{place.partition(':')[0]}")
    kinds = [msgspec.Struct]
    for kind in kinds:
        kinds += kind.__subclasses__()
        msgspec.json.Decoder(kind)
    for table in importlib.import_module("nunet_cli.records.tables").TABLES:
        importlib.import_module("nunet_cli.database.records").statements(table)
    process = importlib.import_module("nunet_cli.executor.process")
    if _says_yes(process.ProcessExecutor().try_sandbox):
        process.HOLDS.add(process.find_bubblewrap())
    for endpoint in importlib.import_module("nunet_cli.api.server").ENDPOINTS:
        endpoint.route()


def _says_yes(question: Callable[[], Awaitable[bool]]) -> bool:
    """Ask in a process of its own: to ask takes threads, and these are not there where the next one is forked."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(not trio.run(question))
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _tell(waiting: dict[int, socket.socket]) -> None:
    """Tell who waits for them how processes ended."""
    while waiting:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with waiting.pop(pid) as connection:
            try:
                connection.sendall(LENGTH.pack(os.waitstatus_to_exitcode(status)))
            except OSError:
                pass  # nobody waits: `nunet node start` ends before its node


def _fork(connection: socket.socket, waiting: dict[int, socket.socket]) -> dict[str, Any] | None:
    """Fork a command, and tell its pid; in the command's process, return what was asked for."""
    connection.settimeout(30)
    streams: list[int] = []
    try:
        first, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
        asked: dict[str, Any] = json.loads(_read(connection, LENGTH.unpack(first)[0]))
        pid = os.fork()
        if pid == 0:
            for place, stream in enumerate(streams):
                os.dup2(stream, place)
            return asked
        waiting[pid] = connection
        connection.sendall(LENGTH.pack(pid))
    except (EOFError, OSError, struct.error):
        pass  # who asked is gone
    finally:
        for stream in streams:
            os.close(stream)
    return None


def _become(asked: dict[str, Any], path: str) -> NoReturn:
    """Be the command that was asked for."""
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    if asked.get("session"):
        os.setsid()
    random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    subprocess.Popen = _opening(path)  # type: ignore[misc, assignment]
    program = asked.get("program", "")
    sys.argv = [program or "nunet", *asked["arguments"]]
    code: Any = None
    try:
        if program:
            runpy.run_path(program, run_name="__main__")
        else:
            from nunet_cli.__main__ import main

            main()
    except SystemExit as error:
        code = error.code
    _end(code)


def _end(code: Any) -> NoReturn:
    """End as the interpreter does, but leave what was imported as it is: to take it apart costs more than a command."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    os._exit((code or 0) & 0xFF)


def _opening(path: str) -> type[subprocess.Popen[Any]]:
    """Return a `Popen` that forks what a command starts of the program itself."""

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __new__(cls, args: Any, *rest: Any, **options: Any) -> Any:
            if isinstance(args, str | bytes | Path) or tuple(args[:3]) != PROGRAM:
                return super().__new__(cls)
            return Process(args[3:], path=path, **options)

    return Popen


# -- who asks for them --------------------------------------------------------------------------------------------------


Stream = int | IO[Any] | None


def _stream(given: Stream, theirs: list[int], place: int) -> IO[str] | None:
    """Add the descriptor that a process gets in a place to `theirs`; return the other end of a pipe."""
    if given == subprocess.PIPE:
        ends = os.pipe()
        theirs.append(ends[place > 0])
        return os.fdopen(ends[place == 0], "r" if place else "w")
    if given == subprocess.DEVNULL:
        theirs.append(os.open(os.devnull, os.O_RDWR))
    elif given == subprocess.STDOUT:
        theirs.append(os.dup(theirs[1]))
    else:
        theirs.append(os.dup(place if given is None else given if isinstance(given, int) else given.fileno()))
    return None


class Process:
    """A process that was forked, as `subprocess.Popen` has one."""

    def __init__(
        self, arguments: list[str], *, stdin: Stream = None, stdout: Stream = None, stderr: Stream = None,
        cwd: Path | str = ".", env: Mapping[str, str] | None = None, start_new_session: bool = False, path: str = "",
    ) -> None:  # fmt: skip
        """Start `nunet` with arguments, as `subprocess.Popen` does with those it shares; a pipe is one of text.

        Args:
            path: of the socket of the process that forks, where it is not this process's own.
        """
        self.args = arguments
        self.returncode: int | None = None
        body = json.dumps({
            "arguments": arguments, "environment": dict(os.environ if env is None else env),
            "folder": str(Path(cwd).absolute()), "session": start_new_session,
        }).encode()  # fmt: skip
        theirs: list[int] = []
        try:
            self.stdin, self.stdout, self.stderr = (
                _stream(given, theirs, place) for place, given in enumerate((stdin, stdout, stderr))
            )
            self._connection = socket.socket(socket.AF_UNIX)
            self._connection.connect(path or _path())
            socket.send_fds(self._connection, [LENGTH.pack(len(body))], theirs)
        finally:
            for stream in theirs:
                os.close(stream)
        self._connection.sendall(body)
        (self.pid,) = LENGTH.unpack(_read(self._connection, LENGTH.size))

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, or the number of the signal that ended it, negative.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                (self.returncode,) = LENGTH.unpack(_read(self._connection, LENGTH.size))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(["nunet", *self.args], timeout or 0) from None
            self._connection.close()
        assert self.returncode is not None
        return self.returncode

    def poll(self) -> int | None:
        """Return what `wait` does, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


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
            atexit.register(stop)
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
    arguments: list[str], *, timeout: float, stdin: str | None = None, cwd: Path | str = ".",
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run `nunet` with arguments, as `subprocess.run` would.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write((stdin or "").encode())
        given.seek(0)
        process = Process(arguments, stdin=given, stdout=out, stderr=err, cwd=cwd, env=env)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
            raise
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
    _become(serve(sys.argv[1]), sys.argv[1])
