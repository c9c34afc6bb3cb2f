"""What a provider remarks on a job that runs: real programs that wait, work, and fill their memory."""

import json
from collections.abc import Callable
from typing import Any

import trio
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.allocation.remarks import Remarks
from nunet_cli.config import LimitsConfig
from nunet_cli.jobs.reader import read_spec
from nunet_cli.orchestrator import contract, execute, invoke, match, request
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.messages import JobStatusUpdate
from nunet_cli.records.results import Usage
from tests.conftest import Market, config

MarketOf = Callable[..., Any]
LIMITS = LimitsConfig(answer_timeout=5, heartbeat=1, stall=2)
WORKS = "i=0; while [ $i -lt 100000000 ]; do i=$((i+1)); done"


def spec(command: str, **fields: Any) -> str:
    body = {
        "name": "test", "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "1",
        "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}, "time": {"max_duration": "5m"}, **fields,
    }  # fmt: skip
    return json.dumps(body)


async def begun(m: Market, text: str) -> str:
    """Take a job to where it runs; return its id."""
    job_id = await m.post(text)
    for stage in (match.match, request.request, contract.close_contract, invoke.invoke):
        await stage(m.requester.ctx, job_id)
    return job_id


async def until(m: Market, job_id: str, condition: Callable[[str], bool]) -> str:
    """Wait for what is remarked on a job; return it."""
    with trio.fail_after(40):
        while not condition(m.job(job_id).remark):
            await trio.sleep(0.05)
    return m.job(job_id).remark


async def test_a_job_that_does_nothing_is_remarked_on_until_it_works(market: MarketOf) -> None:
    async with market(provider=config(limits=LIMITS)) as m:
        job_id = await begun(m, spec(f"sleep 6; {WORKS}"))
        assert await until(m, job_id, bool) == "it has used no processor for over 2s"
        await until(m, job_id, lambda remark: not remark)
        assert m.job(job_id).state == "running"
        # said once, however many signs of life there were
        assert m.event_types(job_id).count("job_remark") == 1
        await m.requester.cancel_job(job_id)


async def test_a_job_that_works_and_a_service_that_waits_are_well(market: MarketOf) -> None:
    async with market(provider=config(limits=LIMITS)) as m:
        jobs = [await begun(m, spec(WORKS)), await begun(m, spec("sleep 60", type="service"))]
        with trio.fail_after(40):
            while not all((usage := m.job(each).usage) and usage.wall_seconds > 5 for each in jobs):
                await trio.sleep(0.1)
        assert [m.job(each).remark for each in jobs] == ["", ""]
        for each in jobs:
            await m.requester.cancel_job(each)


async def test_a_job_near_the_end_of_its_memory_is_remarked_on(market: MarketOf) -> None:
    async with market(provider=config(limits=structs.replace(LIMITS, stall=600))) as m:
        code = "x=$(head -c 9000000 /dev/zero | tr '\\0' x); sleep 60; echo ${#x}"
        job_id = await begun(m, spec(code, resources={"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}))
        with trio.fail_after(40):
            while not ((usage := m.job(job_id).usage) and usage.max_memory > 2**20):
                await trio.sleep(0.05)
        peak = usage.max_memory
        remarks = Remarks(read_spec(spec(code, resources={"memory": int(peak / 0.95)})))
        assert "of memory: with more than that it is ended" in remarks.look(usage, 600)
        roomy = Remarks(read_spec(spec(code, resources={"memory": peak * 2})))
        assert roomy.look(usage, 600) == ""
        await m.requester.cancel_job(job_id)


def test_the_end_of_its_time_is_near() -> None:
    remarks = Remarks(read_spec(spec("true", time={"max_duration": 100})))
    assert remarks.look(Usage(80, 89), 600) == ""
    assert remarks.look(Usage(80, 91), 600) == "over 90% of its max_duration of 1m40s is over"


async def test_a_provider_that_remarks_without_end_makes_few_events(market: MarketOf) -> None:
    async with market(provider=config(limits=LimitsConfig(answer_timeout=5, heartbeat=60))) as m:
        said = ["a", "b"] * 30
        job_id = await begun(m, spec("sleep 60"))
        with trio.fail_after(30):
            while m.job(job_id).state != "running":
                await trio.sleep(0.02)
        record = m.requester.ctx.store[CONTRACTS].first("job_id", job_id)
        assert record is not None
        for text in said:
            update = JobStatusUpdate(record.id, "allocation", "running", Usage(), quantities.utc_now(), None, text)
            await m.provider.ctx.messenger.tell(m.requester.identity.did, "job_status_update", update)
            await until(m, job_id, lambda remark, text=text: remark == text)  # type: ignore[misc]  # bound now
        assert m.event_types(job_id).count("job_remark") == execute.MOST_REMARKS
        await m.requester.cancel_job(job_id)
