"""A contract database that was put back to an earlier state: what it proved since then comes to an end all the same."""

import trio
from msgspec import structs

from nunet_cli.config import LimitsConfig
from nunet_cli.orchestrator import contract, invoke, match, request
from nunet_cli.records.contract_records import CONTRACTS, REGISTERED_CONTRACTS
from tests.conftest import config
from tests.orchestrator.test_lifecycle import MarketOf, spec


async def test_a_contract_that_its_database_forgot_ends_and_so_does_its_job(market: MarketOf) -> None:
    limits = LimitsConfig(settlement_window=1)
    async with market(requester=config(limits=limits), provider=config(limits=limits)) as m:
        job_id = await m.post(spec("true"))
        for stage in (match.match, request.request, contract.close_contract, invoke.invoke):
            await stage(m.requester.ctx, job_id)
        with trio.fail_after(30):
            while m.job(job_id).state != "completed":
                await trio.sleep(0.02)
        contract_id = m.job(job_id).contract_id
        await m.let_pass_the_deadline(contract_id)
        await m.authority.ctx.store.change(lambda t: t[REGISTERED_CONTRACTS].remove(contract_id))
        # the requester's books as well: its own deadline has passed
        theirs = m.requester.ctx.store[CONTRACTS].one(contract_id)
        deadline = m.provider.ctx.store[CONTRACTS].one(contract_id).deadline
        await m.requester.ctx.store.change(
            lambda t: t[CONTRACTS].put(structs.replace(theirs, deadline=deadline))  # the same moment
        )
        m.requester.ctx.closings.look(contract_id)
        with trio.fail_after(60):
            while {node.ctx.store[CONTRACTS].one(contract_id).state for node in (m.requester, m.provider)} != {
                "expired"
            }:
                await trio.sleep(0.05)
        job = m.job(job_id)
        assert (job.state, job.paid) == ("failed", "0")
        assert job.error is not None
        assert job.error.code == "contract_forgotten"
        # the documents are kept
        kept = m.requester.ctx.store[CONTRACTS].one(contract_id)
        assert kept.proof is not None
        assert kept.result is not None
        assert "put back" in kept.reason
