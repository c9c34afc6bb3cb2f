"""The rules of a job specification that span several fields, and reading one that came from a peer or the store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from threading import Lock
from typing import Any

import msgspec
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.errors import UsageError
from nunet_cli.jobs import budget, expressions, items
from nunet_cli.jobs.globs import is_glob
from nunet_cli.jobs.problems import Problems
from nunet_cli.jobs.spec import (
    HERE,
    MAX_FILES,
    MAX_SPEC_BYTES,
    JobSpec,
    ScheduleSpec,
    encode_spec,
    is_safe_path,
    output_name,
)
from nunet_cli.jobs.tree import MAX_JOBS, Arrangement, arrange, count_jobs, order, output_names, price_limit
from nunet_cli.records.fields import Name
from nunet_cli.records.reading import convert, decode_again


def _wrong(path: str, message: str, hint: str = "") -> UsageError:
    return UsageError(message, hint=hint, details={"path": path})


# what a whole document may have: it may be a stranger's, and to compile one expression takes a millisecond and more
MAX_EXPRESSIONS = 256
MAX_STEPS = 10 * budget.MAX_STEPS
MAX_LINKS = 4000
MAX_CHECKED = 1024
_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_Refusal = tuple[str, str, dict[str, Any]]


def check_spec(spec: JobSpec) -> None:
    """Check the rules that span several fields, also those of the children.

    Args:
        spec: the job.

    Raises:
        UsageError: with `details["path"]` naming the field, for example `children[2].executor.image`.
    """
    count = count_jobs(spec)
    if count > MAX_JOBS:
        raise _wrong("children", f"a job may have {MAX_JOBS} children in all, this one has {count}")
    links = sum(len(part.links) for part in _all(spec))
    if links > MAX_LINKS:
        raise _wrong("links", f"a job may have {MAX_LINKS} links in all, this one has {links}")
    _check(spec, "", _Expressions())


def _all(spec: JobSpec) -> Iterator[JobSpec]:
    yield spec
    for child in spec.children:
        yield from _all(child)


def _check(spec: JobSpec, where: str, known: _Expressions) -> None:
    """Check a job and its children; `where` is its path in the document, with a dot at its end."""
    if (spec.executor is None) == (not spec.children):
        raise _wrong(
            where + "executor", "a job needs either `executor` or `children`", "add executor: {type: process, …}"
        )
    _check_kind(spec, where)
    _check_expressions(spec, where, known)
    if spec.children:
        _check_group(spec, where, known)
        return
    _check_executor(spec, where)
    _check_files(spec, where)
    _check_times(spec, where)
    if spec.batch is not None:
        _check_items(spec, where)
    price_limit(spec)


def _check_items(spec: JobSpec, where: str) -> None:
    """Check a batch's items as they are once their values are filled in; the path of one is that of a child."""
    batch = spec.batch
    assert batch is not None
    items.check_places(spec, where)
    size = len(encode_spec(structs.replace(spec, batch=None))) * batch.count
    items.check_size(size, where)
    names: dict[str, int] = {}
    measured = items.measures(spec)
    problems = Problems()
    # without values they differ in their number alone
    for index in range(batch.count) if batch.items else {0, batch.count - 1}:
        at, length = f"{where}children[{index}].", -1
        with problems.noted():
            # a value may be in many places: what comes of it is counted before it is made
            length = items.total_length(measured, items.item_values(spec, index), at)
        if length < 0:
            continue
        size += length
        items.check_size(size, where)
        with problems.noted():
            item = items.item_spec(spec, index)
            _check_item(item, at, names.setdefault(item.name, index), index, batch.name)
    problems.check()


def _check_item(item: JobSpec, at: str, first: int, index: int, template: str) -> None:
    """Check one item; `first` is the number of the first that has its name."""
    if not _JOB_NAME.match(item.name):
        raise _wrong(at + "batch.name", f"not a name: {item.name!r}", "a letter or digit first")
    if first != index:
        raise _wrong(
            at + "batch.name", f"the items {first} and {index} are both called {item.name!r}",
            f'add {{index}}, for example name: "{template}-{{index}}"',
        )  # fmt: skip
    _check_files(item, at)


