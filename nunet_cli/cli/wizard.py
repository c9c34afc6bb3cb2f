"""What `nunet onboard` asks a person who gave no options, with answers that are good as they stand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import typer

from nunet_cli.errors import UsageError
from nunet_cli.units import format_size

SHARE, MOST = 50, 90


class Answers(NamedTuple):
    """What was said; `process` is empty where nothing is to be changed."""

    share: float
    price: str
    max_duration: str
    localities: list[str]
    process: str
    start: bool


def is_wanted(*, given: bool, table: bool) -> bool:
    """Say whether somebody is there to ask: a person at a terminal who gave no options."""
    return not given and table and sys.stdin.isatty() and sys.stdout.isatty()


def ask(machine: dict[str, Any], *, sandbox: bool, docker: bool, running: bool) -> Answers:
    """Ask, and return the answers.

    Args:
        machine: what was probed.
        sandbox: whether bubblewrap works here.
        docker: whether a Docker Engine answers.
        running: whether the node runs already.
    """
    gpus = f", {len(machine['gpus'])} GPUs" if machine["gpus"] else ""
    typer.echo(f"This machine has {machine['cpu']['cores']:g} cores, {format_size(machine['memory'])} of memory, "
               f"{format_size(machine['disk'])} of disk{gpus}.")  # fmt: skip
    typer.echo("Enter takes what is in brackets; everything can be changed later.\n")
    share = _until(_share, "How much of it to offer, in percent", str(SHARE))
    price = _until(_price, "Price in NTX: '0.5' a job, '1.5/h' an hour, 0 to give it away", "0")
    longest = _until(_duration, "Longest job to take", "4h")
    country = str(
        typer.prompt("Country code, for jobs that ask where (empty: not said)", default="", show_default=False)
    )
    process = ""
    if sandbox:
        said = "beside containers" if docker else "there is no Docker Engine here"
        wanted = typer.confirm(f"Run other people's commands in a sandbox ({said})?", default=True)
        process = "sandboxed" if wanted else "off"
    elif not docker:
        typer.echo(
            "Neither Docker Engine nor bubblewrap works here: only trusted requesters' jobs can run. See: nunet doctor"
        )
    start = not running and typer.confirm("Start the node, and begin to take jobs?", default=True)
    typer.echo()
    return Answers(
        share / 100, price, longest, [f"country={country.strip()}"] if country.strip() else [], process, start
    )


def _until(check: Callable[[str], Any], question: str, default: str) -> Any:
    """Ask until the answer is one."""
    while True:
        try:
            return check(str(typer.prompt(question, default=default)).strip())
        except UsageError as error:
            typer.echo(f"  {error.message}" + (f" ({error.hint})" if error.hint else ""))


def _share(text: str) -> float:
    try:
        share = float(text.rstrip("% "))
    except ValueError:
        raise UsageError(f"not a number: {text!r}") from None
    if not 0 < share <= MOST:
        raise UsageError(f"between 1 and {MOST}: the rest stays with you")
    return share


def _price(text: str) -> str:
    from nunet_cli.units import parse_price

    parse_price(text)
    return text


def _duration(text: str) -> str:
    from nunet_cli.units import parse_duration

    parse_duration(text)
    return text
