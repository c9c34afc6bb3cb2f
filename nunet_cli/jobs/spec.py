"""The job specification: what a person writes in YAML, TOML or JSON, as checked types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from nunet_cli import units
from nunet_cli.errors import UsageError
from nunet_cli.jobs.capability import Capability, Library, Locality, Name, PriceBid, Resources, TimeCapability

MAX_SPEC_BYTES = 256 * 1024
MAX_FILES = 1000
RelativePath = Annotated[str, Meta(min_length=1, max_length=400)]
Argument = Annotated[str, Meta(max_length=100_000)]


class ExecutorSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """How the job runs: `docker` takes an image, `process` a command, `null` nothing."""

    type: Literal["docker", "process", "null"]
    image: Annotated[str, Meta(max_length=400)] = ""
    command: Annotated[tuple[Argument, ...], Meta(max_length=1000)] = ()
    env: dict[Name, Argument] = {}
    workdir: Annotated[str, Meta(max_length=400)] = ""


class InputSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """A file for the job: a local `path`, or the content id of one already known; `to` is its place in the job."""

    to: RelativePath = ""
    path: Annotated[str, Meta(max_length=4000)] = ""
    cid: Annotated[str, Meta(max_length=120)] = ""
    size: Annotated[int, Meta(ge=0, le=2**50)] = 0


class OutputSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """A file that the job writes, relative to its working folder, and the name it comes back under."""

    path: RelativePath
    name: Annotated[str, Meta(max_length=200)] = ""


class PriceSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """The most the requester pays, in NTX: for the whole job, or as a rate when `type` is `per_time_unit`."""

    max: Annotated[str, Meta(max_length=40)] = "0"
    type: Literal["any", "per_result", "per_time_unit"] = "any"


class TimeSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """`max_duration`: seconds the job may run."""

    max_duration: Annotated[int, Meta(ge=1, le=10**8)] = 3600


class VerifySpec(Struct, forbid_unknown_fields=True, frozen=True):
    """How the oracle verifies the result: `attested` checks the signed documents, the exit code and the outputs."""

    policy: Literal["attested"] = "attested"
    outputs_not_empty: bool = False


class RetrySpec(Struct, forbid_unknown_fields=True, frozen=True):
    """How often the job is tried again, with another provider, after a failure of the provider."""

    attempts: Annotated[int, Meta(ge=0, le=20)] = 0


class JobSpec(Struct, forbid_unknown_fields=True, frozen=True):
    """A job as a person describes it (seed 1: `jobDescription`)."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    executor: ExecutorSpec
    version: Literal[1] = 1
    type: Literal["task"] = "task"
    description: Annotated[str, Meta(max_length=2000)] = ""
    resources: Resources = field(default_factory=Resources)
    libraries: Annotated[tuple[Library, ...], Meta(max_length=64)] = ()
    localities: Annotated[tuple[Locality, ...], Meta(max_length=64)] = ()
    price: PriceSpec = field(default_factory=PriceSpec)
    time: TimeSpec = field(default_factory=TimeSpec)
    inputs: Annotated[tuple[InputSpec, ...], Meta(max_length=MAX_FILES)] = ()
    outputs: Annotated[tuple[OutputSpec, ...], Meta(max_length=MAX_FILES)] = ()
    verify: VerifySpec = field(default_factory=VerifySpec)
    retry: RetrySpec = field(default_factory=RetrySpec)


DEFAULT_RESOURCES = {"cpu": {"cores": 1}, "memory": 256 * 2**20, "disk": 256 * 2**20}


def required_capability(spec: JobSpec) -> Capability:
    """Return what a provider must have for the job (seed 2: `requiredCapability`).

    The price in it is the most that the requester pays for the whole job: a rate is multiplied by the duration.
    """
    limit = units.format_amount(price_limit(spec))
    return Capability(
        executors=(spec.executor.type,),
        job_types=(spec.type,),
        resources=spec.resources,
        libraries=spec.libraries,
        localities=spec.localities,
        price=PriceBid(amount=limit),
        time=TimeCapability(max=spec.time.max_duration),
    )


