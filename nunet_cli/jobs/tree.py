"""The shape of a job: children, links and pods, and what they add up to (seed 1: a job is a recursive structure)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from nunet_cli import quantities
from nunet_cli.errors import UsageError
from nunet_cli.jobs.globs import Pattern, is_glob, split_glob
from nunet_cli.jobs.spec import HERE, JobLink, JobSpec, OutputSpec, is_loose, output_name, total_price
from nunet_cli.records.capability import Capability, Connectivity, Cpu, PriceBid, Resources, Speeds, TimeCapability
from nunet_cli.records.kyc import Kyc

MAX_DEPTH = 8
# bytes of outputs that a program may have in any case
LEAST_ROOM = 2**20
# items of batches are counted
MAX_JOBS = 12_000


@dataclass(frozen=True)
class Arrangement:
    """The children of a group as they are orchestrated: single jobs and whole pods, with the links between them.

    `child_of` names the child, or the pod in its place, that each child is in; `links` keep the children's own names.
    """

    children: dict[str, JobSpec]
    links: tuple[JobLink, ...]
    child_of: dict[str, str]

    def before(self, child: str) -> list[tuple[str, JobLink]]:
        """Return the children that one waits for, each with the link that says so."""
        return [(self.child_of[link.from_], link) for link in self.links if self.child_of[link.to] == child]


def is_group(spec: JobSpec) -> bool:
    """Say whether a job is orchestrated as several: a group that is no pod, a batch, or a recurring one."""
    return spec.type in ("batch", "recurring") or (bool(spec.children) and not spec.pod)


def programs(spec: JobSpec) -> Iterator[JobSpec]:
    """Yield the jobs in a tree that have a program."""
    if spec.executor is not None:
        yield spec
    for child in spec.children:
        yield from programs(child)


def images_of(spec: JobSpec) -> tuple[str, ...]:
    """Return the images that a job or a pod runs, each once."""
    found = (part.executor.image for part in programs(spec) if part.executor is not None and part.executor.image)
    return tuple(dict.fromkeys(found))


def count_jobs(spec: JobSpec, depth: int = 0) -> int:
    """Return how many jobs a tree holds, batches counted in full.

    Raises:
        UsageError: it is deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise UsageError(f"children may be nested {MAX_DEPTH} deep", details={"path": "children"})
    own = spec.batch.count if spec.batch is not None else 1
    return own + sum(count_jobs(child, depth + 1) for child in spec.children)


def arrange(spec: JobSpec) -> Arrangement:
    """Return a group's children, with one job in the place of each pod."""
    pod_of = {name: pod.id for pod in spec.pods for name in pod.jobs}
    child_of = {child.name: pod_of.get(child.name, child.name) for child in spec.children}
    found: dict[str, JobSpec] = {}
    inside: defaultdict[str, list[JobLink]] = defaultdict(list)
    for link in spec.links:
        if child_of[link.from_] == child_of[link.to]:
            inside[child_of[link.to]].append(link)
    together: defaultdict[str, list[JobSpec]] = defaultdict(list)
    for child in spec.children:
        together[child_of[child.name]].append(child)
    for child in spec.children:
        name = child_of[child.name]
        if name == child.name and child.name not in pod_of:
            found[name] = child
        elif name not in found:
            found[name] = make_pod(name, tuple(together[name]), tuple(inside[name]))
    outer = tuple(link for link in spec.links if child_of[link.from_] != child_of[link.to])
    return Arrangement(found, outer, child_of)


def make_pod(name: str, members: tuple[JobSpec, ...], links: tuple[JobLink, ...]) -> JobSpec:
    """Return the job that stands for a pod: it has its members' constraints, and runs as long as their longest path."""
    first = members[0]
    pod = JobSpec(
        name=name, children=members, links=links, pod=True, resources=pod_resources(members),
        verify=first.verify, retry=first.retry,
        constraints=structs.replace(
            first.constraints,
            hard=tuple(dict.fromkeys(rule for member in members for rule in member.constraints.hard)),
            soft=tuple(dict.fromkeys(wish for member in members for wish in member.constraints.soft)),
        ),
    )  # fmt: skip
    starts = [member.time.start for member in members if member.time.start]
    deadlines = [member.time.deadline for member in members if member.time.deadline]
    time = structs.replace(
        pod.time, max_duration=duration(pod), start=max(starts, default=""), deadline=min(deadlines, default="")
    )
    return structs.replace(pod, time=time)


def pod_resources(members: tuple[JobSpec, ...]) -> Resources:
    """Return the sum of what the members of a pod need (seed 1: `Pod`)."""
    total = Resources()
    for member in members:
        total = total.plus(member.resources.as_run())
    mhz = max(member.resources.cpu.mhz for member in members)
    arch = next((m.resources.cpu.arch for m in members if m.resources.cpu.arch), "")
    model = next((m.resources.cpu.model for m in members if m.resources.cpu.model), "")
    return structs.replace(total, cpu=Cpu(total.cpu.cores, mhz, arch, model))


def duration(spec: JobSpec) -> int:
    """Return the seconds that a job or pod may run: for a pod, those of its longest path."""
    if not spec.pod:
        return spec.time.max_duration
    longest: dict[str, int] = {}
    by_name = {child.name: child for child in spec.children}
    earlier: defaultdict[str, list[str]] = defaultdict(list)
    for link in spec.links:
        if link.kind != "colocate":
            earlier[link.to].append(link.from_)
    for name in order(list(by_name), [(link.from_, link.to) for link in spec.links]):
        before = max((longest[source] for source in earlier[name]), default=0)
        longest[name] = before + by_name[name].time.max_duration
    return max(longest.values())


