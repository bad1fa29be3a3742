"""Maintenance windows: cron's own rules, in the window's own time zone."""

from datetime import UTC, datetime, timedelta

import pytest

from darktree_operator.lane import MaintenanceWindow
from darktree_operator.windows import InvalidWindow, is_open, next_opening, parse_window


def window(cron: str, minutes: int = 60, zone: str = "UTC") -> MaintenanceWindow:
    return MaintenanceWindow(cron=cron, time_zone=zone, duration_minutes=minutes)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


OPENINGS: list[tuple[str, str, str, str | None]] = [
    ("0 2 * * *", "UTC", "2026-03-04 12:00", "2026-03-05 02:00"),
    ("*/15 * * * *", "UTC", "2026-03-04 12:01", "2026-03-04 12:15"),
    ("0 22-23/1 * * sat,sun", "UTC", "2026-03-04 12:00", "2026-03-07 22:00"),
    ("30 1 1 jan *", "UTC", "2026-03-04 12:00", "2027-01-01 01:30"),
    ("0 0 29 2 *", "UTC", "2026-03-04 12:00", "2028-02-29 00:00"),
    ("0 0 31 2 *", "UTC", "2026-03-04 12:00", None),
    ("0 0 13 * 5", "UTC", "2026-03-04 12:00", "2026-03-06 00:00"),  # a 13th or a Friday
    ("0 0 * * 7", "UTC", "2026-03-04 12:00", "2026-03-08 00:00"),  # Sunday is 0 and 7
    ("0 2 * * *", "Europe/Berlin", "2026-01-04 12:00", "2026-01-05 01:00"),
    ("0 2 * * *", "Europe/Berlin", "2026-07-04 12:00", "2026-07-05 00:00"),
    ("30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", "2026-03-30 00:30"),  # 02:30 is skipped on the 29th
    ("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", "2026-10-25 00:30"),  # and comes twice on this one
]


@pytest.mark.parametrize(("cron", "zone", "now", "opens"), OPENINGS)
def test_the_next_opening(cron: str, zone: str, now: str, opens: str | None) -> None:
    assert next_opening(parse_window(window(cron, zone=zone)), at(now)) == (at(opens) if opens else None)


def test_a_window_is_open_from_its_start_up_to_its_end() -> None:
    night = parse_window(window("0 23 * * *", minutes=120))
    start = at("2026-03-04 23:00")
    second = timedelta(seconds=1)
    open_at = [start - second, start, start + timedelta(hours=2) - second, start + timedelta(hours=2)]
    assert [is_open(night, instant) for instant in open_at] == [False, True, True, False]


def test_a_window_of_a_whole_week_is_always_open() -> None:
    week = parse_window(window("0 0 * * mon", minutes=10_080))
    assert all(is_open(week, at("2026-03-04 12:00") + timedelta(hours=hour)) for hour in range(400))


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "* * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "5-1 * * * *",
        "a * * * *",
    ],
)
def test_what_is_no_cron_is_refused(cron: str) -> None:
    with pytest.raises(InvalidWindow):
        parse_window(window(cron))


def test_a_place_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidWindow, match="Middle/Earth"):
        parse_window(window("0 0 * * *", zone="Middle/Earth"))
