"""The items of a batch: rows of names and values, read from text, and filled into the specification of each item.

`{name}` is filled in where it names a value of the items, or is `{index}`; `{{name}}` is the text `{name}`. All other
braces are left as they are, and so is `${name}`: they belong to shells and their like.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from msgspec import structs

from nunet_cli.errors import UsageError
from nunet_cli.jobs.globs import is_glob
from nunet_cli.jobs.problems import Problems
from nunet_cli.jobs.spec import JobSpec

MAX_ITEMS = 10_000
# characters of a file with items, of one value, and how many values an item has
MAX_TEXT, MAX_VALUE, MAX_NAMES = 8 * 2**20, 4000, 100
# bytes that the specifications of all items of a batch have together
MAX_ALL = 64 * 2**20
INDEX = "index"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PLACE = re.compile(r"\{\{([A-Za-z_][A-Za-z0-9_]*)\}\}|(?<!\$)\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
LONGEST_NAME = 100
_LINES = (".csv", ".tsv", ".jsonl", ".ndjson")


class Row(NamedTuple):
    """An item: its values by name, and where it is written; line 0 where that is not known."""

    values: dict[str, str]
    source: str = ""
    line: int = 0


# -- reading -----------------------------------------------------------------------------------------------------------


def read_items(text: str, source: str) -> list[Row]:
    """Return the items of a file: CSV, whose first line names the columns, or an object of JSON a line.

    Args:
        text: what is in it.
        source: its name, by which the format is told, and for error messages.

    Raises:
        UsageError: with file and line; for several lines as `Problems` has it.
    """
    if len(text) > MAX_TEXT:
        raise UsageError(f"{source}: a file of items may have at most {MAX_TEXT} characters")
    kind, problems = PurePosixPath(source).suffix.lower(), Problems()
    if kind in (".csv", ".tsv"):
        rows = list(_of_csv(text, source, "\t" if kind == ".tsv" else ",", problems))
    elif kind in (".jsonl", ".ndjson"):
        rows = list(_of_json_lines(text, source, problems))
    else:
        raise UsageError(
            f"{source}: not a file of items: its name ends in none of .csv, .tsv, .jsonl and .ndjson",
            hint="for files, give a pattern, such as in/*.png",
        )
    problems.check()
    if not rows:
        raise UsageError(f"{source}: there are no items in it")
    return rows


def _of_csv(text: str, source: str, delimiter: str, problems: Problems) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    last = 0
    try:
        for cells in reader:
            line, last = last + 1, reader.line_num
            if not cells:
                # an empty line
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                _check_names(names, f"{source}:{line}")
                continue
            with problems.noted():
                if len(cells) != len(names):
                    count = "1 value" if len(cells) == 1 else f"{len(cells)} values"
                    raise UsageError(f"{source}:{line}: {count}, and the first line names {len(names)}")
                yield Row(_checked(dict(zip(names, cells, strict=True)), f"{source}:{line}"), source, line)
    except csv.Error as error:
        problems.add(UsageError(f"{source}:{reader.line_num}: not CSV: {error}"))


def _of_json_lines(text: str, source: str, problems: Problems) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        at = f"{source}:{number}"
        with problems.noted():
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{at}: not JSON: {error}") from None
            yield Row(values_of(item, at), source, number)


def values_of(item: Any, at: str) -> dict[str, str]:
    """Return the values of an item as texts: a number, or true and false, as JSON writes it.

    Args:
        item: a mapping.
        at: where it is written.

    Raises:
        UsageError: it is none, or has something else in it.
    """
    if not isinstance(item, dict):
        raise UsageError(f"{at}: an item is a mapping of names and values")
    _check_names([str(name) for name in item], at)
    for name, value in item.items():
        if not isinstance(value, str | int | float):
            raise UsageError(f"{at}: `{name}` is neither a text, a number, nor true or false")
    return _checked({str(k): v if isinstance(v, str) else json.dumps(v) for k, v in item.items()}, at)


def rows_of_list(items: list[Any], at: str) -> list[Row]:
    """Return the items of a list in a document, whose field is `at`.

    Raises:
        UsageError: some are none; with `details["path"]`, and for several as `Problems` has it.
    """
    rows, problems = list[Row](), Problems()
    for number, item in enumerate(items):
        try:
            rows.append(Row(values_of(item, f"item {number}")))
        except UsageError as error:
            problems.add(UsageError(error.message, hint=error.hint, details={"path": f"{at}[{number}]"}))
    problems.check()
    return rows


def rows_of_paths(paths: Sequence[str]) -> list[Row]:
    """Return an item for each file: its `path`, its `name`, and that without its ending, `stem`."""
    return [
        Row(_checked({"path": path, "name": PurePosixPath(path).name, "stem": PurePosixPath(path).stem}, path), path)
        for path in paths
    ]


def check_rows(rows: Sequence[Row], at: str) -> None:
    """Look whether items are not too many, and have the same names.

    Args:
        rows: the items.
        at: where they are written, as the path of a field.

    Raises:
        UsageError: with `details["path"]`, and the file and line of the item, where it has one.
    """
    if len(rows) > MAX_ITEMS:
        those = f"{rows[0].source} has" if rows[0].line else "these are"
        raise UsageError(f"a batch may have {MAX_ITEMS} items, {those} {len(rows)}", details={"path": at})
    first, problems = rows[0].values.keys() if rows else set(), Problems()
    for number, row in enumerate(rows):
        if row.values.keys() != first:
            odd = sorted(first ^ row.values.keys())[0]
            what = f"`{odd}` is missing, which the first item has" if odd in first else (
                f"the first item has no `{odd}`, as this one has"
            )  # fmt: skip
            where = f"{row.source}:{row.line}" if row.line else f"item {number}"
            problems.add(UsageError(f"{where}: {what}", details={"path": at if row.line else f"{at}[{number}]"}))
    problems.check()


def _check_names(names: list[str], at: str) -> None:
    if len(names) > MAX_NAMES:
        raise UsageError(f"{at}: an item may have {MAX_NAMES} values")
    for place, name in enumerate(names):
        if not _NAME.match(name):
            raise UsageError(
                f"{at}: not a name for a value: {name!r}", hint="use letters, digits and _, a letter first"
            )
        if name == INDEX:
            raise UsageError(f"{at}: `{INDEX}` is the item's number, and no name for a value")
        if name in names[:place]:
            raise UsageError(f"{at}: two values are called {name!r}")


def _checked(values: dict[str, str], at: str) -> dict[str, str]:
    for name, value in values.items():
        if len(value) > MAX_VALUE:
            raise UsageError(
                f"{at}: `{name}` has over {MAX_VALUE} characters", hint="put it into a file, and name that"
            )
        if "\0" in value:
            raise UsageError(f"{at}: `{name}` has a zero byte in it")
    return values


def is_read(reference: str) -> bool:
    """Say whether what a batch names as its items is a file of them, or a pattern of files."""
    return is_glob(reference) or PurePosixPath(reference).suffix.lower() in _LINES


# -- filling in --------------------------------------------------------------------------------------------------------


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return a text with the values of an item in it."""
    if "{" not in text:
        return text

    def put(place: re.Match[str]) -> str:
        literal, name = place.groups()
        if literal is not None:
            return f"{{{literal}}}"
        return values.get(name, place.group())

    return _PLACE.sub(put, text)


