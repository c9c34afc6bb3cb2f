"""`nunet map` on a market of real nodes, through a real shell: the pictures of the examples, and what may go wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.conftest import EXAMPLES, ROOT, Processes, needs_docker, nunet, onboarded, wait_until
from tests.images import busybox_image

SMALL = ("--price", "0.5", "--cpu", "0.2", "--memory", "64MiB", "--disk", "16MiB")
PICTURES = 50


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start an authority, two providers and a requester for all tests here; return the requester's home."""
    folder = tmp_path_factory.mktemp("map")
    nodes = Processes(folder, [])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "NUNET_NETWORK_NAME": f"map-{folder.name}-{os.getpid()}", "NUNET_NETWORK_LISTEN": "127.0.0.1:0",
            "NUNET_EXECUTOR_PROCESS_FOREIGN": "unsandboxed", "NUNET_LIMITS_HEARTBEAT": "1s", "NUNET_LIMITS_LOG_SIZE": "4KiB",
            "NUNET_EXECUTOR_DOCKER_IMAGES": "*",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        providers = [folder / "p1", folder / "p2"]
        try:
            for home in providers:
                onboarded(home)
            with ThreadPoolExecutor() as pool:
                for home in (*providers, nodes.requester):
                    pool.submit(nodes.start, home)
                pool.submit(nodes.start, nodes.authority, "--role", "contract-database", "--role", "oracle")
            wait_until(lambda: peers(nodes.requester) == 3, what="the requester is connected to all others")
            yield nodes.requester
        finally:
            for home in list(nodes.running):
                nunet("node", "stop", home=home, check=False)


def peers(home: Path) -> int:
    rows = json.loads(nunet("peer", "list", "--output", "json", home=home).stdout)
    return sum(1 for row in rows if row["connected"] and row["roles"])


