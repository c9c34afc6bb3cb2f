"""The docker executor: a container of a Docker Engine, through the `docker` SDK, in worker threads.

No network, no capabilities, no new privileges, read-only root, a user without rights, limits on memory (no swap),
processors, PIDs, disk and wall time. Containers carry labels, by which a restarted node finds them again.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import posixpath
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from nunet_cli import units
from nunet_cli.config import DockerConfig
from nunet_cli.executor.base import NODE_LABEL, POLL_INTERVAL, Executor, ExecutorError, Exit, Probe, Report, Task
from nunet_cli.executor.files import folder_size, give_folder, open_file, open_folder
from nunet_cli.records.results import Usage

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

log = logging.getLogger("nunet.executor.docker")
T = TypeVar("T")

LABEL = "org.nunet.allocation"
STOP_SECONDS = 2
ENGINE_TIMEOUT = 30
NOBODY = 65534
CALL_TIMEOUT = 60.0
PROBE_TIMEOUT = 5.0
CHECK_INTERVAL = 0.1
LEAST_MEMORY = 6 * 2**20


class DockerExecutor:
    """Runs images."""

    type = "docker"

    def __init__(self, config: DockerConfig) -> None:
        self._config = config
        self._client: DockerClient | None = None
        self._limiter = trio.CapacityLimiter(64)
        self._usage: dict[str, Usage] = {}
        self._checks: dict[str, str] = {}

    async def probe(self) -> Probe:
        """Say whether an engine answers; asked each time, so that one started later is noticed."""
        if not self._config.enabled:
            return Probe(False, "off in the configuration")
        try:
            version = await self._call(lambda: self._engine().version()["Version"], timeout=PROBE_TIMEOUT)
        except ExecutorError as error:
            self._client = None
            return Probe(False, str(error))
        return Probe(True, f"Docker Engine {version}")

    async def refusal(self, image: str) -> str:
        """Say whether an image is not here and may not be pulled."""
        if self._config.pull:
            return ""

        def look() -> str:
            import docker.errors

            try:
                self._engine().images.get(image)
            except docker.errors.ImageNotFound:
                return "the image is not on this provider"
            return ""

        try:
            return await self._call(look, timeout=PROBE_TIMEOUT)
        except ExecutorError as error:
            return str(error)

    async def prepare(self, task: Task) -> None:
        """Check a stranger's image against the allow-list, and pull it if it is not here and pulling is allowed."""
        image = task.spec.image
        if task.foreign and not is_allowed(self._config, image):
            raise ExecutorError(f"this provider does not run the image {image}", code="image_not_allowed")

        def ready() -> None:
            import docker.errors

            engine = self._engine()
            try:
                engine.images.get(image)
            except docker.errors.ImageNotFound:
                if not self._config.pull:
                    raise ExecutorError(f"the image {image} is not on this provider", code="no_image") from None
                _pull(engine, image, task.report)

        await self._call(ready, timeout=task.max_duration)

    async def start(self, task: Task) -> str:
        """Create and start the container; the handle is its id."""
        _check_texts(task)
        user = NOBODY if os.getuid() == 0 else os.getuid()
        if os.getuid() == 0 and not task.restarts:
            # what it finds later, the job has made
            await trio.to_thread.run_sync(give_folder, task.work, user, limiter=self._limiter)
        await trio.to_thread.run_sync(_check_places, task, limiter=self._limiter)
        options = self._options(task, user)

        def begin() -> str:
            import docker.errors

            command = list(task.spec.command) or None
            engine = self._engine()
            options["tmpfs"].update(_volumes(engine.images.get(task.spec.image).attrs, task.resources.memory))
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

        return await self._call(begin)

    def _options(self, task: Task, user: int) -> dict[str, Any]:
        from docker.types import Mount

        inside = f"/job/{task.spec.workdir}".rstrip("/")
        # the engine follows links, so it gets no path that the job could have changed; and makes no folder for one
        mounts = [Mount("/job", str(task.work), type="bind")]
        for number, place in enumerate(task.inputs):
            mounts.append(Mount(f"/job/{place}", str(task.kept_inputs / str(number)), type="bind", read_only=True))
        memory = max(task.resources.memory, LEAST_MEMORY)
        options: dict[str, Any] = {
            "entrypoint": list(task.spec.entrypoint) or None,
            "environment": {"HOME": "/job", **task.spec.env},
            "labels": {LABEL: task.allocation_id, **task.labels},
            "working_dir": inside,
            "user": f"{user}:{user}",
            "mounts": mounts,
            "network_mode": "none",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "read_only": True,
            "shm_size": memory,
            "tmpfs": {"/tmp": _in_memory(memory)},
            "mem_limit": memory,
            "memswap_limit": memory,
            "pids_limit": self._config.max_pids,
            "log_config": {"type": "json-file", "config": {"max-size": str(task.max_log), "max-file": "1"}},
            "init": True,
            "nano_cpus": int(task.resources.cpu.share * 1e9),
        }
        if task.resources.gpus:
            from docker.types import DeviceRequest

            options["device_requests"] = [DeviceRequest(count=len(task.resources.gpus), capabilities=[["gpu"]])]
        return options

    async def attach(self, task: Task, handle: str) -> bool:
        """Find the container of an allocation by its label."""

        def find() -> bool:
            found = self._engine().containers.list(all=True, filters={"label": f"{LABEL}={task.allocation_id}"})
            return any(container.id == handle for container in found)

        return await self._call(find)

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
        wall = _seconds_between(state["StartedAt"], state["FinishedAt"])
        if state.get("OOMKilled"):
            reason = ["out_of_memory"]
        used = Usage(usage.cpu_seconds, wall, usage.max_memory)
        return Exit(state["ExitCode"], used, reason[0] if reason else "", _time(state["FinishedAt"]))

    async def _state(self, handle: str) -> dict[str, Any]:
        def inspect() -> dict[str, Any]:
            return dict(self._engine().api.inspect_container(handle)["State"])

        return await self._call(inspect)

    async def _follow(self, task: Task, handle: str, name: str, path: Path) -> None:
        def copy() -> None:
            stream = self._engine().api.logs(
                handle, stdout=name == "stdout", stderr=name == "stderr", stream=True, follow=True
            )
            with path.open("ab" if task.restarts else "wb", buffering=0) as file:
                # what earlier starts of a service wrote counts
                kept = file.tell()
                for chunk in stream:
                    if kept < task.max_log:
                        try:
                            file.write(chunk[: task.max_log - kept])
                        except OSError as error:
                            raise ExecutorError(f"the log cannot be kept: {error}") from None
                        kept += len(chunk)

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
            return dict(self._engine().api.stats(handle, stream=False, one_shot=True))

        found = await self._call(stats)
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
            api = self._engine().api
            earlier = self._checks.get(task.allocation_id)
            if earlier is not None and api.exec_inspect(earlier)["Running"]:
                return ""
            made = str(api.exec_create(handle, list(command), stdout=False, stderr=False)["Id"])
            self._checks[task.allocation_id] = made
            api.exec_start(made, detach=True)
            return made

        made = await self._call(begin)
        while made:
            state = await self._call(lambda: dict(self._engine().api.exec_inspect(made)))
            if not state["Running"]:
                return bool(state["ExitCode"] == 0)
            await trio.sleep(CHECK_INTERVAL)
        return False

    async def stop(self, task: Task, handle: str) -> None:
        """Stop the container: a polite signal, and after a grace period a sure one."""

        def end(container: Container) -> None:
            container.stop(timeout=STOP_SECONDS)

        await self._on_container(handle, end)

    async def cleanup(self, task: Task, handle: str) -> None:
        """Remove the container."""
        self._usage.pop(task.allocation_id, None)
        self._checks.pop(task.allocation_id, None)

        def remove(container: Container) -> None:
            container.remove(force=True, v=True)

        await self._on_container(handle, remove)

    async def remove_left(self, node: str, is_owned: Callable[[str], bool]) -> list[str]:
        """Remove the containers with a node's label whose allocation nobody owns."""

        def find() -> list[tuple[str, str]]:
            # not the SDK's own list: that asks for each, and fails when one goes away meanwhile
            found = self._engine().api.containers(all=True, filters={"label": [f"{NODE_LABEL}={node}", LABEL]})
            return [(str(entry["Id"]), str(entry["Labels"][LABEL])) for entry in found]

        def remove(container: Container) -> None:
            container.remove(force=True, v=True)

        removed = []
        # who owns what is asked after the list was made: no container is made before its allocation is known
        for handle, allocation_id in await self._call(find):
            if not is_owned(allocation_id.partition("/")[0]):
                await self._on_container(handle, remove)
                removed.append(allocation_id)
        return removed

    async def _on_container(self, handle: str, act: Callable[[Container], None]) -> None:
        def do() -> None:
            import docker.errors

            try:
                act(self._engine().containers.get(handle))
            except docker.errors.NotFound:
                pass

        await self._call(do)

    def _engine(self) -> DockerClient:
        if self._client is None:
            import docker

            if self._config.host:
                self._client = docker.DockerClient(base_url=self._config.host, timeout=ENGINE_TIMEOUT)
            else:
                self._client = docker.from_env(timeout=ENGINE_TIMEOUT)
        return self._client

    async def _call(self, function: Callable[[], T], timeout: float = CALL_TIMEOUT) -> T:
        def run() -> T:
            try:
                return function()
            except ExecutorError:
                raise
            except Exception as error:
                # the SDK lets errors of requests and urllib3 through as well as its own
                raise ExecutorError(f"Docker Engine: {error}") from None

        with trio.move_on_after(timeout):
            return await trio.to_thread.run_sync(run, limiter=self._limiter, abandon_on_cancel=True)
        raise ExecutorError("the Docker Engine does not answer")


