"""Settings of a node that runs: changed by its API, kept in its file, and in force at once where they can be."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from nunet_cli.api.client import ApiClient, socket_path
from nunet_cli.api.server import served
from nunet_cli.config import Config
from nunet_cli.config_file import get, keys, load
from nunet_cli.errors import NoBidError, NunetError, StateError, UsageError
from nunet_cli.jobs.reader import read_spec
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.node.settings import LIVE
from nunet_cli.orchestrator import match
from nunet_cli.orchestrator.post import process_job
from tests.conftest import Processes, config, nunet

SPEC = json.dumps({"name": "test", "executor": {"type": "null"}, "price": "1"})
DID = "did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH"
OTHER = {
    "default_orchestration_type": "push", "lock_on_bid": True, "contract_database": DID, "oracle": DID,
    "executor.docker.enabled": False, "executor.docker.images": ["python:*"], "executor.docker.trusted": [DID],
    "executor.docker.pull": True, "executor.process.foreign": "sandboxed", "executor.process.trusted": [DID],
    "registry.admission": "approval", "limits.count_others_cpu": True, "registry.opening_balance": "7", "kyc.verifiers": {"bank": DID},
}  # fmt: skip


@asynccontextmanager
async def node_of(home: Path) -> AsyncIterator[tuple[Node, Callable[..., Any]]]:
    """Open a node with a file of its own; the function asks its API in a thread."""
    path = home / "config.toml"
    home.mkdir()
    path.write_text("# mine\n[network]\ndiscovery = false\nlisten = '127.0.0.1:0'\n")
    async with open_node(home, load(path, {}), config_file=path) as node, served(node, socket_path(home)):
        client = ApiClient(socket_path(home))

        async def ask(method: str, *words: Any) -> Any:
            return await trio.to_thread.run_sync(getattr(client, method), *words)

        yield node, ask


async def test_the_search_timeout_and_the_orchestration_type_are_changed_by_the_api_while_the_node_runs(
    tmp_path: Path,
) -> None:
    async with node_of(tmp_path / "home") as (node, ask):
        done = await ask("put", "/configuration/default_search_timeout", {"value": "1s"})
        assert (done["value"], done["in_force"], done["reason"]) == (1, True, "")
        job = await process_job(node.ctx, read_spec(SPEC), folder=tmp_path)
        # the default is ten seconds
        with trio.fail_after(6), pytest.raises(NoBidError):
            await match.match(node.ctx, job.id)
        await ask("put", "/configuration/default_orchestration_type", {"value": "push"})
        with pytest.raises(NunetError, match="default_orchestration_type is push"):
            await ask("post", "/orchestrator/postJob", {"spec_text": SPEC, "orchestrate": False})
        settings = (await ask("get", "/configuration"))["settings"]
        assert (settings["default_orchestration_type"], settings["default_search_timeout"]) == ("push", 1)
        text = (tmp_path / "home" / "config.toml").read_text()
        assert text.startswith("# mine\n")
        assert load(tmp_path / "home" / "config.toml", {}).default_orchestration_type == "push"


@pytest.mark.parametrize("key", sorted(LIVE))
async def test_what_is_read_wherever_it_counts_is_in_force_at_once(tmp_path: Path, key: str) -> None:
    async with node_of(tmp_path / "home") as (node, ask):
        before = get(node.ctx.config, key)
        value = OTHER[key] if key in OTHER else before + 2000
        done = await ask("put", f"/configuration/{key}", {"value": value})
        assert done["in_force"], done
        after = get(node.ctx.config, key)
        assert after != before
        assert (list(after) if isinstance(after, tuple) else after) == value
        # every part of the node goes by the same settings
        assert node.care._ages is node.ctx.config.retention
        assert node.ctx.roles.config is node.ctx.config


async def test_what_a_part_was_made_of_waits_for_a_restart_and_says_so(tmp_path: Path) -> None:
    async with node_of(tmp_path / "home") as (node, ask):
        name = node.ctx.config.network.name
        done = await ask("put", "/configuration/network.name", {"value": "another"})
        assert not done["in_force"]
        assert "restarted" in done["reason"]
        assert node.ctx.config.network.name == name
        assert load(tmp_path / "home" / "config.toml", {}).network.name == "another"
        secret = await ask("put", "/configuration/network.secret", {"value": "sesame"})
        assert secret["value"] == "(set)"
        # a name within a table, which may have dots and blanks
        await ask("put", "/configuration/kyc.verifiers.acme%20bank", {"value": DID})
        assert node.ctx.config.kyc.verifiers == {"acme bank": DID}
        await ask("put", "/configuration/kyc.verifiers.acme%20bank", {"value": ""})
        assert node.ctx.config.kyc.verifiers == {}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("default_orchestration_type", "sideways", "expected pull or push"), ("default_search_timeout", "0", "default_search_"),
        ("default_search_timeout", -1, "default_search_timeout"), ("no_such_key", "1", "unknown key 'no_such_key'"),
        ("oracle", "nobody", "oracle"), ("limits.heartbeat", True, "limits.heartbeat"),
        ("network.listen", "no-such-host.invalid:1", "knows no host"), ("lock_on_bid", {"a": "b"}, "lock_on_bid"),
    ],
)  # fmt: skip
async def test_what_does_not_validate_is_refused_and_nothing_changes(
    tmp_path: Path, key: str, value: Any, said: str
) -> None:
    async with node_of(tmp_path / "home") as (node, ask):
        text, before = (tmp_path / "home" / "config.toml").read_text(), msgspec.to_builtins(node.ctx.config)
        with pytest.raises(NunetError, match=said) as caught:
            await ask("put", f"/configuration/{key}", {"value": value})
        assert caught.value.exit_code == UsageError.exit_code
        assert (tmp_path / "home" / "config.toml").read_text() == text
        assert msgspec.to_builtins(node.ctx.config) == before


async def test_what_the_environment_says_counts_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUNET_DEFAULT_SEARCH_TIMEOUT", "3s")
    async with node_of(tmp_path / "home") as (node, ask):
        before = node.ctx.config.default_search_timeout
        done = await ask("put", "/configuration/default_search_timeout", {"value": "9s"})
        assert (done["in_force"], node.ctx.config.default_search_timeout) == (False, before)
        assert "NUNET_DEFAULT_SEARCH_TIMEOUT" in done["reason"]


async def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    async with node_of(tmp_path / "home") as (node, _), trio.open_nursery() as nursery:
        for key, value in (("lock_lease", 77), ("bid_timeout", 78), ("pull_interval", 79), ("limits.silence", 80)):
            nursery.start_soon(node.settings.change, key, value)
    kept = load(tmp_path / "home" / "config.toml", {})
    assert (kept.lock_lease, kept.bid_timeout, kept.pull_interval, kept.limits.silence) == (77, 78, 79, 80)


async def test_a_node_without_a_file_changes_nothing(tmp_path: Path) -> None:
    async with open_node(tmp_path, config()) as node:
        with pytest.raises(StateError, match="without a configuration file"):
            await node.settings.change("lock_lease", 77)
        assert node.ctx.config.lock_lease == Config().lock_lease


def test_every_setting_that_is_in_force_at_once_is_one() -> None:
    assert set(keys()) >= LIVE


def test_the_command_line_changes_a_running_node_and_says_what_waits(processes: Processes) -> None:
    home = processes.authority
    done = nunet("config", "set", "registry.admission", "approval", home=home)
    assert done.stderr == ""
    settings = ApiClient(socket_path(home)).get("/configuration")["settings"]
    assert settings["registry.admission"] == "approval"
    assert "restarted" in nunet("config", "set", "network.rate", "300", home=home).stderr
    refused = nunet("config", "set", "registry.admission", "never", home=home, check=False)
    assert refused.returncode == 2
    assert "expected open or approval" in refused.stderr
    assert load(home / "config.toml", {}).registry.admission == "approval"
