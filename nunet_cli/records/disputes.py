"""Disputes: what the parties send, and what a contract database keeps of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Struct

from nunet_cli.records.documents import Document
from nunet_cli.records.fields import Did, Id, MaybeId, Text, Time
from nunet_cli.records.limits import Limits
from nunet_cli.records.table import Table

MAX_EVIDENCE = 100
Decision = Literal["pay", "split", "refund"]


class DisputeContract(Struct, forbid_unknown_fields=True, frozen=True):
    """Open a dispute, or add evidence to one: in words, and with signed documents."""

    contract_id: Id
    text: Text = ""
    documents: Annotated[tuple[Document, ...], Limits(max_length=16)] = ()


class AskDispute(Struct, forbid_unknown_fields=True, frozen=True):
    """Ask for the state of a dispute, or for one document among its evidence; only the parties are told."""

    contract_id: Id
    document: MaybeId = ""


class EvidenceDocument(Struct, forbid_unknown_fields=True, frozen=True):
    """One document among the evidence."""

    document: Document


class Evidence(Struct, forbid_unknown_fields=True, frozen=True):
    """What a party said."""

    did: Did
    at: Time
    text: Text = ""
    documents: Annotated[tuple[Document, ...], Limits(max_length=16)] = ()


class Dispute(Struct, forbid_unknown_fields=True, frozen=True):
    """A dispute as the contract database has it; `decision` is empty until `by` (quorum or operator) resolved it."""

    contract_id: Id
    opened_by: Did
    opened_at: Time
    reason: Text
    evidence: Annotated[tuple[Evidence, ...], Limits(max_length=MAX_EVIDENCE)] = ()
    decision: Literal["", "pay", "split", "refund"] = ""
    by: Literal["", "quorum", "operator"] = ""
    paid: Annotated[str, Limits(max_length=40)] = ""


class EvidenceSummary(Struct, forbid_unknown_fields=True, frozen=True):
    """What a party said, its documents by content id."""

    did: Did
    at: Time
    text: Text = ""
    documents: Annotated[tuple[Id, ...], Limits(max_length=16)] = ()


class DisputeSummary(Struct, forbid_unknown_fields=True, frozen=True):
    """A dispute as the parties are told of it: the documents are asked for one by one."""

    contract_id: Id
    opened_by: Did
    opened_at: Time
    reason: Text
    evidence: Annotated[tuple[EvidenceSummary, ...], Limits(max_length=MAX_EVIDENCE)] = ()
    decision: Literal["", "pay", "split", "refund"] = ""
    by: Literal["", "quorum", "operator"] = ""
    paid: Annotated[str, Limits(max_length=40)] = ""


def _upgrade(row: dict[str, Any]) -> dict[str, Any]:
    # an earlier version kept the contract's id twice
    return {name: value for name, value in row.items() if name != "id"}


DISPUTES = Table("disputes", Dispute, key="contract_id", indexes=("decision",), upgrade=_upgrade)
