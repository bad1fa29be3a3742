"""Whatever happened in a period, its statement's equation holds, and JSON, CSV and PDF have the same totals."""

import csv
import io
from datetime import date
from typing import Any

import orjson
import pypdfium2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from darktree_billing.statement_csv import csv_text
from darktree_billing.statement_json import SECTIONS, Statement
from darktree_billing.statement_letters import fitted, marked, printable, width_of
from darktree_billing.statement_page import BOLD, aligned
from darktree_billing.statement_pdf import pdf_bytes
from darktree_billing.statement_period import Period
from darktree_billing.statement_totals import Totals
from darktree_kit.money import parse_dollars

DAYS = [f"2026-11-{day:02d}" for day in range(1, 31)]
MODELS = ("small", "large & <bold>", "株式")
KEYS = ("k1", "k2", None)
AMOUNTS = st.integers(0, 10**15)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["purchase", "bonus", "usage", "usage", "usage", "absorbed", "refund", "lost", "adjustment"]
        ),
        st.integers(0, 29),
        st.sampled_from(MODELS),
        st.sampled_from(KEYS),
        st.integers(0, 10_000),
        st.integers(0, 10_000),
        AMOUNTS,
    ),
    max_size=40,
)
ACCOUNTS = {
    "purchase": ("grant", "stripe_clearing", "customer_credits"),
    "bonus": ("grant", "bonus_credits", "customer_credits"),
    "usage": ("usage", "customer_credits", "revenue"),
    "absorbed": ("absorbed", "house_absorbed", "revenue"),
    "refund": ("refund", "customer_credits", "stripe_clearing"),
    "lost": ("dispute", "disputes", "stripe_clearing"),
    "adjustment": ("adjustment", "adjustments", "customer_credits"),
}


def lived(events: list[tuple[Any, ...]]) -> tuple[Statement, int, int]:
    """Return the statement of what happened, and the balance and the bonus credits after it, counted one by one."""
    totals, balance, bonus = Totals(7, 0, 0, "00"), 7, 0
    for seq, (what, day, model, key_id, prompt, completion, amount) in enumerate(
        sorted(events, key=lambda e: e[1]), 1
    ):
        kind, debit, credit = ACCOUNTS[what]
        price = 1 + amount % 999_999_999 if kind in {"usage", "absorbed"} else 0
        amount = (prompt + completion) * price if price else amount
        part = {"bonus": amount, "usage": min(bonus, amount)}.get(what, 0)
        sign = (credit == "customer_credits") - (debit == "customer_credits")
        balance, bonus = balance + sign * amount, bonus + sign * part
        usage = {"usage_day": DAYS[day], "model": model, "key_id": key_id} if price else {}
        entry = {"usage_day": None, "model": None, "key_id": None} | usage
        entry |= {"prompt_tokens": prompt if price else 0, "completion_tokens": completion if price else 0}
        entry |= {
            "prompt_price_nanos": price,
            "completion_price_nanos": price,
            "seq": seq,
            "hash": f"{seq:02x}",
        }
        entry |= {"kind": kind, "debit_account": debit, "credit_account": credit, "amount_nanos": amount}
        entry |= {"bonus_nanos": part, "reason": "=1+1", "reference": None}
        totals.add(entry | {"recorded_at": f"{DAYS[day]}T10:00:00.000000Z"})
    caps: dict[str, Any] = {"opening_cap_tokens": 2000, "changes": [], "days": []}
    sections = totals.sections() | {
        "statement": {
            "number": "DT-2026-11-acme", "seller": "Seller", "status": "final", "period": "2026-11",
            "start": "2026-11-01T00:00:00.000000Z", "end": "2026-12-01T00:00:00.000000Z",
        },
        "customer": {"id": "acme", "name": "Łódź 株式会社 & <Söhne>", "email": None, "plan": "solo"},
        "keys": [{"key_id": "k1", "name": "=cmd()", "prefix": "dt_live_", "last4": "abcd"}],
        "caps": caps | {"days_at_cap": 0, "refused_requests": 0},
        "holds": None,
        "chain": {"opening": {"seq": 0, "head": "00"}, "closing": {"seq": totals.seq, "head": totals.head}},
        "proof": None,
        "how_to_verify": [],
    }  # fmt: skip
    return Statement({name: sections[name] for name in SECTIONS}, io.BytesIO(), len(events)), balance, bonus


