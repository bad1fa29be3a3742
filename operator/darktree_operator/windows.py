"""Maintenance windows: from each time that a cron line names, in its own time zone, for so many minutes.

A start that a change to summer time skips does not happen that day; one that it repeats happens once, the first time.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from darktree_operator.lane import MaintenanceWindow

MAX_DAYS_AHEAD = 5 * 366  # as far as the next 29 February always is
_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 7),
)
_PART = re.compile(r"(\*|(\d+)(?:-(\d+))?)(?:/(\d+))?")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NAMES = {name: number for number, name in enumerate(_DAYS)} | {
    name: number for number, name in enumerate(_MONTHS, 1)
}


class InvalidWindow(ValueError):
    """A window that never opens, or that nobody can read."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window with its times as sets of numbers; Sunday is 0."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    """Whether a day of the month or a day of the week is enough, as cron has it when both are restricted."""
    zone: ZoneInfo
    duration: timedelta


def parse_window(window: MaintenanceWindow) -> Window:
    """Return a window that can be asked. Raises InvalidWindow."""
    parts = window.cron.split()
    if len(parts) != len(_FIELDS):
        raise InvalidWindow(f"cron {window.cron!r} needs five fields: minute hour day month weekday")
    sets = [_numbers(part, *field) for part, field in zip(parts, _FIELDS, strict=True)]
    try:
        zone = ZoneInfo(window.time_zone)
    except (ValueError, OSError, LookupError) as error:
        raise InvalidWindow(f"timeZone {window.time_zone!r} is not known") from error
    return Window(
        minutes=tuple(sorted(sets[0])),
        hours=tuple(sorted(sets[1])),
        days=sets[2],
        months=sets[3],
        weekdays=frozenset(number % 7 for number in sets[4]),
        either_day=not parts[2].startswith("*") and not parts[4].startswith("*"),
        zone=zone,
        duration=timedelta(minutes=window.duration_minutes),
    )


def is_open(window: Window, now: datetime) -> bool:
    """Return whether a rollout may begin now."""
    return any(
        start <= now < start + window.duration for start in _starts(window, now - window.duration, now)
    )


def next_opening(window: Window, now: datetime) -> datetime | None:
    """Return when the window opens next after now, in UTC; None if no day ever matches."""
    later = (start for start in _starts(window, now, now + timedelta(days=MAX_DAYS_AHEAD)) if start > now)
    return next(later, None)


def _starts(window: Window, first: datetime, last: datetime) -> Iterator[datetime]:
    day = first.astimezone(window.zone).date()
    end = last.astimezone(window.zone).date()
    while day <= end:
        if _matches(window, day):
            for hour in window.hours:
                for minute in window.minutes:
                    local = datetime.combine(day, time(hour, minute), window.zone)
                    start = local.astimezone(UTC)
                    if start.astimezone(window.zone).replace(tzinfo=None) == local.replace(tzinfo=None):
                        yield start
        day += timedelta(days=1)


def _matches(window: Window, day: date) -> bool:
    if day.month not in window.months:
        return False
    of_month, of_week = day.day in window.days, day.isoweekday() % 7 in window.weekdays
    return (of_month or of_week) if window.either_day else (of_month and of_week)


def _numbers(text: str, name: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in text.lower().split(","):
        numeric = re.sub(r"[a-z]+", lambda word: str(_NAMES.get(word[0], word[0])), part)
        match = _PART.fullmatch(numeric)
        if match is None:
            raise InvalidWindow(f"cron: {part!r} is no {name}")
        star, begin, end, step = match[1] == "*", match[2], match[3], int(match[4] or 1)
        start = low if star else int(begin)
        stop = high if star or (end is None and match[4]) else int(end or begin)
        if step < 1 or not low <= start <= stop <= high:
            raise InvalidWindow(f"cron: {part!r} is no {name} from {low} to {high}")
        found.update(range(start, stop + 1, step))
    return frozenset(found)