class _Expressions:
    """The expressions of a document: each text is checked once, and there is an end to how many there can be."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()
        self._steps = 0

    def check(self, text: str, kind: str) -> None:
        if (text, kind) in self._known:
            return
        if len(self._known) >= MAX_EXPRESSIONS:
            raise UsageError(f"a job may have {MAX_EXPRESSIONS} different expressions in all")
        self._steps += expressions.check(text, kind=kind)
        if self._steps > MAX_STEPS:
            raise UsageError(f"the expressions of a job may take {MAX_STEPS} steps in all")
        self._known.add((text, kind))


def _check_expressions(spec: JobSpec, where: str, known: _Expressions) -> None:
    texts = [(f"constraints.hard[{i}]", text, "bool") for i, text in enumerate(spec.constraints.hard)]
    texts += [(f"constraints.soft[{i}].rank", wish.rank, "number") for i, wish in enumerate(spec.constraints.soft)]
    texts += [
        (f"links[{i}].constraint", link.constraint, "bool") for i, link in enumerate(spec.links) if link.constraint
    ]
    for path, text, kind in texts:
        try:
            known.check(text, kind)
        except UsageError as error:
            raise _wrong(where + path, error.message, error.hint) from None


def _check_kind(spec: JobSpec, where: str) -> None:
    for name, kind in (("batch", "batch"), ("schedule", "recurring"), ("service", "service")):
        if getattr(spec, name) is not None and spec.type != kind:
            raise _wrong(where + name, f"`{name}` belongs to type: {kind}, this job is a {spec.type}")
    if spec.type == "batch" and spec.batch is None:
        raise _wrong(where + "batch", "a batch needs `batch`", "add batch: {items: 10}")
    if spec.type == "batch" and spec.children:
        raise _wrong(where + "children", "a batch has no children", "give the batch a program, or make it a child")
    if spec.type == "recurring":
        if spec.schedule is None:
            raise _wrong(where + "schedule", "a recurring job needs `schedule`", "add schedule: {every: 1h}")
        if bool(spec.schedule.cron) == bool(spec.schedule.every):
            raise _wrong(where + "schedule", "a schedule needs either `cron` or `every`")
        next_run(spec.schedule, quantities.utc_now(), where)
    if spec.on_failure != "continue" and (spec.pod or not (spec.children or spec.type == "batch")):
        raise _wrong(
            where + "on_failure", "`on_failure` belongs to a group of children or a batch",
            "what a pod's jobs wait for must have ended well in any case" if spec.pod else "",
        )  # fmt: skip
    if spec.children and spec.type != "task":
        raise _wrong(where + "type", f"a {spec.type} job has no children", "give the type to the children")
    if spec.type == "service" and spec.verify.policy != "attested":
        raise _wrong(where + "verify.policy", "a service is verified as attested: it does not run twice alike")


def next_run(schedule: ScheduleSpec, after: str, where: str = "") -> str:
    """Return the next time of a schedule after a time, RFC 3339.

    Raises:
        UsageError: the cron line cannot be read.
    """
    start = quantities.parse_time(after)
    if schedule.every:
        return quantities.format_time(start + timedelta(seconds=schedule.every))
    from cronsim import CronSim, CronSimError

    try:
        return quantities.format_time(next(CronSim(schedule.cron, start)))
    except (CronSimError, StopIteration) as error:
        what = str(error) or "it never comes"
        raise _wrong(
            where + "schedule.cron", f"not a cron line: {schedule.cron!r}: {what}", "for example: 0 3 * * *"
        ) from None


def _check_group(spec: JobSpec, where: str, known: _Expressions) -> None:
    names: set[str] = set()
    for index, child in enumerate(spec.children):
        if child.name in names:
            raise _wrong(f"{where}children[{index}].name", f"two children are called {child.name!r}")
        names.add(child.name)
        if spec.pod and child.executor is None:
            raise _wrong(f"{where}children[{index}]", "a job in a pod needs an `executor`: pods are not nested")
        if spec.pod and child.type != "task":
            raise _wrong(f"{where}children[{index}].type", f"a job in a pod is a task, not a {child.type}")
        if child.push:
            raise _wrong(f"{where}children[{index}].push", "`push` belongs to the whole job", "put it at the top")
        _check(child, f"{where}children[{index}].", known)
    _check_pods(spec, where, names)
    by_name = {child.name: child for child in spec.children}
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
        _check_link_output(by_name[link.from_], link.output, f"{where}links[{index}].output")
    arranged = arrange(spec)
    _check_order(arranged)
    for job in (spec, *arranged.children.values()):
        if job.pod:
            _check_output_names(job, where)
    order([child.name for child in spec.children], [(link.from_, link.to) for link in spec.links])


def _check_order(arranged: Arrangement) -> None:
    order(
        list(arranged.children),
        [(arranged.child_of[link.from_], arranged.child_of[link.to]) for link in arranged.links],
    )


def _check_link_output(source: JobSpec, output: str, path: str) -> None:
    if output and source.executor is not None and source.type == "task":
        known = [output_name(item) for item in source.outputs]
        if output not in known:
            raise _wrong(path, f"{source.name} has no output {output!r}", f"its outputs: {', '.join(known) or 'none'}")


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
        is_folder = item.kind == "folder" or is_glob(item.path) or (item.to == HERE and not item.cid)
        if not is_safe_path(item.to) and not (is_folder and item.to == HERE):
            raise _wrong(f"{where}inputs[{index}].to", f"an input must stay inside the job's folder: {item.to!r}")
        if item.to in places and not is_folder:
            raise _wrong(f"{where}inputs[{index}].to", f"two inputs go to the same place: {item.to!r}")
        places.add(item.to)
    _check_output_names(spec, where)
    names: set[str] = set()
    for index, output in enumerate(spec.outputs):
        name = output_name(output)
        if not is_safe_path(output.path) or not is_safe_path(name) or "/" in name:
            raise _wrong(f"{where}outputs[{index}]", f"an output must stay inside the job's folder: {output.path!r}")
        if name in names or name in ("stdout", "stderr"):
            raise _wrong(f"{where}outputs[{index}].name", f"the output name {name!r} is taken", "give it another name")
        names.add(name)


def _check_output_names(spec: JobSpec, where: str) -> None:
    """Refuse outputs of a job or pod that no result could list: its provider would work and never be paid."""
    names = output_names(spec)
    if len(names) > MAX_FILES:
        raise _wrong(f"{where}outputs", f"a job or pod may have {MAX_FILES} outputs, this one has {len(names)}")
    for name in names:
        try:
            convert(name, Name)
        except msgspec.ValidationError:
            raise _wrong(
                f"{where}outputs", f"not a name for an output: {name!r}",
                "at most 200 characters, and none that cannot be seen; give it another `name`",
            ) from None  # fmt: skip


def _check_times(spec: JobSpec, where: str) -> None:
    for name in ("start", "deadline"):
        text = getattr(spec.time, name)
        try:
            moment(text, quantities.now())
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
        return quantities.format_time(quantities.parse_time(text))
    except UsageError:
        pass
    try:
        seconds = quantities.parse_duration(text)
    except UsageError:
        raise UsageError(
            f"neither a time nor a duration: {text!r}", hint="for example 2026-12-31T18:00:00Z, or 2h"
        ) from None
    return quantities.format_time(now + timedelta(seconds=seconds))


def decode_spec(data: bytes | str) -> JobSpec:
    """Return a specification that came from a peer or the store, checked.

    The same text is checked once. What comes from a peer is given to this in a worker thread at first: checking
    takes up to a second of the processor.

    Raises:
        UsageError: it is not one.
    """
    if len(data) > MAX_SPEC_BYTES:
        raise UsageError(f"a job specification may have at most {MAX_SPEC_BYTES} bytes")
    try:
        spec = decode_again(data, JobSpec, exactly=True)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"not a job specification: {error}") from None
    if any(part.batch is not None and part.batch.items for part in _all(spec)):
        # a node fills them in before it keeps or sends anything
        raise UsageError("a job specification between nodes has no items")
    key = hashlib.sha256(data.encode() if isinstance(data, str) else data).digest()
    with _lock:
        is_known, wrong = key in _checked, _checked.get(key)
    if not is_known:
        wrong = _wrong_in(spec)
        with _lock:
            _checked[key] = wrong
            if len(_checked) > MAX_CHECKED:
                del _checked[next(iter(_checked))]
    if wrong is not None:
        message, hint, details = wrong
        raise UsageError(message, hint=hint, details=details)
    return spec


def _wrong_in(spec: JobSpec) -> _Refusal | None:
    try:
        check_spec(spec)
    except UsageError as error:
        return error.message, error.hint, error.details
    return None


_checked: dict[bytes, _Refusal | None] = {}
_lock = Lock()
