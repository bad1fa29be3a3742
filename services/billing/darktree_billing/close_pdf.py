"""The close pack's summary: one page that says what the month was, whether it ties, and what is left to do."""

import io
from collections.abc import Sequence

from reportlab.lib.colors import Color, HexColor, white
from reportlab.lib.pagesizes import LETTER
from reportlab.pdfgen.canvas import Canvas

from darktree_billing.clearing import ROWS
from darktree_billing.close_books import Books
from darktree_billing.close_sheets import roll_forward_total
from darktree_billing.journal import CODES, balances_cents, round_cents
from darktree_billing.quickbooks import text

INK, FAINT, RULE, PANEL = HexColor("#1b2430"), HexColor("#66727f"), HexColor("#d5dbe1"), HexColor("#f3f5f7")
ACCENT, GOOD, BAD = HexColor("#1f5c4d"), HexColor("#1f7a4d"), HexColor("#b3261e")
REGULAR, BOLD = "Helvetica", "Helvetica-Bold"
WIDTH, HEIGHT = LETTER
LEFT, RIGHT = 48, WIDTH - 48
ROW = 14.5
MAX_MODELS = 6
MAX_EXCEPTIONS = 8

Row = Sequence[str]


def summary_pdf(books: Books) -> bytes:
    """Return the page; the same bytes for the same books."""
    written = io.BytesIO()
    canvas = Canvas(written, pagesize=LETTER, invariant=1, pageCompression=1)
    facts = books.facts
    canvas.setTitle(f"Close {facts.month}, {text(facts.chart.company)}")
    canvas.setAuthor("Darktree")
    page = _Page(canvas)
    page.head(text(facts.chart.company), f"{facts.month.first_day:%B %Y}", is_closed=facts.closed is not None)
    page.figures(_figures(books))
    page.roll_forward(books)
    top = page.y
    page.table(
        "Revenue by model", ("model", "requests", "booked"), _models(books), LEFT, LEFT + 250, last=True
    )
    left_end, page.y = page.y, top
    page.table(
        "Stripe clearing",
        ("", "books", "Stripe", "difference"),
        _clearing(books),
        LEFT + 274,
        RIGHT,
        last=True,
    )
    page.y = min(left_end, page.y)
    page.table("Journal", ("entries", "how many", "numbers", "debits"), _journal(books), LEFT, RIGHT)
    page.exceptions(books)
    page.foot(books)
    canvas.showPage()
    canvas.save()
    return written.getvalue()


