"""`nunet dashboard`: a page in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from nunet_cli.cli.output import note
from nunet_cli.cli.state import STATE
from nunet_cli.errors import NodeError


def dashboard(
    port: Annotated[int, typer.Option("--port", help="Where to serve it; 0 takes a free one.", min=0, max=65535)] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Only print the address.")] = False,
) -> None:
    """Serve a page on this machine with peers, capability, jobs, bids, contracts and ledger, live; until Ctrl-C."""
    # imported here: together they are a tenth of what a bare command takes to start
    import secrets
    import socket
    import webbrowser

    import trio

    from nunet_cli.api.dashboard import serve_page

    client = STATE.running()
    if client is None:
        raise NodeError(f"no node runs in {STATE.folder}", hint="start it with: nunet node start")
    token = secrets.token_urlsafe(16)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise NodeError(
                f"port {port}: {error.strerror}", code="cannot_listen", hint="choose another with --port"
            ) from None
        listener.listen(32)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/#{token}"
        typer.echo(address)
        note("whoever has the whole address sees this node; stop with Ctrl-C")
        if not no_open:
            webbrowser.open(address)
        try:
            # the server closes what it listens on
            trio.run(serve_page, client, token, listener.detach())
        except* KeyboardInterrupt:
            # it may come out of the nurseries, as a group, or be taken by the server: nothing else ends it
            pass
    raise KeyboardInterrupt
