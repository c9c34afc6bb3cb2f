"""Recursive jobs between real nodes: links, pods, batches, schedules, services."""

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from nunet_cli import quantities
from nunet_cli.errors import JobFailedError, NunetError, PeerError, StateError
from nunet_cli.groups import group, recurring
from nunet_cli.groups.group import outputs_of
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.tree import arrange
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator import cancel, match
from nunet_cli.records.bids import BID_REQUESTS
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.jobs import JOBS, Job
from nunet_cli.records.offers import OnboardOptions
from tests.conftest import Market, config, open_market
from tests.together import held

MarketOf = Callable[..., Any]


def program(name: str, command: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name, "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "1",
        "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "16MiB"}, **fields,
    }  # fmt: skip


def diamond(**fields: Any) -> str:
    """Five jobs: a splits, b and c work (in one pod), d joins, e checks."""
    out = [{"path": "out"}]
    return json.dumps(
        {
            "name": "diamond",
            "children": [
                program("a", "echo 1 > out", outputs=out),
                program("b", "cat from-a > out; echo b >> out", outputs=out),
                program("c", "cat from-a > out; echo c >> out", outputs=out),
                program("d", "cat b/out c-out > out", outputs=out),
                program("e", "test $(wc -l < out) = 4 && sort out > sorted", outputs=[{"path": "sorted"}]),
            ],
            "links": [
                {"from": "a", "to": "b", "kind": "data", "output": "out", "path": "from-a"},
                {"from": "a", "to": "c", "kind": "data", "output": "out", "path": "from-a"},
                {"from": "b", "to": "d", "kind": "data", "path": "b"},
                {"from": "c", "to": "d", "kind": "data", "output": "out", "path": "c-out"},
                {"from": "d", "to": "e", "kind": "data"},
            ],
            "pods": [{"id": "pair", "jobs": ["b", "c"]}],
            **fields,
        }
    )


def child(market: Market, job_id: str, name: str) -> Job:
    """Return the job with this name below another, a pod's members as well."""
    below = market.requester.ctx.store[JOBS].by("parent", job_id)
    members = [found for pod in below if pod.members for found in market.requester.ctx.store[JOBS].by("parent", pod.id)]
    (found,) = [job for job in (*below, *members) if job.name == name]
    return found


async def test_a_diamond_of_five_with_a_pod_settles_in_order_with_its_data_passed_along(market: MarketOf) -> None:
    async with market(onboard=OnboardOptions(price="0.25")) as m:
        job_id = await m.post(diamond())
        with trio.fail_after(60):
            job = await orchestrate_job(m.requester.ctx, job_id)
        assert job.state == "settled"
        outputs = outputs_of(m.requester.ctx, job)
        assert sorted(outputs) == ["a/out", "b/out", "c/out", "d/out", "e/sorted"]
        assert m.requester.ctx.blobs.path(outputs["e/sorted"].cid).read_text() == "1\n1\nb\nc\n"
        # a, the pod, d and e: four contracts for five jobs
        contracts = m.requester.ctx.store[CONTRACTS].all()
        assert [row.state for row in contracts] == ["settled"] * 4
        assert job.paid == "1"
        assert m.balance(m.provider) == quantities.parse_amount("101")
        # the pod was bid for as one, with the sum of what its jobs need
        pod = child(m, job_id, "pair")
        (sent,) = m.requester.ctx.store[BID_REQUESTS].by("job_id", pod.id)
        assert sent.request.required_capability.resources.memory == 2 * 64 * 2**20
        members = [child(m, job_id, name) for name in ("b", "c")]
        assert {row.contract_id for row in members} == {pod.contract_id}
        assert {row.state for row in members} == {"settled"}
        # what is linked began once the other was settled
        started = {name: child(m, job_id, name) for name in ("a", "d", "e")}
        wanted = [started["a"].id, pod.id, started["d"].id, started["e"].id]
        events = [event for _, event in m.requester.ctx.store.log() if event.type == "job_contracted"]
        assert [event.job_id for event in events if event.job_id in wanted] == wanted


async def test_a_child_that_fails_stops_the_others_where_the_group_says_so(market: MarketOf) -> None:
    async with market() as m:
        text = json.dumps(
            {
                "name": "group",
                "children": [program("bad", "exit 7"), program("slow", "sleep 60"), program("after", "true")],
                "links": [{"from": "bad", "to": "after"}],
                "on_failure": "stop",
            }
        )
        with pytest.raises(JobFailedError, match="bad: the job exited with 7"), trio.fail_after(30):
            await orchestrate_job(m.requester.ctx, job_id := await m.post(text))
        assert m.job(job_id).state == "failed"
        states = {name: child(m, job_id, name).state for name in ("bad", "slow", "after")}
        assert states == {"bad": "failed", "slow": "cancelled", "after": "cancelled"}
        assert m.provider.accounting.taken(m.provider.ctx.store) == []
        assert not any(balance for name, balance in m.balances().items() if name.startswith("escrow:"))