def run(home: Path, folder: Path, *words: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return nunet("map", *SMALL, *words, home=home, cwd=folder, check=check, stdin=stdin)


@contextmanager
def started(market: Path, folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Give a map that runs; it does not outlive the context."""
    with subprocess.Popen(
        [sys.executable, "-m", "nunet_cli", "--home", market, "map", *SMALL, *words], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def last_batch(home: Path) -> dict[str, Any]:
    rows = json.loads(nunet("job", "list", "--output", "json", home=home).stdout)
    return max(rows, key=lambda row: row["created_at"])


def settled_of(home: Path, name: str) -> list[str]:
    """Return the items that have settled of the batch that has a name; none before it is posted."""
    rows = json.loads(nunet("job", "list", "--output", "json", home=home).stdout)
    batches = [row["id"] for row in rows if row["name"] == name]
    words = ("job", "list", "--filter", "state=settled", "--quiet", "--in")
    return nunet(*words, *batches, home=home).stdout.split() if batches else []


def log_of(path: Path) -> dict[str, list[str]]:
    """Return the lines of a job log by the items' numbers, the last one of each."""
    return {line.split("\t")[0]: line.split("\t") for line in path.read_text().splitlines()[1:]}


def gray(picture: str) -> str:
    """Return a picture in plain PPM as one in plain PGM."""
    words = [word for line in picture.splitlines() for word in line.partition("#")[0].split()]
    kind, width, height, depth, *values = words
    assert kind == "P3"
    triples = zip(*[iter(map(int, values))] * 3, strict=True)
    points = [str(int(0.299 * r + 0.587 * g + 0.114 * b + 0.5)) for r, g, b in triples]
    return "\n".join(["P2", f"{width} {height}", depth, *points]) + "\n"


def test_a_folder_of_pictures_is_made_gray(market: Path, tmp_path: Path) -> None:
    """Fifty, of which one is none: it is told, and runs again alone once it is one."""

    def script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PATH": forks.tools(tmp_path / "tools"),
            "NUNET_HOME": str(market),
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.run(
            ["sh", str(EXAMPLES / "pictures" / name), *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip

    assert script("make.sh", str(PICTURES)).returncode == 0
    names = [f"{number:02}" for number in range(1, PICTURES + 1)]
    whole = (tmp_path / "in/17.ppm").read_text()
    (tmp_path / "in/17.ppm").write_text("no picture\n")
    done = script("gray.sh")
    assert done.returncode == 1, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        f"in/{name}.ppm" for name in names if name != "17"
    ]
    assert "nunet: item 17 (in/17.ppm): the job exited with 1" in done.stderr
    assert "in/17.ppm: not a picture in plain PPM\n" in done.stderr
    assert f"nunet: 1 of {PICTURES} items failed; 9.8 NTX paid\n" in done.stderr
    assert [number for number, line in log_of(tmp_path / "gray.log").items() if line[6] != "0"] == ["17"]
    hosts = {line[1] for line in log_of(tmp_path / "gray.log").values()}
    assert all(host.startswith("12D3KooW") for host in hosts)

    (tmp_path / "in/17.ppm").write_text(whole)
    again = script("gray.sh")
    assert (again.returncode, again.stdout.split()[0], len(again.stdout.splitlines())) == (0, "in/17.ppm", 1), (
        again.stderr
    )
    for name in names:
        assert (tmp_path / "out" / f"{name}.pgm").read_text() == gray((tmp_path / "in" / f"{name}.ppm").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gray.log", "in", "out", "tools"]

    # and so it would have been on this machine
    (tmp_path / "out").rename(tmp_path / "there")
    (tmp_path / "gray.log").unlink()
    here = script("gray.sh", "--local")
    assert here.returncode == 0, here.stderr
    assert {line for line in here.stdout.splitlines() if "17.ppm" not in line} == set(done.stdout.splitlines())
    for name in names:
        assert (tmp_path / "out" / f"{name}.pgm").read_bytes() == (tmp_path / "there" / f"{name}.pgm").read_bytes()


def test_what_items_write_is_exact_and_whole(market: Path, tmp_path: Path) -> None:
    script = "printf '%s\\0\\377\\r\\n' {}; printf end; echo e{} >&2"
    with started(market, tmp_path, "-k", "--tag", script, ":::", "1", "2 3") as process:
        out, err = process.communicate(timeout=60)
    assert out == b"1\t1\0\xff\r\n1\tend2 3\t2 3\0\xff\r\n2 3\tend"
    assert err == b"1\te1\n2 3\te2 3\nnunet: 0.4 NTX paid\n"
    # a provider keeps 4 KiB of a log here
    cut = run(market, tmp_path, "--joblog", "log", "head -c {} /dev/zero", ":::", "4000", "5000", check=False)
    assert (cut.returncode, "item 2 (5000): its output is not whole" in cut.stderr) == (1, True)
    assert [line[6] for _, line in sorted(log_of(tmp_path / "log").items())] == ["0", "-1"]


def test_names_are_meant_as_they_are(market: Path, tmp_path: Path) -> None:
    names = ["it's", "a b", "c[1]", "{seq}", "-x", "$HOME", "é"]
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_text(f"{name}\n")
    done = run(market, tmp_path, "-k", "--transfer", "--return", "out/./{/}.up", "-e", "TEXT={seq}{{seq}}", "-i", "in/é:{index}",
               "cat ./{} '{index}' > ./{/}.up; echo $TEXT", ":::", *(f"in/{name}" for name in names))  # fmt: skip
    assert done.stdout == "{seq}{{seq}}\n" * len(names)
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        f"{name}.up": f"{name}\né\n" for name in names
    }
    run(market, tmp_path, "--return", "made/*.x", "mkdir made; touch made/{}.x made/{}.y", ":::", "1", "2")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["1.x", "2.x"]


def test_several_items_are_one_job(market: Path, tmp_path: Path) -> None:
    """The last job has fewer files than the others."""
    (tmp_path / "in").mkdir()
    for name in "abcde":
        (tmp_path / "in" / f"{name}[1].x").write_text(f"{name}\n")
    script = "ls in; for f in {}; do cp $f ${f%.x}.y; done"
    done = run(market, tmp_path, "-k", "-n", "2", "--joblog", "log", "--trc", "{.}.y", script, "::::", "-", check=True,
               stdin="".join(f"in/{name}[1].x\n" for name in "abcde"))  # fmt: skip
    assert done.stdout == "a[1].x\nb[1].x\nc[1].x\nd[1].x\ne[1].x\n"
    assert {path.name: path.read_text() for path in (tmp_path / "in").glob("*.y")} == {
        f"{name}[1].y": f"{name}\n" for name in "abcde"
    }
    assert [line[4] for _, line in sorted(log_of(tmp_path / "log").items())] == ["4", "4", "2"]
    for number in range(120):
        (tmp_path / f"{number}").write_text(f"{number}\n")
    words = ("--transfer", "cat {}", ":::", *map(str, range(120)))
    done = run(market, tmp_path, "-k", "-n", "50", *words)
    assert done.stdout == "".join(f"{number}\n" for number in range(120))
    refused = run(market, tmp_path, "-n", "120", *words, check=False)
    assert (refused.returncode, "item 1: too many files go with it: 120 there" in refused.stderr) == (2, True)


def test_failures_are_run_again_and_stop_the_rest(market: Path, tmp_path: Path) -> None:
    done = run(market, tmp_path, "--retries", "3", "echo try {}; exit 5", ":::", "x", check=False)
    assert (done.returncode, done.stdout) == (1, "try x\n")
    batch = last_batch(market)
    (item,) = json.loads(nunet("job", "list", "--in", batch["id"], "--output", "json", home=market).stdout)
    assert item["attempt"] == 3
    missing = run(market, tmp_path, "--return", "{}.out", "echo here", ":::", "x", check=False)
    assert (missing.returncode, missing.stdout) == (1, "here x\n")
    assert "item 1 (x): the job did not write x.out" in missing.stderr
    for halt, code in (("soon,fail=1", 1), ("now,fail=1", 1), ("now,success=1", 0)):
        words = [
            "--halt",
            halt,
            "-j1",
            "--joblog",
            "log",
            "echo {}; exit {}",
            ":::",
            *("3" if "fail" in halt else "0"),
            *["0"] * 20,
        ]
        stopped = run(market, tmp_path, *words, check=False)
        assert stopped.returncode == code, stopped.stderr
        # the next ones may have been begun meanwhile; all others have not
        assert 1 <= len(log_of(tmp_path / "log")) < 10, halt
        assert (" did not run" in stopped.stderr) == (code == 1)


def test_nobody_can_run_it(market: Path, tmp_path: Path) -> None:
    done = run(market, tmp_path, "--cpu", "500", "--joblog", "log", "echo", ":::", "a", "b", check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.count("no acceptable bid") == 1
    # one of them may still have a job that another test called off
    assert re.search(r"no acceptable bid: 2 declined; cpu\.cores: 499(\.\d)? short \([12] of 2\)", done.stderr), (
        done.stderr
    )
    assert "nunet: one more item could not run, for the same reason\n" in done.stderr
    batch = last_batch(market)["id"]
    hint = rf"hint: --cpu (1|0\.\d) would have got a bid; see also: nunet job explain {batch}; run them again: "
    assert re.search(hint, done.stderr), done.stderr
    assert [line[6] for line in log_of(tmp_path / "log").values()] == ["-1", "-1"]
    # what somebody forgets first is the price
    done = nunet("map", "--cpu", "0.2", "--memory", "64MiB", "echo", ":::", "a", home=market, cwd=tmp_path, check=False)
    hint = "--price 0.2 would have got a bid; see also: nunet job explain "
    assert (done.returncode, hint in done.stderr) == (4, True), done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_calls_off_the_rest(market: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    with started(
        market, tmp_path, "-j4", "--joblog", "log", "-k", "sleep {}; echo {}", ":::", "0", *["300"] * 11
    ) as process:
        log = tmp_path / "log"
        wait_until(lambda: log.exists() and log_of(log), what="the first one ended")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b"0\n"), err
    assert b"interrupted: calling off what has not ended" in err
    assert b"1 done, 0 failed, 11 called off; 0.2 NTX paid" in err
    assert list(log_of(log)) == ["1"]
    batch = last_batch(market)
    assert (batch["state"], batch["paid"]) == ("cancelled", "0.2")


def test_what_was_printed_before_ctrl_c_is_not_run_again_and_all_else_is(market: Path, tmp_path: Path) -> None:
    """Whatever it comes in between: nothing is lost, and nothing comes twice."""
    words = ["-k", "--joblog", "log", "--resume", "sleep 1; echo {}", ":::", *map(str, range(50))]
    printed: list[str] = []
    for name in ("first", "second"):
        have_settled = partial(settled_of, market, name)
        with started(market, tmp_path, "--name", name, *words) as process:
            before = len(printed)
            wait_until(lambda of=have_settled: of(), what="some have settled")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        printed += out.decode().split()
        assert len(printed) > before, err
        assert [line.split("\t")[0] for line in (tmp_path / "log").read_text().splitlines()[1:]] == [
            str(int(text) + 1) for text in printed
        ]
        assert f"{len(printed) - before} done, 0 failed, " in err.decode()
    printed += run(market, tmp_path, *words).stdout.split()
    assert sorted(map(int, printed)) == list(range(50))


def test_nobody_reads_any_more(market: Path, tmp_path: Path) -> None:
    # the second one has something to print only when nobody reads any more
    with started(market, tmp_path, "sleep {}; echo {}", ":::", "0", "5", *["300"] * 5) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.wait(timeout=60)
    batch = last_batch(market)
    assert batch["state"] == "cancelled"


def test_what_somebody_else_calls_off_has_failed(market: Path, tmp_path: Path) -> None:
    with started(
        market, tmp_path, "--joblog", "log", "--retries", "2", "sleep {}", ":::", "0", "300", "301"
    ) as process:
        wait_until(lambda: (tmp_path / "log").exists() and log_of(tmp_path / "log"), what="the first one ended")
        rows = json.loads(
            nunet("job", "list", "--in", last_batch(market)["id"], "--output", "json", home=market).stdout
        )
        (second,) = [row["id"] for row in rows if row["name"] == "sleep-2"]
        nunet("job", "cancel", second, home=market)
        wait_until(lambda: len(log_of(tmp_path / "log")) == 2, what="the second one is told")
        nunet("job", "cancel", last_batch(market)["id"], home=market)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"item 2 (300): its job is cancelled" in err
    assert b"item 3 (301): its job is cancelled" in err
    assert {number: line[6] for number, line in log_of(tmp_path / "log").items()} == {"1": "0", "2": "-1", "3": "-1"}


def test_the_node_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUNET_NETWORK_NAME", f"gone-{os.getpid()}")
    monkeypatch.setenv("NUNET_DEFAULT_SEARCH_TIMEOUT", "60s")
    home = tmp_path / "other"
    nunet("node", "start", home=home)
    with started(home, tmp_path, "sleep 300", ":::", "a") as process:
        wait_until(lambda: json.loads(nunet("job", "list", "--output", "json", home=home).stdout), what="it is posted")
        nunet("node", "stop", home=home)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert b"does not answer" in err
    assert b"the items are kept: once the node runs again, see nunet job show job-" in err


def test_what_is_in_the_way_is_not_written_over(market: Path, tmp_path: Path) -> None:
    (tmp_path / "x.out").mkdir()
    (tmp_path / "y.out").write_text("old")
    done = run(market, tmp_path, "-k", "--return", "{}.out", "echo {} > {}.out", ":::", "x", "y", check=False)
    assert done.returncode == 1, done.stderr
    assert re.search(
        r"item 1 \(x\): what it made cannot be brought here: Is a directory: x.out; it is kept: nunet job result job-\w+\n",
        done.stderr,
    ), done.stderr
    assert (list((tmp_path / "x.out").iterdir()), (tmp_path / "y.out").read_text()) == ([], "y\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.out", "y.out"]
    run(market, tmp_path, "--return", "x.out", "mkdir x.out; touch x.out/{}", ":::", "new")
    assert [path.name for path in (tmp_path / "x.out").iterdir()] == ["new"]


def test_what_a_pattern_brings_does_not_lead_anywhere_else(market: Path, tmp_path: Path) -> None:
    """Links first, folders of the same names next: what stands here is not written through them."""
    (tmp_path / ".git" / "hooks").mkdir(parents=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.c").write_text("mine")
    script = (
        "if [ {} = one ]; then ln -s .git a.png; ln -s src b.png; touch c.png; ln -s c.png d.png; else mkdir -p a.png/hooks b.png; "
        "touch a.png/hooks/pre-commit b.png/main.c; echo new > d.png; fi"
    )
    for item, made in (("one", ["c.png", "d.png"]), ("two", ["a.png", "b.png", "c.png", "d.png"])):
        run(market, tmp_path, "--return", "*.png", script, ":::", item)
        assert sorted(path.name for path in tmp_path.glob("*.png")) == made
    assert (list((tmp_path / ".git/hooks").iterdir()), (tmp_path / "src/main.c").read_text()) == ([], "mine")
    # the link gave way, and what it led to is as it was
    assert ((tmp_path / "c.png").read_text(), (tmp_path / "d.png").read_text()) == ("", "new\n")


@needs_docker
def test_a_shell_of_an_image_reads_the_command(market: Path, tmp_path: Path) -> None:
    with busybox_image(f"nunet-test-{os.getpid()}:map") as name:
        (tmp_path / "in").write_text("b\na\n")
        words = ["--image", name, "--transfer", "--return", "{}.sorted"]
        done = run(market, tmp_path, *words, "sort {} | tee {}.sorted; test -e /bin/busybox", ":::", "in")
        assert (done.stdout, (tmp_path / "in.sorted").read_text()) == ("a\nb\n", "a\nb\n")
        cut = run(market, tmp_path, "--image", name, "dd if=/dev/zero bs={} count=1", ":::", "5000", check=False)
        assert (cut.returncode, "item 1 (5000): its output is not whole" in cut.stderr) == (1, True), cut.stderr
