"""Constraints and preferences as CEL expressions: checked when they are set, evaluated within bounds.

The grammar is the Common Expression Language's. What an expression may name is in `VARIABLES`. Its length is bounded,
and what it costs at most is found before it is evaluated (see `budget`): what is over that is refused with the column,
and the worst that was found below that takes 40 ms.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from nunet_cli import quantities
from nunet_cli.errors import UsageError
from nunet_cli.jobs import budget
from nunet_cli.records.capability import (
    Capability,
    Connectivity,
    Cpu,
    Gpu,
    Library,
    Locality,
    PriceBid,
    Resources,
    Speeds,
    Storage,
    TimeCapability,
)

if TYPE_CHECKING:
    from cel import Program

MAX_LENGTH = 1000
UNKNOWN_DISTANCE = 1e9
_POSITION = re.compile(r"<input>:(\d+):(\d+): (?:Syntax error: )?([^\n]*)")
_PATH = re.compile(r"\b(?:node|job|bid|peer|linked|machine)(?:\.[a-z_]+)+|\bprice\b")

# what of the names is the same for as long as the job and its price are
_FIXED = frozenset({"job", "price"})

Variables = dict[str, Any]


class ExpressionError(UsageError):
    """An expression that is wrong, or that does not apply; `details` hold the expression and the column."""

    default_code = "bad_expression"


def describe(capability: Capability) -> Variables:
    """Return a capability as expressions see it: cores and frequencies are doubles, sizes integers in bytes.

    Of `kycs` they see the names.
    """
    view: Variables = msgspec.to_builtins(capability)
    resources = view.pop("resources")
    cpu = resources["cpu"]
    cpu["cores"], cpu["mhz"] = float(cpu["cores"]), float(cpu["mhz"])
    kycs = [kyc if isinstance(kyc, str) else kyc.name for kyc in capability.kycs]
    return {**view, **resources, "cpu": cpu, "kycs": kycs}


def variables(
    *, node: Capability, job: Capability, job_name: str = "", price: int = 0, peer_did: str = "",
    rtt: float | None = None, start_in: float = 0.0, load: float = 0.0, linked: Capability | None = None,
    machine: Variables | None = None,
) -> Variables:  # fmt: skip
    """Return what an expression may name.

    Args:
        node: what the provider has left.
        job: what the job needs.
        job_name: the job's name.
        price: what the whole job costs, in micro-NTX; `price` in an expression is NTX.
        peer_did: the other party.
        rtt: its measured round-trip time in seconds; None where it was never measured.
        start_in: seconds until the provider can start.
        load: the share of the provider that is taken, 0 to 1.
        linked: what the provider of the linked job has, for the constraint of a link.
        machine: what its monitor sees on the provider's machine, whoever uses it; for the provider's own rules.
    """
    distance = UNKNOWN_DISTANCE if rtt is None else rtt * 1000.0
    return {
        "node": describe(node), "job": {**describe(job), "name": job_name}, "price": price / quantities.MICRO,
        "peer": {"did": peer_did, "rtt_ms": distance}, "bid": {"start_in": start_in, "load": load},
        "linked": describe(linked or node),
        "machine": machine or {"cpu_load": 0.0, "memory_free": 0, "disk_free": 0},
    }  # fmt: skip


@lru_cache(maxsize=1)
def _sample() -> Variables:
    whole = Capability(
        executors=("docker",), job_types=("task",),
        resources=Resources(Cpu(4, 3000, "x86_64", "any"), 2**33, 2**36, (Gpu("NVIDIA", "any", 2**34),)),
        libraries=(Library("python", "3.11.2"),), localities=(Locality("country", "SE"),),
        storage=(Storage("ssd", 2**36),), connectivity=Connectivity((8080,), 10**8, True), price=PriceBid(),
        time=TimeCapability(), kycs=("any",), benchmark=Speeds(5 * 10**8, 10**10, 10**9),
    )  # fmt: skip
    return variables(node=whole, job=whole, job_name="sample", price=1_000_000, peer_did="did:key:z", rtt=0.001)


VARIABLES = tuple(_sample())
FUNCTIONS = {"quantity": lambda text: quantities.parse_size(str(text)[:40])}


@lru_cache(maxsize=1024)
def _compile(text: str) -> Program:
    import cel

    return cel.compile(text)


def check(text: str, *, kind: str = "bool") -> int:
    """Refuse an expression that cannot be right, before it is kept or sent; return how many steps it takes at most.

    Args:
        text: the expression.
        kind: `bool` for a constraint or rule, `number` for a rank (true counts 1, false 0).

    Raises:
        ExpressionError: too long, not CEL, an unknown name, or of another type; the message has the column.
    """
    cost = _check_bounds(text, _sample())
    try:
        program = _compile(text)
    except ValueError as error:
        found = _POSITION.search(str(error))
        column, what = (int(found[2]), found[3]) if found else (1, "cannot be read")
        raise _wrong(text, column, what.split(" expecting {")[0]) from None
    for name in sorted(program.variables()):
        if name not in VARIABLES and name not in cost.variables:
            raise _wrong(text, _column(text, name), f"unknown name {name!r}", f"known: {', '.join(VARIABLES)}")
    try:
        value = _run(program, _sample())
    except KeyError as error:
        name = str(error.args[0])
        raise _wrong(text, _column(text, name), f"there is no field {name!r} here") from None
    except BaseException as error:
        raise _unevaluated(text, error) from None
    if kind == "bool" and not isinstance(value, bool):
        raise _wrong(text, 1, f"it gives {_kind(value)}, not true or false")
    if kind == "number" and not isinstance(value, (bool, int, float)):
        raise _wrong(text, 1, f"it gives {_kind(value)}, not a number")
    return cost.steps


def is_live(text: str) -> bool:
    """Say whether what an expression names may be another from one moment to the next, for one job at one price."""
    try:
        return not _FIXED.issuperset(_compile(text).variables())
    except ValueError:
        # it says what is wrong with it when it is evaluated
        return True


def steps(text: str, names: Variables) -> int:
    """Return how many steps an expression takes at most; none where it is refused before it is evaluated."""
    try:
        return _check_bounds(text, names).steps
    except ExpressionError:
        return 0


def _check_bounds(text: str, names: Variables) -> budget.Cost:
    if not text.strip():
        raise _wrong(text, 1, "it is empty")
    if len(text) > MAX_LENGTH:
        raise _wrong(text, MAX_LENGTH, f"it has {len(text)} characters, at most {MAX_LENGTH} are allowed")
    if max(text.count("?"), text.count("!")) > budget.MAX_DEPTH:
        raise _wrong(text, 1, "it is nested too deeply")
    try:
        return budget.cost(text, names)
    except budget.TooMuch as error:
        raise _wrong(text, error.position + 1, error.reason) from None


def _run(program: Program, names: Variables) -> Any:
    import cel

    # to hand all of them over takes a hundred times as long as to evaluate
    named = {name: names[name] for name in program.variables() if name in names}
    return program.execute(cel.Context(variables=named, functions=FUNCTIONS))


def _evaluate(text: str, names: Variables) -> Any:
    """Evaluate an expression that may come from a peer.

    Raises:
        ExpressionError: it is wrong, or cannot be evaluated with these values.
    """
    _check_bounds(text, names)
    try:
        return _run(_compile(text), names)
    except KeyError as error:
        raise _wrong(text, _column(text, str(error.args[0])), f"there is no field {error.args[0]!r}") from None
    except BaseException as error:
        raise _unevaluated(text, error) from None


def _unevaluated(text: str, error: BaseException) -> BaseException:
    """Return what the library raised as an error of ours; what is neither an error nor a panic of its goes on."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return error
    return _wrong(text, 1, str(error).split(". ")[0].split("\n")[0][:300])


