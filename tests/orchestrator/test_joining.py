"""A provider looks for work at the moment it joins, and when a peer does; not each time that one comes again."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing
from trio.testing import MockClock

from nunet_cli.config import Config
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from nunet_cli.orchestrator.turns import LONGEST_SAVING, MEET_AGAIN, MOST_CAME, MOST_WAITING, SAVED_IN_VAIN, Work
from nunet_cli.records.bids import AskOpenRequests, OpenRequests
from nunet_cli.records.capability import Cpu, Resources
from nunet_cli.records.offers import OnboardOptions
from tests.conftest import config, open_market

OFFER = OnboardOptions(price="0.2", cpu=0.3, memory="64MiB", disk="64MiB")


def patient() -> Config:
    """Return a configuration whose node asks nobody but on an occasion."""
    return config(pull_interval=3600)


@asynccontextmanager
async def asked(folder: Path) -> AsyncIterator[tuple[Node, list[str]]]:
    """Open a node that notes who asks it for work."""
    async with open_node(folder, config()) as node:
        who: list[str] = []

        async def answer(message: Any) -> Any:
            who.append(message.sender)
            return "open_requests", OpenRequests()

        node.ctx.messenger.register("ask_open_requests", AskOpenRequests, answer)
        yield node, who


async def is_asked(who: list[str], times: int) -> None:
    with trio.fail_after(20):
        while len(who) < times:
            await trio.sleep(0.02)
    # and no more often
    with trio.move_on_after(0.5):
        while len(who) == times:
            await trio.sleep(0.02)
    assert len(who) == times


async def test_a_provider_that_starts_and_one_that_begins_to_offer_look_for_work_at_once(tmp_path: Path) -> None:
    async with asked(tmp_path / "requester") as (requester, who):
        async with open_node(tmp_path / "provider", patient()) as provider:
            await provider.add_peer(requester.ctx.transport.describe())
            with trio.fail_after(20):
                while not provider.ctx.transport.connected():
                    await trio.sleep(0.02)
            # who offers nothing has nothing to look for
            await is_asked(who, 0)
            await provider.onboard(OFFER, None)
            await is_asked(who, 1)
        async with open_node(tmp_path / "provider", patient()) as provider:
            await is_asked(who, 2)
            assert set(who) == {provider.identity.did}


async def test_a_peer_that_comes_again_and_again_is_asked_once(tmp_path: Path) -> None:
    async with (
        asked(tmp_path / "requester") as (requester, who),
        open_node(tmp_path / "provider", patient()) as provider,
    ):
        await provider.onboard(OFFER, None)
        await provider.add_peer(requester.ctx.transport.describe())
        await is_asked(who, 1)
        for _ in range(3):
            connection = provider.ctx.transport.connection(requester.identity.public_key)
            assert connection is not None
            connection.close()
            with trio.fail_after(20):
                while provider.ctx.transport.connection(requester.identity.public_key) in (None, connection):
                    await trio.sleep(0.02)
        await is_asked(who, 1)


async def test_a_job_that_waits_for_anybody_begins_when_a_provider_joins(tmp_path: Path) -> None:
    async with open_node(tmp_path / "late", patient()) as late:
        await late.onboard(OFFER, None)
    async with open_market(tmp_path, onboard=OFFER) as m:
        await m.provider.offboard()
        text = {
            "name": "test", "executor": {"type": "process", "command": ["true"]}, "price": "1",
            "resources": {"cpu": 0.1, "memory": "16MiB", "disk": "1MiB"}, "time": {"deadline": "1h"},
        }  # fmt: skip
        job_id = await m.post(json.dumps(text))
        m.requester.orchestrate(job_id)
        with trio.fail_after(30):
            while not m.job(job_id).waiting:
                await trio.sleep(0.02)
        async with open_node(tmp_path / "late", patient()) as late:
            for node in (m.authority, m.requester):
                await late.add_peer(node.ctx.transport.describe())
            with trio.fail_after(30):
                while m.job(job_id).state != "settled":
                    await trio.sleep(0.02)


async def test_of_many_that_come_together_a_few_are_asked_at_a_time(autojump_clock: Any) -> None:
    work = Work()
    for number in range(2 * MOST_WAITING):
        work.meet(f"did:{number}")
    work.wake()
    look = await work.wait(3600)
    assert (look.freed, look.around, look.came) == (True, False, [f"did:{number}" for number in range(MOST_CAME)])
    seen = MOST_CAME
    while (look := await work.wait(3600)).came:
        assert not look.freed
        assert len(look.came) <= MOST_CAME
        seen += len(look.came)
    assert seen == MOST_WAITING
    assert look.around
    work.meet(f"did:{MOST_WAITING - 1}")
    assert trio.current_time() > MEET_AGAIN
    assert (await work.wait(3600)).came == [f"did:{MOST_WAITING - 1}"]
    work.meet(f"did:{MOST_WAITING - 1}")
    assert (await work.wait(MEET_AGAIN / 2)).came == []


async def test_what_is_saved_for_one_that_goes_away_is_saved_no_longer(autojump_clock: MockClock) -> None:
    work, looks = Work(), list[float]()
    for did in ("did:key:zA", "did:key:zB"):
        work.note_waiting(did)
    assert work.save_for("did:key:zB")

    async def look() -> None:
        while True:
            await work.wait(1000)
            looks.append(trio.current_time())

    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await trio.sleep(300)
        nursery.cancel_scope.cancel()
    # once as it is over, and not again and again
    assert [round(at - begin) for at in looks] == [LONGEST_SAVING]
    assert not work.save_for("did:key:zB")
    await trio.sleep(LONGEST_SAVING * SAVED_IN_VAIN)
    assert work.save_for("did:key:zB")
    await trio.sleep(1)
    work.forget("did:key:zB")
    # another's is saved once as much time has passed
    assert not work.save_for("did:key:zA")


async def test_a_turn_that_was_given_ends_whatever_its_requester_made_of_it(tmp_path: Path) -> None:
    async with open_node(tmp_path / "provider", patient()) as p, open_node(tmp_path / "other", patient()) as other:
        asked = list[str]()

        async def answer(message: Any) -> Any:
            asked.append(message.sender)
            return "open_requests", OpenRequests(takes=True)

        other.ctx.messenger.register("ask_open_requests", AskOpenRequests, answer)
        await p.onboard(OnboardOptions(price="0.1"), None)
        await other.add_peer(p.ctx.transport.describe())
        work, did = p.ctx.work, other.identity.did
        with trio.fail_after(20):
            while not asked:
                await trio.sleep(0.02)
            while did in work._turns:
                await trio.sleep(0.02)
        # once others wait it is one of them
        work.note_waiting("did:key:zFirst")
        assert not work.may_take(did)
        assert not work.is_turn(did)


async def test_who_comes_is_not_given_what_is_saved_for_another(tmp_path: Path) -> None:
    async with (
        open_node(tmp_path / "provider", patient()) as p, open_node(tmp_path / "large", patient()) as large,
        open_node(tmp_path / "late", patient()) as late,
    ):  # fmt: skip
        asked = list[str]()

        def answers(said: OpenRequests) -> Any:
            async def answer(message: Any) -> Any:
                asked.append(message.envelope.to)
                return "open_requests", said

            return answer

        await p.onboard(OnboardOptions(price="0.1", cpu=1, memory="64MiB", disk="64MiB"), None)
        held = Resources(Cpu(0.5), 2**20, 2**20)
        await p.ctx.store.change(
            lambda t: p.accounting.lock_capability(
                t, "one", "job-1", held, "2999-01-01T00:00:00.000Z", 60, "did:key:zA"
            )
        )
        needs = OpenRequests(needs=Resources(Cpu(0.8), 2**20, 2**20))
        large.ctx.messenger.register("ask_open_requests", AskOpenRequests, answers(needs))
        late.ctx.messenger.register("ask_open_requests", AskOpenRequests, answers(OpenRequests()))
        await large.add_peer(p.ctx.transport.describe())
        with trio.fail_after(20):
            while not p.ctx.work.is_saving:
                await trio.sleep(0.02)
            asked.clear()
            await late.add_peer(p.ctx.transport.describe())
            while not asked:
                await trio.sleep(0.02)
        assert asked == [large.identity.did]
