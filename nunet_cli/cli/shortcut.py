"""`nunet run` and `nunet job init`: a job without writing a specification, and the beginning of one."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nunet_cli.cli.job import (
    DetachOption,
    FolderOption,
    PullOption,
    PushOption,
    TimeoutOption,
    TopicOption,
    run_posting,
)
from nunet_cli.cli.output import Format, OutputOption, QuietOption, note, write_new
from nunet_cli.errors import UsageError

COMMAND = "nunet.command"
app = typer.Typer()


class AfterDashes(typer.core.TyperCommand):
    """A command that tells what stood before `--` from what stood after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what stands after the first `--` for the command to find."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[COMMAND] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)


CpuOption = Annotated[float, typer.Option("--cpu", help="Cores.", metavar="CORES", min=0)]
MemoryOption = Annotated[str, typer.Option("--memory", "-m", help="For example 512MiB.", metavar="SIZE")]
DiskOption = Annotated[str, typer.Option("--disk", help="For example 1GiB.", metavar="SIZE")]
PriceOption = Annotated[
    str, typer.Option("--price", help="The most you pay: '0.5', or '2/h'; nothing by default.", metavar="NTX")
]
DurationOption = Annotated[str, typer.Option("--max-duration", help="How long it may run.", metavar="TIME")]
InputOption = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", help="A file, folder or pattern: PATH, or PATH:PLACE.", metavar="PATH"),
]
ResultOption = Annotated[
    list[str] | None,
    typer.Option("--result", "-r", help="A file, folder or pattern that the job writes.", metavar="PATH"),
]
EnvOption = Annotated[
    list[str] | None, typer.Option("--env", "-e", help="For the job's environment.", metavar="NAME=VALUE")
]
NameOption = Annotated[str, typer.Option("--name", help="The job's name.", metavar="NAME")]


@app.command("run", cls=AfterDashes)
def run(
    ctx: typer.Context,
    image: Annotated[
        str, typer.Argument(help="A docker image; none runs a command of the provider's.", metavar="[IMAGE]")
    ] = "",
    cpu: CpuOption = 1,
    memory: MemoryOption = "256MiB",
    disk: DiskOption = "256MiB",
    price: PriceOption = "",
    max_duration: DurationOption = "1h",
    inputs: InputOption = None,
    results: ResultOption = None,
    env: EnvOption = None,
    name: NameOption = "",
    push: PushOption = None,
    pull: PullOption = False,
    topic: TopicOption = "",
    local: Annotated[bool, typer.Option("--local", help="Run provider and authority here, on loopback.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the job specification, and run nothing.")] = False,
    detach: DetachOption = False,
    timeout: TimeoutOption = "",
    folder: FolderOption = None,
    output: OutputOption = Format.table,
    quiet: QuietOption = False,
) -> None:
    """Run a command as a job, from post to settlement: `nunet run IMAGE -- COMMAND…`, or `nunet run -- COMMAND…`."""
    from nunet_cli.config import LOCAL_PRICE
    from nunet_cli.jobs.reader import read_spec

    command: list[str] = ctx.meta.get(COMMAND, [])
    if not image and not command:
        raise UsageError("nothing to run", hint="for example: nunet run --local -- python3 -c 'print(6 * 7)'")
    document = make_spec(
        image=image, command=command, cpu=cpu, memory=memory, disk=disk,
        # nobody pays without having said so, but the local provider's price is money of this machine
        price=price or (LOCAL_PRICE if local else "0"), max_duration=max_duration,
        inputs=inputs or [], results=results or [], env=env or [], name=name,
    )  # fmt: skip
    text = json.dumps(document, indent=2)
    posting = {"spec_text": text, "source": "nunet run", "folder": str(Path.cwd())}
    read = read_spec(text, source="nunet run")
    if dry:
        typer.echo(text)
        return
    run_posting(
        posting, read, push=push, pull=pull, topic=topic, local=local, detach=detach, timeout=timeout, folder=folder,
        output=output, quiet=quiet, show_logs=output is Format.table and not quiet,
    )  # fmt: skip


