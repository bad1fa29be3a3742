"""Money is exact: what goes in as dollars comes out as the same dollars."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_kit.money import (
    MAX_AMOUNT_NANOS,
    NANOS_PER_DOLLAR,
    charge_nanos,
    format_dollars,
    parse_dollars,
    price_per_thousand,
)


@given(st.integers(-MAX_AMOUNT_NANOS, MAX_AMOUNT_NANOS))
def test_every_amount_is_written_and_read_back_exactly(nanos: int) -> None:
    assert parse_dollars(format_dollars(nanos)) == nanos


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("50", 50 * NANOS_PER_DOLLAR),
        ("$12.50", 12_500_000_000),
        ("1,234.5", 1_234_500_000_000),
        ("0.000000001", 1),
        ("-1.5", -1_500_000_000),
    ],
)
def test_dollars_are_read_as_people_write_them(text: str, nanos: int) -> None:
    assert parse_dollars(text) == nanos


@pytest.mark.parametrize(
    "text", ["", "x", "1.0000000001", "NaN", "Infinity", "1e9999999", "9" * 40, "1.2.3", "--1"]
)
def test_what_is_no_exact_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"dollars|decimals|range|amount"):
        parse_dollars(text)


def test_an_amount_is_shown_with_at_least_two_decimals() -> None:
    assert [format_dollars(nanos) for nanos in (0, 50 * NANOS_PER_DOLLAR, 49_999_250_000, -1)] == [
        "0.00",
        "50.00",
        "49.99925",
        "-0.000000001",
    ]


def test_the_price_of_a_thousand_tokens_is_a_whole_number_of_nanos_a_token() -> None:
    assert price_per_thousand("0.75") == 750_000
    with pytest.raises(ValueError, match=r"whole number"):
        price_per_thousand("0.000000001")


@given(*[st.integers(0, 10**6)] * 4)
def test_a_charge_is_the_sum_over_its_tokens(
    prompt: int, completion: int, price: int, other_price: int
) -> None:
    assert charge_nanos(prompt, completion, price, other_price) == prompt * price + completion * other_price
