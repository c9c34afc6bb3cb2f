"""Who may import whom, and how big a room may grow."""

import ast
import re
import subprocess
import sys
from pathlib import Path

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