def is_allowed(config: DockerConfig, image: str) -> bool:
    """Say whether strangers may run an image: by default none."""
    return any(fnmatch.fnmatchcase(image, pattern) for pattern in config.images)


def _pull(engine: DockerClient, image: str, report: Report) -> None:
    """Pull an image, reporting the bytes of all its layers.

    Raises:
        ExecutorError: what the engine said.
    """
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(image)
    done: dict[str, int] = {}
    total: dict[str, int] = {}
    for line in engine.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
        if "error" in line:
            raise ExecutorError(f"the image {image} cannot be pulled: {line['error']}", code="no_image")
        detail, layer = line.get("progressDetail") or {}, str(line.get("id", ""))
        # layers are unpacked as well, which counts its bytes a second time
        if line.get("status") == "Downloading" and "current" in detail:
            done[layer], total[layer] = int(detail["current"]), int(detail.get("total", 0))
        elif line.get("status") in ("Download complete", "Pull complete"):
            done[layer] = total.get(layer, 0)
        report(f"pulling {image}"[:120], sum(done.values()), sum(total.values()))


def _check_texts(task: Task) -> None:
    """Refuse what no program can be given.

    Raises:
        ExecutorError: there is such a text.
    """
    spec = task.spec
    texts = [*spec.env, *spec.env.values(), *spec.command, *spec.entrypoint, spec.workdir]
    if any("\0" in text for text in texts) or any(not name or "=" in name for name in spec.env):
        raise ExecutorError("the environment or the command has a character that cannot be in it", code="bad_text")


