"""Onboarding (second seed): what a person asks for, held against what the machine has and the headroom rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from nunet_cli import units
from nunet_cli.errors import UsageError
from nunet_cli.jobs.capability import (
    Capability,
    Connectivity,
    Gpu,
    Locality,
    PriceBid,
    Resources,
    Storage,
    TimeCapability,
)
from nunet_cli.node.benchmark import probe_libraries, probe_machine

HEADROOM = 0.9
JOB_TYPES = ("task", "service")


class OnboardOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a person asks for at onboarding; None takes the most that the headroom rule allows."""

    cpu: float | None = None
    memory: str | None = None
    disk: str | None = None
    gpu: int | None = None
    price: str = "0"
    max_share: float = HEADROOM
    max_duration: str | None = None
    localities: tuple[str, ...] = ()
    storage: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    bandwidth: str | None = None
    vpn: bool = False
    kycs: tuple[str, ...] = ()


def plan_onboarding(home: Path, options: OnboardOptions) -> tuple[Capability, PriceBid, Resources]:
    """Return the capability to register, the price, and what the machine has in all.

    Raises:
        UsageError: more is asked for than the machine, or the share of it, has; the message names the flag.
    """
    machine = probe_machine(home)
    share = options.max_share
    if not 0 < share <= HEADROOM:
        raise UsageError(
            f"--max-share: {share:g} is not between 0 and {HEADROOM:g}",
            hint=f"at least {1 - HEADROOM:.0%} of the machine stays with its owner",
        )
    micro, unit = units.parse_price(options.price)
    kind: Any = "per_time_unit" if unit else "per_result"
    price = PriceBid(type=kind, time_unit=unit, amount=units.format_amount(micro))  # type: ignore[arg-type]  # checked by parse_price
    cores = _share("--cpu", options.cpu, machine.cpu.cores, share, lambda value: f"{value:g} cores")
    memory = _share("--memory", _size(options.memory), machine.memory, share, _written)
    disk = _share("--disk", _size(options.disk), machine.disk, share, _written)
    resources = Resources(
        cpu=structs.replace(machine.cpu, cores=round(cores, 3)), memory=int(memory), disk=int(disk),
        gpus=_gpus(options.gpu, machine.gpus),
    )  # fmt: skip
    longest = units.parse_duration(options.max_duration) if options.max_duration else 0
    capability = Capability(
        job_types=JOB_TYPES, resources=resources, libraries=probe_libraries(),
        localities=tuple(_locality(text) for text in options.localities), price=price, time=TimeCapability(max=longest),
        storage=tuple(_storage(text) for text in options.storage), kycs=options.kycs,
        connectivity=Connectivity(_ports(options.ports), units.parse_bandwidth(options.bandwidth or 0), options.vpn),
    )  # fmt: skip
    return capability, price, machine


def _size(text: str | None) -> float | None:
    return None if text is None else float(units.parse_size(text))


def _written(value: float) -> str:
    return units.format_size(int(value))


def _share(flag: str, wanted: float | None, there: float, share: float, write: Any) -> float:
    most = there * share
    if wanted is None:
        return most
    if wanted < 0:
        raise UsageError(f"{flag}: {wanted:g} is negative")
    if wanted > most:
        raise UsageError(
            f"{flag}: {write(wanted)} is more than {share:.0%} of the {write(there)} that this machine has",
            hint=f"at most {write(most)}",
        )
    return wanted


def _gpus(count: int | None, there: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    if count is None:
        return there
    if count < 0 or count > len(there):
        raise UsageError(f"--gpu: {count} asked for, this machine has {len(there)}")
    return there[:count]


def _locality(text: str) -> Locality:
    kind, equals, name = text.partition("=")
    if not (kind and equals and name):
        raise UsageError(f"--locality: {text!r}", hint="write KIND=NAME, for example country=SE")
    return Locality(kind, name)


def _storage(text: str) -> Storage:
    kind, equals, size = text.partition("=")
    if not (kind and equals and size):
        raise UsageError(f"--storage: {text!r}", hint="write TYPE=SIZE, for example ssd=100GiB")
    return Storage(kind, units.parse_size(size))


def _ports(ports: tuple[int, ...]) -> tuple[int, ...]:
    for port in ports:
        if not 0 < port < 65536:
            raise UsageError(f"--port: {port} is not a port")
    return ports
