"""What came of a job: usage, outputs, and the result that the provider signs."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Struct, field

from nunet_cli.records.fields import PLAIN, Id, Many, MaybeId, Name, Size, Text, Time
from nunet_cli.records.limits import Limits

# what a provider writes at the end of a log that it keeps no more of
LOG_CUT = b"\n[nunet: the log is over its limit; the rest is not kept]\n"

# why a job failed, as nodes of this version say it. Another word of a provider's is text: a job's own error must not
# have the code of one that this node acts on, such as a full disk here
REASONS = frozenset({
    "bad_place", "bad_text", "bad_tree", "disk_full", "executor_error", "exit_code", "image_not_allowed",
    "inputs_too_large", "max_duration", "missing_output", "no_control_group", "no_executor", "no_image", "no_place",
    "no_program", "no_sandbox", "no_workdir", "out_of_memory", "provider_ended", "provider_error", "provider_restarted",
    "too_many_processes", "unhealthy", "wrong_content",
})  # fmt: skip


class Usage(Struct, forbid_unknown_fields=True, frozen=True):
    """What an allocation used: seconds of processor and wall time, and the peak of memory in bytes.

    `wall_seconds` is how long the machine was held for it, from its first start to its end, with what lies between a
    service's starts; `restarts` says how often one of its programs was started again.
    """

    cpu_seconds: Annotated[float, Limits(ge=0, le=1e12)] = 0.0
    wall_seconds: Annotated[float, Limits(ge=0, le=1e12)] = 0.0
    max_memory: Size = 0
    restarts: Annotated[int, Limits(ge=0, le=10**9)] = 0


class Progress(Struct, forbid_unknown_fields=True, frozen=True):
    """How far something has come that takes its time, such as a transfer: bytes, of a total that is 0 when unknown."""

    what: Annotated[str, Limits(max_length=120, pattern=PLAIN)]
    done: Size
    total: Size = 0


class OutputFile(Struct, forbid_unknown_fields=True, frozen=True):
    """What came out of a job, by content id: a file, a folder, or the `files` that a pattern without a name found.

    A folder is one content, and so are the files of a pattern (see `records/trees.py`).
    """

    name: Name
    cid: Id
    size: Size
    kind: Literal["file", "folder", "files"] = "file"


class Result(Struct, forbid_unknown_fields=True, frozen=True):
    """The outcome of a job, which the provider signs (seed 6: `jobs.result`).

    `state` is `completed` for exit code 0, `failed` with a `reason` otherwise, or `cancelled`. `fault` says whose doing
    a failure is: the job's own program, or the provider.
    """

    job_id: Id
    contract_id: Id
    allocation_id: MaybeId
    state: Literal["completed", "failed", "cancelled"]
    exit_code: Annotated[int, Limits(ge=-(2**31), lt=2**32)] | None
    started_at: Time
    ended_at: Time
    usage: Usage = field(default_factory=Usage)
    outputs: Annotated[tuple[OutputFile, ...], Many] = ()
    stdout_cid: MaybeId = ""
    stdout_size: Size = 0
    stderr_cid: MaybeId = ""
    stderr_size: Size = 0
    reason: Annotated[str, Limits(max_length=100, pattern=PLAIN)] = ""
    message: Text = ""
    fault: Literal["", "job", "provider"] = ""
