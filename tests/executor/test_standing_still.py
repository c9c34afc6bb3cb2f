"""Looking at what jobs use is nothing that the node's own thread does: with many processes it would do nothing else."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli.executor import process
from tests.executor.jobs import started, task


async def test_nobody_looks_through_all_processes_in_the_nodes_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[threading.Thread] = []

    def noting(real: Any) -> Any:
        def look(path: Any = ".") -> Any:
            if path in ("/proc", b"/proc"):
                looks.append(threading.current_thread())
            return real(path)

        return look

    # where no control group counts for it, a job is watched
    if hasattr(process, "cgroup"):
        monkeypatch.setattr(process.cgroup, "place", lambda: None)
    monkeypatch.setattr(os, "listdir", noting(os.listdir))
    monkeypatch.setattr(os, "scandir", noting(os.scandir))
    async with started(task(tmp_path, "sleep", "60", sandbox=False)):
        with trio.fail_after(30):
            while len(looks) < 3:
                await trio.sleep(0.02)
    assert threading.main_thread() not in looks
