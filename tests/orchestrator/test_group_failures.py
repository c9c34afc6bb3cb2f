"""Failures in a group: each is the child's own, what is linked to it does not run, and the others go on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli.allocation import run
from nunet_cli.errors import JobFailedError, UsageError
from nunet_cli.groups.group import logs_of, outputs_of
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.groups.walk import run_group
from nunet_cli.jobs.reader import read_spec
from nunet_cli.node.opening import open_node
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.results import Result
from tests.conftest import Market, config, open_market

MarketOf = Callable[..., Any]


def program(name: str, command: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name, "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "1",
        "resources": {"cpu": 0.1, "memory": "32MiB", "disk": "16MiB"}, **fields,
    }  # fmt: skip


def batch(command: str, count: int, **fields: Any) -> str:
    return json.dumps({
        **program("sweep", command, outputs=[{"path": "o"}]), "type": "batch",
        "batch": {"count": count, "parallel": 3}, **fields,
    })  # fmt: skip


def group(*children: dict[str, Any], links: list[dict[str, str]], **fields: Any) -> str:
    return json.dumps({"name": "group", "children": children, "links": links, **fields})


def states(m: Market, job_id: str) -> dict[str, str]:
    """Return the states of a group's children, by name."""
    return {row.name: row.state for row in m.requester.ctx.store[JOBS].by("parent", job_id)}


async def failed(m: Market, job_id: str) -> JobFailedError:
    """Take a job to its end, and return how it failed."""
    with pytest.raises(JobFailedError) as caught, trio.fail_after(60):
        await orchestrate_job(m.requester.ctx, job_id)
    return caught.value


