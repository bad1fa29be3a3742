"""Instants as Kubernetes writes them: RFC 3339 in UTC, to the second."""

from datetime import UTC, datetime


def text(instant: datetime) -> str:
    """Return `2026-11-23T22:05:06Z`."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(written: object) -> datetime | None:
    """Return the instant that is written, or None if none is."""
    if not isinstance(written, str) or not written:
        return None
    try:
        return datetime.fromisoformat(written)
    except ValueError:
        return None
