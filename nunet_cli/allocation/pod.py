"""Stage 6, the programs of an allocation together: one for a job, several in the order of their links for a pod."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from nunet_cli.allocation import part as programs
from nunet_cli.allocation.part import Part, Preparing, Started, add_usage
from nunet_cli.executor.base import Exit, Given
from nunet_cli.jobs.spec import JobLink, JobSpec
from nunet_cli.jobs.tree import place_of
from nunet_cli.orchestrator.needs import HasBlobs
from nunet_cli.records.results import OutputFile, Usage


@dataclass
class Ended:
    """How the programs ended together: the exit of the first that failed, or 0, and everything that came out.

    `at` is when the last of them ended, before their outputs were taken in; empty for now.
    """

    exit: Exit
    outputs: list[OutputFile] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failed: str = ""
    at: str = ""


async def run_single(ctx: Preparing, part: Part, started: Started) -> Ended:
    """Wait for a job's only program, which is started, and take its outputs in."""
    exit_ = await programs.wait(ctx, part, started)
    with trio.CancelScope(shield=True):
        outputs, missing = await programs.collect(ctx, part, ctx.config.limits.output_size)
    return Ended(exit_, outputs, missing, at=exit_.ended_at)


async def run_pod(ctx: Preparing, spec: JobSpec, parts: list[Part], started: Started) -> Ended:
    """Run the members of a pod, each once those that it depends on have ended well; the first failure ends all.

    Raises:
        NunetError: a member could not be prepared or started.
    """
    ended = Ended(Exit(0, Usage()))
    done = {part.name: trio.Event() for part in parts}
    problems: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def run(part: Part) -> None:
            links = [link for link in spec.links if link.to == part.name]
            for link in links:
                await done[link.from_].wait()
            try:
                await programs.prepare(ctx, part, _data(ctx, links, ended.outputs))
                await programs.start(part, started)
                exit_ = await programs.wait(ctx, part, started)
                ended.at = max(ended.at, exit_.ended_at)
            except Exception as error:
                problems.append(error)
                nursery.cancel_scope.cancel()
                return
            room = ctx.config.limits.output_size - sum(output.size for output in ended.outputs)
            with trio.CancelScope(shield=True):
                outputs, missing = await programs.collect(ctx, part, room)
                await ctx.threads.run(_append_logs, part, part.task.folder.parent.parent)
            ended.outputs += outputs
            ended.missing += missing
            ended.exit = replace(ended.exit, usage=add_usage(ended.exit.usage, exit_.usage))
            if exit_.exit_code != 0 or exit_.reason or missing:
                ended.exit = replace(exit_, usage=ended.exit.usage)
                ended.failed = part.name
                nursery.cancel_scope.cancel()
                return
            done[part.name].set()

        for part in parts:
            nursery.start_soon(run, part)
    with trio.CancelScope(shield=True):
        for part in parts:
            if part.handle and not done[part.name].is_set() and part.name != ended.failed:
                await part.executor.stop(part.task, part.handle)
    if problems:
        raise problems[0]
    return ended


def _data(ctx: HasBlobs, links: list[JobLink], outputs: list[OutputFile]) -> list[Given]:
    """Return the outputs of earlier members that links bring into a member's folder."""
    given = []
    for link in links:
        if link.kind != "data":
            continue
        for output in outputs:
            member, _, name = output.name.partition("/")
            if member == link.from_ and link.output in ("", name):
                place = place_of(link, name, output.kind)
                given.append(Given(place, ctx.blobs.path(output.cid), output.kind != "file"))
    return given


def _append_logs(part: Part, folder: Path) -> None:
    """Put what a member wrote into the pod's own logs in a folder, under its name; all share one log's room."""
    for source in (part.task.stdout, part.task.stderr):
        data = source.read_bytes() if source.exists() else b""
        if data:
            text = f"==> {part.name} <==\n".encode() + data + (b"" if data.endswith(b"\n") else b"\n")
            with (folder / source.name).open("ab") as whole:
                whole.write(text[: max(0, part.task.max_log - whole.tell())])
