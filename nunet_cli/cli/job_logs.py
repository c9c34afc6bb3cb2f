"""What jobs write: a job's own output as it is; that of a group's children one after another, or line by line."""

from __future__ import annotations

import base64
import sys
from collections import Counter
from typing import IO, TYPE_CHECKING, Any, TextIO

from nunet_cli.cli.output import note
from nunet_cli.errors import LOGS_GONE, NunetError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nunet_cli.api.client import ApiClient

FOLLOW_WAIT = 5
MOST_AT_ONCE = 64
LAST_BYTES = 1000
STARTED = {"job_running", "job_completed", "job_failed", "job_cancelled", "job_expired"}


def pieces(client: ApiClient, job: str, stream: str, *, follow: bool, attempt: int = 0) -> Iterator[bytes]:
    """Yield what a job wrote, in pieces; with `follow` until it ends, else what is there now.

    With `attempt`, what it wrote in an earlier one.

    Raises:
        NunetError: the job has not been started (`wrong_state`), or the provider does not answer.
    """
    offset, ended = 0, False
    which = {"attempt": attempt} if attempt else {}
    while not ended:
        piece = client.get(
            f"/jobs/{job}/logs", stream=stream, offset=offset, wait=FOLLOW_WAIT if follow else 0, **which
        )
        data = base64.b64decode(piece["data"])
        yield data
        offset, ended = piece["next_offset"], piece["ended"] or (not follow and not data)


def tail(client: ApiClient, row: dict[str, Any]) -> str:
    """Return the last line that a job wrote, of its standard error where there is any; empty where it wrote nothing.

    Raises:
        NunetError: it has no result, or its provider does not answer.
    """
    result = row["result"]
    if result is None:
        return ""
    stream = "stderr" if result["stderr_size"] else "stdout"
    offset = max(0, result[f"{stream}_size"] - LAST_BYTES)
    piece = client.get(f"/jobs/{row['id']}/logs", stream=stream, offset=offset, wait=0)
    lines = base64.b64decode(piece["data"]).decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def print_logs(
    client: ApiClient, *jobs: str, stream: str = "stdout", follow: bool = False, out: TextIO | None = None,
    attempt: int = 0,
) -> None:  # fmt: skip
    """Print what a job wrote as it is; of a group or several jobs under their names, or with `follow` behind them.

    With `attempt`, what it wrote in an earlier one.

    Raises:
        NunetError: nothing has been started (`wrong_state`), or the provider does not answer.
    """
    target = sys.stdout.buffer if out is None else out.buffer
    rows = list({row["id"]: row for row in (client.get(f"/jobs/{job}") for job in jobs)}.values())
    names = _names(client, rows)
    if not names:
        for data in pieces(client, rows[0]["id"], stream, follow=follow, attempt=attempt):
            target.write(data)
            target.flush()
    elif follow:
        _follow_all(client, names, stream, target)
    else:
        printed = [_print_one(client, job_id, name, stream, target, attempt) for job_id, name in names.items()]
        if any(printed):
            return
        if len(rows) > 1:
            raise StateError("none of these jobs has logs yet")
        raise StateError(f"job {rows[0]['id']} is {rows[0]['state']}: none of its children has logs yet")


def _names(client: ApiClient, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return the jobs that are printed under a name: id → name; none where there is one job that is no group."""
    if len(rows) == 1:
        return programs(client, rows[0]) if rows[0]["kind"] == "group" else {}
    names: dict[str, str] = {}
    called = Counter(row["name"] for row in rows)
    for row in rows:
        name = row["name"] if called[row["name"]] == 1 else f"{row['name']} ({row['id']})"
        names |= programs(client, row, f"{name}/") if row["kind"] == "group" else {row["id"]: name}
    return names


def programs(client: ApiClient, row: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the jobs below a group that have logs of their own: id → name; a pod is one."""
    found: dict[str, str] = {}
    for child in row["children"]:
        name = f"{prefix}{child['name']}"
        if child["kind"] == "group":
            found |= programs(client, client.get(f"/jobs/{child['id']}"), f"{name}/")
        elif child["kind"] != "member":
            found[child["id"]] = name
    return found


def _print_one(client: ApiClient, job_id: str, name: str, stream: str, target: IO[bytes], attempt: int) -> bool:
    """Print a job's logs under its name; say whether it has any yet."""
    heading, last = f"==> {name} <==\n".encode(), b"\n"
    try:
        for data in filter(None, pieces(client, job_id, stream, follow=False, attempt=attempt)):
            target.write(heading + data)
            heading, last = b"", data
    except NunetError as error:
        if error.code == StateError.default_code:
            return False
        if error.code != LOGS_GONE:
            raise
        # the others' are here
        note(f"nunet: {name}: {error.message}")
        return False
    target.write(b"" if last.endswith(b"\n") else b"\n")
    target.flush()
    return True


def _follow_all(client: ApiClient, names: dict[str, str], stream: str, target: IO[bytes]) -> None:
    """Print the lines of all children as they come, each behind the child's name."""
    import threading
    from concurrent.futures import ThreadPoolExecutor

    width = max(len(name) for name in names.values())
    turn = threading.Lock()

    def write(name: str, lines: list[bytes]) -> None:
        with turn:
            target.writelines(f"{name:<{width}} | ".encode() + line.rstrip(b"\n") + b"\n" for line in lines)
            target.flush()

    def one(job_id: str) -> None:
        _wait_started(client, job_id)
        rest = b""
        try:
            for data in pieces(client, job_id, stream, follow=True):
                lines = (rest + data).splitlines(keepends=True)
                rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
                write(names[job_id], lines)
        except NunetError as error:
            if error.code not in (StateError.default_code, LOGS_GONE):
                raise
        write(names[job_id], [rest] if rest else [])

    with ThreadPoolExecutor(min(MOST_AT_ONCE, len(names))) as pool:
        for done in [pool.submit(one, job_id) for job_id in names]:
            done.result()


def begins(event: dict[str, Any], attempt: int) -> bool:
    """Say whether an attempt of the job that is followed begins with an event."""
    again = event["type"] in ("job_posted", "job_matching")
    return again and not event.get("child") and event["data"].get("attempt", 1) >= attempt


def _wait_started(client: ApiClient, job_id: str) -> None:
    """Return once a job's present attempt has been started, or has ended without."""
    attempt = client.get(f"/jobs/{job_id}")["attempt"]
    begun = attempt == 1
    for event in client.events(f"/jobs/{job_id}/events", follow=1):
        begun = begun or begins(event, attempt)
        if begun and event["type"] in STARTED:
            return
