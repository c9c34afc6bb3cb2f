"""Three runs of the kills; and that the checks find what is wrong in the books of a market."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli.database.store import Store, Transaction
from tests.endurance import books, kills
from tests.endurance.market import DATABASE, NAMES, REQUESTER, Market


def test_three_kills_leave_the_books_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--runs", "3", "--seed", "4", "--long", "0", "--role", "requester", "--role", "contract-database"]
    assert kills.main([*arguments, "--folder", str(tmp_path), "--verbose"]) == 0
    assert "runs: 3; violations: 0" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """A market of which no process runs: its books are as they were at the beginning, and all is right."""
    made = Market(tmp_path_factory.mktemp("market"))
    assert all_checks(made) == []
    yield made


def all_checks(market: Market) -> list[str]:
    return [text for name in NAMES for text in books.at_any_moment(market, name)] + books.in_the_end(market)


BOTH = {"requester": "did:key:z6MkR", "provider": "did:key:z6MkP", "job_id": "job-1", "receipt": None}
WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    (DATABASE, "accounts", {"id": "did:key:z6MkR", "balance": 5}, "the accounts sum to 5 micro-NTX"),
    (DATABASE, "accounts", {"id": "did:key:z6MkR", "balance": -5}, "the account did:key:z6MkR has -5 micro-NTX"),
    (DATABASE, "accounts", {"id": "escrow:c", "balance": 7}, "the movements of escrow:c sum to 0 micro-NTX, it has 7"),
    (DATABASE, "registered_contracts", {"id": "c", "state": "proved", **BOTH}, "contract c is proved"),
    (DATABASE, "log", {"id": "1", "previous": "0", "hash": "1", "entry": "{}"}, "the log was changed at entry 1"),
    (REQUESTER, "contracts", {"id": "c", "role": "requester", "state": "proved"}, "and nobody recorded it"),
    ("provider-a", "capabilities", {"id": "a", "kind": "allocation", "job_id": "job-1",
     "resources": {"cpu": {"cores": 0.1}, "memory": 1, "disk": 1}}, "holds the allocation a"),
    ("provider-a", "capabilities", {"id": "a", "kind": "allocation", "job_id": "job-1",
     "resources": {"cpu": {"cores": 9}, "memory": 1, "disk": 1}}, "over-committed"),
    ("provider-b", "allocations", {"id": "a", "contract_id": "c", "state": "running"}, "the allocation a is running"),
    ("provider-b", "allocations", {"id": "a", "contract_id": "c", "state": "failed"}, "without a proved contract"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "table", "row", "said"), WRONG, ids=[row[3] for row in WRONG])
def test_what_is_wrong_is_found(market: Market, name: str, table: str, row: dict[str, Any], said: str) -> None:
    async def change(function: Any) -> None:
        with Store(market.home(name)) as store:
            await store.change(function)

    def take_away(t: Transaction) -> None:
        t.table(table).remove(lambda kept: kept["id"] == row["id"])

    trio.run(change, lambda t: t.put(table, row))
    try:
        assert any(said in text for text in all_checks(market))
    finally:
        trio.run(change, take_away)
    assert all_checks(market) == []


def test_a_plan_follows_from_seed_and_number() -> None:
    plans = [kills.Plan.draw(1, number, kills.ROLES, only_lost=False) for number in range(200)]
    assert plans == [kills.Plan.draw(1, number, kills.ROLES, only_lost=False) for number in range(200)]
    assert {plan.role for plan in plans} == set(kills.ROLES)
    assert {plan.lost for plan in plans if plan.role == "provider"} == {True, False}
    assert not any(plan.lost for plan in plans if plan.role != "provider")
