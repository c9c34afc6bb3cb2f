"""A Docker Compose file (the Compose Specification) as a job: each service is one, several are a group with links."""

from __future__ import annotations

from typing import Any

from nunet_cli import quantities
from nunet_cli.errors import UsageError
from nunet_cli.jobs.foreign.mapping import NO_NETWORK, Mapping, Note, binary_size, cores, job_name, pairs, unique, words

RESTARTS = {"no": "never", "on-failure": "on_failure", "always": "always", "unless-stopped": "always"}
REFUSED = {
    "build": "an image must exist: build and push it, or give it to the provider",
    "ports": NO_NETWORK, "expose": NO_NETWORK, "networks": NO_NETWORK, "network_mode": NO_NETWORK, "links": NO_NETWORK,
    "dns": NO_NETWORK, "extra_hosts": NO_NETWORK, "hostname": NO_NETWORK,
    "privileged": "a job has no rights beyond its sandbox", "cap_add": "a job has no capabilities",
    "devices": "a job sees no devices but the GPUs that it asks for",
    "user": "the provider chooses a user without rights",
    "env_file": "put the variables into `environment`",
    "secrets": "a provider could read them: nunet keeps nothing from the machine that runs a job",
    "configs": "give the files as inputs",
}  # fmt: skip
QUIET = {"container_name", "cap_drop", "read_only", "security_opt", "init", "tty", "stdin_open", "pull_policy"}


def read_compose(document: dict[str, Any]) -> tuple[dict[str, Any], list[Note]]:
    """Return a job specification for a Compose file, and what did not map.

    Raises:
        UsageError: there are no services, or one cannot be read.
    """
    notes: list[Note] = []
    whole = Mapping(document, "", notes)
    services = whole.mapping("services")
    if not services.value:
        raise UsageError("there are no services in it")
    unique(job_name(name, "service") for name in services.value)
    children: list[dict[str, Any]] = []
    waits: list[tuple[dict[str, Any], str, list[str]]] = []
    for key in services.value:
        child, after = _service(key, services.mapping(key))
        children.append(child)
        waits.append((child, services.at(key), after))
    links = _links(children, waits, notes)
    whole.refuse(
        {"networks": NO_NETWORK, "volumes": "nothing outlives a job but its outputs", "secrets": REFUSED["secrets"]}
    )
    name = job_name(whole.take("name"), "compose")
    whole.taken |= {"version", *(key for key in whole.value if str(key).startswith("x-"))}
    whole.rest()
    if len(children) == 1:
        return children[0], notes
    return {"name": name, "children": children, **({"links": links} if links else {})}, notes


def _service(key: str, service: Mapping) -> tuple[dict[str, Any], list[str]]:
    """Return a service as a job, and the services that it waits for."""
    image = service.take("image")
    if not image:
        raise UsageError(f"{service.path}: it has no image", hint=REFUSED["build"])
    executor: dict[str, Any] = {"type": "docker", "image": str(image)}
    for name in ("entrypoint", "command"):
        if service.value.get(name):
            executor[name] = words(service.take(name), service.at(name))
    if service.value.get("environment"):
        executor["env"] = pairs(service.take("environment"), service.at("environment"))
    if service.value.get("working_dir"):
        service.note("working_dir", "a job works in /job, where its inputs are; `executor.workdir` is a folder in it")
    job: dict[str, Any] = {"name": job_name(key, "service"), "executor": executor, "resources": _resources(service)}
    inputs = _volumes(service)
    if inputs:
        job["inputs"] = inputs
    kept_up = service.value.get("restart") not in (None, "no", False)
    if kept_up or service.value.get("healthcheck") or service.value.get("ports"):
        job |= {"type": "service", "service": _kept_up(service)}
    elif "restart" in service.value:
        service.taken.add("restart")
    after = _waits_for(service)
    service.refuse(REFUSED)
    service.taken |= QUIET
    service.rest()
    return job, after


