import pytest
from hypothesis import given
from hypothesis import strategies as st

from nunet_cli import quantities
from nunet_cli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "count"), [("4GiB", 4 * 2**30), ("512 MB", 512 * 10**6), ("1.5KiB", 1536), (7, 7), ("0", 0), ("3k", 3000)]
)
def test_sizes_people_write(text: str | int, count: int) -> None:
    assert quantities.parse_size(text) == count


@pytest.mark.parametrize("text", ["-5", "4 apples", "", "GiB", -1])
def test_what_is_not_a_size_is_refused_with_the_text(text: str | int) -> None:
    with pytest.raises(UsageError) as caught:
        quantities.parse_size(text)
    assert str(text) in caught.value.message


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("1h30m", 5400), ("45s", 45), (60, 60), ("2d", 172800)])
def test_durations_people_write(text: str | int, seconds: int) -> None:
    assert quantities.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["0", "-3s", "soon", "1 fortnight", 0.5])
def test_what_is_not_a_duration_is_refused(text: str | float) -> None:
    with pytest.raises(UsageError):
        quantities.parse_duration(text)


@given(st.integers(min_value=0, max_value=10**17))
def test_money_survives_the_wire(micro: int) -> None:
    assert quantities.parse_amount(quantities.format_amount(micro)) == micro


@pytest.mark.parametrize("text", ["-1", "0.0000001", "NaN", "Infinity", "1e30", "ten", ""])
def test_what_is_not_money_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        quantities.parse_amount(text)


def test_prices_with_and_without_a_time_unit() -> None:
    assert quantities.parse_price("1.5 NTX/h") == (1_500_000, "h")
    assert quantities.parse_price("0.25") == (250_000, "")
    with pytest.raises(UsageError, match="time unit"):
        quantities.parse_price("1/fortnight")


@given(st.datetimes(timezones=st.just(quantities.UTC)))
def test_times_survive_the_wire_to_the_millisecond(when: quantities.datetime) -> None:
    assert abs((quantities.parse_time(quantities.format_time(when)) - when).total_seconds()) < 0.001
