"""What every route uses: the node, the checked body, and errors as RFC 9457 problem documents."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nunet_cli import SCHEMA_VERSION
from nunet_cli.errors import IdentityError, NodeError, NotFoundError, NunetError, StateError, UsageError
from nunet_cli.node.node import Node
from nunet_cli.records.identifiers import did_from_key, key_from_any

log = logging.getLogger("nunet.api")
T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
MAX_BODY = 2**20


@dataclass(frozen=True)
class Endpoint:
    """A route with what the API's description says of it.

    Args:
        path: with names in braces.
        handler: what answers; its docstring is the summary.
        answer: the type of the document that it answers with; None for something else than JSON.
        method: of HTTP.
        body: the type of the request's document.
        query: names in the query → what they are.
        status: the status when all is well.
        media: the media type of the answer.
    """

    path: str
    handler: Handler
    answer: Any = None
    method: str = "GET"
    body: type | None = None
    query: dict[str, str] = field(default_factory=dict)
    status: int = 200
    media: str = "application/json"

    def route(self) -> Route:
        """Return it as the server takes it."""
        return Route(self.path, self.handler, methods=[self.method])


def versioned(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with the version of its schema."""
    return {"schema": SCHEMA_VERSION, **document}


def answer(document: Any, status: int = 200, background: BackgroundTask | None = None) -> JSONResponse:
    """Answer with a document, or a list of them."""
    content = [versioned(row) for row in document] if isinstance(document, list) else versioned(document)
    return JSONResponse(content, status_code=status, background=background)


def node_of(request: Request) -> Node:
    """Return the node that the API belongs to."""
    node: Node = request.app.state.node
    return node


async def body_of(request: Request, kind: type[T]) -> T:
    """Return the request's JSON body as a struct; an empty body is an empty object.

    Raises:
        UsageError: it does not fit, or is over 1 MiB.
    """
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY:
            raise UsageError(f"a request may have at most {MAX_BODY} bytes")
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        raise UsageError(f"bad request: {error}") from None


def number_of(request: Request, name: str) -> int:
    """Return a whole number from the query, 0 where it is not given.

    Raises:
        UsageError: it is something else, or negative.
    """
    text = request.query_params.get(name, "0")
    if not text.isdecimal() or len(text) > 15:
        raise UsageError(f"`{name}` must be a whole number, not {text[:40]!r}")
    return int(text)


def did_of(text: str) -> str:
    """Return the DID of a node that a person names by DID, peer id or CID.

    Raises:
        UsageError: it is none of them.
    """
    try:
        return did_from_key(key_from_any(text))
    except IdentityError as error:
        raise UsageError(error.message, hint=error.hint) from None


def status_of(error: NunetError) -> int:
    """Return the HTTP status for an error."""
    if isinstance(error, NotFoundError):
        return 404
    if isinstance(error, StateError):
        return 409
    if isinstance(error, NodeError):
        return 503
    return 400 if isinstance(error, UsageError) else 422


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """Turn an error into a problem document; one that was not foreseen is logged, and says nothing of the inside."""
    if not isinstance(error, NunetError):
        log.exception("%s %s failed", request.method, request.url.path)
        error = NunetError("the node could not do that", code="internal", hint="see: nunet node logs")
        status = 500
    else:
        status = status_of(error)
    problem = {
        "type": f"urn:nunet:error:{error.code}", "title": error.code.replace("_", " "), "status": status,
        "detail": error.message, "code": error.code, "hint": error.hint, "details": error.details,
        "exit_code": error.exit_code,
    }  # fmt: skip
    return JSONResponse(problem, status_code=status, media_type="application/problem+json")
