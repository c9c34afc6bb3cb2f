"""What binds a party of a contract, and what does not."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.database.store import Store
from nunet_cli.database.transition import transition
from nunet_cli.errors import StateError
from nunet_cli.network.identity import new_identity
from nunet_cli.records.capability import PriceBid
from nunet_cli.records.contract_records import CONTRACTS, ContractRecord
from nunet_cli.records.contracts import CLOCK_SKEW, DATABASE, PROVIDER, REQUESTER, Contract, Proof, Terms, sign_by_of
from nunet_cli.records.documents import make_document


@dataclass
class Parties:
    requester = new_identity()
    provider = new_identity()
    database = new_identity()


CREATED = "2026-01-31T12:00:00.000Z"
CONTRACT = Contract(
    v=1, job_id="job-1", bid_id="bid-1", requester=Parties.requester.did,
    provider=Parties.provider.did, contract_database=Parties.database.did, oracle=Parties.database.did,
    terms=Terms("baaa", PriceBid(amount="1"), 60, "1", "attested", "2026-01-31T12:11:00.000Z"), payment="escrow",
    created_at=CREATED, sign_by=sign_by_of(CREATED),
)  # fmt: skip
DOCUMENT = make_document(CONTRACT)


def proof(**changes: str) -> Proof:
    found = Proof(1, DOCUMENT.cid, Parties.database.did, "1", "2026-01-31T12:00:30.000Z", "baaa")
    return structs.replace(found, **changes)


@pytest.mark.parametrize(("changes", "said"), [
    ({}, ""),
    ({"contract_id": "baaab"}, "another contract"),
    ({"deposit": "2"}, "another contract"),
    ({"contract_database": Parties.provider.did}, "another contract database's"),
    ({"registered_at": "2026-01-31T11:00:00.000Z"}, "it was to be between"),
    ({"registered_at": "2026-02-01T12:00:00.000Z"}, "it was to be between"),
])  # fmt: skip
def test_a_proof_is_of_this_contract_and_in_time(changes: dict[str, str], said: str) -> None:
    problem = proof(**changes).problem(DOCUMENT.cid, CONTRACT)
    assert said in problem
    assert bool(said) == bool(problem)


def test_what_was_recorded_after_the_signature_had_lapsed_binds_nobody() -> None:
    last = quantities.parse_time(CONTRACT.sign_by) + CLOCK_SKEW
    at = quantities.format_time(last)
    assert not proof(registered_at=at).problem(DOCUMENT.cid, CONTRACT)
    late = quantities.format_time(last + timedelta(seconds=1))
    assert proof(registered_at=late).problem(DOCUMENT.cid, CONTRACT)


@pytest.mark.parametrize("role", [REQUESTER, PROVIDER])
@pytest.mark.parametrize("state", ["agreed", "refused", "expired", "proved", "disputed"])
@pytest.mark.parametrize("event", ["prove", "dispute", "settle", "refund"])
async def test_nothing_is_proved_or_closed_that_this_node_has_not_signed(
    role: str, state: str, event: str, tmp_path: Path
) -> None:
    own = Parties.requester if role == REQUESTER else Parties.provider
    other = Parties.provider if role == REQUESTER else Parties.requester
    of_other = DOCUMENT.sign(other, PROVIDER if role == REQUESTER else REQUESTER)
    with Store(tmp_path) as store:
        for document in (DOCUMENT, of_other, DOCUMENT.sign(own, "somebody")):
            record = _record(role, state, document)
            await store.change(lambda t, record=record: t[CONTRACTS].put(record))  # type: ignore[misc]  # bound now
            with pytest.raises(StateError):
                await store.change(
                    lambda t, record=record: transition(t, record, event, by=DATABASE, about=record.id)  # type: ignore[misc]  # bound now
                )
            assert store[CONTRACTS].one(record.id).state == state


async def test_what_this_node_has_signed_is_proved_and_settled(tmp_path: Path) -> None:
    record = _record(PROVIDER, "refused", DOCUMENT.sign(Parties.provider, PROVIDER))
    with Store(tmp_path) as store:
        await store.change(lambda t: t[CONTRACTS].put(record))
        proved = await store.change(lambda t: transition(t, record, "prove", by=DATABASE, about=record.id))
        settled = await store.change(lambda t: transition(t, proved, "settle", by=DATABASE, about=record.id))
        assert settled.state == "settled"


def _record(role: str, state: str, document: object) -> ContractRecord:
    return ContractRecord(
        id=DOCUMENT.cid, job_id="job-1", role=role, bid_id="bid-1", requester=CONTRACT.requester,  # type: ignore[arg-type]
        provider=CONTRACT.provider, contract_database=CONTRACT.contract_database, oracle=CONTRACT.oracle, deposit="1",
        payment="escrow", deadline=CONTRACT.terms.deadline, created_at=CREATED, document=document, spec="{}",  # type: ignore[arg-type]
        state=state,
    )  # fmt: skip