class _Page:
    """A canvas, and how far down it is written."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        self.y = HEIGHT - 56.0

    def say(
        self, x: float, y: float, words: str, *, size: float = 9, font: str = REGULAR, color: Color = INK
    ) -> None:
        self.canvas.setFont(font, size)
        self.canvas.setFillColor(color)
        self.canvas.drawString(x, y, words)

    def say_right(
        self, x: float, y: float, words: str, *, size: float = 9, font: str = REGULAR, color: Color = INK
    ) -> None:
        self.say(x - self.canvas.stringWidth(words, font, size), y, words, size=size, font=font, color=color)

    def rule(self, y: float, left: float = LEFT, right: float = RIGHT, color: Color = RULE) -> None:
        self.canvas.setStrokeColor(color)
        self.canvas.setLineWidth(0.6)
        self.canvas.line(left, y, right, y)

    def head(self, company: str, month: str, *, is_closed: bool) -> None:
        if not is_closed:
            self.canvas.saveState()
            self.canvas.translate(WIDTH / 2, HEIGHT / 2)
            self.canvas.rotate(52)
            words = "PREVIEW"
            self.say(
                -self.canvas.stringWidth(words, BOLD, 150) / 2,
                -50,
                words,
                size=150,
                font=BOLD,
                color=HexColor("#f2e3e1"),
            )
            self.canvas.restoreState()
        self.say(LEFT, self.y, "Month close", size=10, color=FAINT)
        self.say(LEFT, self.y - 26, month, size=24, font=BOLD)
        self.say_right(RIGHT, self.y, company, size=11, font=BOLD)
        status = (
            "Closed: these figures do not change"
            if is_closed
            else "PREVIEW: the month is open, nothing is signed"
        )
        self.say_right(RIGHT, self.y - 22, status, size=9, color=GOOD if is_closed else BAD)
        self.y -= 40
        self.rule(self.y, color=ACCENT)
        self.y -= 14

    def figures(self, figures: Sequence[tuple[str, str]]) -> None:
        width = (RIGHT - LEFT - 8 * (len(figures) - 1)) / len(figures)
        for place, (name, value) in enumerate(figures):
            x = LEFT + place * (width + 8)
            self.canvas.setFillColor(PANEL)
            self.canvas.roundRect(x, self.y - 44, width, 44, 4, stroke=0, fill=1)
            self.say(x + 9, self.y - 15, name, size=7.5, color=FAINT)
            self.say(x + 9, self.y - 34, value, size=14, font=BOLD)
        self.y -= 66

    def title(self, words: str, left: float = LEFT) -> None:
        self.say(left, self.y, words, size=11, font=BOLD, color=ACCENT)
        self.y -= 8

    def roll_forward(self, books: Books) -> None:
        total = roll_forward_total(books.roll_forward)
        parts = [("opening", total.opening), *total.moved.items(), ("closing", total.closing)]
        self.title("Deferred revenue: paid for, and not used yet")
        width = (RIGHT - LEFT) / len(parts)
        for place, (name, nanos) in enumerate(parts):
            right = LEFT + (place + 1) * width
            sign = "" if place in (0, len(parts) - 1) or nanos <= 0 else "+"
            edge = place in (0, len(parts) - 1)
            self.say_right(right - 6, self.y - 10, name, size=7.5, color=FAINT)
            self.say_right(right - 6, self.y - 24, sign + _dollars(nanos), font=BOLD if edge else REGULAR)
        self.rule(self.y - 32)
        customers = len(books.roll_forward)
        self.say(LEFT, self.y - 44, f"{customers} customers; each one's line is in deferred-revenue.csv. "
                 "Bonus credits are not in it: they are never revenue.", size=7.5, color=FAINT)  # fmt: skip
        self.y -= 68

    def table(
        self, title: str, columns: Row, rows: Sequence[Row], left: float, right: float, *, last: bool = False
    ) -> None:
        self.title(title, left)
        first = 0.34 if len(columns) > 3 else 0.5
        edges = [
            left + (right - left) * (first + (1 - first) * place / (len(columns) - 1))
            for place in range(len(columns))
        ]
        self.y -= ROW - 4
        for place, name in enumerate(columns[1:], 1):
            self.say_right(edges[place], self.y, name, size=7.5, color=FAINT)
        self.say(left, self.y, columns[0], size=7.5, color=FAINT)
        self.rule(self.y - 4, left, right)
        for number, row in enumerate(rows):
            font = BOLD if last and number == len(rows) - 1 else REGULAR
            self.y -= ROW
            self.say(left, self.y, row[0], size=8.5, font=font)
            for place, cell in enumerate(row[1:], 1):
                self.say_right(edges[place], self.y, cell, size=8.5, font=font)
        self.y -= 26

    def exceptions(self, books: Books) -> None:
        findings, at = books.clearing.findings, books.facts.month.last_day
        self.title(f"Exceptions: {len(findings) or 'none'}")
        if not findings:
            self.say(LEFT, self.y - 10, "Ledger, Stripe and books agree to the cent.", color=GOOD)
            self.y -= 30
            return
        edges = (LEFT + 150, LEFT + 195, LEFT + 395)
        self.y -= ROW - 4
        self.say(LEFT, self.y, "what", size=7.5, color=FAINT)
        self.say_right(edges[1], self.y, "age (days)", size=7.5, color=FAINT)
        self.say(edges[1] + 16, self.y, "references", size=7.5, color=FAINT)
        self.say_right(RIGHT, self.y, "books more than Stripe", size=7.5, color=FAINT)
        self.rule(self.y - 4)
        for found in findings[:MAX_EXCEPTIONS]:
            self.y -= ROW
            self.say(LEFT, self.y, found.bucket.replace("_", " "), size=8.5, color=BAD)
            self.say_right(edges[1], self.y, str(found.age_days(at)), size=8.5)
            self.say(edges[1] + 16, self.y, text(found.references)[:48], size=8.5)
            self.say_right(RIGHT, self.y, _dollars(found.difference_nanos), size=8.5)
        if len(findings) > MAX_EXCEPTIONS:
            self.y -= ROW
            self.say(
                LEFT,
                self.y,
                f"and {len(findings) - MAX_EXCEPTIONS} more in exceptions.csv",
                size=8.5,
                color=FAINT,
            )
        self.y -= 26

    def foot(self, books: Books) -> None:
        closed = books.facts.closed
        entries, lines = len(books.journal.entries), sum(len(entry.lines) for entry in books.journal.entries)
        words = [
            f"Journal: {entries} balanced entries, {lines} lines: journal.csv (Online) or journal.iif (Desktop)."
        ]
        if closed is not None:
            words += [
                f"Stands on the ledger's checkpoint of {closed.tree_size} entries, root {closed.root}.",
                "Every file's SHA-256 is in manifest.json, and its signature in manifest.note: darktree close verify.",
            ]
        self.rule(76)
        for place, line in enumerate(words):
            self.say(LEFT, 62 - 11 * place, line, size=7.5, color=FAINT)
        self.canvas.setFillColor(white)


def _figures(books: Books) -> list[tuple[str, str]]:
    rows = books.clearing.ledger
    return [
        ("Credits sold", _dollars(rows["Charges"])),
        ("Revenue", _cents(_net_revenue_cents(books))),
        ("Fees", _dollars(-rows["Fees"])),
        ("Paid out to the bank", _dollars(-rows["Payouts"])),
        ("Exceptions", str(len(books.clearing.findings))),
    ]


def _models(books: Books) -> list[Row]:
    shown, rest = books.revenue[:MAX_MODELS], books.revenue[MAX_MODELS:]
    rows: list[Row] = [(text(row.model)[:26], f"{row.requests:,}", _cents(row.booked_cents)) for row in shown]
    if rest:
        requests, booked = sum(row.requests for row in rest), sum(row.booked_cents for row in rest)
        rows.append((f"{len(rest)} more, in revenue.csv", f"{requests:,}", _cents(booked)))
    gross, net = sum(row.booked_cents for row in books.revenue), _net_revenue_cents(books)
    rows.append(("absorbed by the house", "", _cents(net - gross)))
    rows.append(("Revenue", f"{sum(row.requests for row in books.revenue):,}", _cents(net)))
    return rows


def _net_revenue_cents(books: Books) -> int:
    """Return the month's revenue without the usage that nobody pays for."""
    before, after = (balances_cents(flows) for flows in (books.facts.carried.flows, books.journal.flows))
    own = {key for key in after if key[0] in ("revenue", "house_absorbed")}
    return sum(before.get(key, 0) - after[key] for key in own)


def _journal(books: Books) -> list[Row]:
    rows: list[Row] = []
    for code, name in CODES.items():
        entries = [entry for entry in books.journal.entries if f"-{code}" in entry.number]
        if entries:
            debits = sum(max(line.amount_cents, 0) for entry in entries for line in entry.lines)
            numbers = entries[0].number + (f" to {entries[-1].day:%d}" if len(entries) > 1 else "")
            rows.append((name, str(len(entries)), numbers, _cents(debits)))
    return rows or [("nothing moved", "0", "", "$0.00")]


def _clearing(books: Books) -> list[Row]:
    ledger, stripe = books.clearing.ledger, books.clearing.stripe
    return [
        (name, _dollars(ledger[name]), _dollars(stripe[name]), _dollars(ledger[name] - stripe[name]))
        for name in ROWS
    ]


def _dollars(nanos: int) -> str:
    return _cents(round_cents(nanos))


def _cents(cents: int) -> str:
    return f"{'-' if cents < 0 else ''}${abs(cents) // 100:,}.{abs(cents) % 100:02d}"
