"""More messages of one peer at once than are handled at once: they wait for each other, and not for those that take long."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from msgspec import Struct

from nunet_cli.database.store import Transaction
from nunet_cli.network.messenger import MAX_IN_PROGRESS_PER_PEER, Answer, Change, Incoming
from nunet_cli.node.node import Node
from nunet_cli.node.opening import open_node
from tests.conftest import config

MANY = 3 * MAX_IN_PROGRESS_PER_PEER


class Question(Struct, frozen=True):
    """A message with an answer of the same kind."""

    text: str = ""


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[Node, Node]]:
    async with open_node(folder / "a", config()) as a, open_node(folder / "b", config()) as b:
        await a.add_peer(b.ctx.transport.describe())
        for node in (a, b):
            node.mailbox.register("test_answer", Question)
        yield a, b


async def ask(asking: Node, asked: Node, text: str = "", timeout: float = 20) -> str:
    to = asked.identity.did
    answer = await asking.mailbox.request(to, "test_question", Question(text), timeout=timeout)
    return str(answer.body.text)


@pytest.mark.parametrize("kept", [False, True], ids=["answered-at-once", "kept-first"])
async def test_messages_that_come_together_wait_for_each_other(tmp_path: Path, kept: bool) -> None:
    async def behaviour(message: Incoming) -> Answer | Change:
        answer = "test_answer", Question(message.body.text)

        def change(t: Transaction) -> Answer:
            t.save_event("", "test", text=message.body.text)
            return answer

        return change if kept else answer

    async with two(tmp_path) as (a, b):
        b.mailbox.register("test_question", Question, behaviour)
        assert await ask(a, b, "first") == "first"
        answers: list[str] = []

        async def one(text: str) -> None:
            answers.append(await ask(a, b, text))

        async with trio.open_nursery() as nursery:
            for number in range(MANY):
                nursery.start_soon(one, str(number))
        assert sorted(answers, key=int) == [str(number) for number in range(MANY)]
        # else each of those that were rejected would have been repeated after seconds
        assert b.ctx.transport.rejections["busy"] == 0


async def test_messages_that_take_long_keep_no_answers_waiting(tmp_path: Path) -> None:
    go = trio.Event()

    async def slow(message: Incoming) -> Answer:
        if message.body.text == "slow":
            await go.wait()
        return "test_answer", Question(message.body.text)

    async with two(tmp_path) as (a, b):
        for node in (a, b):
            node.mailbox.register("test_question", Question, slow)
        answers: list[str] = []

        async def one(text: str) -> None:
            answers.append(await ask(a, b, text))

        async with trio.open_nursery() as nursery:
            for _ in range(MAX_IN_PROGRESS_PER_PEER):
                nursery.start_soon(one, "slow")
            with trio.fail_after(10):
                while len(b.mailbox._in_progress[a.identity.did]) < MAX_IN_PROGRESS_PER_PEER:
                    await trio.sleep(0.01)
            for number in range(20):
                nursery.start_soon(one, str(number))
            with trio.fail_after(10):
                while not b.ctx.transport.rejections["busy"]:
                    await trio.sleep(0.01)
            assert not answers
            # what the crowded node itself asks is answered by the same connection, behind all of that
            for _ in range(5):
                assert await ask(b, a, "back", timeout=2) == "back"
            go.set()
        assert len(answers) == MAX_IN_PROGRESS_PER_PEER + 20
        assert not b.mailbox._in_progress
        assert not b.mailbox._room
