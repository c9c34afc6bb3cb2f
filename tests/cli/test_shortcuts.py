"""A job without a specification, the beginning of one, lists that are narrowed down, and waiting."""

import json
from pathlib import Path
from typing import Any

import pytest

from nunet_cli.cli.app import to_front
from tests.conftest import Processes, nunet


def output(*arguments: str, home: Path) -> Any:
    return json.loads(nunet(*arguments, "--output", "json", home=home).stdout)


def test_a_command_runs_as_a_job_and_prints_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("b\na\n")
    done = nunet("run", "--local", "-i", f"{tmp_path}/in.txt:data/in.txt", "-r", "sorted.txt", "-e", "LC_ALL=C",
                 "--output-dir", str(tmp_path / "out"), "--", "sh", "-c",
                 "sort data/in.txt | tee sorted.txt; echo warning >&2", home=tmp_path / "h", cwd=tmp_path)  # fmt: skip
    assert done.stdout == "a\nb\n"
    assert "\nwarning\n" in done.stderr
    assert (tmp_path / "out" / "sorted.txt").read_text() == "a\nb\n"
    failed = nunet(
        "run", "--local", "--", "sh", "-c", "echo before; exit 3", home=tmp_path / "h", check=False, cwd=tmp_path
    )
    assert (failed.returncode, failed.stdout) == (1, "before\n")
    assert "exit" in failed.stderr


def test_what_stands_before_the_dashes_is_an_image(tmp_path: Path) -> None:
    document = json.loads(
        nunet("run", "lab/tool:2", "--dry-run", "--price", "2/h", "--", "tool", "--flag", home=tmp_path).stdout
    )
    assert document["name"] == "tool"
    assert document["executor"] == {"type": "docker", "image": "lab/tool:2", "command": ["tool", "--flag"]}
    assert json.loads(nunet("run", "--dry-run", "--", "/bin/ls", home=tmp_path).stdout)["name"] == "ls"
    for arguments, message in (
        ((), "nothing to run"), (("--", "ls", "--memory"), ""), (("--memory", "much", "--", "ls"), "resources.memory"),
        (("-e", "A", "--", "ls"), "--env: 'A'"),
    ):  # fmt: skip
        done = nunet("run", "--dry-run", *arguments, home=tmp_path, check=False)
        assert done.returncode == (2 if message else 0)
        assert message in done.stderr


def test_a_specification_is_begun_and_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    (tmp_path / "count.py").touch()
    nunet("job", "init", "count", "--command", "python3 count.py 'a b'", "-i", "count.py", "-r", "counts.json",
          "--price", "0.5", "--file", str(path), home=tmp_path)  # fmt: skip
    assert path.read_text().startswith("# A job for nunet.")
    document = output("job", "validate", str(path), home=tmp_path)
    assert document["executor"]["command"] == ["python3", "count.py", "a b"]
    assert (document["outputs"][0]["path"], document["price"]["max"]) == ("counts.json", "0.5")
    again = nunet("job", "init", "--command", "ls", "--file", str(path), home=tmp_path, check=False)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    nunet("job", "init", "--command", "ls", "--file", str(path), "--yes", home=tmp_path)
    text = nunet("job", "init", "--command", "ls", "--file", "-", home=tmp_path).stdout
    assert nunet("job", "validate", "-", stdin=text, home=tmp_path).stdout == "stdin: valid\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with three posted jobs."""
    for name, price in (("one", "3"), ("two", "10"), ("three", "0.5")):
        spec = {"name": name, "executor": {"type": "process", "command": ["true"]}, "price": price}
        nunet("job", "post", "-", home=tmp_path, stdin=json.dumps(spec))
    return tmp_path


def names(text: str) -> list[str]:
    return [row["name"] for row in json.loads(text)]


def test_lists_are_filtered_sorted_and_cut(home: Path) -> None:
    def listed(*options: str) -> list[str]:
        return names(nunet("job", "list", *options, "--output", "json", home=home).stdout)

    assert listed() == ["one", "two", "three"]
    assert listed("--limit", "2") == ["two", "three"]
    assert listed("--sort", "limit") == ["three", "one", "two"]
    assert listed("--sort", "-limit", "--limit", "1") == ["two"]
    assert listed("--filter", "name~o") == ["one", "two"]
    assert listed("--filter", "name!=one", "--filter", "state=posted") == ["two", "three"]
    assert listed("--filter", "state=settled") == []
    ids = nunet("job", "list", "--filter", "name=one", "--quiet", home=home).stdout.split()
    assert output("job", "show", *ids, home=home)["name"] == "one"
    for options, message in (
        (("--filter", "name"), "--filter: 'name'"),
        (("--sort", "nme"), "there is no field 'nme'"),
    ):
        done = nunet("job", "list", *options, home=home, check=False)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_waiting_for_jobs(processes: Processes, tmp_path: Path) -> None:
    home = processes.requester
    processes.start(home)

    def post(command: str) -> str:
        spec = {"name": "wait", "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "1",
                "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}}  # fmt: skip
        return nunet("job", "run", "--detach", "-", "--quiet", home=home, stdin=json.dumps(spec)).stdout.strip()

    good, bad, slow = post("sleep 0.3"), post("exit 4"), post("sleep 60")
    done = nunet("job", "wait", good, home=home)
    assert done.stdout == f"{good}  settled\n"
    done = nunet("job", "wait", good, bad, home=home, check=False)
    assert (done.returncode, sorted(done.stdout.split())) == (1, sorted([good, "settled", bad, "failed"]))
    done = nunet("job", "wait", slow, "--timeout", "1s", home=home, check=False)
    assert (done.returncode, "have not ended in 1s" in done.stderr) == (5, True)
    nunet("job", "cancel", slow, home=home)
    rows = [
        json.loads(line)
        for line in nunet("job", "wait", slow, good, "-o", "jsonl", home=home, check=False).stdout.splitlines()
    ]
    assert {row["state"] for row in rows} == {"cancelled", "settled"}


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("job list --home /a", "--home /a job list"),
        ("job list --home=/a -o json --no-color", "--home=/a --no-color job list -o json"),
        ("--debug run --local -- echo --home x", "--debug run --local -- echo --home x"),
        ("job list --home", "job list --home"),
    ],
)
def test_global_options_may_stand_anywhere(given: str, understood: str) -> None:
    assert to_front(given.split()) == understood.split()


def test_a_home_behind_the_command(tmp_path: Path) -> None:
    document = json.loads(nunet("whoami", "--output", "json", "--home", str(tmp_path / "n")).stdout)
    assert document == output("whoami", home=tmp_path / "n")
