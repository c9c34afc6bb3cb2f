"""What the documents tell people to type is typed here, block by block, in a real shell; and they make a site."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks
from tests.conftest import ROOT, free_port, nunet

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(document: str) -> list[str]:
    return BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


def python_path() -> str:
    """Return where Python looks for modules: here first."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


def shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in `sh`, with `nunet` on the path, and everything below `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return subprocess.run(
        ["sh", "-e", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=280,
        env={**kept, "PATH": forks.tools(folder / "tools"), "HOME": str(folder), "PYTHONPATH": python_path(), **environment},
    )  # fmt: skip


def typed(
    document: str, folder: Path, *, before: str = "", change: dict[str, str] | None = None, **environment: str
) -> str:
    """Type every block of a document one after another; return what was printed.

    Args:
        document: its path in the checkout.
        folder: the home of the person who types.
        before: what was typed before.
        change: what is written otherwise here.
        environment: beside this process's own.
    """
    script = "\n".join(blocks(document))
    for text, other in (change or {}).items():
        assert text in script, text
        script = script.replace(text, other)
    script = f"{before}\n{script}"
    if shutil.which("bwrap") is None:
        script = script.replace("--process sandboxed", "--process unsandboxed")
    try:
        done = shell(script, folder, **environment)
    finally:
        for lock in folder.glob("**/node.lock"):
            nunet("node", "stop", home=lock.parent, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def own_network(name: str) -> str:
    """Return a network's name that no test beside this one has."""
    return f"{name}-{os.getpid()}"


def in_folder(folder: Path) -> str:
    """Return what goes to a folder of its own, with the examples in it."""
    (folder / "examples").symlink_to(ROOT / "examples")
    return f"cd {folder}"


def test_a_provider_in_a_lab(tmp_path: Path) -> None:
    said = typed("docs/how-to/provider-in-a-lab.md", tmp_path, before=in_folder(tmp_path),
                 NUNET_NETWORK_NAME=own_network("lab"))  # fmt: skip
    for text in ("1 core of 1 core", "python:*,lab/*", "machine.cpu_load < 0.8", "ExecStart=", "offboarded"):
        assert text in said, text


def test_jobs_from_ci(tmp_path: Path) -> None:
    said = typed("docs/how-to/jobs-from-ci.md", tmp_path, before=in_folder(tmp_path),
                 NUNET_NETWORK_NAME=own_network("ci"))  # fmt: skip
    for text in (
        "job.yaml: valid",
        "\nfine\n",
        "the smallest change that would have got a bid",
        "ok    receipt.amount",
    ):
        assert text in said, text


def test_folders_and_many_files(tmp_path: Path) -> None:
    said = typed("docs/how-to/data.md", tmp_path, before=in_folder(tmp_path))
    assert "\n3\n3\n" in said


def test_a_command_for_every_file(tmp_path: Path) -> None:
    said = typed("docs/how-to/map.md", tmp_path, before=in_folder(tmp_path), NUNET_NETWORK_NAME=own_network("map"))
    for text in (
        "awk -v out=1.pgm -f gray.awk in/1.ppm\nawk -v out=2.pgm", "gzip -c 'it'\"'\"'s' | wc -c\n", "echo b to x\necho b to y\n",
        "item 5 (in/5.ppm): the job exited with 1", "1 of 8 items failed", "exit code 1", "Seq\tHost\tStarttime",
    ):  # fmt: skip
        assert text in said, text
    assert [path.name for path in sorted((tmp_path / "work" / "out").iterdir())] == [
        *(f"{number}.pgm" for number in range(1, 9)), "last.pgm",
    ]  # fmt: skip
    assert "in/5.ppm" in said.rpartition("Seq\t")[2]


def test_a_sweep_as_a_batch(tmp_path: Path) -> None:
    said = typed(
        "docs/how-to/batches.md", tmp_path, before=in_folder(tmp_path), NUNET_NETWORK_NAME=own_network("batches")
    )
    for text in (
        "batch.yaml: valid: 24 items, at most 12 NTX", "execute   point-7: the job exited with 3: no mass in in.txt", "exit code 1",
        "23 settled, 1 failed", "in/7.txt", "attempt 2", "all 24 children settled",
    ):  # fmt: skip
        assert text in said, text
    assert len(list((tmp_path / "sweep" / "results").glob("point-*/height"))) == 24


def test_a_private_network(tmp_path: Path) -> None:
    said = typed("docs/how-to/private-network.md", tmp_path, before=in_folder(tmp_path))
    assert "contract-database, oracle" in said
    assert "exit code 5" in said


def test_a_contract_database(tmp_path: Path) -> None:
    said = typed("docs/how-to/contract-database.md", tmp_path, before=in_folder(tmp_path),
                 NUNET_NETWORK_NAME=own_network("database"))  # fmt: skip
    assert "balance  24.5 NTX" in said
    assert said.count("log intact") == 2


def test_verified_providers(tmp_path: Path) -> None:
    said = typed("docs/how-to/verified-providers.md", tmp_path, before=in_folder(tmp_path),
                 NUNET_NETWORK_NAME=own_network("verified"))  # fmt: skip
    assert "verified by" in said
    assert said.count("settled: 0.1 NTX paid") == 1
    assert "no statement of acme-bank" in said
    assert "exit code 4" in said


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_watching_a_node(tmp_path: Path) -> None:
    port = free_port()
    said = typed("docs/how-to/watch.md", tmp_path, before=in_folder(tmp_path), change={"9980": str(port)},
                 NUNET_NETWORK_NAME=own_network("watch"))  # fmt: skip
    assert "nunet_capability" in said
    assert "allocations: none" in said


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_reference_api(tmp_path: Path) -> None:
    port = free_port()
    before = f"nunet config set api.listen 127.0.0.1:{port}; nunet node start"
    said = typed("docs/reference.md", tmp_path, before=before, change={"9980": str(port)},
                 NUNET_NETWORK_NAME=own_network("reference"))  # fmt: skip
    assert "nunet_balance_ntx" in said


def test_performance(tmp_path: Path) -> None:
    said = typed("docs/performance.md", tmp_path, before=f"cp -r {ROOT}/benchmarks {tmp_path}; cd {tmp_path}",
                 change={"python -m": f"{sys.executable} -m"})  # fmt: skip
    assert said.count("an Ed25519 verification") == 4
    assert "CHANGE" in said


def test_the_readme(tmp_path: Path) -> None:
    """The commands below the first screen; the first two are what installs and runs the tests."""
    before = f"cp -r {ROOT}/examples {tmp_path}; cd {tmp_path}; cp examples/word-count/* ."
    change = {
        "pip install . && nunet job run examples/word-count/job.yaml --local\n": "", "pip install '.[test]' && pytest\n": "",
        "node run": "node start", "/tmp/": f"{tmp_path}/", "nunet job": f"nunet --home {tmp_path}/r job",
        "nunet bids": f"nunet --home {tmp_path}/r bids",
    }  # fmt: skip
    said = typed("README.md", tmp_path, before=before, change=change, NUNET_NETWORK_NAME=own_network("readme"))
    assert said.count("Contract fulfilled") >= 2
    assert "settled" in said


def test_every_page_with_commands_is_typed() -> None:
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("**/*.md") if "```sh" in path.read_text()}
    here = Path(__file__).read_text()
    assert {page for page in pages if f'"{page}"' not in here} == set()
    # a block of another kind would be a command that nobody tried
    fences = {fence for path in pages for fence in re.findall(r"^```(\w+)$", (ROOT / path).read_text(), re.MULTILINE)}
    assert fences <= {"sh", "text", "yaml"}


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="needs the extra `docs`")
def test_the_site_is_made_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-d",
        tmp_path / "trees",
        ROOT / "docs",
    ]
    done = subprocess.run([*command, tmp_path / "site"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").glob("**/*.html"))
    assert len(pages) > 20
    # it works without outside hosts
    loaded = [
        url
        for page in pages
        for url in re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text())
    ]
    assert loaded == []


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUNET_NETWORK_NAME", f"tutorial-{os.getpid()}")
    script = "\n".join(f"echo '== {number}'\n{text}" for number, text in enumerate(blocks("docs/tutorial.md"), 1))
    script = script.replace("pip install .\n", "mkdir -p /tmp/market\n").replace(
        "/tmp/market", str(tmp_path / "market")
    )
    script = script.replace("--local", f"--local --output-dir {tmp_path}/first")
    if shutil.which("bwrap") is None:
        script = script.replace("--process sandboxed", "--process unsandboxed")
    try:
        done = shell(script, tmp_path)
    finally:
        for name in ("requester", "provider", "authority"):
            nunet("node", "stop", home=tmp_path / "market" / name, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    said = [part.partition("\n")[2] for part in done.stdout.split("== ")]
    assert "Contract fulfilled, thank you for your business" in done.stderr
    assert "contract-database" in said[2]
    assert "settled" in said[3]
    assert "100.2 NTX" in said[3]
    assert "all 284 words are counted" in said[5]
    assert len([line for line in said[5].splitlines() if "diamond" in line and "settled" in line]) == 7
    assert "exit code 4" in said[6]
    assert "short" in said[6]
    assert "the smallest change that would have got a bid" in said[6]
    assert "not resolved yet: escrow is held" in said[8]
    assert "0.1 NTX paid, 0.1 NTX returned" in said[9]
    assert "sum" in said[9]
    assert "exit code 6" in said[10]
    assert "FAIL" in said[10]
