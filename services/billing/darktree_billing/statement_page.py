"""What a statement's pages are drawn with: type, colours, exact amounts in columns, and the chart of usage by day."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from reportlab.lib.colors import HexColor
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, KeepTogether, Paragraph, Spacer, Table

from darktree_kit.money import format_dollars

INK, FAINT, RULE, PANEL = HexColor("#1b2430"), HexColor("#66727f"), HexColor("#d5dbe1"), HexColor("#f3f5f7")
ACCENT, BAR, STOP = HexColor("#1f5c4d"), HexColor("#5b9a86"), HexColor("#b3541e")
REGULAR, BOLD = "Helvetica", "Helvetica-Bold"
BODY = ParagraphStyle("body", fontName=REGULAR, fontSize=8.5, leading=11, textColor=INK, splitLongWords=1)
SMALL = ParagraphStyle("small", BODY, fontSize=7.5, leading=9.5, textColor=FAINT)
MONO = ParagraphStyle("mono", BODY, fontName="Courier", fontSize=7.5, leading=9.5, wordWrap="CJK")
FIGURE = ParagraphStyle("figure", BODY, fontName=BOLD, fontSize=13, leading=17)
HEADING = ParagraphStyle(
    "heading", BODY, fontName=BOLD, fontSize=11, leading=14, spaceBefore=14, spaceAfter=4
)
MAX_ROWS_KEPT_TOGETHER = 12


def count(number: int) -> str:
    return f"{number:,}"


def aligned(amounts: Sequence[int], *, signed: bool = False) -> list[str]:
    """Return amounts of nano-dollars exactly, with as many decimals as the one that needs most: a column lines up."""
    texts = [format_dollars(abs(amount)) for amount in amounts]
    decimals = max((len(text.partition(".")[2]) for text in texts), default=2)
    signs = ["\u2013" if amount < 0 else ("+" if signed and amount > 0 else "") for amount in amounts]
    return [_dollars(sign, text, decimals) for sign, text in zip(signs, texts, strict=True)]


def _dollars(sign: str, text: str, decimals: int) -> str:
    whole, _, rest = text.partition(".")
    return f"{sign}${int(whole):,}.{rest.ljust(decimals, '0')}"


def table(
    title: str | None,
    head: list[str],
    rows: list[list[Any]],
    widths: list[float],
    numbers: int,
    foot: list[Any] | None = None,
) -> list[Flowable]:
    """Return a titled table; from column `numbers` on it stands at the right."""
    style: list[Any] = [
        ("FONT", (0, 0), (-1, 0), REGULAR, 7.5),
        ("TEXTCOLOR", (0, 0), (-1, 0), FAINT),
        ("FONT", (0, 1), (-1, -1), REGULAR, 8.5),
        ("TEXTCOLOR", (0, 1), (-1, -1), INK),
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, INK),
        ("LINEBELOW", (0, 1), (-1, -1), 0.4, RULE),
        ("ALIGN", (numbers, 0), (-1, -1), "RIGHT"),
        ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
        ("LEFTPADDING", (0, 0), (0, -1), 0),
        ("RIGHTPADDING", (-1, 0), (-1, -1), 0),
        ("TOPPADDING", (0, 0), (-1, -1), 2.5),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 3.5),
    ]
    lines = [head, *rows]
    if foot is not None:
        lines.append(foot)
        style += [("FONT", (0, -1), (-1, -1), BOLD, 8.5), ("LINEBELOW", (0, -1), (-1, -1), 0.8, INK)]
    made = Table(lines, colWidths=widths, style=style, repeatRows=1)
    if title is None:
        return [Spacer(0, 6), made]
    heading = Paragraph(title, HEADING)
    heading.keepWithNext = 1
    return [KeepTogether([heading, made])] if len(rows) <= MAX_ROWS_KEPT_TOGETHER else [heading, made]


def day_of(text: str) -> str:
    day = date.fromisoformat(text)
    return f"{day:%a} {day.day} {day:%b %Y}"


class NumberedCanvas(Canvas):
    """A canvas that knows how many pages there are when it writes their numbers."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self._pages: list[dict[str, Any]] = []

    def showPage(self) -> None:
        self._pages.append(dict(self.__dict__))
        self._startPage()  # type: ignore[attr-defined]

    def save(self) -> None:
        for number, page in enumerate(self._pages, 1):
            self.__dict__.update(page)
            self.setFont(REGULAR, 7.5)
            self.setFillColor(FAINT)
            width = self._pagesize[0]  # type: ignore[attr-defined]
            self.drawString(48, 32, "Days are UTC. Amounts are exact: nothing is rounded.")
            self.drawRightString(width - 48, 32, f"Page {number} of {len(self._pages)}")
            super().showPage()
        super().save()


