"""The node's interface (second seed), method by method, on real nodes."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from nunet_cli.actor import MAILBOX_SIZE, Actor
from nunet_cli.config import MOST_TOPICS
from nunet_cli.errors import ContractError, NotFoundError, StateError, UsageError
from nunet_cli.network.topics import BIDS
from nunet_cli.node import node as nodes
from nunet_cli.node.node import Node
from nunet_cli.orchestrator import contract, execute, invoke, match, request
from nunet_cli.records.allocations import HOLDINGS
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.capability import Capability, Cpu, Resources
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.messages import AllocationStartSuccess, CheckKyc, Invocation, JobSync
from tests.conftest import Market, post

MarketOf = Callable[..., Any]
MIB = 2**20
LATER = "2999-01-01T00:00:00.000Z"


def spec(command: str = "true", **fields: Any) -> str:
    body = {
        "name": "test", "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "1",
        "resources": {"cpu": 0.5, "memory": "64MiB", "disk": "16MiB"}, **fields,
    }  # fmt: skip
    return json.dumps(body)


async def contracted(m: Market, text: str) -> tuple[str, Invocation]:
    """Take a job up to its contract; return its id and the invocation that comes next."""
    job_id = await m.post(text)
    for stage in (match.match, request.request, contract.close_contract):
        await stage(m.requester.ctx, job_id)
    row = m.requester.ctx.store[CONTRACTS].first("job_id", job_id)
    assert row is not None
    assert row.proof is not None
    return job_id, Invocation(row.spec, row.document, row.proof)


async def started_by(node: Node, order: Invocation, sender: str) -> AllocationStartSuccess:
    """Let an invocation begin, as the message of it does."""
    return await node.ctx.store.change(await invoke.start_allocation(node.ctx, order, sender))


async def test_allocations_are_started_asked_and_kept(market: MarketOf) -> None:
    async with market() as m:
        job_id, order = await contracted(m, spec("echo begun; sleep 30"))
        with pytest.raises(ContractError):
            await started_by(m.provider, order, m.authority.identity.did)
        started = await started_by(m.provider, order, m.requester.identity.did)
        again = await started_by(m.provider, order, m.requester.identity.did)
        assert again.allocation_id == started.allocation_id
        row = m.provider.get_allocation(started.allocation_id[:20])
        assert (row.job_id, row.requester) == (job_id, m.requester.identity.did)
        with pytest.raises(NotFoundError):
            m.provider.get_allocation("allocation-none")

        with trio.fail_after(30):
            # the allocation itself is asked: the processes of the job are there, once somebody looked
            while row.state != "running" or not row.usage.max_memory:
                await trio.sleep(0.02)
                row = await m.provider.check_allocation_status(row.id)
        assert await m.provider.route_to_allocation(row.id, "no such message") is None
        assert await m.provider.route_to_allocation(row.id, "cancel") == "cancelling"
        with trio.fail_after(30):
            while m.provider.ctx.running:
                await trio.sleep(0.02)
        # an allocation that has ended stays in the database, and takes no more messages
        ended = await m.provider.check_allocation_status(row.id)
        assert ended.state == "cancelled"
        assert await m.provider.route_to_allocation(row.id, "status") is None


async def test_capability_is_benchmarked_registered_and_taken_into_account(market: MarketOf) -> None:
    async with market() as m:
        provider = m.provider
        measured = await provider.benchmark_capability()
        assert min(measured.cpu_hash, measured.memory_copy, measured.disk_write) > 0
        offer = Capability(
            executors=("process",), job_types=("task",), resources=Resources(Cpu(4, 1000, "x86_64"), 512 * MIB, 512 * MIB)
        )  # fmt: skip
        await provider.set_registered_capability(offer, measured)
        assert provider.get_registered_capability().resources.cpu.cores == 4
        assert provider.accounting.benchmark() == measured

        async def lock(bid_id: str, job_id: str, resources: Resources, until: str = LATER) -> None:
            lock_capability = provider.accounting.lock_capability
            await provider.ctx.store.change(lambda t: lock_capability(t, bid_id, job_id, resources, until))

        await lock("bid-1", "job-1", Resources(Cpu(1), 128 * MIB, 64 * MIB))
        (held,) = provider.get_locked_capabilities()
        assert (held.job_id, held.resources.memory) == ("job-1", 128 * MIB)
        left = provider.get_available_capability().resources
        assert (left.cpu.cores, left.memory, left.disk) == (3, 384 * MIB, 448 * MIB)
        with pytest.raises(StateError):
            await lock("bid-2", "job-2", Resources(Cpu(4), MIB, MIB))
        await lock("bid-3", "job-3", Resources(Cpu(1), MIB, MIB), "2026-01-01T00:00:00.000Z")
        assert len(provider.get_locked_capabilities()) == 1
        assert provider.ctx.store[HOLDINGS].count() == 2
        # what has lapsed goes, and what does not work is not available
        provider.ctx.available_executors = {"null": ""}
        assert (await provider.set_available_capability()).executors == ("null",)
        assert provider.ctx.store[HOLDINGS].count() == 1
        await provider.ctx.store.change(lambda t: provider.accounting.release(t, "bid-1"))
        assert provider.get_available_capability().resources.cpu.cores == 4


async def test_preferences_and_bids_are_what_was_set_and_received(market: MarketOf) -> None:
    async with market() as m:
        wished = CapabilityComparator(bid_rules=("price < 0.5",), minimum_price=100)
        await m.requester.set_preferences(wished)
        assert m.requester.get_preferences() == wished
        job = await match.match(m.requester.ctx, await m.post(spec()))
        (bid,) = m.requester.get_registered_bids(job.bid_request_id)
        assert (bid.bidder.did, bid.rank, bid.id) == (m.provider.identity.did, 1, job.bid_id)
        assert m.requester.get_registered_bids("request-none") == []


async def test_as_many_topics_as_an_introduction_can_name(market: MarketOf) -> None:
    async with market() as m:
        for number in range(MOST_TOPICS):
            await m.provider.subscribe(f"/lab/{number}")
        with pytest.raises(UsageError, match="no more can be"):
            await m.provider.subscribe("/lab/more")
        with trio.fail_after(20):
            while len(m.requester.get_known_topics()) < MOST_TOPICS + 1:
                await m.requester.ctx.transport.wait_change(0.1)
        assert m.requester.ctx.transport.rejections["bad_body"] == 0


async def test_a_node_is_an_actor_with_a_mailbox_and_topics(market: MarketOf) -> None:
    async with market() as m:
        # the behaviour for a message to itself, and for one that arrives durably
        me, question = m.authority.identity.did, CheckKyc(m.provider.identity.did)
        assert (await m.authority.mailbox.request(me, "check_kyc", question, timeout=10)).body.verified
        heard: list[Any] = []

        async def behaviour(message: Any) -> None:
            heard.append((message.sender, message.body))

        m.provider.mailbox.register("note", JobSync, behaviour)
        await post(m.requester, m.provider.identity.did, "note", JobSync("contract-1"), lifetime=60)
        with trio.fail_after(20):
            while not heard:
                await trio.sleep(0.02)
        assert heard == [(m.requester.identity.did, JobSync("contract-1"))]

        await m.provider.subscribe("/lab/gpu")
        assert m.provider.get_subscribed_topics() == ["/lab/gpu"]
        assert m.provider.ctx.topics.subscribed == {BIDS, "/lab/gpu"}
        with trio.fail_after(20):
            while "/lab/gpu" not in m.requester.get_known_topics():
                await trio.sleep(0.02)
        assert [peer.did for peer in m.requester.ctx.topics.subscribers("/lab/gpu")] == [m.provider.identity.did]
        await m.provider.unsubscribe("/lab/gpu")
        with trio.fail_after(20):
            while "/lab/gpu" in m.requester.get_known_topics():
                await trio.sleep(0.02)


async def test_edges_are_the_connected_peers_with_their_distance(market: MarketOf) -> None:
    async with market() as m:
        with trio.fail_after(20):
            while len([edge for edge in m.requester.get_edges() if edge.rtt is not None]) < 2:
                await trio.sleep(0.02)
        edges = {edge.did: edge for edge in m.requester.get_edges()}
        assert set(edges) == {m.provider.identity.did, m.authority.identity.did}
        assert all(isinstance(edge, nodes.Edge) and 0 < edge.rtt < 5 for edge in edges.values())
        # and a constraint may name it
        near = spec(constraints={"hard": ["peer.rtt_ms < 5000.0"]})
        assert (await match.match(m.requester.ctx, await m.post(near))).state == "matched"


async def test_an_actor_handles_one_message_at_a_time_and_lets_nobody_hang() -> None:
    seen: list[str] = []

    async def slow(body: Any) -> str:
        seen.append(f"begin {body}")
        await trio.sleep(0.02)
        seen.append(f"end {body}")
        return f"done {body}"

    actor = Actor({"work": slow})
    answers: list[Any] = []

    async def ask(number: int) -> None:
        answers.append(await actor.send_message("work", number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(actor.run_mailbox)
        async with trio.open_nursery() as asking:
            for number in range(3):
                asking.start_soon(ask, number)
        assert sorted(answers) == ["done 0", "done 1", "done 2"]
        assert [text.split()[0] for text in seen] == ["begin", "end"] * 3
        assert await actor.trigger_behavior("unknown", None) is None
        nursery.start_soon(ask, 9)
        await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await actor.send_message("work", 1)


async def test_the_requester_reads_the_state_that_the_provider_tells(market: MarketOf) -> None:
    async with market() as m:
        _, order = await contracted(m, spec("true"))
        started = await started_by(m.provider, order, m.requester.identity.did)
        with trio.fail_after(30):
            while m.provider.get_allocation(started.allocation_id).state != "completed":
                await trio.sleep(0.02)
        row = m.requester.ctx.store[CONTRACTS].one(order.contract.cid)
        state = await execute.job_sync(m.requester.ctx, row)
        assert state.state == "completed"
        assert state.result is not None


async def test_who_waits_in_the_mailbox_of_an_actor_that_ends_is_not_left_waiting() -> None:
    busy = trio.Event()

    async def work(_: Any) -> None:
        busy.set()
        await trio.sleep_forever()

    actor = Actor({"work": work})
    with trio.fail_after(10):
        async with trio.open_nursery() as senders, trio.open_nursery() as nursery:
            nursery.start_soon(actor.run_mailbox)
            for _ in range(MAILBOX_SIZE + 3):
                senders.start_soon(actor.send_message, "work")
            await busy.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
