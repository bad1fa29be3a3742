"""What ends by itself: certificates of the addresses that people and programs use, and keys that customers use."""

import asyncio
import logging
from collections.abc import Iterable

from sqlalchemy import text

from darktree_billing import metrics
from darktree_kit import certificates
from darktree_kit.db import Database

EXPIRING_DAYS = 7

_log = logging.getLogger(__name__)
_EXPIRING = text(
    """SELECT count(*) FROM billing.api_key
       WHERE revoked_at IS NULL AND expires_at > now()
         AND expires_at < now() + CAST(:days AS integer) * interval '1 day'
         AND last_used_day > current_date - CAST(:days AS integer)"""
)


async def watch(database: Database, urls: Iterable[str], every_seconds: float) -> None:
    """Look again and again, for as long as the task lives."""
    urls = tuple(dict.fromkeys(url for url in urls if url))
    while True:
        await asyncio.gather(_count_keys(database), *map(_look, urls))
        await asyncio.sleep(every_seconds)


async def _count_keys(database: Database) -> None:
    try:
        async with database.sessions.begin() as session:
            count = (await session.execute(_EXPIRING, {"days": EXPIRING_DAYS})).scalar_one()
    except Exception as error:
        _log.warning("keys that expire could not be counted", extra={"error": str(error)[:500]})
        return
    metrics.KEYS_EXPIRING.set(count)


async def _look(url: str) -> None:
    """Set when a certificate ends. One that cannot be had keeps what it said before: that is still true."""
    try:
        ends = await certificates.expiry(url)
        if ends is not None:
            metrics.CERTIFICATE_EXPIRY.labels(certificates.target(url)).set(ends.timestamp())
    except (OSError, ValueError) as error:  # its text has neither the URL's user nor its password
        _log.warning("a certificate could not be read", extra={"error": str(error)[:500]})
