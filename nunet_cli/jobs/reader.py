"""Reading a job specification as people write it, with errors that name the line and the field."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from nunet_cli import quantities
from nunet_cli.errors import UsageError
from nunet_cli.jobs.check import check_spec
from nunet_cli.jobs.globs import is_glob
from nunet_cli.jobs.items import MAX_ITEMS, Row, check_rows, is_read, rows_of_list
from nunet_cli.jobs.problems import in_lines
from nunet_cli.jobs.spec import DEFAULT_RESOURCES, HERE, MAX_SPEC_BYTES, JobSpec
from nunet_cli.jobs.tree import MAX_DEPTH
from nunet_cli.records.reading import convert

if TYPE_CHECKING:
    import yaml


def _duration_or_zero(text: str | float) -> int:
    return 0 if text in (0, "0", "0s") else quantities.parse_duration(text)


_UNITS: dict[tuple[str, str], Callable[[Any], int]] = {
    ("resources", "memory"): quantities.parse_size,
    ("resources", "disk"): quantities.parse_size,
    ("time", "max_duration"): quantities.parse_duration,
    ("schedule", "every"): quantities.parse_duration,
    ("service", "delay"): _duration_or_zero,
    ("service.health", "interval"): quantities.parse_duration,
    ("service.health", "timeout"): quantities.parse_duration,
    ("service.health", "start_period"): _duration_or_zero,
    ("connectivity", "bandwidth"): quantities.parse_bandwidth,
    ("benchmark", "cpu_hash"): quantities.parse_speed,
    ("benchmark", "memory_copy"): quantities.parse_speed,
    ("benchmark", "disk_write"): quantities.parse_speed,
}


Marks = dict[str, tuple[int, int]]
# returns the items that a batch names: those of a file, or one for each file that a pattern finds
Load = Callable[[str], list[Row]]


def no_items(reference: str) -> list[Row]:
    """Refuse to read a batch's items from files: a node reads none of a person's."""
    raise UsageError(
        f"the items of {reference} were not given with the specification",
        hint="`nunet job run` and `nunet job post` read them; to the API give them as `items`",
    )


def read_spec(text: str, *, source: str = "job.yaml", load: Load = no_items) -> JobSpec:
    """Read a specification in YAML (JSON is YAML too) or, when `source` ends in `.toml`, TOML.

    Args:
        text: the document.
        source: the file's name, for the format and for error messages.
        load: returns the items of a batch that are in files.

    Raises:
        UsageError: one message with file, line and field, and the nearest right key for an unknown one.
    """
    if len(text) > MAX_SPEC_BYTES:
        raise UsageError(f"{source}: a job specification may have at most {MAX_SPEC_BYTES} bytes")
    document, lines = parse_document(text, source)
    if not isinstance(document, dict):
        raise UsageError(f"{source}: a job specification is a mapping of fields, this is {_kind(document)}")
    batches: Batches = {}
    try:
        return _spec_of(document, load, batches)
    except UsageError as error:
        raise _placed(error, lines, source, batches) from None


def _spec_of(document: dict[str, Any], load: Load, batches: Batches) -> JobSpec:
    """Return what a document specifies; it is normalised in place."""
    _take_items(document, "", load, batches)
    _convert_tree(document, "")
    spec = convert(document, JobSpec)
    check_spec(spec)
    return spec


def placed(error: UsageError, text: str, source: str, load: Load = no_items) -> UsageError:
    """Return an error about a field of a specification that was read, with file, line and column in front of it.

    Args:
        error: with the field's place in `details["path"]`; that of a batch's item is that of a child.
        text: the document.
        source: the file's name.
        load: as it was read with.
    """
    document, lines = parse_document(text, source)
    batches: Batches = {}
    _take_items(document, "", load, batches)
    return _placed(error, lines, source, batches)


# the items of the batches in a document, by the path of the batch, with a dot at its end
Batches = dict[str, list[Row]]
_ITEM = re.compile(r"children\[(\d+)\]\.")


def _placed(error: UsageError, lines: Marks, source: str, batches: Batches) -> UsageError:
    path, number, row = error.details.get("path", ""), None, None
    for where, rows in batches.items():
        found = _ITEM.match(path, len(where)) if path.startswith(where) else None
        if found is not None:
            number = int(found[1])
            path = where + path[found.end() :]
            row = rows[number] if number < len(rows) else None
            break
    line, column = _mark_of(path, lines)
    place = f"{source}:{line}:{column}" if line else source
    if row is not None and row.line:
        place = f"{row.source}:{row.line}"
    field = f"{path}: " if path else ""
    which = f"item {number}: " if number is not None else ""
    details = {"file": source, "line": line, "column": column, "path": path}
    if number is not None:
        details["item"] = number
    said = [f"{place}: {field}{which}{error.message}"]
    for other in error.details.get("also", []):
        # what is in a file of items says where it is
        one = UsageError(other["message"], details={"path": other["path"]})
        said.append(_placed(one, lines, source, batches).message if other["path"] else one.message)
    return UsageError(in_lines(said, error.details.get("more", 0)), hint=error.hint, details=details)


def _take_items(document: Any, where: str, load: Load, batches: Batches, depth: int = 0) -> None:
    """Put the items of each batch in a document in the place of what names or counts them.

    Raises:
        UsageError: they cannot be read, or do not fit; with `details["path"]`, or with file and line of their own.
    """
    if not isinstance(document, dict) or depth > MAX_DEPTH:
        return
    children = document.get("children")
    for index, child in enumerate(children if isinstance(children, list) else []):
        _take_items(child, f"{where}children[{index}].", load, batches, depth + 1)
    batch = document.get("batch")
    if not isinstance(batch, dict):
        return
    batches[where] = []
    if batch.get("read_from"):
        raise UsageError("unknown field", hint="give `items`", details={"path": f"{where}batch.read_from"})
    if "items" not in batch:
        return
    items, at = batch["items"], f"{where}batch.items"
    if "count" in batch and not (isinstance(items, list) and batch["count"] == len(items)):
        raise UsageError("give either `items` or `count`", details={"path": at})
    if isinstance(items, int) and not isinstance(items, bool):
        if not 1 <= items <= MAX_ITEMS:
            raise UsageError(f"a batch has 1 to {MAX_ITEMS} items, not {items}", details={"path": at})
        del batch["items"]
        batch["count"] = items
        return
    if isinstance(items, str):
        try:
            rows = load(items)
            if is_read(items):
                batch["read_from"] = items
        except UsageError as error:
            # where in a file of items it is, is in the message
            raise UsageError(error.message, hint=error.hint, details={**error.details, "path": at}) from None
    elif isinstance(items, list):
        rows = rows_of_list(items, at)
    else:
        raise UsageError(
            f"expected a number, a list or the name of a file, got {_kind(items)}", details={"path": at},
            hint="for example 10, points.csv, in/*.png, or a list of mappings",
        )  # fmt: skip
    check_rows(rows, at)
    if not rows:
        raise UsageError("there are no items", details={"path": at})
    batches[where] = rows
    batch["items"], batch["count"] = [row.values for row in rows], len(rows)


def spec_from_object(document: Any, *, source: str = "spec", load: Load = no_items) -> JobSpec:
    """Check a specification that arrived as JSON, with the same units and messages as a file.

    Raises:
        UsageError: as `read_spec` does.
    """
    text = msgspec.json.encode(document)
    if len(text) <= MAX_SPEC_BYTES and isinstance(document, dict):
        try:
            return _spec_of(json.loads(text), load, {})
        except (UsageError, RecursionError):
            # read as a file is, which takes a hundred times as long and knows where each field stands
            pass
    return read_spec(text.decode(), source=source, load=load)


def parse_document(text: str, source: str) -> tuple[Any, Marks]:
    """Return what a YAML or TOML document holds, and where its fields stand; what its aliases come to is bounded.

    Raises:
        UsageError: it cannot be read; the message names the line.
    """
    if source.endswith(".toml"):
        try:
            return tomllib.loads(text), {}
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{source}: not TOML: {error}") from None
    # imported here: a node that only looks at its store reads no specification
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: Marks = {}
        if node is not None:
            _collect_lines(node, "", lines, source)
        return yaml.safe_load(text), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{where}: not YAML: {problem}", details={"file": source}) from None
    except RecursionError:
        raise UsageError(f"{source}: nested too deeply") from None


def _collect_lines(node: yaml.Node, path: str, lines: Marks, source: str) -> None:
    import yaml

    lines.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
    if len(lines) > 20_000:
        raise UsageError(f"{source}: too many fields (aliases are counted each time)")
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = f"{path}.{key.value}" if path else str(key.value)
            if name in seen:
                where = f"{source}:{key.start_mark.line + 1}:{key.start_mark.column + 1}"
                raise UsageError(f"{where}: {name}: the field is there twice")
            seen.add(name)
            _collect_lines(value, name, lines, source)
            lines[name] = (key.start_mark.line + 1, key.start_mark.column + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect_lines(value, f"{path}[{index}]", lines, source)


def _convert_tree(document: dict[str, Any], where: str, depth: int = 0) -> None:
    """Normalise a job and its children in place, and check their types, the innermost first.

    Raises:
        UsageError: with `details["path"]`, the place of the field in the whole document.
    """
    children = document.get("children")
    for index, child in enumerate(children if isinstance(children, list) and depth <= MAX_DEPTH else []):
        if isinstance(child, dict):
            _convert_tree(child, f"{where}children[{index}].", depth + 1)
    try:
        _normalise(document)
        convert(document, JobSpec)
    except msgspec.ValidationError as error:
        message, path, hint = _explain(str(error), document)
    except UsageError as error:
        message, path, hint = error.message, error.details.get("path", ""), error.hint
    else:
        return
    raise UsageError(message, hint=hint, details={"path": (where + path).rstrip(".")})


def _normalise(document: dict[str, Any]) -> None:
    """Turn the texts with units into integers, in place, and fill what a person may leave out."""
    document.setdefault("resources", {})
    resources = document["resources"]
    if isinstance(resources, dict):
        cpu = resources.get("cpu")
        if isinstance(cpu, (int, float)) and not isinstance(cpu, bool):
            resources["cpu"] = {"cores": cpu}
        document["resources"] = resources = {**DEFAULT_RESOURCES, **resources}
        gpus = resources.get("gpus")
        for index, gpu in enumerate(gpus if isinstance(gpus, list) else []):
            if isinstance(gpu, dict) and "vram" in gpu:
                gpu["vram"] = _convert(quantities.parse_size, gpu["vram"], f"resources.gpus[{index}].vram")
    for (section, name), parse in _UNITS.items():
        part: Any = document
        for key in section.split("."):
            part = part.get(key) if isinstance(part, dict) else None
        if isinstance(part, dict) and name in part:
            part[name] = _convert(parse, part[name], f"{section}.{name}")
    price = document.get("price")
    if isinstance(price, (int, float, str)) and not isinstance(price, bool):
        document["price"] = price = {"max": price}
    if isinstance(price, dict) and "max" in price:
        _convert(quantities.parse_price, price["max"], "price.max")
        price["max"] = str(price["max"])
    if isinstance(document.get("push"), str):
        document["push"] = [document["push"]]
    storage = document.get("storage")
    for index, item in enumerate(storage if isinstance(storage, list) else []):
        if isinstance(item, dict) and "size" in item:
            item["size"] = _convert(quantities.parse_size, item["size"], f"storage[{index}].size")
    time = document.get("time")
    for name in ("start", "deadline"):
        # YAML reads an unquoted time as one
        if isinstance(time, dict) and isinstance(time.get(name), (datetime, int)):
            value = time[name]
            time[name] = _as_text(value)
    executor = document.get("executor")
    if isinstance(executor, dict) and isinstance(executor.get("env"), dict):
        executor["env"] = {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in executor["env"].items()}
    for item in document["inputs"] if isinstance(document.get("inputs"), list) else []:
        if isinstance(item, dict) and "to" not in item and isinstance(item.get("path"), str):
            # what a pattern finds keeps its names
            item["to"] = HERE if is_glob(item["path"]) else item["path"].rstrip("/").rsplit("/", 1)[-1]
        _without_slash(item, "to")
    for item in document["outputs"] if isinstance(document.get("outputs"), list) else []:
        _without_slash(item, "path")
        _without_slash(item, "name")


def _without_slash(item: Any, field: str) -> None:
    """Take the slash from the end of a folder's name."""
    if isinstance(item, dict) and isinstance(item.get(field), str) and item[field].endswith("/"):
        item[field] = item[field].rstrip("/") or "/"


