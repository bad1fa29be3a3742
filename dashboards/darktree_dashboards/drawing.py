"""A panel as SVG and HTML, from its JSON and Prometheus' answers: near enough to Grafana's to look at, and no more."""

import math
from dataclasses import dataclass
from html import escape
from typing import Any

COLORS = (
    "#73bf69",
    "#f2cc0c",
    "#5794f2",
    "#ff780a",
    "#b877d9",
    "#f2495c",
    "#8ab8ff",
    "#37872d",
    "#fade2a",
    "#a352cc",
)
NAMED = {"green": "#2f9e5b", "orange": "#d9822b", "red": "#c4314b"}
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 190, 52, 18, 6
TICKS = 4
MAX_LEGENDS = 8
_SCALES = ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, ""))

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One series: how it is called, and its values by time."""

    legend: str
    points: list[Point]


def number(panel: dict[str, Any], found: list[Line]) -> str:
    """A number over its past, coloured by its thresholds."""
    if not found or not found[0].points:
        return '<div class="empty">no data</div>'
    value = found[0].points[-1][1]
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults["thresholds"]["steps"]
    color = NAMED[
        [step["color"] for step in steps if step.get("value") is None or value >= step["value"]][-1]
    ]
    painted = f"background:{color}" if panel["options"]["colorMode"] == "background" else f"color:{color}"
    spark = _path(found[0].points, _Frame.around(found, 460, 90, 0, 0, 2))
    return (
        f'<div class="number" style="{painted}"><svg viewBox="0 0 460 90" preserveAspectRatio="none">'
        f'<path d="{spark}" fill="none" stroke="currentColor" stroke-opacity=".45" stroke-width="3"/></svg>'
        f"<b>{escape(told(value, defaults.get('unit', 'short')))}</b></div>"
    )


def lines(panel: dict[str, Any], found: list[Line]) -> str:
    """Lines, or areas upon each other, with an axis and a legend."""
    found = [line for line in found if line.points]
    if not found:
        return '<div class="empty">no data</div>'
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    unit = defaults.get("unit", "short")
    drawn = _piled(found) if stacked else found
    frame = _Frame.around(drawn, WIDTH, HEIGHT, LEFT, BOTTOM, TOP)
    parts = [
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{frame.y(tick):.1f}" y2="{frame.y(tick):.1f}" class="grid"/>'
        f'<text x="{LEFT - 6}" y="{frame.y(tick) + 4:.1f}" text-anchor="end">{escape(told(tick, unit))}</text>'
        for tick in frame.ticks()
    ]
    for place, line in reversed(list(enumerate(drawn))):
        color = COLORS[place % len(COLORS)]
        path = _path(line.points, frame)
        if stacked:
            base = f"L{frame.x(line.points[-1][0]):.1f} {frame.y(0):.1f} L{frame.x(line.points[0][0]):.1f} {frame.y(0):.1f} Z"
            parts.append(f'<path d="{path} {base}" fill="{color}" fill-opacity=".55"/>')
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
    legends = "".join(
        f'<span><i style="background:{COLORS[place % len(COLORS)]}"></i>{escape(line.legend)}</span>'
        for place, line in enumerate(found[:MAX_LEGENDS])
    )
    more = f"<span>and {len(found) - MAX_LEGENDS} more</span>" if len(found) > MAX_LEGENDS else ""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg><div class="legend">{legends}{more}</div>'
    )


def rows(columns: list[str], found: list[dict[str, str]]) -> str:
    """A table of labels."""
    if not found:
        return '<div class="empty">none now</div>'
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(row.get(name, ''))}</td>" for name in columns) + "</tr>"
        for row in found
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def told(value: float, unit: str) -> str:
    """Return a value as people read it."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        scale, name = next(
            ((size, name) for size, name in ((60, " min"), (1, " s"), (1e-3, " ms")) if abs(value) >= size),
            (1e-6, " µs"),
        )
        return "0 s" if not value else f"{value / scale:.3g}{name}"
    scale, name = next(((size, name) for size, name in _SCALES if abs(value) >= size), (1, ""))
    text = f"{value / scale:.4g}{name}"
    return {"currencyUSD": f"${text}", "reqps": f"{text}/s", "bytes": f"{text}B"}.get(unit, text)


@dataclass(frozen=True)
class _Frame:
    """Where a value at a time is on the picture."""

    start: float
    end: float
    top_value: float
    width: int
    height: int
    left: int
    bottom: int
    top: int

    @classmethod
    def around(cls, found: list[Line], width: int, height: int, left: int, bottom: int, top: int) -> "_Frame":
        points = [point for line in found for point in line.points]
        highest = max((value for _, value in points if not math.isnan(value)), default=1.0)
        times = [time for time, _ in points]
        return cls(min(times), max(times), highest if highest > 0 else 1.0, width, height, left, bottom, top)

    def x(self, time: float) -> float:
        return self.left + (time - self.start) / ((self.end - self.start) or 1) * (self.width - self.left)

    def y(self, value: float) -> float:
        room = self.height - self.bottom - self.top
        return self.top + room * (1 - max(0.0, value) / (self.top_value * 1.05))

    def ticks(self) -> list[float]:
        step = 10 ** math.floor(math.log10(self.top_value / TICKS))
        step *= next(factor for factor in (1, 2, 5, 10) if self.top_value / (step * factor) <= TICKS + 1)
        return [number * step for number in range(int(self.top_value / step) + 1)]


def _piled(found: list[Line]) -> list[Line]:
    """Return each line upon those before it."""
    sums: dict[float, float] = {}
    piled = []
    for line in found:
        for time, value in line.points:
            sums[time] = sums.get(time, 0.0) + (0.0 if math.isnan(value) else value)
        piled.append(Line(line.legend, [(time, sums[time]) for time, _ in line.points]))
    return piled


def _path(points: list[Point], frame: _Frame) -> str:
    shown = [(frame.x(time), frame.y(value)) for time, value in points if not math.isnan(value)]
    return " ".join(f"{'M' if not place else 'L'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(shown))
