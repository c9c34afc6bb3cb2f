"""Who may import whom, and how big a room may grow."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def test_imports_go_one_way() -> None:
    lint = ROOT / "pyproject.toml"
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    done = subprocess.run([*command, "--config", lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_the_command_line_starts_without_the_heavy_imports() -> None:
    code = "import sys, nunet_cli.cli.app; print([m for m in sys.modules if m in sys.argv[1:]])"
    heavy = [
        "trio",
        "docker",
        "zeroconf",
        "nacl",
        "starlette",
        "hypercorn",
        "tinydb",
        "rich",
        "msgspec",
        "psutil",
        "yaml",
    ]
    done = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_files_of_a_room_import_each_other_in_a_circle() -> None:
    found = {}
    for room in sorted({path.parent for path in (ROOT / "nunet_cli").rglob("*.py")}):
        found |= {str(room.relative_to(ROOT)): circle for circle in [circle_in(imports_within(room))] if circle}
    assert found == {}


PLAIN = ("property", "staticmethod", "classmethod", "dataclass")
# what is called by a name that somebody else gave, or is there for people who test their own programs
CALLED_FROM_OUTSIDE = {
    "formatMessage": "logging", "make_context": "click", "_read_table": "TinyDB", "_update_table": "TinyDB",
    "_get_next_id": "TinyDB", "wait_send_all_might_not_block": "trio", "aclose": "trio",
    "parse_args": "click", "use_world": "a simulation's clock and dice",
    "crash": "the network in memory: a host that ends without a word",
}  # fmt: skip


def test_nothing_is_there_that_only_tests_call() -> None:
    """By name alone: two things of one name hide each other, and nothing is found that is in use."""
    defined: dict[str, str] = {}
    used: list[tuple[str, Path, int]] = []
    spans: list[tuple[str, Path, range]] = []
    for path in (ROOT / "nunet_cli").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used.append((node.id, path, node.lineno))
            elif isinstance(node, ast.Attribute):
                used.append((node.attr, path, node.lineno))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
                # a place in a table of commands, a forward reference
                used += [(word, path, node.lineno) for word in re.findall(r"\w+", node.value)]
            names = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                # what else decorates it may register it
                plain = [isinstance(item, ast.Name) and item.id in PLAIN for item in node.decorator_list]
                names = [node.name] if all(plain) else []
            elif isinstance(node, ast.Assign) and node in tree.body:
                names = [item.id for item in node.targets if isinstance(item, ast.Name)]
            for name in names:
                if not name.startswith("__"):
                    defined[name] = str(path.relative_to(ROOT))
                    spans.append((name, path, range(node.lineno, (node.end_lineno or node.lineno) + 1)))
    # a function that calls itself is not used for it
    inside = {(name, path, line) for name, path, span in spans for line in span}
    alive = {name for name, path, line in used if (name, path, line) not in inside}
    assert {name: file for name, file in defined.items() if name not in alive | CALLED_FROM_OUTSIDE.keys()} == {}


def test_a_circle_is_found_and_named() -> None:
    assert circle_in({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


# where JSON, or what came of a file, may become a value without records/reading.py, and why
READ_ELSEWHERE = {
    "nunet_cli/records/reading.py": "it is the one place where limits are checked",
    "nunet_cli/config.py": "the configuration has its limits as msgspec's own: it is no record, and no store has it",
    "nunet_cli/config_file.py": "so it is read",
}
READERS = {"decode", "convert", "Decoder", "Meta"}


def test_what_comes_from_elsewhere_is_read_in_one_place() -> None:
    """msgspec does not know the limits of a field: who reads with it elsewhere would check none of them."""
    found = {}
    for path in sorted((ROOT / "nunet_cli").rglob("*.py")):
        if name := ", ".join(readers_in(path.read_text(encoding="utf-8"))):
            found[str(path.relative_to(ROOT))] = name
    # the limits themselves are turned into msgspec's
    assert found.pop("nunet_cli/records/limits.py") == "Meta"
    assert found.keys() == READ_ELSEWHERE.keys(), found


@pytest.mark.parametrize(
    "code",
    [
        "import msgspec\nmsgspec.json.decode(x, type=Bid)", "import msgspec as m\nm.convert(x, Bid)",
        "import msgspec.json\nmsgspec.json.Decoder(Bid)", "from msgspec import json\njson.decode(x)",
        "from msgspec.msgpack import decode", "def f():\n  from msgspec import convert as c", "from msgspec import Meta",
        "from msgspec import json as j\nread = j.Decoder(Bid).decode",
    ],
)  # fmt: skip
def test_a_reader_is_found(code: str) -> None:
    assert readers_in(code)


def test_what_reads_nothing_is_none() -> None:
    assert not readers_in("import json, msgspec\njson.decode(x)\nb''.decode()\nmsgspec.json.encode(x)")


def readers_in(code: str) -> list[str]:
    """Return which of msgspec's functions that read a source file uses, in whatever way it imports them."""
    tree = ast.parse(code)
    modules: set[str] = set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or "msgspec" for alias in node.names if alias.name.split(".")[0] == "msgspec"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "msgspec":
            named = {alias.name: alias.asname or alias.name for alias in node.names}
            found |= READERS & named.keys()
            modules |= {own for name, own in named.items() if name in ("json", "msgpack", "yaml", "toml")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in READERS:
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in modules:
                found.add(node.attr)
    return sorted(found)


def imports_within(room: Path) -> dict[str, set[str]]:
    """Return which files of a folder each of its files imports, also inside of functions, and only for types."""
    package = ".".join(room.relative_to(ROOT).parts)
    files = {path.stem for path in room.glob("*.py")} - {"__init__"}
    found: dict[str, set[str]] = {}
    for name in sorted(files):
        named: set[str] = set()
        for node in ast.walk(ast.parse((room / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        found[name] = {other for other in files - {name} if f"{package}.{other}" in named}
    return found


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """Return the first circle that is found, from a file back to itself; empty where there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(imports[name]):
            if circle := walk(other, [*way, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(imports) if (circle := walk(name, []))), [])
