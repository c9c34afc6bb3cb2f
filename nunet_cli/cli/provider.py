"""`nunet onboard`, `nunet offboard` and `nunet capability`: what this machine offers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nunet_cli.cli import setting
from nunet_cli.cli.output import Format, OutputOption, YesOption, confirm, console, emit, fields, note, price_text
from nunet_cli.cli.state import STATE, connect
from nunet_cli.quantities import format_cores, format_size

if TYPE_CHECKING:
    from nunet_cli.cli.wizard import Answers
    from nunet_cli.records.kyc import Kyc
    from nunet_cli.records.offers import OnboardOptions

capability = typer.Typer()
BAR = 24
NOTHING = "nothing; see --docker-image and --process"


def onboard(
    cpu: Annotated[float | None, typer.Option("--cpu", help="Cores to offer.", metavar="CORES")] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Memory to offer, for example 8GiB.", metavar="SIZE")
    ] = None,
    disk: Annotated[
        str | None, typer.Option("--disk", help="Disk to offer, for example 50GiB.", metavar="SIZE")
    ] = None,
    gpu: Annotated[int | None, typer.Option("--gpu", help="GPUs to offer.", metavar="COUNT")] = None,
    price: Annotated[
        str | None,
        typer.Option("--price", help="'0.5' NTX a job, '1.5/h' NTX an hour; 0 for volunteer compute.", metavar="PRICE"),
    ] = None,
    max_share: Annotated[
        float | None, typer.Option("--max-share", help="Largest share to offer, at most 0.9.", metavar="SHARE")
    ] = None,
    max_duration: Annotated[
        str | None, typer.Option("--max-duration", help="Longest job, for example 4h.", metavar="TIME")
    ] = None,
    locality: Annotated[
        list[str] | None, typer.Option("--locality", help="Where the machine is: KIND=NAME.", metavar="KIND=NAME")
    ] = None,
    storage: Annotated[
        list[str] | None, typer.Option("--storage", help="Storage of a kind: ssd=100GiB.", metavar="TYPE=SIZE")
    ] = None,
    port: Annotated[list[int] | None, typer.Option("--port", help="An open port.", metavar="PORT")] = None,
    bandwidth: Annotated[str | None, typer.Option("--bandwidth", help="For example 100Mbit.", metavar="RATE")] = None,
    vpn: Annotated[bool | None, typer.Option("--vpn/--no-vpn", help="The machine is in a VPN.")] = None,
    kyc: Annotated[
        list[str] | None,
        typer.Option("--kyc", help="A verifier's statement about this node, for jobs that ask for it.", metavar="FILE"),
    ] = None,
    process: Annotated[
        str | None,
        typer.Option("--process", help="Other people's commands: off, sandboxed or unsandboxed.", metavar="MODE"),
    ] = None,
    docker_image: Annotated[
        list[str] | None,
        typer.Option(
            "--docker-image",
            help="An image that strangers may run, such as 'python:*'; '*' is any. None by default.",
            metavar="PATTERN",
        ),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Forget what was offered before: back to defaults.")] = False,
    no_benchmark: Annotated[bool, typer.Option("--no-benchmark", help="Do not measure the machine.")] = False,
    output: OutputOption = Format.table,
) -> None:
    """Offer this machine: probe it, measure it, and register what it gives.

    What no option says stays as it was offered before, also after `nunet offboard`. The first time, and with --reset,
    it is 90 % of everything, for nothing. At a terminal and without options it asks a few questions.
    """
    import msgspec

    from nunet_cli.cli.authorities import choose
    from nunet_cli.config_file import check_value, parse_value
    from nunet_cli.node.onboarding import is_free, keep_offer, plan_onboarding, still_standing
    from nunet_cli.records.offers import OnboardOptions
    from nunet_cli.records.reading import convert

    options = OnboardOptions(
        cpu=cpu, memory=memory, disk=disk, gpu=gpu, price=price, max_share=max_share, max_duration=max_duration,
        localities=_given(locality), storage=_given(storage), ports=_given(port), bandwidth=bandwidth, vpn=vpn,
        kycs=_statements(kyc), reset=reset,
    )  # fmt: skip
    kept, did = None, ""
    if kyc or not reset:
        with connect(read_only=True) as client:
            did = client.get("/whoami")["did"]
            # what is forgotten need not be readable
            said = None if reset else client.get("/capability")["offer"]
            kept = None if said is None else convert(said, OnboardOptions)
    kept, faults = still_standing(kept, did)
    for fault in faults if not kyc else ():
        note(f"not offered any more: {fault}; attach a new statement: nunet onboard --kyc FILE")
    policy = bool(process or docker_image or no_benchmark)
    given = policy or options not in (OnboardOptions(), OnboardOptions(reset=True))
    answers = _answers(None if reset else kept, given=given, table=output is Format.table)
    if answers is not None:
        options, process, docker_image = answers.options, answers.process, answers.images
    offered, _, machine = plan_onboarding(STATE.folder, options, kept, did)
    if price is None and is_free(keep_offer(options, kept).price):
        note(f"offers {resources_text(msgspec.to_builtins(offered.resources))} for nothing (volunteer compute);"
             " set a price with --price")  # fmt: skip
    images = None if docker_image is None else ",".join(docker_image)
    policies = [
        ("--process", "executor.process.foreign", process), ("--docker-image", "executor.docker.images", images),
    ]  # fmt: skip
    for flag, key, text in policies:
        if text is not None:
            check_value(key, parse_value(key, text), flag)
    stale = [flag for flag, key, text in policies if _set_policy(key, text, reset=reset, flag=flag)]
    body = {"options": msgspec.to_builtins(options), "measure": not no_benchmark}
    with connect() as client:
        with contextlib.nullcontext() if no_benchmark else _measuring():
            document = client.post("/capability/onboard", body)
        if answers is not None:
            choose(client)

    def render() -> None:
        _bars(document["registered"]["resources"], msgspec.to_builtins(machine))
        _facts(document, stale)
        if STATE.running() is None and not (answers is not None and answers.start):
            note("onboarded; begin to take jobs with: nunet node start")

    emit(document, output, render)
    if answers is not None and answers.start:
        from nunet_cli.cli.node import start

        start()


def _given(values: list[Any] | None) -> tuple[Any, ...] | None:
    """Return what a repeated option named, or None where it was not there."""
    return tuple(values) if values else None


def _statements(files: list[str] | None) -> tuple[Kyc, ...] | None:
    """Return the statements that `--kyc` names, or None where it was not there.

    Raises:
        UsageError: it is no file, or no statement.
    """
    from nunet_cli.errors import UsageError
    from nunet_cli.node.kyc import read_statement

    found = []
    for name in files or ():
        try:
            found.append(read_statement(Path(name).read_bytes()))
        except (OSError, ValueError):
            hint = "a name alone proves nothing: have it print one with: nunet registry attest DID --as NAME"
            raise UsageError(f"--kyc: {name!r} is no file with a verifier's statement", hint=hint) from None
        except UsageError as error:
            raise UsageError(f"--kyc: {name}: {error.message}", hint=error.hint) from None
    return _given(found)


def _set_policy(key: str, text: str | None, *, reset: bool, flag: str) -> bool:
    """Write a setting of the executors into the configuration; without a text it stays, or goes back to its default.

    Returns:
        Whether a node runs that has it otherwise until it is restarted.
    """
    from nunet_cli.config import Config
    from nunet_cli.config_file import get, parse_value

    if text is not None:
        value = parse_value(key, text)
    elif reset:
        default = get(Config(), key)
        value = list(default) if isinstance(default, tuple) else default
    else:
        return False
    now = get(STATE.config(), key)
    if value == (list(now) if isinstance(now, tuple) else now):
        return False
    later = setting.change(key, value)
    if later:
        note(f"{later}: for {flag} to take effect type nunet node stop && nunet node start")
    return bool(later)


def _answers(kept: OnboardOptions | None, *, given: bool, table: bool) -> Answers | None:
    """Ask the person at the terminal, if there is one who gave no options."""
    from nunet_cli.cli import wizard

    if not wizard.is_wanted(given=given, table=table):
        return None
    import msgspec
    import trio

    from nunet_cli.executor.docker import DockerExecutor
    from nunet_cli.executor.process import ProcessExecutor
    from nunet_cli.node.benchmark import probe_machine

    async def probe() -> tuple[bool, bool]:
        docker = DockerExecutor(STATE.config().executor.docker)
        return await ProcessExecutor().can_sandbox(), (await docker.probe()).available

    sandbox, docker = trio.run(probe)
    machine = resources_text(msgspec.to_builtins(probe_machine(STATE.folder)))
    return wizard.ask(machine, kept, sandbox=sandbox, docker=docker, running=STATE.running() is not None,
                      images=STATE.config().executor.docker.images)  # fmt: skip


@contextlib.contextmanager
def _measuring() -> Iterator[None]:
    """Say that the machine is measured, for as long as it takes."""
    if not sys.stderr.isatty():
        note("measuring the machine …")
        yield
        return
    with console(stderr=True).status("measuring the machine …"):
        yield


def resources_text(resources: dict[str, Any]) -> str:
    """Return resources in a few words."""
    parts = [format_cores(resources['cpu']['cores']), f"{format_size(resources['memory'])} of memory",
             f"{format_size(resources['disk'])} of disk"]  # fmt: skip
    gpus = len(resources["gpus"])
    return ", ".join([*parts, *([f"{gpus} GPUs"] if gpus else [])])


def _bars(offered: dict[str, Any], machine: dict[str, Any]) -> None:
    rows: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("cpu", offered["cpu"]["cores"], machine["cpu"]["cores"], format_cores),
        ("memory", offered["memory"], machine["memory"], lambda value: format_size(int(value))),
        ("disk", offered["disk"], machine["disk"], lambda value: format_size(int(value))),
        ("gpu", len(offered["gpus"]), len(machine["gpus"]), lambda value: f"{value:g}"),
    ]
    for name, part, whole, write in rows:
        filled = round(BAR * part / whole) if whole else 0
        typer.echo(f"{name:<7} {'█' * filled}{'░' * (BAR - filled)}  {write(part)} of {write(whole)}")


def _facts(document: dict[str, Any], stale: list[str] | None = None) -> None:
    measured = document["benchmark"] or {}
    speed = {
        name: f"{measured[key] / 1e6:,.0f} MB/s"
        for name, key in (("sha-256", "cpu_hash"), ("memory", "memory_copy"), ("disk", "disk_write"))
        if key in measured
    }
    fields(
        {
            "price": price_text(document["price"]),
            "executors": [f"{name} ({detail})" for name, detail in document["executors"].items()],
            # which executors work is known of a node that runs
            "strangers may run": document["executors"] and _strangers(document, stale or []),
            "verified by": [_verified(kyc) for kyc in (document["registered"] or {}).get("kycs", ())],
            "measured": [f"{name} {text}" for name, text in speed.items()],
        }
    )


def _verified(kyc: dict[str, str] | str) -> str:
    if isinstance(kyc, str):
        return f"{kyc}, a name alone, which counts for nothing"
    from nunet_cli.records.kyc import Kyc, expires_at
    from nunet_cli.records.reading import convert

    statement = convert(kyc, Kyc)
    until = expires_at(statement)
    return f"{statement.who}, {f'until {until[:10]}' if until else 'for ever'}"


def _strangers(document: dict[str, Any], stale: list[str]) -> str:
    said = "; ".join(document["strangers"].values())
    if stale:
        return f"{said or 'nothing'}, until the node is restarted with its new {' and '.join(stale)}"
    return said or NOTHING


def offboard(
    force: Annotated[bool, typer.Option("--force", help="End running jobs instead of waiting for them.")] = False,
    yes: YesOption = False,
    output: OutputOption = Format.table,
) -> None:
    """Offer this machine no more; waits for running jobs."""
    if force:
        confirm("End the jobs that run here? Their requesters get their deposits back.", yes=yes)
    with connect() as client:
        document = client.post("/capability/offboard", {"force": force})
    emit(document, output, lambda: typer.echo("offboarded: this machine takes no more jobs"))


@capability.command("show")
def show(output: OutputOption = Format.table) -> None:
    """Show what is registered, taken and left."""
    with connect(read_only=True) as client:
        document = client.get("/capability")

    def render() -> None:
        if not document["onboarded"]:
            note("not onboarded; offer this machine with: nunet onboard")
            return
        typer.echo("available of registered:")
        _bars(document["available"]["resources"], document["registered"]["resources"])
        _facts(document)
        for row in document["taken"]:
            until = f" until {row['expires_at']}" if row["expires_at"] else ""
            size = format_size(row["resources"]["memory"])
            typer.echo(f"{row['kind']}: {row['id']}  {format_cores(row['resources']['cpu']['cores'])}, {size}{until}")

    emit(document, output, render)


@capability.command("benchmark")
def benchmark(output: OutputOption = Format.table) -> None:
    """Measure this machine, without registering anything."""
    with connect(read_only=True) as client, _measuring():
        document = client.post("/capability/benchmark")
    machine, measured = document["machine"], document["benchmark"]

    def render() -> None:
        fields(
            {
                "cpu": f"{format_cores(machine['cpu']['cores'])}, {machine['cpu']['model']}",
                "memory": format_size(machine["memory"]), "disk": format_size(machine["disk"]),
                "gpus": [gpu["model"] for gpu in machine["gpus"]],
                "sha-256": f"{measured['cpu_hash'] / 1e6:,.0f} MB/s a core",
                "memory copy": f"{measured['memory_copy'] / 1e6:,.0f} MB/s",
                "disk write": f"{measured['disk_write'] / 1e6:,.0f} MB/s, synced",
            }
        )  # fmt: skip

    emit(document, output, render)
