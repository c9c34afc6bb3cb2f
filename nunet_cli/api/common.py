"""What every route uses: the node, the checked body, and errors as RFC 9457 problem documents."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nunet_cli import SCHEMA_VERSION
from nunet_cli.api.client import LONGEST_PAGE
from nunet_cli.database.records import Records
from nunet_cli.errors import IdentityError, NodeError, NotFoundError, NunetError, StateError, UsageError
from nunet_cli.node.node import Node
from nunet_cli.records.identifiers import did_from_key, key_from_any
from nunet_cli.records.jobs import Job
from nunet_cli.records.machine import Machine
from nunet_cli.records.reading import decode_exactly

log = logging.getLogger("nunet.api")
T = TypeVar("T")
R = TypeVar("R", bound=msgspec.Struct)
Handler = Callable[[Request], Awaitable[Response]]
MAX_BODY = 2**20
PAGE = 100
TOTAL = "X-Total-Count"
# what every list takes
PAGING = {
    "limit": f"at most so many rows, 1 to {LONGEST_PAGE}; {PAGE} where it is not given",
    "after": "the id of the last row of the page before, or its beginning",
    "newest": "1 to begin with the latest",
}
# what a list takes whose records have a machine
STATE = {
    "state": "in one of these states, with commas between; `open` for all that have not ended, `ended` for the rest"
}


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
        """Return it as the server takes it: what a query says that it does not know is refused."""

        async def handle(request: Request) -> Response:
            for name in request.query_params:
                if name not in self.query:
                    known = ", ".join(sorted(self.query))
                    raise UsageError(
                        f"{self.method} {self.path} knows no query parameter {name[:40]!r}", code="unknown_parameter",
                        hint=f"it takes: {known}" if known else "it takes none",
                    )  # fmt: skip
            return await self.handler(request)

        return Route(self.path, handle, methods=[self.method], name=self.handler.__name__)


def versioned(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with the version of its schema."""
    return {"schema": SCHEMA_VERSION, **document}


def answer(document: Any, status: int = 200, background: BackgroundTask | None = None) -> JSONResponse:
    """Answer with a document, or a list of them."""
    content = [versioned(row) for row in document] if isinstance(document, list) else versioned(document)
    return JSONResponse(content, status_code=status, background=background)


def listed(request: Request, records: Records[R], view: Callable[[R], dict[str, Any]], **where: Any) -> JSONResponse:
    """Answer with one page of a table, as its query (`PAGING`) asks: an array, and in headers how much there is in all.

    Args:
        request: its query has `limit`, `after` and `newest`.
        records: the table.
        view: what is shown of a row.
        where: what indexed fields must be; a tuple for one of several.

    Raises:
        UsageError: a parameter that is none.
        NotFoundError: there is no row `after`.
    """
    after = request.query_params.get("after", "")
    if after and not records.has(after):
        # a list at a terminal shows the beginnings of ids
        begun = records.with_prefix(after, limit=2)
        after = getattr(begun[0], records.table.key) if len(begun) == 1 else after
    page = records.page(_limit_of(request), after, newest=flag_of(request, "newest"), **where)
    return _page(request, [view(row) for row in page.rows], page.total, page.after)


def sliced(request: Request, rows: Sequence[T], view: Callable[[T], dict[str, Any]], key: str) -> JSONResponse:
    """Answer with one page of what is in memory, as `listed` does of a table.

    Args:
        request: its query has `limit`, `after` and `newest`.
        rows: all of them.
        view: what is shown of a row.
        key: the attribute that names a row.

    Raises:
        UsageError: a parameter that is none.
        NotFoundError: there is no row `after`.
    """
    limit, after, total = _limit_of(request), request.query_params.get("after", ""), len(rows)
    rows = rows[::-1] if flag_of(request, "newest") else rows
    if after:
        places = [place for place, row in enumerate(rows) if getattr(row, key).startswith(after)]
        if len(places) != 1:
            raise NotFoundError(f"there is no {after!r} to go on after")
        rows = rows[places[0] + 1 :]
    page = rows[:limit]
    return _page(request, list(map(view, page)), total, getattr(page[-1], key) if len(rows) > limit else "")


def _page(request: Request, documents: list[dict[str, Any]], total: int, after: str) -> JSONResponse:
    """Answer with a page; where there is more, `Link` (RFC 8288) says where the next one is."""
    response = answer(documents)
    response.headers[TOTAL] = str(total)
    if after:
        query = urlencode({**request.query_params, "after": after})
        response.headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'
    return response


def _limit_of(request: Request) -> int:
    text = request.query_params.get("limit", str(PAGE))
    if not text.isdecimal() or not 1 <= int(text[:15]) <= LONGEST_PAGE:
        raise UsageError(f"`limit` must be 1 to {LONGEST_PAGE}, not {text[:40]!r}")
    return int(text)


def flag_of(request: Request, name: str) -> bool:
    """Return whether a query sets something, with `1`.

    Raises:
        UsageError: it is something else than 1 or 0.
    """
    text = request.query_params.get(name, "0")
    if text not in ("0", "1"):
        raise UsageError(f"`{name}` must be 1 or 0, not {text[:40]!r}")
    return text == "1"


def in_states(request: Request, *machines: Machine) -> dict[str, tuple[str, ...]]:
    """Return what `state` in the query asks for, as `listed` takes it.

    Raises:
        UsageError: a state that no record is ever in.
    """
    text = request.query_params.get("state")
    if text is None:
        return {}
    states = {state for machine in machines for state in machine.states}
    ends = {state for machine in machines for state in machine.ends}
    wanted: set[str] = set()
    for name in text.split(","):
        if name not in states | {"open", "ended"}:
            raise UsageError(
                f"`state`: there is no state {name[:40]!r}", hint=f"open, ended, {', '.join(sorted(states))}"
            )
        wanted |= states - ends if name == "open" else ends if name == "ended" else {name}
    return {"state": tuple(sorted(wanted))}


def node_of(request: Request) -> Node:
    """Return the node that the API belongs to."""
    node: Node = request.app.state.node
    return node


def job_of(request: Request) -> tuple[Node, Job]:
    """Return the node, and the job that a path names by its id or the beginning of it."""
    node = node_of(request)
    return node, node.get_job(request.path_params["job"])


async def body_of(request: Request, kind: type[T], most: int = MAX_BODY) -> T:
    """Return the request's JSON body as a struct; an empty body is an empty object.

    Raises:
        UsageError: it does not fit, or is over `most` bytes.
    """
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise UsageError(f"a request may have at most {most} bytes")
    try:
        return decode_exactly(bytes(data) or b"{}", kind)
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
