"""What a machine is: a table of what may happen to a record, as data. Nothing here knows where records are kept.

A row says: in these states, this event, caused by one of these parties, and about this very document, leads to that
state. The tables stand with their records; `database.transition` is the only code that follows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from nunet_cli.errors import StateError

# who can cause something; `clock` is the passing of time
REQUESTER, PROVIDER, DATABASE, ORACLE, OPERATOR, CLOCK = (
    "requester", "provider", "contract-database", "oracle", "operator", "clock",
)  # fmt: skip


@dataclass(frozen=True)
class Move:
    """One row of a machine.

    Args:
        event: what happens.
        states: in which states it may.
        to: the state that it leads to; empty where it only changes what the record says beside its state.
        by: who may cause it.
        about: the field that names the document which the event must be about; empty where it is about none.
        when: what must hold of the record as well.
        why: what `when` asks for, for who is refused.
    """

    event: str
    states: tuple[str, ...]
    to: str
    by: tuple[str, ...]
    about: str = ""
    when: Callable[[Any], bool] | None = None
    why: str = ""


@dataclass(frozen=True, eq=False)
class Machine:
    """The machine of one kind of record: its start, its ends, its moves. `state` is the field that has the state."""

    name: str
    start: tuple[str, ...]
    ends: frozenset[str]
    moves: tuple[Move, ...]
    state: str = "state"
    _by_state: dict[tuple[str, str], Move] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for move in self.moves:
            for state in move.states:
                assert (state, move.event) not in self._by_state, f"{self.name}: two moves for {move.event} in {state}"
                self._by_state[state, move.event] = move

    @property
    def states(self) -> tuple[str, ...]:
        """All states, in the order in which the table names them."""
        named = (*self.start, *(name for move in self.moves for name in (*move.states, move.to) if name))
        return tuple(dict.fromkeys(named))

    def leads_to(self, state: str) -> frozenset[str]:
        """Return the states that a state may become."""
        return frozenset(move.to or state for (at, _), move in self._by_state.items() if at == state)

    def may(self, state: str, event: str) -> bool:
        """Say whether an event is allowed in a state, whoever causes it."""
        return (state, event) in self._by_state

    def move(self, record: Any, event: str, by: str, about: str | None) -> Move:
        """Return the row for an event.

        Args:
            record: the record as it is now.
            event: what happens.
            by: who causes it.
            about: the id of the document that it is about; None for none.

        Raises:
            StateError: the state does not allow it (`wrong_state`), this party may not (`wrong_party`), it is about
                another document than the record (`wrong_document`), or what it asks for beside does not hold.
        """
        state = getattr(record, self.state)
        found = self._by_state.get((state, event))
        what = f"{self.name} {getattr(record, 'id', '')}".strip()
        if found is None:
            allowed = sorted(self.leads_to(state))
            may = f"it may become {', '.join(allowed)}" if allowed else "it has ended"
            raise StateError(f"{what} is {state}: {event} is not possible any more or yet ({may})", code="wrong_state")
        if by not in found.by:
            raise StateError(f"{what}: {event} is not for the {by} to say", code="wrong_party")
        if found.about and about != getattr(record, found.about):
            raise StateError(
                f"{what}: {event} is about {about or 'nothing'}, and its {found.about} is"
                f" {getattr(record, found.about) or 'none'}", code="wrong_document",
            )  # fmt: skip
        if found.when is not None and not found.when(record):
            raise StateError(f"{what} is {state}: {event} needs that {found.why}", code="wrong_state")
        return found


def described(machine: Machine) -> str:
    """Return a machine as the documents show it: a diagram in Mermaid, and its table in Markdown."""
    lines = [f"## {machine.name.capitalize()}", "", "```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {state}" for state in machine.start]
    lines += [f"    {a} --> {b}: {', '.join(events)}" for (a, b), events in _edges(machine.moves).items()]
    lines += [f"    {state} --> [*]" for state in machine.states if state in machine.ends]
    lines += ["```", "", "| event | in | leads to | caused by | about | needs that |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {move.event} | {', '.join(move.states)} | {move.to or 'the same'} | {', '.join(move.by)} |"
        f" {f'the `{move.about}` that it has' if move.about else ''} | {move.why} |"
        for move in machine.moves
    ]
    return "\n".join([*lines, ""])


def _edges(moves: Iterable[Move]) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for move in moves:
        for state in move.states:
            if move.to:
                found.setdefault((state, move.to), []).append(move.event)
    return found
