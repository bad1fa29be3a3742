"""A statement as PDF: the equation first, then what it is made of, and at the end what proves it.

Laid out for A4 with margins that Letter also has room for. The bytes depend on the statement alone.
"""

import io
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any
from xml.sax.saxutils import escape

from reportlab.lib.colors import white
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    KeepTogether,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
)

from darktree_billing.statement_csv import EQUATION
from darktree_billing.statement_json import HOW_TO_VERIFY, Statement
from darktree_billing.statement_letters import draw, fitted, marked, printable, width_of
from darktree_billing.statement_page import (
    ACCENT,
    BODY,
    BOLD,
    FAINT,
    FIGURE,
    HEADING,
    INK,
    MONO,
    PANEL,
    REGULAR,
    RULE,
    SMALL,
    NumberedCanvas,
    UsageChart,
    aligned,
    count,
    day_of,
    table,
)

PAGE_WIDTH, PAGE_HEIGHT = A4
MARGIN = 48
_FLUSH = [("LEFTPADDING", (0, 0), (-1, -1), 0)]
WIDTH = PAGE_WIDTH - 2 * MARGIN
Part = dict[str, Any]


def pdf_bytes(statement: Statement, json_sha256: str) -> bytes:
    """Return the document. `json_sha256` says which JSON document has its entries and proves them."""
    written = io.BytesIO()
    parts = statement.sections
    told = parts["statement"]
    title = f"Usage statement {told['number']}"
    document = BaseDocTemplate(
        written,
        pagesize=A4,
        invariant=1,
        title=title,
        author=printable(told["seller"]),
        leftMargin=MARGIN,
        rightMargin=MARGIN,
        topMargin=MARGIN,
        bottomMargin=MARGIN + 8,
    )
    first = Frame(MARGIN, MARGIN + 8, WIDTH, PAGE_HEIGHT - 2 * MARGIN - 44, 0, 0, 0, 0)
    later = Frame(MARGIN, MARGIN + 8, WIDTH, PAGE_HEIGHT - 2 * MARGIN - 26, 0, 0, 0, 0)

    def letter_head(canvas: Canvas, _: Any) -> None:
        _letter_head(canvas, told)

    def running_head(canvas: Canvas, _: Any) -> None:
        _running_head(canvas, told, parts["customer"])

    document.addPageTemplates(
        [
            PageTemplate("first", [first], onPage=letter_head, autoNextPageTemplate="later"),
            PageTemplate("later", [later], onPage=running_head),
        ]
    )
    document.build(_story(parts, json_sha256), canvasmaker=NumberedCanvas)
    return written.getvalue()


def _story(parts: Part, json_sha256: str) -> list[Flowable]:
    story: list[Flowable] = [_parties(parts), Spacer(0, 14), _equation(parts["totals"]), Spacer(0, 6)]
    story += [_figures(parts), *_chart(parts)]
    if parts["usage_by_model"]:
        story += _usage_tables(parts)
    else:
        story.append(Paragraph("No usage was charged in this period.", BODY))
    story += _activity(parts["activity"])
    story += _caps(parts["caps"])
    story += _absorbed(parts["absorbed"])
    story += [Spacer(0, 16), _proof(parts, json_sha256)]
    return story


def _letter_head(canvas: Canvas, told: Part) -> None:
    top = PAGE_HEIGHT - MARGIN
    canvas.setFillColor(ACCENT)
    canvas.rect(0, PAGE_HEIGHT - 10, PAGE_WIDTH, 10, stroke=0, fill=1)
    canvas.setFillColor(INK)
    seller, size = fitted(told["seller"], BOLD, 17, WIDTH - 165)
    draw(canvas, MARGIN, top - 14, seller, BOLD, size)
    canvas.setFont(REGULAR, 17)
    canvas.setFillColor(ACCENT)
    canvas.drawRightString(PAGE_WIDTH - MARGIN, top - 14, "Usage statement")
    canvas.setStrokeColor(RULE)
    canvas.line(MARGIN, top - 26, PAGE_WIDTH - MARGIN, top - 26)


