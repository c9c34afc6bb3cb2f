"""What a group's children write, through the command line."""

import json
from pathlib import Path

from tests.conftest import Processes, nunet

BATCH = """
name: counters
type: batch
batch: {count: 3, parallel: 1}
executor: {type: process, command: [sh, -c, 'echo "copy $NUNET_BATCH_INDEX"; printf end']}
resources: {cpu: 0.25, memory: 32MiB, disk: 16MiB}
price: 1 NTX
"""


def test_a_batch_without_outputs_brings_its_logs(processes: Processes, tmp_path: Path) -> None:
    home = processes.requester
    processes.start(home)
    (tmp_path / "job.yaml").write_text(BATCH)
    done = nunet("job", "run", str(tmp_path / "job.yaml"), "--output-dir", str(tmp_path / "out"), home=home)
    copies = [tmp_path / "out" / f"counters-{index}" / "stdout" for index in range(3)]
    assert done.stdout.split() == [str(path) for path in copies]
    assert [path.read_text() for path in copies] == [f"copy {index}\nend" for index in range(3)]

    (group,) = (
        row for row in json.loads(nunet("job", "list", "-o", "json", home=home).stdout) if row["kind"] == "group"
    )
    whole = nunet("job", "logs", group["id"], home=home).stdout
    assert whole == "".join(f"==> counters-{index} <==\ncopy {index}\nend\n" for index in range(3))
    lines = nunet("job", "logs", "-f", group["id"], home=home).stdout.splitlines()
    assert sorted(lines) == sorted(f"counters-{i} | {text}" for i in range(3) for text in (f"copy {i}", "end"))
    again = nunet("job", "result", group["id"], "--output-dir", str(tmp_path / "again"), "-o", "json", home=home)
    assert len(json.loads(again.stdout)["files"]) == 3


def test_a_batch_of_which_one_fails_brings_what_the_others_made(processes: Processes, tmp_path: Path) -> None:
    home = processes.requester
    processes.start(home)
    command = "test {index} != 1 || { echo no such number >&2; exit 3; }; echo {index} > part"
    text = BATCH.replace('echo "copy $NUNET_BATCH_INDEX"; printf end', command) + "outputs: [{path: part}]\n"
    (tmp_path / "job.yaml").write_text(text)
    out = tmp_path / "out"
    done = nunet("job", "run", str(tmp_path / "job.yaml"), "--output-dir", str(out), home=home, check=False)
    assert done.returncode == 1
    assert "1 of 3 failed: counters-1: the job exited with 3" in done.stderr
    assert [(out / f"counters-{n}" / "part").read_text() for n in (0, 2)] == ["0\n", "2\n"]
    assert (out / "counters-1" / "stderr").read_text() == "no such number\n"
    assert done.stdout.split() == [
        str(out / name) for name in ("counters-0/part", "counters-2/part", "counters-1/stderr")
    ]

    (group,) = nunet("job", "list", "--filter", "kind=group", "-q", home=home).stdout.split()
    result = nunet("job", "result", group, "--output-dir", str(tmp_path / "again"), home=home)
    assert len(result.stdout.split()) == 3
    assert "==> counters-1 <==\nno such number\n" in nunet("job", "logs", "--stderr", group, home=home).stdout
    (one,) = nunet("job", "list", "--all", "--filter", "name=counters-1", "-q", home=home).stdout.split()
    row = json.loads(nunet("job", "show", one, "-o", "json", home=home).stdout)
    # the hint names the stream that says why
    assert row["error"]["hint"] == f"see: nunet job logs --stderr {one}"


def test_a_group_that_was_not_started_has_no_logs(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(BATCH)
    job = nunet("job", "post", str(tmp_path / "job.yaml"), "--quiet", home=tmp_path / "home").stdout.strip()
    done = nunet("job", "logs", job, home=tmp_path / "home", check=False)
    assert done.returncode == 2
    assert "none of its children has logs yet" in done.stderr