def _resources(service: Mapping) -> dict[str, Any]:
    deploy = service.mapping("deploy")
    resources = deploy.mapping("resources")
    found: dict[str, Any] = {}
    reserved, limits = resources.mapping("reservations"), resources.mapping("limits")
    for source, memory in ((reserved, "memory"), (limits, "memory"), (service, "mem_limit")):
        if source.value.get("cpus") is not None:
            found["cpu"] = cores(source.take("cpus"), source.at("cpus"))
        if source.value.get(memory) is not None:
            found["memory"] = binary_size(source.take(memory), source.at(memory))
    count = 0
    for place, device in enumerate(reserved.items("devices")):
        wanted = Mapping(device, f"{reserved.at('devices')}[{place}]", service.notes)
        if "gpu" not in wanted.items("capabilities"):
            wanted.note("capabilities", REFUSED["devices"])
        count += wanted.take("count", 1) if isinstance(wanted.take("count", 1), int) else 1
        wanted.taken.add("driver")
        wanted.rest()
    if count:
        found["gpus"] = [{} for _ in range(count)]
    if deploy.value.get("replicas") not in (None, 1):
        deploy.note("replicas", "one of them is made; a `batch` runs several copies")
    for part in (reserved, limits, resources, deploy):
        part.taken.add("replicas")
        part.rest()
    return found


def _volumes(service: Mapping) -> list[dict[str, str]]:
    """Return files and folders that are bound into the container as inputs."""
    inputs = []
    for place, volume in enumerate(service.items("volumes")):
        source, target = "", ""
        if isinstance(volume, str):
            source, _, rest = volume.partition(":")
            target = rest.partition(":")[0]
        elif isinstance(volume, dict) and volume.get("type", "bind") == "bind":
            source, target = str(volume.get("source", "")), str(volume.get("target", ""))
        path = f"{service.at('volumes')}[{place}]"
        if not source.startswith((".", "/", "~")):
            service.notes.append(Note(path, "only files and folders become inputs: nothing is kept between jobs"))
            continue
        inside = target.lstrip("/")
        inputs.append({"path": source, "to": inside})
        service.notes.append(Note(path, f"the job finds a copy at /job/{inside}; changes do not come back"))
    return inputs


def _kept_up(service: Mapping) -> dict[str, Any]:
    text = str(service.take("restart", "no"))
    policy, _, count = text.partition(":")
    if policy not in RESTARTS:
        raise UsageError(f"{service.at('restart')}: {text!r}")
    found: dict[str, Any] = {"restart": RESTARTS[policy]}
    if count:
        found["max_restarts"] = int(count) if count.isdigit() else 10
    health = service.mapping("healthcheck")
    test = health.take("test")
    if test and not health.take("disable", False):
        command = words(test, health.at("test")) if isinstance(test, list) else ["CMD-SHELL", str(test)]
        kind, *rest = command
        if kind == "CMD-SHELL":
            found["health"] = {"command": ["sh", "-c", *rest]}
        elif kind == "CMD":
            found["health"] = {"command": rest}
    for key in ("interval", "timeout", "start_period"):
        if health.value.get(key) is not None and "health" in found:
            value = health.take(key)
            # a part of a second is no interval here
            found["health"][key] = max(1, quantities.parse_duration(value)) if not str(value).endswith("ms") else 1
    if health.value.get("retries") is not None and "health" in found:
        found["health"]["retries"] = int(health.take("retries"))
    health.rest()
    return found


def _waits_for(service: Mapping) -> list[str]:
    found = service.take("depends_on", [])
    return [job_name(name, "service") for name in (found if isinstance(found, (list, dict)) else [found])]


def _links(
    children: list[dict[str, Any]], waits: list[tuple[dict[str, Any], str, list[str]]], notes: list[Note]
) -> list[dict[str, str]]:
    """Return a link for each service that waits for one that ends; one that is kept up is waited for by nobody."""
    kept_up = {child["name"] for child in children if child.get("type") == "service"}
    links = []
    for child, path, after in waits:
        for name in after:
            if name in kept_up:
                notes.append(Note(f"{path}.depends_on", f"{name} is kept up, and cannot be waited for"))
                continue
            links.append({"from": name, "to": child["name"]})
            notes.append(Note(f"{path}.depends_on", f"it starts when {name} has ended and is settled"))
    return links
