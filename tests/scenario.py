"""Ten providers and fifty jobs, and a matcher of its own that says by brute force who must get which.

The matcher shares no code with the product: it reads the scenario as a person would.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

MIB = 2**20
SECONDS = {"": None, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Provider:
    """A machine: `price` is for the job, or for each `unit`; `accepts` is a rule in CEL and the same in Python."""

    name: str
    cores: float
    memory: int
    price: str
    unit: str
    country: str
    max_duration: int
    ssd: int
    rule: str = ""


def providers() -> list[Provider]:
    """Return ten machines that differ in everything."""
    return [
        Provider("p0", 0.5, 256 * MIB, "0.01", "", "SE", 600, 0),
        Provider("p1", 0.5, 512 * MIB, "0.66", "h", "SE", 3600, 1024 * MIB),
        Provider("p2", 1.0, 512 * MIB, "0.05", "", "NO", 3600, 0),
        Provider("p3", 1.0, 1024 * MIB, "0.013", "min", "NO", 7200, 2048 * MIB),
        Provider("p4", 1.5, 1024 * MIB, "0.11", "", "DK", 7200, 4096 * MIB, "job.memory >= quantity('128MiB')"),
        Provider("p5", 1.5, 2048 * MIB, "0.17", "", "SE", 10_000, 0),
        Provider("p6", 1.5, 2048 * MIB, "1.3", "h", "FI", 10_000, 8192 * MIB, "price >= 0.02"),
        Provider("p7", 1.0, 3072 * MIB, "0.29", "", "DK", 10_000, 1024 * MIB),
        Provider("p8", 1.5, 3072 * MIB, "0.37", "", "FI", 20_000, 0, "job.time.max <= 5000"),
        Provider("p9", 1.5, 4096 * MIB, "0.9", "", "NO", 20_000, 16_384 * MIB),
    ]


def accepts(provider: Provider, job: dict[str, Any], cost: Fraction) -> bool:
    """Say what the providers' rules say, in Python."""
    if provider.name == "p4":
        return bool(job["resources"]["memory"] >= 128 * MIB)
    if provider.name == "p6":
        return cost >= Fraction(2, 100)
    if provider.name == "p8":
        return bool(job["time"]["max_duration"] <= 5000)
    return True


def jobs(seed: int = 1, count: int = 50) -> list[dict[str, Any]]:
    """Return jobs with mixed constraints."""
    chance = Random(seed)
    found = []
    for number in range(count):
        job: dict[str, Any] = {
            "name": f"job-{number}", "executor": {"type": "null"},
            "resources": {
                "cpu": {"cores": chance.choice([0.2, 0.5, 0.8, 1.2])},
                "memory": chance.choice([64, 200, 400, 900, 1900, 2900, 3900]) * MIB, "disk": MIB,
            },
            "time": {"max_duration": chance.choice([60, 900, 4000, 9000])},
            "price": chance.choice(["0.04", "0.2", "0.5", "2"]),
        }  # fmt: skip
        kind = chance.randrange(5)
        country = chance.choice(["SE", "NO", "DK", "FI"])
        if kind == 0:
            job["localities"] = [{"kind": "country", "name": country}]
        elif kind == 1:
            job["localities"] = [{"kind": "country", "name": country, "exclude": True}]
        elif kind == 2:
            job["constraints"] = {"hard": [f"node.localities.exists(l, l.name in ['{country}', 'SE'])"]}
        elif kind == 3:
            job["storage"] = [{"type": "ssd", "size": chance.choice([512, 1500, 5000]) * MIB}]
        found.append(job)
    return found


def cost_of(provider: Provider, job: dict[str, Any]) -> Fraction:
    """Return what a job costs at most at a provider, in NTX, rounded up to a millionth."""
    price = Fraction(provider.price)
    per = SECONDS[provider.unit]
    if per is not None:
        price = price * job["time"]["max_duration"] / per
    return Fraction(-((-price * 10**6) // 1), 10**6)


def may_run(provider: Provider, job: dict[str, Any]) -> bool:
    """Say whether a provider would bid for a job."""
    need, cost = job["resources"], cost_of(provider, job)
    places = job.get("localities", [])
    countries = job.get("constraints", {}).get("hard", [])
    storage = job.get("storage", [])
    return (
        need["cpu"]["cores"] <= provider.cores
        and need["memory"] <= provider.memory
        and job["time"]["max_duration"] <= provider.max_duration
        and cost <= Fraction(job["price"])
        and all((place["name"] == provider.country) != place.get("exclude", False) for place in places)
        and all(f"'{provider.country}'" in rule for rule in countries)
        and all(wanted["size"] <= provider.ssd for wanted in storage)
        and accepts(provider, job, cost)
    )


def expected(job: dict[str, Any]) -> str | None:
    """Return who must get a job when all are idle: the cheapest that may run it, or nobody."""
    able = [provider for provider in providers() if may_run(provider, job)]
    return min(able, key=lambda provider: cost_of(provider, job)).name if able else None
