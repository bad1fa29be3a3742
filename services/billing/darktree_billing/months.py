"""A calendar month in UTC: the period of the books."""

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple, Self

MONTH_PATTERN = r"^20[0-9]{2}-(?:0[1-9]|1[0-2])$"


class Month(NamedTuple):
    """Written `2026-11`; months compare by time."""

    year: int
    number: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the month that a text says. Raises ValueError."""
        if not re.fullmatch(MONTH_PATTERN, text):
            raise ValueError(f"{text!r} is not a month, such as 2026-11")
        return cls(int(text[:4]), int(text[5:]))

    @classmethod
    def of(cls, instant: datetime) -> Self:
        return cls.of_day(instant.astimezone(UTC).date())

    @classmethod
    def of_day(cls, day: date) -> Self:
        return cls(day.year, day.month)

    def __str__(self) -> str:
        return f"{self.year}-{self.number:02d}"

    @property
    def first_day(self) -> date:
        return date(self.year, self.number, 1)

    @property
    def last_day(self) -> date:
        return self.next.first_day - timedelta(days=1)

    @property
    def start(self) -> datetime:
        return datetime.combine(self.first_day, time(), UTC)

    @property
    def end(self) -> datetime:
        """The first instant that is no longer in it."""
        return self.next.start

    def day_within(self, day: date) -> date:
        """Return the day of this month that is nearest to a day."""
        return min(max(day, self.first_day), self.last_day)

    @property
    def next(self) -> "Month":
        return Month(self.year + self.number // 12, self.number % 12 + 1)

    @property
    def previous(self) -> "Month":
        return Month(self.year - (self.number == 1), (self.number - 2) % 12 + 1)
