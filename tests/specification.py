"""The table of docs/specification.md: its rows, and what each of them names."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs" / "specification.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| seed text", "| ---"))
]


def named() -> list[str]:
    """Return the code that the table names, `folder/file.py:Name.name`, each once."""
    return list(dict.fromkeys(row[1].strip("`") for row in ROWS))


def definition(base: Path, reference: str) -> ast.AST:
    """Return the definition that `folder/file.py:Name.name` names."""
    file, _, names = reference.strip("`").partition(":")
    node: ast.AST = ast.parse((base / file).read_text(encoding="utf-8"))
    for name in names.split("."):
        found = [
            item
            for item in ast.iter_child_nodes(node)
            if (isinstance(item, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and item.name == name)
            or (isinstance(item, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in item.targets))
        ]
        assert found, f"there is no {name} in {file}"
        node = found[0]
    return node