class UsageChart(Flowable):
    """A bar for each day's tokens, and above them the daily cap where there is one."""

    def __init__(
        self,
        width: float,
        height: float,
        days: Sequence[date],
        tokens: Sequence[int],
        caps: Sequence[int | None],
    ) -> None:
        super().__init__()
        self.width, self.height = width, height
        self._days, self._tokens, self._caps = days, tokens, caps

    def draw(self) -> None:
        canvas: Canvas = self.canv
        left, bottom, top = 46.0, 16.0, self.height - 10
        known = [cap for cap in self._caps if cap is not None]
        most = max(self._tokens)
        # A cap far above the bars would flatten them: then it is only told, not drawn.
        shows_cap = bool(known) and max(known) <= 4 * max(most, 1)
        ceiling = _round_up(max(most, *(known if shows_cap else [1])))
        step = (self.width - left) / len(self._days)

        def height_of(tokens: int) -> float:
            return bottom + (top - bottom) * tokens / ceiling

        canvas.setFont(REGULAR, 7)
        for part in range(5):
            value = ceiling * part // 4
            canvas.setStrokeColor(RULE)
            canvas.setLineWidth(0.4)
            canvas.line(left, height_of(value), self.width, height_of(value))
            canvas.setFillColor(FAINT)
            canvas.drawRightString(left - 6, height_of(value) - 2.5, count(value))
        every = max(1, -(-len(self._days) // 31))
        for place, (day, tokens) in enumerate(zip(self._days, self._tokens, strict=True)):
            cap = self._caps[place]
            canvas.setFillColor(STOP if cap is not None and tokens >= cap > 0 else BAR)
            if tokens:
                canvas.rect(
                    left + place * step + step * 0.14, bottom, step * 0.72, height_of(tokens) - bottom, 0, 1
                )
            if place % every == 0:
                canvas.setFillColor(FAINT)
                canvas.drawCentredString(left + (place + 0.5) * step, 5, self._label(day, every))
        self._draw_cap(canvas, left, step, height_of if shows_cap else None, known, top)

    def _label(self, day: date, every: int) -> str:
        return str(day.day) if every == 1 else f"{day.day}.{day.month}."

    def _draw_cap(
        self, canvas: Canvas, left: float, step: float, height_of: Any, known: list[int], top: float
    ) -> None:
        if not known:
            return
        canvas.setFillColor(STOP)
        said = (
            f"daily cap {count(known[-1])} tokens"
            if height_of
            else f"the daily cap, {count(known[-1])} tokens, is far above"
        )
        canvas.setFont(REGULAR, 7)
        canvas.drawRightString(self.width, top + 12, said)
        if height_of is None:
            return
        canvas.setStrokeColor(STOP)
        canvas.setLineWidth(1)
        canvas.setDash(4, 2)
        path = canvas.beginPath()
        drawing = False
        for place, cap in enumerate(self._caps):
            if cap is None:
                drawing = False
                continue
            x, y = left + place * step, height_of(cap)
            if drawing:
                path.lineTo(x, y)
            else:
                path.moveTo(x, y)
            path.lineTo(x + step, y)
            drawing = True
        canvas.drawPath(path)
        canvas.setDash()


def _round_up(value: int) -> int:
    """Return the least of 4, 8, 12, 20, 40, 80, 120, ... that is not below a value: its quarters are round."""
    unit = 1
    while True:
        for times in (4, 8, 12, 20):
            if unit * times >= value:
                return unit * times
        unit *= 10
