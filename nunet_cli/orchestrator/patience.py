"""Waiting while a disk is full: what could not be written is tried again, and no job fails of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from nunet_cli.errors import NoSpaceError, NunetError
from nunet_cli.orchestrator.needs import HasProgress
from nunet_cli.records.results import Progress

T = TypeVar("T")
log = logging.getLogger("nunet.jobs")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
FULL = NoSpaceError.default_code


async def while_full(ctx: HasProgress, job_id: str, function: Callable[[], Awaitable[T]]) -> T:
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
        ctx.progress.note(job_id, Progress("waiting: the disk is full", 0))
        try:
            await trio.sleep(pause)
        finally:
            ctx.progress.done(job_id)
        pause = min(LONGEST_PAUSE, pause * 2)
