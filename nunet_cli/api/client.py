"""The client of the API: plain HTTP over the node's Unix socket, or over TCP with its token; standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from nunet_cli.errors import NodeError, NunetError

TIMEOUT = 30.0
STAGE_TIMEOUT = 400 * 86400.0
STREAM_TIMEOUT = 45.0
MAX_SOCKET_PATH = 100


def socket_path(home: Path) -> Path:
    """Return where the API of a home is served; a path too long for a socket is replaced by a short one."""
    path = home / "node.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"nunet-{os.getuid()}-{digest}" / "node.sock"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class ApiClient:
    """Calls a node.

    Args:
        where: its socket, or `http://HOST:PORT`.
        token: what the API over TCP asks for.
    """

    def __init__(self, where: Path | str, token: str = "") -> None:
        self.where, self._token = where, token

    def answers(self) -> bool:
        """Say whether a node answers at the socket."""
        try:
            with contextlib.closing(self._connection(5.0)) as connection:
                connection.connect()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def get(self, path: str, **query: Any) -> Any:
        """Return the document at a path.

        Raises:
            NunetError: what the node says is wrong.
            NodeError: no node answers.
        """
        return self._call("GET", _with_query(path, query), None, TIMEOUT)

    def get_bytes(self, path: str) -> bytes:
        """Return the bytes at a path as they are."""
        return self._exchange("GET", path, None, TIMEOUT)

    def post(self, path: str, body: dict[str, Any] | None = None, *, timeout: float = STAGE_TIMEOUT) -> Any:
        """Send a document to a path, and return the answer; waits as long as a stage may take."""
        return self._call("POST", path, body or {}, timeout)

    def delete(self, path: str) -> Any:
        """Delete a resource."""
        return self._call("DELETE", path, None, TIMEOUT)

    def events(self, path: str, *, silence: float | None = None, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield server-sent events as they come, for as long as the node sends them.

        Args:
            path: the resource.
            silence: seconds without anything after which it is given up.
            query: for the resource.

        Raises:
            NodeError: the node has gone, or was silent for too long.
        """
        connection = self._connection(min(STREAM_TIMEOUT, silence or STREAM_TIMEOUT))
        try:
            connection.request("GET", _in_ascii(_with_query(path, query)), headers=self._headers())
            response = connection.getresponse()
            if response.status >= 300:
                _raise_problem(response.read())
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        except (OSError, http.client.HTTPException) as error:
            raise _gone(self.where, error) from None
        finally:
            connection.close()

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if isinstance(self.where, Path):
            return _UnixConnection(self.where, timeout)
        return http.client.HTTPConnection(self.where.removeprefix("http://").rstrip("/"), timeout=timeout)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _call(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        return json.loads(self._exchange(method, path, body, timeout))

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> bytes:
        connection = self._connection(timeout)
        headers = self._headers() | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            # a node that refuses may answer and close before it has read the whole body
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, _in_ascii(path), json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise _gone(self.where, error) from None
        finally:
            connection.close()
        # there is nothing that a node would send somebody elsewhere for
        if response.status >= 300:
            _raise_problem(data)
        return data


def _with_query(path: str, query: dict[str, Any]) -> str:
    present = {key: value for key, value in query.items() if value is not None}
    return f"{path}?{urlencode(present)}" if present else path


def _in_ascii(path: str) -> str:
    """Return a path as it goes over the wire: lists shorten ids with an ellipsis, which is no ASCII."""
    return quote(path, safe=string.punctuation)


def _raise_problem(data: bytes) -> None:
    try:
        problem = json.loads(data)
        message, code = problem["detail"], problem["code"]
    except (ValueError, KeyError, TypeError):
        raise NodeError(f"the node answered something that is not ours: {data[:200]!r}") from None
    error = NunetError(message, code=code, hint=problem.get("hint", ""), details=problem.get("details"))
    error.exit_code = int(problem.get("exit_code", 2))
    raise error


def _gone(where: Path | str, error: Exception) -> NodeError:
    return NodeError(f"the node at {where} does not answer: {error}", hint="see: nunet node status; nunet node logs")
