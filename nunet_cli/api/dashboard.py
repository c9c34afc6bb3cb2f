"""`nunet dashboard`: a page on loopback that shows a node, live, from the same API as everything else.

The page's files hold no data and are given to anybody on this machine. The data is given to who has the token, which is
in the address after the `#` and so in no log, and only under a name of this machine, against DNS rebinding.
"""

from __future__ import annotations

import hmac
from collections import Counter
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from nunet_cli.api.client import ApiClient
from nunet_cli.errors import NunetError

PAGE = Path(__file__).parent / "page"
FILES = {"": "index.html", "app.js": "app.js", "style.css": "style.css"}
NAMES = ("127.0.0.1", "localhost")
LATEST = 40
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}  # fmt: skip


def look(client: ApiClient) -> dict[str, Any]:
    """Return everything that the page shows, in one document."""
    jobs = client.get("/jobs")
    bids = sorted(client.get("/bids"), key=lambda row: str(row["at"]))
    return {
        "status": client.get("/status"), "capability": client.get("/capability"), "peers": client.get("/peers"),
        "stages": dict(Counter(row["state"] for row in jobs)), "jobs": _latest(jobs), "bids": _latest(bids),
        "allocations": _latest(client.get("/allocations")), "contracts": _latest(client.get("/contracts")),
        "ledger": _latest(client.get("/accounts/statements")),
    }  # fmt: skip


def _latest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last ones of rows in order, the newest first."""
    return rows[: -LATEST - 1 : -1]


async def serve_page(client: ApiClient, token: str, descriptor: int) -> None:
    """Serve the page at a listening socket, which is closed at the end, until cancelled."""
    config = HypercornConfig()
    config.bind = [f"fd://{descriptor}"]
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 0.2
    app: Any = make_page(client, token)
    await serve(app, config, shutdown_trigger=trio.sleep_forever, mode="asgi")


def make_page(client: ApiClient, token: str) -> Starlette:
    """Return the page's application.

    Args:
        client: the node.
        token: what opens the data.
    """
    limiter = trio.CapacityLimiter(4)

    async def file(request: Request) -> Response:
        name = FILES.get(request.path_params["name"])
        if name is None:
            return Response("not here\n", status_code=404, headers=HEADERS)
        return FileResponse(PAGE / name, headers=HEADERS)

    async def data(request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if (request.url.hostname or "") not in NAMES or not hmac.compare_digest(given, f"Bearer {token}"):
            return JSONResponse(
                {"detail": "open the address that `nunet dashboard` printed"}, status_code=401, headers=HEADERS
            )
        try:
            document = await trio.to_thread.run_sync(look, client, limiter=limiter)
        except NunetError as error:
            return JSONResponse({"detail": error.message}, status_code=503, headers=HEADERS)
        return JSONResponse(document, headers=HEADERS)

    return Starlette(routes=[Route("/data", data), Route("/{name:path}", file)])