def holds(text: str, names: Variables) -> bool:
    """Say whether a constraint or rule holds.

    Raises:
        ExpressionError: it cannot be evaluated, or does not give true or false.
    """
    value = _evaluate(text, names)
    if not isinstance(value, bool):
        raise _wrong(text, 1, f"it gives {_kind(value)}, not true or false")
    return value


def number(text: str, names: Variables) -> float:
    """Return the value of a rank, held between 0 and 1.

    Raises:
        ExpressionError: it cannot be evaluated, or does not give a number.
    """
    value = _evaluate(text, names)
    if not isinstance(value, (bool, int, float)) or value != value:
        raise _wrong(text, 1, f"it gives {_kind(value)}, not a number")
    return min(1.0, max(0.0, float(value)))


def values_in(text: str, names: Variables) -> str:
    """Return the values of what an expression names, for people: `node.memory = 4 GiB`."""
    found = []
    for path in dict.fromkeys(_PATH.findall(text)):
        value: Any = names
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, (bool, int, float, str)):
            size = path.rsplit(".", 1)[-1] in ("memory", "disk", "vram")
            written = quantities.format_size(value) if size and isinstance(value, int) else f"{value}"
            found.append(f"{path} = {written}")
    return ", ".join(found)[:1000]


def _column(text: str, name: str) -> int:
    found = re.search(rf"\b{re.escape(name)}\b", text)
    return found.start() + 1 if found else 1


def _kind(value: Any) -> str:
    return {str: "a text", list: "a list", dict: "a mapping", bool: "true or false"}.get(type(value), "a number")


def _wrong(text: str, column: int, what: str, hint: str = "") -> ExpressionError:
    return ExpressionError(
        f"column {column}: {what}", hint=hint or "CEL, for example: node.cpu.cores >= 4.0 && price < 2.0",
        details={"expression": text[:MAX_LENGTH], "column": column},
    )  # fmt: skip
