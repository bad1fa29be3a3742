"""The only place that asks what time it is.

The database's clock decides everything about money (the ledger asks it in SQL); this one stamps logs, caches and
ids. A clock is a plain callable, so that a test passes its own.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
Monotonic = Callable[[], float]

monotonic: Monotonic = time.monotonic


def utc_now() -> datetime:
    """Return the present instant, with its time zone (UTC)."""
    return datetime.now(UTC)


def unix_nanoseconds() -> int:
    """Return nanoseconds since 1970-01-01 UTC."""
    return time.time_ns()


def unix_milliseconds() -> int:
    """Return milliseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000_000
