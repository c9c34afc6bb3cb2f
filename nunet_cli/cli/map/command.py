"""`nunet map`: run a command for each item, as GNU parallel does, on the machines of a market."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nunet_cli.cli.app import own_length
from nunet_cli.cli.job import PullOption, PushOption, TopicOption
from nunet_cli.cli.map.not_here import refuse
from nunet_cli.cli.shortcut import (
    CpuOption,
    DiskOption,
    EnvOption,
    InputOption,
    MemoryOption,
    NameOption,
    PriceOption,
    input_of,
    make_spec,
    name_of,
)
from nunet_cli.errors import UsageError

if TYPE_CHECKING:
    from nunet_cli.cli.map.ending import Cost
    from nunet_cli.cli.map.orders import Orders, Work
    from nunet_cli.cli.map.tally import Tally
    from nunet_cli.jobs.joblog import Entry
    from nunet_cli.jobs.replacements import Item

app = typer.Typer()
# of its name: the items' numbers are put behind it
LONGEST_NAME = 90


class MapCommand(typer.core.TyperCommand):
    """The command's own options end where the words of the other command begin."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Say of an option of GNU parallel's that is not here what to do instead."""
        refuse(args[: own_length(self, args)])
        return super().parse_args(ctx, args)


@app.command("map", cls=MapCommand, context_settings={"allow_interspersed_args": False})
def map_items(
    words: Annotated[
        list[str] | None, typer.Argument(help="The command, and ::: ITEM… where they are typed.", metavar="COMMAND…")
    ] = None,
    files: Annotated[
        list[str] | None, typer.Option("--arg-file", "-a", help="Items from a file; - for stdin.", metavar="FILE")
    ] = None,
    null: Annotated[bool, typer.Option("--null", "-0", help="Items end with a zero byte, not a line's end.")] = False,
    delimiter: Annotated[
        str, typer.Option("--delimiter", "-d", help="The character that items end with.", metavar="CHARACTER")
    ] = "\\n",
    colsep: Annotated[
        str, typer.Option("--colsep", "-C", help="Take items apart into {1}, {2} and so on.", metavar="REGEXP")
    ] = "",
    link: Annotated[bool, typer.Option("--link", help="Read several ::: side by side.")] = False,
    together: Annotated[
        int, typer.Option("--max-args", "-n", help="So many items for one command.", metavar="COUNT", min=1)
    ] = 1,
    spread: Annotated[
        int, typer.Option("--max-replace-args", "-N", help="The same, as {1}, {2} …, too.", metavar="COUNT", min=0)
    ] = 0,
    skip_blank: Annotated[bool, typer.Option("--no-run-if-empty", "-r", help="Leave out blank items.")] = False,
    transfer: Annotated[bool, typer.Option("--transfer", help="Send the file that an item names.")] = False,
    transfers: Annotated[
        list[str] | None, typer.Option("--transferfile", "--tf", help="Send this file with an item.", metavar="FILE")
    ] = None,
    returns: Annotated[
        list[str] | None, typer.Option("--return", help="Bring this file back, such as {.}.jpg.", metavar="FILE")
    ] = None,
    trc: Annotated[list[str] | None, typer.Option("--trc", help="--transfer --return FILE.", metavar="FILE")] = None,
    inputs: InputOption = None,
    jobs: Annotated[
        str, typer.Option("--jobs", "-j", help="So many at once; 0 for as many as may be.", metavar="COUNT")
    ] = "",
    keep_order: Annotated[bool, typer.Option("--keep-order", "-k", help="Print in the order of the items.")] = False,
    tag: Annotated[bool, typer.Option("--tag", help="Begin each line with the item.")] = False,
    tag_string: Annotated[
        str, typer.Option("--tagstring", help="Begin each line with this, such as {/}.", metavar="TEXT")
    ] = "",
    results: Annotated[
        Path | None, typer.Option("--results", help="Put what items write into a folder.", metavar="DIR")
    ] = None,
    joblog: Annotated[
        str, typer.Option("--joblog", help="Note each item that ended; +FILE adds to it.", metavar="FILE")
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Leave out what is in the job log.")] = False,
    resume_failed: Annotated[
        bool, typer.Option("--resume-failed", help="Leave out what is in the job log and did not fail.")
    ] = False,
    retries: Annotated[
        int, typer.Option("--retries", help="Run an item that fails so many times.", metavar="COUNT", min=1, max=100)
    ] = 1,
    halt: Annotated[
        str, typer.Option("--halt", help="When to stop: never, soon,fail=1, now,success=1 …", metavar="WHEN")
    ] = "never",
    bar: Annotated[
        bool, typer.Option("--bar", "--eta", "--progress", help="Show how far it is, and how long it will take.")
    ] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the command lines, and run nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-t", help="Print each command line as it begins.")] = False,
    quote: Annotated[bool, typer.Option("--quote", "-q", help="The command means nothing to a shell.")] = False,
    image: Annotated[str, typer.Option("--image", help="A docker image to run it in.", metavar="IMAGE")] = "",
    cpu: CpuOption = 1,
    memory: MemoryOption = "256MiB",
    disk: DiskOption = "256MiB",
    price: PriceOption = "",
    max_duration: Annotated[
        str, typer.Option("--max-duration", "--timeout", help="How long an item may run.", metavar="TIME")
    ] = "1h",
    env: EnvOption = None,
    name: NameOption = "",
    push: PushOption = None,
    pull: PullOption = False,
    topic: TopicOption = "",
    local: Annotated[bool, typer.Option("--local", help="Run it here: no node, no market, no sandbox.")] = False,
) -> None:
    """Run a command for each item, each as a job of its own: `ls *.txt | nunet map --transfer wc -l {}`.

    Items are lines of standard input, or stand behind `:::`. The words, options and replacement strings are those of
    GNU parallel: {} is the item, {.} that without its extension, {/} its last part, {//} its folder, {/.} both, {#} its
    number, {1} its first column. A shell reads the command, in which items are quoted. Nothing is sent or brought back
    but what is asked for. Price, cores and the like are those of one item.
    """
    from nunet_cli.cli.map.counts import at_once
    from nunet_cli.cli.map.ending import Cost, conclude
    from nunet_cli.cli.map.orders import Orders
    from nunet_cli.cli.map.reading import Reader, typed
    from nunet_cli.jobs.halting import read_halt
    from nunet_cli.jobs.replacements import Command
    from nunet_cli.jobs.sources import items_of

    stop, slots, cost = read_halt(halt), at_once(jobs, local=local), Cost()
    if (resume or resume_failed) and not joblog:
        raise UsageError("--resume and --resume-failed read a job log", hint="name it: --joblog FILE")
    reader = Reader("\\0" if null else delimiter, skip_blank=skip_blank)
    command, sources = typed(words or [], files or [], reader)
    if len(name) > LONGEST_NAME:
        raise UsageError(f"--name: at most {LONGEST_NAME} characters")
    if not command and not words and not files and sys.stdin.isatty():
        raise UsageError("nothing to run", hint="for example: nunet map --local 'wc -l {}' ::: *.txt")
    orders = Orders(
        Command(command, quoted=quote, is_spread=spread > 0),
        [*(["{}"] if transfer or trc else []), *(transfers or [])],
        [*(trc or []), *(returns or [])], tag_string or "{}",
    )  # fmt: skip
    items = items_of(sources, columns=colsep, link=link, together=spread or together)
    past = _past(Path(joblog.removeprefix("+"))) if resume or resume_failed else {}
    works = _left(orders, items, past, again=resume_failed)
    if dry:
        for work in works:
            typer.echo(work.line)
        return
    environment = dict(_variable(text) for text in env or [])
    program = " ".join(command).split()[:1] or ["map"]
    document = make_spec(
        image=image, command=[], cpu=cpu, memory=memory, disk=disk, price=price or "0", max_duration=max_duration,
        inputs=inputs or [], results=[], env=[], name=name or name_of("", program),
    )  # fmt: skip
    document["executor"]["env"] = environment
    if not works:
        return
    _look_at_places(works)
    if results is not None:
        _make(results)
    from nunet_cli.cli.map.interrupts import termination_interrupts
    from nunet_cli.cli.map.tally import Tally

    with termination_interrupts(), _log(joblog, goes_on=bool(past) or joblog.startswith("+")) as log:
        tally = Tally(
            works, keep_order=keep_order, tagged=tag or bool(tag_string), results=results, log=log, halt=stop,
            shows_bar=bar, tells_commands=verbose,
        )  # fmt: skip
        if local:
            if image:
                raise UsageError("--local runs commands of this machine: it has no images")
            _run_here(works, tally, document, jobs=slots, tries=retries)
        else:
            posted = {"push": push or [], "pull": pull, "topic": topic, "orchestrate": False}
            cost = _run_there(works, tally, document, posted, jobs=slots, tries=retries)
    conclude(tally, cost, joblog.removeprefix("+"), asked_for_success=stop.why == "success")


def _left(orders: Orders, items: list[Item], past: dict[int, Entry], *, again: bool) -> list[Work]:
    """Return what is to be done, without what a job log has; say where a log is of other commands."""
    from nunet_cli.cli.output import note
    from nunet_cli.jobs.joblog import is_failed

    done = {number for number, entry in past.items() if not (again and is_failed(entry))}
    works = orders.work([item for item in items if item.number not in done])
    for item in items:
        entry = past.get(item.number)
        if entry is not None and entry.command != orders.line(item):
            note(f"nunet: in the job log item {entry.number} is another command: {entry.command}")
            break
    return works


def _past(path: Path) -> dict[int, Entry]:
    from nunet_cli.jobs.joblog import read_log

    try:
        with path.open(encoding="utf-8", newline="") as file:
            return read_log(file.read(), str(path))
    except FileNotFoundError:
        # nothing has been done yet
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--joblog: {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None


@contextmanager
def _log(name: str, *, goes_on: bool) -> Iterator[Any]:
    from nunet_cli.cli.map.tally import open_log

    if not name:
        yield None
        return
    try:
        log = open_log(Path(name.removeprefix("+")), goes_on=goes_on)
    except OSError as error:
        raise UsageError(f"--joblog: {name}: {error.strerror}") from None
    with log:
        yield log


def _look_at_places(works: list[Work]) -> None:
    """Refuse to begin where what comes back could not be written.

    Raises:
        UsageError: it is so.
    """
    from nunet_cli.cli.results import unwritable

    backs = {back for work in works for back in work.returned}
    for folder in sorted({(back.target if back.is_pattern else back.target.parent).absolute() for back in backs}):
        if problem := unwritable(folder):
            raise UsageError(f"--return: {problem}", hint="nothing was asked for yet")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--results: {folder}: {error.strerror}") from None


def _variable(text: str) -> tuple[str, str]:
    """Return a variable for the items: as it is given, or as this process has it."""
    name, equals, value = text.partition("=")
    if equals and name:
        return name, value
    if name not in os.environ:
        raise UsageError(f"--env: there is no variable {name!r} here", hint="export it, or write NAME=VALUE")
    return name, os.environ[name]


def _run_here(works: list[Work], tally: Tally, document: dict[str, Any], *, jobs: int, tries: int) -> None:
    from nunet_cli.cli.map.here import Here
    from nunet_cli.cli.map.interrupts import exit_code_of
    from nunet_cli.cli.map.orders import Sent
    from nunet_cli.cli.output import note
    from nunet_cli.quantities import parse_duration

    needed = [input_of(text["path"]) | text for text in document.get("inputs", [])]
    inputs = [Sent(Path(item["path"]), item.get("to") or Path(item["path"]).name) for item in needed]
    for one in inputs:
        if not one.path.exists():
            raise UsageError(f"--input: there is no file {one.path}")
    here = Here(
        works, tally, inputs=inputs, environment=document["executor"]["env"], jobs=jobs, tries=tries,
        limit=parse_duration(document["time"]["max_duration"]),
    )  # fmt: skip
    try:
        here.run()
    except KeyboardInterrupt as interrupt:
        note(
            f"\nnunet: interrupted: {tally.succeeded} done, {len(tally.failures)} failed, {tally.called_off} called off"
        )
        raise typer.Exit(exit_code_of(interrupt)) from None
    except OSError as error:
        raise _not_written(error) from None
    finally:
        tally.close()


def _not_written(error: OSError) -> Exception:
    """Return what is raised where output or the job log cannot be written."""
    return error if isinstance(error, BrokenPipeError) else UsageError(f"cannot write: {error.strerror}")


def _run_there(
    works: list[Work], tally: Tally, document: dict[str, Any], posted: dict[str, Any], *, jobs: int, tries: int
) -> Cost:
    """Run items on the market; return what they cost."""
    from nunet_cli.cli.authorities import choose
    from nunet_cli.cli.map.ending import Cost
    from nunet_cli.cli.map.interrupts import exit_code_of
    from nunet_cli.cli.map.market import Market, interrupted
    from nunet_cli.cli.map.posting import posting
    from nunet_cli.cli.output import note
    from nunet_cli.cli.state import STATE, connect, is_embedded

    if STATE.node.startswith("http://") and (document.get("inputs") or works[0].sent or works[0].returned):
        raise UsageError("files are read and written by the node, and this one is on another machine",
                         hint="leave --node out, and run a node here")  # fmt: skip
    embedded = is_embedded()
    with connect() as client:
        choose(client)
        asked = posting(document, works, jobs=jobs, folder=Path.cwd())
        batch = client.post("/orchestrator/postJob", {**asked, **posted})
        if sys.stderr.isatty():
            count = "one item" if len(works) == 1 else f"{len(works)} items"
            note(f"nunet: {count}, at most {batch['limit']} NTX in all; see also: nunet job show {batch['id']}")
        market = Market(client, batch, works, tally, tries=tries)
        try:
            # only now: who interrupts the posting has nothing that runs
            client.post(f"/jobs/{batch['id']}/run")
            market.run()
            return Cost(market.paid(), market.advice() if any(not one.could_run for one in tally.failures) else "")
        except KeyboardInterrupt as interrupt:
            interrupted(market, batch, tally, embedded=embedded)
            raise typer.Exit(exit_code_of(interrupt)) from None
        except OSError as error:
            # a full disk; or nobody reads any more, as in `nunet map … | head`
            market.leave()
            raise _not_written(error) from None
        finally:
            tally.close()
