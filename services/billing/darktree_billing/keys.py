"""API keys as they are stored: an HMAC under a pepper, and when a key may no longer be used.

Neither the key nor its SHA-256 is ever written down. A leaked copy of the table is therefore worth nothing
without the pepper, which only this process's environment has. Times are the database's.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, case, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing.errors import AccountFrozen, TooManyKeys, UnknownCustomer, UnknownKey
from darktree_billing.freezes import is_frozen
from darktree_billing.key_format import key_digest, make_key, prefix_of
from darktree_billing.limits import limits_of
from darktree_billing.models import ApiKey, Customer
from darktree_billing.plans import Plans
from darktree_billing.schemas import (
    MAX_KEY_LIFETIME_DAYS,
    MAX_KEYS_PER_CUSTOMER,
    CreatedKey,
    CreateKey,
    KeyPage,
    KeyView,
    VerifiedKey,
    VerifyKey,
)
from darktree_kit.errors import BadRequest

Status = Literal["active", "revoked", "expired"]

_STATUS: ColumnElement[Any] = case(
    (col(ApiKey.revoked_at).is_not(None), "revoked"),
    (col(ApiKey.expires_at) <= func.now(), "expired"),
    else_="active",
)


@dataclass(frozen=True)
class Peppers:
    """The pepper that new keys are stored under, and those that other keys may have, by version."""

    current: int
    secrets: Mapping[int, bytes] = field(repr=False)

    def digest(self, key_sha256: str, version: int) -> bytes | None:
        """Return what is stored of a key, or None when this version's pepper is not known here."""
        secret = self.secrets.get(version)
        return None if secret is None else hmac.digest(secret, bytes.fromhex(key_sha256), hashlib.sha256)


async def create_key(
    session: AsyncSession, peppers: Peppers, customer_id: str, body: CreateKey
) -> CreatedKey:
    """Make a key. Raises UnknownCustomer, TooManyKeys, and BadRequest for an expiry out of range."""
    # The lock makes the count exact, and orders a customer's keys by time.
    owner = (
        select(func.now()).where(col(Customer.id) == customer_id).with_for_update(key_share=True, of=Customer)
    )
    now = await session.scalar(owner)
    if now is None:
        raise UnknownCustomer(customer_id)
    _check_expiry(body.expires_at, now)
    in_use = select(func.count()).where(col(ApiKey.customer_id) == customer_id, _STATUS == "active")
    if (await session.scalar(in_use) or 0) >= MAX_KEYS_PER_CUSTOMER:
        raise TooManyKeys(customer_id, MAX_KEYS_PER_CUSTOMER)
    new = make_key()
    digest = peppers.digest(key_digest(new.text), peppers.current)
    assert digest is not None
    key = ApiKey(
        id=new.id,
        customer_id=customer_id,
        name=body.name,
        last4=new.last4,
        digest=digest,
        pepper_version=peppers.current,
        expires_at=body.expires_at,
    )
    session.add(key)
    await session.flush()
    return CreatedKey(**_view(key, "active").model_dump(), key=new.text)


async def verify_key(session: AsyncSession, peppers: Peppers, plans: Plans, body: VerifyKey) -> VerifiedKey:
    """Return whose key this is. Raises UnknownKey when it may not be used, without telling why, and AccountFrozen.

    A first use of the day is noted, and a key stored under an older pepper moves to the current one: the
    only moment at which its SHA-256 is at hand.
    """
    found = await _find(session, body.key_id)
    if found is None:
        raise UnknownKey(body.key_id)
    key, status, today = found
    expected = peppers.digest(body.key_sha256, key.pepper_version)
    if expected is None or not hmac.compare_digest(expected, key.digest) or status != "active":
        raise UnknownKey(body.key_id)
    if await is_frozen(session, key.customer_id):
        raise AccountFrozen(key.customer_id)
    if key.pepper_version < peppers.current:  # a newer one: another replica is a step further
        key.digest = peppers.digest(body.key_sha256, peppers.current) or key.digest
        key.pepper_version = peppers.current
    if key.last_used_day != today:
        key.last_used_day = today
    limits = await limits_of(session, plans, key.customer_id)
    return VerifiedKey(
        key_id=key.id,
        customer_id=key.customer_id,
        expires_at=key.expires_at,
        requests_per_minute=limits.requests_per_minute,
        concurrent_requests=limits.concurrent_requests,
    )


async def revoke_key(session: AsyncSession, key_id: str, customer_id: str | None = None) -> KeyView:
    """Revoke a key for good; the time of the first revocation stays.

    Raises UnknownKey, also for a key of another than the named customer.
    """
    found = await _find(session, key_id, lock=True)
    if found is None or customer_id not in (None, found[0].customer_id):
        raise UnknownKey(key_id)
    key, _, _ = found
    if key.revoked_at is None:
        key.revoked_at = await session.scalar(select(func.now()))
    return _view(key, "revoked")


async def list_keys(session: AsyncSession, customer_id: str, limit: int, after: str | None) -> KeyPage:
    """Return a page of a customer's keys, oldest first. Raises BadRequest when `after` is none of them."""
    query = select(ApiKey, _STATUS).where(col(ApiKey.customer_id) == customer_id)
    place = tuple_(col(ApiKey.created_at), col(ApiKey.id))
    if after is not None:
        last = await session.get(ApiKey, after)
        if last is None or last.customer_id != customer_id:
            raise BadRequest("after: not a cursor of this list.", param="after", code="invalid_value")
        query = query.where(place > (last.created_at, last.id))
    rows = (await session.execute(query.order_by(place).limit(limit + 1))).all()
    page = [_view(key, status) for key, status in rows[:limit]]
    return KeyPage(data=page, next=page[-1].id if len(rows) > limit else None)


async def count_keys(session: AsyncSession) -> dict[Status, int]:
    """Return how many keys there are in each status."""
    rows = (await session.execute(select(_STATUS, func.count()).select_from(ApiKey).group_by(_STATUS))).all()
    counts: dict[Status, int] = {"active": 0, "revoked": 0, "expired": 0}
    for status, count in rows:
        counts[status] = count
    return counts


async def count_keys_with_old_pepper(session: AsyncSession, peppers: Peppers) -> int:
    """Return how many keys in use have not moved to the current pepper yet."""
    old = col(ApiKey.pepper_version) < peppers.current
    return await session.scalar(select(func.count()).where(old, _STATUS == "active")) or 0


async def _find(
    session: AsyncSession, key_id: str, *, lock: bool = False
) -> tuple[ApiKey, Status, date] | None:
    """Return a key, its status now, and today."""
    query = select(ApiKey, _STATUS, func.current_date()).where(col(ApiKey.id) == key_id)
    row = (await session.execute(query.with_for_update(of=ApiKey) if lock else query)).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


def _check_expiry(expires_at: datetime | None, now: datetime) -> None:
    latest = now + timedelta(days=MAX_KEY_LIFETIME_DAYS)
    if expires_at is not None and not now < expires_at <= latest:
        raise BadRequest(
            f"expires_at: must lie in the future, and not after {latest:%Y-%m-%d}; "
            "leave it out for a key that does not expire.",
            param="expires_at",
            code="invalid_value",
        )


def _view(key: ApiKey, status: Status) -> KeyView:
    return KeyView(
        id=key.id,
        customer_id=key.customer_id,
        name=key.name,
        prefix=prefix_of(key.id),
        last4=key.last4,
        status=status,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_day=key.last_used_day,
    )
