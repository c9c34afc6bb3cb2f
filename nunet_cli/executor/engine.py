"""The Docker Engine, through the `docker` SDK: calls in worker threads, each with a time that it may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import trio

from nunet_cli.executor.base import ExecutorError, Report

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

T = TypeVar("T")
ENGINE_TIMEOUT = 30
CALL_TIMEOUT = 60.0


class Engine:
    """An engine that may come and go.

    Args:
        host: where it is; empty for where the environment says.
        limiter: bounds the threads that wait for it.
    """

    def __init__(self, host: str, limiter: trio.CapacityLimiter) -> None:
        self._host, self._limiter = host, limiter
        self._client: DockerClient | None = None

    def client(self) -> DockerClient:
        """Return the SDK's client, made anew after `forget`; to be used in what `call` is given."""
        if self._client is None:
            import docker

            if self._host:
                self._client = docker.DockerClient(base_url=self._host, timeout=ENGINE_TIMEOUT)
            else:
                self._client = docker.from_env(timeout=ENGINE_TIMEOUT)
        return self._client

    def forget(self) -> None:
        """Make another client at the next call: the engine does not answer this one."""
        self._client = None

    async def call(self, function: Callable[[], T], timeout: float = CALL_TIMEOUT) -> T:
        """Run a function in a thread, and return what it does.

        Args:
            function: uses `client`.
            timeout: how long it may take, in seconds; what takes longer goes on, and nobody waits for it.

        Raises:
            ExecutorError: what the engine, or the way to it, said.
        """

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

    async def on_container(self, handle: str, act: Callable[[Container], None]) -> None:
        """Do something to a container, if it is there.

        Raises:
            ExecutorError: what the engine said.
        """

        def do() -> None:
            import docker.errors

            try:
                act(self.client().containers.get(handle))
            except docker.errors.NotFound:
                pass

        await self.call(do)


def pull(engine: DockerClient, image: str, report: Report) -> None:
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
