"""The job specification: what a person writes in YAML, TOML or JSON, as checked types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct, field

from nunet_cli import quantities
from nunet_cli.jobs.globs import is_glob
from nunet_cli.records.bids import Rule, SoftConstraint
from nunet_cli.records.capability import Connectivity, Library, Locality, Resources, Speeds, Storage
from nunet_cli.records.fields import Name
from nunet_cli.records.kyc import MOST_KYCS
from nunet_cli.records.limits import Limits

MAX_SPEC_BYTES = 256 * 1024
MAX_FILES = 1000
# providers that one job is offered to by name
MOST_PUSHED = 100
# the place of what is put right into the job's folder
HERE = "."
RelativePath = Annotated[str, Limits(min_length=1, max_length=400)]
Argument = Annotated[str, Limits(max_length=100_000)]
PeerName = Annotated[str, Limits(min_length=1, max_length=200)]


class ExecutorSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """How the job runs: `docker` takes an image, `process` a command, `null` nothing.

    `entrypoint` replaces that of the image.
    """

    type: Literal["docker", "process", "null"]
    image: Annotated[str, Limits(max_length=400)] = ""
    entrypoint: Annotated[tuple[Argument, ...], Limits(max_length=1000)] = ()
    command: Annotated[tuple[Argument, ...], Limits(max_length=1000)] = ()
    env: dict[Name, Argument] = {}
    workdir: Annotated[str, Limits(max_length=400)] = ""


class InputSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """Files for the job: a local `path`, or the content id of one already known; `to` is its place in the job.

    The path is that of a file, or of a folder, or a pattern whose files are put into the folder `to`; a dot is the
    job's own folder. `kind` says what a content is.
    """

    to: RelativePath = ""
    path: Annotated[str, Limits(max_length=4000)] = ""
    cid: Annotated[str, Limits(max_length=120)] = ""
    size: Annotated[int, Limits(ge=0, le=2**50)] = 0
    kind: Literal["file", "folder"] = "file"


class OutputSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """What the job writes, relative to its working folder, and the name it comes back under.

    The path is that of a file or a folder, or a pattern, whose files come back in a folder of that name, or, without
    one, as they are.
    """

    path: RelativePath
    name: Annotated[str, Limits(max_length=200)] = ""


class PriceSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """The most the requester pays, in NTX: for the whole job, or as a rate when `type` is `per_time_unit`."""

    max: Annotated[str, Limits(max_length=40)] = "0"
    type: Literal["any", "per_result", "per_time_unit"] = "any"


Moment = Annotated[str, Limits(max_length=60)]
JobName = Annotated[str, Limits(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?!\n)$")]


class TimeSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """When and how long: `max_duration` is the seconds the job may run.

    `start` is the earliest time at which a provider is looked for, `deadline` the latest at which one may take the job:
    until then the search goes on. Both are RFC 3339, or a duration from the posting on; empty means now.
    """

    max_duration: Annotated[int, Limits(ge=1, le=10**8)] = 3600
    start: Moment = ""
    deadline: Moment = ""


class VerifySpec(Struct, forbid_unknown_fields=True, frozen=True):
    """How the oracle verifies the result.

    `attested` checks the signed documents, the exit code and the outputs; `replicate` has `n` providers run the job and
    takes what most of them agree on; `reexecute` has the oracle's own machine run it again.
    """

    policy: Literal["attested", "replicate", "reexecute"] = "attested"
    n: Annotated[int, Limits(ge=2, le=15)] = 3
    outputs_not_empty: bool = False


class RetrySpec(Struct, forbid_unknown_fields=True, frozen=True):
    """How often the job is tried again, with another provider, after a failure of the provider."""

    attempts: Annotated[int, Limits(ge=0, le=20)] = 0


class Constraints(Struct, forbid_unknown_fields=True, frozen=True):
    """Beyond the capability: `hard` ones (CEL) must hold, `soft` ones make one bid better than another."""

    hard: Annotated[tuple[Rule, ...], Limits(max_length=32)] = ()
    soft: Annotated[tuple[SoftConstraint, ...], Limits(max_length=32)] = ()


class BatchSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """An array of `count` jobs that differ in their index, or in the values of its `items`, which are filled in.

    At most `parallel` are looked after at once (0: 100). `name` is that of each item, with its values filled in.
    """

    count: Annotated[int, Limits(ge=1, le=10_000)] = 1
    parallel: Annotated[int, Limits(ge=0, le=1000)] = 0
    items: Annotated[tuple[dict[str, str], ...], Limits(max_length=10_000)] = ()
    name: Annotated[str, Limits(max_length=400)] = ""
    # the file or the pattern that they were read from, where they were: nobody writes it
    read_from: Annotated[str, Limits(max_length=4000)] = ""


class ScheduleSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """When a recurring job runs: `cron` (five fields, UTC) or `every` so many seconds; `count` times, 0 for ever."""

    cron: Annotated[str, Limits(max_length=100)] = ""
    every: Annotated[int, Limits(ge=0, le=10**8)] = 0
    count: Annotated[int, Limits(ge=0, le=10**6)] = 0


class HealthSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """A command that ends with 0 while a service is well; seconds. After `retries` failures in a row it is not."""

    command: Annotated[tuple[Argument, ...], Limits(min_length=1, max_length=1000)]
    interval: Annotated[int, Limits(ge=1, le=86400)] = 10
    timeout: Annotated[int, Limits(ge=1, le=3600)] = 5
    start_period: Annotated[int, Limits(ge=0, le=86400)] = 0
    retries: Annotated[int, Limits(ge=1, le=100)] = 3


class ServiceSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """How a service is kept up: started again `on_failure` or `always`, at most `max_restarts` times."""

    restart: Literal["never", "on_failure", "always"] = "on_failure"
    max_restarts: Annotated[int, Limits(ge=0, le=10**6)] = 10
    delay: Annotated[int, Limits(ge=0, le=3600)] = 1
    health: HealthSpec | None = None


class JobLink(Struct, forbid_unknown_fields=True, frozen=True, rename={"from_": "from"}):
    """A link between two children, by name (seed 1: `jobs.JobLink`).

    `depends_on`: `to` starts when `from` is settled. `data`: so it does, and `output` of `from` (all outputs where it
    is empty) is put into the folder of `to`, at `path`. `colocate`: `to` runs at the provider of `from`. `constraint`
    is CEL that a bid for `to` must fulfil; it may name `linked`, what the provider of `from` has.
    """

    from_: JobName
    to: JobName
    kind: Literal["depends_on", "data", "colocate"] = "depends_on"
    output: Annotated[str, Limits(max_length=400)] = ""
    path: Annotated[str, Limits(max_length=400)] = ""
    constraint: Annotated[str, Limits(max_length=1000)] = ""


class Pod(Struct, forbid_unknown_fields=True, frozen=True):
    """Children that must share one machine (seed 1: `jobs.Pod`): their needs are summed, and bid for as one."""

    id: JobName
    jobs: Annotated[tuple[JobName, ...], Limits(min_length=1, max_length=100)]


class JobSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """A job as a person describes it (seed 1: `jobDescription`): a program, or a group of children.

    A group with `pod` runs all its children on one machine. When a child or an item of a batch fails, what is linked to
    it does not run; `on_failure` says whether the others go on. `push` has the only providers that are asked, for the
    whole job; it stays with its requester.
    """

    name: JobName
    executor: ExecutorSpec | None = None
    version: Literal[1] = 1
    type: Literal["task", "batch", "recurring", "service"] = "task"
    description: Annotated[str, Limits(max_length=2000)] = ""
    resources: Resources = field(default_factory=Resources)
    libraries: Annotated[tuple[Library, ...], Limits(max_length=64)] = ()
    localities: Annotated[tuple[Locality, ...], Limits(max_length=64)] = ()
    storage: Annotated[tuple[Storage, ...], Limits(max_length=64)] = ()
    connectivity: Connectivity = field(default_factory=Connectivity)
    benchmark: Speeds = field(default_factory=Speeds)
    kycs: Annotated[tuple[Name, ...], Limits(max_length=MOST_KYCS)] = ()
    constraints: Constraints = field(default_factory=Constraints)
    price: PriceSpec = field(default_factory=PriceSpec)
    time: TimeSpec = field(default_factory=TimeSpec)
    inputs: Annotated[tuple[InputSpec, ...], Limits(max_length=MAX_FILES)] = ()
    outputs: Annotated[tuple[OutputSpec, ...], Limits(max_length=MAX_FILES)] = ()
    verify: VerifySpec = field(default_factory=VerifySpec)
    retry: RetrySpec = field(default_factory=RetrySpec)
    batch: BatchSpec | None = None
    schedule: ScheduleSpec | None = None
    service: ServiceSpec | None = None
    children: Annotated[tuple[JobSpec, ...], Limits(max_length=1000)] = ()
    links: Annotated[tuple[JobLink, ...], Limits(max_length=4000)] = ()
    pods: Annotated[tuple[Pod, ...], Limits(max_length=200)] = ()
    pod: bool = False
    on_failure: Literal["continue", "stop"] = "continue"
    push: Annotated[tuple[PeerName, ...], Limits(max_length=MOST_PUSHED)] = ()


DEFAULT_RESOURCES = {"cpu": {"cores": 1}, "memory": 256 * 2**20, "disk": 256 * 2**20}


def total_price(micro: int, time_unit: str, seconds: float) -> int:
    """Return what `seconds` cost at a price, rounded up to a micro-NTX; `time_unit` is empty for a price per result."""
    if not time_unit:
        return micro
    per = quantities.TIME_UNITS[time_unit] * 1000
    return -(-micro * round(seconds * 1000) // per)


def is_safe_path(path: str) -> bool:
    """Say whether a path stays inside the job's folder: relative, no `..`, no control characters."""
    parts = path.replace("\\", "/").split("/")
    return (
        bool(path) and not path.startswith(("/", "~")) and ".." not in parts
        and all(ord(letter) >= 32 for letter in path) and parts[-1] not in ("", ".")
    )  # fmt: skip


def output_name(output: OutputSpec) -> str:
    """Return the name that an output comes back under: its own, or the last part of its path.

    A pattern's is only what the result calls it: see `is_loose`.
    """
    return output.name or output.path.rsplit("/", 1)[-1]


def is_loose(output: OutputSpec) -> bool:
    """Say whether an output is a pattern without a name of its own: its files come back with no folder around them."""
    return is_glob(output.path) and not output.name


def encode_spec(spec: JobSpec) -> bytes:
    """Return the exact bytes that the contract names by content id."""
    return msgspec.json.encode(spec)


def to_builtins(value: Any) -> Any:
    """Return plain dicts and lists for a struct, ready for the store or for JSON."""
    return msgspec.to_builtins(value)
