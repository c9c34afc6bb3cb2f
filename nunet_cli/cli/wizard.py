"""What `nunet onboard` asks a person who gave no options, with answers that are good as they stand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from nunet_cli.errors import UsageError
from nunet_cli.quantities import format_cores, format_size, parse_size

if TYPE_CHECKING:
    from nunet_cli.records.offers import OnboardOptions

SHARE, MOST = 50, 90


class Answers(NamedTuple):
    """What was said; `process` and `images` are None where nothing is to be changed."""

    options: OnboardOptions
    process: str | None
    images: list[str] | None
    start: bool


def is_wanted(*, given: bool, table: bool) -> bool:
    """Say whether somebody is there to ask: a person at a terminal who gave no options."""
    return not given and table and sys.stdin.isatty() and sys.stdout.isatty()


def ask(
    machine: str, kept: OnboardOptions | None, *, sandbox: bool, docker: bool, running: bool,
    images: tuple[str, ...] = (),
) -> Answers:  # fmt: skip
    """Ask, and return the answers.

    Args:
        machine: what was probed, in words.
        kept: what was offered before; None where nothing was.
        sandbox: whether bubblewrap works here.
        docker: whether a Docker Engine answers.
        running: whether the node runs already.
        images: which images strangers may run until now.
    """
    from nunet_cli.records.offers import OnboardOptions

    typer.echo(f"This machine has {machine}.")
    typer.echo("Enter takes what is in brackets; everything can be changed later.\n")
    # of some homes only the price is known: how much was offered, a person must say again
    known = kept is not None and (kept.cpu is not None or kept.max_share is not None)
    if kept is not None and known and typer.confirm(f"Offer what was offered before ({_said(kept)})?", default=True):
        return Answers(OnboardOptions(), None, None, _start(running=running))
    options = _options(kept or OnboardOptions())
    process, patterns = None, None
    if docker:
        question = "Images that strangers may run, such as python:* ('*': any that is here; empty: none)"
        now = ",".join(images)
        said = str(typer.prompt(question, default=now, show_default=bool(now)))
        patterns = [part.strip() for part in said.split(",") if part.strip()]
    if sandbox:
        said = "beside containers" if docker else "there is no Docker Engine here"
        wanted = typer.confirm(f"Run other people's commands in a sandbox ({said})?", default=True)
        process = "sandboxed" if wanted else "off"
    elif not docker:
        typer.echo(
            "Neither Docker Engine nor bubblewrap works here: only trusted requesters' jobs can run. See: nunet doctor"
        )
    return Answers(options, process, patterns, _start(running=running))


def _start(*, running: bool) -> bool:
    start = not running and typer.confirm("Start the node, and begin to take jobs?", default=True)
    typer.echo()
    return start


def _said(kept: OnboardOptions) -> str:
    """Return an offer in a few words."""
    share = f"{kept.max_share or MOST / 100:.0%} of the machine"
    parts = [format_cores(kept.cpu)] if kept.cpu is not None else []
    for name, size in (("memory", kept.memory), ("disk", kept.disk)):
        parts += [f"{format_size(parse_size(size))} of {name}"] if size is not None else []
    named = ", ".join(parts)
    return f"{named or share}, at {kept.price or 0} NTX"


def _options(kept: OnboardOptions) -> OnboardOptions:
    """Ask for what is offered; what is not asked about stays as it was."""
    from msgspec import structs

    before = f"{kept.max_share * 100:g}" if kept.max_share else str(SHARE)
    share = _until(_share, "How much of it to offer, in percent", before)
    price = _until(_price, "Price in NTX: '0.5' a job, '1.5/h' an hour, 0 to give it away", kept.price or "0")
    longest = _until(_duration, "Longest job to take", kept.max_duration or "4h")
    places = kept.localities or ()
    there = next((place.partition("=")[2] for place in places if place.startswith("country=")), "")
    question = "Country code, for jobs that ask where (empty: not said)"
    country = _until(_country, question, there, show=bool(there))
    others = tuple(place for place in places if not place.startswith("country="))
    return structs.replace(
        kept, cpu=None, memory=None, disk=None, gpu=None, max_share=share / 100, price=price, max_duration=longest,
        localities=(*((f"country={country}",) if country else ()), *others), reset=True,
    )  # fmt: skip


def _until(check: Callable[[str], Any], question: str, default: str, *, show: bool = True) -> Any:
    """Ask until the answer is one."""
    while True:
        try:
            return check(str(typer.prompt(question, default=default, show_default=show)).strip())
        except UsageError as error:
            typer.echo(f"  {error.message}" + (f" ({error.hint})" if error.hint else ""))


def _country(text: str) -> str:
    if text and not (len(text) == 2 and text.isascii() and text.isalpha()):
        raise UsageError(f"not a country code: {text!r}", hint="two letters, for example SE")
    return text.upper()


def _share(text: str) -> float:
    try:
        share = float(text.rstrip("% "))
    except ValueError:
        raise UsageError(f"not a number: {text!r}") from None
    if not 0 < share <= MOST:
        raise UsageError(f"between 1 and {MOST}: the rest stays with you")
    return share


def _price(text: str) -> str:
    from nunet_cli.quantities import parse_price

    parse_price(text)
    return text


def _duration(text: str) -> str:
    from nunet_cli.quantities import parse_duration

    parse_duration(text)
    return text