def order(names: list[str], edges: list[tuple[str, str]]) -> list[str]:
    """Return names so that every edge goes forward; what is free keeps its order.

    Raises:
        UsageError: the edges run in a circle; the message names it.
    """
    place = {name: index for index, name in enumerate(names)}
    inner = [(source, to) for source, to in edges if source in place and to in place]
    waits, after = Counter(to for _, to in inner), defaultdict[str, list[str]](list)
    for source, to in inner:
        after[source].append(to)
    ready, done = [name for name in names if not waits[name]], list[str]()
    while ready:
        done += ready
        freed = []
        for to in (to for name in ready for to in after[name]):
            waits[to] -= 1
            if not waits[to]:
                freed.append(to)
        ready = sorted(freed, key=place.__getitem__)
    if len(done) < len(names):
        circle = _circle([name for name in names if waits[name]], inner)
        raise UsageError(f"the links run in a circle: {' → '.join(circle)}", details={"path": "links"})
    return done


def _circle(left: list[str], edges: list[tuple[str, str]]) -> list[str]:
    before, waiting = dict[str, str](), set(left)
    for source, to in edges:
        if source in waiting:
            before.setdefault(to, source)
    path = [left[0]]
    while before[path[-1]] not in path:
        path.append(before[path[-1]])
    first = before[path[-1]]
    return [*path[path.index(first) :], first][::-1]


def output_names(spec: JobSpec) -> list[str]:
    """Return the names that the outputs of a job or pod come back under; a pod's have the member's name before them."""
    return [name for name, _ in _outputs(spec)]


def output_room(spec: JobSpec) -> int:
    """Return the bytes that the outputs of a job or pod may have: they lie on the disk that its programs asked for.

    A folder or pattern is as large as its content, with the list of names in it.
    """
    return sum(max(part.resources.disk, LEAST_ROOM) for part in programs(spec))


def patterns_of(spec: JobSpec) -> dict[str, Pattern]:
    """Return those outputs of a job or pod that are patterns: name → what they match."""
    return {name: Pattern(split_glob(item.path)[1]) for name, item in _outputs(spec) if is_glob(item.path)}


def loose_names(spec: JobSpec) -> set[str]:
    """Return the names of those outputs of a job or pod whose files come back with no folder around them."""
    return {name for name, item in _outputs(spec) if is_loose(item)}


def _outputs(spec: JobSpec) -> list[tuple[str, OutputSpec]]:
    if spec.executor is not None:
        return [(output_name(item), item) for item in spec.outputs]
    return [(f"{child.name}/{output_name(item)}", item) for child in spec.children for item in child.outputs]


def place_of(link: JobLink, name: str, kind: str) -> str:
    """Return where in a job's folder something goes that a data link brings.

    Args:
        link: what brings it.
        name: the output's name at its job.
        kind: `file`, `folder`, or `files` for those of a pattern, which have no folder of their own.
    """
    if link.path and link.output:
        return link.path
    inside = name.rpartition("/")[0] if kind == "files" else name
    return "/".join(part for part in (link.path, inside) if part) or HERE


def required_capability(spec: JobSpec, verifiers: Mapping[str, str] | None = None) -> Capability:
    """Return what a provider must have for a job or a pod (seed 2: `requiredCapability`).

    The price in it is the most that the requester pays for the whole job: a rate is multiplied by the duration.

    Args:
        spec: the job.
        verifiers: the DID of each verifier that the job may name; who is not among them stays a name.
    """
    parts, verifiers = list(programs(spec)), verifiers or {}

    def union(pick: Callable[[JobSpec], tuple[Any, ...]]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(item for part in parts for item in pick(part)))

    return Capability(
        executors=tuple(dict.fromkeys(part.executor.type for part in parts if part.executor is not None)),
        job_types=tuple(dict.fromkeys(part.type for part in parts)),
        resources=pod_resources(spec.children) if spec.pod else spec.resources.as_run(),
        libraries=union(lambda part: part.libraries),
        localities=union(lambda part: part.localities),
        storage=union(lambda part: part.storage),
        connectivity=Connectivity(
            ports=union(lambda part: part.connectivity.ports),
            bandwidth=max(part.connectivity.bandwidth for part in parts),
            vpn=any(part.connectivity.vpn for part in parts),
        ),
        benchmark=Speeds(*(max(getattr(part.benchmark, name) for part in parts) for name in Speeds.__struct_fields__)),
        price=PriceBid(amount=quantities.format_amount(price_limit(spec))),
        time=TimeCapability(max=duration(spec)),
        kycs=tuple(Kyc(name, verifiers[name]) if name in verifiers else name for name in union(lambda part: part.kycs)),
    )


def price_limit(spec: JobSpec) -> int:
    """Return the most that the whole job may cost, in micro-NTX; for a group, that of all its children."""
    if spec.children:
        return sum(price_limit(child) for child in spec.children)
    micro, unit = quantities.parse_price(spec.price.max)
    return total_price(micro, unit, spec.time.max_duration) * (spec.batch.count if spec.batch is not None else 1)
