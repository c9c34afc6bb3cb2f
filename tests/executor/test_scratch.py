"""The scratch folder of a job: what is wrong with the names that the job chose is the job's fault."""

from pathlib import Path
from typing import Any

import pytest

from nunet_cli.executor.base import ExecutorError, Given, Task, make_scratch
from nunet_cli.jobs.spec import ExecutorSpec
from nunet_cli.records.capability import Resources


def scratch(folder: Path, kind: Any, places: tuple[str, ...], workdir: str = "") -> Task:
    """Make the scratch folder of a job whose inputs have these places."""
    source = folder / "source"
    source.write_text("given\n")
    task = Task(
        allocation_id="allocation-1", spec=ExecutorSpec(type=kind, image="x", command=("true",), workdir=workdir),
        resources=Resources(), max_duration=1, max_log=1, folder=folder / "scratch", inputs=places,
    )  # fmt: skip
    make_scratch(task, [Given(place, source) for place in places])
    return task


@pytest.mark.parametrize("kind", ["docker", "process"])
@pytest.mark.parametrize(
    "places", [("a", "a/b"), ("a/b", "a"), ("a", "./a"), ("a/b", "a//b"), ("n" * 256,), ("d" * 256 + "/a",), ("../a",)]
)
def test_places_that_cannot_be_together_are_the_jobs_fault(tmp_path: Path, kind: Any, places: tuple[str, ...]) -> None:
    with pytest.raises(ExecutorError) as caught:
        scratch(tmp_path, kind, places)
    assert caught.value.code == "bad_place"


@pytest.mark.parametrize(
    ("workdir", "code"), [("/etc", "no_workdir"), ("../out", "no_workdir"), ("a", "bad_place"), ("a/b", "bad_place")]
)
def test_a_working_folder_that_cannot_be_made_is_the_jobs_fault(tmp_path: Path, workdir: str, code: str) -> None:
    with pytest.raises(ExecutorError) as caught:
        scratch(tmp_path, "docker", ("a",), workdir)
    assert caught.value.code == code
    assert not (tmp_path / "scratch" / "out").exists()


def test_inputs_are_in_their_places(tmp_path: Path) -> None:
    task = scratch(tmp_path, "process", ("a", "b/c", "b/d"))
    assert [(task.work / place).read_text() for place in task.inputs] == ["given\n"] * 3
    task = scratch(tmp_path, "docker", ("a", "b/c"), "b/deep")
    assert [(task.work / place).read_text() for place in task.inputs] == ["", ""]
    assert [(task.kept_inputs / name).read_text() for name in ("0", "1")] == ["given\n"] * 2
    assert (task.work / "b" / "deep").is_dir()
