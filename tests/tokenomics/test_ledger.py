from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from nunet_cli import quantities
from nunet_cli.database.store import Store
from nunet_cli.errors import ContractError
from nunet_cli.records.books import ACCOUNTS
from nunet_cli.records.capability import PriceBid
from nunet_cli.records.contracts import Terms
from nunet_cli.records.results import Result, Usage
from nunet_cli.tokenomics import ledger
from nunet_cli.tokenomics.payment import amount_due, deposit_for
from tests.conftest import total

NAMES = st.sampled_from([ledger.ISSUANCE, "a", "b", "escrow:x"])
TRANSFERS = st.lists(st.tuples(NAMES, NAMES, st.integers(-5, 100)), max_size=20)


def balances(store: Store) -> dict[str, int]:
    return {account.id: account.balance for account in store[ACCOUNTS].all()}


@given(TRANSFERS)
@settings(deadline=None, max_examples=50)
def test_money_is_conserved_and_nobody_but_issuance_owes(tmp_path_factory, transfers) -> None:  # type: ignore[no-untyped-def]
    folder: Path = tmp_path_factory.mktemp("ledger")

    async def main() -> None:
        with Store(folder) as store:
            for payer, payee, amount in transfers:
                before = balances(store)
                try:
                    await store.change(lambda t, p=payer, q=payee, a=amount: ledger.transfer(t, p, q, a, "test"))
                except ContractError:
                    assert balances(store) == before
                assert total(store) == 0
                assert not [name for name, left in balances(store).items() if left < 0 and name != ledger.ISSUANCE]

    trio.run(main)


async def test_insufficient_funds_say_how_much_is_missing(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        await store.change(lambda t: ledger.transfer(t, ledger.ISSUANCE, "a", 3 * quantities.MICRO, "opening"))
        with pytest.raises(ContractError) as caught:
            await store.change(lambda t: ledger.transfer(t, "a", "b", 5 * quantities.MICRO, "payment"))
        assert caught.value.code == "insufficient_funds"
        assert caught.value.details["missing"] == "2"


def result(state: str, seconds: float, fault: str = "") -> Result:
    return Result("j", "c", "a", state, 0, "", "", Usage(wall_seconds=seconds), fault=fault)  # type: ignore[arg-type]


def terms(price: PriceBid, duration: int) -> Terms:
    deposit = quantities.format_amount(deposit_for(price, duration))
    return Terms("c", price, duration, deposit, "attested", "2030-01-01T00:00:00.000Z")


def test_a_price_per_result_is_earned_by_a_result() -> None:
    agreed = terms(PriceBid(amount="2"), 60)
    assert amount_due(agreed, result("completed", 1)) == 2 * quantities.MICRO
    assert amount_due(agreed, result("failed", 1, "job")) == amount_due(agreed, result("cancelled", 1)) == 0


def test_a_price_per_time_is_earned_by_time_but_not_by_the_providers_own_failure() -> None:
    agreed = terms(PriceBid(type="per_time_unit", time_unit="h", amount="3.6"), 100)
    assert amount_due(agreed, result("completed", 10)) == 10_000
    assert amount_due(agreed, result("failed", 10, "job")) == amount_due(agreed, result("cancelled", 10)) == 10_000
    assert amount_due(agreed, result("failed", 10, "provider")) == 0
    assert amount_due(agreed, result("completed", 1e9)) == quantities.parse_amount(agreed.deposit)


@given(st.integers(0, 10**12), st.sampled_from(list(quantities.TIME_UNITS)), st.integers(1, 10**6), st.floats(0, 10**6))
def test_nobody_is_ever_owed_more_than_the_deposit(micro: int, unit: str, duration: int, seconds: float) -> None:
    price = PriceBid(type="per_time_unit", time_unit=unit, amount=quantities.format_amount(micro))  # type: ignore[arg-type]
    agreed = terms(price, duration)
    assert 0 <= amount_due(agreed, result("completed", seconds)) <= deposit_for(price, duration)