async def test_a_pod_runs_its_members_in_order_and_reports_which_failed(market: MarketOf) -> None:
    async with market() as m:
        members = [program("one", "echo hi; echo x > x", outputs=[{"path": "x"}]), program("two", "cat x; exit 3")]
        links = [{"from": "one", "to": "two", "kind": "data"}]
        text = json.dumps({"name": "pod", "pod": True, "children": members, "links": links})
        job = await orchestrate_job(m.requester.ctx, job_id := await m.post(text))
        assert job.state == "failed"
        assert job.error is not None
        assert job.error.message.startswith("two: the job exited with 3")
        result = m.job(job_id).result
        assert result is not None
        assert m.requester.ctx.blobs.path(result.stdout_cid).read_text() == "==> one <==\nhi\n==> two <==\nx\n"


async def test_colocated_jobs_run_at_one_provider(tmp_path: Path) -> None:
    async with open_market(tmp_path, price="0.2") as m, open_node(tmp_path / "second", config()) as second:
        await second.onboard(OnboardOptions(price="0.5"), None)
        for node in (m.authority, m.requester):
            await second.add_peer(node.ctx.transport.describe())
        with trio.fail_after(20):
            while len(m.requester.ctx.topics.subscribers("/nunet/bids")) < 2:
                await trio.sleep(0.02)
        # the first wants the dear provider: without the link, the second would go to the cheap one
        first = program("first", "true", constraints={"hard": ["peer.did != '' && bid.load >= 0.0 && price > 0.4"]})
        text = json.dumps(
            {
                "name": "near",
                "children": [first, program("other", "true")],
                "links": [{"from": "first", "to": "other", "kind": "colocate"}],
            }
        )
        job = await orchestrate_job(m.requester.ctx, await m.post(text))
        assert job.state == "settled"
        providers = {row.provider for row in m.requester.ctx.store[CONTRACTS].all()}
        assert providers == {second.identity.did}


async def test_the_constraint_of_a_link_is_held_against_the_bids(market: MarketOf) -> None:
    async with market(onboard=OnboardOptions(price="0.2", localities=("country=SE",))) as m:

        def text(wanted: str) -> str:
            rule = f"linked.localities.exists(l, l.name == '{wanted}') && node.localities == linked.localities"
            return json.dumps(
                {
                    "name": "near", "children": [program("x", "true"), program("y", "true")],
                    "links": [{"from": "x", "to": "y", "constraint": rule}],
                }
            )  # fmt: skip

        assert (await orchestrate_job(m.requester.ctx, await m.post(text("SE")))).state == "settled"
        with pytest.raises(JobFailedError, match="y: no acceptable bid: 1 bid against the preferences"):
            await orchestrate_job(m.requester.ctx, await m.post(text("NO")))


async def test_a_batch_runs_each_index_a_few_at_a_time(market: MarketOf) -> None:
    async with market() as m:
        command = "echo $NUNET_BATCH_INDEX of $NUNET_BATCH_COUNT > part-{index}"
        text = json.dumps({
            **program("sum", command, outputs=[{"path": "part-{index}"}]),
            "type": "batch", "batch": {"count": 4, "parallel": 2},
        })  # fmt: skip
        job = await orchestrate_job(m.requester.ctx, await m.post(text))
        assert job.state == "settled"
        outputs = outputs_of(m.requester.ctx, job)
        assert sorted(outputs) == [f"sum-{index}/part-{index}" for index in range(4)]
        texts = {m.requester.ctx.blobs.path(file.cid).read_text() for file in outputs.values()}
        assert texts == {f"{index} of 4\n" for index in range(4)}
        # never more than two at once
        running, most = 0, 0
        for _, event in m.provider.ctx.store.log():
            running += {"allocation_created": 1, "allocation_completed": -1}.get(event.type, 0)
            most = max(most, running)
        assert most <= 2


