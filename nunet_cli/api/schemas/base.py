"""What all documents have in common, and how errors look."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, UnsetType

Optional = UnsetType


class Answer(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every document has: the version of its schema."""

    schema: Literal[1]


class Error(Struct, forbid_unknown_fields=True, kw_only=True):
    """Why a job ended as it did."""

    code: str
    message: str
    hint: str
    details: dict[str, Any]
    exit_code: int


class Problem(Struct, forbid_unknown_fields=True, kw_only=True):
    """An error (RFC 9457), with the exit code that the command line ends with."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    details: dict[str, Any]
    exit_code: int
