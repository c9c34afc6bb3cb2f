"""Capability: what a machine has, or what a job needs. Sizes are bytes, frequencies MHz, durations seconds."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Struct, field, structs

from nunet_cli.records.fields import PLAIN, Cores, Few, Name, Size
from nunet_cli.records.kyc import MOST_KYCS, Kyc
from nunet_cli.records.limits import Limits

# what a program gets of the processor, and takes of it, however little it asks for
LEAST_CORES = 0.05


class Cpu(Struct, forbid_unknown_fields=True, frozen=True):
    """Processor: `cores` may be a fraction; `mhz` is the frequency of one core; 0 or empty asks for nothing."""

    cores: Cores = 0.0
    mhz: Annotated[float, Limits(ge=0, le=1e6)] = 0.0
    arch: Annotated[str, Limits(max_length=40, pattern=PLAIN)] = ""
    model: Annotated[str, Limits(max_length=200, pattern=PLAIN)] = ""

    @property
    def share(self) -> float:
        """The cores that a program gets: as many as it asks for, or the least share."""
        return max(self.cores, LEAST_CORES)


class Gpu(Struct, forbid_unknown_fields=True, frozen=True):
    """One whole graphics device; `vram` in bytes. Empty fields in a request match any device."""

    vendor: Annotated[str, Limits(max_length=80, pattern=PLAIN)] = ""
    model: Annotated[str, Limits(max_length=200, pattern=PLAIN)] = ""
    vram: Size = 0


class Resources(Struct, forbid_unknown_fields=True, frozen=True):
    """The countable part of a capability: what is locked, allocated and released."""

    cpu: Cpu = field(default_factory=Cpu)
    memory: Size = 0
    disk: Size = 0
    gpus: Annotated[tuple[Gpu, ...], Few] = ()

    def as_run(self) -> Resources:
        """Return what a program takes that asks for these."""
        return structs.replace(self, cpu=structs.replace(self.cpu, cores=self.cpu.share))

    def plus(self, other: Resources) -> Resources:
        """Return the sum in every dimension; processor model and frequency stay this one's."""
        return Resources(
            cpu=structs.replace(self.cpu, cores=round(self.cpu.cores + other.cpu.cores, 3)),
            memory=self.memory + other.memory,
            disk=self.disk + other.disk,
            gpus=self.gpus + other.gpus,
        )

    def minus(self, other: Resources) -> Resources:
        """Return what is left after `other` is taken; GPUs go as whole devices that match.

        Raises:
            ValueError: a dimension would become negative; the text names it.
        """
        cores = round(self.cpu.cores - other.cpu.cores, 3)
        memory, disk = self.memory - other.memory, self.disk - other.disk
        for name, left in (("cpu", cores), ("memory", memory), ("disk", disk)):
            if left < 0:
                raise ValueError(name)
        gpus = list(self.gpus)
        for wanted in sorted(other.gpus, key=lambda gpu: -gpu.vram):
            taken = take_gpu(gpus, wanted)
            if taken is None:
                raise ValueError("gpus")
        return Resources(cpu=structs.replace(self.cpu, cores=cores), memory=memory, disk=disk, gpus=tuple(gpus))

    def minus_times(self, other: Resources, count: int) -> Resources:
        """Return what is left after `other` is taken so many times.

        Raises:
            ValueError: a dimension would become negative; the text names it.
        """
        cpu = structs.replace(other.cpu, cores=round(other.cpu.cores * count, 3))
        return self.minus(Resources(cpu, other.memory * count, other.disk * count, other.gpus * count))

    def fits(self, other: Resources) -> bool:
        """Say whether `other` can be taken from this."""
        try:
            self.minus(other)
        except ValueError:
            return False
        return True

    def times(self, other: Resources, most: int) -> int:
        """Return how many times `other` can be taken from this, at most so many.

        A peer names what it likes, and as many of it: only devices are counted one by one.
        """
        pairs = [
            (round(self.cpu.cores * 1000), round(other.cpu.cores * 1000)),
            (self.memory, other.memory),
            (self.disk, other.disk),
            (len(self.gpus), len(other.gpus)),
        ]
        if any(there < needed for there, needed in pairs):
            return 0
        most = min([most, *(there // needed for there, needed in pairs if needed)])
        if not other.gpus:
            return most
        left, count = self, 0
        while count < most and left.fits(other):
            left, count = left.minus(other), count + 1
        return count


def gpu_matches(device: Gpu, wanted: Gpu) -> bool:
    """Say whether a device serves a request: same vendor and model where named, and at least the memory."""
    return (
        device.vram >= wanted.vram
        and wanted.vendor.lower() in device.vendor.lower()
        and wanted.model.lower() in device.model.lower()
    )


def take_gpu(devices: list[Gpu], wanted: Gpu) -> Gpu | None:
    """Remove and return the smallest device that serves the request, or None."""
    fitting = sorted((gpu for gpu in devices if gpu_matches(gpu, wanted)), key=lambda gpu: gpu.vram)
    if not fitting:
        return None
    devices.remove(fitting[0])
    return fitting[0]


class Library(Struct, forbid_unknown_fields=True, frozen=True):
    """A library or runtime: a machine has a `version`, a job asks with a `constraint` such as `>=3.11`."""

    name: Name
    version: Annotated[str, Limits(max_length=80, pattern=PLAIN)] = ""
    constraint: Annotated[str, Limits(max_length=80, pattern=PLAIN)] = ""


class Locality(Struct, forbid_unknown_fields=True, frozen=True):
    """A place: `kind` is for example `country`, `region` or `city`; with `exclude` a job must not run there."""

    kind: Name
    name: Name
    exclude: bool = False


class Storage(Struct, forbid_unknown_fields=True, frozen=True):
    """Storage of one kind, for example `ssd`; `size` in bytes."""

    type: Name
    size: Size = 0


class Connectivity(Struct, forbid_unknown_fields=True, frozen=True):
    """How a machine is reached: open `ports`, `bandwidth` in bits a second, whether it is in a VPN."""

    ports: Annotated[tuple[Annotated[int, Limits(ge=1, le=65535)], ...], Limits(max_length=256)] = ()
    bandwidth: Annotated[int, Limits(ge=0, le=10**15)] = 0
    vpn: bool = False


# bytes a second: more than any machine of today has of anything that is measured
MOST_SPEED = 10**13
Speed = Annotated[int, Limits(ge=0, le=MOST_SPEED)]


class Speeds(Struct, forbid_unknown_fields=True, frozen=True):
    """What the benchmark measures, in bytes a second; 0 where nothing was measured, or asks for nothing.

    `cpu_hash` is SHA-256 on one core, `memory_copy` the copying of memory, `disk_write` writing to disk with a sync at
    the end. A provider's are what it claims: nobody else has measured them.
    """

    cpu_hash: Speed = 0
    memory_copy: Speed = 0
    disk_write: Speed = 0


class TimeCapability(Struct, forbid_unknown_fields=True, frozen=True):
    """How long a job may run, in seconds; 0 means no limit on a machine."""

    unit: Literal["s"] = "s"
    max: Annotated[int, Limits(ge=0, le=10**9)] = 0


class PriceBid(Struct, forbid_unknown_fields=True, frozen=True):
    """A price: `amount` is a decimal string in NTX, for the result or for each `time_unit`."""

    type: Literal["per_result", "per_time_unit"] = "per_result"
    currency: Literal["NTX"] = "NTX"
    time_unit: Literal["", "s", "min", "h", "d"] = ""
    amount: Annotated[str, Limits(pattern=r"^[0-9]{1,12}(\.[0-9]{1,6})?(?!\n)$")] = "0"


class Capability(Struct, forbid_unknown_fields=True, frozen=True):
    """What a machine has, or what a job needs (seed 2: `availableCapability`, `requiredCapability`).

    A bare name in `kycs` is from version 0.1, or of a verifier whose key the requester did not name: it is never met.
    """

    executors: Annotated[tuple[Name, ...], Few] = ()
    job_types: Annotated[tuple[Name, ...], Few] = ()
    resources: Resources = field(default_factory=Resources)
    libraries: Annotated[tuple[Library, ...], Few] = ()
    localities: Annotated[tuple[Locality, ...], Few] = ()
    storage: Annotated[tuple[Storage, ...], Few] = ()
    connectivity: Connectivity = field(default_factory=Connectivity)
    price: PriceBid = field(default_factory=PriceBid)
    time: TimeCapability = field(default_factory=TimeCapability)
    kycs: Annotated[tuple[Kyc | Name, ...], Limits(max_length=MOST_KYCS)] = ()
    benchmark: Speeds = field(default_factory=Speeds)
