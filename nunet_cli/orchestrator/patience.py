"""Waiting while a disk is full: what could not be written is tried again, and no job fails of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from nunet_cli.errors import NoSpaceError, NunetError
from nunet_cli.orchestrator.context import Context
from nunet_cli.records.results import Progress

T = TypeVar("T")
log = logging.getLogger("nunet.jobs")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
FULL = NoSpaceError.default_code


async def while_full(ctx: Context, job_id: str, function: Callable[[], Awaitable[T]]) -> T:
    """Take a job further; where a disk is full, here or at a party, wait, say so with the job, and do it again.

    Raises:
        NunetError: what has another reason.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            return await function()
        except NunetError as error:
            if error.code != FULL:
                raise
            log.warning("job %s waits: %s; %s", job_id, error, error.hint)
        ctx.progress[job_id] = Progress("waiting: the disk is full", 0)
        try:
            await trio.sleep(pause)
        finally:
            ctx.progress.pop(job_id, None)
        pause = min(LONGEST_PAUSE, pause * 2)
