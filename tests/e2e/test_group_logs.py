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


def test_a_group_that_was_not_started_has_no_logs(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(BATCH)
    job = nunet("job", "post", str(tmp_path / "job.yaml"), "--quiet", home=tmp_path / "home").stdout.strip()
    done = nunet("job", "logs", job, home=tmp_path / "home", check=False)
    assert done.returncode == 2
    assert "none of its children has logs yet" in done.stderr
