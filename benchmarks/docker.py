"""A command in a container, through the whole market, over the same container by `docker run`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.lines import Line, Options, SkippedError
from benchmarks.market import environment, open_market
from benchmarks.startup import command
from benchmarks.timing import best_in_turns

IMAGES = ("busybox:latest", "alpine:latest", "debian:stable-slim", "python:3")
TIMES = 7
LIMITS = ("--memory", "64m", "--cpus", "0.5", "--network", "none", "--read-only")


def measure(options: Options) -> Iterator[Line]:
    """Measure `nunet run` where the nodes run already, in turns with the engine alone."""
    image = image_here()
    folder = options.folder / "docker"
    with open_market(folder, docker=True) as market:
        nunet = [
            sys.executable, "-m", "nunet_cli", "--home", str(market.requester.home), "run", image, "--quiet",
            "--cpu", "0.5", "--memory", "64MiB", "--disk", "16MiB", "--price", "1", "--", "true",
        ]  # fmt: skip
        runs = {
            "nunet": command(nunet, environment(folder, docker=True)),
            "docker": command(["docker", "run", "--rm", *LIMITS, image, "true"]),
        }
        for run in runs.values():
            run()
        took = best_in_turns(runs, TIMES)
    yield Line(
        "docker", f"nunet run {image}", took["nunet"] / took["docker"], "docker run", "",
        f"{took['nunet'] * 1000:.0f} ms; docker run {took['docker'] * 1000:.0f} ms",
        {"ms": took["nunet"] * 1000, "docker_ms": took["docker"] * 1000},
    )  # fmt: skip


def image_here() -> str:
    """Return an image that the engine has: nothing is pulled for a measurement.

    Raises:
        SkippedError: no engine answers, or it has none of the images.
    """
    if shutil.which("docker") is None:
        raise SkippedError("there is no docker command here")
    done = subprocess.run(
        ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"], capture_output=True, text=True, check=False,
        timeout=30,
    )  # fmt: skip
    if done.returncode:
        raise SkippedError("no Docker Engine answers; where it is: DOCKER_HOST")
    here = set(done.stdout.split())
    for image in IMAGES:
        if image in here:
            return image
    raise SkippedError(f"the engine has no image to run; get one: docker pull {IMAGES[0]}")
