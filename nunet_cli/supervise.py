"""Supervision: every task that a peer, a job or a timer causes is started here, and ends alone when it fails.

What such a task raises is logged once with its cause, counted, and goes no further: in a nursery it would end every
other task, and the node with them. Only a `FatalError` does that. (As Erlang's and Syncthing's supervisors do it.)
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple

import trio

from nunet_cli.errors import FatalError, NunetError

log = logging.getLogger("nunet.supervise")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
UNEXPECTED = "unexpected error in"
S = TypeVar("S")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Supervisor:
    """Starts tasks and outlives what they raise.

    `failures` counts what was raised, by the task's name and the kind of error: `handle: ZeroDivisionError`.
    """

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()

    async def watch(self, name: str, function: Callable[[*Ts], Awaitable[Any]], *arguments: *Ts) -> bool:
        """Run a function to its end; return whether it ended well.

        Args:
            name: what the task is, for the log and the count.
            function: what to run.
            arguments: what it gets.

        Raises:
            FatalError: what the node must not survive; a cancellation passes as well.
        """
        well = True
        try:
            await function(*arguments)
        except* Exception as group:
            well = False
            self.note(name, group)
        return well

    def start_soon(
        self, nursery: trio.Nursery, name: str, function: Callable[[*Ts], Awaitable[Any]], *arguments: *Ts
    ) -> None:
        """Start a task that the nursery does not hear of when it fails; nothing where the nursery is over."""

        async def run() -> None:
            await self.watch(name, function, *arguments)

        try:
            nursery.start_soon(run, name=name)
        except RuntimeError:
            # the node stops, and a message came at that moment
            log.debug("%s came too late", name)

    def watched(self, name: str, function: Callable[[*Ts], Awaitable[Any]]) -> Callable[[*Ts], Awaitable[None]]:
        """Return a function that does the same and raises nothing: for who starts tasks of its own, as listeners do."""

        async def run(*arguments: *Ts) -> None:
            await self.watch(name, function, *arguments)

        return run

    async def every(
        self, seconds: float, name: str, function: Callable[[*Ts], Awaitable[Any]], *arguments: *Ts
    ) -> None:
        """Run a function again and again, with a pause; while it fails, the pause grows to a minute.

        For a function that only ends when it fails, `seconds` is 0.
        """
        pause = seconds
        while True:
            begun = trio.current_time()
            well = await self.watch(name, function, *arguments)
            if well or trio.current_time() - begun > LONGEST_PAUSE:
                pause = seconds
            if not well:
                pause = min(max(LONGEST_PAUSE, seconds), max(FIRST_PAUSE, pause * 2))
            await trio.sleep(pause)

    async def service(
        self, name: str, function: Callable[..., Awaitable[Any]], *arguments: Any,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        """Run what should run for ever, and start it again after a growing pause when it fails or ends.

        Args:
            name: what it is.
            function: takes `task_status`, and says with it that it is up; what it raises before is the caller's.
            arguments: what it gets.
            task_status: for `nursery.start`.
        """
        once = _Once(task_status)
        before: list[Exception] = []

        async def run() -> None:
            once.is_up = False
            try:
                await function(*arguments, task_status=once)
            except Exception as error:
                if once.was_up:
                    raise
                before.append(error)

        pause = FIRST_PAUSE
        while True:
            await self.watch(name, run)
            if before:
                raise before[0]
            pause = FIRST_PAUSE if once.is_up else min(LONGEST_PAUSE, pause * 2)
            await trio.sleep(pause)

    def note(self, name: str, raised: Exception) -> None:
        """Log and count what a task raised; of a group, each error in it.

        Raises:
            FatalError: that was among it.
        """
        for error in _leaves(raised):
            if isinstance(error, FatalError):
                raise error
            if isinstance(error, NunetError):
                # an error of the product's own says what is wrong and where
                log.warning("%s: %s (%s)", name, error, error.code)
                self.failures[f"{name}: {error.code}"] += 1
            else:
                log.error("%s %s: %r", UNEXPECTED, name, error, exc_info=error)
                self.failures[f"{name}: {type(error).__name__}"] += 1


async def meanwhile(keep: Callable[[], Awaitable[S]], do: Callable[[], Awaitable[T]]) -> tuple[S, T]:
    """Do something while something else is kept, and return what both return once both are done.

    Where one of them fails the other is called off, and what it raised is raised as it is.
    """
    problem: list[Exception] = []
    of_keep: list[S] = []
    of_do: list[T] = []

    async def kept() -> None:
        try:
            of_keep.append(await keep())
        except Exception as error:
            problem.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept)
        try:
            of_do.append(await do())
        except Exception as error:
            # raised outside of the nursery, which would make a group of it
            problem.append(error)
            nursery.cancel_scope.cancel()
    if problem:
        raise problem[0]
    return of_keep[0], of_do[0]


class _Once:
    """What a service says that it is up with; who started it hears that the first time only."""

    def __init__(self, task_status: trio.TaskStatus[Any]) -> None:
        self._task_status = task_status
        self.was_up = self.is_up = False

    def started(self, value: Any = None) -> None:
        """Note that the service is up."""
        self.is_up = True
        if not self.was_up:
            self.was_up = True
            self._task_status.started(value)


def _leaves(error: BaseException) -> list[Exception]:
    """Return the errors inside of groups, however deep."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error] if isinstance(error, Exception) else []
