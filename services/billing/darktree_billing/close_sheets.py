"""The close pack's tables as CSV files: what the journal stands on. Amounts are dollars, exact where they say so."""

from collections.abc import Iterable

from darktree_billing.clearing import BUCKETS, ROWS
from darktree_billing.close_books import COLUMNS, Books, RollForward
from darktree_billing.quickbooks import csv_bytes, dollars, journal_csv, journal_iif, text
from darktree_kit.money import format_dollars

_MOVED = tuple(dict.fromkeys(COLUMNS.values()))
_README = """Close pack of {company}, {month}
{rule}

Begin with summary.pdf. Then:

  journal.csv           QuickBooks Online: Settings, Import data, Journal entries. Turn account numbers off first, and
                        turn "Warn me if duplicate journal number is used" on: then the same month cannot go in twice.
  journal.iif           QuickBooks Desktop: File, Utilities, Import, IIF files. BACK UP FIRST: Desktop takes such a file
                        without asking, and there is no undo.
  deferred-revenue.csv  what every customer had paid for and not used: opening, sold, adjustments, used, refunded,
                        disputed, closing. Exact, not rounded.
  revenue.csv           revenue by model.
  stripe-clearing.csv   the clearing account: the books beside Stripe's balance.
  exceptions.csv        what does not agree, how old it is, and what to do about it.
  trial-balance.csv     every account at the month's end: the ledger as recorded, the books, and the books in cents.
  checkpoint.txt        the ledger's signed state that this month stands on.
  manifest.json         the SHA-256 of every file; manifest.note is the signature. `darktree close verify` checks both.
"""


def sheets(books: Books) -> dict[str, bytes]:
    """Return the pack's files by name, but for the summary and the manifest."""
    facts = books.facts
    title = f"Close pack of {facts.chart.company}, {facts.month}"
    readme = _README.format(company=facts.chart.company, month=facts.month, rule="=" * len(title))
    files = {
        "README.txt": readme.replace("\n", "\r\n").encode(),
        "journal.csv": journal_csv(books.journal.entries),
        "journal.iif": journal_iif(books.journal.entries),
        "deferred-revenue.csv": _roll_forward(books.roll_forward),
        "revenue.csv": _revenue(books),
        "stripe-clearing.csv": _clearing(books),
        "exceptions.csv": _exceptions(books),
        "trial-balance.csv": _trial_balance(books),
    }
    if facts.closed is not None:
        files["checkpoint.txt"] = facts.closed.checkpoint.encode()
    return files


def roll_forward_total(rows: Iterable[RollForward]) -> RollForward:
    """Return the sum of all customers."""
    rows = list(rows)
    return RollForward(
        customer_id="TOTAL",
        name="",
        opening=sum(row.opening for row in rows),
        moved={column: sum(row.moved[column] for row in rows) for column in _MOVED},
        closing=sum(row.closing for row in rows),
        bonus_left=sum(row.bonus_left for row in rows),
    )


def _roll_forward(rows: list[RollForward]) -> bytes:
    columns = ("customer", "name", "opening", *_MOVED, "closing", "bonus credits left")
    return csv_bytes(
        columns,
        [
            (
                row.customer_id,
                text(row.name),
                format_dollars(row.opening),
                *(format_dollars(row.moved[column]) for column in _MOVED),
                format_dollars(row.closing),
                format_dollars(row.bonus_left),
            )
            for row in [*rows, roll_forward_total(rows)]
        ],
    )


def _revenue(books: Books) -> bytes:
    columns = (
        "model", "account", "requests", "prompt tokens", "completion tokens", "paid (exact)", "absorbed (exact)",
        "booked", "used of bonus credits (exact, no revenue)",
    )  # fmt: skip
    return csv_bytes(
        columns,
        [
            (
                text(row.model),
                books.facts.chart.account("revenue", row.model),
                row.requests,
                row.prompt_tokens,
                row.completion_tokens,
                format_dollars(row.paid_nanos),
                format_dollars(row.absorbed_nanos),
                dollars(row.booked_cents),
                format_dollars(row.bonus_nanos),
            )
            for row in books.revenue
        ],
    )


def _clearing(books: Books) -> bytes:
    clearing = books.clearing
    sides = ((name, clearing.ledger[name], clearing.stripe[name]) for name in ROWS)
    rows = [(name, *map(format_dollars, (ledger, stripe, ledger - stripe))) for name, ledger, stripe in sides]
    explained = sum(found.difference_nanos for found in clearing.findings)
    rows.append(("Explained by exceptions", "", "", format_dollars(explained)))
    return csv_bytes(("", "books", "Stripe", "difference"), rows)


def _exceptions(books: Books) -> bytes:
    at = books.facts.month.last_day
    columns = (
        "exception",
        "since",
        "age (days)",
        "customer",
        "references",
        "books",
        "Stripe",
        "difference",
        "detail",
        "what to do",
    )
    return csv_bytes(
        columns,
        [
            (
                found.bucket,
                found.day,
                found.age_days(at),
                found.customer_id,
                text(found.references),
                _amount(found.ledger_nanos),
                _amount(found.stripe_nanos),
                format_dollars(found.difference_nanos),
                text(found.detail),
                BUCKETS[found.bucket],
            )
            for found in books.clearing.findings
        ],
    )


def _trial_balance(books: Books) -> bytes:
    columns = (
        "account", "ledger's account", "model", "ledger as recorded (exact)", "booked by Stripe's days (exact)",
        "books (exact)", "debit", "credit",
    )  # fmt: skip
    rows = [
        (
            row.name,
            row.account,
            text(row.model),
            format_dollars(row.ledger_nanos),
            format_dollars(row.books_nanos - row.ledger_nanos),
            format_dollars(row.books_nanos),
            dollars(row.books_cents) if row.books_cents > 0 else "",
            dollars(-row.books_cents) if row.books_cents < 0 else "",
        )
        for row in books.trial_balance
    ]
    debits = sum(max(row.books_cents, 0) for row in books.trial_balance)
    credits = sum(max(-row.books_cents, 0) for row in books.trial_balance)
    exact = [
        sum(getattr(row, name) for row in books.trial_balance) for name in ("ledger_nanos", "books_nanos")
    ]
    total = (
        "TOTAL",
        "",
        "",
        format_dollars(exact[0]),
        format_dollars(exact[1] - exact[0]),
        format_dollars(exact[1]),
    )
    return csv_bytes(columns, [*rows, (*total, dollars(debits), dollars(credits))])


def _amount(nanos: int | None) -> str:
    return "" if nanos is None else format_dollars(nanos)
