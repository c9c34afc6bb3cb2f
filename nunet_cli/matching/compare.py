"""Comparing what a job needs with what a machine has, field by field, each with its margin (seed 2: `compare`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.jobs import expressions
from nunet_cli.jobs.expressions import Variables
from nunet_cli.records.bids import Comparison
from nunet_cli.records.capability import Capability, Gpu, Library, take_gpu
from nunet_cli.records.kyc import Kyc

Comparator = Callable[[Capability, Capability], list[Comparison]]


def compare(
    required: Capability,
    available: Capability,
    hard: tuple[str, ...] = (),
    names: Variables | None = None,
    *,
    subject: str = "",
    now: str = "",
) -> tuple[Comparison, ...]:
    """Compare every field that the job asks for, and its hard constraints.

    Args:
        required: what the job needs; its price is the most that the requester pays for the whole job.
        available: what the machine has left; its price is what this job would cost.
        hard: CEL expressions that must hold.
        names: what the expressions may name, from `expressions.variables`; made from the two where it is missing.
        subject: the DID of the node that `available` is of, which statements (`kycs`) must be about.
        now: the time at which they must hold.

    Returns:
        One comparison per field: `better` and `equal` serve the job, `worse` and `error` do not.
    """
    found: list[Comparison] = []
    for comparator in COMPARATORS:
        found += comparator(required, available)
    found += compare_kycs(required, available, subject, now)
    if hard:
        known = names or expressions.variables(node=available, job=required)
        found += [_constraint(f"constraints.hard[{index}]", text, known) for index, text in enumerate(hard)]
    return tuple(found)


def _constraint(field: str, text: str, names: Variables) -> Comparison:
    had = expressions.values_in(text, names)
    try:
        fulfilled = expressions.holds(text, names)
    except expressions.ExpressionError as error:
        return Comparison(field, "error", text, had, "", error.message)
    return Comparison(field, "equal" if fulfilled else "worse", text, had, "", "" if fulfilled else "does not hold")


def _amount(field: str, wanted: float, there: float, write: Callable[[float], str]) -> Comparison:
    if there == wanted:
        return Comparison(field, "equal", write(wanted), write(there), write(0))
    if there > wanted:
        return Comparison(field, "better", write(wanted), write(there), "+" + write(there - wanted))
    margin = write(wanted - there)
    return Comparison(
        field, "worse", write(wanted), write(there), "-" + margin, f"{margin} short", _exact(wanted), _exact(there)
    )


def _exact(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6g}"


def _number(value: float) -> str:
    return f"{value:g}"


def _size(value: float) -> str:
    return quantities.format_size(int(value))


def _names(field: str, wanted: tuple[str, ...], there: tuple[str, ...], where: str = "here") -> list[Comparison]:
    if not wanted:
        return []
    missing = [name for name in wanted if name not in there]
    asked, had = ", ".join(wanted), ", ".join(there) or "none"
    if missing:
        return [Comparison(field, "worse", asked, had, f"-{len(missing)}", f"no {', '.join(missing)} {where}")]
    return [Comparison(field, "equal" if set(wanted) == set(there) else "better", asked, had)]


def _executors(required: Capability, available: Capability) -> list[Comparison]:
    # one that works may still be closed to strangers
    return _names("executors", required.executors, available.executors, "here that you may use")


def _job_types(required: Capability, available: Capability) -> list[Comparison]:
    return _names("job_types", required.job_types, available.job_types)


def _cpu(required: Capability, available: Capability) -> list[Comparison]:
    wanted, there = required.resources.cpu, available.resources.cpu
    found = [_amount("cpu.cores", wanted.cores, there.cores, _number)]
    if wanted.mhz:
        found.append(_amount("cpu.mhz", wanted.mhz, there.mhz, _number))
    if wanted.arch:
        same = wanted.arch.lower() == there.arch.lower()
        reason = "" if same else "another architecture"
        found.append(Comparison("cpu.arch", "equal" if same else "worse", wanted.arch, there.arch, "", reason))
    if wanted.model:
        same = wanted.model.lower() in there.model.lower()
        reason = "" if same else "another model"
        found.append(Comparison("cpu.model", "equal" if same else "worse", wanted.model, there.model, "", reason))
    return found


def _memory(required: Capability, available: Capability) -> list[Comparison]:
    return [_amount("memory", required.resources.memory, available.resources.memory, _size)]


def _disk(required: Capability, available: Capability) -> list[Comparison]:
    return [_amount("disk", required.resources.disk, available.resources.disk, _size)]


def _gpus(required: Capability, available: Capability) -> list[Comparison]:
    wanted, devices = required.resources.gpus, list(available.resources.gpus)
    if not wanted:
        return []
    asked, had = ", ".join(map(_gpu, wanted)), ", ".join(map(_gpu, devices)) or "none"
    missing = [gpu for gpu in sorted(wanted, key=lambda g: -g.vram) if take_gpu(devices, gpu) is None]
    if missing:
        reason = f"no free device for {', '.join(map(_gpu, missing))}"
        return [Comparison("gpus", "worse", asked, had, f"-{len(missing)}", reason)]
    return [Comparison("gpus", "better" if devices else "equal", asked, had, f"+{len(devices)}")]


def _gpu(gpu: Gpu) -> str:
    return " ".join(part for part in (gpu.vendor, gpu.model, _size(gpu.vram) if gpu.vram else "") if part) or "any"


def version_key(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, for comparison: `3.11.2rc1` is `(3, 11, 2)`."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version, maxsplit=1)[0]))


def version_satisfies(version: str, constraint: str) -> bool:
    """Say whether a version fulfils every part of a constraint such as `>=3.9,<4`.

    Raises:
        ValueError: the constraint cannot be read.
    """
    for part in filter(None, (piece.strip() for piece in constraint.split(","))):
        match = re.fullmatch(r"(>=|<=|==|!=|>|<)?\s*(\d+(?:\.\d+)*)", part)
        if match is None:
            raise ValueError(part)
        have, want = version_key(version), version_key(match[2])
        width = max(len(have), len(want))
        have, want = have + (0,) * (width - len(have)), want + (0,) * (width - len(want))
        outcome = {
            ">=": have >= want, "<=": have <= want, "==": have == want,
            "!=": have != want, ">": have > want, "<": have < want,
        }[match[1] or "=="]  # fmt: skip
        if not outcome:
            return False
    return True


def _libraries(required: Capability, available: Capability) -> list[Comparison]:
    return [_library(wanted, available.libraries) for wanted in required.libraries]


def _library(wanted: Library, there: tuple[Library, ...]) -> Comparison:
    field = f"libraries.{wanted.name}"
    asked = wanted.constraint or "any"
    have = next((library for library in there if library.name.lower() == wanted.name.lower()), None)
    if have is None:
        return Comparison(field, "worse", asked, "none", "", "not installed")
    try:
        fulfilled = version_satisfies(have.version, wanted.constraint)
    except ValueError as error:
        return Comparison(field, "error", asked, have.version, "", f"cannot read the constraint {error}")
    reason = "" if fulfilled else "another version"
    return Comparison(field, "equal" if fulfilled else "worse", asked, have.version, "", reason)


def _localities(required: Capability, available: Capability) -> list[Comparison]:
    found = []
    for wanted in required.localities:
        here = {place.name.lower() for place in available.localities if place.kind.lower() == wanted.kind.lower()}
        inside = wanted.name.lower() in here
        fulfilled = inside != wanted.exclude and (bool(here) or not wanted.exclude)
        asked = ("not " if wanted.exclude else "") + wanted.name
        reason = "" if fulfilled else ("excluded" if inside else "another place" if here else "place not declared")
        had = ", ".join(sorted(here)) or "unknown"
        found.append(Comparison(f"localities.{wanted.kind}", "equal" if fulfilled else "worse", asked, had, "", reason))
    return found


def _storage(required: Capability, available: Capability) -> list[Comparison]:
    there: dict[str, int] = {}
    for item in available.storage:
        there[item.type.lower()] = there.get(item.type.lower(), 0) + item.size
    return [
        _amount(f"storage.{wanted.type}", wanted.size, there.get(wanted.type.lower(), 0), _size)
        if wanted.type.lower() in there
        else Comparison(f"storage.{wanted.type}", "worse", _size(wanted.size), "none", "-" + _size(wanted.size), "none")
        for wanted in required.storage
    ]


def _connectivity(required: Capability, available: Capability) -> list[Comparison]:
    wanted, there = required.connectivity, available.connectivity
    found = _names("connectivity.ports", tuple(map(str, wanted.ports)), tuple(map(str, there.ports)))
    if wanted.bandwidth:
        found.append(_amount("connectivity.bandwidth", wanted.bandwidth, there.bandwidth, quantities.format_bandwidth))
    if wanted.vpn:
        reason = "" if there.vpn else "not in a VPN"
        found.append(
            Comparison(
                "connectivity.vpn", "equal" if there.vpn else "worse", "yes", "yes" if there.vpn else "no", "", reason
            )
        )
    return found


# what a person calls what is measured
_MEASURED = {
    "cpu_hash": "SHA-256 on one core", "memory_copy": "copying of memory", "disk_write": "synced writing to disk",
}  # fmt: skip


def _benchmark(required: Capability, available: Capability) -> list[Comparison]:
    """Compare what a job demands of the benchmark with what the provider says that it measured."""
    found = []
    for name, what in _MEASURED.items():
        wanted, there = getattr(required.benchmark, name), getattr(available.benchmark, name)
        if not wanted:
            continue
        field = f"benchmark.{name}"
        if there:
            compared = _amount(field, wanted, there, quantities.format_speed)
            reason = f"{what}: {compared.reason}" if compared.reason else ""
            found.append(structs.replace(compared, reason=reason))
        else:
            asked = quantities.format_speed(wanted)
            found.append(Comparison(field, "worse", asked, "not measured", "", f"{what} was not measured here"))
    return found


def compare_kycs(required: Capability, available: Capability, subject: str, now: str) -> list[Comparison]:
    """Look for the statement of each verifier that a job names, about this node, signed by the key that it names.

    Both sides do so: the provider before it bids, and the requester, who takes nobody's word for it.
    """
    return [_kyc(wanted, available, subject, now) for wanted in required.kycs]


def _kyc(wanted: Kyc | str, available: Capability, subject: str, now: str) -> Comparison:
    had = ", ".join(kyc if isinstance(kyc, str) else kyc.name for kyc in available.kycs) or "none"
    if isinstance(wanted, str):
        return Comparison("kycs", "worse", wanted, had, "", f"the requester names no key to know {wanted} by")
    reason = f"no statement of {wanted.who} for this provider"
    for kyc in available.kycs:
        if isinstance(kyc, Kyc) and (kyc.name, kyc.verifier) == (wanted.name, wanted.verifier):
            reason = kyc.fault(subject, now)
            if not reason:
                break
    return Comparison("kycs", "worse" if reason else "equal", wanted.who, had, "", reason)


def known_kycs(offer: Capability, verifiers: Mapping[str, str], subject: str, now: str) -> Capability:
    """Return an offer with those statements alone that hold, of the verifiers that the requester knows.

    So a requester's expressions see no name that anybody could have written.
    """
    kept = (
        kyc for kyc in offer.kycs
        if isinstance(kyc, Kyc) and verifiers.get(kyc.name) == kyc.verifier and not kyc.fault(subject, now)
    )  # fmt: skip
    return structs.replace(offer, kycs=tuple(kept))


def _price(required: Capability, available: Capability) -> list[Comparison]:
    limit, cost = quantities.parse_amount(required.price.amount), quantities.parse_amount(available.price.amount)
    asked, had = f"at most {required.price.amount} NTX", f"{available.price.amount} NTX"
    margin = quantities.format_amount(abs(limit - cost)) + " NTX"
    if cost > limit:
        needed, would_do = required.price.amount, available.price.amount
        return [Comparison("price", "worse", asked, had, "-" + margin, f"{margin} above the limit", needed, would_do)]
    return [
        Comparison("price", "better" if cost < limit else "equal", asked, had, "+" + margin if cost < limit else "")
    ]


def _time(required: Capability, available: Capability) -> list[Comparison]:
    wanted, most = required.time.max, available.time.max
    if not most:
        return [Comparison("time", "better", quantities.format_duration(wanted), "no limit")]
    return [_amount("time", wanted, most, quantities.format_duration)]


COMPARATORS: tuple[Comparator, ...] = (
    _executors, _job_types, _cpu, _memory, _disk, _gpus, _libraries, _localities, _storage,
    _connectivity, _benchmark, _price, _time,
)  # fmt: skip
