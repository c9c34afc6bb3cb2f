"""Who holds the money where several offer to: nobody that the node's owner did not choose."""

import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli.errors import ContractError, NunetError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator.contract import DATABASE, ORACLE
from nunet_cli.records.contract_records import REGISTERED_CONTRACTS
from tests.cli.test_wizard import at_a_terminal
from tests.conftest import Market, config, nunet

MarketOf = Callable[..., Any]
JOB = json.dumps({
    "name": "job", "executor": {"type": "null"}, "price": "1", "resources": {"cpu": 0.1, "memory": "16MiB", "disk": "1MiB"},
    "time": {"max_duration": "1m"},
})  # fmt: skip


@contextlib.asynccontextmanager
async def stranger(m: Market, *nodes: Node) -> AsyncIterator[Node]:
    """Let a second authority come, that these nodes hear of."""
    async with open_node(m.folder / "stranger", config(), roles=("contract-database", "oracle")) as node:
        for known in nodes:
            await known.add_peer(node.ctx.transport.describe())
            with trio.fail_after(20):
                while len(known.ctx.peers.with_role(DATABASE)) < 2 or len(known.ctx.peers.with_role(ORACLE)) < 2:
                    await known.ctx.transport.wait_change(0.1)
        yield node


async def chosen(m: Market, node: Node) -> None:
    for role in (DATABASE, ORACLE):
        await node.ctx.roles.choose(role, m.authority.identity.did)


def logged(m: Market, job_id: str) -> str:
    """Return all that the requester's log says of a job."""
    return json.dumps([event.data for _, event in m.requester.ctx.store.log(job_id)])


async def test_money_goes_to_none_of_two_authorities_that_nobody_chose(market: MarketOf) -> None:
    async with market() as m, stranger(m, m.requester) as other:
        await chosen(m, m.provider)
        job_id = await m.post(JOB)
        with pytest.raises(ContractError) as caught:
            await orchestrate_job(m.requester.ctx, job_id)
        assert caught.value.code == "several_contract_databases"
        assert m.authority.identity.did in caught.value.message
        assert other.identity.did in caught.value.message
        assert "nunet config set contract_database DID" in caught.value.hint
        assert m.requester.ctx.roles.undecided().keys() == {DATABASE, ORACLE}
        await chosen(m, m.requester)
        assert m.requester.ctx.roles.undecided() == {}
        assert (await orchestrate_job(m.requester.ctx, await m.post(JOB))).state == "settled"


async def test_work_for_nothing_needs_no_choice(market: MarketOf) -> None:
    async with market(price="0") as m, stranger(m, m.requester, m.provider):
        assert (await orchestrate_job(m.requester.ctx, await m.post(JOB))).state == "settled"


async def test_a_refusal_over_the_authority_names_the_setting_that_decides(market: MarketOf) -> None:
    async with market() as m, stranger(m, m.requester) as other:
        await chosen(m, m.provider)
        m.requester.ctx.config.contract_database = m.requester.ctx.config.oracle = other.identity.did
        job_id = await m.post(JOB)
        with pytest.raises(NunetError):
            await orchestrate_job(m.requester.ctx, job_id)
        said = logged(m, job_id)
        assert f"accepts only {m.authority.identity.did}" in said
        assert "the setting contract_database decides" in said


async def test_a_provider_that_has_not_chosen_closes_no_paid_contract(market: MarketOf) -> None:
    async with market() as m, stranger(m, m.provider):
        job_id = await m.post(JOB)
        with pytest.raises(NunetError):
            await orchestrate_job(m.requester.ctx, job_id)
        assert "several nodes act as contract-database" in logged(m, job_id)
        assert m.authority.ctx.store[REGISTERED_CONTRACTS].count() == 0


def spec_file(folder: Path) -> str:
    path = folder / "job.json"
    path.write_text(JOB)
    return str(path)


def join(m: Market, monkeypatch: pytest.MonkeyPatch, *nodes: Node) -> None:
    """Let commands start nodes that know these, and nobody else."""
    monkeypatch.setenv("NUNET_NETWORK_DISCOVERY", "false")
    monkeypatch.setenv("NUNET_NETWORK_PEERS", ",".join(node.ctx.transport.describe() for node in nodes))


async def test_at_a_terminal_a_newcomer_is_asked_and_what_they_say_is_kept(
    market: MarketOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market() as m, stranger(m) as other:
        join(m, monkeypatch, m.authority, m.provider, other)
        mine, home = m.authority.identity.did, tmp_path / "newcomer"

        def number(screen: str) -> str:
            found = re.findall(rf"(\d)  {mine}", screen)
            return str(found[-1])

        def run() -> tuple[int, str]:
            answers = [
                ("Number", "7"),
                ("Number, 1 to 2", number),
                ("Several nodes act as oracle", ""),
                ("Number", number),
            ]
            return at_a_terminal("job", "run", spec_file(tmp_path), home=home, answers=answers)

        code, screen = await trio.to_thread.run_sync(run)
        assert code == 0, screen
        settings = (home / "config.toml").read_text()
        assert settings.count(mine) == 2


async def test_the_first_authority_is_taken_with_a_word_and_off_a_terminal_none_of_two(
    market: MarketOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market() as m:
        join(m, monkeypatch, m.authority, m.provider)

        def run(home: str, *, check: bool = True) -> Any:
            return nunet("job", "run", spec_file(tmp_path), home=tmp_path / home, check=check)

        done = await trio.to_thread.run_sync(run, "newcomer")
        assert f"{m.authority.identity.did} is this node's contract-database from now on" in done.stderr
        assert "nunet config set contract_database DID" in done.stderr
        assert "from now on" not in (await trio.to_thread.run_sync(run, "newcomer")).stderr
        async with stranger(m) as other:
            join(m, monkeypatch, m.authority, m.provider, other)
            refused = await trio.to_thread.run_sync(lambda: run("second", check=False))
        assert refused.returncode == 6
        assert other.identity.did in refused.stderr
        assert "nunet config set contract_database DID" in refused.stderr