async def test_a_recurring_job_runs_again_and_again_and_a_failure_does_not_end_it(market: MarketOf) -> None:
    async with market() as m:
        fields = {"type": "recurring", "schedule": {"every": "1s", "count": 3}}
        job_id = await m.post(json.dumps({**program("tick", "echo tick"), **fields}))
        with trio.fail_after(30):
            job = await orchestrate_job(m.requester.ctx, job_id)
        assert job.state == "settled"
        children = [m.job(child_id) for child_id in job.children.values()]
        assert [row.name for row in children] == ["tick-0", "tick-1", "tick-2"]
        assert {row.state for row in children} == {"settled"}
        begun = [quantities.parse_time(row.created_at).timestamp() for row in children]
        assert all(0.9 < later - earlier < 10 for earlier, later in itertools.pairwise(begun))


async def test_a_time_of_a_schedule_is_run_once_though_two_see_that_it_is_due(market: MarketOf) -> None:
    async with market() as m:
        fields = {"type": "recurring", "schedule": {"every": "1h"}}
        job_id = await m.post(json.dumps({**program("tick", "true"), **fields}))
        due = partial(recurring._add_run, job_id=job_id, spec=decode_spec(m.job(job_id).spec), number=0)
        store = m.requester.ctx.store
        async with trio.open_nursery() as nursery, held(store) as let_go:
            for _ in range(2):
                nursery.start_soon(store.change, due)
            await trio.testing.wait_all_tasks_blocked()
            let_go()
        assert list(m.job(job_id).children) == ["tick-0"]
        assert len(store[JOBS].by("parent", job_id)) == 1
        assert m.event_types(job_id).count("job_scheduled") == 1


async def test_a_child_that_is_called_off_meanwhile_is_not_released(market: MarketOf) -> None:
    async with market() as m:
        links = [{"from": "x", "to": "y", "constraint": "true"}]
        text = json.dumps({"name": "near", "children": [program("x", "true"), program("y", "true")], "links": links})
        job_id, ctx = await m.post(text), m.requester.ctx
        async with trio.open_nursery() as nursery, held(ctx.store) as let_go:
            nursery.start_soon(cancel.cancel, ctx, child(m, job_id, "y").id)
            await trio.testing.wait_all_tasks_blocked()
            arranged = arrange(decode_spec(m.job(job_id).spec))
            nursery.start_soon(group.release, ctx, m.job(job_id), arranged, "y")
            await trio.testing.wait_all_tasks_blocked()
            let_go()
        called_off = child(m, job_id, "y")
        assert (called_off.state, called_off.released, called_off.link_rules) == ("cancelled", False, ())
        assert "job_released" not in m.event_types(called_off.id)


async def test_a_service_runs_until_it_is_stopped_and_is_paid_for_its_time(market: MarketOf) -> None:
    async with market(price="3600/h") as m:
        text = program("web", "echo up; exec sleep 600", type="service", price="200", time={"max_duration": 60})
        job_id = await m.post(json.dumps(text))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(orchestrate_job, m.requester.ctx, job_id)
            with trio.fail_after(20):
                while m.job(job_id).state != "running":
                    await trio.sleep(0.05)
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
        job = await cancel.cancel(m.requester.ctx, job_id)
        assert job.state == "settled"
        assert job.paid is not None
        paid = quantities.parse_amount(job.paid) / quantities.MICRO
        assert 1 <= paid <= 20
        assert m.provider.accounting.taken(m.provider.ctx.store) == []


async def test_a_service_is_started_again_when_it_fails_and_given_up_in_the_end(market: MarketOf) -> None:
    async with market() as m:
        service = {"restart": "on_failure", "max_restarts": 2, "delay": 0}
        text = program("flaky", "echo start; exit 5", type="service", service=service)
        job = await orchestrate_job(m.requester.ctx, job_id := await m.post(json.dumps(text)))
        assert job.error is not None
        assert (job.state, job.error.code) == ("failed", "exit_code")
        restarts = [event for _, event in m.provider.ctx.store.log(job_id) if event.type == "service_restarted"]
        assert [event.data["restart"] for event in restarts] == [1, 2]
        assert job.result is not None
        assert m.requester.ctx.blobs.path(job.result.stdout_cid).read_text() == "start\n" * 3


async def test_a_service_that_is_not_well_is_ended_and_started_again(market: MarketOf) -> None:
    async with market() as m:
        # it is well only while the file is there, and removes it in its first life
        command = "if test -e again; then touch ok; else touch ok again; sleep 1; rm ok; fi; exec sleep 60"
        health = {"command": ["test", "-e", "ok"], "interval": 1, "retries": 1}
        service = {"restart": "on_failure", "max_restarts": 1, "delay": 0, "health": health}
        text = program("sick", command, type="service", service=service, time={"max_duration": 60})
        job_id = await m.post(json.dumps(text))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(orchestrate_job, m.requester.ctx, job_id)
            with trio.fail_after(30):
                while True:
                    seen = [event.type for _, event in m.provider.ctx.store.log(job_id)]
                    if "service_restarted" in seen and seen[-1] == "service_healthy":
                        break
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        assert (await cancel.cancel(m.requester.ctx, job_id)).state == "settled"


