"""Say which named functions were executed, in whatever process: with this folder on PYTHONPATH, Python imports this.

A function that is named says so itself, in a first statement that is put into it as its module is imported; a type says
so as one of it is made, also where it is decoded from a message. Nothing else is slower for it, and a process that is
killed has said what it had done.
"""

from __future__ import annotations

import ast
import builtins
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

# the folder with `names` (one reference `folder/file.py:Name.name` a line), where `executed` is written
FOLDER = "TESTS_EXECUTED"
PACKAGE = "nunet_cli"
MAKERS = ("__init__", "__post_init__")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def find(tree: ast.Module, names: str) -> ast.AST | None:
    """Return the function or type that `Name.name` names in a module, or None."""
    found: ast.AST = tree
    for name in names.split("."):
        inside = [item for item in getattr(found, "body", ()) if isinstance(item, ast.ClassDef | Function)]
        here = [item for item in inside if item.name == name]
        if not here:
            return None
        found = here[0]
    return found


def instrument(source: bytes, path: str, references: dict[str, str]) -> CodeType:
    """Compile a module in which what is named (name → reference) says that it is executed."""
    tree = ast.parse(source, path)
    for names, reference in references.items():
        found = find(tree, names)
        if isinstance(found, ast.ClassDef):
            makers = [item for item in found.body if isinstance(item, Function) and item.name in MAKERS]
            if not makers:
                makers = [_maker(found)]
                found.body += makers
            found = makers[0]
        if isinstance(found, Function):
            say = ast.parse(f"__executed__({reference!r})").body[0]
            # behind the docstring
            found.body.insert(1 if ast.get_docstring(found) is not None else 0, say)
    return compile(ast.fix_missing_locations(tree), path, "exec")


def _maker(kind: ast.ClassDef) -> ast.FunctionDef:
    """Return a method that is called as one of a type is made, and does nothing."""
    bases = {item.id for item in (*kind.bases, *kind.decorator_list) if isinstance(item, ast.Name)}
    text = "def __init__(self, *args, **named): super().__init__(*args, **named)"
    if bases & {"Struct", "dataclass"}:
        # also where it is decoded
        text = "def __post_init__(self): pass"
    made = ast.parse(text).body[0]
    assert isinstance(made, ast.FunctionDef)
    return made


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with what it is to say; what is compiled so is kept nowhere."""

    references: dict[str, str]

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return instrument(self.get_data(path), path, self.references)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, modules: dict[str, dict[str, str]]) -> None:
        self._modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None:
            spec.loader = loader = _Loader(fullname, spec.origin)
            loader.references = self._modules[fullname]
        return spec


def _begin(folder: Path) -> None:
    modules: dict[str, dict[str, str]] = {}
    for reference in (folder / "names").read_text().split():
        file, _, names = reference.partition(":")
        module = ".".join([PACKAGE, *file.removesuffix(".py").removesuffix("/__init__").split("/")])
        modules.setdefault(module, {})[names] = reference
    said: set[tuple[str, str]] = set()

    def executed(reference: str) -> None:
        # each test of a process has a folder of its own
        place = os.environ.get(FOLDER, "")
        if place and (place, reference) not in said:
            said.add((place, reference))
            descriptor = os.open(f"{place}/executed", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(descriptor, f"{reference}\n".encode())
            os.close(descriptor)

    kept: Any = builtins
    kept.__executed__ = executed
    sys.meta_path.insert(0, _Finder(modules))


if FOLDER in os.environ:
    _begin(Path(os.environ[FOLDER]))
