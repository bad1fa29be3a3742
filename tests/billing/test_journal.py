"""The journal: balanced, deterministic, and to the cent over any split of time."""

from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_billing.chart import Chart, ChartError, load_chart, parse_chart
from darktree_billing.journal import (
    Flow,
    Journal,
    Movement,
    balances_cents,
    balances_nanos,
    in_cents,
    movements,
    round_cents,
    write_journal,
)
from darktree_billing.months import Month
from darktree_kit.money import NANOS_PER_CENT, NANOS_PER_DOLLAR

NOVEMBER = Month(2026, 11)
CHART = Chart()
MODELS = ["qwen25-14b-awq", "qwen25-32b-awq", "a-third"]


def usage(
    nanos: int, model: str = MODELS[0], day: date = NOVEMBER.first_day, bonus: int = 0
) -> list[Movement]:
    return movements("usage", day, "acme", "customer_credits", "revenue", model, nanos, bonus)


def purchase(nanos: int, day: date = NOVEMBER.first_day) -> list[Movement]:
    return movements("grant", day, "acme", "stripe_clearing", "customer_credits", None, nanos, 0)


def write(month: Month, before: dict[Flow, int], moved: list[Movement], chart: Chart = CHART) -> Journal:
    return write_journal(month, before, moved, chart, {"acme": "Acme Ltd"})


def posted(journal: Journal) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for entry in journal.entries:
        for line in entry.lines:
            sums[line.account] += line.amount_cents
    return sums


def test_a_month_has_one_entry_a_kind_and_one_a_day_for_what_stripe_moved() -> None:
    day = date(2026, 11, 3)
    moved = [
        *purchase(50 * NANOS_PER_DOLLAR, day),
        *purchase(150 * NANOS_PER_DOLLAR, day),
        *purchase(50 * NANOS_PER_DOLLAR, date(2026, 11, 4)),
        *movements(
            "grant",
            day,
            "acme",
            "bonus_credits",
            "customer_credits",
            None,
            NANOS_PER_DOLLAR,
            NANOS_PER_DOLLAR,
        ),
        *usage(1_230_000_000, bonus=1_000_000_000),
        *usage(2_000_000_000, MODELS[1]),
        *movements("absorbed", day, "acme", "house_absorbed", "revenue", MODELS[0], 70_000_000, 0),
    ]
    journal = write(NOVEMBER, {}, moved)
    written = {
        entry.number: [(line.account, line.amount_cents) for line in entry.lines] for entry in journal.entries
    }
    assert written == {
        "DT-2026-11-REV": [
            ("Deferred Revenue:Customer Credits", 223),
            ("Usage Revenue:qwen25-14b-awq", -23),
            ("Usage Revenue:qwen25-32b-awq", -200),
        ],
        # A dollar given and a dollar used: nothing is left to say.
        "DT-2026-11-ABS": [("Usage Revenue:Absorbed by the house", 7), ("Usage Revenue:qwen25-14b-awq", -7)],
        "DT-2026-11-PUR-03": [("Stripe Clearing", 20_000), ("Deferred Revenue:Customer Credits", -20_000)],
        "DT-2026-11-PUR-04": [("Stripe Clearing", 5_000), ("Deferred Revenue:Customer Credits", -5_000)],
    }
    assert [entry.short_number for entry in journal.entries] == [
        "DT2611REV",
        "DT2611ABS",
        "DT2611PUR03",
        "DT2611PUR04",
    ]
    assert write(NOVEMBER, {}, moved[::-1]) == journal  # in whatever order the ledger tells them


def test_a_fact_of_a_closed_month_is_booked_on_the_open_ones_first_day() -> None:
    journal = write(Month(2026, 12), {}, purchase(NANOS_PER_DOLLAR, date(2026, 11, 30)))
    assert [(entry.number, entry.day) for entry in journal.entries] == [
        ("DT-2026-12-PUR-01", date(2026, 12, 1))
    ]


def test_a_line_of_a_receivable_carries_the_customers_name() -> None:
    chart = Chart(customer_named=["customer_credits"])
    journal = write(NOVEMBER, {}, purchase(NANOS_PER_DOLLAR), chart)
    assert [(line.account, line.name) for line in journal.entries[0].lines] == [
        ("Stripe Clearing", ""),
        ("Deferred Revenue:Customer Credits", "Acme Ltd"),
    ]


# Splits of a fully used purchase: by month, day, model and request.
SPLITS = st.lists(
    st.tuples(st.integers(1, 10**10), st.sampled_from(MODELS), st.integers(0, 120)), min_size=1, max_size=60
)


