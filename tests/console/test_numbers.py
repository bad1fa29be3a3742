"""How money, counts and times are written; ticks and stacks of charts; pace; what a bundle gives. All of it pure."""

from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from darktree_billing.console import charts, formats
from darktree_billing.console.addresses import AddressError, normal_email, team_addresses
from darktree_billing.console.budget import Load, forecasts, rows
from darktree_billing.console.standing import pace_nanos
from darktree_billing.plans import parse_plans
from darktree_ledger.schemas import DayView

PLANS = parse_plans((Path(__file__).resolve().parents[2] / "examples" / "plans.yaml").read_bytes())
DOLLAR = 1_000_000_000
TODAY = date(2026, 11, 23)


def day(back: int, amount_nanos: int) -> DayView:
    return DayView(
        day=TODAY - timedelta(days=back), requests=1, prompt_tokens=1, completion_tokens=1, amount_nanos=amount_nanos,
        held_tokens=0, absorbed_tokens=0, refused_requests=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "$0.00"),
        (50 * DOLLAR, "$50.00"),
        (1_249_999_250_000, "$1,249.99925"),
        (-750_000, "−$0.00075"),
        (2**62, "$4,611,686,018.427387904"),
    ],
)
def test_money_is_written_exactly(nanos: int, text: str) -> None:
    assert formats.dollars(nanos) == text


def test_what_is_less_than_a_cent_is_set_apart_and_nothing_is_rounded() -> None:
    assert (
        str(formats.money(49_999_250_000)) == '<span class="money">$49.99<span class="fine">925</span></span>'
    )
    assert str(formats.signed_money(DOLLAR)).startswith("+")
    assert formats.whole_dollars(150 * DOLLAR) == "$150"
    assert formats.whole_dollars(12_500_000_000) == "$12.50"
    assert formats.price_per_thousand(750_000) == "$0.75"
    assert formats.about(2_787_500_000) == "$2.79"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1_000, "1k"), (66_666, "66.6k"), (2_500_000, "2.5M")]
)
def test_axes_have_short_numbers(number: int, text: str) -> None:
    assert formats.short_count(number) == text


def test_a_share_is_nothing_or_everything_only_when_it_is() -> None:
    assert [formats.percent(part, 1_000) for part in (0, 1, 500, 999, 1_000)] == [
        "0%",
        "1%",
        "50%",
        "99%",
        "100%",
    ]


def test_times_are_told_in_utc() -> None:
    assert formats.duration(18_720) == "5 h 12 min"
    assert formats.duration(59) == "59 s"
    east = datetime(2026, 11, 24, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert "23 Nov 2026, 23:30:00" in formats.instant(east)
    assert "23 Nov 2026" in formats.day_of(datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC))


@pytest.mark.parametrize("most", [0, 1, 3, 7, 99, 1_234, 7_000, 66_666, 100_000_000])
def test_an_axis_has_a_few_round_marks_up_to_the_greatest_value(most: int) -> None:
    marks = charts.ticks(most)
    assert marks[0] == 0
    assert marks[-1] >= most
    assert 2 <= len(marks) <= 6
    assert {str(mark - before).strip("0") for before, mark in pairwise(marks)} <= {"1", "2", "5"}


def test_more_series_than_colours_are_folded_and_nothing_is_lost() -> None:
    series = [charts.Series(f"k{place}", {TODAY: place + 1}) for place in range(20)]
    kept = charts.folded(series)
    assert [one.name for one in kept] == ["k19", "k18", "k17", "k16", "k15", "Others"]
    assert sum(one.values[TODAY] for one in kept) == sum(range(1, 21))


def test_a_chart_escapes_names_and_draws_only_what_there_is() -> None:
    days = [TODAY - timedelta(days=1), TODAY]
    series = [charts.Series('<script>"', {TODAY: 5})]
    drawn = str(charts.bars(days, series, unit="tokens", title="T", limit=10, limit_name="cap"))
    assert "<script>" not in drawn
    assert "&lt;script&gt;&#34;: 5" in drawn
    assert drawn.count('class="s0"') == 1
    assert 'class="cap"' in drawn
    assert "style=" not in drawn
    far = charts.bars(
        days, [charts.Series("a", {TODAY: 5})], unit="tokens", title="T", limit=10_000, limit_name="cap"
    )
    assert 'class="cap"' not in str(far), "a cap far away would make every bar a line"


def test_the_pace_is_the_mean_since_the_first_charge_of_the_last_week() -> None:
    assert pace_nanos([], TODAY) == 0
    assert pace_nanos([day(0, DOLLAR)], TODAY) == DOLLAR
    assert pace_nanos([day(3, 3 * DOLLAR), day(0, DOLLAR)], TODAY) == DOLLAR
    assert pace_nanos([day(6, 7 * DOLLAR), day(20, 900 * DOLLAR)], TODAY) == DOLLAR


def test_the_plan_table_is_the_one_that_is_promised() -> None:
    assert [
        (
            row.name,
            row.price_nanos // DOLLAR,
            row.tokens,
            row.cap_tokens,
            formats.dollars(row.max_spend_nanos),
        )
        for row in rows(PLANS)
    ] == [
        ("Solo", 50, 66_666, 2_000, "$1.50"),
        ("Team", 150, 200_000, 7_000, "$5.25"),
        ("Scale", 300, 400_000, 15_000, "$11.25"),
    ]


def test_a_forecast_never_promises_more_than_cap_and_price_allow() -> None:
    solo, team, scale = forecasts(PLANS, PLANS.models[0], Load(900, 300, 8))
    assert (solo.requests, solo.requests_a_day, solo.days, solo.fits) == (55, 1, 55, False)
    assert (team.requests, team.requests_a_day, team.days, team.fits) == (166, 5, 33, False)
    assert (scale.requests, scale.requests_a_day, scale.days, scale.fits) == (333, 8, 41, True)
    assert [one.days for one in forecasts(PLANS, PLANS.models[0], Load(20_000, 1, 1))] == [None] * 3
    assert [one.requests_a_day for one in forecasts(PLANS, PLANS.models[0], Load(0, 0, 5))] == [5] * 3


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        (" Ada@ACME.test ", "ada@acme.test"),
        ("a+b.c@sub.example.co", "a+b.c@sub.example.co"),
        ("o'hara@acme.test", "o'hara@acme.test"),
        ("ada@acme.test\nBcc: eve@evil.test", None),
        ("ada@acme.test,eve@evil.test", None),
        ("<b>@acme.test", None),
        ("ada", None),
        ("аda@acme.test", None),  # a Cyrillic letter
        ("a" * 65 + "@acme.test", None),
        ("a@" + "b" * 200, None),
    ],
)
def test_an_address_has_one_form(typed: str, stored: Any) -> None:
    assert normal_email(typed) == stored


def test_the_teams_addresses_are_a_list_and_a_mistake_is_told() -> None:
    assert team_addresses(" Ops@x.test, ada@x.test ,") == {"ops@x.test", "ada@x.test"}
    with pytest.raises(AddressError, match="'ops'"):
        team_addresses("ops")