def before_values(text: str, values: Mapping[str, str]) -> str | None:
    """Return what stands in a text before the first value that is filled in; None where none is."""
    first = next((place.start() for place in _PLACE.finditer(text) if place[2] in values), None)
    return None if first is None else fill(text[:first], {})


def _fill_path(text: str, values: Mapping[str, str]) -> str:
    """Return a path with the values of an item in it; a `~` of theirs is a name, and nobody's home."""
    path = fill(text, values)
    return f"./{path}" if path.startswith("~") and not text.startswith("~") else path


def escape(text: str) -> str:
    """Return what stands for a text that nothing is to be filled into: `fill` makes that text of it."""
    return _PLACE.sub(lambda place: f"{{{place.group()}}}", text)


def check_places(spec: JobSpec, where: str) -> None:
    """Look whether all that is to be filled in is among the values of a batch's items.

    A batch of so many copies has no names: there braces mean what they mean to the program, but for `{index}`.

    Raises:
        UsageError: with `details["path"]`, the place of the field.
    """
    if spec.batch is None or not spec.batch.items:
        return
    known = [*spec.batch.items[0], INDEX]
    for path, text in _texts(spec):
        for literal, name in _PLACE.findall(text):
            if not literal and name not in known:
                near = difflib.get_close_matches(name, known, 1)
                meant = f"did you mean {{{near[0]}}}? " if near else ""
                raise UsageError(
                    f"the items have no `{name}`", details={"path": f"{where}{path}"},
                    hint=f"{meant}they have: {', '.join(known)}; for the text itself write {{{{{name}}}}}",
                )  # fmt: skip


