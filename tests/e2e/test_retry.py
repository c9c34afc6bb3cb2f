"""Running again what failed, through the command line."""

import json
from pathlib import Path

from tests.conftest import Processes, nunet

JOB = """
name: tries
executor: {{type: process, command: [sh, -c, 'echo hello; test -e {mended} && echo yes > part']}}
resources: {{cpu: 0.25, memory: 32MiB, disk: 16MiB}}
outputs: [{{path: part}}]
price: 1 NTX
"""
BATCH = JOB + "type: batch\nbatch: {{count: 3, parallel: 3}}\n"


def test_a_job_that_failed_is_run_again_and_only_the_new_story_is_told(
    processes: Processes, tmp_path: Path, shared: Path
) -> None:
    home, mended = processes.requester, shared / "mended"
    processes.start(home)
    (tmp_path / "job.yaml").write_text(JOB.format(mended=mended))
    first = nunet("job", "run", str(tmp_path / "job.yaml"), "--output-dir", str(tmp_path / "1"), home=home, check=False)
    assert first.returncode == 1
    (job,) = nunet("job", "list", "-q", home=home).stdout.split()

    again = nunet("job", "run", "--job", job, home=home, check=False)
    assert again.returncode == 1
    assert f"job {job} has ended, it is failed: the job exited with 1" in again.stderr
    assert f"nunet job retry {job}" in again.stderr
    # the old story is not told as if it ran again
    assert "bid of" not in again.stderr

    still = nunet("job", "retry", job, home=home, check=False)
    assert still.returncode == 1
    assert "attempt 2" in still.stderr
    mended.touch()
    done = nunet("job", "retry", job[:14], "--output-dir", str(tmp_path / "out"), home=home)
    assert (tmp_path / "out" / "part").read_text() == "yes\n"
    assert done.stderr.count("asking for bids") == 1
    assert "attempt 3" in done.stderr

    row = json.loads(nunet("job", "show", job, "-o", "json", home=home).stdout)
    assert (row["state"], row["attempt"], [past["number"] for past in row["past"]]) == ("settled", 3, [1, 2])
    assert len({past["contract_id"] for past in row["past"]} | {row["contract_id"]}) == 3
    assert {past["provider"] for past in row["past"]} != {None}
    shown = nunet("job", "show", job, home=home).stdout
    assert "attempt 2" in shown
    assert "the job exited with 1" in shown
    assert nunet("job", "logs", job, "--attempt", "1", home=home).stdout == "hello\n"
    followed = nunet("job", "events", "-f", job, "-o", "jsonl", home=home).stdout.splitlines()
    assert json.loads(followed[-1])["type"] == "job_settled"
    over = nunet("job", "retry", job, home=home, check=False)
    assert over.returncode == 2
    assert "is settled: there is nothing to run again" in over.stderr
    assert "nothing failed" in nunet("job", "retry", job, "--failed", home=home).stderr


def test_of_a_batch_that_failed_what_failed_is_run_again_beside_a_job(
    processes: Processes, tmp_path: Path, shared: Path
) -> None:
    home, mended = processes.requester, shared / "mended"
    processes.start(home)
    (tmp_path / "batch.yaml").write_text(BATCH.format(mended=mended))
    (tmp_path / "job.yaml").write_text(JOB.format(mended=mended))
    ids = []
    for name in ("batch", "job"):
        done = nunet("job", "run", str(tmp_path / f"{name}.yaml"), "-o", "json", home=home, check=False)
        assert done.returncode == 1
        ids.append(json.loads(done.stdout)["id"])
    mended.touch()
    printed = nunet("job", "retry", *ids, "--detach", home=home)
    assert printed.stdout.split() == ids
    nunet("job", "wait", *ids, "--timeout", "60s", home=home)
    nunet("job", "result", ids[0], "--output-dir", str(tmp_path / "out"), home=home)
    assert [(tmp_path / "out" / f"tries-{n}" / "part").read_text() for n in range(3)] == ["yes\n"] * 3
    followed = nunet("job", "logs", "-f", ids[0], home=home).stdout.splitlines()
    assert sorted(followed) == [f"tries-{n} | hello" for n in range(3)]
