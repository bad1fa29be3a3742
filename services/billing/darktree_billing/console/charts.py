"""Charts as SVG that the server draws: bars by day, stacked, with what each is when it is pointed at.

Everything is placed by percent, so that a chart fits any width and its letters keep their size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from markupsafe import Markup

from darktree_billing.console.formats import count, day, short_count, short_day

HEIGHT, TOP, BOTTOM = 220, 12, 24
COLOURS = 6
MAX_LABELS = 7
MAX_SERIES = COLOURS  # what is smaller is added up as "Others"


@dataclass(frozen=True)
class Series:
    """One colour: its name and its value of each day."""

    name: str
    values: Mapping[date, int]


def ticks(most: int) -> list[int]:
    """Return three or four round numbers from nothing to at least the greatest value."""
    most = max(most, 1)
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor * 4 >= most:
                return [step * factor * place for place in range(-(-most // (step * factor)) + 1)]
        step *= 10


def folded(series: Sequence[Series]) -> list[Series]:
    """Return at most as many series as there are colours, the greatest first, the rest added up."""
    ordered = sorted(series, key=lambda one: (-sum(one.values.values()), one.name))
    if len(ordered) <= MAX_SERIES:
        return ordered
    others: dict[date, int] = {}
    for one in ordered[MAX_SERIES - 1 :]:
        for when, value in one.values.items():
            others[when] = others.get(when, 0) + value
    return [*ordered[: MAX_SERIES - 1], Series("Others", others)]


def bars(
    days: Sequence[date],
    series: Sequence[Series],
    *,
    unit: str,
    title: str,
    limit: int | None = None,
    limit_name: str = "",
) -> Markup:
    """Return a chart of days, each a stack of the series, with a line at a limit that is near enough to matter."""
    totals = {when: sum(one.values.get(when, 0) for one in series) for when in days}
    most = max(totals.values(), default=0)
    shown_limit = limit if limit is not None and 0 < limit <= max(most * 4, 1) else None
    marks = ticks(max(most, shown_limit or 0))
    scale = (HEIGHT - TOP - BOTTOM) / marks[-1]
    parts = [_axis(marks, scale)]
    width = 100 / max(len(days), 1)
    every = -(-len(days) // MAX_LABELS)
    for place, when in enumerate(days):
        parts.append(_day(when, place * width, width, series, totals[when], scale, unit))
        if place % every == every // 2 or len(days) <= MAX_LABELS:
            parts.append(
                Markup('<text x="{:.3f}%" y="{}" text-anchor="middle">{}</text>').format(
                    (place + 0.5) * width, HEIGHT - 6, short_day(when)
                )
            )
    if shown_limit is not None:
        height = HEIGHT - BOTTOM - shown_limit * scale
        parts.append(
            Markup(
                '<line class="cap" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>'
                '<text class="cap-label" x="100%" y="{1:.1f}" text-anchor="end">{2}</text>'
            ).format(height, height - 5, limit_name)
        )
    plot = Markup('<svg class="chart" width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(
        HEIGHT, title, Markup().join(parts)
    )
    return Markup('<div class="plot">{}{}</div>').format(_labels(marks, scale), plot)


def _labels(marks: Sequence[int], scale: float) -> Markup:
    labels = [
        Markup('<text x="34" y="{:.1f}" text-anchor="end">{}</text>').format(
            HEIGHT - BOTTOM - mark * scale + 4, short_count(mark)
        )
        for mark in marks
    ]
    return Markup('<svg class="chart marks" width="42" height="{}" aria-hidden="true">{}</svg>').format(
        HEIGHT, Markup().join(labels)
    )


def _axis(marks: Sequence[int], scale: float) -> Markup:
    lines = [
        Markup('<line class="axis" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(
            HEIGHT - BOTTOM - mark * scale
        )
        for mark in marks
    ]
    return Markup().join(lines)


def _day(
    when: date, left: float, width: float, series: Sequence[Series], total: int, scale: float, unit: str
) -> Markup:
    lines = [f"{day(when)}: {count(total)} {unit}"]
    parts: list[Markup] = []
    bottom = float(HEIGHT - BOTTOM)
    for colour, one in enumerate(series):
        value = one.values.get(when, 0)
        if not value:
            continue
        lines.append(f"{one.name}: {count(value)}")
        height = value * scale
        bottom -= height
        parts.append(
            Markup('<rect class="s{}" x="{:.3f}%" y="{:.2f}" width="{:.3f}%" height="{:.2f}"/>').format(
                colour % COLOURS, left + width * 0.14, bottom, width * 0.72, height
            )
        )
    hit = Markup('<rect class="hit" x="{:.3f}%" y="{}" width="{:.3f}%" height="{}"/>').format(
        left, TOP, width, HEIGHT - TOP - BOTTOM
    )
    return Markup("<g><title>{}</title>{}{}</g>").format("\n".join(lines), hit, Markup().join(parts))
