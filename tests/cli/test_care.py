"""The care of a home that runs: its roles are remembered, and a backup that is no good changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import nunet


def status(home: Path) -> Any:
    return json.loads(nunet("status", "-o", "json", home=home).stdout)


def test_roles_are_remembered_and_a_bad_backup_stops_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUNET_NETWORK_DISCOVERY", "false")
    home = tmp_path / "home"
    nunet("node", "start", "--role", "contract-database", "--role", "oracle", home=home)
    try:
        nunet("node", "backup", str(tmp_path / "good.tar"), home=home)
        nunet("node", "stop", home=home)
        # as after the machine was started again
        nunet("node", "start", home=home)
        before = status(home)
        assert before["roles"] == ["contract-database", "oracle"]
        damaged = bytearray((tmp_path / "good.tar").read_bytes())
        at = damaged.index(b"SQLite format 3") + 2000
        damaged[at] ^= 1
        (tmp_path / "bad.tar").write_bytes(damaged)
        for name, said in (("bad.tar", "store.db in it is damaged"), ("none.tar", "No such file")):
            done = nunet("node", "restore", str(tmp_path / name), "--yes", home=home, check=False)
            assert done.returncode == 2
            assert said in done.stderr
            assert status(home)["pid"] == before["pid"]
        done = nunet("node", "restore", str(tmp_path / "good.tar"), "--yes", home=home)
        assert f"{home} is as it was" in done.stdout
        assert "must not run as well" in done.stderr
        after = status(home)
        assert after["pid"] != before["pid"]
        assert after["roles"] == before["roles"]
        nunet("node", "stop", home=home)
        nunet("node", "start", "--role", "requester", home=home)
        assert status(home)["roles"] == []
        done = nunet("node", "run", "--role", "requester", "--role", "oracle", home=home, check=False)
        assert done.returncode == 2
    finally:
        nunet("node", "stop", home=home, check=False)
