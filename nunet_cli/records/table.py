"""How a table is declared: the struct of its rows, their key, and the fields that it is asked by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec import Struct

R = TypeVar("R", bound=Struct)


@dataclass(frozen=True, eq=False)
class Table(Generic[R]):
    """The declaration of a table.

    Args:
        name: its name in the store.
        kind: the struct of its rows.
        key: the field that names a row; empty for a log, whose rows are only numbered.
        indexes: the fields by which it is asked; no others can be.
        together: of these, those by which it is asked at once, in the order in which an index has them.
        first_name: what the table was called in the store's first version, where that is another name.
        upgrade: makes a row of that version into the fields of `kind`, or None where it is not of this table; where it
            is not given the fields are the same, and what is missing has the struct's default.
    """

    name: str
    kind: type[R]
    key: str = "id"
    indexes: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    first_name: str = ""
    upgrade: Callable[[dict[str, Any]], dict[str, Any] | None] = dict
