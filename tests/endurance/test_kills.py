"""Three runs of the kills; and that the checks find what is wrong in the books of a market."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from nunet_cli.database.store import Store, Transaction
from nunet_cli.records.allocations import ALLOCATIONS, HOLDINGS, Allocation, Holding
from nunet_cli.records.books import ACCOUNTS, LOG, Account, LogEntry
from nunet_cli.records.capability import Cpu, Resources
from nunet_cli.records.contract_records import (
    CONTRACTS,
    REGISTERED_CONTRACTS,
    ContractRecord,
    RegisteredContract,
)
from nunet_cli.records.documents import Document
from nunet_cli.records.table import Table
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


DID, TIME = "did:key:z6MkR", "2026-01-01T00:00:00.000Z"
NOTHING = Document("{}")
CONTRACT = ContractRecord(
    "c", "job-1", "requester", "b", DID, "did:key:z6MkP", DID, DID, "1", "escrow", TIME, TIME, NOTHING, state="proved"
)
WRONG: list[tuple[str, Table[Any], Any, str]] = [
    (DATABASE, ACCOUNTS, Account(DID, 5), "the accounts sum to 5 micro-NTX"),
    (DATABASE, ACCOUNTS, Account(DID, -5), f"the account {DID} has -5 micro-NTX"),
    (DATABASE, ACCOUNTS, Account("escrow:c", 7), "the movements of escrow:c sum to 0 micro-NTX, it has 7"),
    (DATABASE, REGISTERED_CONTRACTS, RegisteredContract("c", "job-1", DID, "did:key:z6MkP", TIME, NOTHING, NOTHING),
     "contract c is proved"),
    (DATABASE, LOG, LogEntry("0", "1", "{}"), "the log was changed at entry 1"),
    (REQUESTER, CONTRACTS, CONTRACT, "and nobody recorded it"),
    ("provider-a", HOLDINGS, Holding("a", "allocation", Resources(Cpu(0.1), 1, 1), "job-1"), "holds the allocation a"),
    ("provider-a", HOLDINGS, Holding("a", "allocation", Resources(Cpu(9), 1, 1), "job-1"), "over-committed"),
    ("provider-b", ALLOCATIONS, Allocation("a", "j", "c", DID, "null", "running"), "the allocation a is running"),
    ("provider-b", ALLOCATIONS, Allocation("a", "j", "c", DID, "null", "failed"), "without a proved contract"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "table", "row", "said"), WRONG, ids=[row[3] for row in WRONG])
def test_what_is_wrong_is_found(market: Market, name: str, table: Table[Any], row: Any, said: str) -> None:
    async def change(function: Any) -> None:
        with Store(market.home(name)) as store:
            await store.change(function)

    def put(t: Transaction) -> None:
        if table.key:
            t[table].put(row)
        else:
            numbers.append(t[table].append(row))

    def take_away(t: Transaction) -> None:
        t[table].remove_numbers(numbers)
        if table.key:
            t[table].remove(row.id)

    numbers: list[int] = []
    trio.run(change, put)
    try:
        assert any(said in text for text in all_checks(market)), all_checks(market)
    finally:
        trio.run(change, take_away)
    assert all_checks(market) == []


def test_a_plan_follows_from_seed_and_number() -> None:
    plans = [kills.Plan.draw(1, number, kills.ROLES, only_lost=False) for number in range(200)]
    assert plans == [kills.Plan.draw(1, number, kills.ROLES, only_lost=False) for number in range(200)]
    assert {plan.role for plan in plans} == set(kills.ROLES)
    assert {plan.lost for plan in plans if plan.role == "provider"} == {True, False}
    assert not any(plan.lost for plan in plans if plan.role != "provider")
