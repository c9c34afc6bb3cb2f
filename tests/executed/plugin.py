"""A pytest plugin: writes down which named functions each test executes, also in the processes that it starts."""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.executed.sitecustomize import FOLDER

BASE = Path(os.environ[FOLDER])


def name_of(item: pytest.Item) -> str:
    """Return a test as docs/specification.md names it."""
    file, _, rest = item.nodeid.partition("::")
    return f"{file.removeprefix('tests/')}:{rest.partition('::')[0].partition('[')[0]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Give each test a folder of its own to be written in, fixtures included."""
    own = BASE / f"{zlib.crc32(item.nodeid.encode()):08x}"
    own.mkdir(exist_ok=True)
    (own / "names").write_text((BASE / "names").read_text())
    os.environ[FOLDER] = str(own)
    try:
        return (yield)
    finally:
        os.environ[FOLDER] = str(BASE)
        executed = own / "executed"
        if executed.exists():
            with (BASE / "by-test").open("a") as file:
                file.write("".join(f"{name_of(item)} {line}\n" for line in sorted(set(executed.read_text().split()))))