@given(SPLITS, st.sampled_from([50, 150, 300]))
def test_a_fully_used_purchase_is_recognised_to_the_cent_over_any_split(
    uses: list[tuple[int, str, int]], paid_dollars: int
) -> None:
    paid_nanos = paid_dollars * NANOS_PER_DOLLAR
    start = date(2026, 9, 1)
    months: dict[Month, list[Movement]] = defaultdict(list)
    left = paid_nanos
    uses = sorted(uses, key=lambda use: use[2])
    for place, (nanos, model, offset) in enumerate(uses):
        amount = left if place == len(uses) - 1 else min(nanos, left)
        day = start + timedelta(days=offset)
        months[Month(day.year, day.month)] += usage(amount, model, day)
        left -= amount
    flows: dict[Flow, int] = {}
    recognised = 0
    by_account: dict[str, int] = defaultdict(int)
    for month in sorted(months):
        journal = write(month, flows, months[month])
        flows = journal.flows
        sums = posted(journal)
        for entry in journal.entries:
            assert sum(line.amount_cents for line in entry.lines) == 0
            assert all(line.amount_cents for line in entry.lines)
        assert sums["Deferred Revenue:Customer Credits"] >= 0  # monotone
        recognised += sums["Deferred Revenue:Customer Credits"]
        for account, cents in sums.items():
            by_account[account] += cents
        assert 0 <= recognised <= paid_dollars * 100
    assert recognised == paid_dollars * 100
    assert sum(by_account.values()) == 0
    for flow, nanos in flows.items():
        booked = -by_account[CHART.account("revenue", flow.model)]
        assert abs(booked * NANOS_PER_CENT - nanos) < NANOS_PER_CENT


@given(st.lists(st.integers(-(10**13), 10**13), max_size=30))
def test_amounts_in_cents_sum_to_the_rounded_sum_and_none_is_a_cent_off(amounts: list[int]) -> None:
    cents = in_cents(amounts)
    assert sum(cents) == round_cents(sum(amounts))
    for exact, rounded in zip(amounts, cents, strict=True):
        assert abs(rounded * NANOS_PER_CENT - exact) <= NANOS_PER_CENT


@given(st.integers(-(10**15), 10**15))
def test_the_nearest_cent_is_taken_and_of_two_the_even_one(nanos: int) -> None:
    cents = round_cents(nanos)
    assert abs(cents * NANOS_PER_CENT - nanos) * 2 <= NANOS_PER_CENT
    if nanos % NANOS_PER_CENT == NANOS_PER_CENT // 2:
        assert cents % 2 == 0


def test_a_refund_in_two_parts_leaves_nothing_of_the_purchase() -> None:
    used = 12_345_670_000
    moved = [
        *purchase(50 * NANOS_PER_DOLLAR),
        *usage(used),
        *movements(
            "refund", NOVEMBER.last_day, "acme", "customer_credits", "stripe_clearing", None,
            50 * NANOS_PER_DOLLAR - used, 0,
        ),
        *movements("refund", NOVEMBER.last_day, "acme", "refunds", "stripe_clearing", None, used, 0),
    ]  # fmt: skip
    sums = posted(write(NOVEMBER, {}, moved))
    assert sums["Deferred Revenue:Customer Credits"] == 0
    assert sums["Stripe Clearing"] == 0
    assert sums["Refunds:Used Credits"] == 1235


def test_the_books_balances_are_the_ledgers_within_a_cent_a_flow_and_sum_to_zero() -> None:
    moved = [*purchase(50 * NANOS_PER_DOLLAR), *usage(33_333_333), *usage(44_444_444, MODELS[1])]
    flows = write(NOVEMBER, {}, moved).flows
    exact, cents = balances_nanos(flows), balances_cents(flows)
    assert sum(exact.values()) == sum(cents.values()) == 0
    assert exact["customer_credits", ""] == -(50 * NANOS_PER_DOLLAR - 77_777_777)
    assert cents["customer_credits", ""] == -4992


def test_the_chart_of_the_example_is_the_one_without_a_file() -> None:
    assert load_chart(Path(__file__).resolve().parents[2] / "examples" / "books.yaml") == Chart()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("accounts: {bank: 'A\"B'}", "accounts.bank"),
        ("accounts: {bank: ' Bank'}", "no spaces around"),
        (f"accounts: {{bank: {'x' * 32}}}", "1 to 31 characters"),
        ("accounts: {bank: 'A::B'}", "each level"),
        ("accounts: {bank: '銀行'}", "character"),
        ("accounts: {banc: Bank}", "there is no such field"),
        ("stripe_fee: {percent: 2.9, fixed: '0.30'}", "text in quotes"),
        ("number_prefix: dt", "number_prefix"),
        ("company: [", "not YAML"),
    ],
)
def test_a_mistake_in_the_books_file_is_told_with_its_place(content: str, what: str) -> None:
    with pytest.raises(ChartError, match=what):
        parse_chart(content.encode())


def test_a_models_name_fits_a_level_and_stays_apart_from_others() -> None:
    long = "an-organisation/a-model-with-a-very-long-name"
    names = {CHART.account("revenue", long), CHART.account("revenue", long + "-instruct")}
    assert len(names) == 2
    assert all(len(name.removeprefix("Usage Revenue:")) == 31 for name in names)
    assert Chart(models={long: "Short"}).account("revenue", long) == "Usage Revenue:Short"


def test_months_follow_each_other() -> None:
    assert [str(Month(2026, 12).next), str(Month(2027, 1).previous)] == ["2027-01", "2026-12"]
    assert (Month(2026, 2).last_day, Month(2028, 2).last_day) == (date(2026, 2, 28), date(2028, 2, 29))
    for wrong in ("2026-13", "2026-1", "26-01", "2026-11-01", ""):
        with pytest.raises(ValueError, match="is not a month"):
            Month.parse(wrong)
