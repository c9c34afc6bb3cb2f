"""Messages between nodes: at-least-once delivery, de-duplication, requests with answers, and a durable outbox.

A sender repeats a message with the same id until it is acknowledged or expires. A receiver does the work once, keeps
its first answer, and gives that answer to every repetition.
"""

from __future__ import annotations

import base64
import logging
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from msgspec import MsgspecError, Struct

from nunet_cli import quantities
from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import FatalError, NoSpaceError, NunetError, PeerError, RejectedMessageError
from nunet_cli.network.answers import Answers
from nunet_cli.network.connection import ACK, ENVELOPE, Connection
from nunet_cli.network.envelope import SIGNATURE_SIZE, Envelope, ErrorMessage, body_of, error_message, seal, unseal
from nunet_cli.network.identity import Identity
from nunet_cli.network.outbox import RETRY_INTERVAL, Outbox
from nunet_cli.network.transport import TcpTransport
from nunet_cli.network.waiting import Waiting, short
from nunet_cli.records.fields import Id
from nunet_cli.records.identifiers import key_from_did
from nunet_cli.records.reading import decode

log = logging.getLogger("nunet.messages")

FORGET_INTERVAL = 30.0
MAX_IN_PROGRESS_PER_PEER = 32
# seconds for which a peer's connection is not read while so many are, as they come together by the dozen and end at the
# next commit; and for how long those are not waited for again that took longer: answers may stand behind them
ROOM_PATIENCE, CROWDED = 0.5, 5.0
# `MESSAGE-ID`, or `MESSAGE-ID REASON` for a message that was rejected
_ACK = re.compile(rb"([!-~]{1,120})(?: ([a-z0-9_]{1,60}))?")


@dataclass(frozen=True)
class Incoming:
    """A message that passed every check: `raw` are the exact bytes, which are the evidence."""

    envelope: Envelope
    body: Any
    raw: bytes

    @property
    def sender(self) -> str:
        """The DID that signed it."""
        return self.envelope.from_

    @property
    def evidence(self) -> str:
        """The raw bytes in base64, as the store keeps them."""
        return base64.b64encode(self.raw).decode()


Answer = tuple[str, Struct]
# what a message changes: run in the transaction in which its being handled, and the answer, are kept as well
Change = Callable[[Transaction], Answer | None]
Behaviour = Callable[[Incoming], Awaitable[Answer | Change | None]]


@dataclass(frozen=True)
class _Type:
    kind: type[Struct]
    behaviour: Behaviour | None


class _Named(Struct, frozen=True):
    """Of a message that is refused, what its sender knows it by."""

    id: Id


