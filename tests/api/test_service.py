"""The node as a service: the API over TCP, metrics, logs, the systemd unit."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forks
from tests.conftest import ROOT, free_port, nunet, wait_until


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A provider that runs, and where its API answers over TCP."""
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("NUNET_API_LISTEN", address)
    monkeypatch.setenv("NUNET_NETWORK_DISCOVERY", "false")
    nunet("onboard", "--cpu", "1", "--memory", "1GiB", "--disk", "1GiB", "--no-benchmark", home=tmp_path)
    nunet("node", "start", home=tmp_path)
    try:
        yield tmp_path, f"http://{address}"
    finally:
        nunet("node", "stop", home=tmp_path)


def get(url: str, token: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_over_tcp_only_the_token_opens_the_api(service: tuple[Path, str]) -> None:
    home, url = service
    token = (home / "api.token").read_text().strip()
    assert stat.S_IMODE((home / "api.token").stat().st_mode) == 0o600
    for wrong in ("", "x", token[:-1], token + "x"):
        code, text = get(f"{url}/status", wrong)
        assert (code, json.loads(text)["code"]) == (401, "unauthorized")
    code, text = get(f"{url}/status", token)
    assert (code, json.loads(text)["onboarded"]) == (200, True)


def test_the_command_line_over_tcp(service: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, url = service
    elsewhere = tmp_path / "elsewhere"
    done = nunet("status", "--node", url, home=elsewhere, check=False)
    assert done.returncode == 2
    assert "over TCP the API wants its token" in done.stderr
    monkeypatch.setenv("NUNET_TOKEN", (home / "api.token").read_text().strip())
    document = json.loads(nunet("status", "--node", url, "--output", "json", home=elsewhere).stdout)
    assert document["home"] == str(home)
    for nobody in (f"http://127.0.0.1:{free_port()}", "http://127.0.0.1:x", str(elsewhere / "node.sock")):
        done = nunet("status", "--node", nobody, home=elsewhere, check=False)
        assert done.returncode == 3
        assert f"no node answers at {nobody}" in done.stderr
    # the socket of the home asks for nothing, and an embedded command of another home does not take the port
    assert json.loads(nunet("status", "--output", "json", home=home).stdout)["running"]
    nunet("job", "list", home=home / "other")
    done = nunet("node", "run", home=home / "other", check=False)
    assert (done.returncode, "the API cannot listen on" in done.stderr) == (3, True)


def test_metrics_are_what_prometheus_reads_and_grafana_shows(service: tuple[Path, str]) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    home, url = service
    code, text = get(f"{url}/metrics", (home / "api.token").read_text().strip())
    assert code == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    capability = {tuple(sample.labels.values()): sample.value for sample in families["nunet_capability"].samples}
    assert 1.0 in capability.values()
    assert float(2**30) in capability.values()
    assert families["nunet_onboarded"].samples[0].value == 1
    assert {sample.labels["state"] for sample in families["nunet_jobs"].samples} >= {"posted", "settled", "failed"}
    board = json.loads((ROOT / "docs" / "grafana.json").read_text())
    shown = {name for panel in board["panels"] for target in panel["targets"]
             for name in re.findall(r"nunet_[a-z_]+", target["expr"])}  # fmt: skip
    assert {name.removesuffix("_total") for name in shown} <= set(families)
    assert len(shown) >= 8


@pytest.mark.parametrize("how", ["json", "journal", "text"])
def test_logs_for_programs_and_for_the_journal(how: str, tmp_path: Path) -> None:
    environment = {**os.environ, **({"JOURNAL_STREAM": "8:1"} if how == "journal" else {})}
    option = [] if how == "journal" else ["--log-format", how]
    with (tmp_path / "log").open("w+") as log:
        process = forks.Process(
            ["--home", str(tmp_path), "node", "run", "-v", *option],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
        )
        try:
            wait_until(lambda: nunet("node", "status", home=tmp_path, check=False).returncode == 0)
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
        log.seek(0)
        lines = [line for line in log if "nunet." in line]
    assert lines
    for line in lines:
        if how == "json":
            document = json.loads(line)
            assert set(document) >= {"time", "level", "logger", "message"}
        elif how == "journal":
            assert re.match(r"^<[2-7]>nunet\.", line), line
        else:
            assert re.match(r"^\d{4}-\d\d-\d\d .* (INFO|DEBUG|WARNING) nunet\.", line), line


def test_the_systemd_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    home = tmp_path / "a home with 100%"
    path = Path(nunet("node", "install-service", "--role", "oracle", home=home).stdout.strip())
    assert path == tmp_path / "config" / "systemd" / "user" / "nunet.service"
    text = path.read_text()
    assert text == nunet("node", "install-service", "--role", "oracle", "--print", home=home).stdout
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    words = [word.replace("%%", "%") for word in shlex.split(line.removeprefix("ExecStart="))]
    assert words == [sys.executable, "-m", "nunet_cli", "--home", str(home), "node", "run", "--role", "oracle"]
    if shutil.which("systemd-analyze"):
        done = subprocess.run(
            ["systemd-analyze", "--user", "verify", path], capture_output=True, text=True, check=False
        )
        assert "nunet.service" not in done.stderr, done.stderr
    done = nunet("node", "install-service", "--role", "king", home=home, check=False)
    assert (done.returncode, "unknown role 'king'" in done.stderr) == (2, True)
