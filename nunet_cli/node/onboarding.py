"""Onboarding (second seed): what a person asks for, held against what the machine has and the headroom rule.

What was offered before stays, also after offboarding, where nothing else is asked for: nobody gives more away, or for
less, than they said.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.errors import UsageError
from nunet_cli.node.benchmark import probe_libraries, probe_machine
from nunet_cli.records.capability import (
    Capability,
    Connectivity,
    Gpu,
    Locality,
    PriceBid,
    Resources,
    Storage,
    TimeCapability,
)
from nunet_cli.records.kyc import Kyc
from nunet_cli.records.offers import OnboardOptions
from nunet_cli.records.reading import as_read

T = TypeVar("T")
HEADROOM = 0.9
# less than that nothing runs in
LEAST_SIZE = 2**20
MOST_ASKED = 10**12 * quantities.MICRO - 1
# where in a capability what an option says ends up
_FLAGS = {
    "$.kycs": "--kyc", "$.time": "--max-duration", "$.localities": "--locality", "$.storage": "--storage",
    "$.connectivity.ports": "--port", "$.connectivity.bandwidth": "--bandwidth", "$.price": "--price",
    "$.resources.cpu.cores": "--cpu", "$.resources.memory": "--memory", "$.resources.disk": "--disk",
    "$.resources.gpus": "--gpu",
}  # fmt: skip
JOB_TYPES = ("task", "service")


def keep_offer(options: OnboardOptions, kept: OnboardOptions | None) -> OnboardOptions:
    """Return the options with what was offered before where they say nothing; what was chosen ends up complete."""
    if kept is None or options.reset:
        return structs.replace(options, reset=False, max_share=_or_most(options.max_share))
    names = [name for name in OnboardOptions.__struct_fields__ if name != "reset"]
    kept = structs.replace(kept, max_share=_or_most(kept.max_share))
    return structs.replace(options, **{name: getattr(kept, name) for name in names if getattr(options, name) is None})


def still_standing(kept: OnboardOptions | None, did: str) -> tuple[OnboardOptions | None, list[str]]:
    """Return what was offered before without the statements (`kycs`) that count no more, and why each does not.

    Args:
        kept: what was offered before.
        did: the node that offers.
    """
    if kept is None or not kept.kycs:
        return kept, []
    faults = {kyc: kyc_fault(kyc, did) for kyc in kept.kycs}
    kycs = tuple(kyc for kyc, fault in faults.items() if not fault)
    return structs.replace(kept, kycs=kycs), [fault for fault in faults.values() if fault]


def kyc_fault(kyc: Kyc | str, did: str) -> str:
    """Return why what a node offers as a statement about it does not count now; empty where it does."""
    if isinstance(kyc, str):
        return f"{kyc!r}: a name alone counts for nothing"
    return kyc.fault(did, quantities.utc_now())


def _or_most(share: float | None) -> float:
    return HEADROOM if share is None else share


def offer_of(capability: Capability, price: PriceBid) -> OnboardOptions:
    """Return the options that offer just this: for what was registered before options were kept."""
    resources, connectivity = capability.resources, capability.connectivity
    return OnboardOptions(
        cpu=resources.cpu.cores, memory=str(resources.memory), disk=str(resources.disk), gpu=len(resources.gpus),
        price=price_option(price), max_duration=str(capability.time.max) if capability.time.max else None,
        localities=tuple(f"{place.kind}={place.name}" for place in capability.localities),
        storage=tuple(f"{kept.type}={kept.size}" for kept in capability.storage), ports=connectivity.ports,
        bandwidth=str(connectivity.bandwidth) if connectivity.bandwidth else None, vpn=connectivity.vpn,
        kycs=capability.kycs,
    )  # fmt: skip


def price_option(price: PriceBid) -> str:
    """Return a price as `--price` takes it."""
    return price.amount + (f"/{price.time_unit}" if price.time_unit else "")


def is_free(price: str | None) -> bool:
    """Say whether a price as `--price` takes it gives the machine away.

    Raises:
        UsageError: it is no price.
    """
    return parse_price(price).amount == "0"


def parse_price(text: str | None) -> PriceBid:
    """Return the price that `--price` names; nothing where it was not given.

    Raises:
        UsageError: it is no price, or a higher one than there is; the message names the flag.
    """
    micro, unit = _read("--price", quantities.parse_price, "0" if text is None else text)
    if micro > MOST_ASKED:
        raise UsageError(f"--price: {text!r} is too much", hint=f"at most {quantities.format_amount(MOST_ASKED)} NTX")
    kind: Any = "per_time_unit" if unit else "per_result"
    return PriceBid(kind, "NTX", unit, quantities.format_amount(micro))  # type: ignore[arg-type]  # checked by parse_price


def checked(value: T) -> T:
    """Return a document as it is, where it can be read again once it is kept.

    Raises:
        UsageError: it has what its type does not allow; the message begins with the flag, or else the place.
    """
    try:
        return as_read(value)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `")
        flag = next((flag for start, flag in _FLAGS.items() if place.startswith(start)), "")
        where = flag or place.removesuffix("`").removeprefix("$.")
        reason = "letters that cannot be shown" if "regex" in reason else f"{reason[:1].lower()}{reason[1:]}"
        raise UsageError(f"{where}: not accepted: {reason}", hint="see: nunet onboard --help" if flag else "") from None


def _read(flag: str, parse: Callable[[str], T], text: str) -> T:
    """Return what a text means; what is wrong with it is said with the flag."""
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError(f"{flag}: {error.message}", hint=error.hint) from None


def plan_onboarding(
    home: Path, options: OnboardOptions, kept: OnboardOptions | None = None, did: str = ""
) -> tuple[Capability, PriceBid, Resources]:
    """Return the capability to register, the price, and what the machine has in all.

    Args:
        home: the node's folder, on the disk that is offered.
        options: what is asked for now.
        kept: what was offered before. Where the machine has less than that by now, less is offered.
        did: this node, which statements in `kycs` must be about.

    Raises:
        UsageError: more is asked for than the machine, or the share of it, has; the message names the flag.
    """
    machine = probe_machine(home)
    firm, options = options, keep_offer(options, kept)
    share = _or_most(options.max_share)
    if not 0 < share <= HEADROOM:
        raise UsageError(
            f"--max-share: {share:g} is not between 0 and {HEADROOM:g}",
            hint=f"at least {1 - HEADROOM:.0%} of the machine stays with its owner",
        )
    price = parse_price(options.price)
    cores = _share("--cpu", options.cpu, machine.cpu.cores, share, quantities.format_cores, firm.cpu)
    memory = _share("--memory", _size("--memory", options.memory), machine.memory, share, _written, firm.memory)
    disk = _share("--disk", _size("--disk", options.disk), machine.disk, share, _written, firm.disk)
    resources = Resources(
        cpu=structs.replace(machine.cpu, cores=round(cores, 3)), memory=int(memory), disk=int(disk),
        gpus=_gpus(options.gpu, machine.gpus, firm.gpu),
    )  # fmt: skip
    longest = (
        0 if options.max_duration is None else _read("--max-duration", quantities.parse_duration, options.max_duration)
    )
    bandwidth = 0 if options.bandwidth is None else _read("--bandwidth", quantities.parse_bandwidth, options.bandwidth)
    capability = Capability(
        job_types=JOB_TYPES, resources=resources, libraries=probe_libraries(),
        localities=tuple(_locality(text) for text in options.localities or ()), price=price,
        time=TimeCapability(max=longest), storage=tuple(_storage(text) for text in options.storage or ()),
        kycs=tuple(_kyc(kyc, did) for kyc in options.kycs or ()),
        connectivity=Connectivity(_ports(options.ports or ()), bandwidth, bool(options.vpn)),
    )  # fmt: skip
    return checked(capability), price, machine


def _size(flag: str, text: str | None) -> float | None:
    if text is None:
        return None
    size = _read(flag, quantities.parse_size, text)
    if size < LEAST_SIZE:
        raise UsageError(f"{flag}: {text!r} is too little for any job", hint="write for example 512MiB or 4GiB")
    return float(size)


def _written(value: float) -> str:
    return quantities.format_size(int(value))


def _share(flag: str, wanted: float | None, there: float, share: float, write: Any, firm: Any) -> float:
    most = there * share
    if wanted is None:
        return most
    # nothing at all is no offer, and what is no number compares with nothing
    if not math.isfinite(wanted) or wanted <= 0:
        raise UsageError(f"{flag}: {wanted:g} is not more than 0", hint=f"at most {write(most)}")
    if wanted > most and firm is None:
        return most
    if wanted > most:
        raise UsageError(
            f"{flag}: {write(wanted)} is more than {share:.0%} of the {write(there)} that this machine has",
            hint=f"at most {write(most)}",
        )
    return wanted


def _gpus(count: int | None, there: tuple[Gpu, ...], firm: int | None) -> tuple[Gpu, ...]:
    if count is None:
        return there
    if count < 0 or (count > len(there) and firm is not None):
        raise UsageError(f"--gpu: {count} asked for, this machine has {len(there)}", hint="0 offers none")
    return there[:count]


def _locality(text: str) -> Locality:
    kind, equals, name = text.partition("=")
    if not (kind.strip() and equals and name.strip()):
        raise UsageError(f"--locality: {text!r}", hint="write KIND=NAME, for example country=SE")
    return Locality(kind, name)


def _storage(text: str) -> Storage:
    kind, equals, size = text.partition("=")
    if not (kind.strip() and equals and size):
        raise UsageError(f"--storage: {text!r}", hint="write TYPE=SIZE, for example ssd=100GiB")
    found = Storage(kind, _read("--storage", quantities.parse_size, size))
    if not found.size:
        raise UsageError(f"--storage: {text!r} is no storage", hint="write TYPE=SIZE, for example ssd=100GiB")
    return found


def _kyc(kyc: Kyc | str, did: str) -> Kyc | str:
    fault = kyc_fault(kyc, did)
    if fault:
        whom = did or "of `nunet whoami`"
        raise UsageError(f"--kyc: {fault}", hint=f"ask for one: nunet registry attest {whom} --as NAME")
    return kyc


def _ports(ports: tuple[int, ...]) -> tuple[int, ...]:
    for port in ports:
        if not 0 < port < 65536:
            raise UsageError(f"--port: {port} is not a port", hint="1 to 65535")
    return ports