def _check_places(task: Task) -> None:
    """Refuse a start where what the engine needs in the job's folder is not there: only the job can have moved it.

    Raises:
        ExecutorError: the working folder, or an input's place, is gone, or is a link.
    """
    try:
        os.close(open_folder(task.work, task.spec.workdir))
    except OSError:
        raise ExecutorError(f"the working folder {task.spec.workdir!r} is not there", code="no_workdir") from None
    for place in task.inputs:
        try:
            os.close(open_file(task.work, place))
        except OSError:
            raise ExecutorError(f"the place of the input {place!r} is not there", code="bad_place") from None


def _in_memory(size: int) -> str:
    return f"size={size},mode=1777"


def _volumes(image: dict[str, Any], memory: int) -> dict[str, str]:
    """Return the volumes that an image declares as folders in memory, which counts as the job's.

    The engine would give each a folder of the host's disk, writable and as large as the disk. What is at or below
    the job's own folder is left to that: /job is mounted there.
    """
    wanted = (image.get("Config") or {}).get("Volumes") or {}
    paths = {posixpath.normpath(f"/{path}".replace("//", "/")) for path in wanted}
    return {path: _in_memory(max(memory, LEAST_MEMORY)) for path in paths if path != "/job"}


def _disk_used(task: Task) -> int:
    limit = task.resources.disk
    kept = folder_size(task.kept_inputs, limit)
    return kept + folder_size(task.work, max(0, limit - kept))


def _parse_time(text: str) -> datetime:
    """Return a time as the engine writes it, with nanoseconds or with none.

    Raises:
        ValueError: it is no time.
    """
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00")


def _time(text: str) -> str:
    """Return a time of the engine's as documents carry it; empty where the engine does not know it."""
    try:
        when = _parse_time(text)
    except ValueError:
        return ""
    # year 1 is how it says: not yet
    return units.format_time(when) if when.year > 1 else ""


def _seconds_between(started: str, finished: str) -> float:
    try:
        first, last = _parse_time(started), _parse_time(finished)
    except ValueError:
        return 0.0
    return max(0.0, round((last - first).total_seconds(), 3))


_protocol: type[Executor] = DockerExecutor