def _running_head(canvas: Canvas, told: Part, customer: Part) -> None:
    top = PAGE_HEIGHT - MARGIN
    canvas.setFillColor(FAINT)
    canvas.setFont(REGULAR, 8)
    canvas.drawString(MARGIN, top, told["number"])
    name, size = fitted(customer["name"], REGULAR, 8, WIDTH / 2)
    draw(canvas, PAGE_WIDTH - MARGIN - width_of(name, REGULAR, size), top, name, REGULAR, size)
    canvas.setStrokeColor(RULE)
    canvas.line(MARGIN, top - 6, PAGE_WIDTH - MARGIN, top - 6)


def _parties(parts: Part) -> Table:
    told, customer = parts["statement"], parts["customer"]
    name = Paragraph(f"<b>{marked(customer['name'])}</b>", BODY)
    lines = [customer["id"], customer["email"], f"Plan: {customer['plan']}"]
    who = [Paragraph("FOR", SMALL), name]
    who += [Paragraph(marked(line), BODY) for line in lines if line]
    status = {
        "final": "Final: its books are closed",
        "preliminary": "Preliminary: its books are open",
    }[told["status"]]
    facts = [
        ("Number", told["number"]),
        ("Period", _period(told)),
        ("Currency", "US dollars"),
        ("Status", status),
    ]
    right = Table(
        [[Paragraph(label, SMALL), Paragraph(escape(value), BODY)] for label, value in facts],
        colWidths=[52, WIDTH * 0.48 - 52],
        style=[("LEFTPADDING", (0, 0), (-1, -1), 0), ("TOPPADDING", (0, 0), (-1, -1), 0),
               ("BOTTOMPADDING", (0, 0), (-1, -1), 2), ("VALIGN", (0, 0), (-1, -1), "TOP")],
    )  # fmt: skip
    style = [("VALIGN", (0, 0), (-1, -1), "TOP"), *_FLUSH, ("RIGHTPADDING", (0, 0), (0, -1), 24)]
    return Table([[who, right]], colWidths=[WIDTH * 0.52, WIDTH * 0.48], style=style)


def _period(told: Part) -> str:
    first = date.fromisoformat(told["start"][:10])
    last = date.fromisoformat(told["end"][:10]) - timedelta(days=1)
    return f"{first.day} {first:%B %Y} to {last.day} {last:%B %Y} (UTC)"


def _equation(totals: Part) -> Table:
    """Draw opening + purchases + bonus credits - usage + adjustments = closing, and of each what is bonus."""
    labels = (
        ("", "Opening balance"), ("+", "Purchases"), ("+", "Bonus credits"), ("\u2013", "Usage"),
        ("+", "Adjustments, refunds and disputes"), ("=", "Closing balance"),
    )  # fmt: skip
    amounts = aligned([totals[amount] for _, amount, _, _ in EQUATION])
    bonuses = aligned([totals[bonus] if bonus else 0 for _, _, bonus, _ in EQUATION])
    rows = [["", "", "amount", "of which bonus credits"]]
    rows += [
        [sign, label, amount, bonus]
        for (sign, label), amount, bonus in zip(labels, amounts, bonuses, strict=True)
    ]
    style: list[Any] = [
        ("BACKGROUND", (0, 0), (-1, -1), PANEL),
        ("FONT", (0, 0), (-1, 0), REGULAR, 7.5),
        ("TEXTCOLOR", (0, 0), (-1, 0), FAINT),
        ("FONT", (0, 1), (-1, -2), REGULAR, 10),
        ("TEXTCOLOR", (0, 1), (-1, -2), INK),
        ("TEXTCOLOR", (3, 1), (3, -2), FAINT),
        ("FONT", (0, -1), (-1, -1), BOLD, 12),
        ("BACKGROUND", (0, -1), (-1, -1), ACCENT),
        ("TEXTCOLOR", (0, -1), (-1, -1), white),
        ("ALIGN", (2, 0), (-1, -1), "RIGHT"),
        ("ALIGN", (0, 0), (0, -1), "CENTER"),
        ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
        ("TOPPADDING", (0, 0), (-1, -1), 4),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 5),
        ("TOPPADDING", (0, -1), (-1, -1), 7),
        ("BOTTOMPADDING", (0, -1), (-1, -1), 8),
        ("RIGHTPADDING", (0, 0), (-1, -1), 12),
        ("LEFTPADDING", (0, 0), (0, -1), 12),
        ("ROUNDEDCORNERS", [6, 6, 6, 6]),
    ]
    return Table(rows, colWidths=[30, WIDTH - 30 - 2 * 140, 140, 140], style=style)


