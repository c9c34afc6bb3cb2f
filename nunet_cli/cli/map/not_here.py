"""What GNU parallel has and `nunet map` has not: said by name, with what to do instead."""

from __future__ import annotations

from collections.abc import Sequence

from nunet_cli.errors import UsageError

_PIPE = "split the input into files first, for example with split -n, and send them with --transfer"
_MANY = "-n says how many items a command takes"
_HOSTS = "providers are found on the market; --push PEER names one"
_WHOLE = "what an item writes is printed whole, once it has ended"
_STRINGS = "the replacement strings are as they are; {…} that are none of them are left alone"
_LOAD = "a provider takes a job only where it has room"

_REASONS = {
    "--pipe --pipe-part --pipepart --spreadstdin --block --block-size --cat --fifo --recstart --recend --round-robin "
    "--round --tee": _PIPE,
    "-X -L -l -s -x --xargs --max-lines --max-chars": _MANY,
    "-S --sshlogin --sshloginfile --slf --ssh --onall --nonall --controlmaster -M --filter-hosts --hostgroups --hgrp "
    "--workdir --wd": _HOSTS,
    "-u --ungroup --line-buffer --lb --latest-line --ll --files --tmux": _WHOLE,
    "-I --replace --rpl --plus --parens --extensionreplace --er --basenamereplace --bnr --dirnamereplace --dnr "
    "--seqreplace --slotreplace --header": _STRINGS,
    "--load --memfree --memsuspend --noswap --nice --limit --delay": _LOAD,
    "--basefile --bf": "--input FILE sends what all items need",
    "--cleanup": "leave it out: nothing stays at a provider",
    "--retry-failed": "--resume-failed runs the same items again: give it the same items and command",
    "--shuf": "put shuf before it: shuf ITEMS | nunet map …",
    "--trim": "--colsep takes white space from the ends; else use sed before it",
    "--semaphore": "-j says how many run at once",
}
_OPTIONS = {name: why for names, why in _REASONS.items() for name in names.split()}


def refuse(options: Sequence[str]) -> None:
    """Refuse what GNU parallel has, and is not here.

    Args:
        options: what was typed before the command.

    Raises:
        UsageError: one is among them.
    """
    for word in options:
        name = word.partition("=")[0] if word.startswith("--") else word[:2]
        if name in _OPTIONS:
            raise UsageError(f"{name} of GNU parallel is not here", hint=_OPTIONS[name])