@pytest.mark.parametrize("reason", ["not_run", "child_cancelled", "no_space", "internal"])
async def test_a_providers_word_for_a_failure_is_no_code_of_this_node(
    market: MarketOf, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items that failed are counted as such, whatever their provider says that they did."""
    signed = run.result_of

    async def said(*of: Any) -> Result:
        return structs.replace(await signed(*of), reason=reason, message="it says so")

    # another program than ours may sign what it likes
    monkeypatch.setattr(run, "result_of", said)
    async with market() as m:
        error = await failed(m, await m.post(batch("exit 3", 2)))
        assert (error.code, error.details["failed"]) == ("job_failed", 2)
        assert "it says so" in error.message


async def test_two_of_six_items_fail_and_the_others_settle_and_are_paid(market: MarketOf) -> None:
    async with market() as m:
        command = "echo {index} > o; echo said {index}; case {index} in 1) exit 3;; 4) exit 4;; esac"
        job_id = await m.post(batch(command, 6))
        error = await failed(m, job_id)
        assert error.message.startswith("2 of 6 failed: sweep-1, sweep-4 (sweep-1: the job exited with 3")
        assert (error.code, error.exit_code, error.details["failed"]) == ("exit_code", 1, 2)
        assert f"nunet job retry {job_id}" in error.hint
        expected = {f"sweep-{n}": "failed" if n in (1, 4) else "settled" for n in range(6)}
        job = m.job(job_id)
        assert states(m, job_id) == expected
        assert (job.state, job.paid) == ("failed", "1")
        # what came of them is here, in their order; of those that failed, what they wrote
        outputs = outputs_of(m.requester.ctx, job)
        assert list(outputs) == ["sweep-0/o", "sweep-2/o", "sweep-3/o", "sweep-5/o"]
        assert sorted(logs_of(m.requester.ctx, job)) == [f"sweep-{n}/stdout" for n in range(6)]
        assert not any(balance for name, balance in m.balances().items() if name.startswith("escrow:"))
        (end,) = [event for _, event in m.requester.ctx.store.log(job_id) if event.type == "job_failed"]
        assert (end.data["children"], end.data["failed"], end.data["paid"]) == (6, 2, "1")


async def test_what_goes_wrong_in_the_node_itself_with_one_item_keeps_none_of_the_others(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(batch("echo {index} > o", 4))
        ctx = m.requester.ctx

        async def run(child_id: str) -> Job:
            if child_id == m.job(job_id).children["sweep-1"]:
                raise ZeroDivisionError("in the node")
            return await orchestrate_job(ctx, child_id)

        with pytest.raises(JobFailedError, match="1 of 4 failed: sweep-1: the node could not"), trio.fail_after(60):
            await run_group(ctx, job_id, run)
        assert states(m, job_id) == {f"sweep-{n}": "cancelled" if n == 1 else "settled" for n in range(4)}
        assert ctx.supervisor.failures["child: ZeroDivisionError"] == 1


async def test_what_is_linked_to_a_child_that_failed_does_not_run_and_says_why(market: MarketOf) -> None:
    async with market() as m:
        links = [{"from": "bad", "to": "next"}, {"from": "next", "to": "last"}, {"from": "good", "to": "fine"}]
        children = [program("last", "true"), program("bad", "exit 7"), program("next", "true")]
        job_id = await m.post(group(*children, program("good", "true"), program("fine", "true"), links=links))
        error = await failed(m, job_id)
        assert error.message == "1 of 5 failed: bad: the job exited with 7; 2 of 5 called off: last, next"
        assert states(m, job_id) == {
            "last": "cancelled", "bad": "failed", "next": "cancelled", "good": "settled", "fine": "settled",
        }  # fmt: skip
        why = {row.name: row.called_off for row in m.requester.ctx.store[JOBS].by("parent", job_id)}
        assert why["next"] == "bad, which it is linked to, failed"
        assert why["last"] == "next, which it is linked to, did not run"
        assert m.job(job_id).paid == "0.5"


@pytest.mark.parametrize("fails_late", [True, False])
async def test_a_colocated_job_goes_on_once_it_has_begun_and_does_not_begin_near_what_failed(
    market: MarketOf, fails_late: bool
) -> None:
    async with market() as m:
        # one that nobody can take never has a place to be near to
        first = program("first", "sleep 2; exit 5") if fails_late else program("first", "true", price="0.01")
        job_id = await m.post(
            group(first, program("near", "true"), links=[{"from": "first", "to": "near", "kind": "colocate"}])
        )
        with pytest.raises(JobFailedError), trio.fail_after(60):
            await orchestrate_job(m.requester.ctx, job_id)
        found = states(m, job_id)
        assert found["near"] == ("settled" if fails_late else "cancelled")
        assert found["first"] == ("failed" if fails_late else "expired")


async def test_a_group_goes_on_after_a_restart_beside_what_failed_before(tmp_path: Path) -> None:
    async with open_market(tmp_path) as m:
        authority, provider = m.authority, m.provider
        async with open_node(tmp_path / "again", config()) as requester:
            for node in (authority, provider):
                await requester.add_peer(node.ctx.transport.describe())
            again = Market(requester, provider, authority, tmp_path)
            text = batch("test {index} != 0 && sleep 1", 4, batch={"count": 4, "parallel": 1}, outputs=[])
            job_id = await again.post(text, orchestrate=True)
            requester.orchestrate(job_id)
            with trio.fail_after(30):
                while states(again, job_id)["sweep-0"] != "failed" or states(again, job_id)["sweep-1"] != "running":
                    await trio.sleep(0.02)
        async with open_node(tmp_path / "again", config()) as requester:
            again = Market(requester, provider, authority, tmp_path)
            with trio.fail_after(40):
                while again.job(job_id).state != "failed":
                    await trio.sleep(0.05)
            assert list(states(again, job_id).values()) == ["failed", "settled", "settled", "settled"]
            error = again.job(job_id).error
            assert error is not None
            assert error.message.startswith("1 of 4 failed: sweep-0: the job exited with 1")
            assert again.event_types(again.job(job_id).children["sweep-0"]).count("job_running") == 1


async def test_a_child_that_cannot_be_taken_further_is_ended_and_its_reason_is_the_groups(market: MarketOf) -> None:
    async with market() as m:
        links = [{"from": "a", "to": "b", "kind": "data"}, {"from": "b", "to": "c"}]
        job_id = await m.post(group(program("a", "true"), program("b", "true"), program("c", "true"), links=links))
        error = await failed(m, job_id)
        assert error.message == "1 of 3 failed: b: a has no output at all for b; 1 of 3 called off: c"
        assert states(m, job_id) == {"a": "settled", "b": "cancelled", "c": "cancelled"}


def test_on_failure_belongs_to_groups_and_batches() -> None:
    for text in (program("one", "true", on_failure="stop"), {
        "name": "pod", "pod": True, "children": [program("one", "true")], "on_failure": "stop",
    }):  # fmt: skip
        with pytest.raises(UsageError, match="on_failure: `on_failure` belongs to a group of children or a batch"):
            read_spec(json.dumps(text))


async def test_one_item_is_called_off_while_the_batch_goes_on(market: MarketOf) -> None:
    async with market() as m:
        text = batch("test {index} = 1 || exec sleep 60", 2, outputs=[])
        job_id = await m.post(text)
        m.requester.orchestrate(job_id)
        slow = m.job(job_id).children["sweep-0"]
        with trio.fail_after(30):
            while m.job(slow).state != "running" or states(m, job_id)["sweep-1"] != "settled":
                await trio.sleep(0.02)
            assert m.job(job_id).state == "running"
            assert (await m.requester.cancel_job(slow)).state == "cancelled"
            while m.job(job_id).state != "failed":
                await trio.sleep(0.02)
        error = m.job(job_id).error
        assert error is not None
        assert error.message == "1 of 2 cancelled: sweep-0"
        assert m.provider.accounting.taken(m.provider.ctx.store) == []
