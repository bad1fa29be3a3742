"""The period of a statement: a month, or any whole UTC days, as it is written in addresses and file names."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Self

from darktree_billing.months import Month

MAX_DAYS = 366
PERIOD_PATTERN = r"^20[0-9]{2}-[0-9]{2}(?:-[0-9]{2}_20[0-9]{2}-[0-9]{2}-[0-9]{2})?$"


@dataclass(frozen=True)
class Period:
    """Whole days, both ends included. Written `2026-11`, or `2026-11-01_2026-11-15`."""

    first_day: date
    last_day: date

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the period that a text says. Raises ValueError."""
        if not re.fullmatch(PERIOD_PATTERN, text):
            raise ValueError(f"{text!r} is not a period, such as 2026-11 or 2026-11-01_2026-11-15")
        first, separator, last = text.partition("_")
        if not separator:
            month = Month.parse(text)
            return cls(month.first_day, month.last_day)
        period = cls(date.fromisoformat(first), date.fromisoformat(last))
        if not 0 <= (period.last_day - period.first_day).days < MAX_DAYS:
            raise ValueError(f"{text!r} must end after it begins, and within {MAX_DAYS} days")
        return period

    def __str__(self) -> str:
        month = Month(self.first_day.year, self.first_day.month)
        if (month.first_day, month.last_day) == (self.first_day, self.last_day):
            return str(month)
        return f"{self.first_day}_{self.last_day}"

    @property
    def start(self) -> datetime:
        return datetime.combine(self.first_day, time(), UTC)

    @property
    def end(self) -> datetime:
        """The first instant that is no longer in it."""
        return datetime.combine(self.last_day + timedelta(days=1), time(), UTC)

    @property
    def days(self) -> list[date]:
        return [
            self.first_day + timedelta(days=place)
            for place in range((self.last_day - self.first_day).days + 1)
        ]
