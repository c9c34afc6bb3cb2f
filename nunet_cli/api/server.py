"""Serving the API on a Unix socket in the node's home, with hypercorn on trio; and running a node with it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nunet_cli.api.access import TokenForTcp, check_free, read_token
from nunet_cli.api.client import socket_path
from nunet_cli.api.common import on_error
from nunet_cli.api.openapi import ENDPOINTS, openapi
from nunet_cli.config import LOCAL_PRICE, Config
from nunet_cli.errors import NotFoundError, NunetError, UsageError
from nunet_cli.executor.process import ProcessExecutor
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.records.offers import OnboardOptions

log = logging.getLogger("nunet.api")


def make_app(node: Node) -> Starlette:
    """Return the API of a node as an ASGI application."""

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return await on_error(request, NotFoundError(f"no resource {request.url.path}"))
        return await on_error(request, UsageError(f"{request.method} {request.url.path}: {error.detail}"))

    app = Starlette(
        routes=[*(endpoint.route() for endpoint in ENDPOINTS), Route("/openapi.json", openapi)],
        exception_handlers={NunetError: on_error, HTTPException: on_http, Exception: on_error},
    )
    # a path with an empty name in it is no other resource
    app.router.redirect_slashes = False
    app.state.node = node
    return app


@contextlib.asynccontextmanager
async def served(node: Node, path: Path) -> AsyncIterator[None]:
    """Serve a node's API at a socket for the duration of the context."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = HypercornConfig()
    config.bind = [f"unix:{path}"]
    app: Any = make_app(node)
    tcp = node.ctx.config.api.listen
    # only the home's own socket is the node's service: an embedded node is there for one command
    if tcp and path == socket_path(node.ctx.home):
        check_free(tcp)
        config.bind.append(tcp)
        app = TokenForTcp(app, read_token(node.ctx.home, node.ctx.config.api.token))
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 0.2
    config.umask = 0o177
    config.use_reloader = False
    async with trio.open_nursery() as nursery:

        async def start(task_status: trio.TaskStatus[Any]) -> None:
            await serve(app, config, shutdown_trigger=trio.sleep_forever, task_status=task_status, mode="asgi")

        await nursery.start(node.supervisor.service, "the API", start)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            path.unlink(missing_ok=True)


async def run_node(
    home: Path,
    config: Config,
    *,
    roles: tuple[str, ...] = (),
    remember: bool = False,
    passphrase: str | None = None,
    ready: Callable[[Node], None],
    until: Callable[[Node], Any],
    read_only: bool = False,
    local: bool = False,
    announce: bool = True,
    socket: Path | None = None,
    config_file: Path | None = None,
) -> Any:
    """Run a node with its API until `until` returns; return what it returns.

    Args:
        home: the node's folder.
        config: its configuration.
        roles: beside requester and provider.
        remember: it has the roles of earlier runs, too.
        passphrase: opens a sealed key.
        ready: called once the API answers.
        until: an async function of the node; the node stops when it ends.
        read_only: only look at the store.
        local: run a provider and an authority beside it, on loopback, in homes of their own below this one.
        announce: whether mDNS tells others of this node.
        socket: where to serve, instead of the home's own socket.
        config_file: where its configuration is kept, and can be changed while it runs.
    """
    async with contextlib.AsyncExitStack() as stack:
        if local:
            config = await _open_local_market(stack, home, config)
        node = await stack.enter_async_context(
            open_node(
                home,
                config,
                roles=roles,
                remember=remember,
                passphrase=passphrase,
                read_only=read_only,
                isolated=local,
                announce=announce,
                config_file=config_file,
            )
        )
        await stack.enter_async_context(served(node, socket or socket_path(home)))
        log.info(
            "node %s is up; listening: %s:%s", node.identity.peer_id, node.ctx.transport.host, node.ctx.transport.port
        )
        try:
            ready(node)
            return await until(node)
        finally:
            log.info("node %s stops", node.identity.peer_id)
            process = node.ctx.executors.get("process")
            if isinstance(process, ProcessExecutor):
                process.kill_all()


async def _open_local_market(stack: contextlib.AsyncExitStack, home: Path, config: Config) -> Config:
    """Open a provider and an authority on loopback; return the requester's configuration that knows only them."""
    import msgspec

    from nunet_cli.network.identity import load_or_create

    requester = load_or_create(home, os.environ.get("NUNET_PASSPHRASE"))
    network = msgspec.structs.replace(config.network, listen="127.0.0.1:0", discovery=False, peers=(), name="local")
    authority_config = msgspec.structs.replace(config, network=network, contract_database="", oracle="")
    authority = await stack.enter_async_context(
        open_node(home / "local" / "authority", authority_config, roles=("contract-database", "oracle"), isolated=True)
    )
    known = msgspec.structs.replace(network, peers=(authority.ctx.transport.describe(),))
    process = msgspec.structs.replace(config.executor.process, enabled=True, trusted=(requester.did,))
    docker = msgspec.structs.replace(config.executor.docker, trusted=(requester.did,))
    provider_config = msgspec.structs.replace(
        config, network=known, contract_database=authority.identity.did, oracle=authority.identity.did,
        executor=msgspec.structs.replace(config.executor, process=process, docker=docker),
    )  # fmt: skip
    provider = await stack.enter_async_context(open_node(home / "local" / "provider", provider_config, isolated=True))
    await provider.onboard(OnboardOptions(price=LOCAL_PRICE), None)
    peers = (authority.ctx.transport.describe(), provider.ctx.transport.describe())
    return msgspec.structs.replace(
        config, network=msgspec.structs.replace(network, peers=peers),
        contract_database=authority.identity.did, oracle=authority.identity.did,
    )  # fmt: skip