class Messenger:
    """Sends and receives envelopes, and triggers the behaviour that is registered for each type."""

    def __init__(self, identity: Identity, transport: TcpTransport, store: Store) -> None:
        self._identity, self.transport, self._store = identity, transport, store
        self.topics: frozenset[str] = frozenset()
        self._types: dict[str, _Type] = {}
        self._pending: dict[str, Waiting] = {}
        self._in_progress: dict[str, set[str]] = defaultdict(set)
        # by peer, who waits until one less of its messages is in progress
        self._room: dict[str, trio.Event] = {}
        self._answers = Answers(store)
        self.outbox = Outbox(identity, transport, store, self._pending, self._to_self)
        self._nursery: trio.Nursery | None = None
        transport.on_frame[ENVELOPE] = self._on_envelope
        transport.on_frame[ACK] = self._on_ack
        self.register("error_message", ErrorMessage)

    def register(self, type_: str, kind: type[Struct], behaviour: Behaviour | None = None) -> None:
        """Say what a message type carries and what to do when one arrives.

        Args:
            type_: the type's name.
            kind: the struct that the body must fit.
            behaviour: what to do; None for a type that only comes as an answer.
        """
        self._types[type_] = _Type(kind, behaviour)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks that handle messages and deliver the outbox, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            supervisor = self.transport.supervisor
            supervisor.start_soon(
                nursery, "old answers", supervisor.every, FORGET_INTERVAL, "old answers", self._forget
            )
            await supervisor.every(0, "deliveries", self.outbox.deliver, nursery)

    async def _forget(self) -> None:
        await self._answers.forget()

    async def request(self, to: str, type_: str, body: Struct, *, timeout: float) -> Incoming:
        """Send a request and return the answer, repeating the request while there is none.

        Args:
            to: the DID of the peer.
            type_: the message's type.
            body: its body.
            timeout: seconds for all of it.

        Raises:
            PeerError: the peer cannot be reached, or did not answer in time.
            NunetError: the peer answered with an error message; its code, message, hint and details are the peer's.
        """
        envelope, raw = seal(self._identity, to, type_, body, lifetime=timeout + 5)
        return await self._exchange(to, envelope, raw, timeout)

    async def _exchange(self, to: str, envelope: Envelope, raw: bytes, timeout: float) -> Incoming:
        key = key_from_did(to)
        waiting = self._pending[envelope.id] = Waiting(to)
        last: Waiting | None = None
        reached = False
        end = trio.current_time() + timeout
        try:
            if to == self._identity.did:
                with trio.move_on_at(end):
                    await self._to_self(envelope, raw, waiting)
            while not waiting.arrived.is_set() and trio.current_time() < end:
                # one scope for all of a try: they are not for nothing
                with trio.move_on_at(min(end, trio.current_time() + RETRY_INTERVAL)):
                    connection = await self.transport.wait_connected(key)
                    try:
                        await connection.send(ENVELOPE, raw)
                    except PeerError:
                        await trio.sleep(0.05)
                        continue
                    reached = True
                    await waiting.arrived.wait()
                if waiting.trouble() == NoSpaceError.default_code:
                    with trio.move_on_at(min(end, trio.current_time() + RETRY_INTERVAL)):
                        await trio.sleep_forever()
                    last, waiting = waiting, Waiting(to)
                    self._pending[envelope.id] = waiting
        finally:
            del self._pending[envelope.id]
        if waiting.envelope is None and last is not None:
            waiting = last
        if waiting.rejected:
            raise PeerError(f"{short(to)} rejected the {envelope.type}: {waiting.rejected}", code="peer_rejected")
        if waiting.envelope is None:
            what = "did not answer" if reached else "cannot be reached"
            raise PeerError(
                f"{short(to)} {what} within {quantities.format_duration(timeout)} ({envelope.type})",
                code="peer_silent" if reached else "peer_unreachable",
                details={"peer": to},
            )
        answer = waiting.envelope
        if answer.type not in self._types:
            raise PeerError(f"{short(to)} answered with an unknown message {answer.type!r}", code="bad_answer")
        parsed = body_of(answer, self._types[answer.type].kind)
        if isinstance(parsed, ErrorMessage):
            error = NunetError(parsed.message, code=parsed.code, hint=parsed.hint, details=parsed.details)
            error.exit_code = PeerError.exit_code
            raise error
        return Incoming(answer, parsed, waiting.raw)

    async def _to_self(self, envelope: Envelope, raw: bytes, waiting: Waiting) -> None:
        """Give a message to this node's own behaviour: a node may act in several roles."""
        known = self._types.get(envelope.type)
        if known is None or known.behaviour is None:
            waiting.rejected = "unknown_type"
        else:
            answer = self._answers.find(envelope)
            answer = await self._do(envelope, raw, known) if answer is None else answer
            if answer:
                waiting.envelope, waiting.raw = unseal(answer, me=self._identity.did), answer
        waiting.arrived.set()

    async def tell(self, to: str, type_: str, body: Struct) -> None:
        """Send once, if the peer is connected: for what the next message makes worthless, such as a heartbeat."""
        connection = self.transport.connection(key_from_did(to))
        if connection is not None:
            _, raw = seal(self._identity, to, type_, body, lifetime=60)
            with trio.move_on_after(1):
                await connection.send(ENVELOPE, raw)

    async def insist(self, connection: Connection, type_: str, body: Struct, *, attempts: int = 5) -> None:
        """Send on one connection until it is acknowledged, or the connection is over: for introductions."""
        to = connection.peer.did
        envelope, raw = seal(self._identity, to, type_, body, lifetime=60)
        waiting = self._pending[envelope.id] = Waiting(to)
        try:
            for _ in range(attempts):
                await connection.send(ENVELOPE, raw)
                with trio.move_on_after(RETRY_INTERVAL):
                    await waiting.arrived.wait()
                if waiting.arrived.is_set():
                    return
        finally:
            del self._pending[envelope.id]

    async def _on_ack(self, connection: Connection, _kind: int, payload: bytes) -> None:
        found = _ACK.fullmatch(payload)
        if found is None:
            raise RejectedMessageError("not an acknowledgement", code="malformed")
        waiting = self._pending.get(found[1].decode())
        if waiting is None or waiting.sender != connection.peer.did:
            connection.unasked()
            return
        waiting.rejected = (found[2] or b"").decode()
        waiting.arrived.set()

    async def _on_envelope(self, connection: Connection, _kind: int, raw: bytes) -> None:
        try:
            envelope = unseal(raw, me=self._identity.did, topics=self.topics)
            if envelope.from_ != connection.peer.did:
                raise RejectedMessageError(
                    "the message is signed by somebody else than its sender", code="wrong_sender"
                )
            if envelope.reply_to:
                self._take_answer(envelope, raw)
                return
            known = self._types.get(envelope.type)
            if known is None or known.behaviour is None:
                raise RejectedMessageError(f"unknown message type {envelope.type!r}", code="unknown_type")
            if self._is_in_progress(envelope):
                return
            if not await self._has_room(connection, envelope.from_):
                raise RejectedMessageError("too many messages at once", code="busy")
            if self._is_in_progress(envelope):
                # it came by another connection as well
                return
        except RejectedMessageError as error:
            level = logging.INFO if connection.remarks.take() else logging.DEBUG
            log.log(level, "rejected a message of %s: %s (%s)", connection.peer.peer_id, error, error.code)
            await self._reject(connection, raw, error.code)
            raise
        assert self._nursery is not None
        self._in_progress[envelope.from_].add(envelope.id)
        name = f"handling {envelope.type}"
        self.transport.supervisor.start_soon(self._nursery, name, self._handle, connection, envelope, raw, known)

    def _is_in_progress(self, envelope: Envelope) -> bool:
        return envelope.id in self._in_progress.get(envelope.from_, ())

    async def _has_room(self, connection: Connection, did: str) -> bool:
        """Say whether one more message of a peer can be handled now; where many came together, once some have ended."""
        if len(self._in_progress.get(did, ())) < MAX_IN_PROGRESS_PER_PEER:
            return True
        with trio.move_on_after(ROOM_PATIENCE) as patience:
            while len(self._in_progress.get(did, ())) >= MAX_IN_PROGRESS_PER_PEER:
                if trio.current_time() < connection.crowded_until:
                    return False
                await self._room.setdefault(did, trio.Event()).wait()
        if patience.cancelled_caught:
            connection.crowded_until = trio.current_time() + CROWDED
        return not patience.cancelled_caught

    async def _reject(self, connection: Connection, raw: bytes, code: str) -> None:
        # the id is only echoed to the peer it came from, so it need not be proved
        try:
            message_id = decode(raw[SIGNATURE_SIZE:], _Named).id
        except (MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if code != "busy":
            try:
                await connection.send(ACK, f"{message_id} {code}".encode())
            except PeerError:
                pass

    def _take_answer(self, envelope: Envelope, raw: bytes) -> None:
        waiting = self._pending.get(envelope.reply_to)
        if waiting is None or waiting.envelope is not None:
            return  # late or repeated; it took from the peer's rate
        if waiting.sender is not None and waiting.sender != envelope.from_:
            raise RejectedMessageError("an answer from somebody who was not asked", code="wrong_sender")
        waiting.envelope, waiting.raw = envelope, raw
        waiting.arrived.set()

    async def _handle(self, connection: Connection, envelope: Envelope, raw: bytes, known: _Type) -> None:
        try:
            first = self._answers.find(envelope)
            if first is None:
                first = await self._do(envelope, raw, known)
            if first:
                await connection.send(ENVELOPE, first)
            else:
                await connection.send(ACK, envelope.id.encode())
        except PeerError:
            pass
        finally:
            # what fails otherwise, the store for example: the sender repeats the message, and may find things better
            self._in_progress[envelope.from_].discard(envelope.id)
            if not self._in_progress[envelope.from_]:
                del self._in_progress[envelope.from_]
            room = self._room.pop(envelope.from_, None)
            if room is not None:
                room.set()

    async def _do(self, envelope: Envelope, raw: bytes, known: _Type) -> bytes:
        assert known.behaviour is not None
        # what was refused changed nothing and leaves no durable trace: repeated after a restart, it is refused again
        keep = True
        answer: Answer | None
        try:
            said = await known.behaviour(Incoming(envelope, body_of(envelope, known.kind), raw))
            if callable(said):
                sealed = await self._store.change(partial(self._change, envelope, said))
                self._answers.remember(envelope, sealed)
                return sealed
            answer = said
        except FatalError:
            raise
        except NunetError as error:
            connection = self.transport.connection(key_from_did(envelope.from_))
            level = logging.INFO if connection is None or connection.remarks.take() else logging.DEBUG
            log.log(level, "%s from %s refused: %s", envelope.type, short(envelope.from_), error)
            if isinstance(error, RejectedMessageError):
                self.transport.rejections[error.code] += 1
            answer = ("error_message", error_message(error))
            keep = not isinstance(error, NoSpaceError)
        except Exception as error:
            # one peer's message never stops the node; and a repetition may find things better
            self.transport.supervisor.note(f"handling {envelope.type}", error)
            answer, keep = ("error_message", ErrorMessage("internal", "the node could not handle the message")), False
        sealed = self._sealed(envelope, answer)
        if keep:
            self._answers.remember(envelope, sealed)
        return sealed

    def _change(self, envelope: Envelope, change: Change, t: Transaction) -> bytes:
        """Do what a message changes, and keep with it that it was handled, and how it is answered."""
        sealed = self._sealed(envelope, change(t))
        self._answers.keep(t, envelope, sealed)
        return sealed

    def _sealed(self, envelope: Envelope, answer: Answer | None) -> bytes:
        if answer is None:
            return b""
        return seal(self._identity, envelope.from_, answer[0], answer[1], lifetime=300, reply_to=envelope.id)[1]
