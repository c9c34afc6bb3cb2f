"""The docker executor: a container of a Docker Engine, through the `docker` SDK, in worker threads.

No network, no capabilities, no new privileges, read-only root, a user without rights, limits on memory (no swap),
processors, PIDs, disk and wall time. Containers carry labels, by which a restarted node finds them again.
"""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from nunet_cli.config import DockerConfig
from nunet_cli.executor.base import NODE_LABEL, POLL_INTERVAL, Executor, ExecutorError, Exit, Probe, Task
from nunet_cli.executor.container import (
    LABEL,
    check_places,
    check_texts,
    container_options,
    engine_time,
    seconds_between,
    volumes,
)
from nunet_cli.executor.engine import Engine, pull
from nunet_cli.executor.files import folder_size, give_folder
from nunet_cli.records.results import LOG_CUT, Usage

if TYPE_CHECKING:
    from docker.models.containers import Container

log = logging.getLogger("nunet.executor.docker")

STOP_SECONDS = 2
NOBODY = 65534
PROBE_TIMEOUT = 5.0
CHECK_INTERVAL = 0.1


class DockerExecutor:
    """Runs images."""

    type = "docker"

    def __init__(self, config: DockerConfig) -> None:
        self._config = config
        self._limiter = trio.CapacityLimiter(64)
        self._engine = Engine(config.host, self._limiter)
        self._usage: dict[str, Usage] = {}
        self._checks: dict[str, str] = {}

    async def probe(self) -> Probe:
        """Say whether an engine answers; asked each time, so that one started later is noticed."""
        if not self._config.enabled:
            return Probe(False, "off in the configuration")
        try:
            version = await self._engine.call(lambda: self._engine.client().version()["Version"], timeout=PROBE_TIMEOUT)
        except ExecutorError as error:
            self._engine.forget()
            return Probe(False, str(error))
        return Probe(True, f"Docker Engine {version}")

    async def refusal(self, image: str) -> str:
        """Say whether an image is not here and may not be pulled."""
        if self._config.pull:
            return ""

        def look() -> str:
            import docker.errors

            try:
                self._engine.client().images.get(image)
            except docker.errors.ImageNotFound:
                return "the image is not on this provider"
            return ""

        try:
            return await self._engine.call(look, timeout=PROBE_TIMEOUT)
        except ExecutorError as error:
            return str(error)

    async def prepare(self, task: Task) -> None:
        """Check a stranger's image against the allow-list, and pull it if it is not here and pulling is allowed."""
        image = task.spec.image
        if task.foreign and not is_allowed(self._config, image):
            raise ExecutorError(f"this provider does not run the image {image}", code="image_not_allowed")

        def ready() -> None:
            import docker.errors

            engine = self._engine.client()
            try:
                engine.images.get(image)
            except docker.errors.ImageNotFound:
                if not self._config.pull:
                    raise ExecutorError(f"the image {image} is not on this provider", code="no_image") from None
                pull(engine, image, task.report)

        await self._engine.call(ready, timeout=task.max_duration)

    async def start(self, task: Task) -> str:
        """Create and start the container; the handle is its id."""
        check_texts(task)
        user = NOBODY if os.getuid() == 0 else os.getuid()
        if os.getuid() == 0 and not task.restarts:
            # what it finds later, the job has made
            await trio.to_thread.run_sync(give_folder, task.work, user, task.inputs, limiter=self._limiter)
        await trio.to_thread.run_sync(check_places, task, limiter=self._limiter)
        options = container_options(task, user, self._config.max_pids)

        def begin() -> str:
            import docker.errors

            command = list(task.spec.command) or None
            engine = self._engine.client()
            options["tmpfs"].update(volumes(engine.images.get(task.spec.image).attrs, task.resources.memory))
            container = engine.containers.create(task.spec.image, command, **options)
            try:
                container.start()
            except BaseException as error:
                # nobody has its handle
                container.remove(force=True, v=True)
                if isinstance(error, docker.errors.APIError):
                    raise ExecutorError(f"the container cannot be started: {error.explanation}") from None
                raise
            return str(container.id)

        return await self._engine.call(begin)

    async def attach(self, task: Task, handle: str) -> bool:
        """Find the container of an allocation by its label."""

        def find() -> bool:
            found = self._engine.client().containers.list(all=True, filters={"label": f"{LABEL}={task.allocation_id}"})
            return any(container.id == handle for container in found)

        return await self._engine.call(find)

    async def wait(self, task: Task, handle: str) -> Exit:
        """Follow the logs, watch disk and memory, and return how the container ended."""
        reason: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, task, handle, reason)
            async with trio.open_nursery() as logs:
                logs.start_soon(self._follow, task, handle, "stdout", task.stdout)
                logs.start_soon(self._follow, task, handle, "stderr", task.stderr)
            nursery.cancel_scope.cancel()
        state = await self._state(handle)
        while state["Running"]:
            await trio.sleep(POLL_INTERVAL)
            state = await self._state(handle)
        usage = await self.usage(task, handle)
        wall = seconds_between(state["StartedAt"], state["FinishedAt"])
        if state.get("OOMKilled"):
            reason = ["out_of_memory"]
        used = Usage(usage.cpu_seconds, wall, usage.max_memory)
        return Exit(state["ExitCode"], used, reason[0] if reason else "", engine_time(state["FinishedAt"]))

    async def _state(self, handle: str) -> dict[str, Any]:
        def inspect() -> dict[str, Any]:
            return dict(self._engine.client().api.inspect_container(handle)["State"])

        return await self._engine.call(inspect)

    async def _follow(self, task: Task, handle: str, name: str, path: Path) -> None:
        def copy() -> None:
            stream = self._engine.client().api.logs(
                handle, stdout=name == "stdout", stderr=name == "stderr", stream=True, follow=True
            )
            with path.open("ab" if task.restarts else "wb", buffering=0) as file:
                # what earlier starts of a service wrote counts
                kept = file.tell()
                for chunk in stream:
                    if kept < task.max_log:
                        try:
                            file.write(chunk[: task.max_log - kept])
                            kept += len(chunk)
                            if kept >= task.max_log:
                                file.write(LOG_CUT)
                        except OSError as error:
                            raise ExecutorError(f"the log cannot be kept: {error}") from None

        try:
            await trio.to_thread.run_sync(copy, limiter=self._limiter, abandon_on_cancel=True)
        except ExecutorError:
            raise
        except Exception as error:
            # the SDK passes on whatever its HTTP library raises when the engine goes away; the state decides
            log.warning("the logs of %s were cut: %s", handle[:12], error)

    async def _watch(self, task: Task, handle: str, reason: list[str]) -> None:
        while True:
            limit = task.resources.disk
            try:
                self._usage[task.allocation_id] = await self._measure(handle)
            except ExecutorError as error:
                log.debug("no statistics of %s: %s", handle[:12], error)
            if await trio.to_thread.run_sync(_disk_used, task, limiter=self._limiter) > limit:
                reason.append("disk_full")
                await self.stop(task, handle)
                return
            await trio.sleep(POLL_INTERVAL * 2)

    async def _measure(self, handle: str) -> Usage:
        def stats() -> dict[str, Any]:
            return dict(self._engine.client().api.stats(handle, stream=False, one_shot=True))

        found = await self._engine.call(stats)
        cpu = found.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage", 0) / 1e9
        memory = found.get("memory_stats", {})
        return Usage(round(cpu, 3), 0.0, int(memory.get("max_usage") or memory.get("usage") or 0))

    async def usage(self, task: Task, handle: str) -> Usage:
        """Return the latest measurement; the engine forgets a container's numbers once it has ended."""
        known = self._usage.get(task.allocation_id, Usage())
        try:
            now = await self._measure(handle)
        except ExecutorError:
            return known
        best = Usage(max(now.cpu_seconds, known.cpu_seconds), 0.0, max(now.max_memory, known.max_memory))
        self._usage[task.allocation_id] = best
        return best

    async def check(self, task: Task, handle: str, command: tuple[str, ...]) -> bool:
        """Run a command in the container; not while an earlier one still runs, which the engine cannot end."""

        def begin() -> str:
            api = self._engine.client().api
            earlier = self._checks.get(task.allocation_id)
            if earlier is not None and api.exec_inspect(earlier)["Running"]:
                return ""
            made = str(api.exec_create(handle, list(command), stdout=False, stderr=False)["Id"])
            self._checks[task.allocation_id] = made
            api.exec_start(made, detach=True)
            return made

        made = await self._engine.call(begin)
        while made:
            state = await self._engine.call(lambda: dict(self._engine.client().api.exec_inspect(made)))
            if not state["Running"]:
                return bool(state["ExitCode"] == 0)
            await trio.sleep(CHECK_INTERVAL)
        return False

    async def stop(self, task: Task, handle: str) -> None:
        """Stop the container: a polite signal, and after a grace period a sure one."""

        def end(container: Container) -> None:
            container.stop(timeout=STOP_SECONDS)

        await self._engine.on_container(handle, end)

    async def cleanup(self, task: Task, handle: str) -> None:
        """Remove the container."""
        self._usage.pop(task.allocation_id, None)
        self._checks.pop(task.allocation_id, None)

        def remove(container: Container) -> None:
            container.remove(force=True, v=True)

        await self._engine.on_container(handle, remove)

    async def remove_left(self, node: str, is_owned: Callable[[str], bool]) -> list[str]:
        """Remove the containers with a node's label whose allocation nobody owns."""

        def find() -> list[tuple[str, str]]:
            # not the SDK's own list: that asks for each, and fails when one goes away meanwhile
            found = self._engine.client().api.containers(all=True, filters={"label": [f"{NODE_LABEL}={node}", LABEL]})
            return [(str(entry["Id"]), str(entry["Labels"][LABEL])) for entry in found]

        def remove(container: Container) -> None:
            container.remove(force=True, v=True)

        removed = []
        # who owns what is asked after the list was made: no container is made before its allocation is known
        for handle, allocation_id in await self._engine.call(find):
            if not is_owned(allocation_id.partition("/")[0]):
                await self._engine.on_container(handle, remove)
                removed.append(allocation_id)
        return removed


def is_allowed(config: DockerConfig, image: str) -> bool:
    """Say whether strangers may run an image: by default none."""
    return any(fnmatch.fnmatchcase(image, pattern) for pattern in config.images)


def _disk_used(task: Task) -> int:
    limit = task.resources.disk
    kept = folder_size(task.kept_inputs, limit)
    return kept + folder_size(task.work, max(0, limit - kept))


_protocol: type[Executor] = DockerExecutor
