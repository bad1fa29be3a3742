"""The files for QuickBooks, read back by rules (conftest) that were written without looking at who writes them."""

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_billing.journal import Entry, Line
from darktree_billing.quickbooks import journal_csv, journal_iif, text

Rules = Callable[..., Any]


def entry(day: date, amounts: list[int], description: str = "Credits sold", name: str = "") -> Entry:
    lines = [Line(f"Parent:Account {place}", cents, description, name) for place, cents in enumerate(amounts)]
    lines.append(Line("Stripe Clearing", -sum(amounts), description))
    return Entry(f"DT-{day:%Y-%m}-PUR-{day:%d}", f"DT{day:%y%m}PUR{day:%d}", day, description, tuple(lines))


def test_an_entry_is_written_as_both_formats_want_it() -> None:
    entries = [entry(date(2026, 11, 3), [12_345])]
    assert journal_csv(entries).decode() == (
        "JournalNo,JournalDate,AccountName,Debits,Credits,Description,Name\r\n"
        "DT-2026-11-PUR-03,11/03/2026,Parent:Account 0,123.45,,Credits sold,\r\n"
        "DT-2026-11-PUR-03,11/03/2026,Stripe Clearing,,123.45,Credits sold,\r\n"
    )
    assert journal_iif(entries).decode() == (
        "!TRNS\tTRNSTYPE\tDATE\tACCNT\tNAME\tAMOUNT\tDOCNUM\tMEMO\r\n"
        "!SPL\tTRNSTYPE\tDATE\tACCNT\tNAME\tAMOUNT\tDOCNUM\tMEMO\r\n"
        "!ENDTRNS\r\n"
        "TRNS\tGENERAL JOURNAL\t11/03/2026\tParent:Account 0\t\t123.45\tDT2611PUR03\tDT-2026-11-PUR-03 Credits sold\r\n"
        "SPL\tGENERAL JOURNAL\t11/03/2026\tStripe Clearing\t\t-123.45\tDT2611PUR03\tDT-2026-11-PUR-03 Credits sold\r\n"
        "ENDTRNS\r\n"
    )


@given(
    st.dictionaries(
        st.dates(date(2026, 11, 1), date(2026, 11, 30)),
        st.tuples(
            st.lists(st.integers(-(10**10), 10**10).filter(bool), min_size=1, max_size=5).filter(sum),
            st.text(max_size=300),
            st.text(max_size=300),
        ),
        max_size=10,
    )
)
def test_whatever_a_description_or_a_name_holds_both_files_keep_the_rules(
    online_rules: Rules, desktop_rules: Rules, drawn: dict[date, tuple[list[int], str, str]]
) -> None:
    entries = [entry(day, amounts, description, name) for day, (amounts, description, name) in drawn.items()]
    online = online_rules(journal_csv(entries))
    desktop = desktop_rules(journal_iif(entries))
    assert list(online) == [written.number for written in entries]
    for written, rows, lines in zip(entries, online.values(), desktop, strict=True):
        cents = [line.amount_cents for line in written.lines]
        assert [int(Decimal(row["Debits"] or "-" + row["Credits"]) * 100) for row in rows] == cents
        assert [int(Decimal(line["AMOUNT"]) * 100) for line in lines] == cents


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Müller & Söhne €", "Müller & Söhne €"),
        ("Dvořák", "Dvorák"),
        ("日本", "??"),
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
    ],
)
def test_texts_become_what_quickbooks_can_read(written: str, read: str) -> None:
    assert text(written) == read


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"123.45,,", b"123.46,,"),
        (b"11/03/2026", b"2026-11-03"),
        (b"123.45,,", b"123.4,,"),
        (b"123.45,,", b"123.45,123.45,"),
        (b"\r\n", b"\n"),
    ],
)
def test_the_rules_themselves_find_what_is_wrong(online_rules: Rules, old: bytes, new: bytes) -> None:
    content = journal_csv([entry(date(2026, 11, 3), [12_345])])
    online_rules(content)
    with pytest.raises((AssertionError, ValueError)):
        online_rules(content.replace(old, new, 1))


def test_the_rules_of_online_want_a_name_on_a_receivables_line(online_rules: Rules) -> None:
    receivable = frozenset({"Stripe Clearing"})
    with pytest.raises(AssertionError, match="needs a name"):
        online_rules(journal_csv([entry(date(2026, 11, 3), [1])]), receivable)