def make_spec(
    *, image: str, command: list[str], cpu: float, memory: str, disk: str, price: str, max_duration: str,
    inputs: list[str], results: list[str], env: list[str], name: str,
) -> dict[str, Any]:  # fmt: skip
    """Return a job specification, as a person would have written it.

    Raises:
        UsageError: a flag that is malformed; the rest is the reader's to check.
    """
    executor: dict[str, Any] = {"type": "docker", "image": image} if image else {"type": "process"}
    if command:
        executor["command"] = command
    if env:
        executor["env"] = dict(_pair("--env", text) for text in env)
    base = name or name_of(image, command)
    document: dict[str, Any] = {
        "name": base, "executor": executor, "resources": {"cpu": cpu, "memory": memory, "disk": disk}, "price": price,
        "time": {"max_duration": max_duration},
    }  # fmt: skip
    if inputs:
        document["inputs"] = [input_of(text) for text in inputs]
    if results:
        document["outputs"] = [{"path": path} for path in results]
    return document


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{flag}: {text!r}", hint="write NAME=VALUE")
    return name, value


def input_of(text: str) -> dict[str, str]:
    """Return the input that `PATH` or `PATH:PLACE` names."""
    path, colon, place = text.rpartition(":")
    return {"path": path, "to": place} if colon and path and place else {"path": text}


def name_of(image: str, command: list[str]) -> str:
    """Return a name from the image or the program."""
    text = image.rsplit("/", 1)[-1].partition(":")[0] if image else Path(command[0]).name
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in text)
    return kept.lstrip("._-")[:60] or "job"


TEMPLATE = """\
# A job for nunet. Check it with: nunet job validate {file}; run it with: nunet job run {file}
name: {name}

executor:
{executor}

# what the job needs; a provider with less does not bid
resources:
  cpu: {cpu}
  memory: {memory}
  disk: {disk}

# the most you pay, in NTX for the whole job; '2 NTX/h' for a rate; 0 for volunteer compute
price: {price}

time:
  max_duration: {duration}
  # deadline: 2h            # keep looking for a provider that long

# files that go to the provider, relative to this one
inputs: {inputs}

# files that the job writes, and that come back
outputs: {outputs}

# verify: {{policy: replicate, n: 3}}       # several providers run it, most of them decide
# constraints:
#   hard: ["node.memory > quantity('8GiB')"]
# everything else: man nunet-job-spec
"""


def init(
    name: Annotated[str, typer.Argument(help="The job's name.", metavar="[NAME]")] = "my-job",
    image: Annotated[str, typer.Option("--image", help="A docker image.", metavar="IMAGE")] = "",
    command: Annotated[str, typer.Option("--command", help="The command, as in a shell.", metavar="COMMAND")] = "",
    cpu: CpuOption = 1,
    memory: MemoryOption = "256MiB",
    disk: DiskOption = "256MiB",
    price: PriceOption = "0",
    max_duration: DurationOption = "1h",
    inputs: InputOption = None,
    results: ResultOption = None,
    file: Annotated[
        Path, typer.Option("--file", "-f", help="Where to write it; - for standard output.", metavar="FILE")
    ] = Path("job.yaml"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented job specification to begin with; on a terminal it asks for what no option says."""
    from nunet_cli.jobs.reader import read_spec

    if sys.stdin.isatty() and not image and not command:
        name = typer.prompt("Name", default=name)
        image = typer.prompt("Docker image (empty for a command of the provider's)", default="", show_default=False)
        command = typer.prompt("Command", default="" if image else "echo hello")
        price = typer.prompt("The most you pay, in NTX", default=price)
    words = _words(command) if command or image else ["echo", "hello"]
    lines = [f"  type: {'docker' if image else 'process'}"]
    lines += [f"  image: {json.dumps(image)}"] if image else []
    lines += [f"  command: {json.dumps(words)}"] if words else []
    text = TEMPLATE.format(
        file="FILE" if str(file) == "-" else file, name=json.dumps(name), executor="\n".join(lines), cpu=f"{cpu:g}",
        memory=memory, disk=disk, price=json.dumps(price), duration=max_duration,
        inputs=json.dumps([input_of(item) for item in inputs or []]),
        outputs=json.dumps([{"path": item} for item in results or []]),
    )  # fmt: skip
    read_spec(text, source="the specification")
    if str(file) == "-":
        typer.echo(text, nl=False)
        return
    write_new(file, text, yes=yes)
    note(f"edit it, then: nunet job run {shlex.quote(str(file))}")


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--command: {error}") from None
