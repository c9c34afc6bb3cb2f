"""Folders, patterns and the results' folder from the command line, with real nodes and processes."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Processes, nunet, wait_until
from tests.network.test_trees import described

SMALL = {"cpu": 0.2, "memory": "64MiB", "disk": "64MiB"}


def job(folder: Path, command: str, **fields: Any) -> str:
    body = {
        "name": "test",
        "executor": {"type": "process", "command": ["sh", "-c", command]},
        "price": "1",
        "resources": SMALL,
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps({**body, **fields}, indent=1))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "work" / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "run.sh").write_text("#!/bin/sh\ncat sub/x\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "sub" / "x").write_text("x\n")
    (folder / "sub" / "x").chmod(0o640)
    (folder / "link").symlink_to("sub/x")
    return folder


def test_folders_and_patterns_between_processes(processes: Processes, tmp_path: Path, data: Path) -> None:
    text = job(data.parent, "(cd data && ./run.sh); mkdir o; cp data/sub/x o/a.csv; chmod 600 o/a.csv",
               inputs=[{"path": "data/"}], outputs=[{"path": "data"}, {"path": "o/*.csv"}, {"path": "o", "name": "all"}])  # fmt: skip
    nunet("node", "start", home=processes.requester)
    processes.running.append(processes.requester)
    out = tmp_path / "out"
    done = nunet("job", "run", text, "--output-dir", str(out), home=processes.requester)
    assert set(done.stdout.splitlines()) == {str(out / name) for name in ("data", "a.csv", "all", "stdout", "stderr")}
    assert (out / "stdout").read_text() == "x\n"
    assert described(out / "data") == described(data)
    assert stat.S_IMODE((out / "a.csv").stat().st_mode) == 0o600
    assert (out / "all" / "a.csv").read_text() == "x\n"
    # the same folder again: what is there is overwritten, what is beside it stays
    (out / "data" / "mine").write_text("mine")
    (out / "data" / "sub" / "x").write_text("changed")
    nunet("job", "run", text, "--output-dir", str(out), home=processes.requester)
    assert (out / "data" / "mine").read_text() == "mine"
    assert (out / "data" / "sub" / "x").read_text() == "x\n"


def test_the_results_folder_is_looked_at_before_anything_is_posted(tmp_path: Path) -> None:
    text = job(tmp_path, "true")
    (tmp_path / "file").write_text("")
    home = tmp_path / "home"
    wrong = {"file": "is not a folder", "file/below": "is not a folder"}
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        wrong |= {"closed": "cannot be written to", "closed/below": "cannot be written to"}
    for name, message in wrong.items():
        for command in (("job", "run", text), ("run", "--price", "0", "--", "true")):
            at = command.index("--") if "--" in command else len(command)
            options = ("--output-dir", str(tmp_path / name))
            done = nunet(*command[:at], *options, *command[at:], home=home, check=False)
            assert done.returncode == 2
            assert f"--output-dir: {tmp_path}" in done.stderr
            assert message in done.stderr
    assert nunet("job", "list", "--quiet", home=home).stdout == ""


def test_what_stands_where_outputs_are_to_be_is_told_before_anything_is_posted(tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    (out / "stdout").mkdir(parents=True)
    (work := tmp_path / "work").mkdir()
    (out / "all").write_text("")
    (out / "two").write_text("")
    child = json.loads(Path(job(tmp_path, "true")).read_text())
    group = tmp_path / "group.json"
    group.write_text(json.dumps({"name": "both", "children": [{**child, "name": name} for name in ("one", "two")]}))
    batch = tmp_path / "batch.json"
    batch.write_text(
        json.dumps({**child, "type": "batch", "batch": {"items": [{"n": "one"}, {"n": "two"}], "name": "{n}"}})
    )
    for text, said in (
        (job(tmp_path, "true"), f"{out}/stdout is a folder"),
        (job(work, "true", outputs=[{"path": "*.csv", "name": "all"}]), f"{out}/all is not a folder"),
        (str(group), f"{out}/two is not a folder"), (str(batch), f"{out}/two is not a folder"),
    ):  # fmt: skip
        done = nunet("job", "run", text, "--output-dir", str(out), home=home, check=False)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    # what takes no file, whatever its modes are
    done = nunet("job", "run", job(tmp_path, "true"), "--output-dir", "/proc/none", home=home, check=False)
    assert (done.returncode, "/proc cannot be written to" in done.stderr) == (2, True), done.stderr
    assert nunet("job", "list", "--quiet", home=home).stdout == ""
    assert sorted(path.name for path in out.iterdir()) == ["all", "stdout", "two"]


def test_an_output_that_cannot_be_written_is_named_and_the_others_are_there(tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    # the job may make a folder of that name, which would be put into this one
    (out / "o").mkdir(parents=True)
    text = job(tmp_path, "echo 1 > o; echo 2 > z", outputs=[{"path": "o"}, {"path": "z"}])
    done = nunet("job", "run", text, "--local", "--output-dir", str(out), home=home, check=False)
    assert done.returncode == 2
    assert f"cannot write to {out}/o: Is a directory" in done.stderr
    (key,) = nunet("job", "list", "--quiet", home=home).stdout.split()
    assert f"nunet job result {key} --output-dir FOLDER" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["o", "stderr", "stdout", "z"]
    assert not list((out / "o").iterdir())


def test_what_cannot_be_sent_is_said_with_line_and_field(tmp_path: Path, data: Path) -> None:
    (data / "out").symlink_to("/etc/passwd")
    text = job(data.parent, "true", inputs=[{"path": "data"}])
    done = nunet("job", "validate", text, home=tmp_path / "home", check=False)
    assert done.returncode == 2
    assert "job.yaml:" in done.stderr
    assert "inputs[0].path" in done.stderr
    assert "out: it is a link that leads out of the folder" in done.stderr
    (data / "out").unlink()
    text = job(data.parent, "true", inputs=[{"path": "data/*.csv"}])
    done = nunet("job", "validate", text, home=tmp_path / "home", check=False)
    assert "inputs[0].path: no file matches *.csv" in done.stderr


def test_what_the_others_have_made_is_there_when_one_of_a_group_fails(tmp_path: Path) -> None:
    def child(name: str, command: str) -> dict[str, Any]:
        return {"name": name, "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "0.1",
                "resources": SMALL, "outputs": [{"path": "o"}]}  # fmt: skip

    children = [child("good", "mkdir o; echo good > o/x"), child("bad", "echo why >&2; exit 4")]
    text = tmp_path / "group.yaml"
    links = [{"from": "good", "to": "bad"}]
    text.write_text(json.dumps({"name": "group", "children": children, "links": links}))
    out = tmp_path / "new" / "out"
    done = nunet("job", "run", str(text), "--local", "--output-dir", str(out), home=tmp_path / "home", check=False)
    assert done.returncode == 1
    assert (out / "good" / "o" / "x").read_text() == "good\n"
    assert (out / "bad" / "stderr").read_text() == "why\n"
    assert str(out / "good" / "o") in done.stdout


def test_a_transfer_goes_on_after_the_requester_was_killed(processes: Processes, tmp_path: Path) -> None:
    size = 2**28
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    text = job(tmp_path, "wc -c < large", inputs=[{"path": "large"}], resources={**SMALL, "disk": "300MiB"})
    processes.start(processes.requester)
    job_id = nunet("job", "run", text, "--detach", "--quiet", home=processes.requester).stdout.strip()
    folder = processes.provider / "blobs" / "partial"

    def arrived() -> int:
        return sum(part.stat().st_size for part in folder.glob("bafk*.*"))

    before = wait_until(arrived, 60, "the first bytes")
    process = psutil.Process(json.loads((processes.requester / "node.lock").read_text())["pid"])
    process.kill()
    process.wait(20)
    processes.running.remove(processes.requester)
    log = processes.provider / "node.log"
    cut = wait_until(lambda: re.search(r"was cut at (\d+) bytes", log.read_text()), 20, "the cut")
    kept = int(cut[1])
    assert before <= kept < size, "the transfer was over before anybody was killed"
    # what has come stays
    assert arrived() == kept
    (part,) = folder.glob("bafk*.*")
    number = part.stat().st_ino
    processes.start(processes.requester)
    nunet("job", "wait", job_id, home=processes.requester)
    assert nunet("job", "logs", job_id, home=processes.requester).stdout.split() == [str(size)]
    # and it went on in the very same file
    assert "it is fetched anew" not in log.read_text()
    assert part.stem in [path.name for path in (processes.provider / "blobs").iterdir() if path.stat().st_ino == number]
