"""The files for QuickBooks, read back by rules that were written down without looking at who writes them."""

import csv
import io
import re
from collections import defaultdict
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_billing.journal import Entry, Line
from darktree_billing.quickbooks import journal_csv, journal_iif, text

AMOUNT = re.compile(r"[0-9]{1,11}\.[0-9]{2}")
SIGNED = re.compile(r"-?[0-9]{1,11}\.[0-9]{2}")


def check_date(written: str) -> None:
    assert re.fullmatch(r"\d\d/\d\d/\d{4}", written)
    month, day, year = map(int, written.split("/"))
    date(year, month, day)


def check_online(content: bytes, named: frozenset[str] = frozenset()) -> dict[str, list[dict[str, str]]]:
    """Apply the rules of QuickBooks Online's import of journal entries; return the rows of each entry.

    Intuit, "Import journal entries in QuickBooks Online", and the limits of its API's JournalEntry.
    """
    written = content.decode("cp1252")
    assert not written.startswith("\ufeff")
    assert written.endswith("\r\n")
    assert "\n" not in written.replace("\r\n", "")
    assert "\t" not in written
    rows = list(csv.DictReader(io.StringIO(written, newline=""), strict=True))
    assert written.split("\r\n")[0] == "JournalNo,JournalDate,AccountName,Debits,Credits,Description,Name"
    entries: dict[str, list[dict[str, str]]] = defaultdict(list)
    last = ""
    for row in rows:
        assert None not in row, "a row has too many cells"
        assert row["JournalNo"] == last or row["JournalNo"] not in entries, "an entry's rows stand together"
        last = row["JournalNo"]
        entries[last].append(row)
        assert re.fullmatch(r"[A-Z0-9-]{1,21}", last)
        check_date(row["JournalDate"])
        assert bool(row["Debits"]) != bool(row["Credits"]), "a line is a debit or a credit"
        assert AMOUNT.fullmatch(row["Debits"] or row["Credits"])
        assert Decimal(row["Debits"] or row["Credits"]) > 0
        assert 1 <= len(row["AccountName"]) <= 100
        assert '"' not in row["AccountName"]
        assert all(level.strip() == level and level for level in row["AccountName"].split(":"))
        assert len(row["Description"]) <= 4000
        assert len(row["Name"]) <= 210
        assert not row["Description"].startswith(("=", "+", "-", "@"))
        assert row["AccountName"] not in named or row["Name"], "a receivable's line needs a name"
    for number, lines in entries.items():
        assert len(lines) >= 2, number
        assert len({line["JournalDate"] for line in lines}) == 1, number
        debits = sum(Decimal(line["Debits"] or 0) for line in lines)
        assert debits == sum(Decimal(line["Credits"] or 0) for line in lines), number
    return entries


def check_desktop(content: bytes) -> list[list[dict[str, str]]]:
    """Apply the rules of an IIF file (Intuit, "IIF overview: import kit"); return the lines of each transaction."""
    written = content.decode("cp1252")
    assert written.endswith("\r\n")
    assert '"' not in written
    lines = [line.split("\t") for line in written.removesuffix("\r\n").split("\r\n")]
    headers: dict[str, list[str]] = {}
    while lines and lines[0][0].startswith("!"):
        keyword, *columns = lines.pop(0)
        headers[keyword.removeprefix("!")] = columns
    assert list(headers) == ["TRNS", "SPL", "ENDTRNS"]
    assert {"TRNSTYPE", "ACCNT", "AMOUNT"} <= set(headers["TRNS"])
    assert headers["TRNS"] == headers["SPL"]
    transactions: list[list[dict[str, str]]] = []
    within = False
    for keyword, *cells in lines:
        if keyword == "ENDTRNS":
            assert within
            assert len(transactions[-1]) >= 2
            assert sum(Decimal(line["AMOUNT"]) for line in transactions[-1]) == 0
            within = False
            continue
        assert keyword == ("SPL" if within else "TRNS")
        if not within:
            transactions.append([])
        within = True
        assert len(cells) == len(headers[keyword])
        line = dict(zip(headers[keyword], cells, strict=True))
        transactions[-1].append(line)
        assert line["TRNSTYPE"] == "GENERAL JOURNAL"
        check_date(line["DATE"])
        assert SIGNED.fullmatch(line["AMOUNT"])
        assert 1 <= len(line["DOCNUM"]) <= 11, "QuickBooks Desktop's numbers have eleven characters"
        assert line["ACCNT"]
        assert all(1 <= len(level) <= 31 for level in line["ACCNT"].split(":"))
        assert len(line["ACCNT"]) <= 159
        assert len(line["NAME"]) <= 209
        assert len(line["MEMO"]) <= 4095
    assert not within
    return transactions


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
    drawn: dict[date, tuple[list[int], str, str]],
) -> None:
    entries = [entry(day, amounts, description, name) for day, (amounts, description, name) in drawn.items()]
    online = check_online(journal_csv(entries))
    desktop = check_desktop(journal_iif(entries))
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
def test_the_rules_themselves_find_what_is_wrong(old: bytes, new: bytes) -> None:
    content = journal_csv([entry(date(2026, 11, 3), [12_345])])
    check_online(content)
    with pytest.raises((AssertionError, ValueError)):
        check_online(content.replace(old, new, 1))


def test_the_rules_of_online_want_a_name_on_a_receivables_line() -> None:
    receivable = frozenset({"Stripe Clearing"})
    with pytest.raises(AssertionError, match="needs a name"):
        check_online(journal_csv([entry(date(2026, 11, 3), [1])]), receivable)
