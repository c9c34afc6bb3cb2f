"""`nunet dashboard`: a page on loopback that shows a node, live, from the same API as everything else.

The page's files hold no data and are given to anybody on this machine. The data is given to who has the token, which is
in the address after the `#` and so in no log, and only under a name of this machine, against DNS rebinding.
"""

from __future__ import annotations

import hmac
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
LATEST, PEERS = 40, 200
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}  # fmt: skip


def look(client: ApiClient) -> dict[str, Any]:
    """Return everything that the page shows, in one document."""
    status = client.get("/status")

    def latest(path: str) -> list[dict[str, Any]]:
        return client.page(path, limit=LATEST, newest=True).rows

    return {
        "status": status, "capability": client.get("/capability"), "peers": client.page("/peers", limit=PEERS).rows,
        "stages": status["jobs"]["states"], "jobs": latest("/jobs"), "bids": latest("/bids"),
        "allocations": latest("/allocations"), "contracts": latest("/contracts"),
        "ledger": latest("/accounts/statements"),
    }  # fmt: skip


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
