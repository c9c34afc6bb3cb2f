"""Rules of the specification that no other test walks through: configuration, heartbeats, roles, the owner's machine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import trio

from nunet_cli.config import LimitsConfig
from nunet_cli.errors import ContractError, NoBidError, NunetError, UsageError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import contract, invoke, match, orchestrate, outputs, request
from nunet_cli.records.allocations import ALLOCATIONS
from nunet_cli.records.bids import BID_REQUESTS
from nunet_cli.records.capability import PriceBid
from nunet_cli.records.contracts import DATABASE
from nunet_cli.tokenomics.payment import check_payment_info
from tests.conftest import Market, config

MarketOf = Callable[..., Any]


def spec(command: str = "true", **fields: Any) -> str:
    body = {
        "name": "test", "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "1",
        "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}, **fields,
    }  # fmt: skip
    return json.dumps(body)


async def test_the_orchestration_type_is_configured_and_overridden_per_job(market: MarketOf) -> None:
    async with market(requester=config(default_orchestration_type="push")) as m:
        with pytest.raises(UsageError) as caught:
            await m.post(spec())
        assert "name providers with --push" in caught.value.hint
        pushed = await m.post(spec(), push=[m.provider.identity.peer_id])
        pulled = await m.post(spec(), pull=True)
        assert (m.job(pushed).push, m.job(pulled).push) == ((m.provider.identity.did,), ())
        for job_id in (pushed, pulled):
            await match.match(m.requester.ctx, job_id)
        sent = [m.requester.ctx.store[BID_REQUESTS].first("job_id", job_id) for job_id in (pushed, pulled)]
        assert [row and row.request.topic for row in sent] == ["", "/nunet/bids"]


async def test_the_search_timeout_is_configured_and_overridden_per_search(tmp_path: Path) -> None:
    async with open_node(tmp_path, config(default_search_timeout=1)) as node:
        m = Market(node, node, node, tmp_path)
        job_id = await m.post(spec())
        with trio.fail_after(60), pytest.raises(NoBidError):
            await match.match(node.ctx, job_id)
        node.ctx.config.default_search_timeout = 3600
        with trio.fail_after(60), pytest.raises(NoBidError):
            await match.match(node.ctx, job_id, timeout=0.2)


async def test_what_others_use_of_the_machine_is_seen_before_an_allocation_begins(market: MarketOf) -> None:
    async with market() as m:
        limits = m.provider.ctx.config.limits
        reserve = limits.memory_reserve
        # it is a reason to decline a bid request and a job request, and an allocation does not begin either
        for stages in range(3):
            limits.memory_reserve = reserve
            job_id = await m.post(spec())
            for stage in (match.match, request.request)[:stages]:
                await stage(m.requester.ctx, job_id)
            # the accounting has room, the machine has not
            limits.memory_reserve = psutil.virtual_memory().total
            if stages == 0:
                with pytest.raises(NunetError) as caught:
                    await match.match(m.requester.ctx, job_id, timeout=10)
                said = str(caught.value.details)
                assert caught.value.code == "busy"
            elif stages == 1:
                # others were faster: it is searched for again
                job = await request.request(m.requester.ctx, job_id)
                said = job.refusals[0].reason
                assert job.state == "matching"
            else:
                with pytest.raises(NunetError) as caught:
                    await orchestrate_job(m.requester.ctx, job_id)
                said = caught.value.message
            assert "the machine is short of memory" in said
            assert m.provider.ctx.running.all() == []
            assert m.provider.ctx.store[ALLOCATIONS].count() == 0


async def test_a_heartbeat_tells_what_the_job_really_uses(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec("x=$(head -c 3000000 /dev/zero | tr '\\0' x); sleep 20; echo ${#x}"))
        for stage in (match.match, request.request, contract.close_contract, invoke.invoke):
            await stage(m.requester.ctx, job_id)
        with trio.fail_after(60):
            while (usage := m.job(job_id).usage) is None or usage.max_memory < 2**20:
                await trio.sleep(0.05)
        job = m.job(job_id)
        assert job.state == "running"
        assert job.heard_at > job.created_at
        assert usage.wall_seconds > 0
        await m.requester.cancel_job(job_id)


async def test_a_role_that_is_not_there_yet_is_waited_for_and_then_kept(tmp_path: Path) -> None:
    async with (
        open_node(tmp_path / "r", config(default_search_timeout=10)) as r,
        open_node(tmp_path / "first", config(), roles=("contract-database",)) as first,
    ):
        with pytest.raises(ContractError) as caught:
            r.ctx.roles.find(DATABASE)
        assert caught.value.code == "no_contract_database"
        found: list[str] = []

        async def wait() -> None:
            found.append(await r.ctx.roles.wait(DATABASE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.05)
            assert found == []
            await r.add_peer(first.ctx.transport.describe())
        assert found == [first.identity.did]
        await r.ctx.store.change(lambda t: r.ctx.roles.pin(t, DATABASE, first.identity.did))
        # somebody who announces the role later is not taken instead
        async with open_node(tmp_path / "late", config(), roles=("contract-database",)) as late:
            await r.add_peer(late.ctx.transport.describe())
            with trio.fail_after(20):
                while len(r.ctx.peers.with_role(DATABASE)) < 2:
                    await trio.sleep(0.02)
            assert r.ctx.roles.find(DATABASE) == first.identity.did
            r.ctx.roles.config = msgspec.structs.replace(r.ctx.config, contract_database=late.identity.did)
            assert r.ctx.roles.find(DATABASE) == late.identity.did


def test_whether_a_job_is_paid_for_is_read_off_the_price() -> None:
    assert not check_payment_info(PriceBid(amount="0"), 60)
    assert check_payment_info(PriceBid(amount="0.000001"), 60)
    assert check_payment_info(PriceBid("per_time_unit", "NTX", "h", "0.000001"), 1)


async def test_every_transition_is_an_event_in_order(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec("echo hello"))
        await orchestrate_job(m.requester.ctx, job_id)
        numbers = [seq for seq, _ in m.requester.ctx.store.log(job_id)]
        assert numbers == sorted(numbers)
        assert [kind for kind in m.event_types(job_id) if kind.startswith("contract_")] == [
            "contract_proposed", "contract_agreed", "contract_proved", "contract_settled",
        ]  # fmt: skip
        data, ended = await outputs.read_logs(m.requester.ctx, m.job(job_id), "stdout", 0, 0)
        assert (data, ended) == (b"hello\n", True)


async def test_a_provider_that_does_not_answer_the_invocation_is_asked_again_and_that_is_said(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrate, "RETRY_PAUSE", 0.1)
    quick = LimitsConfig(answer_timeout=1, heartbeat=1)
    async with market(requester=config(limits=quick)) as m:
        messenger = m.provider.ctx.messenger
        known = messenger._types["invocation"]

        async def silence(_: Any) -> None:
            await trio.sleep_forever()

        messenger.register("invocation", known.kind, silence)
        job_id = await m.post(spec("true"))
        m.requester.orchestrate(job_id)
        with trio.fail_after(30):
            while "invocation_unanswered" not in m.event_types(job_id):
                await trio.sleep(0.02)
        assert m.job(job_id).state == "contracted"
        messenger.register("invocation", known.kind, known.behaviour)
        with trio.fail_after(30):
            while m.job(job_id).state != "settled":
                await trio.sleep(0.02)
        assert m.provider.ctx.store[ALLOCATIONS].count() == 1
