"""Running again what failed: a new attempt of the same job, after which its group goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from nunet_cli import quantities
from nunet_cli.errors import NunetError, StateError
from nunet_cli.groups import recurring, walk
from nunet_cli.groups.again import run_again
from nunet_cli.groups.group import outputs_of
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.jobs.check import decode_spec
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import cancel as cancelling
from nunet_cli.orchestrator.cancel import cancel
from nunet_cli.orchestrator.outputs import read_logs
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.jobs import JOB_ENDS, JOBS, Job
from nunet_cli.records.offers import OnboardOptions
from tests.conftest import Market, config, open_market
from tests.orchestrator.test_group_failures import batch, failed, group, program, states
from tests.together import held

MarketOf = Callable[..., Any]


async def settled(m: Market, job_id: str, state: str = "settled") -> Job:
    """Wait until a job has ended, and so."""
    with trio.fail_after(60):
        while m.job(job_id).state not in JOB_ENDS:
            end = m.requester.ctx.store.end(job_id)
            if m.job(job_id).state not in JOB_ENDS:
                await end.wait()
    job = m.job(job_id)
    assert job.state == state, job.error
    return job


async def test_a_job_that_failed_runs_again_with_a_new_contract_and_its_story_stays(
    market: MarketOf, shared: Path
) -> None:
    async with market() as m:
        mended = shared / "mended"
        job_id = await m.post(json.dumps(program("one", f"echo try; test -e {mended} && echo yes > o || exit 3",
                                                 outputs=[{"path": "o"}])))  # fmt: skip
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "failed"
        first = m.job(job_id)
        mended.touch()
        assert (await m.requester.retry_job(job_id)).runs == 1
        job = await settled(m, job_id)
        assert (job.attempt, job.error, job.paid) == (2, None, "0.25")
        (past,) = job.past
        assert (past.number, past.state, past.contract_id, past.result) == (
            1, "failed", first.contract_id, first.result,
        )  # fmt: skip
        assert past.error is not None
        assert past.error.message.startswith("the job exited with 3")
        assert {row.state for row in m.requester.ctx.store[CONTRACTS].all()} == {"refunded", "settled"}
        assert m.balance(m.provider) == quantities.parse_amount("100.25")
        # the events of both are there, and the second says which it is
        log = [event for _, event in m.requester.ctx.store.log(job_id)]
        assert [event.data.get("attempt") for event in log if event.type == "job_posted"] == [None, 2]
        assert m.event_types(job_id).count("job_running") == 2
        for attempt, wanted in ((1, b"try\n"), (2, b"try\n")):
            assert await read_logs(m.requester.ctx, job, "stdout", 0, 0, attempt=attempt) == (wanted, True)
        with pytest.raises(StateError, match="no logs of an attempt 7"):
            await read_logs(m.requester.ctx, job, "stdout", 0, 0, attempt=7)


async def test_of_a_batch_what_failed_runs_again_and_nothing_else(market: MarketOf, shared: Path) -> None:
    async with market() as m:
        mended = shared / "mended"
        command = f"echo {{index}} > o; case {{index}} in 1|4) test -e {mended} ;; esac"
        job_id = await m.post(batch(command, 6))
        await failed(m, job_id)
        mended.touch()
        assert (await m.requester.retry_job(job_id)).runs == 2
        job = await settled(m, job_id)
        children = m.requester.ctx.store[JOBS].by("parent", job_id)
        assert [row.attempt for row in children] == [1, 2, 1, 1, 2, 1]
        assert set(states(m, job_id).values()) == {"settled"}
        assert list(outputs_of(m.requester.ctx, job)) == [f"sweep-{n}/o" for n in range(6)]
        assert (job.attempt, job.past[0].state, job.paid) == (2, "failed", "1.5")
        begun = [event for _, event in m.provider.ctx.store.log() if event.type == "allocation_created"]
        assert len(begun) == 8


@pytest.mark.parametrize("by_its_own_id", [True, False])
async def test_what_did_not_run_because_of_a_failure_runs_then_with_what_its_links_bring(
    market: MarketOf, shared: Path, by_its_own_id: bool
) -> None:
    async with market() as m:
        mended, out = shared / "mended", [{"path": "o"}]
        links = [{"from": "a", "to": "b", "kind": "data", "path": "in"}, {"from": "b", "to": "c", "kind": "data"}]
        children = [
            program("a", "echo a > o", outputs=out),
            program("b", f"test -e {mended} || exit 3; cat in/o > o; echo b >> o", outputs=out),
            program("c", "cat o > last", outputs=[{"path": "last"}]),
        ]
        job_id = await m.post(group(*children, links=links))
        await failed(m, job_id)
        mended.touch()
        target = m.job(job_id).children["b"] if by_its_own_id else job_id
        done = await m.requester.retry_job(target)
        assert (done.runs, done.top.id) == (2, job_id)
        job = await settled(m, job_id)
        outputs = outputs_of(m.requester.ctx, job)
        assert m.requester.ctx.blobs.path(outputs["c/last"].cid).read_text() == "a\nb\n"
        rows = {row.name: row for row in m.requester.ctx.store[JOBS].by("parent", job_id)}
        assert [rows[name].attempt for name in "abc"] == [1, 2, 2]
        assert rows["c"].past[0].called_off == "b, which it is linked to, failed"


async def test_an_item_that_is_run_again_while_its_batch_goes_on_is_taken_up_by_it(
    market: MarketOf, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[set[str]] = []
    look = walk._Walk._look

    def noted(self: walk._Walk, names: set[str] | None = None) -> None:
        read.append(set(self._job.children) if names is None else names)
        look(self, names)

    monkeypatch.setattr(walk._Walk, "_look", noted)
    async with market() as m:
        mended, go = shared / "mended", shared / "go"
        command = f"case {{index}} in 0) test -e {mended} ;; 1) until test -e {go}; do sleep 0.1; done ;; esac"
        job_id = await m.post(batch(command, 2, outputs=[]))
        m.requester.orchestrate(job_id)
        first = m.job(job_id).children["sweep-0"]
        await settled(m, first, "failed")
        mended.touch()
        done = await m.requester.retry_job(first)
        assert done.top.id == job_id
        await settled(m, first)
        assert m.job(job_id).state == "running"
        # of thousands the others are not read anew
        assert read[1:] == [{"sweep-0"}]
        go.touch()
        assert (await settled(m, job_id)).attempt == 1


async def test_a_retry_that_was_kept_before_the_node_was_killed_goes_on(tmp_path: Path, shared: Path) -> None:
    async with open_market(tmp_path) as m:
        authority, provider, mended = m.authority, m.provider, shared / "mended"
        async with open_node(tmp_path / "again", config()) as requester:
            for node in (authority, provider):
                await requester.add_peer(node.ctx.transport.describe())
            again = Market(requester, provider, authority, tmp_path)
            job_id = await again.post(batch(f"test {{index}} = 0 || test -e {mended}", 3, outputs=[]))
            await failed(again, job_id)
            # the change alone: nobody takes the job further in this run of the node
            await run_again(requester.ctx, job_id)
        mended.touch()
        async with open_node(tmp_path / "again", config()) as requester:
            again = Market(requester, provider, authority, tmp_path)
            await settled(again, job_id)
            assert [row.attempt for row in requester.ctx.store[JOBS].by("parent", job_id)] == [1, 2, 2]


async def test_two_who_run_a_job_again_at_once_make_one_attempt(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(json.dumps(program("one", "exit 3")))
        await orchestrate_job(m.requester.ctx, job_id)
        refused: list[StateError] = []

        async def again() -> None:
            try:
                await run_again(m.requester.ctx, job_id)
            except StateError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery, held(m.requester.ctx.store) as let_go:
            for _ in range(2):
                nursery.start_soon(again)
            await trio.testing.wait_all_tasks_blocked()
            let_go()
        assert len(refused) == 1
        assert (m.job(job_id).attempt, m.job(job_id).state) == (2, "posted")


async def test_what_is_not_to_be_run_again_is_refused_with_the_reason(market: MarketOf) -> None:
    async with market() as m:
        done = await m.post(json.dumps(program("done", "true")))
        await orchestrate_job(m.requester.ctx, done)
        posted = await m.post(json.dumps(program("posted", "true")))
        pod = await m.post(json.dumps({"name": "pod", "pod": True, "children": [program("in", "true")]}))
        copies = await m.post(json.dumps(program("copies", "true", verify={"policy": "replicate", "n": 2})))
        for job_id, why in (
            (done, "is settled: there is nothing to run again"), (posted, "is posted: it has not ended"),
            (m.job(pod).members[0], "runs with its pod"), (next(iter(m.job(copies).children.values())), "together"),
        ):  # fmt: skip
            with pytest.raises(StateError, match=why):
                await m.requester.retry_job(job_id)


async def test_what_a_person_called_off_runs_again_by_its_own_id_alone(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(group(program("a", "true"), program("b", "true"), links=[]))
        mine = m.job(job_id).children["a"]
        await cancel(m.requester.ctx, mine)
        with pytest.raises(NunetError, match="1 of 2 cancelled: a"):
            await orchestrate_job(m.requester.ctx, job_id)
        with pytest.raises(StateError, match="nothing failed in job"):
            await m.requester.retry_job(job_id)
        await m.requester.retry_job(mine)
        assert (await settled(m, job_id)).paid == "0.5"


async def test_a_group_that_was_called_off_goes_on_with_what_it_had_left(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(batch("true", 3, outputs=[]))
        await m.requester.cancel_job(job_id)
        assert set(states(m, job_id).values()) == {"cancelled"}
        assert (await m.requester.retry_job(job_id)).runs == 3
        await settled(m, job_id)


async def test_what_runs_again_while_its_group_is_called_off_is_called_off_as_well(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market() as m:
        job_id = await m.post(batch("true", 3, outputs=[]))
        child, whole = next(iter(m.job(job_id).children.values())), cancelling.cancel_children
        attempts = [1, 2]

        async def and_again(*arguments: Any) -> int:
            done = await whole(*arguments)
            if attempts:
                # somebody else is as fast
                attempts.pop()
                await run_again(m.requester.ctx, child)
            return done

        monkeypatch.setattr(cancelling, "cancel_children", and_again)
        with trio.fail_after(20):
            await m.requester.cancel_job(job_id)
        assert (m.job(job_id).state, m.job(child).attempt) == ("cancelled", 3)
        # nobody would take it further
        assert set(states(m, job_id).values()) == {"cancelled"}


async def test_a_time_that_runs_again_as_the_last_one_is_over_is_run(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market() as m:
        fields = {"type": "recurring", "schedule": {"every": "1s", "count": 1}}
        job_id = await m.post(json.dumps(program("often", "exit 3", **fields)))
        settle, attempts = recurring._settle, [1]

        async def and_again(ctx: Any, group_id: str) -> Job | None:
            if attempts:
                attempts.pop()
                await run_again(ctx, next(iter(m.job(group_id).children.values())))
            return await settle(ctx, group_id)

        monkeypatch.setattr(recurring, "_settle", and_again)
        with trio.fail_after(30):
            assert (await orchestrate_job(m.requester.ctx, job_id)).state == "settled"
        (child,) = (m.job(child_id) for child_id in m.job(job_id).children.values())
        assert (child.state, child.attempt) == ("failed", 2)


async def test_a_deadline_that_has_passed_is_as_far_away_as_it_was(market: MarketOf) -> None:
    async with market() as m:
        # nobody takes it at that price
        job_id = await m.post(json.dumps(program("dear", "true", price="0.01", time={"deadline": "2s"})))
        with pytest.raises(NunetError), trio.fail_after(30):
            await orchestrate_job(m.requester.ctx, job_id)
        before = decode_spec(m.job(job_id).spec).time.deadline
        assert before <= quantities.utc_now()
        await run_again(m.requester.ctx, job_id)
        job = m.job(job_id)
        after = quantities.parse_time(decode_spec(job.spec).time.deadline)
        left = (after - quantities.parse_time(job.run_at)).total_seconds()
        assert 1.9 < left < 2.1


async def test_replicas_run_again_together_and_are_compared(tmp_path: Path, shared: Path) -> None:
    async with open_market(tmp_path) as m, open_node(tmp_path / "second", config()) as second:
        await second.onboard(OnboardOptions(price="0.25"), None)
        for node in (m.authority, m.requester):
            await second.add_peer(node.ctx.transport.describe())
        with trio.fail_after(20):
            while len(m.requester.ctx.topics.subscribers("/nunet/bids")) < 2:
                await trio.sleep(0.02)
        mended = shared / "mended"
        command = f"test -e {mended} || exit 3; echo same > o"
        text = program("copies", command, outputs=[{"path": "o"}], verify={"policy": "replicate", "n": 2})
        job_id = await m.post(json.dumps(text))
        with pytest.raises(NunetError, match="0 of 2 providers agree"), trio.fail_after(60):
            await orchestrate_job(m.requester.ctx, job_id)
        mended.touch()
        assert (await m.requester.retry_job(job_id)).runs == 2
        assert (await settled(m, job_id)).paid == "0.5"