def _figures(parts: Part) -> Table:
    totals, caps, holds = parts["totals"], parts["caps"], parts["holds"]
    tokens = totals["prompt_tokens"] + totals["completion_tokens"]
    figures = [
        (count(totals["requests"]), "requests charged"),
        (count(tokens), "tokens charged"),
        (count(caps["refused_requests"]), "requests refused at the cap"),
        (count(caps["days_at_cap"]), "days at the cap"),
    ]
    if holds is not None:
        figures.append(
            (count(holds["open"]), f"requests running now, holding {aligned([holds['held_nanos']])[0]}")
        )
    cells = [[Paragraph(number, FIGURE), Paragraph(label, SMALL)] for number, label in figures]
    style = [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("TOPPADDING", (0, 0), (-1, -1), 8),
    ]
    return Table([cells], colWidths=[WIDTH / len(figures)] * len(figures), style=style)


def _chart(parts: Part) -> list[Flowable]:
    told = parts["statement"]
    first, end = (datetime.fromisoformat(told[name]).date() for name in ("start", "end"))
    days = [first + timedelta(days=place) for place in range((end - first).days)]
    used = {row["day"]: row["prompt_tokens"] + row["completion_tokens"] for row in parts["usage_by_day"]}
    if not used:
        return [Spacer(0, 12)]
    tokens = [used.get(str(day), 0) for day in days]
    caps = [_cap_of(parts["caps"], day) for day in days]
    chart = UsageChart(WIDTH, 118, days, tokens, caps)
    return [KeepTogether([Paragraph("Tokens by day", HEADING), chart])]


def _cap_of(caps: Part, day: date) -> int | None:
    """Return the cap at the end of a day."""
    cap: int | None = caps["opening_cap_tokens"]
    for change in caps["changes"]:
        if change["changed_at"][:10] <= str(day):
            cap = change["cap_tokens"]
    return cap


def _usage_tables(parts: Part) -> list[Flowable]:
    names = {key["key_id"]: key for key in parts["keys"]}

    def key_name(key_id: str | None) -> str:
        key = names.get(key_id)
        return f"{key['name']}  ({key['prefix']}…{key['last4']})" if key else key_id or "-"

    models = parts["usage_by_model"]
    prices = [
        aligned([row["prompt_price_nanos"] * 1000, row["completion_price_nanos"] * 1000]) for row in models
    ]
    colour = FAINT.hexval().replace("0x", "#")
    with_price = [
        f"{marked(row['model'] or '-')}<br/>"
        f"<font size='7' color='{colour}'>{_price(*pair)} per 1,000 tokens</font>"
        for row, pair in zip(models, prices, strict=True)
    ]
    by_key = [marked(key_name(row["key_id"])) for row in parts["usage_by_key"]]
    by_day = [day_of(row["day"]) for row in parts["usage_by_day"]]
    return [
        *_usage("Usage by model", "model and price", with_price, models),
        *_usage("Usage by key", "key", by_key, parts["usage_by_key"]),
        *_usage("Usage by day", "day on which the request was admitted (UTC)", by_day, parts["usage_by_day"]),
    ]


def _price(prompt: str, completion: str) -> str:
    return prompt if prompt == completion else f"{prompt} in, {completion} out"


def _usage(title: str, label: str, names: Sequence[str], rows: list[Part]) -> list[Flowable]:
    fields = ("requests", "prompt_tokens", "completion_tokens")
    sums = [sum(row[name] for row in rows) for name in fields]
    amounts = aligned([*(row["amount_nanos"] for row in rows), sum(row["amount_nanos"] for row in rows)])
    lines = [
        [Paragraph(name, BODY), *(count(row[field]) for field in fields), amount]
        for name, row, amount in zip(names, rows, amounts[:-1], strict=True)
    ]
    head = [label, "requests", "prompt tokens", "completion tokens", "amount"]
    foot = ["Total", *map(count, sums), amounts[-1]]
    return table(title, head, lines, [WIDTH - 345, 62, 85, 95, 103], 1, foot)


