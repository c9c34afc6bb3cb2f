"""The actor: a mailbox, and a behaviour for each kind of message in it (second seed: `types.Actor`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio

MAILBOX_SIZE = 64


@dataclass
class Mail:
    """One message in a mailbox: its type, its body, and where the answer goes."""

    type: str
    body: Any = None
    answer: Any = None
    done: trio.Event = field(default_factory=trio.Event)


Behavior = Callable[[Any], Awaitable[Any]]


class Actor:
    """Something that is reached by messages alone, one at a time.

    Args:
        behaviors: what to do for each type of message.
    """

    def __init__(self, behaviors: dict[str, Behavior]) -> None:
        self._behaviors = behaviors
        self._send, self.mailbox = trio.open_memory_channel[Mail](MAILBOX_SIZE)

    async def send_message(self, type_: str, body: Any = None) -> Any:
        """Put a message into the mailbox and return the answer; the caller sets the timeout.

        Raises:
            trio.BrokenResourceError: the actor has ended.
        """
        mail = Mail(type_, body)
        await self._send.send(mail)
        await mail.done.wait()
        return mail.answer

    async def receive_message(self) -> Mail:
        """Take the next message from the mailbox, waiting for it."""
        return await self.mailbox.receive()

    async def handle_message(self, mail: Mail) -> None:
        """Trigger the behaviour for a message and keep its answer; a message without one is answered with None."""
        try:
            mail.answer = await self.trigger_behavior(mail.type, mail.body)
        finally:
            mail.done.set()

    async def trigger_behavior(self, type_: str, body: Any) -> Any:
        """Do what a type of message asks for."""
        behavior = self._behaviors.get(type_)
        return await behavior(body) if behavior is not None else None

    async def run_mailbox(self) -> None:
        """Handle messages one after the other, until cancelled; who still waits then gets no answer."""
        try:
            while True:
                await self.handle_message(await self.receive_message())
        finally:
            # nothing comes in between: what is closed gives nothing out any more
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    self.mailbox.receive_nowait().done.set()
            self.mailbox.close()
