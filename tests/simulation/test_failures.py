"""One party goes away at the worst moment, on a virtual clock: what the other does, when, and what the books say."""

from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli import quantities
from nunet_cli.config import LimitsConfig
from nunet_cli.errors import NunetError
from nunet_cli.network.messenger import Answer, Behaviour, Incoming
from nunet_cli.node.node import Node
from nunet_cli.records.books import ACCOUNTS, Account
from nunet_cli.records.contract_records import CONTRACTS, ContractRecord
from tests.simulation.harness import Simulation, check_documents, run

OPENING, QUARTER = quantities.parse_amount("100"), quantities.parse_amount("0.25")


async def pair(sim: Simulation, **overrides: Any) -> str:
    """An authority, a requester, and two providers of which the first is cheaper; return a job's id."""
    await sim.start("authority", roles=("contract-database", "oracle"))
    for name, price in (("first", "0.25"), ("second", "0.5")):
        await sim.onboard(await sim.start(name, knows=("authority",)), price=price)
    # the times that people have, who set none
    requester = await sim.start("requester", knows=("authority", "first", "second"), limits=LimitsConfig())
    return await sim.post(requester, **{"seconds": 60, "time": {"max_duration": 300}, **overrides})


async def reaches(sim: Simulation, job_id: str, *states: str, within: float = 600) -> float:
    """Wait until a job is in one of some states; return the virtual time."""
    # some of them are over in a round trip
    pause = 0.002 if "requested" in states else 0.1
    with trio.fail_after(within):
        while sim.nodes["requester"].get_job(job_id).state not in states:
            await trio.sleep(pause)
    return trio.current_time()


def balance(sim: Simulation, name: str) -> int:
    account = sim.nodes["authority"].ctx.store[ACCOUNTS].get(sim.nodes[name].identity.did)
    return account.balance if account is not None else OPENING


def contract_with(sim: Simulation, name: str) -> ContractRecord:
    """Return the requester's contract with a provider."""
    did = sim.nodes[name].identity.did
    (contract,) = [row for row in sim.nodes["requester"].ctx.store[CONTRACTS].all() if row.provider == did]
    return contract


def held(sim: Simulation) -> list[Account]:
    rows = sim.nodes["authority"].ctx.store[ACCOUNTS].all()
    return [row for row in rows if row.id.startswith("escrow:") and row.balance]


def answering(node: Node, type_: str, behaviour: Behaviour) -> Any:
    """Let a node do something else with messages of a type; return what it did before."""
    known = node.ctx.messenger._types[type_]
    node.ctx.messenger.register(type_, known.kind, behaviour)
    return known.behaviour


