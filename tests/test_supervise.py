"""Supervision: what a task raises ends that task alone, is logged once and counted; timers go on, slower."""

import ast
import itertools
import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import nunet_cli
from nunet_cli.errors import FatalError, NunetError
from nunet_cli.supervise import LONGEST_PAUSE, UNEXPECTED, Supervisor

# tasks that are started without the supervisor, and why none of them needs it
UNSUPERVISED = {
    "nunet_cli/supervise.py": "the supervisor itself",
    "nunet_cli/api/server.py": "starts the supervised service",
    "nunet_cli/cli/demo.py": "a command of its own, no node",
    "nunet_cli/executor/docker.py": "parts of one allocation, which is supervised",
    "nunet_cli/executor/process.py": "parts of one allocation, which is supervised",
    "nunet_cli/network/discovery.py": "the look-ups of discovery, which is supervised and begins anew with them",
    "nunet_cli/network/links.py": "runs `accept`, which the transport hands in supervised",
    "nunet_cli/network/transport.py": "a connection's own tasks: what they raise ends it, and is noted",
    "nunet_cli/node/node.py": "starts the services",
    "nunet_cli/node/opening.py": "the signal receiver",
    "nunet_cli/allocation/run.py": "parts of one allocation, which is supervised",
    "nunet_cli/orchestrator/cancel.py": "children of one cancellation",
    "nunet_cli/groups/walk.py": "children of one job, which is supervised",
    "nunet_cli/allocation/part.py": "parts of one allocation, which is supervised",
    "nunet_cli/allocation/pod.py": "parts of one allocation, which is supervised",
    "nunet_cli/groups/replicas.py": "children of one job, which is supervised",
}


def starts(path: Path) -> list[int]:
    """The lines on which a file starts tasks in a nursery by itself."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            mine = node.func.attr == "start_soon" and not owner.endswith("supervisor")
            if mine or (node.func.attr == "start" and owner.endswith("nursery")):
                found.append(node.lineno)
    return found


def test_every_task_is_started_by_the_supervisor_or_has_a_reason() -> None:
    package = Path(nunet_cli.__file__).parent
    found = {str(path.relative_to(package.parent)): starts(path) for path in package.rglob("*.py")}
    unsupervised = {name for name, lines in found.items() if lines}
    assert unsupervised - set(UNSUPERVISED) == set(), "start it with the supervisor, or say here why not"
    assert set(UNSUPERVISED) - unsupervised == set(), "not needed any more"


async def breaks() -> None:
    raise ZeroDivisionError("one over nothing")


async def breaks_twice() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(breaks)

        async def refuses() -> None:
            raise NunetError("no", code="refused")

        nursery.start_soon(refuses)


async def test_what_a_task_raises_ends_it_alone_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    supervisor, ended = Supervisor(), []
    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            supervisor.start_soon(nursery, "dividing", breaks)

            async def other() -> None:
                await trio.testing.wait_all_tasks_blocked()
                ended.append("other")

            nursery.start_soon(other)
    assert ended == ["other"]
    assert supervisor.failures == {"dividing: ZeroDivisionError": 1}
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{UNEXPECTED} dividing: ")
    assert record.exc_info is not None


async def test_each_error_of_a_group_is_counted() -> None:
    supervisor = Supervisor()
    # the nursery is cancelled by the first error, but both children had already raised
    assert await supervisor.watch("two", breaks_twice) is False
    assert set(supervisor.failures) <= {"two: ZeroDivisionError", "two: refused"}
    assert supervisor.failures


async def test_a_cancellation_passes_even_beside_an_error() -> None:
    supervisor = Supervisor()

    async def breaks_when_cancelled() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

    with trio.CancelScope() as scope:
        scope.cancel()
        await supervisor.watch("stopping", breaks_when_cancelled)
    with trio.CancelScope() as scope:
        scope.cancel()
        await supervisor.watch("stopping", trio.sleep_forever)
        raise AssertionError("went on after it was cancelled")
    assert supervisor.failures == {"stopping: ZeroDivisionError": 1}


async def test_what_is_fatal_ends_all() -> None:
    async def fatal() -> None:
        raise FatalError("the store is damaged")

    supervisor = Supervisor()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            supervisor.start_soon(nursery, "reading", fatal)
    assert caught.group_contains(FatalError)


async def test_a_timer_goes_on_slower_while_it_fails_and_as_before_when_it_does_not(autojump_clock: MockClock) -> None:
    supervisor, times, fails = Supervisor(), [], [True]

    async def tick() -> None:
        times.append(trio.current_time())
        if fails[0]:
            raise OSError("no")

    with trio.move_on_after(600):
        await supervisor.every(2, "ticking", tick)
    pauses = [round(after - before) for before, after in itertools.pairwise(times)]
    assert pauses[:3] == [4, 8, 16]
    assert max(pauses) == LONGEST_PAUSE
    fails[0] = False
    times.clear()
    with trio.move_on_after(100):
        await supervisor.every(2, "ticking", tick)
    assert len(times) == 50


async def test_a_service_comes_back_and_its_first_start_is_the_callers(autojump_clock: MockClock) -> None:
    supervisor, runs = Supervisor(), []

    async def serve(*, task_status: trio.TaskStatus[int]) -> None:
        runs.append(trio.current_time())
        task_status.started(len(runs))
        await trio.sleep(5)
        raise OSError("the socket has gone")

    async with trio.open_nursery() as nursery:
        assert await nursery.start(supervisor.service, "serving", serve) == 1
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert len(runs) > 5

    async def cannot(*, task_status: trio.TaskStatus[int]) -> None:
        raise OSError("in use")

    with pytest.raises((OSError, BaseExceptionGroup)):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.service, "serving", cannot)