def _as_text(value: datetime | int) -> str:
    if isinstance(value, int):
        return str(value)
    return quantities.format_time(value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC))


def _convert(parse: Any, value: Any, path: str) -> Any:
    try:
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise UsageError(f"expected a number or a text with a unit, got {_kind(value)}")
        return parse(value)
    except UsageError as error:
        raise UsageError(error.message, hint=error.hint, details={"path": path}) from None


def _explain(text: str, document: dict[str, Any]) -> tuple[str, str, str]:
    """Return message, field path and hint for an error of msgspec's."""
    message, _, raw = text.partition(" - at `")
    path = raw.rstrip("`").removeprefix("$").removeprefix(".").replace("[...]", "")
    unknown = re.match(r"Object contains unknown field `(.+)`", message)
    if unknown:
        known = _fields_at(path)
        near = difflib.get_close_matches(unknown[1], known, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"known fields here: {', '.join(known)}"
        return f"unknown field `{unknown[1]}`", f"{path}.{unknown[1]}".lstrip("."), hint
    missing = re.match(r"Object missing required field `(.+)`", message)
    if missing:
        return f"the field `{missing[1]}` is missing", path, f"add {missing[1]}: …"
    if "matching regex" in message:
        return (
            "a character that is not allowed here",
            path,
            "use letters, digits, '.', '_' and '-', a letter or digit first",
        )
    return message[:1].lower() + message[1:], path, ""


def _fields_at(path: str) -> list[str]:
    """Return the names of the fields that the specification knows at a path."""
    kind: Any = JobSpec
    for part in re.findall(r"[a-z_]+", path):
        info = msgspec.inspect.type_info(kind)
        field = next((f for f in getattr(info, "fields", ()) if f.name == part), None)
        if field is None:
            return []
        inner = field.type
        while isinstance(inner, (msgspec.inspect.VarTupleType, msgspec.inspect.Metadata, msgspec.inspect.UnionType)):
            if isinstance(inner, msgspec.inspect.UnionType):
                inner = next(kind for kind in inner.types if not isinstance(kind, msgspec.inspect.NoneType))
            else:
                inner = inner.item_type if isinstance(inner, msgspec.inspect.VarTupleType) else inner.type
        kind = getattr(inner, "cls", None)
        if kind is None:
            return []
    return [field.name for field in getattr(msgspec.inspect.type_info(kind), "fields", ())]


def _mark_of(path: str, lines: Marks) -> tuple[int, int]:
    while path and path not in lines:
        path = re.sub(r"(\.[^.\[]+|\[\d+\]|^[^.\[]+)$", "", path)
    return lines.get(path, (0, 0))


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true/false"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