def price_limit(spec: JobSpec) -> int:
    """Return the most that the whole job may cost, in micro-NTX."""
    micro, unit = units.parse_price(spec.price.max)
    return total_price(micro, unit, spec.time.max_duration)


def total_price(micro: int, time_unit: str, seconds: float) -> int:
    """Return what `seconds` cost at a price, rounded up to a micro-NTX; `time_unit` is empty for a price per result."""
    if not time_unit:
        return micro
    per = units.TIME_UNITS[time_unit] * 1000
    return -(-micro * round(seconds * 1000) // per)


def is_safe_path(path: str) -> bool:
    """Say whether a path stays inside the job's folder: relative, no `..`, no control characters."""
    parts = path.replace("\\", "/").split("/")
    return (
        bool(path) and not path.startswith(("/", "~")) and ".." not in parts
        and all(ord(letter) >= 32 for letter in path) and parts[-1] not in ("", ".")
    )  # fmt: skip


def check_spec(spec: JobSpec) -> None:
    """Check the rules that span several fields.

    Raises:
        UsageError: with `details["path"]` naming the field, for example `executor.image`.
    """

    def wrong(path: str, message: str, hint: str = "") -> UsageError:
        return UsageError(message, hint=hint, details={"path": path})

    if spec.executor.type == "docker" and not spec.executor.image:
        raise wrong("executor.image", "a docker job needs `image`", "add image: NAME:TAG under executor")
    if spec.executor.type != "docker" and spec.executor.image:
        raise wrong("executor.image", f"a {spec.executor.type} job has no `image`", "did you mean type: docker?")
    if spec.executor.type == "process" and not spec.executor.command:
        raise wrong("executor.command", "a process job needs `command`", "add command: [program, argument, …]")
    places: set[str] = set()
    for index, item in enumerate(spec.inputs):
        if bool(item.path) == bool(item.cid) and not (item.cid and item.size):
            raise wrong(f"inputs[{index}]", "an input needs either `path` or `cid`")
        if not is_safe_path(item.to):
            raise wrong(f"inputs[{index}].to", f"an input must stay inside the job's folder: {item.to!r}")
        if item.to in places:
            raise wrong(f"inputs[{index}].to", f"two inputs go to the same place: {item.to!r}")
        places.add(item.to)
    names: set[str] = set()
    for index, output in enumerate(spec.outputs):
        name = output_name(output)
        if not is_safe_path(output.path) or not is_safe_path(name) or "/" in name:
            raise wrong(f"outputs[{index}]", f"an output must stay inside the job's folder: {output.path!r}")
        if name in names or name in ("stdout", "stderr"):
            raise wrong(f"outputs[{index}].name", f"the output name {name!r} is taken", "give it another name")
        names.add(name)
    price_limit(spec)


def output_name(output: OutputSpec) -> str:
    """Return the name that an output comes back under: its own, or the last part of its path."""
    return output.name or output.path.rsplit("/", 1)[-1]


def encode_spec(spec: JobSpec) -> bytes:
    """Return the exact bytes that the contract names by content id."""
    return msgspec.json.encode(spec)


def decode_spec(data: bytes | str) -> JobSpec:
    """Return a specification that came from a peer or the store, checked.

    Raises:
        UsageError: it is not one.
    """
    if len(data) > MAX_SPEC_BYTES:
        raise UsageError(f"a job specification may have at most {MAX_SPEC_BYTES} bytes")
    try:
        spec = msgspec.json.decode(data, type=JobSpec)
    except msgspec.MsgspecError as error:
        raise UsageError(f"not a job specification: {error}") from None
    check_spec(spec)
    return spec


def to_builtins(value: Any) -> Any:
    """Return plain dicts and lists for a struct, ready for the store or for JSON."""
    return msgspec.to_builtins(value)