def test_a_provider_that_is_gone_for_good_is_replaced_within_a_minute(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> tuple[float, str]:
        job_id = await pair(sim, seconds=20, retry={"attempts": 1})
        await reaches(sim, job_id, "running")
        gone = trio.current_time()
        await sim.crash("first")
        requester = sim.nodes["requester"]
        while requester.get_job(job_id).attempts == 0 or requester.get_job(job_id).state != "running":
            await trio.sleep(0.1)
        again = trio.current_time() - gone
        states = await sim.wait_ended({job_id: "requester"})
        await sim.until(lambda: not held(sim), 3600)
        assert (balance(sim, "requester"), balance(sim, "second")) == (OPENING - 2 * QUARTER, OPENING + 2 * QUARTER)
        check_documents(requester)
        # the first attempt is kept with the job, as one that a person runs again is
        job, first = requester.get_job(job_id), contract_with(sim, "first")
        assert (job.attempt, job.attempts, [past.number for past in job.past]) == (2, 1, [1])
        (past,) = job.past
        assert (past.state, past.contract_id) == ("failed", first.id)
        assert past.error is not None
        assert past.error.code == "provider_silent"
        assert [event.data["attempt"] for _, event in requester.ctx.store.log(job_id) if "retry" in event.data] == [2]
        return again, states[job_id]

    again, state = run(main, tmp_path)
    assert state == "settled"
    assert 30 <= again < 60


def test_a_provider_that_falls_silent_is_told_of_and_so_is_that_it_is_heard_again(tmp_path: Path) -> None:
    """Where the job may not be tried elsewhere it waits, and says for what."""

    async def main(sim: Simulation) -> None:
        job_id = await pair(sim, seconds=250)
        await reaches(sim, job_id, "running")
        requester = sim.nodes["requester"]
        sim.network.partition({"first"})
        cut = quantities.utc_now()
        with trio.fail_after(60):
            while requester.get_job(job_id).waiting is None:
                await trio.sleep(0.1)
        job, deadline = requester.get_job(job_id), contract_with(sim, "first").deadline
        assert job.waiting is not None
        who, since = sim.nodes["first"].identity.peer_id[-8:], job.waiting.since
        assert job.waiting.for_ == (
            f"its provider …{who}, silent since {since[11:16]} UTC; its result is waited for until {deadline[11:16]} UTC"
        )
        # from when it was heard last
        assert since[:19] <= cut[:19]
        assert 30 <= (quantities.now() - quantities.parse_time(since)).total_seconds() < 40
        assert (job.state, job.waiting.next_try) == ("running", deadline)
        sim.network.partition()
        with trio.fail_after(120):
            while requester.get_job(job_id).waiting is not None:
                await trio.sleep(0.1)
        told = [event.type for _, event in requester.ctx.store.log(job_id) if event.type.startswith("provider_")]
        assert told == ["provider_silent", "provider_heard"]
        assert (await sim.wait_ended({job_id: "requester"}))[job_id] == "settled"

    run(main, tmp_path)


def test_a_provider_that_was_given_up_and_comes_back_gives_the_deposit_back_at_once(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> str:
        job_id = await pair(sim, seconds=200, retry={"attempts": 1})
        await reaches(sim, job_id, "running")
        await sim.crash("first")
        requester = sim.nodes["requester"]
        with trio.fail_after(120):
            while requester.get_job(job_id).attempts == 0:
                await trio.sleep(0.1)
        await sim.restart("first")
        with trio.fail_after(60):
            while contract_with(sim, "first").state != "refunded":
                await trio.sleep(0.1)
        return (await sim.wait_ended({job_id: "requester"}))[job_id]

    assert run(main, tmp_path) == "settled"


def test_an_authority_that_is_away_when_the_work_is_done_is_asked_again(tmp_path: Path) -> None:
    """Longer than an answer is waited for: with the result at the requester, only the settlement is left to do."""

    async def main(sim: Simulation) -> tuple[str, list[str]]:
        job_id = await pair(sim, seconds=20)
        await reaches(sim, job_id, "running")
        await sim.crash("authority")
        await reaches(sim, job_id, "completed")
        await trio.sleep(60)
        await sim.restart("authority")
        await reaches(sim, job_id, "settled", within=60)
        assert held(sim) == []
        assert balance(sim, "first") == OPENING + QUARTER
        events = [event.type for _, event in sim.nodes["requester"].ctx.store.log(job_id)]
        return sim.nodes["requester"].get_job(job_id).state, events

    state, events = run(main, tmp_path)
    assert state == "settled"
    assert "settlement_waits" in events
    assert "job_stuck" not in events


def test_work_that_was_finished_out_of_reach_is_paid_and_delivered(tmp_path: Path) -> None:
    """The provider is cut off until after the deadline, and back while the contract can still be settled."""

    async def main(sim: Simulation) -> None:
        job_id = await pair(sim)
        await reaches(sim, job_id, "running")
        sim.network.partition({"first"})
        await trio.sleep(300 + 600 + 30)
        sim.network.partition()
        await trio.sleep(300)
        assert (contract_with(sim, "first").state, balance(sim, "first")) == ("settled", OPENING + QUARTER)
        job = sim.nodes["requester"].get_job(job_id)
        assert (job.state, job.collected) == ("settled", True)
        assert held(sim) == []

    run(main, tmp_path)


def test_of_two_providers_that_did_a_job_one_is_paid(tmp_path: Path) -> None:
    """The first one was cut off, and given up; it comes back with the finished result when another one has the job."""

    async def main(sim: Simulation) -> None:
        job_id = await pair(sim, retry={"attempts": 1})
        await reaches(sim, job_id, "running")
        sim.network.partition({"first"})
        requester = sim.nodes["requester"]
        with trio.fail_after(120):
            while requester.get_job(job_id).attempts == 0 or requester.get_job(job_id).state != "running":
                await trio.sleep(0.1)
        await trio.sleep(40)
        sim.network.partition()
        states = await sim.wait_ended({job_id: "requester"})
        await trio.sleep(300 + 600 + 1200)
        assert states == {job_id: "settled"}
        assert balance(sim, "second") == OPENING + 2 * QUARTER
        # whether the first one is to be paid as well is for the contract database's operator to say
        assert (contract_with(sim, "first").state, balance(sim, "first")) == ("disputed", OPENING)
        assert [row.balance for row in held(sim)] == [QUARTER]

    run(main, tmp_path)


def test_a_requester_that_dies_before_the_proof_and_comes_back_later_looks_for_bids_again(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> str:
        await sim.start("authority", roles=("contract-database", "oracle"))
        for name in ("first", "second"):
            await sim.onboard(await sim.start(name, knows=("authority",)))
        honest = answering(sim.nodes["authority"], "register_contract", _unused)

        async def hang(message: Incoming) -> Answer | None:
            await trio.sleep_forever()
            raise AssertionError("never")

        answering(sim.nodes["authority"], "register_contract", hang)
        requester = await sim.start("requester", knows=("authority", "first", "second"))
        job_id = await sim.post(requester, seconds=5)
        with trio.fail_after(60):
            while not requester.ctx.store[CONTRACTS].count("state", "agreed"):
                await trio.sleep(0.01)
        await sim.crash("requester")
        answering(sim.nodes["authority"], "register_contract", honest)
        await trio.sleep(300)
        await sim.restart("requester")
        return (await sim.wait_ended({job_id: "requester"}))[job_id]

    assert run(main, tmp_path) == "settled"


def test_a_contract_that_was_recorded_out_of_reach_is_found_again(tmp_path: Path) -> None:
    """The contract database records it, and its answer is lost for longer than the signatures bind."""

    async def main(sim: Simulation) -> str:
        await sim.start("authority", roles=("contract-database", "oracle"))
        await sim.onboard(await sim.start("first", knows=("authority",)))
        honest = answering(sim.nodes["authority"], "register_contract", _unused)

        async def lost(message: Incoming) -> Answer | None:
            await sim.nodes["authority"].ctx.store.change(await honest(message))
            await trio.sleep_forever()
            raise AssertionError("never")

        answering(sim.nodes["authority"], "register_contract", lost)
        requester = await sim.start("requester", knows=("authority", "first"))
        job_id = await sim.post(requester, seconds=5)
        await trio.sleep(150)
        answering(sim.nodes["authority"], "register_contract", honest)
        state = (await sim.wait_ended({job_id: "requester"}))[job_id]
        assert requester.ctx.store[CONTRACTS].count() == 1
        return state

    assert run(main, tmp_path) == "settled"


def test_a_requester_that_was_away_until_long_after_the_deadline_gets_what_it_paid_for(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> tuple[str, bool, int]:
        job_id = await pair(sim)
        await reaches(sim, job_id, "running")
        await sim.crash("requester")
        await trio.sleep(300 + 600 + 900)
        requester = await sim.restart("requester")
        for other in ("authority", "first", "second"):
            requester.ctx.peers.add(sim.nodes[other].identity.public_key, (other, 4000), "static")
        states = await sim.wait_ended({job_id: "requester"}, 600)
        job = requester.get_job(job_id)
        return states[job_id], job.collected, balance(sim, "first")

    assert run(main, tmp_path) == ("settled", True, OPENING + QUARTER)


def test_a_contract_database_that_restarts_while_it_is_asked_for_the_proof_costs_only_time(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> str:
        job_id = await pair(sim, seconds=5)
        # the provider's signature is on its way when the contract database goes
        await reaches(sim, job_id, "requested")
        await sim.crash("authority")
        await trio.sleep(25)
        assert sim.nodes["requester"].get_job(job_id).state == "requested"
        await sim.restart("authority")
        return (await sim.wait_ended({job_id: "requester"}))[job_id]

    assert run(main, tmp_path) == "settled"


def test_a_contract_database_that_cannot_write_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> str:
        await sim.start("authority", roles=("contract-database", "oracle"))
        begun = trio.current_time()
        honest = answering(sim.nodes["authority"], "register_contract", _unused)

        async def full(message: Incoming) -> Any:
            if trio.current_time() < begun + 20:
                raise OSError(28, "No space left on device")
            return await honest(message)

        answering(sim.nodes["authority"], "register_contract", full)
        await sim.onboard(await sim.start("first", knows=("authority",)))
        requester = await sim.start("requester", knows=("authority", "first"))
        job_id = await sim.post(requester, seconds=5)
        return (await sim.wait_ended({job_id: "requester"}))[job_id]

    assert run(main, tmp_path) == "settled"


async def _unused(_message: Incoming) -> Answer | None:
    raise AssertionError("replaced at once")


def test_a_contract_database_that_stays_away_fails_the_job_and_frees_the_providers_lock(tmp_path: Path) -> None:
    async def main(sim: Simulation) -> None:
        job_id = await pair(sim)
        await reaches(sim, job_id, "requested")
        await sim.crash("authority")
        failed = await reaches(sim, job_id, "failed", within=120)
        first = sim.nodes["first"]
        with trio.fail_after(5):
            while first.accounting.taken(first.ctx.store):
                await trio.sleep(0.1)
        assert trio.current_time() - failed < 5

    run(main, tmp_path)


@pytest.mark.parametrize("silent", [False, True])
def test_a_provider_that_does_not_start_what_it_signed_for_loses_the_job_to_the_next_bidder(
    tmp_path: Path, silent: bool
) -> None:
    async def main(sim: Simulation) -> None:
        await sim.start("authority", roles=("contract-database", "oracle"))
        for name, price in (("first", "0.25"), ("second", "0.5")):
            await sim.onboard(await sim.start(name, knows=("authority",)), price=price)

        async def refuse(_message: Incoming) -> Answer | None:
            if silent:
                await trio.sleep_forever()
            raise NunetError("not today", code="allocation_error")

        answering(sim.nodes["first"], "invocation", refuse)
        requester = await sim.start("requester", knows=("authority", "first", "second"))
        job_id = await sim.post(requester, seconds=5)
        began = trio.current_time()
        states = await sim.wait_ended({job_id: "requester"}, 600)
        assert states[job_id] == "settled"
        assert trio.current_time() - began < (90 if silent else 30)
        assert balance(sim, "second") == OPENING + 2 * QUARTER
        # and the deposit with the first one is back long before its deadline
        with trio.fail_after(60):
            while held(sim):
                await trio.sleep(0.1)
        assert balance(sim, "requester") == OPENING - 2 * QUARTER

    run(main, tmp_path)
