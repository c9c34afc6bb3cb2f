"""Control groups: where they can be made, what is written in them, and that none stays behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nunet_cli.executor import cgroup
from nunet_cli.executor.cgroup import Group, Place

needs_groups = pytest.mark.skipif(cgroup.place() is None, reason="no control groups can be made here")
V1 = "4:memory:/ours\n3:pids:/\n2:cpuacct:/\n1:cpu:/elsewhere\n0::/\n"


def mounts(root: Path, *controllers: str) -> str:
    lines = [f"cgroup {root}/{name} cgroup rw,relatime,{name} 0 0" for name in controllers]
    return "\n".join([f"cgroup2 {root}/unified cgroup2 rw 0 0", *lines])


def test_version_1_needs_all_its_controllers_and_goes_below_its_own_group(tmp_path: Path) -> None:
    (tmp_path / "memory" / "ours").mkdir(parents=True)
    (found,) = cgroup._candidates(V1, mounts(tmp_path, "memory", "pids", "cpuacct", "cpu"))
    assert found.version == 1
    assert found.folders["memory"] == tmp_path / "memory" / "ours"
    # a container's own group may not be seen from inside
    assert found.folders["cpu"] == tmp_path / "cpu"
    assert cgroup._candidates(V1, mounts(tmp_path, "memory", "pids")) == []


def test_version_2_is_used_where_memory_and_processes_are_handed_down(tmp_path: Path) -> None:
    mine = tmp_path / "unified" / "app.slice" / "nunet.service"
    mine.mkdir(parents=True)
    (mine / "cgroup.subtree_control").write_text("\n")
    (mine.parent / "cgroup.subtree_control").write_text("memory pids cpu\n")
    (found,) = cgroup._candidates("0::/app.slice/nunet.service\n", mounts(tmp_path))
    assert found == Place(2, dict.fromkeys(("memory", "pids", "cpu"), mine.parent))
    (mine.parent / "cgroup.subtree_control").write_text("pids\n")
    assert cgroup._candidates("0::/app.slice/nunet.service\n", mounts(tmp_path)) == []


def test_limits_and_counts_of_version_2(tmp_path: Path) -> None:
    group = Group(Place(2, dict.fromkeys(("memory", "pids", "cpu"), tmp_path)), "nunet-x")
    group.make(64 * 2**20, 100, 0.5)
    (folder,) = group.folders
    assert (folder / "memory.max").read_text() == str(64 * 2**20)
    assert (folder / "pids.max").read_text() == "100"
    assert (folder / "cpu.max").read_text() == "50000 100000"
    (folder / "memory.stat").write_text("anon 1000\nfile 500\nshmem 24\n")
    (folder / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (folder / "pids.current").write_text("7\n")
    assert group.measure() == (1024, 7, 2.5)
    (folder / "memory.events").write_text("oom 1\noom_kill 0\n")
    assert not group.is_out_of_memory()
    (folder / "memory.events").write_text("oom 1\noom_kill 2\n")
    assert group.is_out_of_memory()


@needs_groups
def test_everything_in_a_group_is_ended_and_the_group_is_gone() -> None:
    group = cgroup.make_group(f"test-{os.getpid()}/member", 2**28, 64, 1)
    assert group is not None
    script = "echo $$ > {}; ".join(["", *[""] * len(group.entrances)]).format(*group.entrances)
    bomb = subprocess.Popen(
        ["sh", "-c", f"{script} for n in 1 2 3 4 5 6; do setsid sh -c 'while :; do sleep 0.01; done' & done; wait"]
    )
    while group.measure()[1] < 7:
        assert bomb.poll() is None
    group.remove()
    assert bomb.wait() == -9
    assert not any(folder.exists() for folder in group.folders)


@needs_groups
def test_what_an_earlier_node_left_is_found_by_the_jobs_name() -> None:
    key = f"test-{os.getpid()}"
    group = cgroup.make_group(key, 2**28, 64, 1)
    other = cgroup.make_group(f"{key}-2", 2**28, 64, 1)
    assert group is not None
    assert other is not None
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    for entrance in group.entrances:
        Path(entrance).write_text(str(child.pid))
    cgroup.sweep(key)
    assert child.wait() == -9
    assert not group.folders[0].exists()
    assert other.folders[0].exists()
    other.remove()
