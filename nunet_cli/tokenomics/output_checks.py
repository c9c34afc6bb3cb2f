"""A job's outputs on this machine, held against the content ids in its signed result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from nunet_cli.errors import NunetError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.globs import Pattern, split_glob
from nunet_cli.jobs.spec import JobSpec, output_name
from nunet_cli.network.data.trees import Found, look, opened, pack
from nunet_cli.records.documents import Document
from nunet_cli.records.identifiers import cid_from_digest, content_id
from nunet_cli.records.results import OutputFile, Result


def check_outputs(document: Document, spec: str, folder: Path, check: Callable[..., None]) -> None:
    """Check whether outputs and logs are in a folder as `job run --output-dir` writes them, and unchanged.

    Args:
        document: the signed result.
        spec: the job's specification, for what its patterns look for.
        folder: where they are.
        check: is told the name of each check, whether it passed, and what is wrong.
    """
    try:
        result = document.read(Result)
        patterns = _patterns(decode_spec(spec))
    except NunetError:
        return
    logs = [("stdout", result.stdout_cid, result.stdout_size), ("stderr", result.stderr_cid, result.stderr_size)]
    outputs = (*result.outputs, *(OutputFile(name, cid, size) for name, cid, size in logs if cid))
    names = {output.name for output in outputs}
    for output in outputs:
        path = folder / output.name
        inside = path.resolve().is_relative_to(folder.resolve())
        cid = _content(output, path, names, patterns) if inside else ""
        check(f"output.{output.name}"[:120], cid == output.cid, "it was changed" if cid else "it is not there")


def _patterns(spec: JobSpec) -> dict[str, tuple[str, ...]]:
    named = [(output_name(item), item) for item in spec.outputs]
    named += [(f"{child.name}/{output_name(item)}", item) for child in spec.children for item in child.outputs]
    return {name: split_glob(item.path)[1] for name, item in named}


def _content(output: OutputFile, path: Path, names: set[str], patterns: dict[str, tuple[str, ...]]) -> str:
    """Return the content id of what is there; empty where there is nothing that could be it."""
    try:
        if output.kind == "file":
            return content_id(path.read_bytes()) if path.is_file() else ""
        if output.kind == "folder":
            with opened(path) as root:
                return _packed(root, look(root))
        above = output.name.rpartition("/")[0]
        with opened(path.parent) as root:
            found = look(root, Pattern(patterns.get(output.name, ())))
            others = {name.removeprefix(f"{above}/") if above else name for name in names}
            # what came back beside them is none of them
            found.entries = [entry for entry in found.entries if entry.path.partition("/")[0] not in others]
            return _packed(root, found)
    except (OSError, NunetError):
        return ""


def _packed(root: int, found: Found) -> str:
    digest = _Digest()
    pack(root, found, digest)
    return cid_from_digest(digest.sha256.digest())


class _Digest:
    """What is written to it is hashed, and kept nowhere."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes, /) -> None:
        self.sha256.update(data)
