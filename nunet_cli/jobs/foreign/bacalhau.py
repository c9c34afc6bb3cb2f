"""A Bacalhau job (its declarative form, since version 1.1) as a job specification."""

from __future__ import annotations

from typing import Any

from nunet_cli.errors import UsageError
from nunet_cli.jobs.foreign.mapping import NO_NETWORK, Mapping, Note, binary_size, cores, job_name, pairs, unique, words

ENGINES = {"docker": "docker", "noop": "null"}


def read_bacalhau(document: dict[str, Any]) -> tuple[dict[str, Any], list[Note]]:
    """Return a job specification for a Bacalhau job, and what did not map.

    Raises:
        UsageError: it has no task, or one cannot be read.
    """
    notes: list[Note] = []
    job = Mapping(document, "", notes)
    tasks = job.items("Tasks")
    if not tasks:
        raise UsageError("there are no Tasks in it")
    name = job_name(job.take("Name"), "bacalhau")
    found = [_task(Mapping(task, f"Tasks[{index}]", notes), f"{name}-{index}") for index, task in enumerate(tasks)]
    localities = _localities(job)
    for child in found:
        if localities:
            child["localities"] = localities
    kind, count = str(job.take("Type", "batch")), int(job.take("Count", 1))
    for child in found:
        _set_kind(job, child, kind, count)
    job.refuse({"Meta": "nunet keeps no labels with a job", "Labels": "nunet keeps no labels with a job"})
    for key in ("Namespace", "Priority"):
        job.refuse({key: "there is no central queue"})
    job.rest()
    if len(found) == 1:
        return {**found[0], "name": name}, notes
    unique(child["name"] for child in found)
    return {"name": name, "children": found, "pod": True}, notes


def _set_kind(job: Mapping, child: dict[str, Any], kind: str, count: int) -> None:
    if kind in ("service", "daemon"):
        child["type"] = "service"
        if kind == "daemon":
            job.note("Type", "a daemon runs on every node there, a service here runs on one")
        if count > 1:
            job.note("Count", "one of them is made")
    elif kind == "ops":
        job.note("Type", "an ops job runs on every node that fits, a task here on one")
    elif kind != "batch":
        raise UsageError(f"Type: {kind!r}", hint="one of batch, ops, service, daemon")
    elif count > 1:
        child |= {"type": "batch", "batch": {"count": count}}


def _localities(job: Mapping) -> list[dict[str, Any]]:
    """Return constraints on labels that name a place; the others have no equal."""
    found: list[dict[str, Any]] = []
    for index, item in enumerate(job.items("Constraints")):
        rule = Mapping(item, f"Constraints[{index}]", job.notes)
        key, operator, values = str(rule.take("Key", "")), str(rule.take("Operator", "")), rule.items("Values")
        if operator in ("=", "==", "in") and len(values) == 1:
            found.append({"kind": key, "name": str(values[0])})
        elif operator in ("!=", "notin"):
            found += [{"kind": key, "name": str(value), "exclude": True} for value in values]
        else:
            job.notes.append(Note(rule.path, f"write {key!r} as a constraint: constraints.hard, in CEL"))
    return found


def _task(task: Mapping, fallback: str) -> dict[str, Any]:
    engine = task.mapping("Engine")
    kind = str(engine.take("Type", ""))
    if kind not in ENGINES:
        raise UsageError(f"{engine.at('Type')}: {kind!r}", hint=f"what maps: {', '.join(ENGINES)}")
    found: dict[str, Any] = {
        "name": job_name(task.take("Name"), fallback), "executor": _executor(engine, task, ENGINES[kind]),
        "resources": _resources(task.mapping("Resources")),
    }  # fmt: skip
    timeouts = task.mapping("Timeouts")
    times = {"max_duration": timeouts.take("ExecutionTimeout"), "deadline": timeouts.take("QueueTimeout")}
    times = {key: f"{value}s" for key, value in times.items() if value}
    if times:
        found["time"] = times
    timeouts.refuse({"TotalTimeout": "there are two limits here: time.deadline to begin, time.max_duration to run"})
    timeouts.rest()
    inputs = _inputs(task)
    if inputs:
        found["inputs"] = inputs
    _result_paths(task, found)
    network = task.mapping("Network")
    if str(network.take("Type", "None")).lower() != "none":
        network.note("Type", NO_NETWORK)
    network.refuse({"Domains": NO_NETWORK, "Ports": NO_NETWORK})
    task.refuse({"Publisher": "outputs come back to the requester", "Meta": "nunet keeps no labels with a job"})
    task.rest()
    return found


def _executor(engine: Mapping, task: Mapping, kind: str) -> dict[str, Any]:
    params = engine.mapping("Params")
    found: dict[str, Any] = {"type": kind}
    if kind == "docker":
        found["image"] = str(params.take("Image", ""))
    for ours, theirs in (("entrypoint", "Entrypoint"), ("command", "Parameters")):
        if params.value.get(theirs):
            found[ours] = words(params.take(theirs), params.at(theirs))
    env = pairs(params.take("EnvironmentVariables", []), params.at("EnvironmentVariables"))
    env |= pairs(task.take("Env", {}), task.at("Env"))
    if env:
        found["env"] = env
    params.refuse(
        {"WorkingDirectory": "a job works in /job, where its inputs are; `executor.workdir` is a folder in it"}
    )
    params.rest()
    engine.rest()
    return found


def _resources(given: Mapping) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if given.value.get("CPU"):
        found["cpu"] = cores(given.take("CPU"), given.at("CPU"))
    for ours, theirs in (("memory", "Memory"), ("disk", "Disk")):
        if given.value.get(theirs):
            found[ours] = binary_size(given.take(theirs), given.at(theirs))
    gpus = str(given.take("GPU", "0") or "0")
    if not gpus.isdigit():
        raise UsageError(f"{given.at('GPU')}: not a number of GPUs: {gpus!r}")
    if int(gpus):
        found["gpus"] = [{} for _ in range(int(gpus))]
    given.rest()
    return found


def _inputs(task: Mapping) -> list[dict[str, str]]:
    found = []
    for index, item in enumerate(task.items("InputSources")):
        entry = Mapping(item, f"{task.path}.InputSources[{index}]", task.notes)
        source = entry.mapping("Source")
        kind = str(source.take("Type", ""))
        params = source.mapping("Params")
        target = str(entry.take("Target", "")).lstrip("/")
        if kind not in ("localDirectory", "local"):
            task.notes.append(Note(source.at("Type"), f"{kind}: fetch it first, and give it as an input"))
            continue
        path = str(params.take("SourcePath", ""))
        found.append({"path": path, **({"to": target} if target else {})})
        task.notes.append(Note(entry.path, f"the job finds it, a file or a folder, at /job/{target or path}"))
    return found


def _result_paths(task: Mapping, job: dict[str, Any]) -> None:
    outputs = []
    for index, item in enumerate(task.items("ResultPaths")):
        entry = Mapping(item, f"{task.path}.ResultPaths[{index}]", task.notes)
        path = str(entry.take("Path", ""))
        if path.startswith("/job/"):
            outputs.append({"path": path.removeprefix("/job/"), "name": str(entry.take("Name", ""))})
        else:
            task.notes.append(Note(entry.path, f"{path!r}: outputs are files and folders in /job: see `outputs`"))
    if outputs:
        job["outputs"] = outputs
