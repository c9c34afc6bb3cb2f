"""Items as one batch: what a node is asked to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nunet_cli.cli.map.orders import Sent, Work
from nunet_cli.errors import UsageError
from nunet_cli.jobs.items import MAX_NAMES, escape

ITEMS = "the items"


def posting(document: dict[str, Any], works: list[Work], *, jobs: int, folder: Path) -> dict[str, Any]:
    """Return what a node is asked to do.

    Args:
        document: a job specification without a command.
        works: the items.
        jobs: how many are looked after at once; 0 for the node's own number.
        folder: what the names of files are relative to.
    """
    sends, returns = (
        max(len(of) for of in lists) for lists in zip(*((w.sent, w.returned) for w in works), strict=True)
    )
    # those whose place is not their name in all items
    moved = {
        number
        for number in range(1, sends + 1)
        if not all(len(w.sent) >= number and str(w.sent[number - 1].path) == w.sent[number - 1].place for w in works)
    }
    rows = [_values(work, sends, returns, moved=moved) for work in works]
    executor = document["executor"]
    # whatever an image begins with, a shell reads the command
    shell = {"entrypoint": ["sh", "-c"], "command": ["{command}"]} if "image" in executor else {
        "command": ["sh", "-c", "{command}"]}  # fmt: skip
    environment = {name: escape(value) for name, value in executor.get("env", {}).items()}
    inputs = [
        {"path": f"{{file{n}}}", "to": f"{{{'place' if n in moved else 'file'}{n}}}"} for n in range(1, sends + 1)
    ]
    inputs += [{name: escape(text) for name, text in item.items()} for item in document.get("inputs", [])]
    outputs = [{"path": f"{{return{n}}}", "name": return_name(n)} for n in range(1, returns + 1)]
    spec = {
        **document, "type": "batch", "batch": {"items": ITEMS, "name": f"{document['name']}-{{seq}}", "parallel": jobs},
        "executor": {**executor, **shell, "env": {**environment, "PARALLEL_SEQ": "{seq}"}},
        "inputs": inputs, "outputs": outputs,
    }  # fmt: skip
    return {"spec": spec, "items": {ITEMS: rows}, "source": "nunet map", "folder": str(folder)}


def _values(work: Work, sends: int, returns: int, *, moved: set[int]) -> dict[str, str]:
    """Return what is filled in for an item: all have the same names, so that of the last one's files some come twice.

    Raises:
        UsageError: too many files go with it.
    """
    sent = [*work.sent, *(Sent(work.sent[-1].path, f".again/{n}") for n in range(len(work.sent), sends))]
    returned = [*work.returned, *(work.returned[-1] for _ in range(len(work.returned), returns))]
    row = {"seq": str(work.item.number), "command": work.line}
    for number, one in enumerate(sent, 1):
        row[f"file{number}"] = str(one.path)
        if number in moved:
            row[f"place{number}"] = one.place
    row |= {f"return{number}": back.place for number, back in enumerate(returned, 1)}
    if len(row) > MAX_NAMES:
        raise UsageError(
            f"item {work.item.number}: too many files go with it: {sends} there, and {returns} back",
            hint="send a folder, or take fewer together with -n",
        )
    return row


def return_name(number: int) -> str:
    """Return the name of an output: where it goes is known here alone."""
    return f"return-{number}"
