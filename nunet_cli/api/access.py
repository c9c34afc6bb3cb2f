"""Who may use the API over TCP: whoever has the token; the Unix socket is guarded by its file's mode."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from nunet_cli.errors import NodeError
from nunet_cli.network.addresses import parse_address

TOKEN_FILE = "api.token"


def check_free(address: str) -> None:
    """Refuse an address that another program listens on.

    Raises:
        NodeError: naming the address.
    """
    host, port = parse_address(address, least_port=0)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise NodeError(
            f"the API cannot listen on {address}: {error.strerror}", code="cannot_listen",
            hint="choose another port with: nunet config set api.listen 127.0.0.1:PORT",
        ) from None  # fmt: skip


def read_token(home: Path, configured: str) -> str:
    """Return the token: the configured one, or the one in the home, made at the first time with mode 0600.

    Raises:
        NodeError: others can read the file.
    """
    if configured:
        return configured
    path = home / TOKEN_FILE
    if not path.exists():
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    if path.stat().st_mode & 0o077:
        raise NodeError(f"{path} can be read by others", hint=f"run: chmod 600 {path}")
    return path.read_text(encoding="utf-8").strip()


class TokenForTcp:
    """Lets through what comes over the Unix socket, and over TCP what carries `Authorization: Bearer TOKEN`."""

    def __init__(self, app: Any, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and scope.get("client") is not None:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                await _refuse(send)
                return
        await self._app(scope, receive, send)


async def _refuse(send: Any) -> None:
    problem = {
        "type": "urn:nunet:error:unauthorized", "title": "unauthorized", "status": 401, "code": "unauthorized",
        "detail": "over TCP the API wants its token", "exit_code": 2,
        "hint": f"send Authorization: Bearer, with what the file {TOKEN_FILE} in the node's home holds",
    }  # fmt: skip
    headers = [(b"content-type", b"application/problem+json"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(problem).encode()})