def _texts(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Yield each text that is filled in, with its path."""
    assert spec.batch is not None
    yield "batch.name", spec.batch.name
    yield "description", spec.description
    if spec.executor is not None:
        yield from ((f"executor.entrypoint[{n}]", text) for n, text in enumerate(spec.executor.entrypoint))
        yield from ((f"executor.command[{n}]", text) for n, text in enumerate(spec.executor.command))
        yield from ((f"executor.env.{name}", text) for name, text in spec.executor.env.items())
        yield "executor.workdir", spec.executor.workdir
    for number, item in enumerate(spec.inputs):
        yield f"inputs[{number}].path", item.path
        yield f"inputs[{number}].to", item.to
    for number, output in enumerate(spec.outputs):
        yield f"outputs[{number}].path", output.path
        yield f"outputs[{number}].name", output.name


class Measure(NamedTuple):
    """How long a text is with an item's values in it, before they are: its path, and its most characters."""

    path: str
    most: int
    # characters that stay, and how often each value comes
    fixed: int
    places: dict[str, int]

    def length(self, values: Mapping[str, str]) -> int:
        """Return the length of what `fill` would make of the text."""
        return self.fixed + sum(times * len(values.get(name, f"{{{name}}}")) for name, times in self.places.items())


def measures(spec: JobSpec) -> list[Measure]:
    """Return what may become too long by what is filled in, measured."""
    assert spec.executor is not None
    executor = spec.executor
    texts = [("executor.workdir", executor.workdir, 400), ("description", spec.description, 2000)]
    for number, item in enumerate(spec.inputs):
        texts += [(f"inputs[{number}].path", item.path, 4000), (f"inputs[{number}].to", item.to, 400)]
    for number, output in enumerate(spec.outputs):
        texts += [(f"outputs[{number}].path", output.path, 400), (f"outputs[{number}].name", output.name, 200)]
    texts += [(f"executor.entrypoint[{number}]", text, 100_000) for number, text in enumerate(executor.entrypoint)]
    texts += [(f"executor.command[{number}]", text, 100_000) for number, text in enumerate(executor.command)]
    texts += [(f"executor.env.{name}", text, 100_000) for name, text in executor.env.items()]
    return [_measure(*each) for each in texts]


def total_length(measured: Sequence[Measure], values: Mapping[str, str], at: str) -> int:
    """Return how many characters all texts of an item have with its values in them.

    Args:
        measured: the texts.
        values: the item's.
        at: the item's path in the document, for error messages.

    Raises:
        UsageError: one would have too many; with `details["path"]`.
    """
    total = 0
    for text in measured:
        length = text.length(values)
        if length > text.most:
            raise UsageError(
                f"over {text.most} characters with the item's values in it", details={"path": at + text.path}
            )
        total += length
    return total


def _measure(path: str, text: str, most: int) -> Measure:
    found = [] if "{" not in text else _PLACE.findall(text)
    places = Counter(name for literal, name in found if not literal)
    # the braces and names that are filled in go, and of the doubled braces one each
    gone = sum(times * (len(name) + 2) for name, times in places.items()) + 2 * sum(bool(word) for word, _ in found)
    return Measure(path, most, len(text) - gone, dict(places))


def check_size(size: int, where: str) -> None:
    """Refuse a batch whose items come to too many bytes.

    Raises:
        UsageError: with `details["path"]`, the place of the field.
    """
    if size > MAX_ALL:
        raise UsageError(
            f"the specifications of all items come to over {MAX_ALL} bytes", details={"path": where + "batch"},
            hint="put what is long into an input",
        )  # fmt: skip


def item_values(spec: JobSpec, index: int) -> dict[str, str]:
    """Return what is filled in for one item of a batch."""
    assert spec.batch is not None
    return {**(spec.batch.items[index] if spec.batch.items else {}), INDEX: str(index)}


def item_spec(spec: JobSpec, index: int) -> JobSpec:
    """Return the task that one item of a batch is.

    Its index, from 0 on, is in the environment too: `NUNET_BATCH_INDEX`, `NUNET_BATCH_COUNT`.
    """
    assert spec.executor is not None
    assert spec.batch is not None
    values = item_values(spec, index)

    def put(text: str) -> str:
        return fill(text, values)

    executor = spec.executor
    env = {**{name: put(value) for name, value in executor.env.items()},
           "NUNET_BATCH_INDEX": str(index), "NUNET_BATCH_COUNT": str(spec.batch.count)}  # fmt: skip
    executor = structs.replace(
        executor, command=tuple(map(put, executor.command)), entrypoint=tuple(map(put, executor.entrypoint)), env=env,
        workdir=put(executor.workdir),
    )  # fmt: skip
    inputs = tuple(structs.replace(item, path=_fill_path(item.path, values), to=put(item.to)) for item in spec.inputs)
    outputs = tuple(structs.replace(item, path=put(item.path), name=put(item.name)) for item in spec.outputs)
    return structs.replace(
        spec, name=item_name(spec, values), type="task", description=put(spec.description), executor=executor,
        inputs=inputs, outputs=outputs, batch=None, on_failure="continue", children=(),
    )  # fmt: skip


def item_name(spec: JobSpec, values: Mapping[str, str]) -> str:
    """Return the name of an item: `batch.name` filled in, in letters that it may have; or the batch's and a number."""
    assert spec.batch is not None
    if not spec.batch.name:
        return f"{spec.name[:90]}-{values[INDEX]}"
    name = _NOT_IN_A_NAME.sub("-", fill(spec.batch.name, values)).lstrip("._-")
    return name[:LONGEST_NAME]


def expand_batch(spec: JobSpec) -> tuple[JobSpec, ...]:
    """Return the items of a batch, each a task, in their order."""
    assert spec.batch is not None
    return tuple(item_spec(spec, index) for index in range(spec.batch.count))
