"""Routes for the care of a home: removing what is past its age, and backup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from nunet_cli.api import schemas
from nunet_cli.api.common import Endpoint, answer, body_of, node_of
from nunet_cli.errors import UsageError
from nunet_cli.node.backup import CONFIG_FILE, make_backup
from nunet_cli.records.limits import Limits


class Collection(Struct, forbid_unknown_fields=True):
    """What to do: `dry_run` only counts the jobs; `export` is a file to which they are added before they go."""

    dry_run: bool = False
    export: Annotated[str, Limits(max_length=4000)] = ""


class BackupRequest(Struct, forbid_unknown_fields=True):
    """Where to write the backup, on the node's machine; where its configuration is; whether blobs belong to it."""

    path: Annotated[str, Limits(min_length=1, max_length=4000)]
    config: Annotated[str, Limits(max_length=4000)] = ""
    blobs: bool = True


async def collect(request: Request) -> Response:
    """Remove what is past its age, and the content that nothing names any more."""
    node, body = node_of(request), await body_of(request, Collection)
    if body.dry_run:
        return answer({"jobs": await node.care.preview(), "removed": None})
    done = await node.care.collect(_path(body.export) if body.export else None)
    return answer({"jobs": done.rows.jobs, "removed": msgspec.to_builtins(done)})


async def backup(request: Request) -> Response:
    """Write a backup of this node: its key, configuration, store and content."""
    node, body = node_of(request), await body_of(request, BackupRequest)
    ctx = node.ctx
    config_file = _path(body.config) if body.config else ctx.home / CONFIG_FILE
    done = await ctx.threads.run(_backup, ctx.home, config_file, _path(body.path), body.blobs)
    return answer(msgspec.to_builtins(done), status=201)


def _backup(home: Path, config_file: Path, target: Path, blobs: bool) -> object:
    return make_backup(home, config_file, target, blobs=blobs)


def _path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise UsageError(f"an absolute path is needed: {text!r}")
    return path


ENDPOINTS = (
    Endpoint("/gc", collect, schemas.Collected, "POST", Collection),
    Endpoint("/backup", backup, schemas.BackedUp, "POST", BackupRequest, status=201),
)
