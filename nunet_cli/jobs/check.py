"""The rules of a job specification that span several fields, and reading one that came from a peer or the store."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from nunet_cli import units
from nunet_cli.errors import UsageError
from nunet_cli.jobs import expressions
from nunet_cli.jobs.spec import MAX_SPEC_BYTES, JobSpec, ScheduleSpec, is_safe_path, output_name
from nunet_cli.jobs.tree import MAX_JOBS, Arrangement, arrange, count_jobs, order, price_limit


def _wrong(path: str, message: str, hint: str = "") -> UsageError:
    return UsageError(message, hint=hint, details={"path": path})


def check_spec(spec: JobSpec, where: str = "") -> None:
    """Check the rules that span several fields, also those of the children.

    Args:
        spec: the job.
        where: the path of the job in the document, with a dot at its end; empty for the whole.

    Raises:
        UsageError: with `details["path"]` naming the field, for example `children[2].executor.image`.
    """
    if not where:
        count = count_jobs(spec)
        if count > MAX_JOBS:
            raise _wrong("children", f"a job may have {MAX_JOBS} children in all, this one has {count}")
    if (spec.executor is None) == (not spec.children):
        raise _wrong(
            where + "executor", "a job needs either `executor` or `children`", "add executor: {type: process, …}"
        )
    _check_kind(spec, where)
    _check_expressions(spec, where)
    if spec.children:
        _check_group(spec, where)
        return
    _check_executor(spec, where)
    _check_files(spec, where)
    _check_times(spec, where)
    price_limit(spec)


def _check_expressions(spec: JobSpec, where: str) -> None:
    texts = [(f"constraints.hard[{i}]", text, "bool") for i, text in enumerate(spec.constraints.hard)]
    texts += [(f"constraints.soft[{i}].rank", wish.rank, "number") for i, wish in enumerate(spec.constraints.soft)]
    texts += [
        (f"links[{i}].constraint", link.constraint, "bool") for i, link in enumerate(spec.links) if link.constraint
    ]
    for path, text, kind in texts:
        try:
            expressions.check(text, kind=kind)
        except UsageError as error:
            raise _wrong(where + path, error.message, error.hint) from None


def _check_kind(spec: JobSpec, where: str) -> None:
    for name, kind in (("batch", "batch"), ("schedule", "recurring"), ("service", "service")):
        # a batch that was expanded keeps its numbers beside its children
        if getattr(spec, name) is not None and spec.type != kind:
            raise _wrong(where + name, f"`{name}` belongs to type: {kind}, this job is a {spec.type}")
    if spec.type == "batch" and spec.batch is None:
        raise _wrong(where + "batch", "a batch needs `batch`", "add batch: {count: 10}")
    if spec.type == "recurring":
        if spec.schedule is None:
            raise _wrong(where + "schedule", "a recurring job needs `schedule`", "add schedule: {every: 1h}")
        if bool(spec.schedule.cron) == bool(spec.schedule.every):
            raise _wrong(where + "schedule", "a schedule needs either `cron` or `every`")
        next_run(spec.schedule, units.utc_now(), where)
    if spec.children and spec.type not in ("task", "batch"):
        raise _wrong(where + "type", f"a {spec.type} job has no children", "give the type to the children")
    if spec.type == "service" and spec.verify.policy != "attested":
        raise _wrong(where + "verify.policy", "a service is verified as attested: it does not run twice alike")


def next_run(schedule: ScheduleSpec, after: str, where: str = "") -> str:
    """Return the next time of a schedule after a time, RFC 3339.

    Raises:
        UsageError: the cron line cannot be read.
    """
    start = units.parse_time(after)
    if schedule.every:
        return units.format_time(start + timedelta(seconds=schedule.every))
    from cronsim import CronSim, CronSimError

    try:
        return units.format_time(next(CronSim(schedule.cron, start)))
    except (CronSimError, StopIteration) as error:
        what = str(error) or "it never comes"
        raise _wrong(
            where + "schedule.cron", f"not a cron line: {schedule.cron!r}: {what}", "for example: 0 3 * * *"
        ) from None


def _check_group(spec: JobSpec, where: str) -> None:
    names: set[str] = set()
    for index, child in enumerate(spec.children):
        if child.name in names:
            raise _wrong(f"{where}children[{index}].name", f"two children are called {child.name!r}")
        names.add(child.name)
        if spec.pod and child.executor is None:
            raise _wrong(f"{where}children[{index}]", "a job in a pod needs an `executor`: pods are not nested")
        if spec.pod and child.type != "task":
            raise _wrong(f"{where}children[{index}].type", f"a job in a pod is a task, not a {child.type}")
        check_spec(child, f"{where}children[{index}].")
    _check_pods(spec, where, names)
    groups = {child.name for child in spec.children if child.executor is None or child.type in ("batch", "recurring")}
    for index, link in enumerate(spec.links):
        for field, name in (("from", link.from_), ("to", link.to)):
            if name not in names:
                raise _wrong(
                    f"{where}links[{index}].{field}",
                    f"there is no child {name!r}",
                    f"known: {', '.join(sorted(names))}",
                )
        if link.kind == "data" and link.to in groups:
            raise _wrong(f"{where}links[{index}].to", "data goes to a job with an executor; link to the inner job")
        if link.kind != "data" and (link.output or link.path):
            raise _wrong(f"{where}links[{index}]", "`output` and `path` belong to a link of kind: data")
        if link.path and not is_safe_path(link.path):
            raise _wrong(f"{where}links[{index}].path", f"it must stay inside the job's folder: {link.path!r}")
        _check_link_output(spec, link.from_, link.output, f"{where}links[{index}].output")
    arranged = arrange(spec)
    _check_order(arranged)
    order([child.name for child in spec.children], [(link.from_, link.to) for link in spec.links])


def _check_order(arranged: Arrangement) -> None:
    order(list(arranged.units), [(arranged.unit_of[link.from_], arranged.unit_of[link.to]) for link in arranged.links])


def _check_link_output(spec: JobSpec, name: str, output: str, path: str) -> None:
    source = next(child for child in spec.children if child.name == name)
    if output and source.executor is not None and source.type == "task":
        known = [output_name(item) for item in source.outputs]
        if output not in known:
            raise _wrong(path, f"{name} has no output {output!r}", f"its outputs: {', '.join(known) or 'none'}")


def _check_pods(spec: JobSpec, where: str, names: set[str]) -> None:
    taken: set[str] = set()
    by_name = {child.name: child for child in spec.children}
    for index, pod in enumerate(spec.pods):
        if spec.pod:
            raise _wrong(f"{where}pods", "pods are not nested")
        if pod.id in names or pod.id in taken:
            raise _wrong(f"{where}pods[{index}].id", f"the name {pod.id!r} is taken")
        for name in pod.jobs:
            child = by_name.get(name)
            if child is None:
                raise _wrong(f"{where}pods[{index}].jobs", f"there is no child {name!r}")
            if name in taken:
                raise _wrong(f"{where}pods[{index}].jobs", f"{name!r} is in two pods")
            if child.executor is None or child.type != "task":
                raise _wrong(f"{where}pods[{index}].jobs", f"{name!r} is no task with an executor")
            taken.add(name)
        taken.add(pod.id)


def _check_executor(spec: JobSpec, where: str) -> None:
    executor = spec.executor
    assert executor is not None
    if executor.type == "docker" and not executor.image:
        raise _wrong(where + "executor.image", "a docker job needs `image`", "add image: NAME:TAG under executor")
    if executor.type != "docker" and executor.image:
        raise _wrong(where + "executor.image", f"a {executor.type} job has no `image`", "did you mean type: docker?")
    if executor.type != "docker" and executor.entrypoint:
        raise _wrong(
            where + "executor.entrypoint", f"a {executor.type} job has no `entrypoint`", "put it before the command"
        )
    if executor.type == "process" and not executor.command:
        raise _wrong(where + "executor.command", "a process job needs `command`", "add command: [program, argument, …]")


def _check_files(spec: JobSpec, where: str) -> None:
    places: set[str] = set()
    for index, item in enumerate(spec.inputs):
        if bool(item.path) == bool(item.cid) and not (item.cid and item.size):
            raise _wrong(f"{where}inputs[{index}]", "an input needs either `path` or `cid`")
        if not is_safe_path(item.to):
            raise _wrong(f"{where}inputs[{index}].to", f"an input must stay inside the job's folder: {item.to!r}")
        if item.to in places:
            raise _wrong(f"{where}inputs[{index}].to", f"two inputs go to the same place: {item.to!r}")
        places.add(item.to)
    names: set[str] = set()
    for index, output in enumerate(spec.outputs):
        name = output_name(output)
        if not is_safe_path(output.path) or not is_safe_path(name) or "/" in name:
            raise _wrong(f"{where}outputs[{index}]", f"an output must stay inside the job's folder: {output.path!r}")
        if name in names or name in ("stdout", "stderr"):
            raise _wrong(f"{where}outputs[{index}].name", f"the output name {name!r} is taken", "give it another name")
        names.add(name)


def _check_times(spec: JobSpec, where: str) -> None:
    for name in ("start", "deadline"):
        text = getattr(spec.time, name)
        try:
            moment(text, units.now())
        except UsageError as error:
            raise _wrong(f"{where}time.{name}", error.message, error.hint) from None


def moment(text: str, now: datetime) -> str:
    """Return a time of a specification as RFC 3339: it is one, or a duration from `now` on; empty stays empty.

    Raises:
        UsageError: it is neither.
    """
    if not text:
        return ""
    try:
        return units.format_time(units.parse_time(text))
    except UsageError:
        pass
    try:
        seconds = units.parse_duration(text)
    except UsageError:
        raise UsageError(
            f"neither a time nor a duration: {text!r}", hint="for example 2026-12-31T18:00:00Z, or 2h"
        ) from None
    return units.format_time(now + timedelta(seconds=seconds))


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