def _activity(lines: list[Part]) -> list[Flowable]:
    if not lines:
        return []
    effects = aligned([line["effect_nanos"] for line in lines], signed=True)
    rows = []
    for line, effect in zip(lines, effects, strict=True):
        what = ", ".join(filter(None, (line["reason"], line["reference"])))
        if line["amount_nanos"] and not line["effect_nanos"]:
            what += f" ({aligned([line['amount_nanos']])[0]} that had been used; the balance stays)"
        kind = line["kind"].capitalize()
        rows.append([day_of(line["recorded_at"][:10]), kind, Paragraph(marked(what), BODY), effect])
    head = ["date", "kind", "reason and reference", "effect on the balance"]
    return table("Purchases, bonus credits and adjustments", head, rows, [82, 80, WIDTH - 272, 110], 3)


def _caps(caps: Part) -> list[Flowable]:
    rows = []
    for change in caps["changes"]:
        was = change["previous_cap_tokens"]
        at = change["changed_at"][:16].replace("T", " ")
        reason = Paragraph(marked(change["reason"]), BODY)
        rows.append([at, reason, "-" if was is None else count(was), count(change["cap_tokens"])])
    story: list[Flowable] = []
    if rows:
        head = ["changed (UTC)", "reason", "from, tokens a day", "to, tokens a day"]
        story += table("Daily cap", head, rows, [100, WIDTH - 300, 100, 100], 2)
    stopped = [day for day in caps["days"] if day["refused_requests"] or day["at_cap"]]
    if stopped:
        told = [
            [
                day_of(day["day"]),
                count(day["tokens"]),
                count(day["cap_tokens"]),
                count(day["refused_requests"]),
            ]
            for day in stopped
        ]
        head = ["days at the cap, or with refusals", "tokens used", "cap", "requests refused"]
        story += table(None if rows else "Daily cap", head, told, [WIDTH - 300, 100, 100, 100], 1)
    return story


def _absorbed(rows: list[Part]) -> list[Flowable]:
    if not rows:
        return []
    amounts = aligned([row["amount_nanos"] for row in rows])
    lines = [
        [
            day_of(row["day"]),
            Paragraph(marked(row["model"]), BODY),
            count(row["prompt_tokens"] + row["completion_tokens"]),
            amount,
        ]
        for row, amount in zip(rows, amounts, strict=True)
    ]
    head = ["day", "model", "tokens", "worth"]
    return table("Absorbed by the house, not charged", head, lines, [100, WIDTH - 300, 100, 100], 2)


def _proof(parts: Part, json_sha256: str) -> Flowable:
    chain, proof = parts["chain"], parts["proof"]
    rows = [
        ("First and last entry", f"{chain['opening']['seq'] + 1} to {chain['closing']['seq']}"
         if chain["closing"]["seq"] > chain["opening"]["seq"] else "none in this period"),
        ("Ledger head at opening", chain["opening"]["head"]),
        ("Ledger head at closing", chain["closing"]["head"]),
    ]  # fmt: skip
    if proof is None:
        rows.append(("Checkpoint", "none covers the last entry yet"))
    else:
        origin, size, root = proof["checkpoint"].split("\n")[:3]
        rows += [("Checkpoint", f"{origin}, {int(size):,} entries"), ("Root of the log", root)]
        rows += [("Signed by", key["vkey"]) for key in proof["keys"][-1:]]
    rows.append(("SHA-256 of the JSON", json_sha256))
    told = [[Paragraph(label, SMALL), Paragraph(escape(value), MONO)] for label, value in rows]
    style = [("LEFTPADDING", (0, 0), (-1, -1), 0), ("TOPPADDING", (0, 0), (-1, -1), 1),
             ("BOTTOMPADDING", (0, 0), (-1, -1), 1), ("VALIGN", (0, 0), (-1, -1), "TOP")]  # fmt: skip
    facts = Table(told, colWidths=[104, WIDTH - 24 - 104], style=style)
    words = [Paragraph(escape(line), SMALL) for line in HOW_TO_VERIFY]
    heading = Paragraph("Proof", HEADING)
    box = Table(
        [[[heading, facts, Spacer(0, 6), *words]]],
        colWidths=[WIDTH],
        style=[("BOX", (0, 0), (-1, -1), 0.8, RULE), ("ROUNDEDCORNERS", [6, 6, 6, 6]),
               ("LEFTPADDING", (0, 0), (-1, -1), 12), ("RIGHTPADDING", (0, 0), (-1, -1), 12),
               ("TOPPADDING", (0, 0), (-1, -1), 2), ("BOTTOMPADDING", (0, 0), (-1, -1), 10)],
    )  # fmt: skip
    return KeepTogether([box])
