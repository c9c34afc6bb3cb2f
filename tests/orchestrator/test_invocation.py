"""What is invoked is what was bid for: a bid request names a job by its content id alone, and may lie about the rest."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio

from nunet_cli.config import ExecutorConfig, KycConfig, ProcessConfig
from nunet_cli.errors import NunetError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.network.identity import new_identity
from nunet_cli.orchestrator import invoke, match
from nunet_cli.records.allocations import ALLOCATIONS
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.capability import Capability, TimeCapability
from nunet_cli.records.contract_records import CONTRACTS
from tests.conftest import config
from tests.together import held

MarketOf = Callable[..., Any]
CLOSED = config(executor=ExecutorConfig(process=ProcessConfig(foreign="off")))


def spec(**fields: Any) -> str:
    body = {
        "name": "test", "executor": {"type": "process", "command": ["sh", "-c", "echo ran; sleep 5"]}, "price": "1",
        "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}, "time": {"max_duration": "1h"},
        "kycs": [], **fields,
    }  # fmt: skip
    return json.dumps(body)


def claiming(monkeypatch: pytest.MonkeyPatch, change: Callable[[Capability], Capability], **fields: Any) -> None:
    """Let a requester ask for bids with other needs than its job has."""
    honest = match.BidRequest

    def lie(**given: Any) -> Any:
        given["required_capability"] = change(given["required_capability"])
        return honest(**{**given, **fields})

    monkeypatch.setattr(match, "BidRequest", lie)


@pytest.mark.parametrize(
    ("differs", "change", "job"),
    [
        ("executors", lambda needs: msgspec.structs.replace(needs, executors=("null",)), {}),
        ("executors", lambda needs: msgspec.structs.replace(needs, executors=()), {}),
        ("time", lambda needs: msgspec.structs.replace(needs, time=TimeCapability(max=1)), {}),
        (
            "resources",
            lambda needs: msgspec.structs.replace(needs, resources=msgspec.structs.replace(needs.resources, memory=1)),
            {},
        ),
        ("job_types", lambda needs: msgspec.structs.replace(needs, job_types=("task",)), {"type": "service"}),
        ("kycs", lambda needs: msgspec.structs.replace(needs, kycs=()), {"kycs": ["somebody"]}),
    ],
    ids=["another-executor", "no-executor", "a-second", "a-byte", "a-service", "a-verifier"],
)
async def test_a_job_that_is_not_what_was_bid_for_does_not_run(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch, differs: str, change: Any, job: dict[str, Any]
) -> None:
    provider = CLOSED if differs == "executors" else None
    # whose key is known, and never asked for
    requester = config(kyc=KycConfig({"somebody": new_identity().did}))
    async with market(provider=provider, requester=requester) as m:
        claiming(monkeypatch, change)
        job_id = await m.post(spec(**job))
        with pytest.raises(NunetError):
            await orchestrate_job(m.requester.ctx, job_id)
        assert m.provider.ctx.store[ALLOCATIONS].count() == 0
        events = m.requester.ctx.store.log(job_id)
        assert any(differs in json.dumps(event.data) for _, event in events), events[-1]
        # the deposit does not wait for the deadline
        assert not [row for row in m.provider.accounting.taken(m.provider.ctx.store) if row.kind == "allocation"]


async def test_what_strangers_may_use_is_asked_again_when_it_begins(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec())
        from nunet_cli.orchestrator import contract, request

        for stage in (match.match, request.request, contract.close_contract):
            await stage(m.requester.ctx, job_id)
        m.provider.ctx.config.executor.process.foreign = "off"
        with pytest.raises(NunetError, match="may not use the process executor"):
            await orchestrate_job(m.requester.ctx, job_id)
        assert m.provider.ctx.store[ALLOCATIONS].count() == 0


async def shut(m: Any) -> None:
    await m.provider.offboard()


async def deny(m: Any) -> None:
    await m.provider.accounting.set_preferences(CapabilityComparator(deny=(m.requester.identity.did,)))


@pytest.mark.parametrize("decide", [shut, deny])
@pytest.mark.parametrize("stages", [2, 3])
async def test_what_the_owner_decides_holds_at_each_step_that_binds(market: MarketOf, decide: Any, stages: int) -> None:
    """After the lock, and after the contract: no new contract, no work, and the deposit is not held for it."""
    async with market() as m:
        job_id = await m.post(spec())
        from nunet_cli.orchestrator import contract, request

        for stage in (match.match, request.request, contract.close_contract)[:stages]:
            await stage(m.requester.ctx, job_id)
        await decide(m)
        with pytest.raises(NunetError):
            await orchestrate_job(m.requester.ctx, job_id)
        said = json.dumps([event.data for _, event in m.requester.ctx.store.log(job_id)])
        assert "offered no more" in said or "not taken here" in said
        assert m.provider.ctx.store[ALLOCATIONS].count() == 0
        assert m.job(job_id).state == "failed"


async def test_a_job_that_the_providers_owner_ends_says_so_and_is_tried_elsewhere(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(spec(executor={"type": "process", "command": ["sleep", "60"]}))

        async def shut_by_force() -> None:
            with trio.fail_after(20):
                while not (running := m.provider.ctx.running.all()) or not running[0].began.is_set():
                    await trio.sleep(0.01)
                await m.provider.offboard(force=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shut_by_force)
            await orchestrate_job(m.requester.ctx, job_id)
        assert "the provider ended it" in m.job(job_id).error.message
        result = m.job(job_id).result
        assert result is not None
        assert (result.state, result.fault, result.reason) == ("failed", "provider", "provider_ended")
        (contract,) = m.requester.ctx.store[CONTRACTS].by("job_id", job_id)
        assert contract.state == "refunded"


@pytest.mark.parametrize("stages", [2, 3])
async def test_what_the_owner_decides_at_that_very_moment_holds(market: MarketOf, stages: int) -> None:
    """The decision and the step that binds are both ready when the store is: the one that came first is seen."""
    async with market() as m:
        job_id = await m.post(spec())
        from nunet_cli.orchestrator import contract, request

        for stage in (match.match, request.request, contract.close_contract)[:stages]:
            await stage(m.requester.ctx, job_id)
        store, bound = m.provider.ctx.store, [contract.close_contract, invoke.invoke][stages - 2]
        refused: list[NunetError] = []

        async def bind() -> None:
            with pytest.raises(NunetError) as caught:
                await bound(m.requester.ctx, job_id)
            refused.append(caught.value)

        with trio.fail_after(20):
            async with held(store) as release, trio.open_nursery() as nursery:
                nursery.start_soon(deny, m)
                while not store._is_led:
                    await trio.sleep(0.01)
                nursery.start_soon(bind)
                # the message has been checked against what there was, and waits for the store
                while not store._waiting:
                    await trio.sleep(0.01)
                release()
        assert "not taken here" in str(refused[0])
        assert store[ALLOCATIONS].count() == 0
