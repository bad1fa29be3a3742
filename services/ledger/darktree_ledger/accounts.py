"""Reading: balances, days, caps and entries. Nothing here sums the ledger."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

from sqlalchemy import func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_kit.errors import BadRequest
from darktree_ledger.errors import UnknownCustomer
from darktree_ledger.models import Account, CapChange, DayUsage, Entry, Hold
from darktree_ledger.reports import HoldPage, HoldView, RecentDays
from darktree_ledger.schemas import (
    MAX_PAGE,
    AccountView,
    CapChangeView,
    DayView,
    EntryFilter,
    EntryPage,
    EntryView,
)

MAX_DAYS = 366

# One statement, so that it is one instant. Volatile, the clock is asked once: a join would ask it again for each row.
_ACCOUNT = text(
    """WITH clock AS MATERIALIZED (SELECT ledger.clock_now() AS now)
       SELECT a.customer_id, a.balance_nanos, a.bonus_nanos, a.cap_tokens, a.seq AS entry_count,
              encode(a.head, 'hex') AS head, d.day,
              coalesce(u.prompt_tokens + u.completion_tokens, 0) AS day_tokens,
              h.open_holds, h.held_nanos, h.day_held_tokens,
              86400 - floor(extract(epoch FROM clock.now AT TIME ZONE 'UTC'))::bigint % 86400 AS reset_seconds
       FROM clock
       JOIN ledger.account a ON a.customer_id = :customer_id
       CROSS JOIN LATERAL (SELECT greatest(a.today, (clock.now AT TIME ZONE 'UTC')::date) AS day) d
       LEFT JOIN ledger.day_usage u ON u.customer_id = a.customer_id AND u.day = d.day
       CROSS JOIN LATERAL (
           SELECT count(*) AS open_holds, coalesce(sum(x.amount_nanos), 0)::bigint AS held_nanos,
                  coalesce(sum(x.prompt_tokens + x.completion_tokens) FILTER (WHERE x.usage_day = d.day), 0)::bigint
                      AS day_held_tokens
           FROM ledger.hold x
           WHERE x.customer_id = a.customer_id AND x.state = 'open' AND x.expires_at > clock.now) h"""
)


async def account(session: AsyncSession, customer_id: str) -> AccountView:
    """Return the customer's row as it stands, expired holds already left out. Raises UnknownCustomer."""
    row = (await session.execute(_ACCOUNT, {"customer_id": customer_id})).mappings().one_or_none()
    if row is None:
        raise UnknownCustomer(customer_id)
    return AccountView.model_validate(dict(row))


async def recent(session: AsyncSession, customer_id: str, count: int) -> RecentDays:
    """Return how a customer stands, and the latest so many days up to today. Raises UnknownCustomer."""
    now = await account(session, customer_id)
    first = now.day - timedelta(days=count - 1)
    return RecentDays(account=now, days=await _days(session, customer_id, first, now.day))


async def entries(
    session: AsyncSession, customer_id: str, *, limit: int, after: str | None, which: EntryFilter
) -> EntryPage:
    """Return a page of entries, newest first. The cursor is a sequence number, so new entries never move a page."""
    query = select(Entry).where(col(Entry.customer_id) == customer_id)
    if after is not None:
        query = query.where(col(Entry.seq) < _cursor(after))
    for column, value in ((Entry.kind, which.kind), (Entry.model, which.model), (Entry.key_id, which.key_id)):
        if value is not None:
            query = query.where(col(column) == value)
    if which.day is not None:
        first, last = (datetime.combine(which.day, end, UTC) for end in (time.min, time.max))
        query = query.where(col(Entry.recorded_at).between(first, last))
    rows = (await session.scalars(query.order_by(col(Entry.seq).desc()).limit(limit + 1))).all()
    if not rows:
        await must_exist(session, customer_id)
    page = rows[:limit]
    return EntryPage(data=[view(row) for row in page], next=str(page[-1].seq) if len(rows) > limit else None)