async def test_a_group_goes_on_after_a_restart_of_the_requester(tmp_path: Path) -> None:
    async with open_market(tmp_path) as m:
        job_id = await m.post(diamond(), orchestrate=True)
        authority, provider = m.authority, m.provider
        async with open_node(tmp_path / "again", config()) as requester:
            for node in (authority, provider):
                await requester.add_peer(node.ctx.transport.describe())
            again = Market(requester, provider, authority, tmp_path)
            other = await again.post(diamond(), orchestrate=True)
            requester.orchestrate(other)
            with trio.fail_after(20):
                while child(again, other, "a").state != "settled":
                    await trio.sleep(0.02)
        async with open_node(tmp_path / "again", config()) as requester:
            again = Market(requester, provider, authority, tmp_path)
            with trio.fail_after(40):
                while again.job(other).state != "settled":
                    await trio.sleep(0.05)
        assert m.job(job_id).state == "posted"


async def test_a_group_and_a_job_in_a_pod_have_no_stages_of_their_own(market: MarketOf) -> None:
    async with market() as m:
        job_id = await m.post(diamond())
        with pytest.raises(StateError, match="is a group"):
            await match.match(m.requester.ctx, job_id)
        with pytest.raises(StateError, match="runs with its pod"):
            await orchestrate_job(m.requester.ctx, child(m, job_id, "b").id)
        with pytest.raises(StateError, match="cancelled with its pod"):
            await cancel.cancel(m.requester.ctx, child(m, job_id, "b").id)
        assert (await cancel.cancel(m.requester.ctx, job_id)).state == "cancelled"
        assert child(m, job_id, "b").state == "cancelled"


async def test_nobody_for_one_child_is_said_with_its_name(market: MarketOf) -> None:
    async with market() as m:
        text = json.dumps({"name": "g", "children": [program("huge", "true", resources={"memory": "900GiB"})]})
        with pytest.raises(NunetError, match="huge: no acceptable bid: 1 declined") as caught:
            await orchestrate_job(m.requester.ctx, await m.post(text))
        assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["stderr", "stdout", "members", "work", "inputs"])
async def test_a_member_of_a_pod_may_have_any_name(market: MarketOf, name: str) -> None:
    """Its folder stands where nothing else does: else its end would be the provider's fault, and its time free."""
    async with market() as m:
        members = [program(name, "echo hi; echo bad >&2"), program("other", "echo ho")]
        links = [{"from": name, "to": "other", "kind": "depends_on"}]
        text = json.dumps({"name": "pod", "pod": True, "children": members, "links": links})
        job = await orchestrate_job(m.requester.ctx, await m.post(text))
        assert job.state == "settled"
        assert job.result is not None
        read = m.requester.ctx.blobs.path(job.result.stdout_cid).read_text()
        assert read == f"==> {name} <==\nhi\n==> other <==\nho\n"


@pytest.mark.parametrize("case", ["no program", "bad place", "no inputs"])
async def test_what_a_later_member_lacks_does_not_make_the_time_of_an_earlier_one_free(
    market: MarketOf, case: str
) -> None:
    async with market(price="3600/h") as m:
        limits: dict[str, Any] = {"time": {"max_duration": 20}, "price": "30"}
        later = program("two", "true", **limits)
        link: dict[str, Any] = {"from": "one", "to": "two", "kind": "data", "path": "x"}
        if case == "no program":
            later["executor"]["command"] = ["no-such-program"]
        elif case == "bad place":
            link["path"] = "x" * 300
        else:
            (m.folder / "given").write_text("given\n")
            later["inputs"] = [{"path": "given", "to": "given"}]
        members = [program("one", "sleep 0.5; echo x > x", outputs=[{"path": "x"}], **limits), later]
        body = {"name": "pod", "pod": True, "children": members, "links": [link]}
        job_id = await m.post(json.dumps(body))
        if case == "no inputs":

            async def keep(*_: Any, **__: Any) -> None:
                raise PeerError("it does not give it")

            m.provider.ctx.blobs.fetch = keep
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "failed"
        assert m.balance(m.provider) - quantities.parse_amount("100") >= 500_000
