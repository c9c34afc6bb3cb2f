"""Ten different machines and many jobs: each goes where a matcher by brute force says, and the ledger adds up.

All fifty jobs of the scenario go to ten processes in `e2e/test_ten_processes`.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

import trio

from nunet_cli import quantities
from nunet_cli.records.bids import CapabilityComparator, Weights
from nunet_cli.records.books import ACCOUNTS
from nunet_cli.records.capability import Locality, Storage, TimeCapability
from nunet_cli.records.contract_records import CONTRACTS
from tests import scenario
from tests.simulation.harness import Simulation, check_documents, run

JOBS = scenario.jobs()[:25]


async def market(sim: Simulation) -> None:
    await sim.start("authority", roles=("contract-database", "oracle"))
    names = [provider.name for provider in scenario.providers()]
    for machine in scenario.providers():
        node = await sim.start(machine.name, knows=("authority",))
        await sim.onboard(
            node, cores=machine.cores, memory=machine.memory, price=machine.price, unit=machine.unit,
            localities=(Locality("country", machine.country),), time=TimeCapability(max=machine.max_duration),
            storage=(Storage("ssd", machine.ssd),) if machine.ssd else (),
            comparator=CapabilityComparator(rules=(machine.rule,) if machine.rule else ()),
        )  # fmt: skip
    requester = await sim.start("requester", knows=("authority", *names), registry=_rich())
    await requester.accounting.set_preferences(CapabilityComparator(weights=Weights(distance=0)))


def _rich() -> Any:
    from nunet_cli.config import RegistryConfig

    return RegistryConfig(opening_balance="100")


def test_each_job_goes_where_brute_force_says(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> tuple[dict[str, str | None], dict[str, int], str]:
        await market(sim)
        requester = sim.nodes["requester"]
        names = {node.identity.did: name for name, node in sim.nodes.items()}
        got: dict[str, str | None] = {}
        for job in JOBS:
            job_id = await sim.post(requester, **job)
            state = (await sim.wait_ended({job_id: "requester"}))[job_id]
            contract = requester.ctx.store[CONTRACTS].first("job_id", job_id)
            assert state == ("settled" if contract is not None else "expired")
            got[job["name"]] = names[contract.provider] if contract is not None else None
        for node in sim.nodes.values():
            check_documents(node)
        accounts = sim.nodes["authority"].ctx.store[ACCOUNTS].all()
        return got, {names.get(row.id, row.id): row.balance for row in accounts}, ""

    got, balances, _ = run(main, tmp_path)
    assert got == {job["name"]: scenario.expected(job) for job in JOBS}
    # a fair test has winners of every kind, and jobs that nobody may run
    assert len({name for name in got.values() if name}) >= 6
    assert None in got.values()
    check_ledger(got, balances)


def check_ledger(got: dict[str, str | None], balances: dict[str, int]) -> None:
    """What each has is what the jobs that it ran, or had run, come to."""
    by_name = {provider.name: provider for provider in scenario.providers()}
    earned: dict[str, Fraction] = {name: Fraction(0) for name in by_name}
    for job in JOBS:
        winner = got[job["name"]]
        if winner is not None and by_name[winner].unit == "":
            earned[winner] += scenario.cost_of(by_name[winner], job)
    for name, amount in earned.items():
        if by_name[name].unit == "" and name in balances:
            assert balances[name] == quantities.parse_amount("100") + int(amount * quantities.MICRO), name
    assert sum(balances.values()) == 0
    assert not any(balance for name, balance in balances.items() if name.startswith("escrow:"))


JOBS_AT_ONCE = 25


def test_many_jobs_at_once_share_ten_machines(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> dict[str, str | None]:
        await market(sim)
        requester = sim.nodes["requester"]
        names = {node.identity.did: name for name, node in sim.nodes.items()}
        ids = {}
        for job in scenario.jobs(seed=2)[:JOBS_AT_ONCE]:
            time = {**job["time"], "deadline": "2d"}
            ids[await sim.post(requester, seconds=30, **{**job, "time": time})] = job
        able = {job_id for job_id, job in ids.items() if scenario.expected(job)}
        states = await sim.wait_ended(dict.fromkeys(able, "requester"), 86400)
        assert set(states.values()) == {"settled"}
        got = {}
        for job_id in able:
            contract = requester.ctx.store[CONTRACTS].one(requester.get_job(job_id).contract_id)
            got[ids[job_id]["name"]] = names[contract.provider]
        for machine in scenario.providers():
            assert sim.nodes[machine.name].accounting.taken(sim.nodes[machine.name].ctx.store) == []
        await trio.sleep(1)
        return got

    got = run(main, tmp_path)
    by_name = {provider.name: provider for provider in scenario.providers()}
    for job in scenario.jobs(seed=2)[:JOBS_AT_ONCE]:
        if job["name"] in got:
            assert scenario.may_run(by_name[str(got[job["name"]])], job)
    # a job does not wait behind a long one while another machine is idle
    assert len(set(got.values())) >= 6