async def entries_of_hold(session: AsyncSession, customer_id: str, hold_id: UUID) -> list[EntryView]:
    """Return what a hold was settled with: a usage entry, an absorbed one, or both; nothing while it is open."""
    hold = await session.get(Hold, hold_id)
    if hold is None or hold.customer_id != customer_id or hold.entry_seq is None:
        return []
    rows = await session.scalars(
        select(Entry)
        .where(
            col(Entry.customer_id) == customer_id,
            col(Entry.seq).between(hold.entry_seq, hold.entry_seq + 1),
            col(Entry.hold_id) == hold_id,
        )
        .order_by(col(Entry.seq))
    )
    return [view(row) for row in rows]


async def open_holds(
    session: AsyncSession, *, customer_id: str | None, limit: int, after: str | None
) -> HoldPage:
    """Return a page of what running requests hold, everybody's or one customer's, by customer and age."""
    place = tuple_(col(Hold.customer_id), col(Hold.hold_id))
    query = select(Hold).where(col(Hold.state) == "open", col(Hold.expires_at) > func.ledger.clock_now())
    if customer_id is not None:
        await must_exist(session, customer_id)
        query = query.where(col(Hold.customer_id) == customer_id)
    if after is not None:
        last_customer, last_hold = _hold_cursor(after)
        query = query.where(col(Hold.customer_id) >= last_customer, place > (last_customer, last_hold))
    rows = (await session.scalars(query.order_by(place).limit(limit + 1))).all()
    return HoldPage.of([HoldView.model_validate(row, from_attributes=True) for row in rows], limit)


async def days(session: AsyncSession, customer_id: str, first: date, last: date) -> list[DayView]:
    """Return the days that have anything to tell, oldest first; both ends are included."""
    if not 0 <= (last - first).days < MAX_DAYS:
        raise BadRequest(f"first and last must be in order and at most {MAX_DAYS} days apart.", param="last")
    found = await _days(session, customer_id, first, last)
    if not found:
        await must_exist(session, customer_id)
    return found


async def _days(session: AsyncSession, customer_id: str, first: date, last: date) -> list[DayView]:
    rows = await session.scalars(
        select(DayUsage)
        .where(col(DayUsage.customer_id) == customer_id, col(DayUsage.day).between(first, last))
        .order_by(col(DayUsage.day))
    )
    return [DayView.model_validate(row, from_attributes=True) for row in rows]


async def cap_changes(
    session: AsyncSession, customer_id: str, after: UUID | None = None
) -> Sequence[CapChangeView]:
    """Return the newest changes of the daily cap, newest first; `after` is the id of the last of the page before."""
    place = tuple_(col(CapChange.changed_at), col(CapChange.operation_id))
    query = select(CapChange).where(col(CapChange.customer_id) == customer_id)
    if after is not None:
        last = await session.get(CapChange, after)
        if last is None or last.customer_id != customer_id:
            raise BadRequest("after must be a change of this cap.", param="after", code="invalid_value")
        query = query.where(place < (last.changed_at, last.operation_id))
    rows = (await session.scalars(query.order_by(place.desc()).limit(MAX_PAGE))).all()
    if not rows:
        await must_exist(session, customer_id)
    return [CapChangeView.model_validate(row, from_attributes=True) for row in rows]


async def must_exist(session: AsyncSession, customer_id: str) -> None:
    """Raise UnknownCustomer unless the ledger has this customer's account."""
    if await session.get(Account, customer_id) is None:
        raise UnknownCustomer(customer_id)


def _cursor(after: str) -> int:
    if not (after.isascii() and after.isdigit() and len(after) <= 18):
        raise BadRequest("after must be the `next` of an earlier page.", param="after", code="invalid_value")
    return int(after)


def _hold_cursor(after: str) -> tuple[str, UUID]:
    customer_id, _, hold_id = after.rpartition(".")
    try:
        if not customer_id:
            raise ValueError(after)
        return customer_id, UUID(hold_id)
    except ValueError as error:
        message = "after must be the `next` of an earlier page."
        raise BadRequest(message, param="after", code="invalid_value") from error


def view(row: Entry) -> EntryView:
    """Return an entry as its document."""
    values = row.model_dump() | {"prev_hash": row.prev_hash.hex(), "hash": row.hash.hex()}
    return EntryView.model_validate(values)
