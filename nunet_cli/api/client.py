"""The client of the API: plain HTTP over the node's Unix socket, or over TCP with its token.

HTTP is spoken by h11, which the server uses as well; `http.client` imports TLS and mail, a fifth of a command's start.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import h11

from nunet_cli.errors import NodeError, NunetError

TIMEOUT = 30.0
STAGE_TIMEOUT = 400 * 86400.0
STREAM_TIMEOUT = 45.0
MAX_SOCKET_PATH = 100
LONGEST_PAGE = 1000
AT_ONCE = 1 << 16
# what goes wrong between this process and a node; a host or a port that cannot be one is a ValueError
TROUBLE = (OSError, ValueError, h11.ProtocolError)


def socket_path(home: Path) -> Path:
    """Return where the API of a home is served; a path too long for a socket is replaced by a short one."""
    path = home / "node.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    import hashlib
    import tempfile

    digest = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"nunet-{os.getuid()}-{digest}" / "node.sock"


class Page(NamedTuple):
    """A piece of a list: its rows, how many there are in all, and whether there are more after these."""

    rows: list[dict[str, Any]]
    total: int
    more: bool


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
            self._connection(5.0).close()
        except TROUBLE:
            return False
        return True

    def get(self, path: str, **query: Any) -> Any:
        """Return the document at a path.

        Raises:
            NunetError: what the node says is wrong.
            NodeError: no node answers.
        """
        return self._call("GET", _with_query(path, query), None, TIMEOUT)

    def page(self, path: str, *, limit: int, after: str = "", newest: bool = False, **query: Any) -> Page:
        """Return a piece of a list, in as many requests as that takes.

        Args:
            path: the list.
            limit: at most so many rows; 0 for all.
            after: the id of the row that it goes on after; empty for the first.
            newest: begin with the latest.
            query: for the list.
        """
        rows: list[dict[str, Any]] = []
        while True:
            most = min(LONGEST_PAGE, limit - len(rows)) if limit else LONGEST_PAGE
            asked = {**query, "limit": most, "after": after or None, "newest": int(newest) or None}
            headers, data = self._exchange("GET", _with_query(path, asked), None, TIMEOUT)
            try:
                rows += json.loads(data)
                total = int(headers["x-total-count"])
            except (ValueError, KeyError, TypeError):
                raise _not_ours(data) from None
            after = _next_after(headers.get("link", ""))
            if not after or len(rows) == limit:
                return Page(rows, total, bool(after))

    def get_bytes(self, path: str) -> bytes:
        """Return the bytes at a path as they are."""
        return self._exchange("GET", path, None, TIMEOUT)[1]

    def post(self, path: str, body: dict[str, Any] | None = None, *, timeout: float = STAGE_TIMEOUT) -> Any:
        """Send a document to a path, and return the answer; waits as long as a stage may take."""
        return self._call("POST", path, body or {}, timeout)

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """Put a document at a path, and return the answer."""
        return self._call("PUT", path, body, TIMEOUT)

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
        try:
            with self._connection(min(STREAM_TIMEOUT, silence or STREAM_TIMEOUT)) as connection:
                status, _, body = self._ask(connection, "GET", _with_query(path, query), None)
                if status >= 300:
                    _raise_problem(b"".join(body))
                begun = b""
                for data in body:
                    *lines, begun = (begun + data).split(b"\n")
                    for line in lines:
                        if line.startswith(b"data: "):
                            yield json.loads(line[6:])
        except TROUBLE as error:
            raise _gone(self.where, error) from None

    def _connection(self, timeout: float) -> socket.socket:
        if isinstance(self.where, str):
            place = urlsplit(self.where)
            return socket.create_connection((place.hostname or "", place.port or 80), timeout)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(str(self.where))
        except BaseException:
            connection.close()
            raise
        return connection

    def _ask(
        self, connection: socket.socket, method: str, path: str, body: bytes | None
    ) -> tuple[int, dict[str, str], Iterator[bytes]]:
        """Send a request; return the status of the answer, its headers, and its body as it comes."""
        host = "localhost" if isinstance(self.where, Path) else urlsplit(self.where).netloc
        headers = {"Host": host, "Connection": "close"}
        headers |= {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if body is not None:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        http = h11.Connection(h11.CLIENT)
        request = h11.Request(method=method, target=_in_ascii(path), headers=list(headers.items()))
        parts = [request, *([h11.Data(body)] if body else []), h11.EndOfMessage()]
        # a node that refuses may answer and close before it has read the whole body
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"".join(http.send(part) or b"" for part in parts))
        heard = _heard(http, connection)
        answer = next(event for event in heard if isinstance(event, h11.Response))
        said = {name.decode("ascii"): value.decode("latin-1") for name, value in answer.headers}
        return answer.status_code, said, (bytes(event.data) for event in heard if isinstance(event, h11.Data))

    def _call(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        return json.loads(self._exchange(method, path, body, timeout)[1])

    def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None, timeout: float
    ) -> tuple[dict[str, str], bytes]:
        sent = json.dumps(body).encode() if body is not None else None
        try:
            with self._connection(timeout) as connection:
                status, headers, parts = self._ask(connection, method, path, sent)
                data = b"".join(parts)
        except TROUBLE as error:
            raise _gone(self.where, error) from None
        # there is nothing that a node would send somebody elsewhere for
        if status >= 300:
            _raise_problem(data)
        return headers, data


def _heard(http: h11.Connection, connection: socket.socket) -> Iterator[h11.Event]:
    """Yield what an answer is made of, up to its end.

    Raises:
        h11.RemoteProtocolError: it is no HTTP, or breaks off.
    """
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(connection.recv(AT_ONCE))
        elif isinstance(event, h11.EndOfMessage):
            return
        elif isinstance(event, h11.Event):
            yield event


def _with_query(path: str, query: dict[str, Any]) -> str:
    present = {key: value for key, value in query.items() if value is not None}
    return f"{path}?{urlencode(present)}" if present else path


def _next_after(link: str) -> str:
    """Return after which row the next page begins that a `Link` header (RFC 8288) names; empty where there is none."""
    target, _, relation = link.partition(">;")
    if relation.strip() != 'rel="next"':
        return ""
    return parse_qs(urlsplit(target.lstrip("<")).query).get("after", [""])[0]


def _in_ascii(path: str) -> str:
    """Return a path as it goes over the wire: lists shorten ids with an ellipsis, which is no ASCII."""
    return quote(path, safe=string.punctuation)


def _raise_problem(data: bytes) -> None:
    try:
        problem = json.loads(data)
        message, code = problem["detail"], problem["code"]
    except (ValueError, KeyError, TypeError):
        raise _not_ours(data) from None
    error = NunetError(message, code=code, hint=problem.get("hint", ""), details=problem.get("details"))
    error.exit_code = int(problem.get("exit_code", 2))
    raise error


def _not_ours(data: bytes) -> NodeError:
    return NodeError(f"the node answered something that is not ours: {data[:200]!r}")


def _gone(where: Path | str, error: Exception) -> NodeError:
    return NodeError(f"the node at {where} does not answer: {error}", hint="see: nunet node status; nunet node logs")
