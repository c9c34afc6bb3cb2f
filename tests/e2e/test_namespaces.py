"""Network namespaces as separate hosts: real mDNS over a real (virtual) Ethernet."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, nunet, wait_until
from tests.leftovers import namespace_tag

HOSTS = ("a", "p", "r")


def can_make_namespaces() -> bool:
    if os.getuid() != 0 or shutil.which("ip") is None:
        return False
    probe = f"nunet-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return True


pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root and Linux network namespaces"),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Three hosts on one bridge, in namespaces of the test's own; 10.213.7.0/24 exists nowhere else."""
    tag = f"{namespace_tag()}{os.environ.get('PYTEST_XDIST_WORKER', '')[2:]}"
    names = {host: f"{tag}{host}" for host in HOSTS}
    switch = f"{tag}sw"
    with contextlib.ExitStack() as stack:
        for name in (switch, *names.values()):
            ip("netns", "add", name)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for number, name in enumerate(names.values(), 1):
            ip("-n", switch, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", switch, "link", "set", f"v{number}", "master", "br0", "up")
            ip("-n", name, "addr", "add", f"10.213.7.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "route", "add", "224.0.0.0/4", "dev", "eth0")
        yield names


def on(host: str, home: Path, *arguments: str) -> None:
    """Run a command on a host; what asks a node that runs there goes through the socket in its home, from anywhere."""
    command = ["ip", "netns", "exec", host, sys.executable, "-m", "nunet_cli", "--home", str(home), *arguments]
    environment = {**os.environ, "NUNET_NETWORK_LISTEN": "0.0.0.0:0", "NUNET_EXECUTOR_PROCESS_FOREIGN": "unsandboxed"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_whoami_prints_on_one_machine_is_what_peer_add_takes_on_another(
    hosts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUNET_NETWORK_DISCOVERY", "false")
    # a bridge for containers, which nobody outside of the machine can reach
    ip("-n", hosts["a"], "link", "add", "docker0", "type", "bridge")
    ip("-n", hosts["a"], "addr", "add", "172.30.0.1/16", "dev", "docker0")
    ip("-n", hosts["a"], "link", "set", "docker0", "up")
    homes = {host: tmp_path / host for host in HOSTS}
    try:
        on(hosts["a"], homes["a"], "node", "start")
        screen = nunet("whoami", home=homes["a"]).stdout
        printed = [line.split()[1] for line in screen.splitlines() if line.startswith(("address ", "or "))]
        document = json.loads(nunet("whoami", "--output", "json", home=homes["a"]).stdout)
        assert printed == document["addresses"]
        assert [address.partition("@")[2].rpartition(":")[0] for address in printed] == ["10.213.7.1", "172.30.0.1"]
        on(hosts["r"], homes["r"], "node", "start")
        assert "connected" in nunet("peer", "add", document["address"], home=homes["r"]).stdout
    finally:
        for host in ("a", "r"):
            nunet("node", "stop", home=homes[host], check=False)


def test_nodes_on_separate_hosts_find_each_other_and_settle(hosts: dict[str, str], tmp_path: Path) -> None:
    homes = {host: tmp_path / host for host in HOSTS}
    on(hosts["p"], homes["p"], "onboard", "--price", "0.3", "--memory", "1GiB", "--disk", "1GiB", "--no-benchmark")
    try:
        on(hosts["a"], homes["a"], "node", "start", "--role", "contract-database", "--role", "oracle")
        on(hosts["p"], homes["p"], "node", "start")
        on(hosts["r"], homes["r"], "node", "start")

        def both_there() -> bool:
            peers = json.loads(nunet("peer", "list", "--output", "json", home=homes["r"]).stdout)
            return sum(peer["connected"] for peer in peers) == 2

        wait_until(both_there, what="both peers in the list")
        peers = json.loads(nunet("peer", "list", "--output", "json", home=homes["r"]).stdout)
        assert {peer["addresses"][0].split(":")[0] for peer in peers} == {"10.213.7.1", "10.213.7.2"}
        target = tmp_path / "out"
        done = nunet("job", "run", "examples/word-count/job.yaml", "--output-dir", str(target), home=homes["r"])
        assert "settled: 0.3 NTX paid" in done.stderr
        assert json.loads((target / "counts.json").read_text())["the"] == 32
    finally:
        for host in HOSTS:
            nunet("node", "stop", home=homes[host], check=False)
