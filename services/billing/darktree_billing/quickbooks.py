"""The journal as QuickBooks reads it: a CSV file for Online, an IIF file for Desktop.

Online (Intuit's "Import journal entries in QuickBooks Online"): one row a line, rows of one JournalNo are one entry,
dates MM/DD/YYYY, an amount in Debits or in Credits and never in both, accounts by name with a colon between parent and
sub-account, a Name on lines of receivables and payables, numbers of at most 21 characters.
Desktop (Intuit's "IIF overview"): tab-delimited, TRNS then SPL then ENDTRNS under headers that begin with `!`, signed
amounts whose sum is zero, no quoting at all, Windows' own character set, numbers of at most 11 characters.
"""

import csv
import io
import unicodedata
from collections.abc import Iterable

from darktree_billing.journal import Entry

CSV_COLUMNS = ("JournalNo", "JournalDate", "AccountName", "Debits", "Credits", "Description", "Name")
IIF_COLUMNS = ("TRNSTYPE", "DATE", "ACCNT", "NAME", "AMOUNT", "DOCNUM", "MEMO")
MAX_TEXT = 200
ENCODING = "cp1252"  # what Desktop reads; plain ASCII, as nearly all of it is, reads the same everywhere


def journal_csv(entries: Iterable[Entry]) -> bytes:
    """Return the file for QuickBooks Online."""
    rows = [
        (
            entry.number,
            f"{entry.day:%m/%d/%Y}",
            line.account,
            dollars(line.amount_cents) if line.amount_cents > 0 else "",
            dollars(-line.amount_cents) if line.amount_cents < 0 else "",
            text(line.description),
            text(line.name),
        )
        for entry in entries
        for line in entry.lines
    ]
    return csv_bytes(CSV_COLUMNS, rows)


def journal_iif(entries: Iterable[Entry]) -> bytes:
    """Return the file for QuickBooks Desktop."""
    lines = ["\t".join(("!TRNS", *IIF_COLUMNS)), "\t".join(("!SPL", *IIF_COLUMNS)), "!ENDTRNS"]
    for entry in entries:
        for place, line in enumerate(entry.lines):
            cells = (
                "SPL" if place else "TRNS",
                "GENERAL JOURNAL",
                f"{entry.day:%m/%d/%Y}",
                line.account,
                text(line.name),
                dollars(line.amount_cents),
                entry.short_number,
                text(f"{entry.number} {line.description}"),
            )
            # Nothing can be quoted in this format: a quote itself may not stand in it.
            lines.append("\t".join(cell.replace('"', "'") for cell in cells))
        lines.append("ENDTRNS")
    return "".join(line + "\r\n" for line in lines).encode(ENCODING)


def csv_bytes(columns: Iterable[object], rows: Iterable[Iterable[object]]) -> bytes:
    """Return a CSV file as RFC 4180 writes it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue().encode(ENCODING, errors="replace")


def dollars(cents: int) -> str:
    """Return an amount with its two decimals: `-12.30`."""
    whole, rest = divmod(abs(cents), 100)
    return f"{'-' if cents < 0 else ''}{whole}.{rest:02d}"


def text(written: str) -> str:
    """Return a text that every format takes: one line, in Windows' characters, and never a spreadsheet's formula."""
    plain = "".join(_letter(letter) for letter in unicodedata.normalize("NFC", written))
    plain = " ".join(plain.split())[:MAX_TEXT]
    return "'" + plain if plain[:1] in {"=", "+", "-", "@"} else plain


def _letter(letter: str) -> str:
    if not letter.isprintable():
        return " "
    for candidate in (letter, unicodedata.normalize("NFKD", letter)[0]):
        try:
            candidate.encode(ENCODING)
        except UnicodeEncodeError:
            continue
        return candidate
    return "?"