@given(EVENTS)
@example([])
@settings(deadline=None, max_examples=60)
def test_the_equation_holds_and_all_formats_have_its_totals(events: list[tuple[Any, ...]]) -> None:
    statement, balance, bonus = lived(events)
    totals = orjson.loads(orjson.dumps(statement.sections))["totals"]
    assert (totals["closing_nanos"], totals["closing_bonus_nanos"]) == (balance, bonus)
    for part in ("usage_by_day", "usage_by_model", "usage_by_key", "usage"):
        rows = statement.sections[part]
        for name in ("requests", "prompt_tokens", "completion_tokens"):
            assert sum(row[name] for row in rows) == totals[name], part
        assert sum(row["amount_nanos"] for row in rows) == totals["usage_nanos"], part

    table = list(csv.DictReader(io.StringIO(csv_text(statement, "ab"))))
    equation = [parse_dollars(row["amount_usd"]) for row in table if row["section"] == "equation"]
    assert sum(equation[:-1]) == equation[-1] == balance
    for section in ("usage by day", "usage by model", "usage by key", "usage"):
        amounts = [parse_dollars(row["amount_usd"]) for row in table if row["section"] == section]
        assert sum(amounts) == totals["usage_nanos"], section
    cells = [cell for row in table for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "@"))]  # no spreadsheet executes a name

    content = pdf_bytes(statement, "ab")
    assert content == pdf_bytes(statement, "ab")
    text = "".join(page.get_textpage().get_text_range() for page in pypdfium2.PdfDocument(content))
    assert "Łódź 株式会社 & <Söhne>".replace("Łódź", "Lódz") in text
    for name in ("closing_nanos", "usage_nanos", "purchases_nanos"):
        told = aligned([totals[field] for field in _EQUATION])[_EQUATION.index(name)]
        assert told.replace("\u2013", "-") in text.replace("\u2013", "-"), (name, told)


_EQUATION = (
    "opening_nanos", "purchases_nanos", "bonus_nanos", "usage_nanos", "adjustments_nanos", "closing_nanos",
)  # fmt: skip


def test_amounts_of_a_column_line_up_and_are_exact() -> None:
    assert aligned([1_500_000_000_000, -75_000, 0]) == ["$1,500.000000", "\u2013$0.000075", "$0.000000"]
    assert aligned([10**9, -(10**9)], signed=True) == ["+$1.00", "\u2013$1.00"]
    assert aligned([2**62]) == ["$4,611,686,018.427387904"]


def test_letters_that_not_every_reader_has_are_told_by_the_nearest() -> None:
    assert printable("Żółć & Łódź, Škoda €5 – ok") == "Zólc & Lódz, Škoda €5 – ok"
    assert printable("株式会社 ش") == "株式会社 ?"


def test_east_asian_letters_are_set_in_the_font_of_their_language() -> None:
    assert marked("A & 株") == 'A &amp; <font name="STSong-Light">株</font>'
    assert marked("株の") == '<font name="HeiseiKakuGo-W5">株の</font>'
    assert marked("서울 Ltd") == '<font name="HYGothic-Medium">서울</font> Ltd'
    name, size = fitted("株式会社" * 10, BOLD, 17, 200)
    assert (name[-1], size) == ("…", 8)
    assert width_of(name, BOLD, size) <= 200


@pytest.mark.parametrize(
    ("text", "days", "told"),
    [
        ("2026-11", 30, "2026-11"),
        ("2024-02", 29, "2024-02"),
        ("2026-11-01_2026-11-30", 30, "2026-11"),
        ("2026-11-01_2026-11-01", 1, "2026-11-01_2026-11-01"),
        ("2025-11-01_2026-11-01", 366, "2025-11-01_2026-11-01"),
    ],
)
def test_a_period_is_whole_days_and_is_always_written_alike(text: str, days: int, told: str) -> None:
    period = Period.parse(text)
    assert (len(period.days), str(period)) == (days, told)
    assert (period.end - period.start).days == days
    assert period.days[-1] == period.last_day >= date(2024, 1, 1)


@pytest.mark.parametrize(
    "text", ["", "2026", "2026-13", "2026-11-02_2026-11-01", "2025-01-01_2026-12-31", "2026-11_2026-12"]
)
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Period.parse(text)
